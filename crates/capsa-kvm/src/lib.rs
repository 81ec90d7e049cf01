//! Capsa's own use of /dev/kvm.
