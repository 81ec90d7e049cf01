//! The socket device (5.10), with Unix sockets on the host side.
//!
//! ```text
//! program ── path: CONNECT 1024 ─▶ host ─▶ muxer ─▶ receive queue ─▶ guest's port 1024
//!         ── VsockHandle::connect ─┘         │
//! program ◀─ path_1024 ──────────── host ◀── muxer ◀─ transmit queue ◀─ guest: CID 2, port 1024
//!         ◀─ VsockListener ─────────┘         │
//!                                             ├─ connection   one connection's state, no I/O
//!                                             └─ host_end     its socket
//! ```
//!
//! The sockets at a path speak as Firecracker's and cloud-hypervisor's do, so that the programs
//! written for these work here.
//!
//! Nothing here waits. A host program that does not read stops its own connection only, by the
//! credit that its guest's side then runs out of; a guest that takes no packets stops the host
//! programs, by their sockets that are then no longer read.

mod connection;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod greeting;
#[cfg(any(test, feature = "fuzzing"))]
mod guest;
mod handle;
mod host;
mod host_end;
mod muxer;
mod packet;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use virtio_queue::Writer;

pub use self::handle::{VsockHandle, VsockListener};

use self::greeting::is_transient;
use self::handle::Shared;
use self::host::Host;
use self::muxer::Muxer;
use crate::config_space::ConfigSpace;
use crate::device::{DeviceType, DriverFault, VirtioDevice};
use crate::queue::Virtqueue;
use crate::wait_set::{Readiness, WaitSet};
use crate::watch::Watch;

/// Packets: as many as Firecracker's. Events: Linux has 8 buffers.
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];

