//! Drivers that break every rule of the transport: whatever they write, the device answers the next
//! good driver, and the host does not panic, hang or grow.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, which end by a panic as tests do"
)]

mod interrupts;
mod queues;
mod registers;
mod reset;

use capsa_virtio::echo::{Echo, Gate};
use capsa_virtio::raw_driver::{RawDriver, RawQueue, readable, writable};
use std::sync::Arc;

/// A driver of a device with queues of at most 64 and 16.
fn driver() -> (RawDriver, Arc<Gate>) {
    let (device, gate) = Echo::new(&[64, 16]);
    (RawDriver::new(device), gate)
}

/// The next driver behaves, and everything works.
fn assert_usable(driver: &RawDriver) {
    let mut queues = driver.connect(u64::MAX, 8);
    for queue in &mut queues {
        assert_answer(driver, queue);
    }
    driver.set_status(0);
    assert_eq!(driver.status(), 0);
}

/// A good request gets its answer.
fn assert_answer(driver: &RawDriver, queue: &mut RawQueue) {
    let request = driver.place(b"still there?");
    let answer = driver.allocate(64, 1);
    let head = queue.chain(&[readable(request, 12), writable(answer, 64)]);
    driver.kick(queue.index);
    assert_eq!(driver.wait_used(queue), (head.into(), 12));
    assert_eq!(driver.read_memory(answer, 12), b"still there?");
}
