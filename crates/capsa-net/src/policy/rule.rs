//! A policy as plain data: what configuration files and programs say.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::domain::{DomainPattern, NameError};
use super::written::{NumberOrText, Written};

/// What a guest may reach.
///
/// Rules are tried in order, and the first that applies decides. Addresses that are not public are denied
/// whatever the default is, until a rule for a network means them: see [`Rule::target`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkPolicy {
    /// What happens where no rule applies.
    pub default: Action,
    /// The rules, at most [`MAX_RULES`].
    #[serde(default)]
    pub rules: Vec<Rule>,
}

/// How many rules a policy may have: each is looked at for each connection.
pub const MAX_RULES: usize = 4096;

/// Longest id of a rule, in bytes. Whatever a rule says can be its id: two of `*.`, 253 of a name with one for its
/// final dot, twelve of `:10000-65535`; and four of `/udp`, by which one that was learned differs from that for TCP.
pub const MAX_ID: usize = 2 + 253 + 1 + 12 + 4;

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Let it through.
    Allow,
    /// Hold it back.
    Deny,
}

/// One rule. In a file it says `allow` or `deny` with its target, and perhaps the ports behind that:
/// `{ allow = "*.github.com:443" }`, `{ deny = "10.0.0.0/8", ports = "80-90", protocol = "tcp" }`. A text alone
/// is allowed: `"*.github.com:443"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(into = "Written")]
pub struct Rule {
    /// What events call it. Unique in a policy. In a file it is what the rule says, unless it has an `id`.
    pub id: String,
    /// What it does.
    pub action: Action,
    /// What it is for. A network that lies within one that is not public means that one: `10.0.0.0/8` or
    /// `127.0.0.1` opens what it says, `0.0.0.0/0` opens no private address.
    pub target: Target,
    /// The ports; none is all.
    pub ports: Option<Ports>,
    /// The protocol; none is both.
    pub protocol: Option<Protocol>,
    /// How a connection shows that it goes to the name. Has no meaning for a network.
    pub check: Check,
}

/// A target, and perhaps ports behind it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Scope {
    pub(super) target: Target,
    pub(super) ports: Option<Ports>,
}

/// What a rule is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    /// Addresses.
    Network(IpNet),
    /// Names.
    Domain(DomainPattern),
}

/// Ports from the first to the last, both included. In a file `443` or `"8000-8100"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "NumberOrText", into = "String")]
pub struct Ports {
    first: u16,
    last: u16,
}

/// A protocol above IP that flows have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// How a connection that a rule for a name allows must show that it goes there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// It is TLS or HTTP over TCP, and says the name: in its ClientHello, in the head of every request.
    #[default]
    Web,
    /// It goes to an address that the name resolved to, whatever it then says. Other names at the same
    /// address are open too, and any protocol. For those that say no name, like SSH.
    Address,
}

/// Why a text is no rule.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RuleError {
    /// `*`.
    #[error(
        "`*` is no target: every address is `0.0.0.0/0` and `::/0`, a rule for each; what happens to everything \
         else is the `default`"
    )]
    Everything,
    /// Neither a network nor a name.
    #[error("`{text}` is no address, network or name: {source}")]
    Target {
        /// What was said.
        text: String,
        /// Why it is no name.
        source: NameError,
    },
    /// A network with bits behind its prefix.
    #[error("`{given}` has bits behind its prefix; the network is `{network}`")]
    HostBits {
        /// What was said.
        given: IpNet,
        /// What was meant, probably.
        network: IpNet,
    },
    /// No ports.
    #[error("`{0}` is no port from 1 to 65535, nor a range like 8000-8100")]
    Ports(String),
    /// Neither, or both.
    #[error("a rule says either what to `allow` or what to `deny`")]
    Action,
    /// Behind the target, and by themselves.
    #[error("the rule says its ports twice: `{0}` and `{1}`")]
    PortsTwice(Ports, Ports),
    /// A check that has no effect.
    #[error("`check` is how a connection shows a name, and `{0}` is none")]
    CheckOfNetwork(Target),
}

impl NetworkPolicy {
    /// Public addresses only, all of them.
    #[must_use]
    pub fn public() -> Self {
        Self {
            default: Action::Allow,
            rules: Vec::new(),
        }
    }

    /// Nothing but what rules will allow.
    #[must_use]
    pub fn deny_all() -> Self {
        Self {
            default: Action::Deny,
            rules: Vec::new(),
        }
    }

    /// The same with another rule at the end.
    #[must_use]
    pub fn rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }
}

impl Rule {
    /// A rule that allows `text`: `crates.io`, `*.github.com`, `10.0.0.0/8:5432`, `[2001:db8::/32]:80-90`.
    /// The text is its id.
    ///
    /// # Errors
    ///
    /// The text says no target, or no ports behind it.
    pub fn allow(text: &str) -> Result<Self, RuleError> {
        Self::new(Action::Allow, text)
    }

    /// A rule that denies `text`. The text is its id.
    ///
    /// # Errors
    ///
    /// As for [`Rule::allow`].
    pub fn deny(text: &str) -> Result<Self, RuleError> {
        Self::new(Action::Deny, text)
    }

