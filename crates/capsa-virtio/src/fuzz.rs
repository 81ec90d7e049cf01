//! What the fuzz targets of the queue layer and the transport run: drivers that do anything, for as
//! long as an input says. Plain functions, so that the tests replay stored inputs on the stable
//! toolchain.
//!
//! Looked for are panics, work without end, writes to memory that no driver asked for, states that
//! the specification does not know, and a device that the next good driver cannot use.
#![expect(
    clippy::unwrap_used,
    reason = "only tests and fuzz targets use it, and a fault of it must end them"
)]

use std::io::{Read, Write};
use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::device::DriverFault;
use crate::echo::Echo;
use crate::interrupt::Interrupt;
use crate::pci::BAR_SIZE;
use crate::queue::{Memory, Virtqueue};
use crate::raw_driver::{
    BAR, Call, Descriptor, MEMORY, RawDriver, RawQueue, flag, readable, register, status, writable,
};
use crate::script::Script;

/// Most steps of one input.
const STEPS: usize = 300;

/// The queue's memory: two regions that touch, so that buffers span them.
const SMALL: usize = 0x3000;
const SPLIT: usize = 0x1800;

/// The rings of [`queue`]: a driver overwrites them at will.
const DESCRIPTORS: u64 = 0x400;
const AVAILABLE: u64 = 0x800;
const USED: u64 = 0xa00;
/// What the device writes, so that it shows.
const MARK: u8 = 0xd5;

/// A queue whose rings and descriptors are what the input says, and a device that serves it.
pub fn queue(data: &[u8]) {
    let mut script = Script::new(data);
    let regions = [
        (GuestAddress(0), SPLIT),
        (GuestAddress(SPLIT as u64), SMALL - SPLIT),
    ];
    let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&regions).unwrap());
    let size = script.choose(&[1u16, 2, 4, 8, 16, 32]);
    let low = |address: u64| u32::try_from(address).ok();
    let mut queue = Queue::new(size).unwrap();
    queue.set_desc_table_address(low(DESCRIPTORS), None);
    queue.set_avail_ring_address(low(AVAILABLE), None);
    queue.set_used_ring_address(low(USED), None);
    queue.set_event_idx(script.byte() % 2 == 1);
    queue.set_ready(true);
    assert!(queue.is_valid(&*memory));
    let mut queue = Virtqueue::new(0, queue, Arc::clone(&memory), Arc::new(Silent));

    let mut available = 0u16;
    for _ in 0..STEPS {
        if script.is_at_end() {
            break;
        }
        match script.byte() % 8 {
            0..4 => {
                let index = script.u16() % size;
                let descriptor = descriptor(&mut script, size, SMALL as u64);
                let place = GuestAddress(DESCRIPTORS + 16 * u64::from(index));
                memory.write_slice(&descriptor.to_bytes(), place).unwrap();
                let slot = AVAILABLE + 4 + 2 * u64::from(available % size);
                memory.write_obj(index, GuestAddress(slot)).unwrap();
                available = available.wrapping_add(1);
            }
            4 => {
                let place = GuestAddress(u64::from(script.u16()) % SMALL as u64);
                // A write may end early, at the end of memory.
                let _ = memory.write(script.bytes(32), place);
            }
            5 => available = script.u16(),
            _ => {}
        }
        let place = GuestAddress(AVAILABLE + 2);
        memory.write_obj(available.to_le(), place).unwrap();
        if serve(&mut queue, &mut script).is_err() {
            // The transport does not call a device again after a fault.
            break;
        }
    }
}

