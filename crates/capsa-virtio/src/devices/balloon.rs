//! The memory balloon (5.5), with free page reporting: how a guest's memory goes back to the host.
//!
//! Two ways. The host sets a target, and the guest takes that much memory from its own use
//! ("inflates"). And with reporting the guest tells, all by itself, which memory it does not use at
//! present: so an idle guest shrinks without anybody asking.

use std::io::{self, Read};
use std::sync::Arc;

use vm_memory::GuestAddress;

use crate::config_space::ConfigSpace;
use crate::device::{DeviceType, DriverFault, VirtioDevice};
use crate::queue::{Chain, Memory, Virtqueue};
use crate::wait_set::{Readiness, WaitSet};
use crate::wake::Wake;

mod discard;

use discard::discard;

/// The unit of the device's numbers, whatever the guest's or the host's pages are (5.5.6).
pub const BALLOON_PAGE: u64 = 4096;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
// Statistics and hints, queues 2 and 3, are not offered. Then reporting is queue 4 by the
// specification, and the first after deflation, 2, by what Linux does: all three are taken for it.
const QUEUE_SIZES: [u16; 5] = [128; 5];

/// A guest short of memory takes pages out of the balloon by itself.
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// The driver tells what it fills free pages with.
const F_PAGE_POISON: u64 = 1 << 4;
const F_PAGE_REPORTING: u64 = 1 << 5;

// The configuration space (5.5.4): num_pages, actual, free_page_hint_cmd_id, poison_val.
const CONFIG_SIZE: usize = 16;
const NUM_PAGES: usize = 0;
const ACTUAL: usize = 4;
const POISON: usize = 12;

/// Most pages, or ranges, in one chain: each may cost a system call. Drivers send 256, some 1024.
const REQUEST_LIMIT: usize = 4096;

/// Most chains in one go, so that a reset need not wait for a driver that sends without end.
const BATCH: usize = 16;

const TARGET: u32 = 0;
const AGAIN: u32 = 1;

/// Gives the guest's unused memory back to the host.
#[derive(Debug)]
pub struct Balloon {
    config: Arc<ConfigSpace>,
    target_set: Wake,
    again: Wake,
    features: u64,
}

impl Balloon {
    /// An empty balloon, for guest memory that is anonymous or shared. Memory that maps a file
    /// privately would not come back as zeroes, so of that nothing is given back.
    ///
    /// # Errors
    ///
    /// The process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        // num_pages is the host's. The field between the driver's two belongs to no feature offered.
        let config = ConfigSpace::with_writable(&[0; CONFIG_SIZE], ACTUAL..CONFIG_SIZE);
        Ok(Self {
            config: Arc::new(config),
            target_set: Wake::new()?,
            again: Wake::new()?,
            features: 0,
        })
    }

    /// The host's side of the balloon.
    #[must_use]
    pub fn handle(&self) -> BalloonHandle {
        BalloonHandle {
            config: Arc::clone(&self.config),
            target_set: self.target_set.clone(),
        }
    }

    fn serve(&self, index: usize, queue: &mut Virtqueue) -> Result<(), DriverFault> {
        queue.disable_notification()?;
        for _ in 0..BATCH {
            match queue.pop()? {
                Some(chain) => {
                    let head = chain.head_index();
                    match index {
                        INFLATE => inflate(chain, queue.memory())?,
                        // The pages come back by themselves when the guest touches them.
                        DEFLATE => {}
                        _ => self.report(chain, queue.memory())?,
                    }
                    queue.push_used(head, 0)?;
                }
                None if queue.enable_notification()? => {}
                None => return queue.signal(),
            }
        }
        self.again.raise();
        queue.signal()
    }

    /// Ranges that the guest does not use at present (5.5.6.7).
    fn report(&self, chain: Chain, memory: &Memory) -> Result<(), DriverFault> {
        let poisoned = self.features & F_PAGE_POISON != 0 && field(&self.config, POISON) != 0;
        for (count, range) in chain.writable().enumerate() {
            let length = u64::from(range.len());
            if count == REQUEST_LIMIT {
                return Err(DriverFault::Chain("too many ranges in a report"));
            }
            if !(range.addr().0 | length).is_multiple_of(BALLOON_PAGE) {
                return Err(DriverFault::Chain("a reported range is not made of pages"));
            }
            // A driver that checks its poison would not find it in zeroes.
            if !poisoned {
                discard(memory, range.addr(), range.len() as usize)?;
            }
        }
        Ok(())
    }
}