    fn new(action: Action, text: &str) -> Result<Self, RuleError> {
        let Scope { target, ports } = text.parse()?;
        Ok(Self {
            id: text.to_owned(),
            action,
            target,
            ports,
            protocol: None,
            check: Check::default(),
        })
    }

    /// The same with another check.
    #[must_use]
    pub fn with_check(mut self, check: Check) -> Self {
        self.check = check;
        self
    }
}

impl fmt::Display for Rule {
    /// What it is for, as [`Rule::allow`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scope = Scope {
            target: self.target.clone(),
            ports: self.ports,
        };
        scope.fmt(f)
    }
}

impl FromStr for Scope {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let (target, ports) = split_ports(text);
        Ok(Self {
            target: target.parse()?,
            ports: ports.map(str::parse).transpose()?,
        })
    }
}

impl TryFrom<String> for Scope {
    type Error = RuleError;

    fn try_from(text: String) -> Result<Self, RuleError> {
        text.parse()
    }
}

impl From<Scope> for String {
    fn from(scope: Scope) -> Self {
        scope.to_string()
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.target, self.ports) {
            (target, None) => write!(f, "{target}"),
            (target @ Target::Network(IpNet::V6(_)), Some(ports)) => {
                write!(f, "[{target}]:{ports}")
            }
            (target, Some(ports)) => write!(f, "{target}:{ports}"),
        }
    }
}

/// Separates the ports. A colon is also part of IPv6's addresses, which then stand in brackets.
fn split_ports(text: &str) -> (&str, Option<&str>) {
    if let Some((target, rest)) = text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        return match rest.strip_prefix(':') {
            Some(ports) => (target, Some(ports)),
            None if rest.is_empty() => (target, None),
            None => (text, None),
        };
    }
    match text.split_once(':') {
        Some((target, ports)) if !ports.contains(':') => (target, Some(ports)),
        _ => (text, None),
    }
}

impl FromStr for Target {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        if text == "*" {
            return Err(RuleError::Everything);
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Network(address.into()));
        }
        if let Ok(given) = text.parse::<IpNet>() {
            let network = given.trunc();
            return if network == given {
                Ok(Self::Network(network))
            } else {
                Err(RuleError::HostBits { given, network })
            };
        }
        let pattern = text.parse().map_err(|source| RuleError::Target {
            text: text.to_owned(),
            source,
        })?;
        Ok(Self::Domain(pattern))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) if network.prefix_len() == network.max_prefix_len() => {
                write!(f, "{}", network.addr())
            }
            Self::Network(network) => write!(f, "{network}"),
            Self::Domain(pattern) => write!(f, "{pattern}"),
        }
    }
}

impl TryFrom<String> for Target {
    type Error = RuleError;

    fn try_from(text: String) -> Result<Self, RuleError> {
        text.parse()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

impl Ports {
    /// Whether `port` is one of them.
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl From<u16> for Ports {
    fn from(port: u16) -> Self {
        Self {
            first: port,
            last: port,
        }
    }
}

impl FromStr for Ports {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| text.parse().ok().filter(|port| *port != 0);
        match (port(first), port(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(RuleError::Ports(text.to_owned())),
        }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl From<Ports> for String {
    fn from(ports: Ports) -> Self {
        ports.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_from_text() {
        for (text, target, ports) in [
            ("crates.io", "crates.io", None),
            ("*.github.com:443", "*.github.com", Some("443")),
            ("10.0.0.0/8:5432", "10.0.0.0/8", Some("5432")),
            ("10.1.2.3", "10.1.2.3", None),
            ("fd00::/8", "fd00::/8", None),
            ("[2001:db8::/32]:80-90", "2001:db8::/32", Some("80-90")),
            ("[::1]", "::1", None),
        ] {
            let rule = Rule::allow(text).unwrap();
            assert_eq!(rule.id, text);
            assert_eq!(rule.target.to_string(), target);
            assert_eq!(rule.ports.map(|ports| ports.to_string()).as_deref(), ports);
        }
    }

    #[test]
    fn whatever_a_rule_says_can_be_its_id() {
        let above = format!("{}y.", "x.".repeat(126));
        let mut rule = Rule::allow(&format!("*.{above}:10000-65535")).unwrap();
        rule.id.push_str("/udp");
        assert_eq!(rule.id.len(), MAX_ID);
        assert_eq!(NetworkPolicy::deny_all().rule(rule).problems(), []);
    }

    #[test]
    fn what_is_no_rule_says_why() {
        for (text, message) in [
            ("*", "every address is `0.0.0.0/0` and `::/0`"),
            ("*:80", "every address is `0.0.0.0/0` and `::/0`"),
            ("", "no address"),
            ("10.0.0.1/8", "10.0.0.0/8"),
            ("10.0.0.0/33", "no address"),
            ("crates.io:0", "no port"),
            ("crates.io:90-80", "no port"),
            ("crates.io:http", "no port"),
            ("[::1]x", "no address"),
            ("[crates.io", "no address"),
        ] {
            let error = Rule::allow(text).unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
    }
}
