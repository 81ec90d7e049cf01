//! The network: the same stack and the same policy on every backend, by its network card.

use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use capsa::kit::Kit;
use capsa::network::{
    Action, Cluster, ClusterMember, Event, HOST_NAME, HostService, NetworkCluster, NetworkEvents,
    NetworkPolicy, PortForward, Protocol, Reason, Resolvers, Rule, UserNetwork,
};
use capsa::{BackendChoice, ExitReason, NetworkMode, Sandbox, fake};
use capsa_testing_guest::exchange::{self, Order};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::sandbox::{builder, shell};
use crate::guest::{Guest, LIMIT, kit_vm, output};
use crate::{images, servers};

/// Public addresses, which are places of the test's own.
const ALLOWED: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 34);
const OTHER: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 35);

/// A program resolves the name of a server and reaches it if the policy says so, and no other; events tell
/// by which rule.
pub async fn a_sandbox_reaches_what_its_policy_allows(backend: BackendChoice) {
    let names = [("good.example", ALLOWED), ("other.example", OTHER)];
    let resolver = servers::names(names).await;
    let (good, other) = (
        servers::web("welcome").await,
        servers::web("no way in").await,
    );
    let network = UserNetwork {
        policy: NetworkPolicy::deny_all().rule(Rule::allow("good.example:80").expect("a rule")),
        resolvers: Resolvers::Servers(vec![resolver]),
        mtu: 9000,
        ..UserNetwork::default()
    };
    let prepared = builder(backend).network(network).hostname("box").build();
    let prepared = prepared.await.expect("it can be built");
    let at = |address: Ipv4Addr, server| (SocketAddr::from((address, 80)), server);
    fake::put_servers(prepared.vm(), [at(ALLOWED, good), at(OTHER, other)]);
    let mut events = prepared
        .vm()
        .take_network_events()
        .expect("a network's events");
    assert!(prepared.vm().take_network_events().is_none());
    let sandbox = prepared.start().await.expect("the sandbox starts");

    let said = shell(&sandbox, "wget -qO- http://good.example/").await;
    assert_eq!(said.stdout, b"welcome", "{said:?}");
    // By a name that is not resolved, by its address, by another server's address under a good name.
    for url in ["other.example", "93.184.216.35"] {
        let said = shell(&sandbox, &format!("wget -qO- http://{url}/")).await;
        assert!(
            !said.status.success() && said.stdout.is_empty(),
            "{url}: {said:?}"
        );
    }
    let said = shell(
        &sandbox,
        "hostname; grep box /etc/hosts; cat /sys/class/net/eth0/mtu",
    )
    .await;
    assert_eq!(
        said.stdout, b"box\n10.0.2.3 box\nfd00:ca95:a::3 box\n9000\n",
        "{said:?}"
    );

    let (allowed, denied) = decisions(&mut events);
    let rule = Some("good.example:80".to_owned());
    assert_eq!(allowed, [((ALLOWED, 80).into(), rule)]);
    assert_eq!(denied, [((OTHER, 80).into(), Reason::Default)]);
    sandbox.vm().kill().await.expect("kill");
    while events.next().await.is_some() {}
}

type Allowed = (SocketAddr, Option<String>);
type Denied = (SocketAddr, Reason);

/// The connections so far: by which rules they were let through, and why not.
fn decisions(events: &mut NetworkEvents) -> (Vec<Allowed>, Vec<Denied>) {
    let (mut allowed, mut denied) = (Vec::new(), Vec::new());
    while let Some(event) = events.try_next() {
        if let Event::Connect { to, decision, .. } = event {
            match decision.action {
                Action::Allow => allowed.push((to, decision.rule.map(|id| id.to_string()))),
                Action::Deny => denied.push((to, decision.reason)),
            }
        }
    }
    // A guest that is refused while its program still asks tries once more.
    denied.dedup();
    (allowed, denied)
}

