//! What a kernel finds where a PC's firmware begins: a reset of the machine.
//!
//! Linux resets a machine by its firmware's entry, in real mode, when nothing else is left. That is
//! the way it takes where ACPI is hardware-reduced: it expects EFI there, which has no runtime
//! services here (`reboot_init` and `native_machine_emergency_restart` in arch/x86/kernel/reboot.c).

use vm_memory::{Bytes, GuestMemoryError, GuestMemoryMmap};

use super::super::layout;

/// `mov al, 0xfe; out 0x64, al`: the reset command to the keyboard controller; then `hlt` for ever.
const RESET: [u8; 7] = [0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd];

/// Puts it there.
pub(super) fn write(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    memory.write_slice(&RESET, layout::RESET_VECTOR)
}
