//! Single arguments: how Linux tells them apart, compares and quotes them.
//!
//! The reference is `next_arg` in Linux's lib/cmdline.c and `parameq` in its kernel/params.c. A
//! double quote can protect white space and cannot itself be escaped; it protects it in every
//! place, but only a quote that starts the argument or its value is taken off.

use crate::problem::ConfigProblem;

/// One argument of the kernel's command line.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CmdlineArg {
    /// `key=value`.
    KeyValue {
        /// The parameter's name.
        key: String,
        /// Its value, without quotes; it may contain spaces.
        value: String,
    },
    /// A name alone, such as `quiet`.
    Flag(String),
}

impl CmdlineArg {
    /// One argument from its text: a key and a value where there is a `=`, else a flag.
    ///
    /// The value is everything after the first `=`, spaces included; quotes are neither needed
    /// nor allowed. [`KernelCmdline::parse_line`](super::KernelCmdline::parse_line) reads several
    /// arguments.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text.split_once('=') {
            Some((key, value)) => Self::kv(key, value),
            None => Self::flag(text),
        }
    }

    /// `key=value`.
    pub fn kv(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self::KeyValue {
            key: key.into(),
            value: value.into(),
        }
    }

    /// A name alone.
    pub fn flag(name: impl Into<String>) -> Self {
        Self::Flag(name.into())
    }

    /// The parameter's name, as it was written.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::KeyValue { key, .. } | Self::Flag(key) => key,
        }
    }

    pub(super) fn value(&self) -> Option<&str> {
        match self {
            Self::KeyValue { value, .. } => Some(value),
            Self::Flag(_) => None,
        }
    }

    /// The argument without quotes, as the kernel hands it to init.
    pub(super) fn into_word(self) -> String {
        match self {
            Self::KeyValue { key, value } => format!("{key}={value}"),
            Self::Flag(name) => name,
        }
    }

    /// The argument as it stands on the line. Only the value is quoted, which is what the other
    /// readers of /proc/cmdline expect too.
    pub(super) fn quoted(&self) -> String {
        match self {
            Self::KeyValue { key, value } if has_space(value) => format!("{key}=\"{value}\""),
            Self::KeyValue { key, value } => format!("{key}={value}"),
            Self::Flag(name) => name.clone(),
        }
    }

    /// Whether the kernel would read this argument back.
    pub(super) fn check(&self) -> Result<(), CmdlineError> {
        let key = self.key();
        check_text(key)?;
        check_text(self.value().unwrap_or_default())?;
        if key.is_empty() {
            return Err(CmdlineError::EmptyKey {
                argument: self.quoted(),
            });
        }
        if has_space(key) || key.contains('=') {
            return Err(CmdlineError::InvalidKey {
                key: key.to_owned(),
            });
        }
        Ok(())
    }
}

impl From<&str> for CmdlineArg {
    fn from(text: &str) -> Self {
        Self::parse(text)
    }
}

impl From<String> for CmdlineArg {
    fn from(text: String) -> Self {
        Self::parse(&text)
    }
}

/// What the kernel would not read as it was meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CmdlineError {
    /// An argument without a name.
    #[error("the argument {argument:?} has no name")]
    EmptyKey {
        /// The argument.
        argument: String,
    },
    /// A name that would be split.
    #[error("the parameter name {key:?} contains white space or a `=`")]
    InvalidKey {
        /// The name.
        key: String,
    },
    /// A character that a line cannot carry.
    #[error("{argument:?} contains {what}, which a kernel command line cannot carry")]
    Forbidden {
        /// The name, the value or the word for init.
        argument: String,
        /// The character, in words.
        what: &'static str,
    },
    /// A quote without its counterpart.
    #[error("a double quote is not closed in {line:?}")]
    UnbalancedQuote {
        /// The line.
        line: String,
    },
    /// A `--` among the arguments for init.
    #[error("there is a second `--`; the kernel ignores what follows it")]
    SecondSeparator,
}

impl From<CmdlineError> for ConfigProblem {
    fn from(error: CmdlineError) -> Self {
        let problem = Self::value("cmdline", error.to_string());
        match error {
            CmdlineError::InvalidKey { .. } => {
                problem.hint("give each argument by itself, or the whole line at once")
            }
            CmdlineError::Forbidden {
                what: DOUBLE_QUOTE, ..
            } => problem.hint("leave the quotes out: values with spaces are quoted by Capsa"),
            _ => problem,
        }
    }
}

const DOUBLE_QUOTE: &str = "a double quote";

