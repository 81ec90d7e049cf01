//! Programs that are to run in a sandbox.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use capsa_agent_proto::exec::{ExecRequest, Streams};
use capsa_core::error::Result;

use super::link::AgentLink;
use super::process::{ExecOutput, ExecStatus, Process, TerminalSize, collect};
use super::root::PATH;
use super::user::User;

/// How much of a stream [`Exec::output`] collects.
const OUTPUT_LIMIT: u64 = 64 << 20;

/// What a program has in its environment if nothing else is said; nothing of the host's.
const ENVIRONMENT: [(&str, &str); 4] = [
    ("PATH", PATH),
    ("HOME", "/root"),
    ("LANG", "C.UTF-8"),
    ("TERM", "dumb"),
];

/// The kind of terminal that programs with one have, if nothing else is said.
const TERMINAL: &str = "xterm";

/// What a program gets if nothing else is said for it: the sandbox's own settings.
#[derive(Debug, Clone)]
pub(super) struct Surroundings {
    /// What is not in `env`.
    defaults: Vec<(OsString, OsString)>,
    env: Vec<(OsString, OsString)>,
    pub(super) cwd: OsString,
    pub(super) user: Option<User>,
}

impl Default for Surroundings {
    fn default() -> Self {
        let defaults = ENVIRONMENT.map(|(key, value)| (key.into(), value.into()));
        Self {
            defaults: defaults.into(),
            env: Vec::new(),
            cwd: "/".into(),
            user: None,
        }
    }
}

impl Surroundings {
    pub(super) fn set(&mut self, key: impl Into<OsString>, value: impl Into<OsString>) {
        replace(&mut self.env, (key.into(), value.into()));
    }

    fn clear(&mut self) {
        self.defaults.clear();
        self.env.clear();
    }

    /// Changes what is right where nobody has said anything.
    pub(super) fn set_defaults(&mut self, variables: Vec<(OsString, OsString)>) {
        for variable in variables {
            replace(&mut self.defaults, variable);
        }
    }

    /// The request to run a program here, with this number and no streams.
    pub(super) fn request(self, id: u32, argv: Vec<OsString>) -> ExecRequest {
        let bytes = OsString::into_vec;
        let mut env = self.defaults;
        for variable in self.env {
            replace(&mut env, variable);
        }
        ExecRequest {
            id,
            argv: argv.into_iter().map(bytes).collect(),
            env: env
                .into_iter()
                .map(|(key, value)| (bytes(key), bytes(value)))
                .collect(),
            cwd: bytes(self.cwd),
            user: self.user.map(User::into_message),
            terminal: None,
            streams: Streams::default(),
            main: false,
            kill_rest: false,
        }
    }
}

fn replace(env: &mut Vec<(OsString, OsString)>, variable: (OsString, OsString)) {
    env.retain(|(known, _)| *known != variable.0);
    env.push(variable);
}

/// What a standard stream of a program is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stdio {
    /// A pipe whose other end the [`Process`] has.
    Piped,
    /// `/dev/null` of the guest: no input, output to nowhere.
    Null,
}

/// A program that is to run in a sandbox; made by [`Sandbox::exec`](super::Sandbox::exec).
#[must_use = "`spawn`, `output` or `status` runs it"]
pub struct Exec {
    link: AgentLink,
    numbers: Arc<AtomicU32>,
    argv: Vec<OsString>,
    surroundings: Surroundings,
    terminal: Option<TerminalSize>,
    kill_rest: bool,
    stdin: Option<Stdio>,
    stdout: Option<Stdio>,
    stderr: Option<Stdio>,
}

impl Exec {
    pub(super) fn new(
        link: AgentLink,
        numbers: Arc<AtomicU32>,
        argv: Vec<OsString>,
        surroundings: Surroundings,
    ) -> Self {
        Self {
            link,
            numbers,
            argv,
            surroundings,
            terminal: None,
            kill_rest: false,
            stdin: None,
            stdout: None,
            stderr: None,
        }
    }

