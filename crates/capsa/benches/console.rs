//! How fast a console takes output while somebody waits for a prompt, beside the fastest search for
//! the same text in memory (`memchr::memmem`) and a plain copy.

use divan::counter::BytesCount;
use divan::{Bencher, black_box};

/// What a socket's read brings.
const CHUNK: usize = 64 << 10;

fn main() {
    divan::main();
}

/// 4 MiB like a boot log, with the prompt at its end.
fn boot_log() -> Vec<u8> {
    let mut log = Vec::with_capacity(4 << 20);
    let mut line = 0u32;
    while log.len() < (4 << 20) - 64 {
        let text = format!(
            "[{line:>9}] virtio_blk virtio{}: 512-byte logical blocks\r\n",
            line % 7
        );
        log.extend_from_slice(text.as_bytes());
        line += 1;
    }
    log.extend_from_slice(b"debian login: ");
    log
}

#[divan::bench]
fn copy(bencher: Bencher<'_, '_>) {
    let log = boot_log();
    let mut copy = vec![0; log.len()];
    bencher
        .counter(BytesCount::new(log.len()))
        .bench_local(|| black_box(&mut copy).copy_from_slice(black_box(&log)));
}

#[divan::bench]
fn memmem(bencher: Bencher<'_, '_>) {
    let log = boot_log();
    bencher
        .counter(BytesCount::new(log.len()))
        .bench(|| memchr::memmem::find(black_box(&log), b"login:"));
}

#[divan::bench(args = [
    &["login:"][..],
    &["login:", "# ", "$ "][..],
    &["login:", "Kernel panic", "emergency mode", "Give root password"][..],
])]
fn console(bencher: Bencher<'_, '_>, patterns: &[&str]) {
    let log = boot_log();
    bencher.counter(BytesCount::new(log.len())).bench(|| {
        capsa::console::fuzz::search(black_box(patterns), black_box(&log), CHUNK)
            .expect("the patterns are fine")
    });
}
