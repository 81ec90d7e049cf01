//! The power button, which is an input device.

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::read;

/// Bytes of a `struct input_event` on 64-bit machines: a time of 16, then these.
const EVENT: usize = 24;
/// `EV_KEY`.
const KEY: u16 = 1;
/// `KEY_POWER`.
const POWER: u16 = 116;
/// The value of a key that is pressed; 0 is one that is let go.
const PRESSED: i32 = 1;

/// All input devices: which of them is the button shows when it is pressed.
#[derive(Default)]
pub(super) struct Buttons(Vec<(PathBuf, OwnedFd)>);

impl Buttons {
    /// Opens the devices that have come since.
    pub(super) fn look(&mut self) {
        let Ok(entries) = fs::read_dir("/dev/input") else {
            return;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let is_known = self.0.iter().any(|(known, _)| *known == path);
            if is_known || !is_event_device(&path) {
                continue;
            }
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            if let Ok(device) = open(&path, flags, Mode::empty()) {
                self.0.push((path, device));
            }
        }
    }

    pub(super) fn descriptors(&self) -> impl Iterator<Item = &OwnedFd> {
        self.0.iter().map(|(_, device)| device)
    }
}

fn is_event_device(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with("event"))
}

/// Whether the power button is among what was pressed on a device.
pub(super) fn is_pressed(device: BorrowedFd<'_>) -> io::Result<bool> {
    let mut events = [0; 16 * EVENT];
    let length = read(device, &mut events)?;
    let (events, _) = events[..length].as_chunks::<EVENT>();
    Ok(events.iter().any(is_press))
}

fn is_press(event: &[u8; EVENT]) -> bool {
    let [kind_low, kind_high, code_low, code_high, value @ ..] = &event[16..] else {
        return false;
    };
    let kind = u16::from_ne_bytes([*kind_low, *kind_high]);
    let code = u16::from_ne_bytes([*code_low, *code_high]);
    let value = value.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes));
    (kind, code, value) == (KEY, POWER, Some(PRESSED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_press_of_the_power_button_counts() {
        let event = |kind: u16, code: u16, value: i32| {
            let mut event = [0xff; EVENT];
            event[16..18].copy_from_slice(&kind.to_ne_bytes());
            event[18..20].copy_from_slice(&code.to_ne_bytes());
            event[20..].copy_from_slice(&value.to_ne_bytes());
            is_press(&event)
        };
        assert!(event(1, 116, 1));
        assert!(!event(1, 116, 0));
        assert!(!event(1, 30, 1));
        assert!(!event(0, 116, 1));
    }
}
