//! The register machine.

use capsa_virtio::echo::FEATURES;
use capsa_virtio::pci::BAR_SIZE;
use capsa_virtio::raw_driver::{RawDriver, register, status};

use crate::{assert_usable, driver};

const VERSION_1: u64 = 1 << 32;

/// All that a driver reads without changing anything.
fn common(driver: &RawDriver) -> [u8; 0x38] {
    driver.read(0)
}

#[test]
fn features_that_are_not_offered_are_refused() {
    let (driver, _) = driver();
    let offered = driver.offered_features();
    assert_eq!(offered, FEATURES | VERSION_1 | 1 << 29 | 1 << 28);
    for accepted in [
        u64::MAX,
        offered | 1 << 1,
        offered | 1 << 63,
        // Queue reset, a packed ring, notification data: none of which is there.
        offered | 1 << 40,
        offered | 1 << 34,
        offered | 1 << 38,
        // A legacy driver.
        offered & !VERSION_1,
        0,
    ] {
        driver.set_status(0);
        driver.set_status(status::ACKNOWLEDGE | status::DRIVER);
        driver.accept_features(accepted);
        let wanted = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        driver.set_status(wanted);
        assert_eq!(
            driver.status(),
            wanted & !status::FEATURES_OK,
            "{accepted:#x}"
        );
        // Nor does it start.
        driver.set_status(wanted | status::DRIVER_OK);
        assert_eq!(
            driver.status(),
            wanted & !status::FEATURES_OK,
            "{accepted:#x}"
        );
    }
    // Another choice is possible without a reset.
    driver.accept_features(VERSION_1);
    driver.set_status(driver.status() | status::FEATURES_OK);
    assert_ne!(driver.status() & status::FEATURES_OK, 0);
    assert_usable(&driver);
}

#[test]
fn accepted_features_are_settled() {
    let (driver, gate) = driver();
    driver.negotiate(VERSION_1);
    driver.accept_features(VERSION_1 | FEATURES);
    driver.start();
    driver.accept_features(u64::MAX);
    driver.write32(register::DRIVER_FEATURE_SELECT, 1);
    assert_eq!(driver.read32(register::DRIVER_FEATURE), 1);
    // The stop follows the activation.
    driver.set_status(0);
    assert_eq!(*gate.features.lock().unwrap(), VERSION_1);
}

#[test]
fn unknown_feature_selectors_are_empty() {
    let (driver, _) = driver();
    driver.set_status(status::ACKNOWLEDGE | status::DRIVER);
    driver.accept_features(VERSION_1);
    for select in [2, 3, 31, 32, u32::MAX] {
        driver.write32(register::DEVICE_FEATURE_SELECT, select);
        driver.write32(register::DRIVER_FEATURE_SELECT, select);
        driver.write32(register::DRIVER_FEATURE, u32::MAX);
        assert_eq!(driver.read32(register::DEVICE_FEATURE), 0);
        assert_eq!(driver.read32(register::DRIVER_FEATURE), 0);
    }
    for (select, expected) in [(0, 0), (1, 1)] {
        driver.write32(register::DRIVER_FEATURE_SELECT, select);
        assert_eq!(driver.read32(register::DRIVER_FEATURE), expected);
    }
}

#[test]
fn steps_out_of_order_are_not_taken() {
    use status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET};
    let (driver, gate) = driver();
    driver.accept_features(VERSION_1);
    for (wanted, reached) in [
        (DRIVER_OK, 0),
        (FEATURES_OK, 0),
        (DRIVER, 0),
        (NEEDS_RESET, 0),
        (DRIVER | FEATURES_OK | DRIVER_OK, 0),
        (ACKNOWLEDGE, ACKNOWLEDGE),
        (ACKNOWLEDGE | FEATURES_OK | DRIVER_OK, ACKNOWLEDGE),
        // The driver has to look at FEATURES_OK before it goes on.
        (0x7f, ACKNOWLEDGE | DRIVER | FEATURES_OK),
        // No bit is taken back but all.
        (ACKNOWLEDGE, ACKNOWLEDGE | DRIVER | FEATURES_OK),
        (DRIVER_OK, ACKNOWLEDGE | DRIVER | FEATURES_OK),
        (0, 0),
    ] {
        driver.set_status(wanted);
        assert_eq!(driver.status(), reached, "{wanted:#x}");
    }
    assert_eq!(gate.resets.load(std::sync::atomic::Ordering::SeqCst), 0);
    // A driver that gave up does not go on.
    driver.negotiate(VERSION_1);
    driver.set_status(driver.status() | 0x80);
    driver.start();
    assert_eq!(driver.status() & DRIVER_OK, 0);
    assert_usable(&driver);
}

#[test]
fn only_the_size_of_a_power_of_two_within_the_limit_is_taken() {
    let (driver, _) = driver();
    driver.negotiate(u64::MAX);
    driver.write16(register::QUEUE_SELECT, 0);
    assert_eq!(driver.read16(register::QUEUE_SIZE), 64);
    for size in [0, 3, 63, 65, 128, 0x8000, 0x8001, u16::MAX] {
        driver.write16(register::QUEUE_SIZE, size);
        assert_eq!(driver.read16(register::QUEUE_SIZE), 64, "{size}");
    }
    for size in [1, 2, 32] {
        driver.write16(register::QUEUE_SIZE, size);
        assert_eq!(driver.read16(register::QUEUE_SIZE), size);
    }
    driver.write16(register::QUEUE_SELECT, 1);
    driver.write16(register::QUEUE_SIZE, 64);
    assert_eq!(
        driver.read16(register::QUEUE_SIZE),
        16,
        "the other queue's limit"
    );
    assert_usable(&driver);
}

