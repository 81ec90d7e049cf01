//! Checks a configuration against capabilities.
