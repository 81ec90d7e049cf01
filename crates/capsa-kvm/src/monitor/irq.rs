//! Interrupts: which GSI goes where, and the eventfds that raise them (irqfds).

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use capsa_virtio::pci::{MsiMessage, MsiVectors};
use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_msi,
    kvm_irq_routing_msi__bindgen_ty_1,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::monitor::arch;

/// The machine's GSIs: those of the interrupt controller's pins, which are fixed, and those that
/// devices send messages by, which drivers program.
pub(crate) struct GsiRoutes {
    vm: Arc<VmFd>,
    state: Mutex<State>,
}

struct State {
    next: u32,
    messages: BTreeMap<u32, Sent>,
}

/// A message, and the PCI function that signs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sent {
    message: MsiMessage,
    requester: u32,
}

impl GsiRoutes {
    /// The routes of a machine whose interrupt controller exists.
    pub(crate) fn new(vm: Arc<VmFd>) -> Self {
        Self {
            vm,
            state: Mutex::new(State {
                next: arch::layout::FIRST_MSI_GSI,
                messages: BTreeMap::new(),
            }),
        }
    }

    /// An eventfd that pulses a pin of the interrupt controller.
    ///
    /// # Errors
    ///
    /// The process has no descriptor left, or KVM refuses.
    pub(crate) fn line(&self, gsi: u32) -> io::Result<EventFd> {
        let event = EventFd::new(libc::EFD_CLOEXEC | EFD_NONBLOCK)?;
        self.vm.register_irqfd(&event, gsi)?;
        Ok(event)
    }

    /// The vectors of one device, which signs its messages as `requester`.
    ///
    /// # Errors
    ///
    /// The process has no descriptor left, or KVM refuses.
    pub(crate) fn vectors(
        self: &Arc<Self>,
        count: u16,
        requester: u32,
    ) -> io::Result<Arc<Vectors>> {
        let first = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let first = state.next;
            state.next += u32::from(count);
            first
        };
        let events: io::Result<Vec<EventFd>> = (first..first + u32::from(count))
            .map(|gsi| self.line(gsi))
            .collect();
        Ok(Arc::new(Vectors {
            first,
            requester,
            events: events?,
            routes: Arc::clone(self),
        }))
    }

    /// Sends `gsi` as `message` from now on; `None`: nowhere.
    fn program(&self, gsi: u32, message: Option<Sent>) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match message {
            Some(message) => state.messages.insert(gsi, message),
            None => state.messages.remove(&gsi),
        };
        if before == message {
            return Ok(());
        }
        let set = self.set_table(&state.messages);
        if set.is_err() {
            // Whoever asks for the same again is not to be told that it is so already.
            match before {
                Some(before) => state.messages.insert(gsi, before),
                None => state.messages.remove(&gsi),
            };
        }
        set
    }

    /// Makes these the routes of messages. Called under the lock: two tables in the wrong order would
    /// undo one of the changes.
    fn set_table(&self, messages: &BTreeMap<u32, Sent>) -> io::Result<()> {
        let mut entries = arch::pin_routes();
        entries.extend(messages.iter().map(|(gsi, sent)| msi_entry(*gsi, *sent)));
        let routing = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(self.vm.set_gsi_routing(&routing)?)
    }
}

fn msi_entry(gsi: u32, Sent { message, requester }: Sent) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        flags: arch::MSI_ROUTE_FLAGS,
        ..Default::default()
    };
    let [low, high] = [message.address, message.address >> 32]
        .map(|half| u32::try_from(half & u64::from(u32::MAX)).unwrap_or_default());
    entry.u.msi = kvm_irq_routing_msi {
        address_lo: low,
        address_hi: high,
        data: message.data,
        __bindgen_anon_1: kvm_irq_routing_msi__bindgen_ty_1 { devid: requester },
    };
    entry
}

/// The MSI-X vectors of one device: an irqfd and a GSI each.
pub(crate) struct Vectors {
    first: u32,
    requester: u32,
    events: Vec<EventFd>,
    routes: Arc<GsiRoutes>,
}

impl MsiVectors for Vectors {
    fn program(&self, vector: u16, message: Option<MsiMessage>) {
        if usize::from(vector) >= self.events.len() {
            return;
        }
        let requester = self.requester;
        let sent = message.map(|message| Sent { message, requester });
        if let Err(error) = self.routes.program(self.first + u32::from(vector), sent) {
            tracing::warn!(target: "capsa::kvm", %error, vector, "KVM refused an interrupt's route");
        }
    }

    fn trigger(&self, vector: u16) {
        if let Some(event) = self.events.get(usize::from(vector)) {
            // Refused only when the counter is full, and then the interrupt is pending.
            let _ = event.write(1);
        }
    }
}
