use super::*;
use crate::echo::{Echo, FEATURES};
use crate::raw_driver::{
    BAR, Call, RawDriver, RawQueue, eventually, flag, readable, register, status, writable,
};

fn driver() -> RawDriver {
    RawDriver::new(Echo::new(&[16, 64]).0)
}

fn config<const WIDTH: usize>(driver: &RawDriver, offset: usize) -> [u8; WIDTH] {
    let mut data = [0; WIDTH];
    driver.function.config_read(offset, &mut data);
    data
}

fn config32(driver: &RawDriver, offset: usize) -> u32 {
    u32::from_le_bytes(config(driver, offset))
}

#[test]
fn the_header_is_that_of_a_modern_device() {
    let driver = driver();
    assert_eq!(config32(&driver, 0x00), 0x1043_1af4);
    assert_eq!(config(&driver, 0x08), [1, 0x00, 0x80, 0x07]);
    assert_eq!(config(&driver, 0x0e), [0]);
    assert_eq!(config32(&driver, 0x10), BAR);
    assert_eq!(config32(&driver, 0x14), 0);
    assert_eq!(config32(&driver, 0x2c), 0x1043_1af4);
    assert_eq!(config(&driver, 0x3d), [0], "an interrupt pin");
    // Beyond the space, and across its end.
    assert_eq!(config(&driver, 256), [0xff; 4]);
    assert_eq!(config(&driver, 254), [0, 0, 0xff, 0xff]);
    assert_eq!(config(&driver, usize::MAX), [0xff; 4]);
    driver.function.config_write(usize::MAX, &[0; 4]);
    driver.function.config_write(254, &[0xff; 4]);
    assert_eq!(config(&driver, 254), [0, 0, 0xff, 0xff]);
}

#[test]
fn the_bar_tells_its_size_and_stays_where_it_is() {
    let driver = driver();
    driver.function.config_write(0x10, &[0xff; 4]);
    assert_eq!(config32(&driver, 0x10), !(BAR_SIZE - 1));
    driver
        .function
        .config_write(0x10, &0xd000_0000u32.to_le_bytes());
    assert_eq!(config32(&driver, 0x10), BAR);
    driver.function.config_write(0x11, &[0xff]);
    assert_eq!(config32(&driver, 0x10), BAR);
    driver.function.config_write(0x14, &[0xff; 4]);
    assert_eq!(config32(&driver, 0x14), 0, "a second BAR");
}

#[test]
fn the_capabilities_lead_to_the_structures() {
    let driver = driver();
    let mut found = Vec::new();
    let mut at = usize::from(config::<1>(&driver, 0x34)[0]);
    while at != 0 {
        assert!(at.is_multiple_of(4) && at >= 0x40 && found.len() < 8);
        let [id, next, length, kind] = config(&driver, at);
        match id {
            0x11 => {
                assert_eq!([length, kind], [2, 0x80], "three vectors, enabled");
                assert_eq!(config32(&driver, at + 4), 0x4000);
                assert_eq!(config32(&driver, at + 8), 0x5000);
                found.push((0, 0, 0));
            }
            _ => {
                assert_eq!(id, 0x09);
                assert_eq!(length, if kind == 2 || kind == 5 { 20 } else { 16 });
                assert_eq!(config(&driver, at + 4), [0; 4], "BAR 0");
                found.push((kind, config32(&driver, at + 8), config32(&driver, at + 12)));
                if kind == 2 {
                    assert_eq!(config32(&driver, at + 16), 4, "the multiplier");
                }
            }
        }
        at = next.into();
    }
    let expected = [
        (0, 0, 0),
        (1, 0x0000, 0x38),
        (3, 0x1000, 1),
        (4, 0x2000, 0x1000),
        (2, 0x3000, 8),
        (5, 0, 0),
    ];
    assert_eq!(found, expected);
}

impl Drop for Window<'_> {
    /// A driver leaves it as it found it.
    fn drop(&mut self) {
        self.driver.function.config_write(0x98, &[0; 8]);
    }
}

/// The window into the BAR in the configuration space (4.1.4.9).
struct Window<'a> {
    driver: &'a RawDriver,
}

