//! Every way in which a guest ends is told apart from the others.

use capsa_core::backend::GuestEnd;
use capsa_core::error::{Error, HypervisorFailure};

use crate::machine::Machine;
use crate::payload::Payload;

/// ACPI's sleep control register with the sleep type of power off and the bit that enters it.
const POWER_OFF: (u16, u8) = (0x600, 5 << 2 | 1 << 5);

#[test]
fn power_off() {
    let payload = Payload::new().out_byte(POWER_OFF.0, POWER_OFF.1).spin();
    let end = Machine::start(&payload).end();
    assert!(matches!(end, GuestEnd::PowerOff), "{end:?}");
}

#[test]
fn a_sleep_type_that_is_not_power_off_is_none() {
    let payload = Payload::new()
        .out_byte(POWER_OFF.0, 3 << 2 | 1 << 5)
        .out_byte(POWER_OFF.0, 5 << 2)
        .out_byte(0x602, 1);
    let end = Machine::start(&payload.spin()).end();
    assert!(matches!(end, GuestEnd::Reset), "{end:?}");
}

#[test]
fn reset_by_the_register_of_acpi_and_by_the_keyboard_controller() {
    for (port, value) in [(0x602, 1), (0x64, 0xfe)] {
        let end = Machine::start(&Payload::new().out_byte(port, value).spin()).end();
        assert!(matches!(end, GuestEnd::Reset), "{port:#x}: {end:?}");
    }
}

/// Linux goes there in real mode when it knows no other way to reset. The code is the same in 64-bit
/// mode: `mov eax, address; jmp rax`.
#[test]
fn reset_where_firmware_would_be_entered() {
    let jump = Payload::new().code(&[0xb8, 0xf0, 0xff, 0x0f, 0, 0xff, 0xe0]);
    let end = Machine::start(&jump).end();
    assert!(matches!(end, GuestEnd::Reset), "{end:?}");
}

#[test]
fn a_panic_told_by_pvpanic() {
    let end = Machine::start(&Payload::new().out_byte(0x505, 1).spin()).end();
    assert!(matches!(end, GuestEnd::Panicked), "{end:?}");
}

fn failure(end: GuestEnd) -> (u32, String, String) {
    match end {
        GuestEnd::Crashed(Error::Hypervisor { cause, .. }) => match *cause {
            HypervisorFailure::Vcpu {
                vcpu,
                exit,
                registers,
            } => (vcpu, exit, registers),
            other => panic!("{other}"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_triple_fault_is_a_crash_with_registers() {
    // No interrupt descriptor table: an exception while an exception is delivered, and once more.
    let no_table = &[0x0f, 0x01, 0x1c, 0x25, 0, 0, 0, 0]; // lidt [0], which is all zeroes
    let (vcpu, exit, registers) =
        failure(Machine::start(&Payload::new().code(no_table).code(&[0x0f, 0x0b]).spin()).end());
    assert_eq!((vcpu, exit.as_str()), (0, "triple fault"));
    assert!(registers.contains("rip"), "{registers}");
}

#[test]
fn instructions_that_kvm_cannot_fetch_are_a_crash() {
    // Nothing is there: jmp rax to an address without memory.
    let jump = Payload::new().code(&[0xb8, 0, 0, 0, 0xe0, 0xff, 0xe0]);
    let (_, exit, registers) = failure(Machine::start(&jump).end());
    assert!(exit.starts_with("KVM "), "{exit}");
    assert!(registers.contains("e0000000"), "{registers}");
}