    /// Sets a variable of the program's environment. Besides those that are set here it has those of
    /// the sandbox, `PATH`, `HOME`, `LANG` and `TERM`, and nothing of this process's.
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.surroundings.set(key, value);
        self
    }

    /// Sets variables of the program's environment.
    pub fn envs<K, V>(self, variables: impl IntoIterator<Item = (K, V)>) -> Self
    where
        K: Into<OsString>,
        V: Into<OsString>,
    {
        let set = |exec: Self, (key, value)| exec.env(key, value);
        variables.into_iter().fold(self, set)
    }

    /// Removes all variables that were set so far, the sandbox's and the default ones too. Without a
    /// `PATH` the program is named by its path.
    pub fn env_clear(mut self) -> Self {
        self.surroundings.clear();
        self
    }

    /// The program's working directory in the guest; the sandbox's by default.
    pub fn cwd(mut self, folder: impl Into<OsString>) -> Self {
        self.surroundings.cwd = folder.into();
        self
    }

    /// As whom it runs: a number, a number with a group's (`(1000, 100)`), a name; the sandbox's user
    /// by default. `HOME` stays what it is.
    pub fn user(mut self, user: impl Into<User>) -> Self {
        self.surroundings.user = Some(user.into());
        self
    }

    /// Gives the program a terminal of this size, which is all of its standard streams: it has no
    /// standard error of its own. Its `TERM` is `xterm` unless it is set.
    ///
    /// The end of its standard input types the terminal's end-of-file character, Ctrl-D.
    pub fn tty(mut self, size: TerminalSize) -> Self {
        self.terminal = Some(size);
        let kind = vec![("TERM".into(), TERMINAL.into())];
        self.surroundings.set_defaults(kind);
        self
    }

    /// Has everything that the program started and left behind killed when it ends. Otherwise that
    /// goes on, and what has the program's output open keeps it open.
    pub fn kill_rest(mut self) -> Self {
        self.kill_rest = true;
        self
    }

    /// What its standard input is: by default a pipe for [`spawn`](Self::spawn), else null.
    pub fn stdin(mut self, stdin: Stdio) -> Self {
        self.stdin = Some(stdin);
        self
    }

    /// What its standard output is: by default null for [`status`](Self::status), else a pipe.
    pub fn stdout(mut self, stdout: Stdio) -> Self {
        self.stdout = Some(stdout);
        self
    }

    /// What its standard error is: by default null for [`status`](Self::status), else a pipe. A
    /// program with a terminal has none, and asking for a pipe is refused.
    pub fn stderr(mut self, stderr: Stdio) -> Self {
        self.stderr = Some(stderr);
        self
    }

    /// Runs the program, by default with pipes for all of its standard streams. Returns when it runs.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the program does not run, or is killed with all that it has started.
    ///
    /// # Errors
    ///
    /// [`Error::Agent`](crate::Error::Agent): [`AgentFailure::Refused`](crate::AgentFailure::Refused)
    /// says why the program cannot be run, [`AgentFailure::Lost`](crate::AgentFailure::Lost) that the VM, or the agent in it, has ended.
    pub async fn spawn(self) -> Result<Process> {
        self.start(Stdio::Piped, Stdio::Piped).await
    }

    /// Runs the program to its end, by default without input, and collects what it writes: 64 MiB of
    /// each stream at most. A standard input that is a pipe ends at once.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the program is killed, with all that it has started.
    ///
    /// # Errors
    ///
    /// As [`spawn`](Self::spawn), also when the VM ends before all output is there, and
    /// [`AgentFailure::TooMuch`](crate::AgentFailure::TooMuch) when it writes more; then it is killed. A
    /// status other than 0 is no error.
    pub async fn output(self) -> Result<ExecOutput> {
        self.output_up_to(OUTPUT_LIMIT).await
    }

    /// [`output`](Self::output), of which at most `limit` bytes of each stream are collected.
    ///
    /// # Cancel safety
    ///
    /// As [`output`](Self::output).
    ///
    /// # Errors
    ///
    /// As [`output`](Self::output).
    pub async fn output_up_to(self, limit: u64) -> Result<ExecOutput> {
        let mut process = self.start(Stdio::Null, Stdio::Piped).await?;
        let running = process.kill_on_drop();
        process.stdin = None;
        let (out, err) = (process.stdout.take(), process.stderr.take());
        let (stdout, stderr, status) =
            tokio::try_join!(collect(out, limit), collect(err, limit), process.wait())?;
        running.over();
        Ok(ExecOutput {
            status,
            stdout,
            stderr,
        })
    }

    /// Runs the program to its end, by default without input and with its output to nowhere. Output
    /// that is a pipe is thrown away here.
    ///
    /// # Cancel safety
    ///
    /// As [`output`](Self::output).
    ///
    /// # Errors
    ///
    /// As [`spawn`](Self::spawn). A status other than 0 is no error.
    pub async fn status(self) -> Result<ExecStatus> {
        let mut process = self.start(Stdio::Null, Stdio::Null).await?;
        let running = process.kill_on_drop();
        process.stdin = None;
        process.drain().await;
        let status = process.wait().await?;
        running.over();
        Ok(status)
    }

    /// Starts it, with these where the caller has not said what the streams are.
    async fn start(self, input: Stdio, output: Stdio) -> Result<Process> {
        let id = self.numbers.fetch_add(1, Ordering::Relaxed);
        let is_piped = |stdio: Option<Stdio>, default| stdio.unwrap_or(default) == Stdio::Piped;
        let errors = match self.terminal {
            Some(_) => Stdio::Null,
            None => output,
        };
        let request = ExecRequest {
            terminal: self.terminal.map(Into::into),
            streams: Streams {
                stdin: is_piped(self.stdin, input),
                stdout: is_piped(self.stdout, output),
                stderr: is_piped(self.stderr, errors),
            },
            kill_rest: self.kill_rest,
            ..self.surroundings.request(id, self.argv)
        };
        Process::start(&self.link, request).await
    }
}