impl Window<'_> {
    fn at(&self, offset: u32, width: u32) -> &Self {
        self.driver
            .function
            .config_write(0x98, &offset.to_le_bytes());
        self.driver
            .function
            .config_write(0x9c, &width.to_le_bytes());
        self
    }

    fn read(&self) -> u32 {
        config32(self.driver, 0xa0)
    }

    fn write(&self, value: u32) {
        self.driver
            .function
            .config_write(0xa0, &value.to_le_bytes());
    }
}

#[test]
fn the_window_reaches_the_bar_even_when_it_is_disabled() {
    let driver = driver();
    driver.function.config_write(0x04, &[0, 0]);
    assert_eq!(driver.read32(0), u32::MAX, "nothing answers");
    driver.set_status(1);

    let window = Window { driver: &driver };
    let offset = |register: u64| u32::try_from(register).unwrap();
    assert_eq!(window.at(offset(register::NUM_QUEUES), 2).read(), 2);
    assert_eq!(
        window.at(offset(register::DEVICE_STATUS), 1).read() & 0xff,
        0
    );
    window.write(0xffff_ff01);
    assert_eq!(window.read() & 0xff, 1, "of the write, one byte counts");
    window.at(offset(register::NOTIFY) + 4, 4).write(1);
    let (_, eventfd) = driver.function.notifications().nth(1).unwrap();
    assert_eq!(eventfd.read().unwrap(), 1);

    // Not its width, not at a multiple of it, not in the BAR.
    window.at(offset(register::DEVICE_STATUS), 1).write(3);
    for (place, width) in [
        (0x14, 0),
        (0x14, 8),
        (0x13, 2),
        (BAR_SIZE, 4),
        (u32::MAX, 4),
    ] {
        window.at(place, width).write(0);
    }
    window.at(offset(register::DEVICE_STATUS), 1);
    driver.function.config_write(0x94, &[1]);
    window.write(0);
    driver.function.config_write(0x94, &[0]);
    assert_eq!(window.read() & 0xff, 3);
}