/// `VIRTIO_VSOCK_F_STREAM`; sequenced packets are not offered.
const F_STREAM: u64 = 1 << 0;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`, the only event (5.10.6.7).
const TRANSPORT_RESET: u32 = 0;

const WAKE: u32 = 0;
const LISTENER: u32 = 1;
const TIMER: u32 = 2;
const FIRST_PEER: u32 = 3;

/// Most programs that are accepted in one call.
const ACCEPTS: usize = 16;

/// How long no program is accepted after the host ran out of descriptors.
const PAUSE: Duration = Duration::from_secs(1);

/// A guest's sockets.
#[derive(Debug)]
pub struct Vsock {
    guest_cid: u32,
    config: Arc<ConfigSpace>,
    host: Host,
    active: Option<Active>,
}

/// What belongs to the present driver.
#[derive(Debug)]
struct Active {
    muxer: Muxer,
    listener: Watch,
    /// When programs are accepted again after a failure.
    pause: Option<Instant>,
    timer: OwnedFd,
    /// What the timer is set to.
    armed: Option<Instant>,
    /// The guest is to be told that all connections are gone.
    event_due: bool,
}

impl Vsock {
    /// The sockets of the guest with address `guest_cid`.
    ///
    /// With a `path`, a Unix socket is bound there that only the same user can connect to, and
    /// removed with the device. A program that connects to it says `CONNECT <port>\n`, reads
    /// `OK <host port>\n` once the guest has accepted, and then has the connection; it is closed
    /// when the guest refuses or does not answer for 10 s. A guest's connection to port P of the
    /// host (CID 2) goes to the Unix socket `<path>_P`, if a program listens there. The path's
    /// folder should be one that only the user can enter: whoever can write to it can take the
    /// guest's connections.
    ///
    /// # Errors
    ///
    /// `InvalidInput` when `guest_cid` is reserved (0, 1, 2 and 2^32 - 1). With a path: it exists,
    /// its folder does not, or it has more than 96 bytes. Else the process has no descriptor left.
    pub fn new(guest_cid: u32, path: Option<&Path>) -> io::Result<Self> {
        if matches!(guest_cid, 0..=2 | u32::MAX) {
            let problem = format!("{guest_cid} is not a guest's address");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        Ok(Self {
            guest_cid,
            config: Arc::new(ConfigSpace::new(&u64::from(guest_cid).to_le_bytes())),
            host: Host::new(Shared::new()?, path)?,
            active: None,
        })
    }

    /// The way to the guest's ports, and from it, without a path.
    #[must_use]
    pub fn handle(&self) -> VsockHandle {
        VsockHandle::new(&self.host.shared)
    }

    /// Does all that can be done now. A broken driver loses its connections at once, since nothing
    /// is heard of it until it resets the device.
    fn work(&mut self, queues: &mut [Virtqueue], now: Instant) -> Result<(), DriverFault> {
        let (Some(active), [receive, transmit, event]) = (&mut self.active, queues) else {
            return Ok(());
        };
        let done = active.work(receive, transmit, event, &self.host, now);
        if done.is_err() {
            self.reset();
        }
        done
    }
}

impl Active {
    fn new(guest_cid: u32, wait: &Arc<WaitSet>) -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        wait.add(&timer, TIMER, Readiness::Readable)?;
        Ok(Self {
            muxer: Muxer::new(guest_cid.into(), wait, FIRST_PEER),
            listener: Watch::new(wait, LISTENER),
            pause: None,
            timer,
            armed: None,
            event_due: false,
        })
    }

    fn work(
        &mut self,
        receive: &mut Virtqueue,
        transmit: &mut Virtqueue,
        event: &mut Virtqueue,
        host: &Host,
        now: Instant,
    ) -> Result<(), DriverFault> {
        let unheard = self.muxer.transmit(transmit, host, now)?;
        let untold = self.muxer.receive(receive, now)?;
        self.tell_event(event)?;
        transmit.signal()?;
        receive.signal()?;
        event.signal()?;
        if untold || (unheard && self.muxer.can_hear()) {
            host.shared.wake.raise();
        }
        self.update_watches(host, now);
        Ok(())
    }

    /// Programs at the path.
    fn accept(&mut self, host: &Host, now: Instant) {
        for _ in 0..ACCEPTS {
            if !self.muxer.has_room() {
                break;
            }
            match host
                .accept()
                .and_then(|stream| self.muxer.greet(stream, now))
            {
                Ok(()) => {}
                Err(error) if is_transient(&error) => break,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a program's connection for the guest");
                    self.pause = Some(now + PAUSE);
                    break;
                }
            }
        }
    }

    /// What handles asked for.
    fn fulfil(&mut self, host: &Host, now: Instant) {
        host.shared.wake.clear();
        let wishes = host.shared.take_wishes();
        if wishes.transport_reset {
            self.muxer.clear();
            self.event_due = true;
        }
        for (port, stream) in wishes.requests {
            if let Err(error) = self.muxer.request(stream, port, now) {
                tracing::warn!(%error, port, "cannot take a connection to the guest");
            }
        }
    }

    /// The timer has run out.
    fn expire(&mut self, now: Instant) {
        if rustix::io::read(&self.timer, &mut [0u8; 8]).is_ok() {
            self.armed = None;
        }
        self.muxer.expire(now);
    }

    /// Whatever the guest is to be told beside packets.
    fn tell_event(&mut self, queue: &mut Virtqueue) -> Result<(), DriverFault> {
        if !self.event_due {
            return Ok(());
        }
        let chain = loop {
            match queue.pop()? {
                Some(chain) => break chain,
                None if queue.enable_notification()? => {}
                None => return Ok(()),
            }
        };
        let head = chain.head_index();
        let mut writer: Writer<'_> = chain.writer(queue.memory())?;
        writer
            .write_obj(TRANSPORT_RESET.to_le())
            .map_err(|_| DriverFault::Chain("a vsock event's buffer is too short"))?;
        queue.push_used(head, 4)?;
        self.event_due = false;
        Ok(())
    }

    /// Waits for what can be dealt with, and for nothing else.
    fn update_watches(&mut self, host: &Host, now: Instant) {
        self.muxer.leave_unserved();
        self.pause = self.pause.filter(|end| *end > now);
        if let Some(listener) = host.listener() {
            let accepts = self.muxer.has_room() && self.pause.is_none();
            let wanted = accepts.then_some(Readiness::Readable);
            self.listener.set(listener, wanted);
        }
        let next = self.muxer.deadline().into_iter().chain(self.pause).min();
        if next != self.armed && self.set_timer(next, now).is_ok() {
            self.armed = next;
        }
    }

    fn set_timer(&self, next: Option<Instant>, now: Instant) -> io::Result<()> {
        // Zero would turn it off.
        let least = Duration::from_nanos(1);
        let delay = next.map(|next| next.saturating_duration_since(now).max(least));
        let value = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec::try_from(delay.unwrap_or_default()).map_err(io::Error::other)?,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &value)?;
        Ok(())
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> DeviceType {
        DeviceType::Vsock
    }

    fn features(&self) -> u64 {
        F_STREAM
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> &Arc<ConfigSpace> {
        &self.config
    }

    fn activate(&mut self, _features: u64, wait: &Arc<WaitSet>) -> io::Result<()> {
        let shared = &self.host.shared;
        wait.add(&shared.wake, WAKE, Readiness::Readable)?;
        let active = self.active.insert(Active::new(self.guest_cid, wait)?);
        active.update_watches(&self.host, Instant::now());
        shared.set_driver(true);
        Ok(())
    }

    fn queue_ready(&mut self, _index: usize, queues: &mut [Virtqueue]) -> Result<(), DriverFault> {
        self.work(queues, Instant::now())
    }

    fn descriptor_ready(
        &mut self,
        token: u32,
        queues: &mut [Virtqueue],
    ) -> Result<(), DriverFault> {
        let now = Instant::now();
        if let Some(active) = &mut self.active {
            match token {
                WAKE => active.fulfil(&self.host, now),
                LISTENER => active.accept(&self.host, now),
                TIMER => active.expire(now),
                peer => active.muxer.token_ready(peer, now),
            }
        }
        self.work(queues, now)
    }

    fn reset(&mut self) {
        self.host.shared.set_driver(false);
        if let Some(mut active) = self.active.take() {
            active.muxer.clear();
        }
    }
}
