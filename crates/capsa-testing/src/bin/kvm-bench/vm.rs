//! A running VM, and when its guest said what.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::time::timeout;

use crate::guest::Guest;
use crate::monitor::{Contestant, Disk, Task};

/// How long anything may take; only what fails waits so long.
const LIMIT: Duration = Duration::from_secs(120);

/// A monitor's process, killed when this goes away.
pub(crate) struct Vm {
    name: String,
    child: Child,
    started: Instant,
    lines: Lines<BufReader<ChildStdout>>,
    /// Open, as a terminal would be: some monitors do not take kindly to an end of it.
    _stdin: ChildStdin,
    /// What the guest printed.
    printed: Vec<String>,
    /// What the monitor complained about.
    complaints: PathBuf,
}

impl Vm {
    /// Starts a monitor. Time counts from right before it is executed.
    pub(crate) fn start(
        contestant: &Contestant,
        guest: &Guest,
        task: Task,
        disk: Option<&Disk>,
    ) -> Result<Self> {
        let complaints = guest.file("complaints");
        let mut command = contestant.command(guest, task, disk)?;
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&complaints)?)
            .kill_on_drop(true);
        let started = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {contestant}"))?;
        let stdout = child.stdout.take().context("no pipe")?;
        Ok(Self {
            name: contestant.to_string(),
            started,
            lines: BufReader::new(stdout).lines(),
            _stdin: child.stdin.take().context("no pipe")?,
            child,
            printed: Vec::new(),
            complaints,
        })
    }

    /// The process that was started.
    pub(crate) fn pid(&self) -> Result<u32> {
        self.child.id().context("the monitor has ended")
    }

    /// Waits for a line of the guest's. Returns how long after the start it came.
    pub(crate) async fn wait_for(&mut self, line: &str) -> Result<Duration> {
        let line = format!("bench: {line}");
        loop {
            match timeout(LIMIT, self.lines.next_line()).await {
                // Firmware may have left something in it.
                Ok(Ok(Some(printed))) if printed.trim_end().ends_with(&line) => {
                    return Ok(self.started.elapsed());
                }
                Ok(Ok(Some(printed))) => self.printed.push(printed),
                Ok(Ok(None)) => bail!("{}: ended before {line:?}{}", self.name, self.words()),
                Ok(Err(error)) => bail!("{}: {error}{}", self.name, self.words()),
                Err(_) => bail!("{}: silent before {line:?}{}", self.name, self.words()),
            }
        }
    }

    /// Waits until the process is gone. Returns how long after the start that was.
    pub(crate) async fn end(mut self) -> Result<Duration> {
        let wait = async {
            while let Some(printed) = self.lines.next_line().await? {
                self.printed.push(printed);
            }
            self.child.wait().await
        };
        match timeout(LIMIT, wait).await {
            Ok(Ok(status)) if status.success() => Ok(self.started.elapsed()),
            Ok(Ok(status)) => bail!("{}: {status}{}", self.name, self.words()),
            Ok(Err(error)) => bail!("{}: {error}{}", self.name, self.words()),
            Err(_) => bail!("{}: does not end{}", self.name, self.words()),
        }
    }

    /// Ends it whatever it does.
    pub(crate) async fn kill(mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Everything that was said, for an error.
    fn words(&self) -> String {
        let complaints = fs::read(&self.complaints).unwrap_or_default();
        let complaints = String::from_utf8_lossy(&complaints);
        format!("\n{}\n{complaints}", self.printed.join("\n"))
    }
}
