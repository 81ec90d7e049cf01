//! The entropy source (5.4).

use std::io::{self, Write};
use std::sync::Arc;

use rustix::rand::{GetRandomFlags, getrandom};

use crate::config_space::ConfigSpace;
use crate::device::{DeviceType, DriverFault, VirtioDevice};
use crate::queue::{Chain, Virtqueue};
use crate::wait_set::{Readiness, WaitSet};
use crate::wake::Wake;

/// Most bytes for one request: a page is more than Linux asks for. A driver that asks for more
/// gets this much, which the specification allows (5.4.6), and the host's generator, which all
/// machines share, is not held up by one of them.
const REQUEST_LIMIT: usize = 4096;

/// Most requests in one go, about a millisecond's work, so that a reset need not wait for a driver
/// that asks without end.
const BATCH: usize = 64;

const AGAIN: u32 = 0;

/// Gives the host's random numbers to the guest.
#[derive(Debug)]
pub struct Rng {
    config: Arc<ConfigSpace>,
    /// Raised when a batch ended before the queue did.
    again: Wake,
}

impl Rng {
    /// An entropy source.
    ///
    /// # Errors
    ///
    /// The host's generator has no seed yet, early in its boot; or the process has no descriptor
    /// left.
    pub fn new() -> io::Result<Self> {
        // Once it gives anything it does for ever: from then on no request can fail or block.
        getrandom(&mut [0u8; 1], GetRandomFlags::NONBLOCK)?;
        Ok(Self {
            config: Arc::new(ConfigSpace::new(&[])),
            again: Wake::new()?,
        })
    }

    fn serve(&self, queue: &mut Virtqueue) -> Result<(), DriverFault> {
        queue.disable_notification()?;
        for _ in 0..BATCH {
            match queue.pop()? {
                Some(chain) => {
                    let head = chain.head_index();
                    let written = fill(chain, queue)?;
                    queue.push_used(head, written)?;
                }
                None if queue.enable_notification()? => {}
                None => return queue.signal(),
            }
        }
        self.again.raise();
        queue.signal()
    }
}

/// Fills a request's buffers and returns how much.
fn fill(chain: Chain, queue: &Virtqueue) -> Result<u32, DriverFault> {
    let mut buffers = chain.writer(queue.memory())?;
    let wanted = buffers.available_bytes().min(REQUEST_LIMIT);
    if wanted == 0 {
        return Err(DriverFault::Chain("no room for a single random byte"));
    }
    let mut bytes = [0; REQUEST_LIMIT];
    // A signal can cut it short; what the guest is told counts.
    let got = getrandom(&mut bytes[..wanted], GetRandomFlags::NONBLOCK).unwrap_or(0);
    let written = buffers.write(&bytes[..got]).unwrap_or(0);
    Ok(u32::try_from(written).unwrap_or(0))
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> DeviceType {
        DeviceType::Rng
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn config(&self) -> &Arc<ConfigSpace> {
        &self.config
    }

    fn activate(&mut self, _features: u64, wait: &Arc<WaitSet>) -> io::Result<()> {
        wait.add(&self.again, AGAIN, Readiness::Readable)
    }

    fn queue_ready(&mut self, _index: usize, queues: &mut [Virtqueue]) -> Result<(), DriverFault> {
        self.serve(&mut queues[0])
    }

    fn descriptor_ready(
        &mut self,
        _token: u32,
        queues: &mut [Virtqueue],
    ) -> Result<(), DriverFault> {
        self.again.clear();
        self.serve(&mut queues[0])
    }

    fn reset(&mut self) {
        self.again.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::driver_ring::{Bench, DATA, OUTSIDE};

    #[test]
    fn a_request_is_filled_up_to_the_limit() {
        let mut bench = Bench::new(Rng::new().unwrap(), 0);
        let small = bench.rings[0].offer(&[(DATA, 32, true), (DATA + 100, 32, true)]);
        let large = bench.rings[0].offer(&[(DATA + 4096, 0x8000, true)]);
        bench.kick(0).unwrap();

        assert_eq!(bench.rings[0].used(), [(small, 64), (large, 4096)]);
        let random = bench.read(DATA, 32);
        assert_ne!(random, [0; 32]);
        assert_ne!(random, bench.read(DATA + 100, 32));
        assert_eq!(bench.read(DATA + 32, 68), [0; 68]);
        assert_eq!(bench.read(DATA + 8192, 64), [0; 64]);
        assert_eq!(bench.queue_interrupts(), 1);
    }

    #[test]
    fn a_queue_longer_than_a_batch_is_served_in_several() {
        let mut bench = Bench::with_queue_size(Rng::new().unwrap(), 0, 256);
        for _ in 0..256 {
            bench.rings[0].offer(&[(DATA, 1, true)]);
        }
        bench.kick(0).unwrap();
        assert_eq!(bench.rings[0].used().len(), BATCH);
        bench.settle().unwrap();
        assert_eq!(bench.rings[0].used().len(), 256 - BATCH);
        assert!(!bench.poll().unwrap(), "woken for nothing");
    }

    #[test]
    fn requests_that_are_none_are_refused() {
        for buffers in [
            &[(DATA, 16, false)][..],
            &[(DATA, 0, true)],
            &[(OUTSIDE, 16, true)],
            &[(u64::MAX - 7, 16, true)],
            &[(DATA, u32::MAX, true)],
        ] {
            let mut bench = Bench::new(Rng::new().unwrap(), 0);
            bench.rings[0].offer(buffers);
            bench.kick(0).unwrap_err();
            assert_eq!(bench.rings[0].used(), []);
        }
    }

    #[test]
    fn a_new_driver_finds_a_working_device() {
        let mut bench = Bench::new(Rng::new().unwrap(), 0);
        bench.rings[0].offer(&[(OUTSIDE, 1, true)]);
        bench.kick(0).unwrap_err();
        let mut bench = bench.restart();
        let head = bench.rings[0].offer(&[(DATA, 8, true)]);
        bench.kick(0).unwrap();
        assert_eq!(bench.rings[0].used(), [(head, 8)]);
    }
}
