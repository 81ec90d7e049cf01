//! What a device is to its transport.

use std::io;
use std::sync::Arc;

use crate::config_space::ConfigSpace;
use crate::queue::Virtqueue;
use crate::wait_set::WaitSet;

/// A device as the transport and the worker see it.
///
/// The transport asks for the constants at any time. The rest is called on the device's worker
/// thread, from [`activate`](Self::activate) on; [`reset`](Self::reset) by whoever ended that
/// thread. It is one call at a time: a device needs no lock. None of the calls may wait for the
/// guest or for a peer; a disk may wait for the host's storage.
pub trait VirtioDevice: Send {
    /// The device's type: constant.
    fn device_type(&self) -> DeviceType;

    /// The feature bits of this device type that the device offers: constant. The transport adds
    /// `VIRTIO_F_VERSION_1`, `VIRTIO_RING_F_EVENT_IDX` and `VIRTIO_RING_F_INDIRECT_DESC`.
    fn features(&self) -> u64;

    /// The largest size of each queue, a power of two each: constant. Its length is the number of
    /// queues.
    fn queue_sizes(&self) -> &[u16];

    /// The device's configuration space, shared with the vCPU threads that read it.
    fn config(&self) -> &Arc<ConfigSpace>;

    /// The driver has set `DRIVER_OK` after it accepted `features`, a subset of what was offered.
    /// Descriptors that the device waits for are added to `wait`, which it may keep.
    ///
    /// # Errors
    ///
    /// The host has no descriptors or memory left: the transport tells the driver that the device
    /// needs a reset.
    fn activate(&mut self, features: u64, wait: &Arc<WaitSet>) -> io::Result<()>;

    /// Queue `index` may hold new buffers. Also called once for each enabled queue after
    /// [`activate`](Self::activate), and after a pause. May be called without any.
    ///
    /// # Errors
    ///
    /// The driver broke the protocol in a way that no status of a request can tell: the transport
    /// stops calling and sets `DEVICE_NEEDS_RESET` (2.1.2).
    fn queue_ready(&mut self, index: usize, queues: &mut [Virtqueue]) -> Result<(), DriverFault>;

    /// A descriptor that was added to the wait set under `token` is ready, or was when the worker
    /// woke up: a device that removes one is still told of it once.
    ///
    /// # Errors
    ///
    /// As [`queue_ready`](Self::queue_ready).
    fn descriptor_ready(
        &mut self,
        token: u32,
        queues: &mut [Virtqueue],
    ) -> Result<(), DriverFault> {
        let _ = (token, queues);
        Ok(())
    }

    /// The driver is gone: by a reset, or because the machine ends. Everything that it asked for and
    /// everything about it is forgotten; what is the host's (a disk, a socket's path) is kept for
    /// the next driver. The wait set that [`activate`](Self::activate) got is no longer waited for.
    fn reset(&mut self);
}

/// A device's type (5): its PCI device id is `0x1040` plus this number (4.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DeviceType {
    /// Network card (5.1).
    Net = 1,
    /// Block device (5.2).
    Block = 2,
    /// Console (5.3).
    Console = 3,
    /// Entropy source (5.4).
    Rng = 4,
    /// Traditional memory balloon (5.5).
    Balloon = 5,
    /// Socket device (5.10).
    Vsock = 19,
    /// File system (5.11).
    FileSystem = 26,
}

/// Why a device cannot serve its driver any longer, as a rule because that broke the protocol: the
/// device stops until it is reset.
#[derive(Debug, thiserror::Error)]
pub enum DriverFault {
    /// A ring lies outside of memory, or its indices contradict each other.
    #[error("a virtqueue's ring is broken")]
    Ring(#[from] virtio_queue::Error),
    /// A descriptor chain cannot be what the device's section of the specification asks for.
    #[error("a descriptor chain is not a request: {0}")]
    Chain(&'static str),
    /// Not the driver's fault: the process that serves it does not answer as it should.
    #[error("the device's server fails")]
    Server(#[source] std::io::Error),
}
