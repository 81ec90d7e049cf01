//! Rings that a driver breaks, or takes back.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{InHeader, Opcode, ROOT_ID};
use rustix::fs::{CWD, Mode, OFlags, openat};
use vhost_user_backend::{VhostUserBackend, VringMutex, VringT};
use vm_memory::{
    ByteValued, Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap,
};
use vmm_sys_util::epoll::EventSet;

use super::guest::settings;
use crate::folder::{Shared, SharedFolder};
use crate::queues::Queues;

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

const SIZE: u16 = 1024;
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x8000;
const USED: u64 = 0x9000;
const REQUEST: u64 = 0xc000;
const MEMORY: u64 = 0x1_0000;

/// Bytes of a used ring with its index of events.
const USED_BYTES: usize = 4 + 8 * SIZE as usize + 2;

/// Far longer than serving takes, whatever else the machine does.
const HANGS: Duration = Duration::from_secs(60);

/// A queue, and what serves it.
struct Device {
    queues: Arc<Queues>,
    memory: Memory,
    vring: VringMutex<Memory>,
}

impl Device {
    fn new() -> Self {
        let open = |path: &str| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            openat(CWD, path, flags, Mode::empty()).unwrap()
        };
        let folder = SharedFolder::new(
            Shared::Folder(open("/usr")),
            open("/proc/self/fd"),
            settings(),
        )
        .unwrap();
        let ranges = [(GuestAddress(0), usize::try_from(MEMORY).unwrap())];
        let memory = Memory::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
        let vring = VringMutex::new(memory.clone(), SIZE).unwrap();
        vring.set_queue_size(SIZE);
        vring.set_queue_info(DESCRIPTORS, AVAILABLE, USED).unwrap();
        vring.set_queue_ready(true);
        let queues = Queues::new(folder, memory.clone());
        queues.open();
        Self {
            queues,
            memory,
            vring,
        }
    }

    fn write<T: ByteValued>(&self, value: T, at: u64) {
        let memory = self.memory.memory();
        memory.write_obj(value, GuestAddress(at)).unwrap();
    }

    /// Offers as many requests as the ring holds: each the same one, without room for a reply.
    fn fill(&self) {
        let header = InHeader {
            len: u32::try_from(size_of::<InHeader>()).unwrap(),
            opcode: Opcode::Getattr as u32,
            nodeid: ROOT_ID,
            ..InHeader::default()
        };
        self.memory
            .memory()
            .write_slice(header.as_slice(), GuestAddress(REQUEST))
            .unwrap();
        for index in 0..SIZE {
            let at = DESCRIPTORS + 16 * u64::from(index);
            self.write(REQUEST, at);
            self.write(header.len, at + 8);
            self.write(index, AVAILABLE + 4 + 2 * u64::from(index));
        }
        self.write(SIZE, AVAILABLE + 2);
    }

    /// A kick. What is returned hears of the end of its service.
    fn kick(&self) -> mpsc::Receiver<()> {
        let (ended, end) = mpsc::channel();
        let (queues, vring) = (Arc::clone(&self.queues), self.vring.clone());
        thread::spawn(move || {
            queues
                .handle_event(1, EventSet::IN, &[vring.clone(), vring], 0)
                .unwrap();
            ended.send(()).unwrap();
        });
        end
    }
}

#[test]
fn an_index_that_runs_ahead_of_its_ring_ends_the_service() {
    let device = Device::new();
    device.write(SIZE + 1, AVAILABLE + 2);
    device.kick().recv_timeout(HANGS).unwrap();
    // The ring can be mended: nothing was taken from it.
    device.fill();
    device.kick().recv_timeout(HANGS).unwrap();
    let used: u16 = {
        let memory = device.memory.memory();
        memory.read_obj(GuestAddress(USED + 2)).unwrap()
    };
    assert_eq!(used, SIZE);
}

#[test]
fn a_ring_that_leaves_memory_ends_the_service() {
    let device = Device::new();
    // Its index is the last two bytes, and its entries are beyond.
    let available = MEMORY - 4;
    device
        .vring
        .set_queue_info(DESCRIPTORS, available, USED)
        .unwrap();
    device.write(1u16, available + 2);
    device.kick().recv_timeout(HANGS).unwrap();
}

#[test]
fn a_ring_that_was_given_back_is_not_touched() {
    const DRIVERS: u8 = 0xaa;
    let device = Device::new();
    device.fill();
    let end = device.kick();
    // As the monitor does it, which then says that the rings are the driver's.
    device.vring.set_queue_ready(false);
    let memory = device.memory.memory();
    memory
        .write_slice(&[DRIVERS; USED_BYTES], GuestAddress(USED))
        .unwrap();
    end.recv_timeout(HANGS).unwrap();
    device.kick().recv_timeout(HANGS).unwrap();
    let mut found = [0; USED_BYTES];
    memory.read_slice(&mut found, GuestAddress(USED)).unwrap();
    assert!(found.iter().all(|byte| *byte == DRIVERS));
}
