//! Prints what the probe finds on this machine, ten times fresh and ten times from its cache.

use std::path::Path;
use std::time::{Duration, Instant};

use capsa_kvm::probe::{Freshness, Verdict, probe};

fn main() -> std::io::Result<()> {
    let folder = std::env::temp_dir().join(format!("capsa-probe-{}", std::process::id()));
    std::fs::create_dir(&folder)?;
    for freshness in [Freshness::Fresh, Freshness::Cached] {
        let (verdict, times) = ten(freshness, &folder);
        eprintln!("{freshness:?}: {verdict}");
        if let Some(hint) = verdict.hint() {
            eprintln!("  hint: {hint}");
        }
        let [first, .., last] = times;
        eprintln!("  best {first:?}, median {:?}, worst {last:?}", times[5]);
    }
    std::fs::remove_dir_all(folder)
}

/// The last verdict of ten, and the times, sorted.
fn ten(freshness: Freshness, folder: &Path) -> (Verdict, [Duration; 10]) {
    let mut verdict = None;
    let mut times = [(); 10].map(|()| {
        let started = Instant::now();
        verdict = Some(probe(freshness, Some(folder)));
        started.elapsed()
    });
    times.sort_unstable();
    (verdict.expect("ten probes ran"), times)
}
