//! The guest's output on its way to standard output.

use std::pin::pin;
use std::time::Duration;

use capsa::{Error, VmConsole};
use tokio::time::timeout;

use crate::exit::Failure;
use crate::messages;
use crate::progress::Spinner;
use crate::prompt::PromptWatch;
use crate::stdout::GuestOutput;

/// Most bytes that are withheld while a command of ours is typed.
const MAX_WITHHELD: usize = 4096;

/// How long a command of ours may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(10);

/// Shows the guest's output, and knows whether the kit's shell waits at its prompt.
pub(crate) struct Screen {
    console: VmConsole,
    stdout: GuestOutput,
    prompt: PromptWatch,
    /// Escape sequences that came after a prompt and are not shown yet: the shell asks for the
    /// terminal's size there.
    behind_prompt: Vec<u8>,
    /// Turns until the guest says something.
    spinner: Option<Spinner>,
    buffer: Box<[u8]>,
    /// Bytes that came faster than standard output took them.
    dropped: u64,
}

impl Screen {
    pub(crate) fn new(console: VmConsole, spinner: Option<Spinner>) -> Self {
        Self {
            console,
            stdout: GuestOutput::new(),
            prompt: PromptWatch::default(),
            behind_prompt: Vec::new(),
            spinner,
            buffer: vec![0; 16 << 10].into(),
            dropped: 0,
        }
    }

    /// Shows output until the console ends.
    pub(crate) async fn show(&mut self) -> Result<(), Failure> {
        while let Some(output) = self.next().await? {
            self.print(&output.bytes).await?;
        }
        Ok(())
    }

    /// Shows output until `done` is ready; `None` if the console ends before that.
    pub(crate) async fn show_until<T>(
        &mut self,
        done: impl Future<Output = T>,
    ) -> Result<Option<T>, Failure> {
        let mut done = pin!(done);
        loop {
            tokio::select! {
                value = &mut done => return Ok(Some(value)),
                output = self.next() => match output? {
                    Some(output) => self.print(&output.bytes).await?,
                    None => return Ok(None),
                }
            }
        }
    }

    /// Shows output up to the shell's prompt, or until there has been none for `quiet`.
    pub(crate) async fn show_until_prompt(&mut self, quiet: Duration) -> Result<Shown, Failure> {
        if self.prompt.at_prompt() {
            return Ok(Shown::Prompt);
        }
        loop {
            let Ok(output) = timeout(quiet, self.next()).await else {
                return Ok(Shown::Quiet);
            };
            let Some(Output { bytes, prompt_end }) = output? else {
                return Ok(Shown::Ended);
            };
            let (shown, behind) = bytes.split_at(prompt_end.unwrap_or(bytes.len()));
            self.print(shown).await?;
            if prompt_end.is_some() {
                self.behind_prompt = behind.to_vec();
                return Ok(Shown::Prompt);
            }
        }
    }

    /// Types at the prompt.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.prompt.typed();
        match self.console.write(bytes).await {
            // The guest's end is told by its console's end.
            Err(Error::NotRunning { .. }) => Ok(()),
            written => Ok(written?),
        }
    }

    /// Types a command at the prompt and withholds its echo, its output and the next prompt, so
    /// that the user sees one prompt. If no prompt follows, everything is shown.
    pub(crate) async fn run_unseen(&mut self, command: &str) -> Result<(), Failure> {
        self.write(format!("{command}\n").as_bytes()).await?;
        let mut withheld = std::mem::take(&mut self.behind_prompt);
        let prompt = async {
            while let Some(output) = self.next().await? {
                withheld.extend_from_slice(&output.bytes);
                if output.prompt_end.is_some() {
                    return Ok::<_, Failure>(true);
                }
                if withheld.len() > MAX_WITHHELD {
                    break;
                }
            }
            Ok(false)
        };
        match timeout(COMMAND_LIMIT, prompt).await {
            Ok(Ok(true)) => Ok(()),
            Ok(Err(failure)) => Err(failure),
            Ok(Ok(false)) | Err(_) => self.print(&withheld).await,
        }
    }

    async fn print(&mut self, output: &[u8]) -> Result<(), Failure> {
        let behind = std::mem::take(&mut self.behind_prompt);
        if !behind.is_empty() {
            self.stdout.write(&behind).await?;
        }
        self.stdout.write(output).await
    }

    /// The next output; `None` at the console's end. Cancel safe.
    async fn next(&mut self) -> Result<Option<Output>, Failure> {
        loop {
            match self.console.read(&mut self.buffer).await {
                Ok(0) => {
                    if self.dropped > 0 {
                        let dropped = std::mem::take(&mut self.dropped);
                        messages::warning(&format!(
                            "{dropped} bytes of console output were dropped in all"
                        ));
                    }
                    return Ok(None);
                }
                Ok(length) => {
                    self.spinner = None;
                    let bytes = self.buffer[..length].to_vec();
                    let prompt_end = self.prompt.feed(&bytes);
                    return Ok(Some(Output { bytes, prompt_end }));
                }
                Err(Error::ConsoleOverrun { bytes }) => {
                    // Once: the guest decides how often this happens.
                    if self.dropped == 0 {
                        messages::warning(
                            "standard output is slower than the guest; some of it is dropped",
                        );
                    }
                    self.dropped += bytes;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// What the guest wrote.
struct Output {
    bytes: Vec<u8>,
    /// Where the prompt ends, if that is what the output ends with.
    prompt_end: Option<usize>,
}

/// Why showing output stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    /// The shell waits for a command.
    Prompt,
    /// There was no output for some time.
    Quiet,
    /// The guest is gone.
    Ended,
}
