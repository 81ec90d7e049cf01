//! What may be typed: the commands, their options and their help.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use capsa::{BackendChoice, Isolation, KernelCmdline, SharedDir, User};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::disk::{DiskArg, DiskFormat};
use crate::exec::EnvArg;
use crate::network::NetworkArgs;
use crate::policy::DestinationArg;
use crate::root::RootArgs;
use crate::settings::ConsoleSetting;
use crate::{quantity, share};

/// Runs virtual machines for isolated work.
#[derive(Debug, Parser)]
#[command(
    name = "capsa",
    version,
    disable_help_subcommand = true,
    max_term_width = 80,
    after_help = "\
Examples:
  capsa setup                    make the guest kit, once: a small Linux
  capsa exec -- uname -a         run a command in a fresh VM
  capsa run                      boot it to a shell: see `capsa run --help`"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,

    /// Log to standard error; twice for details (CAPSA_LOG filters)
    #[arg(short, long, global = true, action = ArgAction::Count, display_order = 900)]
    pub(crate) verbose: u8,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Boot a VM and wait for its end
    Run(Box<RunArgs>),
    /// Run a command in a fresh sandbox
    Exec(Box<ExecArgs>),
    /// List the backends and what they can do (alias: info)
    #[command(
        alias = "info",
        after_help = "\
Example:
  capsa backends --json | jq '.[].info'"
    )]
    Backends {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what this machine lacks, and what mends it
    #[command(
        long_flag = "check-system",
        after_help = "\
The exit status is 3 when no VM can run on this machine.

Example:
  capsa doctor"
    )]
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Say what a policy of the network lets through
    #[command(subcommand, subcommand_value_name = "WHAT", after_help = POLICY_EXAMPLES)]
    Policy(PolicyCommand),
    /// Print the version
    #[command(after_help = "Example:\n  capsa version")]
    Version,
    /// Make the guest kit, which `run` boots by default
    Setup(SetupArgs),
    /// Print a completion script for a shell
    #[command(after_help = "\
Example:
  capsa completions bash > ~/.local/share/bash-completion/completions/capsa")]
    Completions {
        /// The shell
        shell: Shell,
    },
}

const EXEC_DETAILS: &str = "\
The command runs as root in a Linux of its own, in memory, without a network
unless --net says otherwise;
busybox has the usual programs, unless --root says otherwise. Its environment is
PATH, HOME, LANG, TERM and what --env and --env-file give it; of two values the
later counts, and --env after any file. What it prints is printed here, byte for
byte.

When standard input and standard output are terminals, the command has one too,
of the same size and kind, and every key is the command's, Ctrl-C and Ctrl-Z
included. Only Ctrl-] is Capsa's: it hangs the command up (SIGHUP), and a second
one kills the sandbox. Otherwise Ctrl-C is passed on as a signal, and a second
one kills the sandbox; so are SIGTERM and SIGHUP in any case.

The exit status is the command's: 128 and the signal's number for a command that
one ended, 126 when it cannot be run, 127 when it is not there, 124 when
--timeout ran out, 137 when Ctrl-] killed the sandbox, 130, 143 or 129 when
Ctrl-C, SIGTERM or SIGHUP did, 141 when nobody reads standard output any more,
and 125 when Capsa itself failed, usage included.

