//! The console of any guest, without a person at a terminal: bytes pass as they come.

use std::pin::pin;

use capsa::VmConsole;
use tokio::sync::mpsc;

use crate::console::Screen;
use crate::exit::Failure;

/// Shows the guest's output until its end, and types what `input` brings. The end of the input is
/// nothing to the guest.
pub(crate) async fn forward(
    mut screen: Screen,
    console: VmConsole,
    input: mpsc::Receiver<Vec<u8>>,
) -> Result<(), Failure> {
    let mut showing = pin!(screen.show());
    tokio::select! {
        shown = &mut showing => return shown,
        () = type_all(console, input) => {}
    }
    showing.await
}

/// Types everything that comes, until there is nothing more or nobody to type to.
pub(crate) async fn type_all(mut console: VmConsole, mut input: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = input.recv().await {
        if console.write(&bytes).await.is_err() {
            break;
        }
    }
}
