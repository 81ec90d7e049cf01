//! A device's configuration space (2.5): a few bytes that both sides read, of which the device, and
//! for some fields the driver, change some.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A device's configuration space.
///
/// vCPU threads read it while the device's worker changes it: the lock is held for a copy of a few
/// bytes only.
#[derive(Debug)]
pub struct ConfigSpace {
    /// The part that the driver may write.
    writable: std::ops::Range<usize>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    bytes: Vec<u8>,
    generation: u8,
}

impl ConfigSpace {
    /// A space of these bytes that the driver only reads.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        Self::with_writable(bytes, 0..0)
    }

    /// A space of which the driver may write the bytes of `writable`.
    #[must_use]
    pub fn with_writable(bytes: &[u8], writable: std::ops::Range<usize>) -> Self {
        Self {
            writable,
            state: Mutex::new(State {
                bytes: bytes.to_vec(),
                generation: 0,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A copy of bytes cannot be left half done in a way that matters to anyone.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies the bytes from `offset` on; bytes beyond the end read as zero.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        let state = self.lock();
        data.fill(0);
        if let Some(rest) = state.bytes.get(offset..) {
            let length = rest.len().min(data.len());
            data[..length].copy_from_slice(&rest[..length]);
        }
    }

    /// A write of the driver: of `data`, only the bytes that it may write are taken.
    pub fn write_by_driver(&self, offset: usize, data: &[u8]) {
        let mut state = self.lock();
        for (position, byte) in (offset..=usize::MAX).zip(data) {
            if self.writable.contains(&position)
                && let Some(place) = state.bytes.get_mut(position)
            {
                *place = *byte;
            }
        }
    }

    /// A change by the device. The generation goes up, so that a driver which reads a field in two
    /// halves sees that they do not belong together (2.5.2). The caller interrupts the driver.
    ///
    /// # Panics
    ///
    /// When the bytes do not lie within the space.
    pub fn update(&self, offset: usize, data: &[u8]) {
        let mut state = self.lock();
        state.bytes[offset..offset + data.len()].copy_from_slice(data);
        state.generation = state.generation.wrapping_add(1);
    }

    /// How often the device changed the space, modulo 256.
    #[must_use]
    pub fn generation(&self) -> u8 {
        self.lock().generation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_beyond_the_end_are_zero() {
        let space = ConfigSpace::new(&[1, 2, 3]);
        let mut data = [9; 4];
        space.read(1, &mut data);
        assert_eq!(data, [2, 3, 0, 0]);
        space.read(usize::MAX, &mut data);
        assert_eq!(data, [0; 4]);
    }

    #[test]
    fn the_driver_writes_only_what_it_may() {
        let space = ConfigSpace::with_writable(&[0; 6], 2..4);
        space.write_by_driver(0, &[7; 16]);
        space.write_by_driver(usize::MAX - 1, &[7; 2]);
        let mut data = [0; 6];
        space.read(0, &mut data);
        assert_eq!(data, [0, 0, 7, 7, 0, 0]);
        assert_eq!(space.generation(), 0);
    }

    #[test]
    fn a_change_by_the_device_is_a_new_generation() {
        let space = ConfigSpace::new(&[0; 4]);
        space.update(1, &[5, 6]);
        let mut data = [0; 4];
        space.read(0, &mut data);
        assert_eq!(data, [0, 5, 6, 0]);
        assert_eq!(space.generation(), 1);
    }
}
