//! `capsa exec`: runs a command in a fresh sandbox; its output and its status are the command's own.
//!
//! ```text
//! cli ─> exec ─┬─ env          the command's variables
//!              ├─ guest_log    what the guest says on its console, if that is wanted
//!              ├─ streams      the command's streams, keys and signals, until it ends
//!              └─ status_file  how it ended, for programs
//! ```

use std::ffi::OsString;
use std::io::{IsTerminal, stdin, stdout};
use std::mem;
use std::time::Duration;

use capsa::{
    AgentFailure, AgentRefusal, Capsa, Error, Exec, ExecStatus, ExitReason, PreparedSandbox,
    Sandbox, SandboxBuilder, SandboxRoot, TerminalSize, User, VmHandle,
};
use tokio::runtime;

use self::guest_log::GuestLog;
use self::status_file::StatusFile;
use self::streams::Streams;
use crate::cli::{ExecArgs, LearnArgs, MachineArgs};
use crate::exit::{Done, Exit, Failure};
use crate::network::{NetworkSetting, NetworkSettings, Watch};
use crate::policy::learn::Destination;
use crate::policy::{self, Learner};
use crate::progress::Spinner;
use crate::signals::Signals;
use crate::terminal::{self, RawMode};
use crate::{descriptors, messages, run};

mod env;
mod guest_log;
mod status_file;
mod streams;

pub(crate) use self::env::EnvArg;
pub(crate) use self::status_file::report_usage;

/// How long a VM may take to end after its agent has.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How a command ended, or the sandbox before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// The command by itself, with this status.
    Exited(u8),
    /// The command, by this signal.
    Signaled(i32),
    /// The sandbox, since its time was up.
    TimedOut,
    /// The sandbox, by a signal to this program.
    Interrupted(i32),
    /// The sandbox, by a person at the terminal.
    Killed,
}

impl Outcome {
    fn exit(self) -> Exit {
        match self {
            Self::Exited(status) => Exit::of_command(status),
            Self::Signaled(signal) | Self::Interrupted(signal) => Exit::signal(signal),
            Self::TimedOut => Exit::TIMEOUT,
            Self::Killed => Exit::KILLED,
        }
    }
}

impl From<ExecStatus> for Outcome {
    fn from(status: ExecStatus) -> Self {
        match status {
            ExecStatus::Signaled(signal) => Self::Signaled(signal),
            status => Self::Exited(status.code()),
        }
    }
}

/// Runs the command to its end. `verbose` shows how the guest boots.
pub(crate) fn exec(args: ExecArgs, verbose: bool) -> Done {
    report(args, verbose, Command::new)
}

/// The same, and writes the policy that would have allowed what it used of the network.
pub(crate) fn learn(args: LearnArgs, verbose: bool) -> Done {
    let LearnArgs { output, exec } = args;
    report(exec, verbose, |args| {
        let mut command = Command::new(args)?;
        if command.network.setting.is_some() {
            let message = "--net: what is learned from has every public address";
            return Err(Failure::Usage(message.to_owned()));
        }
        let watching = policy::watching().map_err(|error| Failure::Usage(error.to_string()))?;
        command.network.setting = Some(NetworkSetting::Policy(watching));
        command.learned = Some(Destination::new(output)?);
        Ok(command)
    })
}

/// Runs the command that `make` makes of the arguments, and tells how it ended.
fn report(
    mut args: ExecArgs,
    verbose: bool,
    make: impl FnOnce(ExecArgs) -> Result<Command, Failure>,
) -> Done {
    let file = args.status_file.take().map(StatusFile::claim).transpose();
    let outcome = file.and_then(|file| {
        let outcome = make(args).and_then(|command| run_to_end(command, verbose));
        let exit = outcome
            .as_ref()
            .map_or_else(exit_of, |outcome| outcome.exit());
        let written = file.map_or(Ok(()), |file| file.write(&outcome, exit));
        // Of two failures the first is the one to tell.
        outcome.and_then(|outcome| written.map(|()| outcome))
    });
    match outcome {
        Ok(outcome) => Ok(outcome.exit()),
        Err(failure) => Err(Failure::Exec {
            exit: exit_of(&failure),
            failure: Box::new(failure),
        }),
    }
}

