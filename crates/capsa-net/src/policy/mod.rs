//! What a guest may reach: the rules, what is denied in every mode, and the order of both.
//!
//! A decision is made once for a flow, when it begins, from its destination and the names that the resolver
//! has given that address for. Where a rule for a name allows it, what the flow then says is checked as well:
//! such an address may be shared with names that nobody allowed.

mod address;
mod domain;
mod rule;
mod written;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use address::Block;
pub use domain::{DomainName, DomainPattern, NameError};
pub use rule::{
    Action, Check, MAX_ID, MAX_RULES, NetworkPolicy, Ports, Protocol, Rule, RuleError, Target,
};

/// The port of HTTP/3, whose names cannot be checked.
const QUIC: u16 = 443;

/// What is wrong with a policy.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PolicyProblem {
    /// More than [`MAX_RULES`].
    #[error("{0} rules; {MAX_RULES} are the most")]
    TooManyRules(usize),
    /// Empty or longer than [`MAX_ID`].
    #[error("the id of rule {0} is empty or longer than {MAX_ID} bytes")]
    Id(usize),
    /// Two rules have it.
    #[error("two rules have the id `{0}`")]
    DuplicateId(String),
    /// Anybody can have a name below it.
    #[error("rule `{id}` allows `{target}`, below which anybody can have a name")]
    PublicSuffix {
        /// The rule's.
        id: String,
        /// The rule's.
        target: DomainPattern,
    },
}

/// Why something was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Reason {
    /// A rule says so.
    Rule,
    /// No rule applies.
    Default,
    /// The address is not public, and no rule for a network means it.
    NotPublic(Block),
    /// The address is one of the host's own, and no rule is for this address alone.
    HostAddress,
    /// A rule allows the name, but no answer of the resolver gave it this address.
    NotResolved,
    /// A name is needed, and none was said.
    NoName,
    /// A name is needed, and the flow is neither TLS nor HTTP.
    NoWebProtocol,
    /// A name is needed, and what the flow says cannot be understood for certain.
    Malformed,
    /// UDP port 443, where a rule for a name applies.
    Quic,
    /// One of the host services of the configuration.
    HostService,
}

/// What was decided, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// What was decided.
    pub action: Action,
    /// Why.
    pub reason: Reason,
    /// The id of the rule that decided.
    #[serde(serialize_with = "as_text", skip_serializing_if = "Option::is_none")]
    pub rule: Option<Arc<str>>,
}

/// What was decided about a flow that begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It is settled.
    Settled(Decision),
    /// It may begin, and what it says decides.
    Inspect {
        /// Whether it has to say a name. If not, a flow that says none goes on.
        name_needed: bool,
        /// The decision if it need not say a name.
        otherwise: Decision,
    },
}

/// Where a flow goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Destination {
    /// How.
    pub protocol: Protocol,
    /// Where.
    pub address: SocketAddr,
}

/// A policy, ready to decide.
#[derive(Debug)]
pub struct Filter {
    default: Action,
    rules: Vec<(Arc<str>, Rule)>,
}

fn as_text<S: serde::Serializer>(text: &Option<Arc<str>>, to: S) -> Result<S::Ok, S::Error> {
    text.as_deref().serialize(to)
}

impl NetworkPolicy {
    /// Everything that is wrong with it.
    #[must_use]
    pub fn problems(&self) -> Vec<PolicyProblem> {
        let mut problems = Vec::new();
        if self.rules.len() > MAX_RULES {
            problems.push(PolicyProblem::TooManyRules(self.rules.len()));
        }
        let mut ids = std::collections::HashSet::new();
        for (place, rule) in self.rules.iter().enumerate() {
            if rule.id.is_empty() || rule.id.len() > MAX_ID {
                problems.push(PolicyProblem::Id(place));
            } else if !ids.insert(&rule.id) {
                problems.push(PolicyProblem::DuplicateId(rule.id.clone()));
            }
            if let (Action::Allow, Target::Domain(target)) = (rule.action, &rule.target)
                && target.is_public_suffix()
            {
                problems.push(PolicyProblem::PublicSuffix {
                    id: rule.id.clone(),
                    target: target.clone(),
                });
            }
        }
        problems
    }
}

