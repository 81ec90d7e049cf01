//! Development commands: `cargo xtask COMMAND`.
//!
//! Each command is enough by itself on a fresh Debian-like machine that has cargo: it installs
//! what is missing, or says what to install and exits with status 3.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod bench;
mod fuzz;
mod guest;
mod kvm;
mod nextest;
mod packages;
mod run;
mod soak;
mod step;
mod test;
mod tools;
mod workspace;

/// Development commands of Capsa.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boots a VM with a shell on this terminal; with ARGS, runs `capsa ARGS`.
    Run {
        /// Arguments of the `capsa` command.
        #[arg(last = true)]
        args: Vec<OsString>,
    },
    /// Runs every check and every test.
    Test,
    /// Runs a command where KVM runs stock kernels: here, else in a level-1 guest with this
    /// machine's files.
    Kvm(kvm::Bench),
    /// Runs the tests that need a KVM which runs stock kernels, as `kvm` does.
    KvmTest {
        /// Only tests with one of these in their names.
        names: Vec<String>,
    },
    /// Compares Capsa with a QEMU started by hand; prints a table.
    Bench {
        /// Compares Capsa's own machine with QEMU and further monitors, as `kvm` runs a command.
        #[arg(long)]
        kvm: bool,
        /// Compares Capsa's network with QEMU's own and, where it is installed, passt.
        #[arg(long, conflicts_with = "kvm")]
        network: bool,
        /// A further monitor: `firecracker=FILE` or `cloud-hypervisor=FILE`.
        #[arg(long = "peer", value_name = "NAME=FILE", requires = "kvm")]
        peers: Vec<String>,
        /// With --kvm: only this part, `start`, `sandbox`, `rest` or `block`.
        #[arg(long, value_name = "PART", requires = "kvm")]
        only: Option<String>,
        /// How often each is measured.
        #[arg(long, default_value_t = 10)]
        pairs: u32,
        /// Writes every measurement to this file.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Starts and ends VMs for a long time and looks for what they leave behind.
    Soak {
        /// The backend: `auto`, `kvm`, `qemu`. VMs of `kvm` run where KVM runs stock kernels.
        #[arg(long, default_value = "auto")]
        backend: String,
        /// Guests of a few instructions instead, on any /dev/kvm: hundreds of VMs in seconds.
        #[arg(long, conflicts_with_all = ["backend", "seed"])]
        bare_metal: bool,
        /// One sandbox instead, with much input and output and many programs.
        #[arg(long, conflicts_with_all = ["bare_metal", "cycles", "seed"])]
        sandbox: bool,
        /// With --sandbox: how many programs.
        #[arg(long, default_value_t = 1000, requires = "sandbox")]
        programs: u32,
        /// With --sandbox: how many MiB there and back.
        #[arg(long, default_value_t = 1024, requires = "sandbox")]
        mebibytes: u32,
        /// How many VMs, one after the other.
        #[arg(long, default_value_t = 200)]
        cycles: u32,
        /// Repeats the sequence of the run that printed this seed.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Fuzzes one target, or each in turn.
    Fuzz {
        /// The target; `fuzz/fuzz_targets` has them all.
        target: Option<String>,
        /// How long each target is fuzzed.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
}

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            match error.is::<packages::CannotInstall>() {
                true => ExitCode::from(3),
                false => ExitCode::FAILURE,
            }
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    match command {
        Command::Run { args } => run::run(&args)?,
        Command::Test => return test::run(),
        Command::Kvm(bench) => return Ok(kvm::run(&bench)),
        Command::KvmTest { names } => test::run_with_kvm(&names)?,
        Command::Bench {
            kvm,
            network,
            peers,
            only,
            pairs,
            json,
        } => match (kvm, network) {
            (true, _) => kvm::run_bench(pairs, &peers, only.as_deref(), json.as_deref())?,
            (false, true) => bench::run_network(pairs, json.as_deref())?,
            (false, false) => bench::run(pairs, json.as_deref())?,
        },
        Command::Soak {
            backend,
            bare_metal,
            sandbox,
            programs,
            mebibytes,
            cycles,
            seed,
        } => match (bare_metal, sandbox) {
            (true, _) => soak::run_bare_metal(cycles)?,
            (false, true) => return soak::run_sandbox(&backend, programs, mebibytes),
            (false, false) => return soak::run(&backend, cycles, seed),
        },
        Command::Fuzz { target, seconds } => fuzz::run(target.as_deref(), seconds)?,
    }
    Ok(ExitCode::SUCCESS)
}
