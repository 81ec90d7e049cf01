//! The thread on which a running device works: it waits for the queues' notifications and for the
//! device's own descriptors.