/// Refuses what cannot be on a line, quoted or not.
pub(super) fn check_text(text: &str) -> Result<(), CmdlineError> {
    let what = match text.chars().find(|c| matches!(c, '"' | '\0' | '\n')) {
        None => return Ok(()),
        Some('"') => DOUBLE_QUOTE,
        Some('\n') => "a line break",
        Some(_) => "a NUL character",
    };
    Err(CmdlineError::Forbidden {
        argument: text.to_owned(),
        what,
    })
}

/// A word for init, quoted as a whole: it need not have a name and a value.
pub(super) fn quoted_word(word: &str) -> String {
    match word.is_empty() || has_space(word) {
        true => format!("\"{word}\""),
        false => word.to_owned(),
    }
}

/// Whether the kernel would split this text. Its `isspace` (lib/ctype.c) is that of Latin-1, so a
/// byte of a UTF-8 character can be a space: `à` is 0xC3 0xA0.
fn has_space(text: &str) -> bool {
    text.bytes()
        .any(|byte| matches!(byte, b'\t'..=b'\r' | b' ' | 0xA0))
}

/// Whether Linux takes these for the same parameter.
pub(super) fn same_key(a: &str, b: &str) -> bool {
    let fold = |byte| if byte == b'-' { b'_' } else { byte };
    a.bytes().map(fold).eq(b.bytes().map(fold))
}

/// What it means that a parameter is given again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It replaces the earlier value.
    LastWins,
    /// It adds a value.
    Distinct,
    /// It adds a value even if it is the same, because it belongs to what stands before it.
    Each,
}

impl Repeat {
    pub(super) fn of(key: &str) -> Self {
        let listed = |keys: &[&str]| keys.iter().any(|listed| same_key(listed, key));
        if listed(REPEATED) {
            Self::Distinct
        } else if listed(&["hugepagesz", "hugepages"]) {
            // `hugepagesz=2M hugepages=8 hugepagesz=1G hugepages=8` are two pairs.
            Self::Each
        } else {
            Self::LastWins
        }
    }
}

/// Parameters that add up when they are given repeatedly.
const REPEATED: &[&str] = &[
    // Linux, Documentation/admin-guide/kernel-parameters.txt and the functions registered there
    // with `early_param` and `__setup`, which are called once for each occurrence.
    "acpi_osi",
    "console",
    "crashkernel",
    "earlycon",
    "initcall_blacklist",
    "memmap",
    "pci",
    "virtio_mmio.device",
    // modprobe.d(5): kmod reads every occurrence in /proc/cmdline.
    "modprobe.blacklist",
    // systemd: systemd(1), systemd-fstab-generator(8), systemd-debug-generator(8),
    // systemd-cryptsetup-generator(8).
    "luks.name",
    "luks.uuid",
    "rd.luks.name",
    "rd.luks.uuid",
    "rd.systemd.mask",
    "rd.systemd.wants",
    "systemd.mask",
    "systemd.mount-extra",
    "systemd.set_credential",
    "systemd.set_credential_binary",
    "systemd.setenv",
    "systemd.swap-extra",
    "systemd.wants",
    // dracut.cmdline(7): "can be specified multiple times".
    "ip",
    "nameserver",
    "rd.driver.blacklist",
    "rd.driver.post",
    "rd.driver.pre",
    "rd.lvm.lv",
    "rd.lvm.vg",
    "rd.md.uuid",
];

/// Splits a line into arguments and takes their quotes off.
pub(super) fn split(line: &str) -> Result<Vec<CmdlineArg>, CmdlineError> {
    let mut quoted = false;
    let words = line.split(|c: char| {
        quoted ^= c == '"';
        !quoted && matches!(c, '\t'..='\r' | ' ')
    });
    let args = words.filter(|word| !word.is_empty()).map(unquote).collect();
    match quoted {
        true => Err(CmdlineError::UnbalancedQuote {
            line: line.to_owned(),
        }),
        false => Ok(args),
    }
}

/// The argument that the kernel reads from a word with its quotes.
fn unquote(word: &str) -> CmdlineArg {
    let word = without_quotes(word);
    // One at the beginning is a part of the name.
    let equals = word.match_indices('=').map(|(at, _)| at).find(|at| *at > 0);
    match equals {
        Some(at) => CmdlineArg::kv(&word[..at], without_quotes(&word[at + 1..])),
        None => CmdlineArg::flag(word),
    }
}

/// Takes off a leading quote, and only then a trailing one.
fn without_quotes(text: &str) -> &str {
    match text.strip_prefix('"') {
        Some(text) => text.strip_suffix('"').unwrap_or(text),
        None => text,
    }
}
