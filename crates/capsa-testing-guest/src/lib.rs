//! What the host's and the guest's side of a test have in common.

pub mod exchange;
pub mod load;
