//! A person at a terminal talks to the guest.
//!
//! A serial line cannot carry the terminal's size: the kit's shell is told once, before its first
//! prompt is handed over, and nothing is pretended when the window changes later.

use std::pin::pin;

use capsa::{VmConsole, VmHandle};
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::console::{Screen, Shown};
use crate::exit::Failure;
use crate::keys::{Keys, Wish};
use crate::terminal::{self, RawMode};
use crate::{forward, messages, script, stdin};

/// Connects the terminal with the guest until the guest's end. `kit_shell` says that the kit's
/// shell will come up.
pub(crate) async fn session(
    vm: &VmHandle,
    mut screen: Screen,
    console: VmConsole,
    terminal: &RawMode,
    kit_shell: bool,
) -> Result<(), Failure> {
    let mut input = stdin::bytes()?;
    let mut input_open = true;
    let (mut keys, queue) = Keys::new();
    let (handed_over, ready) = oneshot::channel();
    let mut continued = signal(SignalKind::from_raw(Signal::CONT.as_raw())).map_err(|source| {
        let action = "handle signals";
        Failure::Stream { action, source }
    })?;

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
            Some(()) = continued.recv() => terminal.again_or_warn(),
            bytes = input.recv(), if input_open => match bytes {
                Some(bytes) => if let Some(wish) = keys.press(&bytes) {
                    grant(vm, wish);
                }
                // The end of input closes the writer and nothing else.
                None => input_open = false,
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

/// Ends the VM, even if nobody waits for that, and so the session.
fn grant(vm: &VmHandle, wish: Wish) {
    let vm = vm.clone();
    match wish {
        Wish::End => {
            messages::note("asking the guest to power off; Ctrl-] once more kills it");
            tokio::spawn(async move { vm.stop().await });
        }
        Wish::Kill => {
            messages::note("killing the guest");
            tokio::spawn(async move { vm.kill().await });
        }
    }
}
