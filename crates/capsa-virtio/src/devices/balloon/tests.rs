//! The balloon against a driver, with the host's own word for what memory is in use.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::{FileOffset, GuestMemoryBackend, GuestMemoryMmap};

use super::*;
use crate::devices::driver_ring::{Bench, DATA, OUTSIDE, UPPER};

const FEATURES: u64 = F_DEFLATE_ON_OOM | F_PAGE_POISON | F_PAGE_REPORTING;
const REPORTING: usize = 4;
/// Where the tests' own pages begin, in numbers and away from the rings and lists.
const PAGES: u32 = 0x100;

fn balloon() -> Bench<Balloon> {
    Bench::new(Balloon::new().unwrap(), FEATURES)
}

/// Which of the `count` pages from `first` on the process has memory for.
fn present(memory: &GuestMemoryMmap, first: u32, count: u64) -> Vec<bool> {
    let start = GuestAddress(u64::from(first) * BALLOON_PAGE);
    let host = memory.get_host_address(start).unwrap() as u64;
    let mut entries = vec![0; 8 * usize::try_from(count).unwrap()];
    // One entry of 64 bits for each page; the highest bit: it is in memory.
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    pagemap
        .read_exact_at(&mut entries, host / BALLOON_PAGE * 8)
        .unwrap();
    entries
        .chunks(8)
        .map(|entry| entry[7] & 0x80 != 0)
        .collect()
}

fn touch(bench: &Bench<Balloon>, first: u32, count: usize) {
    bench.write(u64::from(first) * BALLOON_PAGE, &vec![0xaa; 4096 * count]);
}

/// Sends page numbers in one chain.
fn send(bench: &mut Bench<Balloon>, queue: usize, pages: &[u32]) -> Result<(), DriverFault> {
    let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
    bench.write(DATA, &bytes);
    let length = u32::try_from(bytes.len()).unwrap();
    bench.rings[queue].offer(&[(DATA, length, false)]);
    bench.kick(queue)
}

#[test]
fn inflated_pages_go_back_to_the_host() {
    let mut bench = balloon();
    touch(&bench, PAGES, 8);
    assert_eq!(present(&bench.memory, PAGES, 8), [true; 8]);
    send(
        &mut bench,
        INFLATE,
        &[PAGES + 6, PAGES + 2, PAGES + 1, PAGES + 2],
    )
    .unwrap();
    assert_eq!(bench.rings[INFLATE].used().len(), 1);
    assert_eq!(
        present(&bench.memory, PAGES, 8),
        [true, false, false, true, true, true, false, true]
    );
    // They are the guest's again as soon as it touches them.
    send(&mut bench, DEFLATE, &[PAGES + 1, PAGES + 2, PAGES + 6]).unwrap();
    touch(&bench, PAGES + 1, 2);
    assert_eq!(bench.read(u64::from(PAGES + 6) * BALLOON_PAGE, 4), [0; 4]);
    assert_eq!(
        bench.read(u64::from(PAGES + 1) * BALLOON_PAGE, 4),
        [0xaa; 4]
    );
}

#[test]
fn reported_ranges_go_back_to_the_host() {
    // By the specification, and by what Linux counts.
    for queue in [REPORTING, 2] {
        let mut bench = balloon();
        touch(&bench, PAGES, 8);
        let at = u64::from(PAGES) * BALLOON_PAGE;
        bench.rings[queue].offer(&[(at, 0x2000, true), (at + 0x4000, 0x1000, true)]);
        bench.kick(queue).unwrap();
        assert_eq!(bench.rings[queue].used().len(), 1);
        assert_eq!(
            present(&bench.memory, PAGES, 8),
            [false, false, true, true, false, true, true, true]
        );
    }
}

#[test]
fn poisoned_pages_keep_their_poison() {
    let mut bench = balloon();
    touch(&bench, PAGES, 1);
    bench.device.config().write_by_driver(POISON, &[0xaa; 4]);
    bench.rings[REPORTING].offer(&[(u64::from(PAGES) * BALLOON_PAGE, 0x1000, true)]);
    bench.kick(REPORTING).unwrap();
    assert_eq!(bench.rings[REPORTING].used().len(), 1);
    assert_eq!(bench.read(u64::from(PAGES) * BALLOON_PAGE, 4), [0xaa; 4]);
}

#[test]
fn shared_memory_goes_back_too() {
    let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
    ftruncate(&file, OUTSIDE).unwrap();
    let seen = file.try_clone().unwrap();
    let range = (
        GuestAddress(0),
        usize::try_from(OUTSIDE).unwrap(),
        Some(FileOffset::new(file, 0)),
    );
    let memory = Arc::new(GuestMemoryMmap::from_ranges_with_files([range]).unwrap());
    let mut bench = Bench::with_memory(Balloon::new().unwrap(), FEATURES, 16, memory);
    touch(&bench, PAGES, 16);
    let before = seen.metadata().unwrap().blocks();
    let pages: Vec<u32> = (PAGES..PAGES + 16).collect();
    send(&mut bench, INFLATE, &pages).unwrap();
    // Blocks are of 512 bytes. The list of numbers itself took a page.
    let after = seen.metadata().unwrap().blocks();
    assert_eq!(before + 8 - after, 16 * 8);
    assert_eq!(bench.read(u64::from(PAGES) * BALLOON_PAGE, 4), [0; 4]);
}

