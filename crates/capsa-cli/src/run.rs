//! `capsa run`: builds a VM, connects its console, waits for its end.

use std::io::{IsTerminal, stdout};

use capsa::{BackendInfo, Share, VmHandle, kit};
use tokio::runtime;

use crate::cli::RunArgs;
use crate::console::Screen;
use crate::exit::{Done, Exit, Failure};
use crate::network::{NetworkSettings, Watch};
use crate::progress::Spinner;
use crate::settings::{Builder, ConsoleSetting, Settings};
use crate::signals::Signals;
use crate::terminal::{self, RawMode};
use crate::{descriptors, forward, messages, script, session, stdin};

/// Runs a VM to its end.
pub(crate) fn run(args: RunArgs) -> Done {
    let settings = Settings::from_args(args)?;
    descriptors::raise_limit();
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Failure::Stream {
            action: "start the async runtime",
            source,
        })?;
    let done = runtime.block_on(boot(settings));
    // A write to a standard output that nobody reads must not hold the program.
    runtime.shutdown_background();
    done
}

async fn boot(mut settings: Settings) -> Done {
    let talk = Talk::new(&settings);
    if let Talk::Session { kit_shell: true } = talk {
        settings.terminal = terminal::kind();
    }
    let boots_kit = settings.boots_kit();
    let network = settings.network.clone();
    let vm = match settings.builder()? {
        Builder::Linux(builder) => builder.build().await?,
        Builder::Uefi(builder) => builder.build().await?,
    };
    let watch = Watch::start(&vm, network.open_log()?, None);
    warn_of_root();
    announce(vm.backend());
    match boots_kit {
        true => warn_of_old_kit(),
        false => explain_shares(vm.shares()),
    }
    let mut signals = Signals::new()?;
    let outcome = tokio::select! {
        outcome = talk.start(&vm, &network) => outcome,
        () = signals.obey(&vm) => Ok(()),
    };
    match &outcome {
        Ok(()) => {}
        // Whoever read the output has had enough; the guest may still have something to save.
        Err(failure) if failure.is_broken_pipe() => tokio::select! {
            stopped = vm.stop() => stopped?,
            () = signals.obey(&vm) => {}
        },
        Err(_) => vm.kill().await?,
    }
    watch.finish().await;
    let exit = match vm.exit_reason() {
        Some(reason) => Exit::of_vm(&reason),
        None => Exit::VM_FAILED,
    };
    match (signals.exit(), vm.failure()) {
        (Some(by_signal), _) => Ok(by_signal),
        (None, Some(error)) => {
            let seen = talk.shows_output() && stdout().is_terminal();
            Err(Failure::Library {
                error,
                console_tail: (!seen).then(|| vm.console_tail()),
            })
        }
        // The VM's time may run out while it starts, which is no failure of the start.
        (None, None) if exit == Exit::TIMEOUT => {
            messages::note("the VM ran out of its time and was killed");
            Ok(exit)
        }
        (None, None) => outcome.map(|()| exit),
    }
}

/// How the console is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Talk {
    /// A person at a terminal.
    Session { kit_shell: bool },
    /// Lines for the kit's shell.
    Script,
    /// Bytes in both directions.
    Forward,
    /// Output only.
    Show,
    /// Nothing.
    Silent,
}

impl Talk {
    fn new(settings: &Settings) -> Self {
        match settings.console() {
            ConsoleSetting::Disabled => Self::Silent,
            ConsoleSetting::Enabled => Self::Show,
            ConsoleSetting::Stdio if terminal::is_interactive() => Self::Session {
                kit_shell: settings.boots_kit_shell(),
            },
            ConsoleSetting::Stdio if settings.boots_kit_shell() => Self::Script,
            ConsoleSetting::Stdio => Self::Forward,
        }
    }

    fn shows_output(self) -> bool {
        self != Self::Silent
    }

    /// Starts the VM, and talks until it ends.
    async fn start(self, vm: &VmHandle, network: &NetworkSettings) -> Result<(), Failure> {
        let raw = match self {
            Self::Session { .. } => Some(RawMode::enter().map_err(|source| Failure::Stream {
                action: "set the terminal's mode",
                source,
            })?),
            _ => None,
        };
        // The spinner draws where the messages go; they come first.
        messages::finish();
        let spinner = Spinner::new("starting");
        vm.start().await?;
        drop(spinner);
        network.announce(vm);
        messages::finish();
        let spinner = Spinner::new("booting");
        if self == Self::Silent {
            drop(spinner);
            let _spinner = Spinner::new("running; Ctrl-C stops the guest");
            vm.wait().await?;
            return Ok(());
        }
        let console = vm.console().await?;
        let mut screen = Screen::new(console.clone(), Some(spinner));
        match (self, &raw) {
            (Self::Session { kit_shell }, Some(raw)) => {
                session::session(vm, screen, console, raw, kit_shell).await?;
            }
            (Self::Script, _) => script::script(vm, screen, stdin::lines()?).await?,
            (Self::Forward, _) => forward::forward(screen, console, stdin::bytes()?).await?,
            _ => screen.show().await?,
        }
        vm.wait().await?;
        Ok(())
    }
}

/// Says once what running as root costs.
pub(crate) fn warn_of_root() {
    if rustix::process::geteuid().is_root() {
        messages::warning(
            "running as root: a guest that breaks out is root here; use another user",
        );
    }
}

/// Says when the guest kit is not what this version would make.
pub(crate) fn warn_of_old_kit() {
    if let Ok(Some(kit)) = kit::find()
        && !kit.is_current()
    {
        messages::warning(
            "the guest kit was made by another version of Capsa; `capsa setup` makes it anew",
        );
    }
}

/// Says what runs the VM, and why.
pub(crate) fn announce(backend: &BackendInfo) {
    messages::note(&format!("backend {backend}"));
}

/// What mounts the shares of a guest that may not do it by itself.
fn explain_shares(shares: &[Share]) {
    for share in shares {
        messages::warning(&format!(
            "a guest without systemd 254 or later mounts {} by: {}",
            share.guest_path,
            share.mount_command()
        ));
    }
}