/// Sandboxes of a cluster reach each other by name while a third one stands still, and each is there once.
pub async fn members_of_a_cluster_reach_each_other(backend: BackendChoice) {
    let members = ["web", "db", "still"].map(|name| name.parse().expect("a name"));
    let members = members.into_iter().map(ClusterMember::new);
    let shop = NetworkCluster::new("shop".parse().expect("a name"));
    let cluster = Cluster::new(&members.fold(shop, NetworkCluster::member)).expect("it is sound");
    let member = |name| cluster.member(name).expect("a member");
    let (_file, kit) = kit_with_peer();
    let start = |name| {
        let builder = builder(backend).kit(kit.clone());
        builder.network(member(name)).start()
    };
    let (web, db, still) =
        tokio::try_join!(start("web"), start("db"), start("still")).expect("the sandboxes start");
    still.vm().pause().await.expect("pause");
    assert!(start("db").await.is_err(), "two are one member");

    let serving = db.exec(["/net-peer", "serve", &GUEST_PORT.to_string()]);
    let mut serving = serving.spawn().await.expect("the program runs");
    let mut said = BufReader::new(serving.stdout.take().expect("its output")).lines();
    let listens = timeout(LIMIT, said.next_line()).await.expect("in time");
    assert_eq!(
        listens.expect("a line").as_deref(),
        Some("net-peer listens")
    );
    // Nobody answers there; what is sent is dropped.
    shell(&web, "ping -c 2 -w 2 still.shop.internal").await;
    ok(&web, "ping -c 1 -w 30 db.shop.internal").await;
    let at = format!("{}:{GUEST_PORT}", member("db").network().guest());
    let length = output(1 << 20);
    ok(
        &web,
        &format!("/net-peer exchange {at} 4 {length} client-first"),
    )
    .await;
    for sandbox in [web, db, still] {
        sandbox.vm().kill().await.expect("kill");
    }
}

/// The kit with a program that is the peer of exchanges. It is there as long as the file.
fn kit_with_peer() -> (tempfile::NamedTempFile, Kit) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let peer = images::guest_program("net-peer");
    std::fs::write(file.path(), images::initramfs_with("net-peer", &peer)).expect("written");
    let mut kit = images::kit();
    kit.initramfs = file.path().to_owned();
    (file, kit)
}

/// Bytes of the longest exchange.
const LONG: usize = 100 << 20;

/// Flows at once.
const FLOWS: usize = 200;

const GUEST_PORT: u16 = 7000;

/// Connections of the guest and of the host carry much and are many, each side ends before the other, and
/// datagrams pass, through a service of the host and through port forwards.
pub async fn bytes_pass_whole_both_ways(backend: BackendChoice) {
    let served = servers::tcp(|stream| async {
        let stream = stream.into_std().expect("a socket");
        stream.set_nonblocking(false).expect("a blocking socket");
        let served = spawn_blocking(|| exchange::server(stream)).await;
        served.expect("no panic").expect("an exchange");
    });
    let (tcp, udp) = (served.await, servers::echo().await);
    let service = |protocol, target| HostService {
        name: HOST_NAME.parse().expect("a name"),
        protocol,
        port: GUEST_PORT,
        target,
    };
    let forward = |protocol| PortForward {
        protocol,
        listen: (Ipv4Addr::LOCALHOST, 0).into(),
        guest_port: GUEST_PORT,
    };
    let network = UserNetwork {
        policy: NetworkPolicy::deny_all(),
        services: vec![service(Protocol::Tcp, tcp), service(Protocol::Udp, udp)],
        forwards: vec![forward(Protocol::Tcp), forward(Protocol::Udp)],
        ..UserNetwork::default()
    };
    let host = format!("{}:{GUEST_PORT}", network.host());
    let host6 = network.host6().expect("it has IPv6");
    let host6 = format!("[{host6}]:{GUEST_PORT}");
    let (_file, kit) = kit_with_peer();
    let sandbox = builder(backend).kit(kit).network(network).start().await;
    let sandbox = sandbox.expect("the sandbox starts");

    for (to, flows, length, order) in [
        (&host, 1, output(LONG), "client-first"),
        (&host, 1, output(LONG / 10), "server-first"),
        (&host, FLOWS, output(64 << 10), "client-first"),
        (&host6, 4, output(1 << 20), "client-first"),
    ] {
        ok(
            &sandbox,
            &format!("/net-peer exchange {to} {flows} {length} {order}"),
        )
        .await;
    }
    ok(&sandbox, &format!("/net-peer ask {host} 1472")).await;

    let serving = sandbox.exec(["/net-peer", "serve", &GUEST_PORT.to_string()]);
    let mut serving = serving.spawn().await.expect("the program runs");
    let mut said = BufReader::new(serving.stdout.take().expect("its output")).lines();
    let listens = timeout(LIMIT, said.next_line()).await.expect("in time");
    assert_eq!(
        listens.expect("a line").as_deref(),
        Some("net-peer listens")
    );
    let &[tcp, udp] = sandbox.vm().forwards() else {
        panic!("two forwards: {:?}", sandbox.vm().forwards())
    };
    for (flows, length, order) in [
        (1, output(LONG / 10), Order::ServerFirst),
        (20, output(1 << 20), Order::ClientFirst),
    ] {
        let exchange = move || {
            let stream = TcpStream::connect(tcp)?;
            exchange::client(stream, order, length as u64)
        };
        let flows: Vec<_> = (0..flows).map(|_| spawn_blocking(exchange)).collect();
        for flow in flows {
            let done = timeout(LIMIT, flow).await.expect("in time");
            done.expect("no panic").expect("an exchange");
        }
    }
    let answer = spawn_blocking(move || ask(udp)).await.expect("no panic");
    assert_eq!(answer.expect("an answer"), [7; 1472]);
    sandbox.vm().kill().await.expect("kill");
    assert!(TcpStream::connect(tcp).is_err(), "nobody listens");
}

