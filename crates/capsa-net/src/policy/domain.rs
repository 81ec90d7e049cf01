//! Names of hosts, and the patterns that rules have for them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Longest name, without the final dot (RFC 1035, 2.3.4).
const MAX_NAME: usize = 253;
/// Longest label.
const MAX_LABEL: usize = 63;

/// The name of a host: lower-case, without a final dot, never an address. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DomainName(Arc<str>);

/// Why a text is no name of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NameError {
    /// Empty, or longer than DNS can say.
    #[error("a name has 1 to 253 characters, and 1 to 63 between its dots")]
    Length,
    /// A character that names of hosts do not have.
    #[error("a name consists of letters, digits, '-' and '_'; write others in Punycode (xn--...)")]
    Character,
    /// Something that programs take for an IPv4 address.
    #[error("an address, not a name")]
    Address,
}

impl DomainName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DomainName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() || text.len() > MAX_NAME {
            return Err(NameError::Length);
        }
        for label in text.split('.') {
            if label.is_empty() || label.len() > MAX_LABEL {
                return Err(NameError::Length);
            }
            let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            if !label.bytes().all(known) {
                return Err(NameError::Character);
            }
        }
        // `127.1`, `0x7f.1` and `2130706433` are addresses to inet_aton, and so to most programs.
        let last = text.rsplit('.').next().unwrap_or(text);
        let number = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
        if last.bytes().all(|byte| byte.is_ascii_digit())
            || number.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
        {
            return Err(NameError::Address);
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }
}

impl TryFrom<String> for DomainName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<DomainName> for String {
    fn from(name: DomainName) -> Self {
        name.as_str().to_owned()
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which names a rule is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DomainPattern {
    /// This name only.
    Exact(DomainName),
    /// `*.x`: the names below `x` at any depth, and not `x` itself.
    Below(DomainName),
}

impl DomainPattern {
    /// Whether `name` is meant.
    #[must_use]
    pub fn matches(&self, name: &DomainName) -> bool {
        match self {
            Self::Exact(own) => own == name,
            Self::Below(own) => {
                let above = name.as_str().strip_suffix(own.as_str());
                above.is_some_and(|labels| labels.ends_with('.'))
            }
        }
    }

    /// Whether anybody can have a name that is meant: it is that of a registry, like `com`,
    /// `co.uk` or `github.io`.
    #[must_use]
    pub fn is_public_suffix(&self) -> bool {
        let (Self::Exact(name) | Self::Below(name)) = self;
        psl::suffix(name.as_str().as_bytes())
            .is_some_and(|suffix| suffix.is_known() && suffix == name.as_str().as_bytes())
    }
}

impl FromStr for DomainPattern {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.strip_prefix("*.") {
            Some(above) => above.parse().map(Self::Below),
            None => text.parse().map(Self::Exact),
        }
    }
}

impl TryFrom<String> for DomainPattern {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<DomainPattern> for String {
    fn from(pattern: DomainPattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for DomainPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => write!(f, "{name}"),
            Self::Below(name) => write!(f, "*.{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_excludes_its_own_name_and_its_neighbours() {
        let pattern: DomainPattern = "*.Example.com.".parse().unwrap();
        assert_eq!(pattern.to_string(), "*.example.com");
        for (name, meant) in [
            ("a.example.com", true),
            ("A.B.EXAMPLE.COM.", true),
            ("example.com", false),
            ("notexample.com", false),
            ("example.com.evil.net", false),
        ] {
            assert_eq!(pattern.matches(&name.parse().unwrap()), meant, "{name}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for (text, error) in [
            ("", NameError::Length),
            (".", NameError::Length),
            ("a..b", NameError::Length),
            ("*", NameError::Character),
            ("*.*.com", NameError::Character),
            ("a b.com", NameError::Character),
            ("bücher.example", NameError::Character),
            ("a.com:80", NameError::Character),
            ("127.0.0.1", NameError::Address),
            ("127.1", NameError::Address),
            ("2130706433", NameError::Address),
            ("0x7f.0x1", NameError::Address),
            ("1.0x", NameError::Address),
        ] {
            assert_eq!(text.parse::<DomainPattern>(), Err(error), "{text}");
        }
        assert!("x".repeat(64).parse::<DomainName>().is_err());
        assert!("x.".repeat(127).parse::<DomainName>().is_ok());
        assert!("xx.".repeat(85).parse::<DomainName>().is_err());
    }

    #[test]
    fn registries_are_public_suffixes_and_private_zones_are_not() {
        for (pattern, public) in [
            ("*.com", true),
            ("com", true),
            ("*.co.uk", true),
            ("*.github.io", true),
            ("*.github.com", false),
            ("crates.io", false),
            ("*.corp.internal", false),
            ("*.lan", false),
        ] {
            let pattern: DomainPattern = pattern.parse().unwrap();
            assert_eq!(pattern.is_public_suffix(), public, "{pattern}");
        }
    }
}
