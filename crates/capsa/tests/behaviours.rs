//! What every backend must do, run on every backend of this platform. Nothing is skipped: a
//! machine on which a backend does not work fails.

capsa_testing::behaviours!(
    vm_qemu,
    capsa::BackendChoice::Qemu,
    most_cpus,
    network,
    shares,
    shares_9p,
    uefi,
    monitor_process
);

// QEMU on KVM. Not run by `cargo nextest run`, as few machines have a KVM that runs stock kernels:
// `cargo xtask test` sees to one.
//
// Not 9p, which is the same on either accelerator. Not UEFI: firmware writes CR8 while an interrupt is pending, at which the QEMU that emulates SVM
// for these tests fails an assertion of its own. It boots above, on KVM too where that is at hand.
capsa_testing::behaviours!(
    vm_qemu_kvm,
    capsa::BackendChoice::Qemu,
    network,
    shares,
    shares_9p_elsewhere,
    uefi_elsewhere,
    monitor_process
);
capsa_testing::behaviours!(
    vm_kvm,
    capsa::BackendChoice::Kvm,
    network,
    shares,
    vsock,
    machine,
    sequences
);

mod vm_kvm_is_there {
    use capsa::Accelerator;

    /// Otherwise the tests above would pass and prove nothing about KVM.
    #[test]
    fn every_backend_uses_it() {
        for status in capsa::backends() {
            let info = status.info.expect("the backend works");
            assert_eq!(info.accelerator, Accelerator::Kvm, "{info}");
        }
    }
}
