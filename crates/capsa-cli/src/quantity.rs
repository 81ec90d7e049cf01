//! Sizes and times as people write them.

use std::time::Duration;

use parse_size::{ByteSuffix, Config};

const MIB: u64 = 1 << 20;

/// Whole MiB of memory from `512M`, `4G`, `1.5GiB`. All units are multiples of 1,024. A number
/// without a unit is refused: some programs take it for bytes, others for MiB.
pub(crate) fn mebibytes(text: &str) -> Result<u32, String> {
    if text.ends_with(|last: char| last.is_ascii_digit()) {
        return Err(format!("{text} has no unit: write {text}M for MiB"));
    }
    let bytes = Config::new()
        .with_binary()
        .with_byte_suffix(ByteSuffix::Allow)
        .parse_size(text)
        .map_err(|error| format!("{error}; a size is written 512M or 4G"))?;
    if bytes % MIB != 0 {
        return Err(format!("{text} is not a whole number of MiB"));
    }
    u32::try_from(bytes / MIB).map_err(|_| format!("{text} is too much"))
}

/// A time from `90s`, `5m`, `1h 30m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; a time is written 90s or 5m"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_whole_mebibytes_in_units_of_1024() {
        for (text, size) in [
            ("512M", 512),
            ("512m", 512),
            ("4G", 4096),
            ("4GB", 4096),
            ("4GiB", 4096),
            ("1.5G", 1536),
            ("1T", 1 << 20),
            ("2048K", 2),
            ("0M", 0),
        ] {
            assert_eq!(mebibytes(text), Ok(size), "{text}");
        }
        for (text, reason) in [
            ("512", "no unit: write 512M"),
            ("1500K", "whole number"),
            ("1B", "whole number"),
            ("G", "512M or 4G"),
            ("-1G", "512M or 4G"),
            ("4X", "512M or 4G"),
            ("", "512M or 4G"),
            ("8000P", "too much"),
            ("99999999999999999999G", "512M or 4G"),
        ] {
            let refused = mebibytes(text).unwrap_err();
            assert!(refused.contains(reason), "{text}: {refused}");
        }
    }

    #[test]
    fn times_have_units() {
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for text in ["5", "m", "", "-5m", "5 fortnights"] {
            let refused = duration(text).unwrap_err();
            assert!(refused.contains("90s or 5m"), "{text}: {refused}");
        }
    }
}
