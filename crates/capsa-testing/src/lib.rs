//! Guests, fixtures and behaviours for tests.

pub mod images;
