use std::sync::atomic::Ordering;
use std::thread;

use virtio_queue::{Queue, QueueT};

use super::*;
use crate::echo::{Echo, FAULT, Gate, PANIC, WAIT};
use crate::interrupt::Interrupt;
use crate::raw_driver::{RawDriver, RawQueue, eventually, readable};

/// Memory and a ring in it; the driver's own function stays unused.
struct Bench {
    driver: RawDriver,
    ring: RawQueue,
    notifications: Arc<[Notification]>,
    gate: Arc<Gate>,
}

struct Silent;

impl Interrupt for Silent {
    fn queue(&self, _index: u16) {}
    fn config(&self) {}
}

fn bench() -> (Bench, Work) {
    let (other, _) = Echo::new(&[16]);
    let driver = RawDriver::new(other);
    let ring = driver.place_queue(0, 16);
    let mut queue = Queue::new(16).unwrap();
    let halves = |address: u64| (u32::try_from(address).ok(), Some(0));
    let (low, high) = halves(ring.descriptors);
    queue.set_desc_table_address(low, high);
    let (low, high) = halves(ring.available);
    queue.set_avail_ring_address(low, high);
    let (low, high) = halves(ring.used);
    queue.set_used_ring_address(low, high);
    queue.set_ready(true);
    let queue = Virtqueue::new(0, queue, Arc::clone(&driver.memory), Arc::new(Silent));
    let notifications: Arc<[_]> = [Notification::new().unwrap()].into();
    let (device, gate) = Echo::new(&[16]);
    let work = Work::new(device, vec![queue], Arc::clone(&notifications), 5);
    let bench = Bench {
        driver,
        ring,
        notifications,
        gate,
    };
    (bench, work)
}

impl Bench {
    fn send(&mut self, bytes: &[u8]) {
        let address = self.driver.place(bytes);
        let length = u32::try_from(bytes.len()).unwrap();
        self.ring.chain(&[readable(address, length)]);
        self.notifications[0].raise();
    }

    fn receive(&mut self) {
        self.driver.wait_used(&mut self.ring);
    }
}

fn start(work: Work) -> Worker {
    let unexpected = || panic!("the device broke");
    Worker::start("capsa-echo0", work, unexpected)
        .map_err(|(error, _)| error)
        .unwrap()
}

#[test]
fn a_pause_loses_nothing() {
    let (mut bench, mut work) = bench();
    for _ in 0..100 {
        // Before, during and after a pause.
        bench.send(b"a");
        let worker = start(work);
        bench.send(b"b");
        bench.receive();
        work = worker.stop();
        bench.send(b"c");
        let worker = start(work);
        bench.receive();
        bench.receive();
        work = worker.stop();
    }
    assert_eq!(bench.gate.activations.load(Ordering::SeqCst), 1);
    assert_eq!(*bench.gate.features.lock().unwrap(), 5);
}

/// What a driver adds meanwhile, be it for ever, is left for later.
#[test]
fn a_stop_comes_through_while_there_is_more_to_do() {
    let (mut bench, work) = bench();
    bench.send(WAIT);
    let worker = start(work);
    bench.gate.until_waiting();
    bench.send(b"more");
    let halt = Arc::clone(&worker.stop.halt);
    let work = thread::scope(|scope| {
        let end = scope.spawn(move || worker.stop());
        eventually("the stop", || halt.load(Ordering::Relaxed).then_some(()));
        bench.gate.open();
        end.join().unwrap()
    });
    assert_eq!(bench.ring.used_index(), 1);
    let worker = start(work);
    bench.receive();
    bench.receive();
    drop(worker);
}

#[test]
fn what_was_there_before_needs_no_notification() {
    let (mut bench, work) = bench();
    bench.send(b"early");
    bench.notifications[0].clear();
    let worker = start(work);
    bench.receive();
    let work = worker.stop();
    bench.send(b"in the pause");
    bench.notifications[0].clear();
    let _worker = start(work);
    bench.receive();
}

#[test]
fn a_device_that_breaks_is_reported_once_and_can_be_stopped() {
    for command in [PANIC, FAULT] {
        let (mut bench, work) = bench();
        let (tell, told) = mpsc::channel();
        let worker = Worker::start("capsa-echo0", work, move || tell.send(()).unwrap())
            .map_err(|(error, _)| error)
            .unwrap();
        bench.send(command);
        told.recv().unwrap();
        let calls = bench.gate.notifications.load(Ordering::SeqCst);
        bench.send(b"more");
        let work = worker.stop();
        // The end of the thread dropped the other side.
        told.recv().unwrap_err();
        // Continuing is nothing either, until the reset.
        start(work).stop();
        assert_eq!(bench.gate.notifications.load(Ordering::SeqCst), calls);
    }
}

#[test]
fn a_drop_waits_for_the_call_that_the_device_is_in() {
    let (mut bench, work) = bench();
    bench.send(WAIT);
    let worker = start(work);
    bench.gate.until_waiting();
    thread::scope(|scope| {
        let end = scope.spawn(move || drop(worker));
        bench.gate.open();
        end.join().unwrap();
    });
    assert_eq!(bench.ring.used_index(), 1);
    assert_eq!(
        Arc::strong_count(&bench.notifications),
        1,
        "nothing is left of the work"
    );
}
