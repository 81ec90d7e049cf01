//! The console (5.3): one port.