/// 126 and 127 are the command's, as in a shell; everything else is Capsa's own failure.
fn exit_of(failure: &Failure) -> Exit {
    let Failure::Library { error, .. } = failure else {
        return match failure.is_broken_pipe() {
            true => Exit::BROKEN_PIPE,
            false => Exit::EXEC_FAILED,
        };
    };
    let Error::Agent { cause } = &**error else {
        return Exit::EXEC_FAILED;
    };
    match &**cause {
        AgentFailure::Refused { kind, .. } => match kind {
            AgentRefusal::NotFound => Exit::NOT_FOUND,
            AgentRefusal::NotExecutable | AgentRefusal::PermissionDenied => Exit::NOT_EXECUTABLE,
            _ => Exit::EXEC_FAILED,
        },
        _ => Exit::EXEC_FAILED,
    }
}

fn run_to_end(command: Command, verbose: bool) -> Result<Outcome, Failure> {
    descriptors::raise_limit();
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| Failure::Stream {
        action: "start the async runtime",
        source,
    })?;
    let outcome = runtime.block_on(command.run(verbose));
    // A write to a standard output that nobody reads must not hold the program.
    runtime.shutdown_background();
    outcome
}

/// What is to run, and where.
struct Command {
    root: SandboxRoot,
    machine: MachineArgs,
    network: NetworkSettings,
    /// Where a policy is to go, if one is to be learned.
    learned: Option<Destination>,
    argv: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    cwd: Option<OsString>,
    user: Option<User>,
    has_terminal: bool,
}

impl Command {
    fn new(mut args: ExecArgs) -> Result<Self, Failure> {
        let is_terminal = || stdin().is_terminal() && stdout().is_terminal();
        let network = mem::take(&mut args.machine.network).into();
        Ok(Self {
            network,
            learned: None,
            env: env::all(&args.env_files, args.env)?,
            root: args.root.into_root(),
            machine: args.machine,
            argv: args.command,
            cwd: args.cwd,
            user: args.user,
            has_terminal: args.tty || !args.no_tty && is_terminal(),
        })
    }

    async fn run(mut self, verbose: bool) -> Result<Outcome, Failure> {
        let mut signals = Signals::new()?;
        let mut builder = builder(&self.machine).root(self.root.clone());
        if let Some(hostname) = self.network.hostname.take() {
            builder = builder.hostname(hostname.as_str());
        }
        if let Some(mode) = self.network.mode(NetworkSetting::None)? {
            builder = builder.network(mode);
        }
        if verbose {
            builder = builder.console_enabled().cmdline_arg("loglevel=7");
        }
        run::warn_of_root();
        run::warn_of_old_kit();
        let sandbox = builder.build().await?;
        let vm = sandbox.vm().clone();
        run::announce(vm.backend());
        let learned = self.learned.take();
        let learner = learned.as_ref().map(|_| Learner::default());
        let watch = Watch::start(&vm, self.network.open_log()?, learner);
        let outcome = self.run_in(sandbox, &mut signals, verbose).await;
        let outcome = explain(&vm, outcome).await;
        if outcome.is_err() {
            // Its events end with it. That it failed is told already.
            let _ = vm.kill().await;
        }
        let learner = watch.finish().await;
        match (outcome, learned) {
            (Ok(outcome), Some(learned)) => {
                let learned = match outcome {
                    Outcome::Interrupted(_) => learned.of_a_part(),
                    _ => learned,
                };
                learned.write(learner).map(|()| outcome)
            }
            (outcome, _) => outcome,
        }
    }

