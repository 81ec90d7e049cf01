//! Resets at every moment, and what is left after them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use capsa_virtio::echo::{FAULT, PANIC, WAIT};
use capsa_virtio::raw_driver::{eventually, readable, register, status};

use crate::{assert_answer, assert_usable, driver};

/// Descriptors and threads of this process.
fn footprint() -> (usize, usize) {
    let count = |folder: &str| std::fs::read_dir(folder).unwrap().count();
    (count("/proc/self/fd"), count("/proc/self/task"))
}

/// Waits for a footprint. A thread that has been joined is listed for a moment longer.
fn settle(what: &str, is_reached: impl Fn((usize, usize)) -> bool) {
    eventually(what, || is_reached(footprint()).then_some(()));
}

/// Alone in its process, as nextest runs every test.
#[test]
fn a_thousand_resets_leave_nothing_behind() {
    let (driver, gate) = driver();
    let (_, threads) = footprint();
    driver.connect(u64::MAX, 8);
    driver.set_status(0);
    settle("the thread ends with a reset", |now| now.1 == threads);
    let before = footprint();
    let running = {
        let queues = [driver.place_queue(0, 8), driver.place_queue(1, 8)];
        move |driver: &capsa_virtio::raw_driver::RawDriver| {
            driver.negotiate(u64::MAX);
            queues.iter().for_each(|queue| driver.enable(queue));
            driver.start();
        }
    };
    for round in 0..1000 {
        running(&driver);
        if round % 2 == 0 {
            driver.kick(0);
        }
        driver.set_status(0);
        assert_eq!(driver.status(), 0);
        // And some more, of nothing.
        driver.set_status(0);
    }
    settle("the footprint of before", |now| now == before);
    assert_eq!(gate.resets.load(Ordering::SeqCst), 1001);
    running(&driver);
    assert_ne!(footprint(), before, "the counts see a running device");
    drop(driver);
    // The gate's wake-up is the test's.
    settle(
        "the thread and the notifications of both queues are gone",
        |now| now.0 < before.0 && now.1 == threads,
    );
}

#[test]
fn a_reset_waits_for_the_call_that_the_device_is_in() {
    let (driver, gate) = driver();
    let mut queues = driver.connect(u64::MAX, 8);
    queues[0].chain(&[readable(driver.place(WAIT), 4)]);
    driver.kick(0);
    gate.until_waiting();
    thread::scope(|scope| {
        let reset = scope.spawn(|| {
            driver.set_status(0);
            driver.status()
        });
        // Another processor's look at the status sees all of the reset or nothing of it.
        let look = scope.spawn(|| driver.status());
        gate.open();
        assert_eq!(reset.join().unwrap(), 0);
        let seen = look.join().unwrap();
        assert!(seen == 0 || seen & status::DRIVER_OK != 0, "{seen:#x}");
    });
    assert_eq!(gate.resets.load(Ordering::SeqCst), 1);
    assert_usable(&driver);
}

#[test]
fn nothing_is_written_to_memory_after_a_reset() {
    let (driver, _) = driver();
    for _ in 0..50 {
        let mut queues = driver.connect(u64::MAX, 8);
        for _ in 0..8 {
            queues[0].chain(&[readable(driver.place(b"x"), 1)]);
        }
        driver.kick(0);
        driver.set_status(0);
        let rings = driver.read_memory(queues[0].used, 70);
        queues[0].set_available_index(100);
        driver.kick(0);
        driver.negotiate(u64::MAX);
        driver.start();
        driver.set_status(0);
        assert_eq!(driver.read_memory(queues[0].used, 70), rings);
    }
}

#[test]
fn a_device_that_breaks_works_again_after_a_reset() {
    let (driver, _) = driver();
    for command in [PANIC, FAULT, PANIC] {
        let mut queues = driver.connect(u64::MAX, 8);
        queues[0].chain(&[readable(driver.place(command), 5)]);
        driver.kick(0);
        driver.wait_needs_reset();
        // It is up to the driver when: the status stays.
        driver.set_status(driver.status());
        assert_ne!(driver.status() & status::NEEDS_RESET, 0);
        assert_usable(&driver);
    }
}

#[test]
fn a_broken_device_can_be_dropped() {
    for command in [PANIC, FAULT] {
        let (driver, _) = driver();
        let mut queues = driver.connect(u64::MAX, 8);
        queues[0].chain(&[readable(driver.place(command), 5)]);
        driver.kick(0);
        driver.wait_needs_reset();
    }
}

/// Resets, notifications, register accesses and requests by several processors at once.
#[test]
fn processors_that_disagree_do_not_stop_each_other() {
    let (driver, _) = driver();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                driver.kick(0);
                driver.kick(1);
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let vector = driver.read16(register::CONFIG_MSIX_VECTOR);
                driver.write16(register::CONFIG_MSIX_VECTOR, vector ^ 1);
                driver.function.config_write(0x42, &[0, 0xc0]);
                driver.function.config_write(0x42, &[0, 0x80]);
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                driver.set_status(0);
            }
        });
        for _ in 0..200 {
            let queue = driver.place_queue(0, 8);
            driver.set_status(status::ACKNOWLEDGE | status::DRIVER);
            driver.accept_features(1 << 32);
            driver.set_status(0x0b);
            driver.enable(&queue);
            driver.set_status(0x0f);
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_usable(&driver);
}

#[test]
fn a_storm_of_notifications_is_few_calls() {
    let (driver, gate) = driver();
    let mut queues = driver.connect(u64::MAX, 8);
    queues[0].chain(&[readable(driver.place(WAIT), 4)]);
    driver.kick(0);
    gate.until_waiting();
    let before = gate.notifications.load(Ordering::SeqCst);
    for _ in 0..10_000 {
        driver.kick(0);
    }
    gate.open();
    driver.wait_used(&mut queues[0]);
    assert_answer(&driver, &mut queues[1]);
    driver.set_status(0);
    let calls = gate.notifications.load(Ordering::SeqCst) - before;
    assert!(calls < 200, "{calls} calls for 10,000 notifications");
    assert_usable(&driver);
}

/// With any value in any width, but only at its address.
#[test]
fn a_queue_is_notified_at_its_address() {
    let (driver, _) = driver();
    let raised = || -> Vec<bool> {
        let notifications = driver.function.notifications();
        notifications
            .map(|(_, eventfd)| eventfd.read().is_ok())
            .collect()
    };
    for width in [1, 2, 4, 8] {
        for offset in 0..0x1000 {
            driver.write(register::NOTIFY + offset, &[0xff; 8][..width]);
            // A write across the region's end is to nothing.
            assert_eq!(
                raised(),
                [offset == 0, offset == 4],
                "{width} at {offset:#x}"
            );
        }
    }
}

#[test]
fn no_interrupt_outlives_a_reset() {
    let (driver, _) = driver();
    let mut queues = driver.connect(1 << 32, 8);
    // Masked, so that it stays pending.
    let control = register::MSIX_TABLE + 16 + 12;
    driver.write32(control, 1);
    assert_answer(&driver, &mut queues[0]);
    driver.set_status(0);
    driver.vectors.take();
    assert_eq!(driver.read(register::MSIX_PENDING), [0; 8]);
    driver.write32(control, 0);
    assert_eq!(driver.vectors.take(), []);
    assert_eq!(driver.read16(register::CONFIG_MSIX_VECTOR), 0xffff);
    for queue in [0, 1] {
        driver.write16(register::QUEUE_SELECT, queue);
        assert_eq!(driver.read16(register::QUEUE_MSIX_VECTOR), 0xffff);
    }
}
