//! What the guest's kernel and first process say, on standard error: a line at a time, escaped, and
//! never where the command's output goes.

use capsa::VmConsole;
use capsa::escape::one_line;
use tokio::task::JoinHandle;

use crate::messages;

/// Most bytes of a line; a longer one is shown in pieces.
const MAX_LINE: usize = 1024;

/// Shows lines until it is dropped.
pub(super) struct GuestLog(JoinHandle<()>);

impl GuestLog {
    pub(super) fn show(console: VmConsole) -> Self {
        Self(tokio::spawn(show(console)))
    }
}

impl Drop for GuestLog {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn show(mut console: VmConsole) {
    let mut line = Vec::new();
    let mut bytes = [0; 4096];
    // What is dropped because nobody read it in time is nothing to fail for.
    while let Ok(length) = console.read(&mut bytes).await {
        for byte in &bytes[..length] {
            if *byte == b'\n' || line.len() == MAX_LINE {
                print(&line);
                line.clear();
            }
            if *byte != b'\n' {
                line.push(*byte);
            }
        }
        if length == 0 {
            break;
        }
    }
    if !line.is_empty() {
        print(&line);
    }
}

fn print(line: &[u8]) {
    messages::quote(&one_line(&String::from_utf8_lossy(line), MAX_LINE));
}
