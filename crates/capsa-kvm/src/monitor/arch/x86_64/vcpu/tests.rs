//! Small guests that start as a kernel does, on the machine's own /dev/kvm.

use kvm_ioctls::VcpuExit;

use super::super::load::fixtures::{boot, file, kernel, pvh_kernel};
use super::super::{create_vcpus, describe_vcpu, load};
use super::*;
use crate::monitor::loader::Hardware;
use crate::monitor::memory;

/// A machine that has been loaded, before its first instruction.
struct Machine {
    memory: capsa_virtio::Memory,
    vcpus: Vec<VcpuFd>,
    _vm: kvm_ioctls::VmFd,
}

fn machine(image: &[u8], vcpus: u8) -> Machine {
    let kvm = Kvm::new().unwrap();
    let vm = kvm.create_vm().unwrap();
    let memory = memory::map(&vm, 128 << 20, memory::Users::Nobody).unwrap();
    let entry = load(&memory, &boot(file(image)), &Hardware { vcpus }).unwrap();
    let made = create_vcpus(&vm, vcpus).unwrap();
    for (index, vcpu) in (0..).zip(&made) {
        configure_vcpu(&kvm, vcpu, index, vcpus, &entry).unwrap();
    }
    Machine {
        vcpus: made,
        memory,
        _vm: vm,
    }
}

/// What the first vCPU writes to port 0xe9, four bytes each.
fn outputs<const N: usize>(machine: &mut Machine) -> [u32; N] {
    [(); N].map(|()| match machine.vcpus[0].run().unwrap() {
        VcpuExit::IoOut(0xe9, data) => u32::from_le_bytes(data.try_into().unwrap()),
        exit => panic!("{exit:?}"),
    })
}

#[test]
fn a_kernel_starts_in_64_bit_mode_and_finds_its_boot_parameters() {
    // mov eax, [rsi + 0x202]; out 0xe9, eax     the header's magic
    // push rax; pop rbx; mov eax, ebx; out 0xe9, eax
    // mov rax, 0x123456789; shr rax, 4; out 0xe9, eax     64-bit operands
    // mov eax, [0x7ffff00]; out 0xe9, eax       the end of the memory is mapped
    // hlt
    let code = [
        &[0x8b, 0x86, 0x02, 0x02, 0, 0, 0xe7, 0xe9][..],
        &[0x50, 0x5b, 0x89, 0xd8, 0xe7, 0xe9],
        &[0x48, 0xb8, 0x89, 0x67, 0x45, 0x23, 0x01, 0, 0, 0],
        &[0x48, 0xc1, 0xe8, 0x04, 0xe7, 0xe9],
        &[0x8b, 0x04, 0x25, 0x00, 0xff, 0xff, 0x07, 0xe7, 0xe9],
        &[0xf4],
    ];
    let mut machine = machine(&kernel(&code.concat()), 1);
    let magic = u32::from_le_bytes(*b"HdrS");
    assert_eq!(outputs(&mut machine), [magic, magic, 0x1234_5678, 0]);
}

#[test]
fn a_kernel_starts_by_pvh_and_finds_its_start_info() {
    // mov eax, [ebx]; out 0xe9, eax             the start info's magic
    // mov eax, cr0; out 0xe9, eax; hlt
    let code = [0x8b, 0x03, 0xe7, 0xe9, 0x0f, 0x20, 0xc0, 0xe7, 0xe9, 0xf4];
    let mut machine = machine(&pvh_kernel(&code), 1);
    assert_eq!(outputs(&mut machine), [0x336e_c578, 0x11]);
}

#[test]
fn every_vcpu_has_its_own_apic_id() {
    let machine = machine(&kernel(&[0xf4]), 4);
    for (index, vcpu) in (0..).zip(&machine.vcpus) {
        let leaves = vcpu
            .get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .unwrap();
        let features = leaves
            .as_slice()
            .iter()
            .find(|leaf| leaf.function == 1)
            .unwrap();
        assert_eq!(features.ebx >> 24, index);
        // The other vCPUs wait to be started.
        let waiting = vcpu.get_mp_state().unwrap().mp_state;
        let expected = match index {
            0 => kvm_bindings::KVM_MP_STATE_RUNNABLE,
            _ => kvm_bindings::KVM_MP_STATE_UNINITIALIZED,
        };
        assert_eq!(waiting, expected, "vCPU {index}");
    }
}

/// What is not set here, because KVM resets it so.
#[test]
fn kvm_resets_the_fpu_and_the_local_apic_as_they_have_to_be() {
    let machine = machine(&kernel(&[0xf4]), 1);
    let fpu = machine.vcpus[0].get_fpu().unwrap();
    assert_eq!(fpu.fcw, 0x37f);
    let apic = machine.vcpus[0].get_sregs().unwrap().apic_base;
    assert_eq!(
        apic,
        u64::from(layout::LAPIC) | 1 << 11 | 1 << 8,
        "enabled, of the first processor"
    );
}

#[test]
fn a_report_has_the_registers_and_the_code() {
    // mov ebx, 0x1234; out 0xe9, eax; ud2
    let code = [0xbb, 0x34, 0x12, 0, 0, 0xe7, 0xe9, 0x0f, 0x0b];
    let mut machine = machine(&kernel(&code), 1);
    let [_] = outputs(&mut machine);
    let report = describe_vcpu(&machine.vcpus[0], &machine.memory).to_string();
    assert!(report.contains("rbx 0000000000001234"), "{report}");
    assert!(report.contains("cs 0010 base 0000000000000000"), "{report}");
    assert!(report.contains("64 bit"), "{report}");
    let code = report.lines().last().unwrap();
    assert!(code.contains("0f 0b 00"), "{report}");
}