/// One call of a device that takes up to eight chains.
fn serve(queue: &mut Virtqueue, script: &mut Script<'_>) -> Result<(), DriverFault> {
    let size = u64::from(script.byte() % 9);
    queue.disable_notification()?;
    for _ in 0..size {
        let Some(chain) = queue.pop()? else {
            break;
        };
        let head = chain.head_index();
        // Even a loop is as long as the queue, or the table that it lies in, and no longer.
        assert!(chain.clone().count() <= usize::from(u16::MAX));
        if script.byte().is_multiple_of(8) {
            queue.put_back();
            continue;
        }
        let before = dump(queue.memory());
        let mut reader = chain.clone().reader(queue.memory())?;
        let mut bytes = Vec::new();
        let wanted = reader.available_bytes().min(256);
        reader.by_ref().take(256).read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), wanted);
        let allowed: Vec<_> = chain.clone().writable().collect();
        let mut writer = chain.writer(queue.memory())?;
        let length = writer.available_bytes().min(64);
        writer.write_all(&[MARK; 64][..length]).unwrap();
        let after = dump(queue.memory());
        for (address, (old, new)) in (0u64..).zip(before.iter().zip(&after)) {
            let inside = allowed.iter().any(|buffer| {
                let start = buffer.addr().0;
                (start..start + u64::from(buffer.len())).contains(&address)
            });
            assert!(old == new || inside, "written to {address:#x}");
        }
        queue.push_used(head, u32::try_from(length).unwrap())?;
    }
    queue.enable_notification()?;
    queue.signal()
}

fn dump(memory: &Memory) -> Vec<u8> {
    let mut bytes = vec![0; SMALL];
    memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    bytes
}

/// A descriptor that is more often right than any bytes would be.
fn descriptor(script: &mut Script<'_>, size: u16, end: u64) -> Descriptor {
    let near = u64::from(script.u16());
    let address = match script.byte() % 8 {
        0 => end.wrapping_sub(near % 64),
        1 => u64::MAX - near % 64,
        2 => DESCRIPTORS + near % 0x200,
        _ => near % end,
    };
    let length = match script.byte() % 8 {
        0 => u32::MAX - u32::from(script.byte()),
        1 => 16 * u32::from(script.u16()),
        _ => u32::from(script.byte()),
    };
    let flags = u16::from(script.byte() % 8);
    let next = match script.byte() {
        beyond @ 0xf0.. => u16::from(beyond) << 8,
        next => u16::from(next) % size,
    };
    Descriptor {
        address,
        length,
        flags,
        next,
    }
}

struct Silent;

impl Interrupt for Silent {
    fn queue(&self, _index: u16) {}

    fn config(&self) {}
}

/// A function whose driver accesses what it likes, with a device that answers on its own thread.
pub fn pci(data: &[u8]) {
    let mut script = Script::new(data);
    let (device, gate) = Echo::deaf(&[16, 4]);
    let driver = RawDriver::new(device);
    let mut queues = vec![driver.place_queue(0, 8), driver.place_queue(1, 4)];
    let mut programmed = [false; 3];
    for _ in 0..STEPS {
        if script.is_at_end() {
            break;
        }
        act(&driver, &mut queues, &mut script);
        if script.byte().is_multiple_of(16) {
            gate.poke.raise();
        }
        check_state(&driver);
        check_calls(&driver, &mut programmed);
    }
    driver.function.reset();
    check_calls(&driver, &mut programmed);
    assert_eq!(programmed, [false; 3], "a message outlives the reset");

    // The next driver behaves.
    driver.function.config_write(0x04, &[2, 0]);
    let mut queues = driver.connect(u64::MAX, 4);
    let request = driver.place(b"next");
    let answer = driver.allocate(4, 1);
    queues[0].chain(&[readable(request, 4), writable(answer, 4)]);
    driver.kick(0);
    assert_eq!(driver.wait_used(&mut queues[0]), (0, 4));
    assert_eq!(driver.read_memory(answer, 4), b"next");
}