--status-file says it without a doubt, in JSON that is written whole or not at
all, as soon as it is known:
  {\"outcome\":\"exited\",\"status\":7}
  {\"outcome\":\"signaled\",\"signal\":9,\"status\":137}
  {\"outcome\":\"timeout\",\"status\":124}
  {\"outcome\":\"interrupted\",\"signal\":15,\"status\":143}   by a signal to capsa
  {\"outcome\":\"killed\",\"status\":137}                    by Ctrl-]
  {\"outcome\":\"failed\",\"status\":127,
   \"error\":{\"code\":\"E0901\",\"message\":\"...\",\"hint\":null}}
`status` is always the exit status. A file of that name is removed first, so that
without one capsa has not ended, or was killed. When what was typed makes no
sense, as without the --, the option may be the command's own: then only an empty
file or an earlier status is replaced.

-v shows what the guest says while it boots, on standard error.

--env-file reads what Docker's does: a NAME=VALUE or NAME per line, with no
quotes, where lines that are empty or begin with # do not count.
";

const EXEC_EXAMPLES: &str = "\
Examples:
  capsa exec -- uname -a
  capsa exec -- sh
  capsa exec --timeout 5m --status-file status.json -- sh -c 'exit 7'
  capsa exec --share .:/work:rw --cwd /work -- sh -c 'ls -l > listing'
  capsa exec --root / --share .:/work:rw --cwd /work -- cargo build";

#[derive(Debug, Args)]
#[command(
    after_help = EXEC_EXAMPLES,
    after_long_help = format!("{EXEC_DETAILS}\n{EXEC_EXAMPLES}")
)]
pub(crate) struct ExecArgs {
    #[command(flatten)]
    pub(crate) root: RootArgs,

    #[command(flatten)]
    pub(crate) machine: MachineArgs,

    #[arg(
        long,
        value_name = "NAME[=VALUE]",
        value_parser = EnvArg::parse,
        help = "Set a variable: NAME has its value here; NAME=VALUE can be seen by every \
                user of this machine, with ps"
    )]
    pub(crate) env: Vec<EnvArg>,

    /// Set the variables that a file has, one per line: NAME=VALUE or NAME
    #[arg(long = "env-file", value_name = "FILE")]
    pub(crate) env_files: Vec<PathBuf>,

    /// The command's working directory [default: /]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) cwd: Option<OsString>,

    // A doc comment would make a link of the brackets.
    #[arg(
        long,
        value_name = "USER",
        value_parser = user,
        help = "As whom the command runs, in the guest: NAME or UID[:GID] [default: root]"
    )]
    pub(crate) user: Option<User>,

    /// Give the command a terminal, whether there is one here or not
    #[arg(short, long, overrides_with = "no_tty")]
    pub(crate) tty: bool,

    /// Give the command no terminal, though there is one here
    #[arg(long, overrides_with = "tty")]
    pub(crate) no_tty: bool,

    /// Write to this file how the command ended, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) status_file: Option<PathBuf>,

    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

const RUN_DETAILS: &str = "\
Without --kernel the VM boots the guest kit: to a shell, or into the first disk.

On a terminal, Ctrl-] asks the guest to power off, and a second Ctrl-] kills it;
Ctrl-C and Ctrl-Z go to the guest. The kit's shell learns the window's size when
it starts. A serial console cannot tell a guest that the window has changed: use
`stty rows R cols C` in the guest.

When standard input is not a terminal, the kit's shell runs its lines and powers
off at its end; without any input it gives a short demonstration. Other guests
get the bytes as they come.

Ctrl-C (where it does not go to the guest), SIGTERM and SIGHUP ask the guest to
power off and kill it after 10 s, or when they come again.

The exit status is 0 when the guest powered off or reset, 1 when the VM failed,
2 for usage, 3 when something is missing on this machine, 124 when --timeout ran
out, 137 when Ctrl-] killed the guest, 130, 143 or 129 after Ctrl-C, SIGTERM or
SIGHUP, 141 when nobody reads standard output any more.

Options override the file: --disk replaces its disks, --share and --cmdline add
to what it has.
";

const RUN_EXAMPLES: &str = "\
Examples:
  capsa run
  capsa run --config linux-vm.toml --cpus 4 --memory 4G --timeout 5m
  capsa run --kernel bzImage --initrd initrd --disk root.qcow2 --console stdio";

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_value_name = "BOOT",
    subcommand_help_heading = "Ways to boot",
    after_help = RUN_EXAMPLES,
    after_long_help = format!("{RUN_DETAILS}\n{RUN_EXAMPLES}")
)]
pub(crate) struct RunArgs {
    #[command(subcommand)]
    pub(crate) boot: Option<BootCommand>,

