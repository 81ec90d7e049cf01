use std::fs::File;
use std::io::Result as IoResult;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use vhost::vhost_user::Listener;
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon, VringMutex, VringT};
use virtio_queue::QueueT;
use vm_memory::{Bytes, FileOffset, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use super::*;
use crate::devices::driver_ring::{Bench, DATA, OUTSIDE, UPPER};

const VERSION_1: u64 = 1 << 32;
const EVENT_IDX: u64 = 1 << 29;

type ServersMemory = GuestMemoryAtomic<GuestMemoryMmap>;

/// A server that answers every chain with the letters of its first buffer, in capitals.
#[derive(Clone)]
struct Shouting {
    memory: ServersMemory,
    /// How long it takes to be told of a driver.
    stalls: Duration,
}

impl VhostUserBackend for Shouting {
    type Bitmap = ();
    type Vring = VringMutex<ServersMemory>;

    fn num_queues(&self) -> usize {
        QUEUE_SIZES.len()
    }

    fn max_queue_size(&self) -> usize {
        1024
    }

    fn features(&self) -> u64 {
        VERSION_1 | EVENT_IDX | 1 << 28 | PROTOCOL
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&self, _enabled: bool) {
        thread::sleep(self.stalls);
    }

    fn update_memory(&self, _memory: ServersMemory) -> IoResult<()> {
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    fn handle_event(
        &self,
        queue: u16,
        _events: EventSet,
        queues: &[Self::Vring],
        _thread: usize,
    ) -> IoResult<()> {
        let mut queue = queues[usize::from(queue)].get_mut();
        let memory = self.memory.memory();
        while let Some(chain) = queue.get_queue_mut().pop_descriptor_chain(memory.clone()) {
            let head = chain.head_index();
            let buffers: Vec<_> = chain.collect();
            let mut letters = vec![0; buffers[0].len() as usize];
            memory.read_slice(&mut letters, buffers[0].addr()).unwrap();
            letters.make_ascii_uppercase();
            memory.write_slice(&letters, buffers[1].addr()).unwrap();
            queue.add_used(head, buffers[0].len()).unwrap();
            queue.signal_used_queue().unwrap();
        }
        Ok(())
    }
}

/// A connection to a running server, and its thread, which ends with the connection.
fn server() -> (OwnedFd, JoinHandle<()>) {
    server_that_stalls(Duration::ZERO)
}

/// The same, of a server that takes a time to be told of a driver.
fn server_that_stalls(stalls: Duration) -> (OwnedFd, JoinHandle<()>) {
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().join("socket");
    let listener = UnixListener::bind(&name).unwrap();
    let connection = UnixStream::connect(&name).unwrap();
    let thread = thread::spawn(move || {
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let backend = Shouting {
            memory: memory.clone(),
            stalls,
        };
        let backend = std::sync::Arc::new(backend);
        let mut daemon = VhostUserDaemon::new("server".into(), backend, memory).unwrap();
        daemon.start(&mut Listener::from(listener)).unwrap();
        let _ = daemon.wait();
    });
    (connection.into(), thread)
}

/// Memory in two regions of a file.
fn memory() -> Memory {
    let file = File::from(memfd_create(c"test", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(2 * OUTSIDE).unwrap();
    let file = Arc::new(file);
    let length = usize::try_from(OUTSIDE).unwrap();
    let regions = [(0, 0), (UPPER, OUTSIDE)].map(|(address, offset)| {
        let place = FileOffset::from_arc(Arc::clone(&file), offset);
        (GuestAddress(address), length, Some(place))
    });
    Arc::new(GuestMemoryMmap::from_ranges_with_files(regions).unwrap())
}

fn bench(device: Fs) -> Bench<Fs> {
    Bench::with_memory(device, VERSION_1 | EVENT_IDX, 128, memory())
}

/// Offers a request and waits for its answer.
fn ask(bench: &mut Bench<Fs>, queue: usize, question: &[u8], at: u64) -> Vec<u8> {
    let length = u32::try_from(question.len()).unwrap();
    bench.write(at, question);
    let head = bench.rings[queue].offer(&[(at, length, false), (at + 4096, length, true)]);
    bench.kick(queue).unwrap();
    let interrupts = bench.queue_interrupts();
    let mut called = [PollFd::new(&bench.device.calls[queue], PollFlags::IN)];
    assert_eq!(poll(&mut called, None), Ok(1));
    bench.settle().unwrap();
    assert_eq!(bench.queue_interrupts(), interrupts + 1);
    assert_eq!(bench.rings[queue].used(), [(head, length)]);
    bench.read(at + 4096, question.len())
}

#[test]
fn the_server_works_in_the_drivers_queues_and_memory() {
    let (connection, server) = server();
    let mut bench = bench(Fs::new("tag", connection).unwrap());
    for queue in [1, 0, 1] {
        assert_eq!(ask(&mut bench, queue, b"question", DATA), b"QUESTION");
        assert_eq!(ask(&mut bench, queue, b"above", UPPER), b"ABOVE");
    }
    drop(bench);
    server.join().unwrap();
}

#[test]
fn a_reset_takes_the_queues_back_and_the_next_driver_begins_anew() {
    let (connection, server) = server();
    let mut first = bench(Fs::new("tag", connection).unwrap());
    for _ in 0..3 {
        ask(&mut first, 1, b"question", DATA);
    }
    let Bench {
        mut device,
        mut rings,
        memory,
        ..
    } = first;
    device.reset();
    // What the former driver's ring says after that is nobody's business.
    memory.write_slice(b"late", GuestAddress(DATA)).unwrap();
    rings[1].offer(&[(DATA, 4, false), (DATA + 4096, 4, true)]);
    let mut second = bench(device);
    assert_eq!(ask(&mut second, 1, b"second", DATA), b"SECOND");
    assert_eq!(rings[1].used(), []);
    drop(second);
    server.join().unwrap();
}

#[test]
fn the_tag_is_what_the_guest_mounts() {
    let connection = || OwnedFd::from(UnixStream::pair().unwrap().0);
    let device = Fs::new("capsa0", connection()).unwrap();
    let mut config = [0xff; TAG_BYTES + 4];
    device.config().read(0, &mut config);
    assert_eq!(&config[..7], b"capsa0\0");
    assert_eq!(config[TAG_BYTES..], [1, 0, 0, 0]);
    Fs::new("", connection()).unwrap_err();
    Fs::new(&"x".repeat(37), connection()).unwrap_err();
    Fs::new(&"x".repeat(36), connection()).unwrap();
}

#[test]
fn a_server_that_is_gone_breaks_the_device_and_not_the_machine() {
    let (connection, gone) = UnixStream::pair().unwrap();
    let mut bench = bench(Fs::new("tag", connection.into()).unwrap());
    drop(gone);
    assert!(matches!(bench.kick(1), Err(DriverFault::Server(_))));
    bench.device.reset();
}

/// On a machine with much to do, a server may not run for seconds.
#[test]
fn a_server_that_takes_its_time_is_waited_for() {
    let (connection, server) = server_that_stalls(Duration::from_secs(3));
    let mut bench = bench(Fs::new("tag", connection).unwrap());
    assert_eq!(ask(&mut bench, 1, b"question", DATA), b"QUESTION");
    drop(bench);
    server.join().unwrap();
}

#[test]
fn a_server_that_does_not_answer_is_waited_for_only_so_long() {
    const LIMIT: Duration = Duration::from_millis(100);
    let (connection, _silent) = UnixStream::pair().unwrap();
    let mut bench = bench(Fs::new("tag", connection.into()).unwrap());
    bench.device.limit = LIMIT;
    let (done, finished) = mpsc::channel();
    thread::spawn(move || {
        let fault = bench.kick(1);
        bench.device.reset();
        done.send(matches!(fault, Err(DriverFault::Server(_))))
            .unwrap();
    });
    assert!(finished.recv_timeout(100 * LIMIT).unwrap());
}

#[test]
fn memory_that_no_server_can_map_is_refused() {
    let (connection, server) = server();
    let mut bench = Bench::new(Fs::new("tag", connection).unwrap(), VERSION_1);
    assert!(matches!(bench.kick(1), Err(DriverFault::Server(_))));
    drop(bench);
    server.join().unwrap();
}
