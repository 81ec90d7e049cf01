//! The same API for programs without an async runtime (feature `blocking`).
//!
//! ```no_run
//! use capsa::blocking::Build;
//! use capsa::{Capsa, LinuxBoot};
//!
//! # fn example() -> capsa::Result<()> {
//! let vm = Capsa::linux(LinuxBoot::new("./bzImage")).console_enabled().build_blocking()?;
//! vm.start()?;
//! vm.console()?.wait_for("login:")?;
//! vm.stop()?;
//! # Ok(())
//! # }
//! ```
//!
//! ```no_run
//! use capsa::Capsa;
//! use capsa::blocking::Start;
//!
//! # fn example() -> capsa::Result<()> {
//! let sandbox = Capsa::sandbox().start_blocking()?;
//! let output = sandbox.exec(["uname", "-a"]).output()?;
//! # Ok(())
//! # }
//! ```
//!
//! Every method blocks the calling thread until it is done, and does what the async method of the
//! same name does. They may be called inside a runtime as well: that blocks one of its threads,
//! and never panics.

mod sandbox;

pub use self::sandbox::{
    Copy, Exec, FileReader, FileWriter, Process, ProcessOutput, ProcessStdin, Sandbox, Start,
};

use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime;

use crate::network::Event;
use crate::{
    BackendInfo, Error, ExitReason, GuestOs, LinuxVmBuilder, ResourceConfig, Result, Share,
    UefiVmBuilder, VmId, VmStatus, vsock,
};

/// Runs a future to its end on a runtime of its own, made for it: it costs some tens of
/// microseconds, and nothing is left behind.
fn block_on<T: Send>(future: impl Future<Output = T> + Send) -> T {
    let run = || {
        runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map(|runtime| runtime.block_on(future))
    };
    let done = match runtime::Handle::try_current() {
        Err(_) => run(),
        // A runtime refuses to block on its own threads; a thread of ours is not one of them.
        Ok(_) => std::thread::scope(|scope| match scope.spawn(run).join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }),
    };
    match done {
        Ok(value) => value,
        // Without I/O a current-thread runtime asks the operating system for nothing.
        Err(error) => panic!("a runtime without I/O could not be made: {error}"),
    }
}

/// Builds a VM without an async runtime.
pub trait Build {
    /// Does what the builder's `build` does.
    ///
    /// # Errors
    ///
    /// As the builder's `build`.
    fn build_blocking(self) -> Result<VmHandle>;
}

impl Build for LinuxVmBuilder {
    fn build_blocking(self) -> Result<VmHandle> {
        block_on(self.build()).map(VmHandle)
    }
}

impl Build for UefiVmBuilder {
    fn build_blocking(self) -> Result<VmHandle> {
        block_on(self.build()).map(VmHandle)
    }
}

/// What happens on a VM's network; see [`crate::network::NetworkEvents`]. As an iterator it waits for the next
/// event, until the VM has ended.
#[derive(Debug)]
pub struct NetworkEvents(crate::network::NetworkEvents);

impl NetworkEvents {
    /// See [`crate::network::NetworkEvents::try_next`].
    #[must_use]
    pub fn try_next(&mut self) -> Option<Event> {
        self.0.try_next()
    }
}

impl Iterator for NetworkEvents {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        block_on(self.0.next())
    }
}

/// A virtual machine; see [`crate::VmHandle`].
#[derive(Debug, Clone)]
pub struct VmHandle(crate::VmHandle);

impl VmHandle {
    /// See [`crate::VmHandle::start`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn start(&self) -> Result<()> {
        block_on(self.0.start())
    }

    /// See [`crate::VmHandle::stop`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn stop(&self) -> Result<()> {
        block_on(self.0.stop())
    }

    /// See [`crate::VmHandle::stop_with_timeout`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn stop_with_timeout(&self, grace: Duration) -> Result<()> {
        block_on(self.0.stop_with_timeout(grace))
    }

    /// See [`crate::VmHandle::kill`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn kill(&self) -> Result<()> {
        block_on(self.0.kill())
    }

    /// See [`crate::VmHandle::pause`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn pause(&self) -> Result<()> {
        block_on(self.0.pause())
    }

    /// See [`crate::VmHandle::resume`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn resume(&self) -> Result<()> {
        block_on(self.0.resume())
    }

    /// See [`crate::VmHandle::wait`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn wait(&self) -> Result<VmStatus> {
        block_on(self.0.wait())
    }

    /// See [`crate::VmHandle::wait_timeout`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn wait_timeout(&self, limit: Duration) -> Result<Option<VmStatus>> {
        block_on(self.0.wait_timeout(limit))
    }

    /// See [`crate::VmHandle::console`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn console(&self) -> Result<VmConsole> {
        block_on(self.0.console()).map(VmConsole)
    }

    /// See [`crate::VmHandle::status`].
    #[must_use]
    pub fn status(&self) -> VmStatus {
        self.0.status()
    }

    /// See [`crate::VmHandle::exit_reason`].
    #[must_use]
    pub fn exit_reason(&self) -> Option<ExitReason> {
        self.0.exit_reason()
    }

    /// See [`crate::VmHandle::failure`].
    #[must_use]
    pub fn failure(&self) -> Option<Arc<Error>> {
        self.0.failure()
    }

    /// Connects to a vsock port of the guest; see [`crate::VmHandle::vsock`]. The stream blocks.
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn vsock(&self, port: u32) -> Result<UnixStream> {
        vsock::connect_blocking(&*self.0.vsock_ports("connect to the guest")?, port)
    }

    /// Takes the guest's connections to a vsock port of the host; see
    /// [`crate::VmHandle::vsock_listen`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn vsock_listen(&self, port: u32) -> Result<VsockListener> {
        block_on(self.0.vsock_listen(port)).map(VsockListener)
    }

    /// See [`crate::VmHandle::take_network_events`].
    #[must_use]
    pub fn take_network_events(&self) -> Option<NetworkEvents> {
        self.0.take_network_events().map(NetworkEvents)
    }

    /// See [`crate::VmHandle::forwards`].
    #[must_use]
    pub fn forwards(&self) -> &[SocketAddr] {
        self.0.forwards()
    }

    /// See [`crate::VmHandle::console_tail`].
    #[must_use]
    pub fn console_tail(&self) -> String {
        self.0.console_tail()
    }

    /// See [`crate::VmHandle::guest_os`].
    #[must_use]
    pub fn guest_os(&self) -> GuestOs {
        self.0.guest_os()
    }

    /// See [`crate::VmHandle::resources`].
    #[must_use]
    pub fn resources(&self) -> &ResourceConfig {
        self.0.resources()
    }

    /// See [`crate::VmHandle::backend`].
    #[must_use]
    pub fn backend(&self) -> &BackendInfo {
        self.0.backend()
    }

    /// See [`crate::VmHandle::id`].
    #[must_use]
    pub fn id(&self) -> VmId {
        self.0.id()
    }

    /// See [`crate::VmHandle::shares`].
    #[must_use]
    pub fn shares(&self) -> &[Share] {
        self.0.shares()
    }

    /// The same VM for async code.
    #[must_use]
    pub fn into_async(self) -> crate::VmHandle {
        self.0
    }
}

