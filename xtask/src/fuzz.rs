//! `cargo xtask fuzz`: generated input for the parsers of what guests and files say.

use anyhow::{Context, Result, ensure};

use crate::packages::{self, CXX};
use crate::tools;
use crate::workspace::{cargo, check, output};

/// Fuzzes `target`, or each in turn, for `seconds` each.
///
/// # Errors
///
/// A target crashed; its input then lies below `fuzz/artifacts`.
pub(crate) fn run(target: Option<&str>, seconds: u32) -> Result<()> {
    packages::provide(&[CXX])?;
    tools::provide(tools::FUZZ)?;
    let known = output(&mut cargo(["fuzz", "list"])?)?;
    let mut chosen: Vec<_> = known.lines().collect();
    if let Some(target) = target {
        chosen.retain(|name| *name == target);
        ensure!(!chosen.is_empty(), "no such target; there are:\n{known}");
    }
    for name in chosen {
        eprintln!("\n== {name}");
        check(
            // The address sanitizer needs a nightly compiler, and finds little in code without
            // unsafe blocks; panics, overflows and endless loops show without it.
            cargo(["fuzz", "run", "--sanitizer", "none", name, "--"])?
                .arg(format!("-max_total_time={seconds}"))
                .arg("-timeout=10")
                .arg("-rss_limit_mb=2048"),
        )
        .with_context(|| format!("target {name}"))?;
    }
    Ok(())
}
