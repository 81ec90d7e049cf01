//! What a guest sees at ports and addresses.

use std::io::Write;

use capsa_core::disk::{ImageFile, ImageFormat, ResolvedDisk};

use crate::machine::Machine;
use crate::payload::Payload;

const OFF: (u16, u8) = (0x600, 5 << 2 | 1 << 5);

fn printed(payload: Payload, disks: &[ResolvedDisk]) -> Vec<u8> {
    let payload = payload.out_byte(OFF.0, OFF.1).spin();
    Machine::with(&payload, 1, disks).output().1
}

fn words(output: &[u8]) -> Vec<u32> {
    let words = output.chunks_exact(4);
    words
        .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
        .collect()
}

/// A configuration cycle that reads a register of a device on bus 0.
fn config(payload: Payload, device: u32, register: u32) -> Payload {
    let payload = payload.out_double(0xcf8, 1 << 31 | device << 11 | register);
    payload.in_double(0xcfc).print_eax()
}

#[test]
fn what_is_printed_arrives() {
    assert_eq!(printed(Payload::new().print(b"capsa\n"), &[]), b"capsa\n");
}

#[test]
fn nothing_answers_where_there_is_no_device() {
    let payload = Payload::new().in_double(0x1234).print_eax();
    // In the PCI window, behind the devices; and in the hole, beside all windows.
    let payload = payload
        .store_to(0xd7ff_0000, 7)
        .load_from(0xd7ff_0000)
        .print_eax();
    let payload = payload.load_from(0xc100_0000).print_eax();
    assert_eq!(words(&printed(payload, &[])), [u32::MAX; 3]);
}

#[test]
fn the_bus_has_a_host_bridge_then_disks_then_the_rest() {
    let mut image = tempfile::NamedTempFile::new().unwrap();
    image.write_all(&[0; 512]).unwrap();
    let disk = ResolvedDisk {
        chain: vec![ImageFile {
            path: image.path().to_owned(),
            format: ImageFormat::Raw,
        }],
        data_file: None,
        read_only: false,
        ephemeral: false,
    };
    let payload = (0..5).fold(Payload::new(), |payload, device| config(payload, device, 0));
    let found = words(&printed(payload, &[disk]));
    // Virtio devices are 0x1040 and their type: block 2, entropy source 4, balloon 5.
    assert_eq!(
        found,
        [0x0008_1b36, 0x1042_1af4, 0x1044_1af4, 0x1045_1af4, u32::MAX]
    );
}

#[test]
fn a_device_answers_in_its_bar_once_its_memory_is_enabled() {
    // The entropy source is device 1, its BAR is register 0x10, its command register 4.
    let payload = config(Payload::new(), 1, 0x10);
    let status = 0xd000_0014; // device_status of the common configuration (VIRTIO 1.2, 4.1.4.3)
    let payload = payload.load_byte_from(status).print_eax();
    let command = 1 << 31 | 1 << 11 | 4;
    let payload = payload.out_double(0xcf8, command).out_double(0xcfc, 1 << 1);
    let acknowledge = 1;
    let payload = payload.store_byte_to(status, acknowledge);
    let payload = payload.load_byte_from(status).print_eax();
    assert_eq!(words(&printed(payload, &[])), [0xd000_0000, 0xff, 1]);
}
