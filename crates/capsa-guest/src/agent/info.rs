//! What this guest is.

use std::fs;
use std::time::{Duration, SystemTime};

use capsa_agent_proto::{Failure, Info};
use rustix::system::uname;
use rustix::time::{ClockId, clock_gettime};

pub(super) fn gather(execs: usize) -> Result<Info, Failure> {
    let names = uname();
    let memory =
        fs::read_to_string("/proc/meminfo").map_err(|e| Failure::io("read /proc/meminfo", &e))?;
    Ok(Info {
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: names.release().to_string_lossy().into_owned(),
        hostname: names.nodename().to_string_lossy().into_owned(),
        uptime: Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default(),
        clock: SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default(),
        cpus: std::thread::available_parallelism()
            .ok()
            .and_then(|count| u32::try_from(count.get()).ok())
            .unwrap_or(1),
        memory_total: kilobytes(&memory, "MemTotal:") << 10,
        memory_available: kilobytes(&memory, "MemAvailable:") << 10,
        execs: u32::try_from(execs).unwrap_or(u32::MAX),
    })
}

/// The number of a line `NAME: 123 kB`.
fn kilobytes(text: &str, name: &str) -> u64 {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(name));
    let number = lines.next().and_then(|rest| rest.split_whitespace().next());
    number.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::kilobytes;

    #[test]
    fn a_line_of_meminfo_is_read() {
        let text = "MemTotal:         225280 kB\nMemAvailable:       1024 kB\n";
        assert_eq!(kilobytes(text, "MemAvailable:"), 1024);
        assert_eq!(kilobytes(text, "SwapTotal:"), 0);
    }
}
