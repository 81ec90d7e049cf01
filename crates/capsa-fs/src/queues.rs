//! The virtqueues of a virtio-fs device, served on behalf of the monitor (vhost-user).
//!
//! Each chain of descriptors is one FUSE request and the room for its reply. A chain that is longer than
//! any request of Linux is not looked at, so that no request costs more memory than that.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use fuse_backend_rs::api::server::{MAX_BUFFER_SIZE, Server};
use fuse_backend_rs::transport::{Reader, VirtioFsWriter, Writer};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VringMutex, VringState, VringT};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryLoadGuard, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use crate::folder::SharedFolder;

/// The queue of requests that must not wait, which Linux uses to forget nodes, and that of all others
/// (virtio 1.2, 5.11.2).
pub const QUEUES: usize = 2;

/// Descriptors of a queue, at most: what QEMU's device can offer.
pub const MAX_QUEUE_SIZE: u16 = 1024;

/// Bytes of the content of one read or write.
pub(crate) const MAX_MESSAGE: usize = MAX_BUFFER_SIZE as usize;

/// Bytes that the driver's half of a chain, or the device's, may have: content, a page for what is
/// before it, and one for content that does not begin at the start of a page.
const MAX_CHAIN: u64 = MAX_BUFFER_SIZE as u64 + 2 * 4096;

/// Most requests in one go, after which the monitor may have its turn with the queue.
const BATCH: usize = 64;

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
type Chain = DescriptorChain<GuestMemoryLoadGuard<GuestMemoryMmap>>;

/// The queues of one device, and the folder behind it.
pub struct Queues {
    server: Server<SharedFolder>,
    memory: Memory,
    /// Whether requests may be served.
    open: Mutex<bool>,
    opened: Condvar,
}

impl Queues {
    /// The queues through which `folder` is served, in `memory`, which is the guest's as soon as the
    /// monitor has sent it. They wait until they are [opened](Self::open).
    #[must_use]
    pub fn new(folder: SharedFolder, memory: Memory) -> Arc<Self> {
        Arc::new(Self {
            server: Server::new(folder),
            memory,
            open: Mutex::new(false),
            opened: Condvar::new(),
        })
    }

    /// Lets requests be served: the process is confined in all of its threads.
    pub fn open(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.opened.notify_all();
    }

    fn wait_until_open(&self) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.opened.wait_while(open, |open| !*open));
    }

    /// Serves what is in the queue. The lock on it is held while a request is served, so that the
    /// monitor's request to stop is answered when nothing touches the guest's memory any more.
    fn serve(&self, vring: &VringMutex<Memory>) -> io::Result<()> {
        let mut promised = false;
        loop {
            let mut queue = vring.get_mut();
            // Stopped since the last batch: its rings are the driver's again.
            if !queue.get_queue().ready() {
                return Ok(());
            }
            queue.disable_notification().map_err(io::Error::other)?;
            let mut served = 0;
            while served < BATCH && self.serve_one(&mut queue)? {
                served += 1;
            }
            if promised && served == 0 {
                return Err(io::Error::other("what is next in its ring cannot be read"));
            }
            promised = queue.enable_notification().map_err(io::Error::other)?;
            if !promised {
                return Ok(());
            }
            drop(queue);
            std::thread::yield_now();
        }
    }

    /// Serves the next request, if there is one.
    fn serve_one(&self, queue: &mut VringState<Memory>) -> io::Result<bool> {
        let memory = self.memory.memory();
        // Not `pop_descriptor_chain`, for which a broken ring is an empty one.
        let chains = queue.get_queue_mut().iter(memory.clone());
        let Some(chain) = chains.map_err(io::Error::other)?.next() else {
            return Ok(false);
        };
        let head = chain.head_index();
        let written = self.answer(&memory, chain);
        queue.add_used(head, written).map_err(io::Error::other)?;
        if queue.needs_notification().map_err(io::Error::other)? {
            queue.signal_used_queue()?;
        }
        Ok(true)
    }

    /// Answers one request and returns how many bytes of the reply there are: none for one that wants
    /// no reply, and for what is not a request.
    pub(crate) fn answer(&self, memory: &GuestMemoryMmap, chain: Chain) -> u32 {
        let bytes = |length: u64, part: u32| length + u64::from(part);
        let asked = chain.clone().readable().map(|part| part.len());
        let room = chain.clone().writable().map(|part| part.len());
        if asked.fold(0, bytes) > MAX_CHAIN || room.fold(0, bytes) > MAX_CHAIN {
            return 0;
        }
        let request = Reader::from_descriptor_chain(memory, chain.clone());
        let reply = VirtioFsWriter::new(memory, chain);
        let (Ok(request), Ok(reply)) = (request, reply) else {
            return 0;
        };
        let reply = Writer::VirtioFs(reply);
        let written = self.server.handle_message(request, reply, None, None);
        u32::try_from(written.unwrap_or(0)).unwrap_or(0)
    }
}

impl VhostUserBackend for Queues {
    type Bitmap = ();
    type Vring = VringMutex<Memory>;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE.into()
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK
    }

    /// The queues know it.
    fn set_event_idx(&self, _enabled: bool) {}

    /// It is the one that [`Queues::new`] got.
    fn update_memory(&self, _memory: Memory) -> io::Result<()> {
        Ok(())
    }

    fn handle_event(
        &self,
        queue: u16,
        _events: EventSet,
        queues: &[Self::Vring],
        _thread: usize,
    ) -> io::Result<()> {
        self.wait_until_open();
        match queues.get(usize::from(queue)) {
            // A ring that its driver broke is its driver's loss: the thread goes on.
            Some(queue) => self.serve(queue).or_else(|error| {
                eprintln!("a virtqueue cannot be served: {error}");
                Ok(())
            }),
            None => Ok(()),
        }
    }
}
