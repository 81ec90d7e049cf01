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
pub(crate) use address::translated;
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
    /// The address is of the guest's own link, where nobody is but the gateway and host services. No rule opens
    /// it.
    Local,
    /// A rule allows the name, but no answer of the resolver gave it this address.
    NotResolved,
    /// A name is needed, and none was said.
    NoName,
    /// A name is needed, and the flow is neither TLS nor HTTP.
    NoWebProtocol,
    /// A rule for a name applies, and what the flow says cannot be understood for certain.
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
        /// That it may begin.
        admitted: Decision,
        /// The decision if it says no name. If it denies, the flow has to be TLS or HTTP and to say one.
        unnamed: Decision,
        /// The id of the rule for names that wants it to be listened to.
        rule: Arc<str>,
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

/// Rules that deny names, passed on the way to the one that decides about the flow: they decide at what it says.
#[derive(Default)]
struct Watch<'a> {
    first: Option<&'a Arc<str>>,
    /// The first that is for a name that the address was resolved from.
    resolved: Option<&'a Arc<str>>,
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

    /// Whether it lets through.
    #[must_use]
    pub fn allows(&self) -> bool {
        self.action == Action::Allow
    }
}

impl<'a> Watch<'a> {
    fn add(&mut self, rule: &'a Arc<str>, resolved: bool) {
        self.first.get_or_insert(rule);
        if resolved {
            self.resolved.get_or_insert(rule);
        }
    }

    /// A decision, unless a flow that would be let through has to be listened to. What says no name is not let
    /// through to where a denied one is.
    fn settle(self, decision: Decision) -> Admission {
        match self.first {
            Some(rule) if decision.allows() => Admission::Inspect {
                unnamed: match self.resolved {
                    Some(rule) => Decision::by(rule, Action::Deny, Reason::NoName),
                    None => decision.clone(),
                },
                admitted: decision,
                rule: Arc::clone(self.resolved.unwrap_or(rule)),
            },
            _ => Admission::Settled(decision),
        }
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
            Self::Local => "of the guest's own link, which no rule leads out of",
            Self::NotResolved => "no answer of the resolver gave the name this address",
            Self::NoName => "a rule needs a name, and none was said",
            Self::NoWebProtocol => "a rule needs a name, and this is neither TLS nor HTTP",
            Self::Malformed => "a rule for a name applies, and what was said cannot be understood",
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
        let mut watch = Watch::default();
        for (id, rule) in self.rules.iter().filter(|(_, rule)| applies_to(rule, to)) {
            match (&rule.target, rule.action) {
                (Target::Network(_), action) => {
                    let meant = special.map(|special| special.network);
                    if applies_to_address(rule, ip, meant.filter(|_| action == Action::Allow)) {
                        return watch.settle(Decision::by(id, action, Reason::Rule));
                    }
                }
                (Target::Domain(_), Action::Deny) if quic(to) => {
                    return Admission::Settled(Decision::by(id, Action::Deny, Reason::Quic));
                }
                (Target::Domain(pattern), Action::Deny) => {
                    let resolved = names.iter().any(|name| pattern.matches(name));
                    match to.protocol {
                        Protocol::Tcp => watch.add(id, resolved),
                        // It says no name that could be another one of the same address.
                        Protocol::Udp if resolved => {
                            return Admission::Settled(Decision::by(id, rule.action, Reason::Rule));
                        }
                        Protocol::Udp => {}
                    }
                }
                (Target::Domain(pattern), Action::Allow) => {
                    if special.is_some() || !names.iter().any(|name| pattern.matches(name)) {
                        continue;
                    }
                    if quic(to) {
                        return Admission::Settled(Decision::by(id, Action::Deny, Reason::Quic));
                    }
                    let admitted = Decision::by(id, Action::Allow, Reason::Rule);
                    match (rule.check, to.protocol) {
                        (Check::Address, _) => return watch.settle(admitted),
                        (Check::Web, Protocol::Tcp) => {
                            return Admission::Inspect {
                                admitted,
                                unnamed: Decision::by(id, Action::Deny, Reason::NoName),
                                rule: Arc::clone(id),
                            };
                        }
                        (Check::Web, Protocol::Udp) => {}
                    }
                }
            }
        }
        watch.settle(match special {
            Some(special) => Decision::deny(Reason::NotPublic(special.block)),
            None => Decision::new(self.default, Reason::Default),
        })
    }

    /// Decides about a name that an inspected flow to `to` says. `names` are those of its address.
    #[must_use]
    pub fn admit_name(&self, said: &DomainName, to: Destination, names: &[DomainName]) -> Decision {
        let ip = to.address.ip();
        let special = address::special(ip).map(|special| special.network);
        let mut elsewhere = None;
        for (id, rule) in self.rules.iter().filter(|(_, rule)| applies_to(rule, to)) {
            let decision = Decision::by(id, rule.action, Reason::Rule);
            match (&rule.target, rule.action) {
                (Target::Network(_), action) => {
                    let meant = special.filter(|_| action == Action::Allow);
                    if applies_to_address(rule, ip, meant) {
                        return decision;
                    }
                }
                (Target::Domain(pattern), Action::Deny) if pattern.matches(said) => {
                    return decision;
                }
                (Target::Domain(_), Action::Deny) => {}
                (Target::Domain(_), Action::Allow) if special.is_some() => {}
                // Whatever the flow says.
                (Target::Domain(pattern), Action::Allow) if rule.check == Check::Address => {
                    if names.iter().any(|name| pattern.matches(name)) {
                        return decision;
                    }
                }
                (Target::Domain(pattern), Action::Allow) if pattern.matches(said) => {
                    if names.contains(said) {
                        return decision;
                    }
                    elsewhere.get_or_insert(id);
                }
                (Target::Domain(_), Action::Allow) => {}
            }
        }
        match (self.default, elsewhere) {
            (Action::Deny, Some(id)) => Decision::by(id, Action::Deny, Reason::NotResolved),
            (default, _) => Decision::new(default, Reason::Default),
        }
    }

    /// Decides about an address that an inspected flow to `to` says in the place of a name, as of a flow that
    /// goes there and says none. `names` are those of the address that it goes to.
    #[must_use]
    pub fn admit_address(&self, said: IpAddr, to: Destination, names: &[DomainName]) -> Decision {
        let address = (said, to.address.port()).into();
        match self.admit(Destination { address, ..to }, names) {
            Admission::Settled(decision) => decision,
            Admission::Inspect { unnamed, .. } => unnamed,
        }
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
        || translated(address).is_some_and(|inner| network.contains(&inner));
    // A network of IPv4 cannot mean an address of IPv6: no rule opens a private one through a translator
    // by accident.
    holds && meant.is_none_or(|meant| meant.contains(network))
}

fn quic(to: Destination) -> bool {
    to.protocol == Protocol::Udp && to.address.port() == QUIC
}

#[cfg(test)]
mod tests;
