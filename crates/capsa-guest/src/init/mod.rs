//! PID 1, from the kernel's start of it to the end of the machine.
//!
//! The order is what makes a start fast: what the channel needs comes first, then the agent, which
//! opens the channel while the rest is mounted, and only then the drivers that nobody waits for.
//!
//! When something goes wrong on the way, one line on the console says what, and the machine ends.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};

use capsa_agent_proto::config::{self, Channel, Config};
use nix::sys::signal::{Signal, kill};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::Pid;
use rustix::system::{RebootCommand, reboot, sethostname};
use rustix::termios::tcdrain;

use self::modules::Modules;
use self::supervisor::Supervisor;
use crate::agent;
use crate::supervision::{self, ToAgent};
use crate::trouble::{Attempt, Trouble, say};

mod button;
mod late;
mod modules;
mod mounts;
mod network;
mod rtnetlink;
mod supervisor;
pub(crate) mod uevents;

/// Is PID 1. Returns only if the machine does not end when it is told to.
pub fn run() {
    if let Err(trouble) = boot().and_then(Supervisor::run) {
        say(&trouble.to_string());
    }
    power_off();
}

fn boot() -> Result<Supervisor, Trouble> {
    let config = read_config()?;
    mounts::kernel()?;
    let mut modules = Modules::find().attempt("find the kernel's modules")?;
    let driver = match &config.channel {
        Channel::SerialPort(_) => "virtio_console",
        Channel::Vsock(_) => "vmw_vsock_virtio_transport",
    };
    for module in ["virtio_pci", driver] {
        let loaded = modules.load(module);
        loaded.attempt(format_args!("load the module {module}"))?;
    }
    let (agent, socket) = start_agent(&config).attempt("start the agent")?;

    mounts::system()?;
    sethostname(config.hostname.as_bytes()).attempt("set the hostname")?;
    network::bring_up(config.network.as_ref(), &mut modules)?;
    let loaded = modules.load_for_disks();
    loaded.attempt("load the driver of disks")?;
    mounts::root(&config.root, &mut modules)?;
    if let Some(network) = &config.network {
        network::write_names(network, &config.hostname)?;
    }
    for share in &config.shares {
        mounts::share(share, &mut modules)?;
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = open(c"/", flags, Mode::empty()).attempt("open the root")?;
    supervision::send(&socket, &ToAgent::Ready, &[root.as_fd()])
        .attempt("tell the agent that all is mounted")?;
    Supervisor::new(agent, socket, modules).attempt("watch over the agent")
}

/// Reads the config and removes it: programs of the guest have no business with the token.
fn read_config() -> Result<Config, Trouble> {
    let what = format_args!("read {}", config::PATH);
    let bytes = fs::read(config::PATH).attempt(what)?;
    fs::remove_file(config::PATH).attempt(format_args!("remove {}", config::PATH))?;
    Config::decode(&bytes).attempt(what)
}

fn start_agent(config: &Config) -> io::Result<(Pid, OwnedFd)> {
    let (ours, theirs) = supervision::pair()?;
    let begin = ToAgent::Begin {
        token: config.token.clone(),
        channel: config.channel.clone(),
    };
    supervision::send(&ours, &begin, &[])?;
    let child = Command::new("/proc/self/exe")
        .arg(agent::ROLE)
        .env_clear()
        .stdin(Stdio::from(File::from(theirs)))
        .spawn()?;
    Ok((Pid::from_child(&child), ours))
}

fn power_off() {
    // Nothing may change a file any more. There may be nobody left.
    let _ = kill(nix::unistd::Pid::from_raw(-1), Signal::SIGKILL);
    rustix::fs::sync();
    // What is on its way to the console still gets there.
    let _ = tcdrain(io::stderr());
    if let Err(e) = reboot(RebootCommand::PowerOff) {
        say(&format!("power off: {e}"));
    }
}
