//! Guests, fixtures and behaviours for tests.