/// Discards the pages whose numbers are in the chain, in as few pieces as there are.
fn inflate(chain: Chain, memory: &Memory) -> Result<(), DriverFault> {
    let mut reader = chain.reader(memory)?;
    let length = reader.available_bytes();
    if length > 4 * REQUEST_LIMIT || !length.is_multiple_of(4) {
        return Err(DriverFault::Chain("not a list of page numbers"));
    }
    let mut bytes = vec![0; length];
    reader
        .read_exact(&mut bytes)
        .map_err(|_| DriverFault::Chain("page numbers lie outside of memory"))?;
    let (numbers, _) = bytes.as_chunks();
    let mut pages: Vec<u64> = numbers
        .iter()
        .map(|number| u32::from_le_bytes(*number).into())
        .collect();
    // Linux sends them as it finds them, often downwards; and a larger page of the host goes only
    // as a whole.
    pages.sort_unstable();
    pages.dedup();
    for run in pages.chunk_by(|page, next| page + 1 == *next) {
        let length = run.len() as u64 * BALLOON_PAGE;
        let start = GuestAddress(run[0] * BALLOON_PAGE);
        discard(memory, start, usize::try_from(length).unwrap_or(usize::MAX))?;
    }
    Ok(())
}

fn field(config: &ConfigSpace, offset: usize) -> u32 {
    let mut bytes = [0; 4];
    config.read(offset, &mut bytes);
    u32::from_le_bytes(bytes)
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> DeviceType {
        DeviceType::Balloon
    }

    fn features(&self) -> u64 {
        F_DEFLATE_ON_OOM | F_PAGE_POISON | F_PAGE_REPORTING
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> &Arc<ConfigSpace> {
        &self.config
    }

    fn activate(&mut self, features: u64, wait: &Arc<WaitSet>) -> io::Result<()> {
        self.features = features;
        wait.add(&self.target_set, TARGET, Readiness::Readable)?;
        wait.add(&self.again, AGAIN, Readiness::Readable)
    }

    fn queue_ready(&mut self, index: usize, queues: &mut [Virtqueue]) -> Result<(), DriverFault> {
        self.serve(index, &mut queues[index])
    }

    fn descriptor_ready(
        &mut self,
        token: u32,
        queues: &mut [Virtqueue],
    ) -> Result<(), DriverFault> {
        if token == TARGET {
            self.target_set.clear();
            queues[INFLATE].signal_config();
            return Ok(());
        }
        self.again.clear();
        for (index, queue) in queues.iter_mut().enumerate() {
            self.serve(index, queue)?;
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.again.clear();
        // The next driver has taken nothing yet, and says itself what its poison is. The target
        // stays.
        self.config.update(ACTUAL, &[0; 4]);
        self.config.update(POISON, &[0; 4]);
        self.features = 0;
    }
}

/// The host's side of a [`Balloon`]. For any thread; outlives the device harmlessly.
#[derive(Debug, Clone)]
pub struct BalloonHandle {
    config: Arc<ConfigSpace>,
    target_set: Wake,
}

impl BalloonHandle {
    /// Asks the guest to have this many pages of [`BALLOON_PAGE`] bytes in the balloon, more or
    /// fewer than at present; 0 for none. The guest follows when it has a driver, as far and as
    /// fast as it can. A guest that runs out of memory takes pages back by itself.
    pub fn set_target(&self, pages: u32) {
        self.config.update(NUM_PAGES, &pages.to_le_bytes());
        self.target_set.raise();
    }

    /// How many pages the guest should have in the balloon.
    #[must_use]
    pub fn target(&self) -> u32 {
        field(&self.config, NUM_PAGES)
    }

    /// How many pages the guest says to have in the balloon. Its word, which nothing proves.
    #[must_use]
    pub fn actual(&self) -> u32 {
        field(&self.config, ACTUAL)
    }
}

#[cfg(test)]
mod tests;