#[test]
fn a_good_driver_gets_its_answers_and_its_interrupts() {
    let (device, gate) = Echo::new(&[16, 64]);
    let driver = RawDriver::new(device);
    let mut queues = driver.connect(u64::MAX, 16);
    assert_eq!(driver.read16(register::QUEUE_NOTIFY_OFF), 1);
    for round in 0..100u32 {
        for (index, queue) in (0u16..).zip(&mut queues) {
            let request = driver.place(&round.to_le_bytes());
            let answer = driver.allocate(8, 1);
            let head = queue.chain(&[readable(request, 4), writable(answer, 8)]);
            driver.kick(index);
            // Each is told: only then the driver looks, and asks for the next interrupt.
            eventually("an interrupt", || {
                (driver.vectors.triggers(index + 1) > round as usize).then_some(())
            });
            assert_eq!(queue.pop_used(), Some((head.into(), 4)));
            assert_eq!(driver.read_memory(answer, 4), round.to_le_bytes());
        }
    }
    let all = FEATURES | 1 << 32 | 1 << 29 | 1 << 28;
    assert_eq!(*gate.features.lock().unwrap(), all);
    driver.set_status(0);
    assert_eq!(driver.vectors.triggers(1), 100);
    assert_eq!(driver.vectors.triggers(2), 100);
    assert_eq!(driver.vectors.triggers(0), 0);
    assert_eq!(gate.resets.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[test]
fn an_indirect_chain_is_a_chain() {
    let driver = driver();
    let mut queues = driver.connect(u64::MAX, 16);
    let answer = driver.allocate(4, 1);
    let mut first = readable(driver.place(b"1234"), 4);
    first.flags = flag::NEXT;
    first.next = 1;
    let table = [first.to_bytes(), writable(answer, 4).to_bytes()].concat();
    let mut indirect = readable(driver.place(&table), 32);
    indirect.flags = flag::INDIRECT;
    queues[0].chain(&[indirect]);
    driver.kick(0);
    assert_eq!(driver.wait_used(&mut queues[0]), (0, 4));
    assert_eq!(driver.read_memory(answer, 4), b"1234");
}

#[test]
fn the_configuration_is_read_written_and_announced() {
    let (device, gate) = Echo::new(&[16]);
    let driver = RawDriver::new(device);
    driver.connect(u64::MAX, 16);
    assert_eq!(driver.config(0), *b"echo....");
    driver.write(register::DEVICE_CONFIG, b"HOSTguest");
    assert_eq!(driver.config(0), *b"echogues\0");
    let generation = driver.read::<1>(register::CONFIG_GENERATION)[0];
    gate.config.update(0, b"ECHO");
    gate.poke.raise();
    eventually("an interrupt", || {
        (driver.vectors.triggers(0) > 0).then_some(())
    });
    assert_eq!(driver.config(0), *b"ECHO");
    assert_eq!(driver.read(register::CONFIG_GENERATION), [generation + 1]);
    assert_eq!(driver.read(register::ISR), [2]);
    assert_eq!(driver.read(register::ISR), [0], "reading clears it");
}

/// One answered request on queue 0, after which its interrupt has been sent.
fn request(driver: &RawDriver, queue: &mut RawQueue) {
    let notified = driver.function.notifications().next().unwrap().1;
    queue.chain(&[readable(driver.place(b"x"), 1)]);
    notified.write(1).unwrap();
    driver.wait_used(queue);
}

#[test]
fn masked_vectors_wait_and_are_programmed_when_they_are_needed() {
    let driver = driver();
    let message = |vector: u32| MsiMessage {
        address: 0xfee0_0000 + 0x1000 * u64::from(vector),
        data: vector,
    };
    let programs = (0..3).map(|vector| Call::Program(vector, Some(message(vector.into()))));
    let mut before: Vec<_> = driver.vectors.take();
    // Unmasked one by one by the driver's preparation, which wrote the parts of a message first.
    before.retain(|call| matches!(call, Call::Program(..)));
    assert_eq!(before, programs.collect::<Vec<_>>());

    let mut queues = driver.connect(0xffff_ffff_dfff_ffff, 16);
    let pending = || driver.read::<1>(register::MSIX_PENDING)[0];
    let control = register::MSIX_TABLE + 16 + 12;
    let interrupts = &driver.function.interrupts;

    // The vector's own mask.
    driver.write32(control, 1);
    interrupts.queue(0);
    assert_eq!(pending(), 0b10);
    assert_eq!(driver.vectors.take(), []);
    driver.write32(control, 0xffff_fffe);
    assert_eq!(driver.read32(control), 0, "reserved bits");
    assert_eq!(driver.vectors.take(), [Call::Trigger(1)]);
    assert_eq!(pending(), 0);

    // The function's mask, and a message that changes under it.
    driver.function.config_write(0x42, &0xc000u16.to_le_bytes());
    interrupts.queue(0);
    interrupts.queue(0);
    interrupts.config();
    assert_eq!(pending(), 0b11);
    driver.write32(control - 4, 99);
    assert_eq!(driver.vectors.take(), []);
    driver.function.config_write(0x42, &0x8000u16.to_le_bytes());
    let changed = MsiMessage {
        data: 99,
        ..message(1)
    };
    let expected = [
        Call::Trigger(0),
        Call::Program(1, Some(changed)),
        Call::Trigger(1),
    ];
    assert_eq!(driver.vectors.take(), expected);

    // Disabled: nothing is kept, the status tells those who poll.
    assert_eq!(driver.read(register::ISR), [2]);
    driver.function.config_write(0x42, &[0, 0]);
    assert_eq!(
        driver.vectors.take(),
        [0, 1, 2].map(|vector| Call::Program(vector, None))
    );
    request(&driver, &mut queues[0]);
    eventually("the status", || {
        (driver.read(register::ISR) == [1]).then_some(())
    });
    assert_eq!(driver.vectors.take(), []);
}

#[test]
fn a_reset_of_the_function_is_as_power_on() {
    let driver = driver();
    let mut queues = driver.connect(u64::MAX, 16);
    request(&driver, &mut queues[0]);
    driver.function.config_write(0x10, &[0xff; 4]);
    driver.function.reset();
    assert_eq!(config32(&driver, 0x04), 0x0010_0000);
    assert_eq!(config32(&driver, 0x10), BAR);
    driver.function.config_write(0x04, &[2]);
    assert_eq!(driver.status(), 0);
    assert_eq!(driver.read32(register::MSIX_TABLE + 16 + 12), 1, "masked");
    assert_eq!(driver.read32(register::MSIX_TABLE + 16), 0);
    assert_eq!(config::<2>(&driver, 0x42), [2, 0], "MSI-X is off");
    driver.write16(register::QUEUE_SELECT, 0);
    assert_eq!(driver.read16(register::QUEUE_ENABLE), 0);
    assert_eq!(driver.status() & status::NEEDS_RESET, 0);
}
