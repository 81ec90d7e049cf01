//! The entropy source (5.4).