/// A console; see [`crate::VmConsole`]. Reading through [`io::Read`] blocks until there is output.
#[derive(Debug, Clone)]
pub struct VmConsole(crate::VmConsole);

impl VmConsole {
    /// See [`crate::VmConsole::read_available`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn read_available(&mut self) -> Result<String> {
        block_on(self.0.read_available())
    }

    /// See [`crate::VmConsole::wait_for`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn wait_for(&mut self, pattern: &str) -> Result<String> {
        block_on(self.0.wait_for(pattern))
    }

    /// See [`crate::VmConsole::wait_for_timeout`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn wait_for_timeout(&mut self, pattern: &str, limit: Duration) -> Result<String> {
        block_on(self.0.wait_for_timeout(pattern, limit))
    }

    /// See [`crate::VmConsole::wait_for_any`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn wait_for_any(&mut self, patterns: &[&str]) -> Result<(usize, String)> {
        block_on(self.0.wait_for_any(patterns))
    }

    /// See [`crate::VmConsole::wait_for_any_timeout`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn wait_for_any_timeout(
        &mut self,
        patterns: &[&str],
        limit: Duration,
    ) -> Result<(usize, String)> {
        block_on(self.0.wait_for_any_timeout(patterns, limit))
    }

    /// See [`crate::VmConsole::wait_for_regex_timeout`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn wait_for_regex_timeout(&mut self, regex: &str, limit: Duration) -> Result<String> {
        block_on(self.0.wait_for_regex_timeout(regex, limit))
    }

    /// See [`crate::VmConsole::wait_for_regex`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn wait_for_regex(&mut self, regex: &str) -> Result<String> {
        block_on(self.0.wait_for_regex(regex))
    }

    /// See [`crate::VmConsole::write_str`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn write_str(&mut self, text: &str) -> Result<()> {
        block_on(self.0.write_str(text))
    }

    /// The same console for async code, where it can be split into halves.
    #[must_use]
    pub fn into_async(self) -> crate::VmConsole {
        self.0
    }

    /// See [`crate::VmConsole::write_line`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn write_line(&mut self, line: &str) -> Result<()> {
        block_on(self.0.write_line(line))
    }

    /// See [`crate::VmConsole::send_interrupt`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn send_interrupt(&mut self) -> Result<()> {
        block_on(self.0.send_interrupt())
    }

    /// See [`crate::VmConsole::send_eof`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn send_eof(&mut self) -> Result<()> {
        block_on(self.0.send_eof())
    }

    /// See [`crate::VmConsole::login`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn login(&mut self, user: &str, password: Option<&str>) -> Result<()> {
        block_on(self.0.login(user, password))
    }

    /// See [`crate::VmConsole::run_command`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn run_command(&mut self, command: &str, prompt: &str) -> Result<String> {
        block_on(self.0.run_command(command, prompt))
    }

    /// See [`crate::VmConsole::run_command_timeout`].
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn run_command_timeout(
        &mut self,
        command: &str,
        prompt: &str,
        limit: Duration,
    ) -> Result<String> {
        block_on(self.0.run_command_timeout(command, prompt, limit))
    }
}

impl io::Read for VmConsole {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        block_on(self.0.read(buf)).map_err(io::Error::other)
    }
}

impl io::Write for VmConsole {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        block_on(self.0.write(bytes)).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    /// Does nothing: a write returns when the machine has taken it.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Takes the guest's connections to one port of the host; see [`crate::VsockListener`].
#[derive(Debug)]
pub struct VsockListener(crate::VsockListener);

impl VsockListener {
    /// Waits for the next connection, for as long as it takes. The stream blocks.
    ///
    /// # Errors
    ///
    /// As the async method.
    pub fn accept(&mut self) -> Result<UnixStream> {
        block_on(self.0.accept_blocking())
    }
}