    /// Read the VM's configuration from a TOML file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) linux: LinuxArgs,

    #[command(flatten)]
    pub(crate) vm: VmArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BootCommand {
    /// Boot a Linux kernel directly; the same as `run --kernel`
    #[command(after_help = "\
Example:
  capsa run linux --kernel bzImage --initrd initrd --share .:/src:rw")]
    Linux(Box<LinuxCommand>),
    /// Boot a disk through UEFI firmware
    #[command(after_help = "\
Example:
  capsa run uefi --disk debian.qcow2 --memory 2G --console stdio")]
    Uefi(Box<UefiCommand>),
}

#[derive(Debug, Args)]
pub(crate) struct LinuxCommand {
    #[command(flatten)]
    pub(crate) linux: LinuxArgs,

    #[command(flatten)]
    pub(crate) vm: VmArgs,
}

#[derive(Debug, Args)]
pub(crate) struct UefiCommand {
    /// Keep the firmware's variables in this file; it is made when it does not exist
    #[arg(long, value_name = "FILE")]
    pub(crate) variables: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) vm: VmArgs,
}

/// What only a directly booted kernel has.
#[derive(Debug, Args)]
pub(crate) struct LinuxArgs {
    /// The kernel; the guest kit's by default
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,

    /// The initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub(crate) initrd: Option<PathBuf>,

    /// Add to the kernel's command line
    #[arg(long, value_name = "LINE", value_parser = KernelCmdline::parse_line, allow_hyphen_values = true)]
    pub(crate) cmdline: Option<KernelCmdline>,
}

/// What a VM is and has, whether it is booted for its console or for a command.
#[derive(Debug, Args)]
pub(crate) struct MachineArgs {
    #[arg(
        long = "share",
        value_name = "SHARE",
        value_parser = share::parse,
        help = "Share a folder or file: HOST:GUEST[:ro|rw], read-only by default"
    )]
    pub(crate) shares: Vec<SharedDir>,

    #[command(flatten)]
    pub(crate) network: NetworkArgs,

    /// The number of vCPUs [default: 1]
    #[arg(long, value_name = "N")]
    pub(crate) cpus: Option<u32>,

    /// The memory: 512M, 4G [default: 512M]
    #[arg(long, value_name = "SIZE", value_parser = quantity::mebibytes)]
    pub(crate) memory: Option<u32>,

    /// Kill the VM after this time: 90s, 5m, 1h30m
    #[arg(long, value_name = "TIME", value_parser = quantity::duration)]
    pub(crate) timeout: Option<Duration>,

    /// The backend that runs the VM [default: auto]
    #[arg(long, value_name = "NAME", value_parser = backend_choice())]
    pub(crate) backend: Option<BackendChoice>,

    /// Refuse a backend with a weaker isolation
    #[arg(long = "require-isolation", value_name = "LEVEL", value_parser = isolation())]
    pub(crate) isolation: Option<Isolation>,
}

/// What every VM that `run` boots has.
#[derive(Debug, Args)]
pub(crate) struct VmArgs {
    // A doc comment would make links of the brackets; the same below.
    #[arg(
        long = "disk",
        value_name = "DISK",
        help = "Attach a disk, the root disk first: \
                FILE[,format=raw|qcow2][,ro][,ephemeral][,backing=FILE]"
    )]
    pub(crate) disks: Vec<DiskArg>,

    /// The format of disks that do not name one; by default their extension says it
    #[arg(long, value_name = "FORMAT", requires = "disks")]
    pub(crate) disk_format: Option<DiskFormat>,

    /// Connect the console: stdio both ways, enabled only to standard output;
    /// the default is stdio for the guest kit, else disabled
    #[arg(long, value_name = "MODE")]
    pub(crate) console: Option<ConsoleSetting>,

    #[command(flatten)]
    pub(crate) machine: MachineArgs,

    /// A name for logs and for the process list
    #[arg(long)]
    pub(crate) name: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The kit is made in $CAPSA_KIT, else in $XDG_DATA_HOME/capsa/kit, else in ~/.local/share/capsa/kit.
