//! Sandboxes, their programs and their files.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{VmHandle, block_on};
use crate::{
    CopyFrom, CopySummary, CopyTo, DirEntry, ExecOutput, ExecStatus, FileMetadata, Result,
    SandboxBuilder, SandboxInfo, Stdio, TerminalSize, User, VmStatus,
};

/// Starts a sandbox without an async runtime.
pub trait Start {
    /// Does what the builder's `start` does.
    ///
    /// # Errors
    ///
    /// As the builder's `start`.
    fn start_blocking(self) -> Result<Sandbox>;
}

impl Start for SandboxBuilder {
    fn start_blocking(self) -> Result<Sandbox> {
        block_on(self.start()).map(Sandbox)
    }
}

/// Copies without an async runtime.
pub trait Copy {
    /// Does what awaiting the copy does.
    ///
    /// # Errors
    ///
    /// As the copy itself.
    fn copy_blocking(self) -> Result<CopySummary>;
}

impl Copy for CopyTo {
    fn copy_blocking(self) -> Result<CopySummary> {
        block_on(self.into_future())
    }
}

impl Copy for CopyFrom {
    fn copy_blocking(self) -> Result<CopySummary> {
        block_on(self.into_future())
    }
}

/// A VM in which programs run; see [`crate::Sandbox`].
#[derive(Debug)]
pub struct Sandbox(crate::Sandbox);

impl From<crate::Sandbox> for Sandbox {
    fn from(sandbox: crate::Sandbox) -> Self {
        Self(sandbox)
    }
}

impl Sandbox {
    /// See [`crate::Sandbox::exec`].
    pub fn exec<A: Into<OsString>>(&self, argv: impl IntoIterator<Item = A>) -> Exec {
        Exec(self.0.exec(argv))
    }

    /// See [`crate::Sandbox::take_main`].
    #[must_use]
    pub fn take_main(&self) -> Option<Process> {
        self.0.take_main().map(Process::new)
    }

    /// See [`crate::Sandbox::vm`].
    #[must_use]
    pub fn vm(&self) -> VmHandle {
        VmHandle(self.0.vm().clone())
    }

    /// See [`crate::Sandbox::copy_to`]; [`Copy::copy_blocking`] does it.
    pub fn copy_to(&self, host: impl AsRef<Path>, guest: impl AsRef<Path>) -> CopyTo {
        self.0.copy_to(host, guest)
    }

    /// See [`crate::Sandbox::copy_from`]; [`Copy::copy_blocking`] does it.
    pub fn copy_from(&self, guest: impl AsRef<Path>, host: impl AsRef<Path>) -> CopyFrom {
        self.0.copy_from(guest, host)
    }

    /// See [`crate::Sandbox::wait`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn wait(&self) -> Result<VmStatus> {
        block_on(self.0.wait())
    }

    /// See [`crate::Sandbox::read_file`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn read_file(&self, path: impl AsRef<Path> + Send) -> Result<Vec<u8>> {
        block_on(self.0.read_file(path))
    }

    /// See [`crate::Sandbox::read_file_up_to`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn read_file_up_to(&self, path: impl AsRef<Path> + Send, limit: u64) -> Result<Vec<u8>> {
        block_on(self.0.read_file_up_to(path, limit))
    }

    /// See [`crate::Sandbox::open_read`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn open_read(&self, path: impl AsRef<Path> + Send) -> Result<FileReader> {
        block_on(self.0.open_read(path)).map(FileReader)
    }

    /// See [`crate::Sandbox::write_file`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn write_file(
        &self,
        path: impl AsRef<Path> + Send,
        content: impl AsRef<[u8]> + Send,
    ) -> Result<()> {
        block_on(self.0.write_file(path, content))
    }

    /// See [`crate::Sandbox::open_write`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn open_write(&self, path: impl AsRef<Path> + Send, mode: u16) -> Result<FileWriter> {
        block_on(self.0.open_write(path, mode)).map(FileWriter)
    }

    /// See [`crate::Sandbox::list_dir`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn list_dir(&self, path: impl AsRef<Path> + Send) -> Result<Vec<DirEntry>> {
        block_on(self.0.list_dir(path))
    }

    /// See [`crate::Sandbox::metadata`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn metadata(&self, path: impl AsRef<Path> + Send) -> Result<Option<FileMetadata>> {
        block_on(self.0.metadata(path))
    }

    /// See [`crate::Sandbox::symlink_metadata`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn symlink_metadata(&self, path: impl AsRef<Path> + Send) -> Result<Option<FileMetadata>> {
        block_on(self.0.symlink_metadata(path))
    }

    /// See [`crate::Sandbox::exists`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn exists(&self, path: impl AsRef<Path> + Send) -> Result<bool> {
        block_on(self.0.exists(path))
    }

    /// See [`crate::Sandbox::info`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn info(&self) -> Result<SandboxInfo> {
        block_on(self.0.info())
    }

    /// See [`crate::Sandbox::set_clock`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn set_clock(&self) -> Result<()> {
        block_on(self.0.set_clock())
    }

    /// See [`crate::Sandbox::shutdown`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn shutdown(&self, grace: Duration) -> Result<()> {
        block_on(self.0.shutdown(grace))
    }

    /// The same sandbox for async code.
    #[must_use]
    pub fn into_async(self) -> crate::Sandbox {
        self.0
    }
}

