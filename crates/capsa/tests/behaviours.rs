//! What every backend must do, run on every backend of this platform. Nothing is skipped: a
//! machine on which a backend does not work fails.

capsa_testing::behaviours!(vm_qemu, capsa::BackendChoice::Qemu);