By default its kernel is Debian's package, fetched with apt and unpacked without being installed.
Its folder is printed to standard output.

Examples:
  capsa setup
  capsa setup --kernel ./bzImage --modules ./lib/modules/6.1.0")]
pub(crate) struct SetupArgs {
    /// Make it from this kernel
    #[arg(long, value_name = "FILE", requires = "modules")]
    pub(crate) kernel: Option<PathBuf>,

    /// The kernel's modules: a folder like /lib/modules/RELEASE
    #[arg(long, value_name = "FOLDER", requires = "kernel")]
    pub(crate) modules: Option<PathBuf>,

    /// Make it from the kernel that is installed on this machine
    #[arg(long, conflicts_with = "kernel")]
    pub(crate) host: bool,

    /// A statically linked busybox
    #[arg(long, value_name = "FILE")]
    pub(crate) busybox: Option<PathBuf>,

    /// Make it in this folder
    #[arg(long, value_name = "FOLDER")]
    pub(crate) folder: Option<PathBuf>,
}

const POLICY_EXAMPLES: &str = "\
Examples:
  capsa policy check policy.toml crates.io:443
  capsa policy learn -o policy.toml -- wget -O /dev/null http://example.com";

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Say which rule decides about a connection, and why
    #[command(after_help = CHECK_DETAILS)]
    Check(CheckArgs),
    /// Run a command, and print the smallest policy that allows what it used
    #[command(after_help = LEARN_EXAMPLES, after_long_help = format!("{LEARN_DETAILS}\n{LEARN_EXAMPLES}"))]
    Learn(Box<LearnArgs>),
}

const LEARN_DETAILS: &str = "\
The command runs as with `capsa exec`, with the same options and exit status, and
with a network that reaches every public address. When it has ended, the policy
that would have allowed it is printed on standard error, or written to --output.
It names what the command named: a name rather than its address, and the port. What
was denied since it is not public is listed there, and not allowed.

What looks like HTTP or TLS is understood as under a rule for a name, and what of it
cannot be understood is denied.
";

const LEARN_EXAMPLES: &str = "\
Examples:
  capsa exec --net policy=policy.toml -- wget -O /dev/null http://example.com
  capsa policy learn -o policy.toml -- wget -O /dev/null http://example.com";

#[derive(Debug, Args)]
pub(crate) struct LearnArgs {
    /// Write the policy to this file, and not to standard error
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) exec: ExecArgs,
}

const CHECK_DETAILS: &str = "\
The exit status is 0 when the connection is allowed, 1 when it is denied, and 2
when the policy or the question makes no sense. Nothing is asked on the network:
a name is decided about when it is resolved, when its address is connected to,
and when the connection says it, and all three are told.

Example:
  capsa policy check policy.toml crates.io:443";

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// The policy
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,

    // A doc comment would make a link of the brackets.
    #[arg(
        value_name = "HOST:PORT",
        help = "Where to: crates.io:443, 10.0.0.1:80, [2001:db8::1]:80"
    )]
    pub(crate) to: DestinationArg,

    /// Over UDP; otherwise it is TCP
    #[arg(long)]
    pub(crate) udp: bool,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn user(text: &str) -> Result<User, &'static str> {
    match text {
        "" => Err("a user is a NAME, a UID or UID:GID"),
        text => Ok(text.into()),
    }
}

fn backend_choice() -> impl TypedValueParser<Value = BackendChoice> {
    PossibleValuesParser::new(BackendChoice::NAMES).try_map(|name| name.parse::<BackendChoice>())
}

fn isolation() -> impl TypedValueParser<Value = Isolation> {
    PossibleValuesParser::new(["hardware", "emulation"]).map(|level| match level.as_str() {
        "hardware" => Isolation::Hardware,
        _ => Isolation::Emulation,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