async fn ok(sandbox: &Sandbox, command: &str) {
    let said = shell(sandbox, command).await;
    assert!(said.status.success(), "{command}: {said:?}");
}

/// Sends a datagram until there is an answer, for as long as a test has patience: those before the guest's
/// program are lost.
fn ask(to: SocketAddr) -> std::io::Result<Vec<u8>> {
    let end = Instant::now() + LIMIT;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut answer = vec![0; 2000];
    loop {
        socket.send(&[7; 1472])?;
        match socket.recv(&mut answer) {
            Ok(length) => return Ok(answer[..length].to_vec()),
            Err(error)
                if error.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < end => {}
            Err(error) => return Err(error),
        }
    }
}

/// A VM of which nobody has said anything asks for its address and reaches public ones, and neither the host
/// nor the metadata of clouds; also when its driver has begun anew. Its reset is one.
pub async fn nat_reaches_public_addresses_only(backend: BackendChoice) {
    let server = servers::web("welcome").await;
    // What the kernel says of a network card would come between what programs say.
    let builder = kit_vm(backend).cmdline_arg("quiet");
    let builder = builder.network(NetworkMode::Nat);
    let vm = builder.build().await.expect("it can be built");
    let denied = ["169.254.169.254", "192.168.0.1", "100.100.100.200"];
    let places = denied.map(|text| text.parse().expect("an address"));
    let places = places.into_iter().chain([ALLOWED]);
    fake::put_servers(&vm, places.map(|address| ((address, 80).into(), server)));
    let mut events = vm.take_network_events().expect("a network's events");
    let mut guest = Guest::start(vm).await;

    let fetch = |address: &str| format!("wget -qO- http://{address}/");
    let public = fetch(&ALLOWED.to_string());
    assert_eq!(guest.ok(&public).await, "welcome");
    for address in denied {
        assert_ne!(guest.run(&fetch(address)).await.0, 0, "{address}");
    }
    // The host: by its gateway's address, and by the one for services.
    let link = ["10.0.2.1", "10.0.2.2"];
    for address in link {
        let host = format!("{address}:{}", server.port());
        assert_ne!(guest.run(&fetch(&host)).await.0, 0, "{host}");
    }
    let (_, refused) = decisions(&mut events);
    let local: Vec<_> = refused
        .iter()
        .map(|(_, reason)| *reason == Reason::Local)
        .collect();
    assert_eq!(local, [false, false, false, true, true], "{refused:?}");
    let refused: Vec<_> = refused.iter().map(|(to, _)| to.ip().to_string()).collect();
    assert_eq!(refused, [&denied[..], &link[..]].concat());

    let rebind = "cd /sys/bus/virtio/drivers/virtio_net; d=$(echo virtio*); \
        echo $d > unbind; echo $d > bind; cd; udhcpc -q -s /etc/udhcpc -i eth0 2> /dev/null";
    guest.ok(rebind).await;
    assert_eq!(guest.ok(&public).await, "welcome");
    guest.type_line("reboot -f").await;
    guest
        .vm
        .wait_timeout(LIMIT)
        .await
        .expect("wait")
        .expect("the end");
    let reason = guest.vm.exit_reason();
    assert!(matches!(reason, Some(ExitReason::Reset)), "{reason:?}");
}