#[test]
fn a_run_across_adjacent_regions_goes_back() {
    let boundary = OUTSIDE / 2;
    let length = usize::try_from(boundary).unwrap();
    let regions = [(GuestAddress(0), length), (GuestAddress(boundary), length)];
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&regions).unwrap());
    let mut bench = Bench::with_memory(Balloon::new().unwrap(), FEATURES, 16, memory);
    let first = u32::try_from(boundary / BALLOON_PAGE).unwrap() - 1;
    touch(&bench, first, 2);
    send(&mut bench, INFLATE, &[first, first + 1]).unwrap();
    assert_eq!(present(&bench.memory, first, 1), [false]);
    assert_eq!(present(&bench.memory, first + 1, 1), [false]);
}

#[test]
fn pages_that_are_none_are_refused_and_nothing_else_is_lost() {
    let above = u32::try_from(OUTSIDE / BALLOON_PAGE).unwrap();
    for page in [above, u32::MAX, above + 0x100] {
        let mut bench = balloon();
        send(&mut bench, INFLATE, &[page]).unwrap_err();
        assert_eq!(bench.rings[INFLATE].used(), []);
    }
    let at = u64::from(PAGES) * BALLOON_PAGE;
    for range in [
        (at + 1, 0x1000, true),
        (at, 0x1001, true),
        (OUTSIDE, 0x1000, true),
        (OUTSIDE - 0x1000, 0x2000, true),
        (u64::MAX - 0xfff, 0x1000, true),
        (at, 0xffff_f000, true),
    ] {
        let mut bench = balloon();
        touch(&bench, PAGES, 1);
        bench.rings[REPORTING].offer(&[range]);
        bench.kick(REPORTING).unwrap_err();
        assert_eq!(present(&bench.memory, PAGES, 1), [true]);
    }
}

#[test]
fn lists_that_are_none_are_refused() {
    for buffers in [
        &[(DATA, 3, false)][..],
        &[(DATA, 4, false), (OUTSIDE, 4, false)],
        &[(DATA, u32::MAX, false)],
        &[(DATA, 4 * 4096 + 4, false)],
        &[(UPPER, 0x10_0000, false)],
    ] {
        let mut bench = balloon();
        bench.rings[INFLATE].offer(buffers);
        bench.kick(INFLATE).unwrap_err();
    }
    // Empty ones, and what the device would write, harm nobody.
    let mut bench = balloon();
    bench.rings[INFLATE].offer(&[(DATA, 0, false)]);
    bench.rings[INFLATE].offer(&[(OUTSIDE, 4, true)]);
    bench.rings[DEFLATE].offer(&[(OUTSIDE, 4, false)]);
    bench.rings[REPORTING].offer(&[(DATA, 8, false)]);
    for queue in [INFLATE, DEFLATE, REPORTING] {
        bench.kick(queue).unwrap();
    }
    assert_eq!(bench.rings[INFLATE].used().len(), 2);
    assert_eq!(bench.rings[DEFLATE].used().len(), 1);
    assert_eq!(bench.rings[REPORTING].used().len(), 1);
}

#[test]
fn many_requests_are_served_in_several_goes() {
    let mut bench = Bench::with_queue_size(Balloon::new().unwrap(), FEATURES, 64);
    for _ in 0..64 {
        bench.rings[DEFLATE].offer(&[(DATA, 4, false)]);
    }
    bench.kick(DEFLATE).unwrap();
    assert_eq!(bench.rings[DEFLATE].used().len(), BATCH);
    bench.settle().unwrap();
    assert_eq!(bench.rings[DEFLATE].used().len(), 64 - BATCH);
}

#[test]
fn the_host_sets_a_target_and_reads_what_the_guest_has() {
    let mut bench = balloon();
    let handle = bench.device.handle();
    handle.set_target(0x1_0203);
    bench.settle().unwrap();
    assert_eq!(bench.config_interrupts(), 1);
    let mut target = [0; 4];
    bench.device.config().read(NUM_PAGES, &mut target);
    assert_eq!(u32::from_le_bytes(target), 0x1_0203);

    // A driver that writes everything changes only what is its own.
    bench.device.config().write_by_driver(0, &[7; CONFIG_SIZE]);
    assert_eq!(handle.target(), 0x1_0203);
    assert_eq!(handle.actual(), 0x0707_0707);
    let _bench = bench.restart();
    assert_eq!(handle.target(), 0x1_0203, "the target is the host's");
    assert_eq!(handle.actual(), 0);
}
