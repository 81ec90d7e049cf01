//! The devices. Each has the same shape: a constructor that takes what the host gives it, and
//! [`VirtioDevice`](crate::VirtioDevice).

pub mod balloon;
pub mod block;
pub mod console;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod driver_ring;
pub mod fs;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
pub mod net;
pub mod rng;
pub mod vsock;
