//! A person at a terminal talks to the guest.
//!
//! Every key goes to the guest as a byte, Ctrl-C and Ctrl-Z included; only Ctrl-] is ours. A serial
//! line cannot carry the terminal's size: the kit's shell is told once, before its first prompt is
//! handed over, and nothing is pretended when the window changes later.

use std::pin::pin;

use capsa::{VmConsole, VmHandle};
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::console::{Screen, Shown};
use crate::exit::Failure;
use crate::terminal::{self, RawMode};
use crate::{forward, messages, script, stdin};

/// Ctrl-].
const ESCAPE: u8 = 0x1d;

/// How many key presses may wait for a guest that does not read. The bell rings for more, as a
/// terminal of the kernel does it: Ctrl-] must be heard whatever the guest does.
const TYPED_AHEAD: usize = 4096;

/// Connects the terminal with the guest until the guest's end. `kit_shell` says that the kit's
/// shell will come up.
pub(crate) async fn session(
    vm: &VmHandle,
    mut screen: Screen,
    console: VmConsole,
    terminal: &RawMode,
    kit_shell: bool,
) -> Result<(), Failure> {
    let mut keys = stdin::bytes()?;
    let mut keys_open = true;
    let (typed, queue) = mpsc::channel(TYPED_AHEAD);
    let (handed_over, ready) = oneshot::channel();
    let mut continued = signal(SignalKind::from_raw(Signal::CONT.as_raw())).map_err(|source| {
        let action = "handle signals";
        Failure::Stream { action, source }
    })?;
    let mut escapes = Escapes::default();

    let mut showing = pin!(async {
        if kit_shell {
            prepare_shell(&mut screen).await?;
        }
        // The receiver is gone only when the session is.
        let _ = handed_over.send(());
        screen.show().await
    });
    let mut typing = pin!(async {
        // Without the hand-over the session is about to end.
        let _ = ready.await;
        forward::type_all(console, queue).await;
        std::future::pending::<()>().await;
    });
    loop {
        tokio::select! {
            shown = &mut showing => return shown,
            () = &mut typing => {}
            Some(()) = continued.recv() => restore_raw(terminal),
            bytes = keys.recv(), if keys_open => match bytes {
                Some(bytes) => escapes.take(vm, &bytes, &typed),
                // The end of input closes the writer and nothing else.
                None => keys_open = false,
            }
        }
    }
}

/// Waits for the kit's shell and tells it the terminal's size.
async fn prepare_shell(screen: &mut Screen) -> Result<(), Failure> {
    if let Some((rows, columns)) = terminal::size()
        && screen.show_until_prompt(script::BOOT_LIMIT).await? == Shown::Prompt
    {
        let command = format!("stty rows {rows} cols {columns}");
        screen.run_unseen(&command).await?;
    }
    Ok(())
}

fn restore_raw(terminal: &RawMode) {
    if let Err(error) = terminal.again() {
        messages::warning(&format!("the terminal's mode cannot be set: {error}"));
    }
}

/// How often the person has asked for the end.
#[derive(Debug, Default)]
struct Escapes(u32);

impl Escapes {
    /// Types keys, without those that are ours; obeys those.
    fn take(&mut self, vm: &VmHandle, bytes: &[u8], typed: &mpsc::Sender<Vec<u8>>) {
        for (index, part) in bytes.split(|byte| *byte == ESCAPE).enumerate() {
            if index > 0 {
                self.end(vm);
            }
            if !part.is_empty() && typed.try_send(part.to_vec()).is_err() {
                messages::bell();
            }
        }
    }

    fn end(&mut self, vm: &VmHandle) {
        self.0 += 1;
        let vm = vm.clone();
        // Both end the VM even if nobody waits for them, and so the session.
        match self.0 {
            1 => {
                messages::note("asking the guest to power off; Ctrl-] once more kills it");
                tokio::spawn(async move { vm.stop().await });
            }
            2 => {
                messages::note("killing the guest");
                tokio::spawn(async move { vm.kill().await });
            }
            _ => {}
        }
    }
}
