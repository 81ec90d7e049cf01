//! Rings and descriptors in memory.

use capsa_virtio::echo::Echo;
use capsa_virtio::raw_driver::{
    Descriptor, MEMORY, RawDriver, RawQueue, eventually, flag, readable, register, status, writable,
};
use vm_memory::GuestAddress;

use crate::{assert_answer, assert_usable, driver};

/// Bytes of the rings of a queue of 8.
const TABLE: u64 = 16 * 8;
const AVAILABLE: u64 = 6 + 2 * 8;
const USED: u64 = 6 + 8 * 8;

/// A queue of 8 whose rings are where `change` puts them.
fn place(driver: &RawDriver, change: impl FnOnce(&mut RawQueue)) -> RawQueue {
    driver.negotiate(u64::MAX);
    let mut queue = driver.place_queue(0, 8);
    change(&mut queue);
    driver.enable(&queue);
    queue
}

#[test]
fn rings_outside_of_memory_are_refused() {
    let (driver, gate) = driver();
    let end = MEMORY as u64;
    for (name, length) in [
        ("descriptors", TABLE),
        ("available", AVAILABLE),
        ("used", USED),
    ] {
        let set = |queue: &mut RawQueue, address| match name {
            "descriptors" => queue.descriptors = address,
            "available" => queue.available = address,
            _ => queue.used = address,
        };
        let bad = [
            end,
            (end - length + 16) & !15,
            end + 0x1000,
            1 << 32,
            1 << 63,
            !15,
            (u64::MAX - length) & !15,
            // Not aligned: odd is wrong for all three.
            0x3001,
        ];
        // The queue layer knows no available ring at 0.
        let nowhere = (name == "available").then_some(0);
        for address in bad.into_iter().chain(nowhere) {
            place(&driver, |queue| set(queue, address));
            assert_eq!(
                driver.read16(register::QUEUE_ENABLE),
                0,
                "{name} at {address:#x}"
            );
            assert_ne!(
                driver.status() & status::NEEDS_RESET,
                0,
                "{name} at {address:#x}"
            );
            // It tells as soon as the driver can be told, and does not start.
            driver.map_vectors();
            driver.vectors.take();
            driver.start();
            assert_eq!(driver.vectors.triggers(0), 1);
            driver.kick(0);
        }
    }
    assert_eq!(
        gate.activations.load(std::sync::atomic::Ordering::SeqCst),
        0
    );
    assert_usable(&driver);
}

#[test]
fn rings_at_the_very_end_of_memory_work() {
    let (driver, _) = driver();
    let end = MEMORY as u64;
    let mut ends = [
        place(&driver, |queue| queue.descriptors = end - TABLE),
        place(&driver, |queue| queue.available = end - AVAILABLE),
        place(&driver, |queue| queue.used = (end - USED) & !3),
    ];
    for queue in &mut ends {
        driver.negotiate(u64::MAX);
        for (address, length) in [
            (queue.descriptors, TABLE),
            (queue.available, AVAILABLE),
            (queue.used, USED),
        ] {
            driver.write_memory(address, &vec![0; usize::try_from(length).unwrap()]);
        }
        driver.enable(queue);
        assert_eq!(driver.read16(register::QUEUE_ENABLE), 1);
        driver.start();
        for _ in 0..20 {
            assert_answer(&driver, queue);
        }
    }
}

#[test]
fn rings_may_span_regions_but_not_holes() {
    let memory = [
        (GuestAddress(0), 0x10_0000),
        (GuestAddress(0x10_0000), 0x10_0000),
        (GuestAddress(0x30_0000), 0x10_0000),
    ];
    let driver = RawDriver::with_memory(Echo::new(&[16]).0, &memory);
    let mut queue = place(&driver, |queue| queue.descriptors = 0x10_0000 - 64);
    driver.start();
    assert_answer(&driver, &mut queue);
    place(&driver, |queue| queue.descriptors = 0x20_0000 - 64);
    assert_eq!(driver.read16(register::QUEUE_ENABLE), 0);
}

/// Chains after which the device goes on: what it can read of them is a request.
#[test]
fn chains_that_never_end_do() {
    let (driver, _) = driver();
    let buffer = driver.place(b"loop");
    let link = |next| Descriptor {
        flags: flag::NEXT,
        next,
        ..readable(buffer, 4)
    };
    let mut queues = driver.connect(u64::MAX, 8);
    let queue = &mut queues[0];
    // To itself; a ring of three; a ring of all, backwards; outside of the table.
    let tables: [&[u16]; 5] = [
        &[0],
        &[1, 2, 0],
        &[7, 0, 1, 2, 3, 4, 5, 6],
        &[8],
        &[u16::MAX],
    ];
    for nexts in tables {
        for (index, next) in (0..).zip(nexts) {
            queue.write_descriptor(index, link(*next));
        }
        queue.offer(0);
        driver.kick(0);
        assert_eq!(driver.wait_used(queue), (0, 0), "{nexts:?}");
    }
    // The same in a table of its own, to the fullest.
    let table: Vec<u8> = (0..8)
        .flat_map(|index| link((index + 1) % 8).to_bytes())
        .collect();
    let table = driver.place(&table);
    queue.write_descriptor(
        0,
        Descriptor {
            flags: flag::INDIRECT,
            ..readable(table, 128)
        },
    );
    queue.offer(0);
    driver.kick(0);
    assert_eq!(driver.wait_used(queue), (0, 0));
    assert_usable(&driver);
}

