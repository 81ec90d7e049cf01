//! Sockets between host and guest.

use std::io::ErrorKind;

use capsa::{BackendChoice, Error, VsockConfig, VsockStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::guest::{Guest, LIMIT, kit_vm, output};
use crate::images;

const GUEST_PORT: u32 = 700;
const HOST_PORT: u32 = 800;

/// Connections at once.
const CONNECTIONS: u8 = 20;

/// Both sides connect, many at once; each direction ends by itself; no byte is lost or strays.
pub async fn streams_pass_both_ways(backend: BackendChoice) {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("vsock");
    let mut guest = boot(backend, VsockConfig::new().with_socket(&socket)).await;
    let vm = guest.vm.clone();
    guest
        .type_line(&format!("/vsock-peer echo {GUEST_PORT} &"))
        .await;
    let listens = guest.console.wait_for_timeout("peer listens", LIMIT);
    listens.await.expect("the guest listens");

    let mut echoes = JoinSet::new();
    for number in 0..CONNECTIONS {
        let vm = vm.clone();
        echoes.spawn(async move {
            let mut stream = vm.vsock(GUEST_PORT).await.expect("a connection");
            echo(&mut stream, number).await;
        });
    }
    timeout(LIMIT, echoes.join_all()).await.expect("in time");

    // Another program's way in.
    let mut stream = UnixStream::connect(&socket).await.expect("the socket");
    let request = format!("CONNECT {GUEST_PORT}\n");
    stream.write_all(request.as_bytes()).await.expect("taken");
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') {
        answer.push(stream.read_u8().await.expect("an answer"));
    }
    assert!(answer.starts_with(b"OK "), "{answer:?}");
    stream.write_all(b"abc").await.expect("taken");
    let mut back = [0; 3];
    stream.read_exact(&mut back).await.expect("an echo");
    assert_eq!(&back, b"abc");

    let mut listener = vm.vsock_listen(HOST_PORT).await.expect("a listener");
    let second = vm.vsock_listen(HOST_PORT).await;
    assert_kind(second.expect_err("the port is taken"), ErrorKind::AddrInUse);
    let answering = tokio::spawn(async move {
        let mut stream = listener.accept().await.expect("the guest's connection");
        let mut said = String::new();
        stream.read_to_string(&mut said).await.expect("its words");
        stream.write_all(b"the host heard ").await.expect("taken");
        stream.write_all(said.as_bytes()).await.expect("taken");
    });
    let heard = guest
        .ok(&format!("echo a guest | /vsock-peer send {HOST_PORT}"))
        .await;
    assert_eq!(heard, "the host heard a guest");
    answering.await.expect("no panic");
    // The listener is gone.
    let (status, output) = guest
        .run(&format!("/vsock-peer send {HOST_PORT} < /dev/null"))
        .await;
    assert_ne!(status, 0, "{output}");

    let nobody = vm.vsock(GUEST_PORT + 1).await.expect_err("nobody listens");
    assert_kind(nobody, ErrorKind::ConnectionRefused);

    let mut stream = vm.vsock(GUEST_PORT).await.expect("a connection");
    vm.kill().await.expect("kill");
    let end = timeout(LIMIT, stream.read(&mut [0; 1])).await;
    assert_eq!(end.expect("in time").unwrap_or(0), 0, "the connection ends");
    let ended = vm.vsock(GUEST_PORT).await.expect_err("the VM has ended");
    assert!(matches!(ended, Error::NotRunning { .. }), "{ended:?}");
    assert!(!socket.exists());
}

/// A VM has only the ports that were asked for.
pub async fn a_vm_without_vsock_says_so(backend: BackendChoice) {
    let vm = kit_vm(backend).build().await.expect("build");
    let refused = vm.vsock(GUEST_PORT).await.expect_err("no vsock");
    assert!(
        matches!(refused, Error::UnsupportedFeature { .. }),
        "{refused:?}"
    );
}

async fn boot(backend: BackendChoice, config: VsockConfig) -> Guest {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let peer = images::guest_program("vsock-peer");
    std::fs::write(file.path(), images::initramfs_with("vsock-peer", &peer)).expect("written");
    let builder = crate::guest::kit_vm_with(backend, file.path());
    // The monitor has read it by then.
    Guest::boot(builder.vsock(config)).await
}

async fn echo(stream: &mut VsockStream, number: u8) {
    let period = (0..=250).map(|byte: u8| byte ^ number).cycle();
    let sent: Vec<u8> = period.take(output(1 << 20)).collect();
    let mut received = Vec::new();
    let (mut read, mut write) = tokio::io::split(stream);
    let send = async {
        write.write_all(&sent).await.expect("taken");
        write.shutdown().await.expect("the end");
    };
    let (_, read) = tokio::join!(send, read.read_to_end(&mut received));
    read.expect("read to the end");
    assert!(received == sent, "connection {number}");
}

fn assert_kind(error: Error, kind: ErrorKind) {
    match error {
        Error::Io { source, .. } => assert_eq!(source.kind(), kind),
        other => panic!("{other:?}"),
    }
}
