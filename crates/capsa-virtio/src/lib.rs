//! The host side of virtio: what a guest's driver talks to.
//!
//! ```text
//! guest's driver ── configuration, BAR ──▶ pci          register machine, MSI-X      vCPU threads
//!                                           │ starts, stops
//!                                           ▼
//!                ── virtqueues in RAM ──▶ worker         one thread per running device
//!                                           │ queue_ready, descriptor_ready
//!                                           ▼
//!                                         devices::*     blk, console, net, vsock, fs, rng, balloon
//! ```
//!
//! Never mentions KVM: a queue's notification is an eventfd, an interrupt is the trait
//! [`Interrupt`]. All of it runs without a hypervisor, which is how the tests attack it: by a driver
//! of their own that writes raw registers, rings and descriptors.
//!
//! Section numbers are those of the "Virtual I/O Device (VIRTIO) Version 1.2" specification.

pub mod config_space;
pub mod device;
pub mod devices;
#[cfg(any(test, feature = "test-utils"))]
pub mod echo;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
pub mod interrupt;
mod notification;
pub mod pci;
pub mod queue;
#[cfg(any(test, feature = "test-utils"))]
pub mod raw_driver;
#[cfg(any(test, feature = "fuzzing"))]
mod script;
pub mod thread;
pub mod wait_set;
pub mod wake;
pub mod watch;
mod worker;

pub use config_space::ConfigSpace;
pub use device::{DeviceType, DriverFault, VirtioDevice};
pub use interrupt::Interrupt;
pub use queue::{Chain, Memory, Virtqueue};
pub use wait_set::{Readiness, WaitSet};
pub use wake::Wake;
pub use watch::Watch;
