//! The memory balloon (5.5), with free page reporting.
