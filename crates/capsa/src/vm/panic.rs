//! Finds a kernel panic on the console: the only sign of it in a guest without a pvpanic driver.

use capsa_core::escape::one_line;

/// What `panic()` prints before its reason (Linux, kernel/panic.c).
const MARK: &str = "Kernel panic - not syncing: ";

/// The last panic message in `output`, if its kernel panicked.
///
/// The mark counts only where the kernel puts it: at the start of a line, after a time stamp at
/// most. A guest can still print it by itself; it then lies about its own end and nothing else.
pub(super) fn message(output: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(output);
    text.lines().rev().find_map(|line| {
        let line = line.trim_start();
        let after_stamp = match line.strip_prefix('[') {
            Some(stamped) => {
                let (stamp, rest) = stamped.split_once(']')?;
                let is_stamp = stamp.chars().all(|c| " .0123456789TC".contains(c));
                is_stamp.then_some(rest.trim_start())?
            }
            None => line,
        };
        Some(one_line(after_stamp.strip_prefix(MARK)?, 200))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_found_where_the_kernel_prints_it() {
        for (output, expected) in [
            (
                "[    1.5] Kernel panic - not syncing: VFS: no root\r\n[    1.6] CPU: 0\r\n",
                Some("VFS: no root"),
            ),
            ("Kernel panic - not syncing: sysrq\n", Some("sysrq")),
            ("# echo Kernel panic - not syncing: x\n", None),
            ("login: Kernel panic - not syncing: x\n", None),
            ("[x] Kernel panic - not syncing: x\n", None),
            ("", None),
        ] {
            assert_eq!(message(output.as_bytes()).as_deref(), expected, "{output}");
        }
    }

    #[test]
    fn it_cannot_smuggle_control_characters() {
        let message = message(b"Kernel panic - not syncing: a\x1b[2Jb").unwrap();
        assert_eq!(message, "a\\u{1b}[2Jb");
    }
}
