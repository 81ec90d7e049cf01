//! The networks that are compared, each a process whose standard input is its end of the link.

use std::env;
use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use capsa_net::policy::Protocol;
use capsa_net::{HOST_NAME, HostService, Link, UserNetwork};
use capsa_testing_guest::load::{GUEST, HOST, Servers};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

/// The argument that makes this program a network.
pub(crate) const SERVE: &str = "--serve";

/// A network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    /// Capsa's, over a stream, as with QEMU.
    Capsa,
    /// Capsa's, a frame in each message, as with the KVM machine.
    CapsaMessages,
    Passt,
    /// Behind a hub of QEMU's, in a machine of nothing.
    Slirp,
}

/// All there are. Others are compared with the first.
pub(crate) const NETWORKS: [Network; 4] = [
    Network::Capsa,
    Network::CapsaMessages,
    Network::Passt,
    Network::Slirp,
];

/// A network that runs.
pub(crate) struct Running {
    child: Child,
    network: Network,
}

impl Network {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Capsa => "capsa",
            Self::CapsaMessages => "messages",
            Self::Passt => "passt",
            Self::Slirp => "slirp",
        }
    }

    pub(crate) fn is_capsa(self) -> bool {
        matches!(self, Self::Capsa | Self::CapsaMessages)
    }

    /// What answers pings.
    pub(crate) fn gateway(self) -> Ipv4Addr {
        match self {
            Self::Capsa | Self::CapsaMessages => Ipv4Addr::new(10, 0, 2, 1),
            Self::Passt | Self::Slirp => HOST,
        }
    }

    pub(crate) fn is_installed(self) -> bool {
        let program = match self {
            Self::Capsa | Self::CapsaMessages => return true,
            Self::Passt => "passt",
            Self::Slirp => "qemu-system-x86_64",
        };
        let mut command = Command::new(program);
        command.arg("--version").stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok()
    }

    /// Starts it. The descriptor is the guest's end of the link.
    pub(crate) fn start(self, mtu: u16, servers: &Servers) -> (Running, OwnedFd) {
        let kind = match self {
            Self::CapsaMessages => SocketType::SEQPACKET,
            _ => SocketType::STREAM,
        };
        let flags = SocketFlags::CLOEXEC;
        let (own, other) = socketpair(AddressFamily::UNIX, kind, flags, None).expect("a socket");
        let mut command = match self {
            Self::Capsa | Self::CapsaMessages => {
                let mut command = Command::new(env::current_exe().expect("this program"));
                let ports = [servers.stream, servers.greeter, servers.datagrams];
                command.arg(SERVE).arg(mtu.to_string());
                command.args(ports.map(|port| port.to_string()));
                command
            }
            Self::Passt => {
                let mut command = Command::new("passt");
                command.args(["--foreground", "--quiet", "--ipv4-only", "--fd", "0"]);
                command.args(["--address", &GUEST.to_string(), "--netmask", "24"]);
                command.args(["--gateway", &HOST.to_string(), "--dns", "none"]);
                command.args(["--mtu", &mtu.to_string()]);
                command
            }
            Self::Slirp => {
                let mut command = Command::new("qemu-system-x86_64");
                command.args(["-nodefaults", "-display", "none", "-machine", "none"]);
                for netdev in [
                    "stream,id=link,addr.type=fd,addr.str=0",
                    "user,id=slirp",
                    "hubport,id=first,hubid=0,netdev=link",
                    "hubport,id=second,hubid=0,netdev=slirp",
                ] {
                    command.args(["-netdev", netdev]);
                }
                command
            }
        };
        command.stdin(other).stdout(Stdio::piped());
        let child = command.stderr(Stdio::null()).spawn().expect("a process");
        let network = self;
        (Running { child, network }, own)
    }
}

impl Running {
    /// Processor time so far, in nanoseconds.
    pub(crate) fn cpu(&self) -> u64 {
        self.threads("schedstat", |text| text.split_whitespace().next())
    }

    /// How often it has waited so far.
    pub(crate) fn waits(&self) -> u64 {
        self.threads("status", |text| {
            let mut lines = text.lines();
            lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))
        })
    }

    /// The sum of a number that each thread has in a file.
    fn threads(&self, file: &str, find: impl Fn(&str) -> Option<&str>) -> u64 {
        let tasks = format!("/proc/{}/task", self.child.id());
        let tasks = fs::read_dir(tasks).expect("the network runs");
        let number = |task: fs::DirEntry| {
            // A thread may end meanwhile.
            let text = fs::read_to_string(task.path().join(file)).unwrap_or_default();
            find(&text).and_then(|number| number.trim().parse::<u64>().ok())
        };
        tasks.flatten().filter_map(number).sum()
    }

    /// Ends it once its link is closed. Returns how many allocations it has made, if it counts them.
    pub(crate) fn end(mut self) -> Option<u64> {
        let mut said = String::new();
        if self.network.is_capsa() {
            let output = self.child.stdout.as_mut().expect("a pipe");
            output.read_to_string(&mut said).expect("the count");
        }
        // What has ended is not harmed.
        let _ = self.child.kill();
        self.child.wait().expect("its end");
        said.trim().parse().ok()
    }
}

/// Is Capsa's network, with the link as standard input, until that is closed; then says how many allocations were
/// made.
pub(crate) fn serve(arguments: impl Iterator<Item = String>) {
    let numbers: Vec<u16> = arguments
        .map(|text| text.parse().expect("a number"))
        .collect();
    let [mtu, stream, greeter, datagrams] = numbers[..] else {
        panic!("an MTU and three ports");
    };
    let service = |protocol, port| HostService {
        name: HOST_NAME.parse().expect("a name"),
        protocol,
        port,
        target: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
    };
    let network = UserNetwork {
        mtu,
        address: Some(GUEST),
        services: vec![
            service(Protocol::Tcp, stream),
            service(Protocol::Tcp, greeter),
            service(Protocol::Udp, datagrams),
        ],
        ..UserNetwork::default()
    };
    assert_eq!(network.host(), HOST);
    let network = capsa_net::Network::new(network).expect("a network");
    let input = std::io::stdin();
    let link = input.as_fd().try_clone_to_owned().expect("a descriptor");
    let link = Link::new(link).expect("a socket");
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().expect("a runtime");
    let allocations = allocation_counter::measure(|| {
        // Guests that close their end with frames on the way break the link.
        let _ = runtime.block_on(network.run(link));
    });
    println!("{}", allocations.count_total);
}
