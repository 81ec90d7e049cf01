//! Guests, fixtures and behaviours for tests.
//!
//! A behaviour is written once, as a function over a [`capsa::BackendChoice`], and runs on every
//! backend that claims it: see [`mod@behaviours`]. Nothing here skips: a backend that cannot run a
//! behaviour fails it.

pub mod behaviours;
pub mod cold_start;
pub mod footprint;
pub mod guest;
pub mod images;
pub mod processes;
pub mod sequences;
pub mod servers;
pub mod tables;
