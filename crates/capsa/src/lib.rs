//! Runs virtual machines for isolated work.

pub mod console;
pub mod inspect;
pub mod kit;

pub use capsa_core::error::{Error, Result};