impl Decision {
    fn new(action: Action, reason: Reason) -> Self {
        Self {
            action,
            reason,
            rule: None,
        }
    }

    /// A denial that no rule is responsible for.
    pub(crate) fn deny(reason: Reason) -> Self {
        Self::new(Action::Deny, reason)
    }

    /// One of the configuration's host services, which need no rule.
    #[cfg(feature = "driver")]
    pub(crate) fn host_service() -> Self {
        Self::new(Action::Allow, Reason::HostService)
    }

    fn by(rule: &Arc<str>, action: Action, reason: Reason) -> Self {
        Self {
            action,
            reason,
            rule: Some(Arc::clone(rule)),
        }
    }

    /// That a flow may begin because of the same rule.
    #[must_use]
    pub fn admitted(&self) -> Self {
        Self {
            action: Action::Allow,
            reason: if self.rule.is_some() {
                Reason::Rule
            } else {
                Reason::Default
            },
            rule: self.rule.clone(),
        }
    }

    /// Whether it lets through.
    #[must_use]
    pub fn allows(&self) -> bool {
        self.action == Action::Allow
    }
}

impl fmt::Display for Reason {
    /// As the end of "it is denied: ...".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rule => "a rule says so",
            Self::Default => "no rule applies, and this is the default",
            Self::NotPublic(block) => {
                return write!(
                    f,
                    "no public address ({block}), and no rule for a network means it"
                );
            }
            Self::HostAddress => "the host's own address, and no rule is for it alone",
            Self::NotResolved => "no answer of the resolver gave the name this address",
            Self::NoName => "a rule needs a name, and none was said",
            Self::NoWebProtocol => "a rule needs a name, and this is neither TLS nor HTTP",
            Self::Malformed => "a rule needs a name, and what was said cannot be understood",
            Self::Quic => "a rule for a name applies, and HTTP/3 shows none",
            Self::HostService => "a host service of the configuration",
        })
    }
}

impl Filter {
    /// Checks a policy.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it.
    pub fn new(policy: NetworkPolicy) -> Result<Self, Vec<PolicyProblem>> {
        let problems = policy.problems();
        if !problems.is_empty() {
            return Err(problems);
        }
        let rules = policy.rules.into_iter();
        Ok(Self {
            default: policy.default,
            rules: rules.map(|rule| (rule.id.as_str().into(), rule)).collect(),
        })
    }

    /// Whether a name may be resolved. A rule that is for some ports only denies no resolution.
    #[must_use]
    pub fn resolve(&self, name: &DomainName) -> Decision {
        for (id, rule) in &self.rules {
            let Target::Domain(pattern) = &rule.target else {
                continue;
            };
            let whole = rule.ports.is_none() && rule.protocol.is_none();
            if pattern.matches(name) && (rule.action == Action::Allow || whole) {
                return Decision::by(id, rule.action, Reason::Rule);
            }
        }
        Decision::new(self.default, Reason::Default)
    }

    /// Why an address may not be the answer of the resolver: it is not public, and no rule means it.
    #[must_use]
    pub fn unanswerable(&self, address: IpAddr) -> Option<Block> {
        let special = address::special(address)?;
        let meant = self.rules.iter().any(|(_, rule)| {
            rule.action == Action::Allow && applies_to_address(rule, address, Some(special.network))
        });
        (!meant).then_some(special.block)
    }