/// One thing that a driver does.
fn act(driver: &RawDriver, queues: &mut [RawQueue], script: &mut Script<'_>) {
    let index = usize::from(script.byte() % 2);
    let queue = &mut queues[index];
    match script.byte() % 12 {
        0 => driver
            .function
            .config_write(usize::from(script.u16() % 0x110), bytes(script)),
        1 => {
            let mut data = [0; 16];
            let length = usize::from(script.byte() % 17);
            let offset = usize::from(script.u16() % 0x110);
            driver.function.config_read(offset, &mut data[..length]);
        }
        2 => driver.write(place(script), bytes(script)),
        3 => {
            let mut data = [0; 16];
            let length = usize::from(script.byte() % 17);
            driver.function.bar_read(place(script), &mut data[..length]);
        }
        4 => driver.write(u64::from(script.byte() % 0x40), bytes(script)),
        5 => driver.set_status(script.choose(&[0, 1, 3, 0x0b, 0x0f, 0x8f, 0xff])),
        6 => driver.accept_features(u64::from(script.byte()) << 29 & 0xd_0000_0000),
        7 => {
            // The shortest way to a running device.
            driver.set_status(0);
            driver.set_status(status::ACKNOWLEDGE | status::DRIVER);
            driver.accept_features(driver.offered_features());
            driver.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
            driver.map_vectors();
            driver.enable(queue);
            driver.start();
        }
        8 => {
            let descriptor = descriptor(script, queue.size, MEMORY as u64);
            let slot = script.u16() % queue.size;
            queue.write_descriptor(slot, descriptor);
            queue.offer(script.u16() % (queue.size + 1));
        }
        9 => {
            let place = driver
                .allocate(0, 1)
                .saturating_sub(u64::from(script.u16() % 0x200));
            driver.write_memory(place, bytes(script));
        }
        10 => {
            let table = Descriptor {
                flags: flag::INDIRECT,
                ..readable(queue.descriptors, 16 * u32::from(script.byte()))
            };
            queue.write_descriptor(0, table);
            queue.set_available_index(script.u16());
        }
        _ => driver.kick(script.u16() % 3),
    }
}

/// An offset in the BAR, or about its end.
fn place(script: &mut Script<'_>) -> u64 {
    let offset = u64::from(script.u16());
    match script.byte() % 8 {
        0 => script.u32().into(),
        1 => u64::MAX - offset,
        2 => u64::from(BAR_SIZE) - offset % 16,
        // Where there are registers.
        _ => offset % 6 * 0x1000 + offset / 6 % 0x40,
    }
}

fn bytes<'a>(script: &mut Script<'a>) -> &'a [u8] {
    let length = script.choose(&[1, 2, 4, 8, 0, 3, 5, 16]);
    script.bytes(length)
}

/// What holds at any time.
fn check_state(driver: &RawDriver) {
    let mut bar = [0; 4];
    driver.function.config_read(0x10, &mut bar);
    let bar = u32::from_le_bytes(bar);
    assert!(bar == BAR || bar == !(BAR_SIZE - 1), "{bar:#x}");
    let mut command = [0; 2];
    driver.function.config_read(0x04, &mut command);
    if command[0] & 2 == 0 {
        assert_eq!(driver.read32(register::QUEUE_SELECT), u32::MAX);
        return;
    }
    let status = driver.status();
    let steps = [
        status::ACKNOWLEDGE,
        status::DRIVER,
        status::FEATURES_OK,
        status::DRIVER_OK,
    ];
    for step in steps.windows(2) {
        assert!(
            status & step[1] == 0 || status & step[0] != 0,
            "{status:#x} leaves out a step"
        );
    }
    let size = driver.read16(register::QUEUE_SIZE);
    assert!(size == 0 || size.is_power_of_two() && size <= 16, "{size}");
}

/// The hypervisor is asked for interrupts only with a message, and only for vectors that exist.
fn check_calls(driver: &RawDriver, programmed: &mut [bool; 3]) {
    for call in driver.vectors.take() {
        match call {
            Call::Program(vector, message) => {
                programmed[usize::from(vector)] = message.is_some();
            }
            Call::Trigger(vector) => assert!(programmed[usize::from(vector)], "{vector}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::script::replay;

    #[test]
    fn stored_inputs_of_the_queue_behave() {
        replay("virtio_queue", 50, queue);
    }

    #[test]
    fn stored_inputs_of_the_transport_behave() {
        replay("virtio_pci", 50, pci);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn generated_inputs_of_the_queue_behave(
            data in prop::collection::vec(any::<u8>(), 0..600),
        ) {
            queue(&data);
        }

        #[test]
        fn generated_inputs_of_the_transport_behave(
            data in prop::collection::vec(any::<u8>(), 0..600),
        ) {
            pci(&data);
        }
    }
}