#[test]
fn queues_that_do_not_exist_are_not_the_last_one() {
    let (driver, _) = driver();
    driver.negotiate(u64::MAX);
    driver.write16(register::QUEUE_SELECT, 1);
    let before = common(&driver);
    for queue in [2, 3, 255, 256, 0x7fff, u16::MAX] {
        driver.write16(register::QUEUE_SELECT, queue);
        assert_eq!(driver.read16(register::QUEUE_SIZE), 0);
        assert_eq!(driver.read16(register::QUEUE_MSIX_VECTOR), 0xffff);
        assert_eq!(driver.read::<0x1c>(register::QUEUE_ENABLE), [0; 0x1c]);
        driver.write16(register::QUEUE_SIZE, 2);
        driver.write16(register::QUEUE_MSIX_VECTOR, 1);
        driver.write_address(register::QUEUE_DESC, 0x1000);
        driver.write16(register::QUEUE_ENABLE, 1);
        driver.kick(queue);
    }
    driver.write16(register::QUEUE_SELECT, 1);
    assert_eq!(common(&driver), before);
    assert_usable(&driver);
}

#[test]
fn an_enabled_queue_stays_as_it_is() {
    let (driver, _) = driver();
    let mut queues = driver.connect(u64::MAX, 8);
    for running in [true, false] {
        if !running {
            driver.negotiate(u64::MAX);
            queues = vec![driver.place_queue(0, 8)];
            driver.enable(&queues[0]);
        }
        driver.write16(register::QUEUE_SELECT, 0);
        let before = common(&driver);
        driver.write_address(register::QUEUE_DESC, 0x1000);
        driver.write(register::QUEUE_DRIVER, &[0; 8]);
        driver.write32(register::QUEUE_DEVICE + 4, 1);
        driver.write16(register::QUEUE_SIZE, 4);
        driver.write16(register::QUEUE_ENABLE, 0);
        assert_eq!(common(&driver), before);
    }
    driver.start();
    crate::assert_answer(&driver, &mut queues[0]);
    // A second queue is too late.
    let late = driver.place_queue(1, 8);
    driver.enable(&late);
    assert_eq!(driver.read16(register::QUEUE_ENABLE), 0);
    assert_eq!(driver.read16(register::QUEUE_SIZE), 16);
    driver.kick(1);
    crate::assert_answer(&driver, &mut queues[0]);
}

#[test]
fn nothing_is_set_up_before_the_features() {
    let (driver, _) = driver();
    driver.set_status(status::ACKNOWLEDGE | status::DRIVER);
    let queue = driver.place_queue(0, 8);
    driver.enable(&queue);
    assert_eq!(driver.read16(register::QUEUE_ENABLE), 0);
    assert_eq!(driver.read16(register::QUEUE_SIZE), 64);
    assert_eq!(driver.read::<24>(register::QUEUE_DESC), [0; 24]);
}

/// Accesses of every width at every offset of the BAR and beyond, without a driver and with one.
#[test]
fn accesses_of_any_width_and_place_are_answered() {
    let (driver, gate) = driver();
    for connected in [false, true] {
        if connected {
            driver.connect(u64::MAX, 8);
        }
        let ends = [BAR_SIZE.into(), u64::from(u32::MAX), u64::MAX - 16];
        let beyond = ends.iter().flat_map(|end| end - 8..end + 16);
        for offset in (0..0x6010u64).chain(beyond) {
            for width in [0, 1, 2, 3, 4, 8, 16] {
                let mut data = [0x5a; 16];
                driver.function.bar_read(offset, &mut data[..width]);
                assert_eq!(
                    data[width..],
                    [0x5a; 16][width..],
                    "{width} bytes at {offset:#x}"
                );
                let inside = offset
                    .checked_add(width as u64)
                    .is_some_and(|end| end <= 0x6000);
                if !inside {
                    assert_eq!(
                        data[..width],
                        [0; 16][..width],
                        "{width} bytes at {offset:#x}"
                    );
                }
            }
            // A value that is no status and no power of two, so that the machine stays up.
            for width in [1usize, 2, 3, 4, 8, 16] {
                let value = [0xf3; 16];
                driver.function.bar_write(offset, &value[..width]);
            }
        }
    }
    driver.set_status(0);
    assert!(gate.notifications.load(std::sync::atomic::Ordering::SeqCst) > 0);
    assert_usable(&driver);
}

#[test]
fn registers_are_written_as_a_whole() {
    let (driver, _) = driver();
    driver.negotiate(u64::MAX);
    driver.write16(register::QUEUE_SELECT, 0);
    let before = common(&driver);
    // Halves, doubles and shifted ones.
    driver.write(register::QUEUE_SELECT, &[1]);
    driver.write(register::QUEUE_SIZE, &[2]);
    driver.write32(register::QUEUE_SIZE, 2);
    driver.write16(register::QUEUE_DESC, 0x1000);
    driver.write32(register::QUEUE_DESC + 2, 0x1000);
    driver.write(register::QUEUE_DESC + 4, &[1; 8]);
    driver.write(register::QUEUE_DEVICE + 4, &[1; 8]);
    driver.write16(register::DEVICE_STATUS, 0);
    driver.write32(register::DEVICE_STATUS, 0);
    driver.write(register::DEVICE_STATUS, &[]);
    driver.write32(register::QUEUE_ENABLE, 1);
    driver.write16(register::QUEUE_ENABLE, 2);
    // What can only be read.
    driver.write16(register::NUM_QUEUES, 7);
    driver.write(register::CONFIG_GENERATION, &[9]);
    driver.write16(register::QUEUE_NOTIFY_OFF, 9);
    driver.write32(register::DEVICE_FEATURE, 0);
    assert_eq!(common(&driver), before);
    assert_usable(&driver);
}