/// Indirect tables that are none.
#[test]
fn indirect_tables_of_every_wrong_kind_are_survived() {
    let (driver, _) = driver();
    let inner = driver.place(&readable(driver.place(b"in"), 2).to_bytes());
    let nested = driver.place(
        &Descriptor {
            flags: flag::INDIRECT,
            ..readable(inner, 16)
        }
        .to_bytes(),
    );
    let end = MEMORY as u64;
    let tables = [
        ("nested", nested, 16),
        ("itself", 0, 16),
        ("empty", inner, 0),
        ("a part of a descriptor", inner, 15),
        ("one and a half", inner, 24),
        ("more than can be counted", inner, 16 * 0x1_0000),
        ("as long as possible", inner, !15),
        ("beyond the end", end, 16),
        ("across the end", end - 8, 16),
        ("at the end of everything", u64::MAX - 7, 16),
    ];
    for (name, address, length) in tables {
        let mut queues = driver.connect(u64::MAX, 8);
        let queue = &mut queues[0];
        let address = if name == "itself" {
            queue.descriptors
        } else {
            address
        };
        for flags in [
            flag::INDIRECT,
            flag::INDIRECT | flag::NEXT,
            flag::INDIRECT | flag::WRITE,
        ] {
            let table = Descriptor {
                flags,
                next: 0,
                ..readable(address, length)
            };
            queue.write_descriptor(0, table);
            queue.offer(0);
        }
        driver.kick(0);
        // Given back or found fault with: either is an answer, silence is not.
        eventually(name, || {
            let refused = driver.status() & status::NEEDS_RESET != 0;
            (refused || queue.used_index() == 3).then_some(())
        });
        driver.set_status(0);
    }
    assert_usable(&driver);
}

#[test]
fn buffers_outside_of_memory_break_the_device_until_its_reset() {
    let (driver, gate) = driver();
    let end = MEMORY as u64;
    for bad in [
        readable(end, 1),
        readable(end - 1, 2),
        readable(0x1000, u32::MAX),
        readable(u64::MAX, 1),
        readable(u64::MAX - 3, 8),
        writable(end - 1, 2),
        writable(1 << 60, u32::MAX),
    ] {
        let mut queues = driver.connect(u64::MAX, 8);
        driver.vectors.take();
        queues[0].chain(&[bad]);
        driver.kick(0);
        driver.wait_needs_reset();
        eventually("the driver is told", || {
            (driver.vectors.triggers(0) == 1).then_some(())
        });
        // Nothing more is done for it, on no queue.
        let calls = gate.notifications.load(std::sync::atomic::Ordering::SeqCst);
        for queue in [0, 1] {
            queues[usize::from(queue)].chain(&[readable(0x1000, 1)]);
            driver.kick(queue);
        }
        driver.set_status(0);
        assert_eq!(driver.status(), 0);
        assert_eq!(
            gate.notifications.load(std::sync::atomic::Ordering::SeqCst),
            calls
        );
        assert_eq!(queues[1].used_index(), 0);
    }
    assert_usable(&driver);
}

#[test]
fn heads_outside_of_the_table_are_survived() {
    let (driver, _) = driver();
    for head in [8, 9, 0x7fff, u16::MAX] {
        let mut queues = driver.connect(u64::MAX, 8);
        queues[0].offer(head);
        driver.kick(0);
        driver.wait_needs_reset();
        assert_eq!(queues[0].used_index(), 0);
    }
    assert_usable(&driver);
}

#[test]
fn an_available_index_far_ahead_is_a_fault() {
    let (driver, _) = driver();
    for index in [9, 10, 0x7fff, 0x8000, u16::MAX] {
        let queues = driver.connect(u64::MAX, 8);
        queues[0].set_available_index(index);
        driver.kick(0);
        driver.wait_needs_reset();
    }
    // Exactly a whole ring is none: the same good chain, eight times.
    let mut queues = driver.connect(u64::MAX, 8);
    queues[0].write_descriptor(0, readable(driver.place(b"x"), 1));
    queues[0].set_available_index(8);
    driver.kick(0);
    for _ in 0..8 {
        assert_eq!(driver.wait_used(&mut queues[0]), (0, 0));
    }
    // Backwards is far ahead.
    queues[0].set_available_index(7);
    driver.kick(0);
    driver.wait_needs_reset();
    assert_usable(&driver);
}

#[test]
fn rings_upon_each_other_are_the_drivers_problem() {
    let (driver, _) = driver();
    driver.negotiate(u64::MAX);
    let mut queue = driver.place_queue(0, 8);
    queue.available = queue.descriptors + 2;
    queue.used = queue.descriptors;
    driver.enable(&queue);
    driver.start();
    for head in 0..100 {
        queue.offer(head);
        driver.kick(0);
    }
    driver.set_status(0);
    assert_eq!(driver.status(), 0);
    assert_usable(&driver);
}

#[test]
fn queues_that_are_not_enabled_are_silent() {
    let (driver, gate) = driver();
    driver.negotiate(u64::MAX);
    let mut queue = driver.place_queue(1, 8);
    driver.enable(&queue);
    driver.start();
    for _ in 0..100 {
        driver.kick(0);
    }
    assert_answer(&driver, &mut queue);
    driver.set_status(0);
    // Once at the start, and at most once for the request.
    assert!(gate.notifications.load(std::sync::atomic::Ordering::SeqCst) <= 2);
}
