//! Networks over the fake backend, whose machines send no frame: what does not depend on a guest.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use capsa::network::{PortForward, Protocol, UserNetwork};
use capsa::{BackendChoice, Capsa, Error, LinuxVmBuilder, NetworkMode, StartFailure};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(30);

/// A builder for a fake VM, and the folder that holds its kernel.
fn fake() -> (LinuxVmBuilder, TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let kernel = folder.path().join("vmlinuz");
    std::fs::write(&kernel, capsa::fake::kernel_image()).expect("a kernel");
    let builder = Capsa::with_backend(BackendChoice::Fake).linux(capsa::LinuxBoot::new(kernel));
    (builder, folder)
}

fn forwarding(listen: impl IntoIterator<Item = SocketAddr>) -> UserNetwork {
    let forward = |listen| PortForward {
        protocol: Protocol::Tcp,
        listen,
        guest_port: 80,
    };
    UserNetwork {
        forwards: listen.into_iter().map(forward).collect(),
        ..UserNetwork::default()
    }
}

#[tokio::test]
async fn a_vm_has_a_network_unless_it_is_told_otherwise() {
    let (builder, _folder) = fake();
    let vm = builder.clone().build().await.unwrap();
    assert!(vm.take_network_events().is_some());
    assert!(vm.take_network_events().is_none());
    let vm = builder.no_network().build().await.unwrap();
    assert!(vm.take_network_events().is_none());
}

#[tokio::test]
async fn a_network_ends_with_its_vm_also_without_a_start() {
    let (builder, _folder) = fake();
    for starts in [true, false] {
        let vm = builder.clone().build().await.unwrap();
        let mut events = vm.take_network_events().unwrap();
        if starts {
            vm.start().await.unwrap();
        }
        vm.kill().await.unwrap();
        let end = tokio::time::timeout(LIMIT, events.next()).await;
        assert_eq!(end.unwrap(), None);
    }
}

/// One test, as others would have threads too.
#[tokio::test]
async fn forwards_listen_from_the_start_to_the_end_and_a_port_that_is_taken_is_named() {
    let (builder, _folder) = fake();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let vm = builder.clone().network(forwarding([any, any]));
    let vm = vm.build().await.unwrap();
    assert_eq!(vm.forwards(), []);
    vm.start().await.unwrap();
    let &[first, second] = vm.forwards() else {
        panic!("two forwards: {:?}", vm.forwards())
    };
    assert_ne!(first, second);
    TcpStream::connect(first).unwrap();

    let taken = builder.clone().network(forwarding([any, second]));
    let refused = taken.no_retry().build().await.unwrap().start().await;
    match refused.unwrap_err() {
        Error::StartFailed { cause, .. } => match &*cause {
            StartFailure::Listen {
                protocol: Protocol::Tcp,
                address,
                ..
            } => assert_eq!(*address, second),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
    vm.kill().await.unwrap();
    for address in [first, second] {
        TcpListener::bind(address).expect("nobody has it any more");
    }
}

#[tokio::test]
async fn a_start_waits_for_a_port_that_is_let_go() {
    let (builder, _folder) = fake();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let vm = builder
        .network(forwarding([address]))
        .build()
        .await
        .unwrap();
    let (started, ()) = tokio::join!(vm.start(), async {
        // The first try has failed by then.
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(taken);
    });
    started.unwrap();
    assert_eq!(vm.forwards(), [address]);
}

#[tokio::test]
async fn everything_that_is_wrong_with_a_network_is_told_at_once() {
    let (builder, _folder) = fake();
    let network = UserNetwork {
        mtu: 1,
        mac: [1; 6],
        ..UserNetwork::default()
    };
    let refused = builder.cpus(0).network(network).build().await;
    let Err(Error::InvalidConfig { problems }) = refused else {
        panic!("{refused:?}")
    };
    let fields: Vec<_> = problems.iter().map(|p| p.field.as_ref()).collect();
    assert_eq!(fields, ["cpus", "network", "network"]);
    assert_eq!(
        NetworkMode::from(UserNetwork::default()).kind().to_string(),
        "user"
    );
}

#[cfg(feature = "blocking")]
#[test]
fn events_are_an_iterator_without_a_runtime() {
    use capsa::blocking::Build;

    let (builder, _folder) = fake();
    let vm = builder.build_blocking().unwrap();
    let events = vm.take_network_events().unwrap();
    vm.start().unwrap();
    vm.kill().unwrap();
    assert_eq!(events.count(), 0);
}
