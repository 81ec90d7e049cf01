//! VMs with the networks that are compared.

use std::fmt;
use std::fs::{self, Permissions};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use capsa::network::{HOST_NAME, HostService, Protocol};
use capsa::{BackendChoice, NetworkMode, UserNetwork, VmHandle};
use capsa_testing::guest::kit_vm_with;
use capsa_testing_guest::load::{GUEST, HOST, Servers};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader, Lines};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::by_hand::{self, CommandLine};
use crate::stream::LIMIT;

/// The name of passt's socket.
const SOCKET: &str = "passt";

/// How long passt may take to be there.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(5);

/// A network. All have the host at the same address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    /// As the library's users have it.
    Capsa,
    /// QEMU's own, which is libslirp.
    User,
    /// At the other end of a socket, as Capsa's.
    Passt,
}

impl Network {
    /// Those that this machine has; others are compared with the first.
    pub(crate) fn installed() -> Vec<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let passt = std::env::split_paths(&path).any(|folder| folder.join("passt").is_file());
        let passt = passt.then_some(Self::Passt);
        [Self::Capsa, Self::User].into_iter().chain(passt).collect()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Capsa => "capsa",
            Self::User => "QEMU -netdev user",
            Self::Passt => "passt",
        })
    }
}

/// What all of them have in common.
pub(crate) struct Lab {
    initramfs: PathBuf,
    servers: Servers,
    /// QEMU's command lines with the others.
    user: CommandLine,
    passt: CommandLine,
    /// Where passt's socket is.
    folder: TempDir,
}

impl Lab {
    /// Runs Capsa once, for the command line of the QEMU below it.
    pub(crate) async fn new(initramfs: PathBuf, servers: Servers) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        // passt is another user, if it is started by root.
        fs::set_permissions(folder.path(), Permissions::from_mode(0o1777))?;
        let socket = folder.path().join(SOCKET);
        let passt = format!(
            "stream,id=net0,server=off,addr.type=unix,addr.path={}",
            socket.display()
        );
        let vm = capsa_vm(&initramfs, servers).await?;
        let with = |netdev: &str| {
            by_hand::below(std::process::id(), |_, arg, value| {
                Ok(if arg == "-netdev" { netdev } else { value }.to_owned())
            })
        };
        let lab = Self {
            user: with("user,id=net0,ipv6=off")?,
            passt: with(&passt)?,
            initramfs,
            servers,
            folder,
        };
        vm.kill().await?;
        Ok(lab)
    }

    /// Starts a VM.
    pub(crate) async fn start(&self, network: Network) -> Result<Machine> {
        match network {
            Network::Capsa => {
                let vm = capsa_vm(&self.initramfs, self.servers).await?;
                let (console, _) = vm.console().await?.split();
                Ok(Machine::new(Process::Capsa(vm), console, None))
            }
            Network::User => Machine::by_hand(&self.user, None),
            Network::Passt => Machine::by_hand(&self.passt, Some(self.start_passt().await?)),
        }
    }

    /// Starts passt, which ends with its one connection.
    async fn start_passt(&self) -> Result<Child> {
        let socket = self.folder.path().join(SOCKET);
        match fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let mut command = Command::new("passt");
        command
            .args(["--foreground", "--quiet", "--one-off", "--socket"])
            .arg(&socket)
            .args(["--ipv4-only", "--dns", "none", "--mtu", "1500"])
            .args(["--address", &GUEST.to_string(), "--netmask", "24"])
            .args(["--gateway", &HOST.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let mut passt = command.spawn().context("cannot start passt")?;
        // Not by connecting: it takes one connection only.
        let there = async {
            while !socket.exists() {
                if let Some(status) = passt.try_wait()? {
                    bail!("passt has ended: {status}");
                }
                tokio::time::sleep(LOOK).await;
            }
            Ok(())
        };
        timeout(PATIENCE, there)
            .await
            .context("passt is not there")??;
        Ok(passt)
    }
}

/// Starts a VM of Capsa's.
async fn capsa_vm(initramfs: &Path, servers: Servers) -> Result<VmHandle> {
    let Servers {
        stream,
        greeter,
        datagrams,
    } = servers;
    let service = |(protocol, port)| HostService {
        name: HOST_NAME.parse().expect("a name"),
        protocol,
        port,
        target: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
    };
    let ports = [
        (Protocol::Tcp, stream),
        (Protocol::Tcp, greeter),
        (Protocol::Udp, datagrams),
    ];
    let network = UserNetwork {
        address: Some(GUEST),
        subnet6: None,
        services: ports.map(service).into(),
        ..UserNetwork::default()
    };
    let vm = kit_vm_with(BackendChoice::Qemu, initramfs)
        .network(NetworkMode::User(network))
        .cmdline_args(["quiet", "rdinit=/bench", "bench_task=network"])
        .cmdline_arg(format!("bench_ports={stream},{greeter},{datagrams}").as_str())
        .build()
        .await?;
    vm.start().await?;
    Ok(vm)
}

/// A VM whose guest says what it does.
pub(crate) struct Machine {
    process: Process,
    console: Lines<BufReader<Box<dyn AsyncRead + Unpin>>>,
    passt: Option<Child>,
}

enum Process {
    Capsa(VmHandle),
    ByHand(Child),
}

impl Machine {
    fn new(
        process: Process,
        console: impl AsyncRead + Unpin + 'static,
        passt: Option<Child>,
    ) -> Self {
        let console: Box<dyn AsyncRead + Unpin> = Box::new(console);
        Self {
            process,
            console: BufReader::new(console).lines(),
            passt,
        }
    }

    fn by_hand(line: &CommandLine, passt: Option<Child>) -> Result<Self> {
        let mut child = line.start()?;
        let console = child.stdout.take().context("no pipe")?;
        Ok(Self::new(Process::ByHand(child), console, passt))
    }

    /// The next that the guest says.
    pub(crate) async fn said(&mut self) -> Result<String> {
        loop {
            let line = timeout(LIMIT, self.console.next_line()).await;
            let line = line.context("the guest is silent")??;
            let line = line.context("the console has ended")?;
            // Firmware may have left something in it.
            if let Some((_, said)) = line.split_once("bench: ") {
                return Ok(said.trim_end().to_owned());
            }
        }
    }

    /// Ends it whatever it does.
    pub(crate) async fn kill(self) -> Result<()> {
        match self.process {
            Process::Capsa(vm) => vm.kill().await?,
            Process::ByHand(mut child) => child.kill().await?,
        }
        if let Some(mut passt) = self.passt {
            passt.kill().await?;
        }
        Ok(())
    }
}
