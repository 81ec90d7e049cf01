//! How a device tells its driver that there is something to look at.

/// One device's interrupts.
///
/// Called from the device's worker thread and from the transport. Never blocks. Sending one that
/// the driver has masked, or not set up, keeps it pending or drops it as MSI-X says.
pub trait Interrupt: Send + Sync {
    /// Queue `index` has used buffers.
    fn queue(&self, index: u16);

    /// The configuration space changed, or the device needs a reset.
    fn config(&self);
}
