//! A device at work: the guest's notification is an ioeventfd, the device's interrupt an irqfd.

use capsa_core::backend::GuestEnd;

use crate::machine::Machine;
use crate::payload::{CODE, Payload};

/// The entropy source of a machine without disks: device 1, whose BAR is the first.
const CONFIG: u32 = 1 << 31 | 1 << 11;
const BAR: u64 = 0xd000_0000;
const NOTIFY: u64 = BAR + 0x3000;
const MSIX_TABLE: u64 = BAR + 0x4000;

/// The local APIC's spurious interrupt register, whose bit 8 switches it on.
const LAPIC_SPURIOUS: u64 = 0xfee0_00f0;
const VECTOR: u8 = 0x40;

/// Where the guest has its tables: anywhere in its 32 MiB.
const IDT: u32 = 0x20_0000;
const DESCRIPTORS: u64 = 0x21_0000;
const AVAILABLE: u64 = 0x22_0000;
const USED: u64 = 0x23_0000;
const BUFFER: u64 = 0x24_0000;

/// Sets the entropy source up as VIRTIO 1.2, 3.1.1 and 4.1.5 say, with one buffer of 32 bytes in its
/// queue, and its interrupt as message to the first local APIC.
fn set_up(payload: Payload) -> Payload {
    let config = |payload: Payload, register: u32, value: u32| {
        payload
            .out_double(0xcf8, CONFIG | register)
            .out_double(0xcfc, value)
    };
    let payload = config(payload, 0x04, 1 << 1 | 1 << 2); // memory, bus master
    let payload = config(payload, 0x40, 1 << 31); // MSI-X on
    payload
        .store_to(MSIX_TABLE, 0xfee0_0000)
        .store_to(MSIX_TABLE + 4, 0)
        .store_to(MSIX_TABLE + 8, VECTOR.into())
        .store_to(MSIX_TABLE + 12, 0) // not masked
        .store_byte_to(BAR + 0x14, 1 | 2) // ACKNOWLEDGE, DRIVER
        .store_to(BAR + 0x08, 1)
        .store_to(BAR + 0x0c, 1) // VIRTIO_F_VERSION_1
        .store_byte_to(BAR + 0x14, 1 | 2 | 8) // FEATURES_OK
        .store_word_to(BAR + 0x16, 0)
        .store_word_to(BAR + 0x18, 8) // queue_size
        .store_word_to(BAR + 0x1a, 0) // queue_msix_vector
        .store_to(BAR + 0x20, u32::try_from(DESCRIPTORS).unwrap())
        .store_to(BAR + 0x28, u32::try_from(AVAILABLE).unwrap())
        .store_to(BAR + 0x30, u32::try_from(USED).unwrap())
        .store_word_to(BAR + 0x1c, 1) // queue_enable
        .store_to(DESCRIPTORS, u32::try_from(BUFFER).unwrap())
        .store_to(DESCRIPTORS + 8, 32)
        .store_to(DESCRIPTORS + 12, 2) // VIRTQ_DESC_F_WRITE
        .store_byte_to(BAR + 0x14, 1 | 2 | 8 | 4) // DRIVER_OK
        .store_to(AVAILABLE, 1 << 16) // one chain, which begins at descriptor 0
}

#[test]
fn a_notification_reaches_the_device_and_its_interrupt_the_guest() {
    let handler = 0x800;
    let handler_address = u32::try_from(CODE).unwrap() + u32::try_from(handler).unwrap();
    let payload = Payload::new()
        .store_to(LAPIC_SPURIOUS, 1 << 8 | 0xff)
        .interrupts(IDT, VECTOR, handler_address);
    let payload = set_up(payload)
        .store_word_to(NOTIFY, 0)
        .wait_for_interrupts()
        .at(handler)
        .print(b"!")
        .load_from(USED)
        .print_eax()
        .load_from(USED + 8)
        .print_eax()
        .load_from(BUFFER)
        .print_eax()
        .out_byte(0x600, 5 << 2 | 1 << 5)
        .spin();
    let (end, output) = Machine::start(&payload).output();
    assert!(matches!(end, GuestEnd::PowerOff), "{end:?}");
    let (mark, words) = output.split_at(1);
    assert_eq!(mark, b"!");
    assert_eq!(words[..4], [0, 0, 1, 0], "one chain was used");
    assert_eq!(words[4..8], [32, 0, 0, 0], "all of it was written");
    // Four zeroes once in 2^32 runs.
    assert_ne!(words[8..12], [0; 4]);
}
