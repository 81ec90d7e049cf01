//! The machine monitor.
//!
//! ```text
//! backend   the backend traits: starts the machine's thread, talks to it by messages
//! boot      how a machine is made, one recipe
//! loader    what it boots, and what can be wrong with that
//! machine   the thread that owns a machine
//! vcpu      the threads that run the guest, held and stopped at the gate
//! board     what answers when the guest accesses a port or an address without memory:
//!           serial, pci, the power button; devices are capsa-virtio's
//! irq       GSIs, irqfds
//! arch      what differs between processor architectures
//! ```

mod arch;
mod backend;
mod board;
mod boot;
mod gate;
mod irq;
mod loader;
mod machine;
mod memory;
mod message;
mod pci;
mod serial;
mod typing;
mod vcpu;

pub use backend::KvmBackend;