    /// Decides about a flow that begins. `names` are those that the resolver gave its address for.
    #[must_use]
    pub fn admit(&self, to: Destination, names: &[DomainName]) -> Admission {
        let ip = to.address.ip();
        let special = address::special(ip);
        let mut watched = false;
        for (id, rule) in self.rules.iter().filter(|(_, rule)| applies_to(rule, to)) {
            match (&rule.target, rule.action) {
                (Target::Network(_), action) => {
                    let meant = special.map(|special| special.network);
                    if applies_to_address(rule, ip, meant.filter(|_| action == Action::Allow)) {
                        return settle(watched, Decision::by(id, action, Reason::Rule));
                    }
                }
                // A name may deny at once only where it is said.
                (Target::Domain(_), Action::Deny) if quic(to) => {
                    return Admission::Settled(Decision::by(id, Action::Deny, Reason::Quic));
                }
                (Target::Domain(_), Action::Deny) => watched |= to.protocol == Protocol::Tcp,
                (Target::Domain(pattern), Action::Allow) => {
                    if special.is_some() || !names.iter().any(|name| pattern.matches(name)) {
                        continue;
                    }
                    if quic(to) {
                        return Admission::Settled(Decision::by(id, Action::Deny, Reason::Quic));
                    }
                    let allowed = Decision::by(id, Action::Allow, Reason::Rule);
                    match (rule.check, to.protocol) {
                        (Check::Address, _) => return settle(watched, allowed),
                        (Check::Web, Protocol::Tcp) => {
                            return Admission::Inspect {
                                name_needed: true,
                                otherwise: Decision::by(id, Action::Deny, Reason::NoName),
                            };
                        }
                        (Check::Web, Protocol::Udp) => {}
                    }
                }
            }
        }
        settle(
            watched,
            match special {
                Some(special) => Decision::deny(Reason::NotPublic(special.block)),
                None => Decision::new(self.default, Reason::Default),
            },
        )
    }

    /// Decides about a name that an inspected flow to `to` says. `names` are those of its address.
    #[must_use]
    pub fn admit_name(&self, said: &DomainName, to: Destination, names: &[DomainName]) -> Decision {
        let ip = to.address.ip();
        let special = address::special(ip).map(|special| special.network);
        for (id, rule) in self.rules.iter().filter(|(_, rule)| applies_to(rule, to)) {
            match &rule.target {
                Target::Network(_) => {
                    let meant = special.filter(|_| rule.action == Action::Allow);
                    if applies_to_address(rule, ip, meant) {
                        return Decision::by(id, rule.action, Reason::Rule);
                    }
                }
                Target::Domain(pattern) if pattern.matches(said) => {
                    let resolved = names.contains(said) && special.is_none();
                    return match rule.action {
                        Action::Allow if !resolved => {
                            Decision::by(id, Action::Deny, Reason::NotResolved)
                        }
                        action => Decision::by(id, action, Reason::Rule),
                    };
                }
                Target::Domain(_) => {}
            }
        }
        Decision::new(self.default, Reason::Default)
    }

    /// Whether a rule is for this address alone, which is what opens one of the host's own.
    #[must_use]
    pub fn means_exactly(&self, to: Destination) -> bool {
        let alone = IpNet::from(to.address.ip());
        self.rules.iter().any(|(_, rule)| {
            rule.action == Action::Allow
                && applies_to(rule, to)
                && rule.target == Target::Network(alone)
        })
    }
}

/// Whether the rule's ports and protocol are the flow's.
fn applies_to(rule: &Rule, to: Destination) -> bool {
    rule.ports
        .is_none_or(|ports| ports.contains(to.address.port()))
        && rule.protocol.is_none_or(|protocol| protocol == to.protocol)
}

/// Whether the rule is for a network that has the address, and lies within `meant` if that is given.
fn applies_to_address(rule: &Rule, address: IpAddr, meant: Option<IpNet>) -> bool {
    let Target::Network(network) = &rule.target else {
        return false;
    };
    let holds = network.contains(&address)
        || address::translated(address).is_some_and(|inner| network.contains(&inner));
    // A network of IPv4 cannot mean an address of IPv6: no rule opens a private one through a translator
    // by accident.
    holds && meant.is_none_or(|meant| meant.contains(network))
}

fn quic(to: Destination) -> bool {
    to.protocol == Protocol::Udp && to.address.port() == QUIC
}

/// A decision, unless a flow that would be let through has to be listened to.
fn settle(watched: bool, decision: Decision) -> Admission {
    if watched && decision.allows() {
        Admission::Inspect {
            name_needed: false,
            otherwise: decision,
        }
    } else {
        Admission::Settled(decision)
    }
}

#[cfg(test)]
mod tests;