/// A program that is to run in a sandbox; see [`crate::Exec`].
#[must_use = "`spawn`, `output` or `status` runs it"]
pub struct Exec(crate::Exec);

impl Exec {
    /// See [`crate::Exec::env`].
    pub fn env(self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        Self(self.0.env(key, value))
    }

    /// See [`crate::Exec::env_clear`].
    pub fn env_clear(self) -> Self {
        Self(self.0.env_clear())
    }

    /// See [`crate::Exec::cwd`].
    pub fn cwd(self, folder: impl Into<OsString>) -> Self {
        Self(self.0.cwd(folder))
    }

    /// See [`crate::Exec::user`].
    pub fn user(self, user: impl Into<User>) -> Self {
        Self(self.0.user(user))
    }

    /// See [`crate::Exec::tty`].
    pub fn tty(self, size: TerminalSize) -> Self {
        Self(self.0.tty(size))
    }

    /// See [`crate::Exec::kill_rest`].
    pub fn kill_rest(self) -> Self {
        Self(self.0.kill_rest())
    }

    /// See [`crate::Exec::stdin`].
    pub fn stdin(self, stdin: Stdio) -> Self {
        Self(self.0.stdin(stdin))
    }

    /// See [`crate::Exec::stdout`].
    pub fn stdout(self, stdout: Stdio) -> Self {
        Self(self.0.stdout(stdout))
    }

    /// See [`crate::Exec::stderr`].
    pub fn stderr(self, stderr: Stdio) -> Self {
        Self(self.0.stderr(stderr))
    }

    /// See [`crate::Exec::envs`].
    pub fn envs<K, V>(self, variables: impl IntoIterator<Item = (K, V)>) -> Self
    where
        K: Into<OsString>,
        V: Into<OsString>,
    {
        Self(self.0.envs(variables))
    }

    /// See [`crate::Exec::spawn`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn spawn(self) -> Result<Process> {
        block_on(self.0.spawn()).map(Process::new)
    }

    /// See [`crate::Exec::output`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn output(self) -> Result<ExecOutput> {
        block_on(self.0.output())
    }

    /// See [`crate::Exec::status`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn status(self) -> Result<ExecStatus> {
        block_on(self.0.status())
    }
}

/// A program that runs in a sandbox; see [`crate::Process`].
///
/// A thread that reads does not keep another one from writing, as the streams are taken.
#[derive(Debug)]
pub struct Process {
    process: crate::Process,
    /// Its standard input; `None` once it was taken, or if it is null.
    pub stdin: Option<ProcessStdin>,
    /// Its standard output or terminal; `None` once it was taken, or if it is null.
    pub stdout: Option<ProcessOutput>,
    /// Its standard error; `None` once it was taken, if it is null, and with a terminal.
    pub stderr: Option<ProcessOutput>,
}

impl Process {
    fn new(mut process: crate::Process) -> Self {
        Self {
            stdin: process.stdin.take().map(ProcessStdin),
            stdout: process.stdout.take().map(ProcessOutput),
            stderr: process.stderr.take().map(ProcessOutput),
            process,
        }
    }

    /// See [`crate::Process::id`].
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// See [`crate::Process::wait`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn wait(&self) -> Result<ExecStatus> {
        block_on(self.process.wait())
    }

    /// See [`crate::Process::signal`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn signal(&self, signal: i32) -> Result<()> {
        block_on(self.process.signal(signal))
    }

    /// See [`crate::Process::resize`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn resize(&self, size: TerminalSize) -> Result<()> {
        block_on(self.process.resize(size))
    }

    /// See [`crate::Process::kill`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn kill(&self) -> Result<()> {
        block_on(self.process.kill())
    }
}

/// Writes to a program's standard input; see [`crate::ProcessStdin`]. Dropping it is the end of the
/// input.
#[derive(Debug)]
pub struct ProcessStdin(crate::ProcessStdin);

impl io::Write for ProcessStdin {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        block_on(self.0.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        block_on(self.0.flush())
    }
}

/// Reads what a program writes; see [`crate::ProcessOutput`].
#[derive(Debug)]
pub struct ProcessOutput(crate::ProcessOutput);

impl io::Read for ProcessOutput {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        block_on(self.0.read(buffer))
    }
}

/// Reads a file of a guest; see [`crate::FileReader`].
#[derive(Debug)]
pub struct FileReader(crate::FileReader);

impl FileReader {
    /// See [`crate::FileReader::metadata`].
    #[must_use]
    pub fn metadata(&self) -> &FileMetadata {
        self.0.metadata()
    }
}

impl io::Read for FileReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        block_on(self.0.read(buffer))
    }
}

/// Writes a file of a guest; see [`crate::FileWriter`].
#[derive(Debug)]
pub struct FileWriter(crate::FileWriter);

impl FileWriter {
    /// See [`crate::FileWriter::finish`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn finish(self) -> Result<()> {
        block_on(self.0.finish())
    }
}

impl io::Write for FileWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        block_on(self.0.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        block_on(self.0.flush())
    }
}
