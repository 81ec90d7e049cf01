//! The file system device (5.11): the front of a server in a process of its own, which speaks to the
//! guest in the queues directly.
//!
//! ```text
//! driver ── notification ──▶ this device ── kick ──▶ server      an eventfd each: the device hands
//!        ◀── interrupt ─────             ◀── call ──             on what it is told, and no data
//!           requests, replies: in guest memory, which both processes map
//! ```
//!
//! The server is told of the memory and the queues by vhost-user ("Vhost-user Protocol", QEMU's
//! documentation) when the driver is ready. A reset takes the queues back before anything else may use
//! their memory.

use std::fmt;
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{
    Frontend, VhostUserFrontend, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::config_space::ConfigSpace;
use crate::device::{DeviceType, DriverFault, VirtioDevice};
use crate::notification::Notification;
use crate::queue::{Memory, Virtqueue};
use crate::thread::spawn_without_signals;
use crate::wait_set::{Readiness, WaitSet};

/// The queue of requests that must not wait, and the queue of all others. A request of Linux is a
/// megabyte at most: 256 pages and what describes them.
const QUEUE_SIZES: [u16; 2] = [128, 1024];

/// Bytes of the tag in the configuration space (5.11.4).
const TAG_BYTES: usize = 36;

/// How long the server may take to be told of a driver, or to give its queues back. It takes microseconds,
/// unless it waits for a disk or a processor, and a guest that has lost its server is lost too. The guest's reset
/// waits for that long, and the machine's end for each share, unless the connection is ended before.
const ANSWER: Duration = Duration::from_secs(30);

/// The thread that sees to it needs little.
const STACK_SIZE: usize = 64 * 1024;

const PROTOCOL: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// A shared folder of the host.
pub struct Fs {
    config: Arc<ConfigSpace>,
    server: Frontend,
    /// The same connection, to be ended when the server does not answer.
    connection: UnixStream,
    /// How long an answer may take: [`ANSWER`], except in tests.
    limit: Duration,
    /// What the server waits for, and what it writes, for each queue.
    kicks: [Notification; QUEUE_SIZES.len()],
    calls: [Notification; QUEUE_SIZES.len()],
    /// What the driver accepted.
    features: u64,
    /// Which queues the server has.
    lent: [bool; QUEUE_SIZES.len()],
    /// Whether the server was told that it serves this device.
    owned: bool,
}

impl Fs {
    /// A device that the guest mounts by `tag`, with a server at the other end of `server`, which has
    /// not been spoken to.
    ///
    /// Guest memory has to be a shared mapping of files, which the server maps too.
    ///
    /// # Errors
    ///
    /// The tag is empty or longer than 36 bytes; or the process has no descriptor left.
    pub fn new(tag: &str, server: OwnedFd) -> io::Result<Self> {
        if tag.is_empty() || tag.len() > TAG_BYTES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // tag, num_request_queues (5.11.4).
        let mut config = [0; TAG_BYTES + 4];
        config[..tag.len()].copy_from_slice(tag.as_bytes());
        config[TAG_BYTES..].copy_from_slice(&1u32.to_le_bytes());
        let connection = UnixStream::from(server);
        let server = connection.try_clone()?;
        Ok(Self {
            config: Arc::new(ConfigSpace::new(&config)),
            server: Frontend::from_stream(server, QUEUE_SIZES.len() as u64),
            connection,
            limit: ANSWER,
            kicks: [Notification::new()?, Notification::new()?],
            calls: [Notification::new()?, Notification::new()?],
            features: 0,
            lent: [false; QUEUE_SIZES.len()],
            owned: false,
        })
    }

    /// Talks to the server, and ends the connection if that takes too long: the server ends too then.
    /// (The connection's own time limits would not do, as a message is tried again when one is up.)
    fn talk<T>(&mut self, talk: impl FnOnce(&mut Self) -> T) -> io::Result<T> {
        let connection = self.connection.try_clone()?;
        let (done, talking) = mpsc::channel::<()>();
        let limit = self.limit;
        let watch = move || {
            if talking.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                // It fails when the server was faster and has ended it.
                let _ = connection.shutdown(Shutdown::Both);
            }
        };
        let watcher = spawn_without_signals("capsa-fs-limit", STACK_SIZE, watch)?;
        let said = talk(self);
        drop(done);
        // It does nothing that panics.
        let _ = watcher.join();
        Ok(said)
    }

    /// Tells the server about the driver, its memory and its queues.
    fn lend(&mut self, queues: &[Virtqueue]) -> vhost::Result<()> {
        if !self.owned {
            self.server.set_owner()?;
            self.server.get_features()?;
            let wanted = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK;
            let offered = self.server.get_protocol_features()?;
            self.server.set_protocol_features(wanted & offered)?;
            // From now on every message is answered, so that one that fails is known.
            self.server.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
            self.owned = true;
        }
        self.server.set_features(self.features | PROTOCOL)?;
        let Some(memory) = queues.first().map(Virtqueue::memory) else {
            return Ok(());
        };
        let regions: Result<Vec<_>, _> = memory
            .iter()
            .map(VhostUserMemoryRegionInfo::from_guest_region)
            .collect();
        self.server.set_mem_table(&regions?)?;
        for (index, queue) in queues.iter().enumerate() {
            if queue.is_ready() {
                self.lend_queue(index, queue, memory)?;
            }
        }
        Ok(())
    }

    fn lend_queue(
        &mut self,
        index: usize,
        queue: &Virtqueue,
        memory: &Memory,
    ) -> vhost::Result<()> {
        let [descriptors, available, used] = queue.rings();
        let here = |address: GuestAddress| {
            let found = memory.get_host_address(address);
            found
                .map(|place| place as u64)
                .map_err(|_| vhost::Error::InvalidQueue)
        };
        let rings = VringConfigData {
            queue_max_size: QUEUE_SIZES[index],
            queue_size: queue.size(),
            flags: 0,
            desc_table_addr: here(descriptors)?,
            used_ring_addr: here(used)?,
            avail_ring_addr: here(available)?,
            log_addr: None,
        };
        // From here on the server has to give it back, whether or not the rest succeeds.
        self.lent[index] = true;
        self.server.set_vring_num(index, queue.size())?;
        self.server.set_vring_addr(index, &rings)?;
        self.server.set_vring_base(index, 0)?;
        self.server
            .set_vring_call(index, self.calls[index].eventfd())?;
        self.server
            .set_vring_kick(index, self.kicks[index].eventfd())?;
        self.server.set_vring_enable(index, true)
    }

    /// Has the server give back the queues that it has.
    fn take_back(&mut self) -> vhost::Result<()> {
        for (index, lent) in self.lent.iter().enumerate() {
            if *lent {
                self.server.get_vring_base(index)?;
            }
        }
        Ok(())
    }
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> DeviceType {
        DeviceType::FileSystem
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> &Arc<ConfigSpace> {
        &self.config
    }

    fn activate(&mut self, features: u64, wait: &Arc<WaitSet>) -> io::Result<()> {
        self.features = features;
        for (call, token) in self.calls.iter().zip(0..) {
            wait.add(call, token, Readiness::Readable)?;
        }
        Ok(())
    }

    fn queue_ready(&mut self, index: usize, queues: &mut [Virtqueue]) -> Result<(), DriverFault> {
        if self.lent == [false; QUEUE_SIZES.len()] {
            let lent = self.talk(|device| device.lend(queues));
            lent.and_then(|lent| lent.map_err(io::Error::other))
                .map_err(DriverFault::Server)?;
        }
        self.kicks[index].raise();
        Ok(())
    }

    fn descriptor_ready(
        &mut self,
        token: u32,
        queues: &mut [Virtqueue],
    ) -> Result<(), DriverFault> {
        let index = token as usize;
        self.calls[index].clear();
        queues[index].interrupt();
        Ok(())
    }

    fn reset(&mut self) {
        if self.lent != [false; QUEUE_SIZES.len()] {
            let taken = self.talk(Self::take_back);
            if let Err(error) = taken.and_then(|taken| taken.map_err(io::Error::other)) {
                tracing::error!(%error, "a file server does not give its queues back");
                // It may not use the memory any longer, whatever it does.
                let _ = self.connection.shutdown(Shutdown::Both);
            }
            self.lent = [false; QUEUE_SIZES.len()];
        }
        for event in self.kicks.iter().chain(&self.calls) {
            event.clear();
        }
    }
}

impl fmt::Debug for Fs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fs").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
