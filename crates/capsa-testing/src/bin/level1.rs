//! What `cargo xtask kvm` asks about KVM, before it boots a level-1 guest and in it.
//!
//! - `level1`: where is a KVM that runs stock kernels? Prints nothing if this machine has one, else
//!   the kernel, the initramfs and the kernel line of a guest that does, a line each.
//! - `level1 wait`: returns when Capsa uses KVM. The first guest of an emulated KVM takes longer
//!   than a probe allows, since the emulator meets all that code for the first time. Once a probe
//!   has passed, that is remembered for this user.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use capsa::Accelerator;
use capsa_kvm::probe::{Freshness, Verdict, probe};
use capsa_testing::images;

/// How long it is tried. One or two tries of a quarter of a second are enough where nothing else
/// runs.
const LIMIT: Duration = Duration::from_secs(180);

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => Ok(print_guest()?),
        ["wait"] => wait(),
        _ => bail!("usage: level1 [wait]"),
    }
}

fn print_guest() -> io::Result<()> {
    let verdict = probe(Freshness::Fresh, None);
    if verdict == Verdict::Works {
        return Ok(());
    }
    writeln!(io::stderr(), "{verdict}: this runs in a level-1 guest")?;
    let guest = images::level1();
    let lines = [
        guest.kernel.as_os_str().as_bytes(),
        guest.initramfs.as_os_str().as_bytes(),
        guest.cmdline.as_bytes(),
    ];
    let mut text = lines.join(&b'\n');
    text.push(b'\n');
    io::stdout().write_all(&text)
}

fn wait() -> Result<()> {
    let start = Instant::now();
    loop {
        let backends = capsa::backends();
        let mut working = backends.iter().flat_map(|backend| &backend.info);
        if working.any(|info| info.accelerator == Accelerator::Kvm) {
            return Ok(());
        }
        if start.elapsed() > LIMIT {
            bail!("Capsa does not use the KVM of this guest: {backends:?}");
        }
    }
}