    async fn run_in(
        self,
        sandbox: PreparedSandbox,
        signals: &mut Signals,
        verbose: bool,
    ) -> Result<Outcome, Failure> {
        let vm = sandbox.vm().clone();
        let _log = match verbose {
            true => Some(GuestLog::show(vm.console().await?)),
            false => None,
        };
        let sandbox = tokio::select! {
            started = boot(sandbox, verbose) => started?,
            number = signals.next() => {
                kill(&vm).await;
                return Ok(Outcome::Interrupted(number));
            }
        };
        self.network.announce(&vm);
        let has_terminal = self.has_terminal;
        let mut process = tokio::select! {
            spawned = self.exec(&sandbox).spawn() => spawned?,
            // An agent that does not answer would hold the caller.
            number = signals.next() => {
                kill(&vm).await;
                return Ok(Outcome::Interrupted(number));
            }
        };
        let raw = match has_terminal && stdin().is_terminal() {
            true => Some(RawMode::enter().map_err(|source| Failure::Stream {
                action: "set the terminal's mode",
                source,
            })?),
            false => None,
        };
        let streams = Streams {
            raw: raw.as_ref(),
            has_terminal,
        };
        let outcome = streams.pass(&mut process, signals).await?;
        kill(&vm).await;
        Ok(outcome)
    }

    /// The command as the sandbox is to run it.
    fn exec(self, sandbox: &Sandbox) -> Exec {
        // What it leaves behind has no sandbox to be in.
        let mut exec = sandbox.exec(self.argv).kill_rest();
        if self.has_terminal {
            exec = exec.tty(terminal_size());
            if let Some(kind) = terminal::kind() {
                exec = exec.env("TERM", kind);
            }
        }
        if let Some(folder) = self.cwd {
            exec = exec.cwd(folder);
        }
        if let Some(user) = self.user {
            exec = exec.user(user);
        }
        exec.envs(self.env)
    }
}

async fn boot(sandbox: PreparedSandbox, verbose: bool) -> Result<Sandbox, Error> {
    // The spinner draws where the messages go; they come first.
    messages::finish();
    let _spinner = (!verbose).then(|| Spinner::new("booting"));
    sandbox.start().await
}

/// The size of the terminal, or of one that nobody sees.
fn terminal_size() -> TerminalSize {
    let size = terminal::size().map(|(rows, columns)| TerminalSize { rows, columns });
    size.unwrap_or_default()
}

/// A VM that ended while it was needed says why, better than whoever needed it.
async fn explain(vm: &VmHandle, outcome: Result<Outcome, Failure>) -> Result<Outcome, Failure> {
    let Err(Failure::Library { error, .. }) = &outcome else {
        return outcome;
    };
    if let Error::Agent { cause } = &**error
        && let AgentFailure::Refused { .. } | AgentFailure::NotReady { .. } = **cause
    {
        return outcome;
    }
    // It loses its agent first.
    vm.wait_timeout(LAST_WORDS).await?;
    match (vm.exit_reason(), vm.failure()) {
        (Some(ExitReason::TimedOut), _) => {
            messages::note("the sandbox ran out of its time and was killed");
            Ok(Outcome::TimedOut)
        }
        (Some(_), Some(error)) => Err(Failure::Library {
            error,
            console_tail: Some(vm.console_tail()),
        }),
        _ => outcome,
    }
}

/// Ends the VM of a command whose outcome is known, and is what counts: the VM ends with this program anyway.
async fn kill(vm: &VmHandle) {
    if let Err(error) = vm.kill().await {
        messages::warning(&error.full_message());
    }
}

fn builder(args: &MachineArgs) -> SandboxBuilder {
    let mut builder = Capsa::sandbox().shares(args.shares.iter().cloned());
    if let Some(cpus) = args.cpus {
        builder = builder.cpus(cpus);
    }
    if let Some(memory) = args.memory {
        builder = builder.memory_mb(memory);
    }
    if let Some(limit) = args.timeout {
        builder = builder.timeout(limit);
    }
    if let Some(backend) = args.backend {
        builder = builder.backend(backend);
    }
    if let Some(isolation) = args.isolation {
        builder = builder.require_isolation(isolation);
    }
    builder
}
