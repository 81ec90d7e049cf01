//! Interrupt vectors.

use capsa_virtio::raw_driver::{Call, eventually, register};

use crate::{assert_answer, assert_usable, driver};

#[test]
fn vectors_beyond_the_table_are_none() {
    let (driver, gate) = driver();
    let mut queues = driver.connect(u64::MAX, 8);
    driver.write16(register::QUEUE_SELECT, 0);
    for vector in [3, 4, 2047, 2048, 0x7fff, 0xfffe, 0xffff] {
        driver.write16(register::CONFIG_MSIX_VECTOR, 0);
        driver.write16(register::QUEUE_MSIX_VECTOR, 1);
        driver.write16(register::CONFIG_MSIX_VECTOR, vector);
        driver.write16(register::QUEUE_MSIX_VECTOR, vector);
        assert_eq!(driver.read16(register::CONFIG_MSIX_VECTOR), 0xffff);
        assert_eq!(driver.read16(register::QUEUE_MSIX_VECTOR), 0xffff);
    }
    driver.vectors.take();
    assert_answer(&driver, &mut queues[0]);
    gate.poke.raise();
    // Told by the status alone.
    eventually("the status", || {
        (driver.read(register::ISR) == [2]).then_some(())
    });
    // Sent, if at all, before the end of the worker.
    driver.set_status(0);
    assert_eq!(driver.vectors.take(), []);
    assert_usable(&driver);
}

#[test]
fn one_vector_may_serve_all() {
    let (driver, gate) = driver();
    let mut queues = driver.connect(u64::MAX, 8);
    driver.write16(register::CONFIG_MSIX_VECTOR, 2);
    driver.write16(register::QUEUE_SELECT, 0);
    driver.write16(register::QUEUE_MSIX_VECTOR, 2);
    driver.vectors.take();
    assert_answer(&driver, &mut queues[0]);
    assert_answer(&driver, &mut queues[1]);
    gate.poke.raise();
    eventually("the status", || {
        (driver.read(register::ISR) == [2]).then_some(())
    });
    driver.set_status(0);
    let calls = driver.vectors.take();
    assert!(calls.contains(&Call::Trigger(2)));
    assert!(
        calls.iter().all(|call| *call == Call::Trigger(2)),
        "{calls:?}"
    );
}

#[test]
fn the_event_index_counts_only_when_it_was_agreed() {
    let (driver, _) = driver();
    for (features, expected) in [(1 << 32, 1), (1 << 32 | 1 << 29, 0)] {
        let mut queues = driver.connect(features, 8);
        driver.vectors.take();
        // Not before the sixth.
        queues[0].set_used_event(5);
        assert_answer(&driver, &mut queues[0]);
        driver.set_status(0);
        assert_eq!(driver.vectors.triggers(1), expected);
    }
}

#[test]
fn pending_interrupts_end_with_msix() {
    let (driver, _) = driver();
    let mut queues = driver.connect(1 << 32, 8);
    driver.function.config_write(0x42, &0xc000u16.to_le_bytes());
    assert_answer(&driver, &mut queues[0]);
    // Sent before the next call of the device, so that it is pending now.
    assert_answer(&driver, &mut queues[0]);
    assert_eq!(driver.read(register::MSIX_PENDING), [0b10]);
    driver.function.config_write(0x42, &[0, 0]);
    driver.vectors.take();
    driver.function.config_write(0x42, &0x8000u16.to_le_bytes());
    assert_eq!(driver.read(register::MSIX_PENDING), [0]);
    let calls = driver.vectors.take();
    assert!(
        calls.iter().all(|call| matches!(call, Call::Program(..))),
        "{calls:?}"
    );
}

/// The table is written in every wrong way while the device interrupts.
#[test]
fn a_table_that_changes_all_the_time_is_only_the_drivers_loss() {
    let (driver, _) = driver();
    let mut queues = driver.connect(u64::MAX, 8);
    for round in 0..500u64 {
        let place = register::MSIX_TABLE + round * 7 % 64;
        let bytes = round.wrapping_mul(0x0101_0101_0101_0101).to_le_bytes();
        driver.write(
            place,
            &bytes[..[1, 2, 3, 4, 8][usize::try_from(round % 5).unwrap()]],
        );
        let control = [0x8000u16, 0xc000, 0, 0x4000, 0xffff][usize::try_from(round % 5).unwrap()];
        driver.function.config_write(0x42, &control.to_le_bytes());
        driver.write(register::MSIX_PENDING, &[0xff; 8]);
        assert_answer(&driver, &mut queues[0]);
    }
    driver.set_status(0);
    // Nothing was sent where nothing was programmed, or to an unknown vector.
    let mut programmed = [false; 3];
    for call in driver.vectors.take() {
        match call {
            Call::Program(vector, message) => {
                programmed[usize::from(vector)] = message.is_some();
                assert_eq!(message.map_or(0, |message| message.address & 3), 0);
            }
            Call::Trigger(vector) => assert!(programmed[usize::from(vector)]),
        }
    }
}
