//! What a command has used of the network, and the smallest policy that allows it.
//!
//! A flow becomes a rule for exactly its port: for the name that it said, else for the one that its address was
//! resolved from, else for the address. Of a name that was said in a way that a rule for it refuses, the addresses are
//! allowed. A name that was only resolved becomes a rule that lets it resolve and nothing else.

use std::collections::{BTreeSet, HashMap};
use std::fmt::{self, Display};
use std::net::SocketAddr;

use capsa::network::{
    Check, DomainName, DomainPattern, Event, NetworkPolicy, Protocol, Reason, Rule, RuleError,
};

/// How many different things are remembered of a guest that goes on to do others: as many as a policy has
/// room for.
const MOST: usize = 4096;

/// The port of HTTP/3, which no rule for a name allows.
const QUIC: u16 = 443;

/// The policy under which a command is watched: everything that is public.
///
/// Its one rule is for a name that nobody has (RFC 6761), so that what TCP flows say is listened to.
pub(crate) fn watching() -> Result<NetworkPolicy, RuleError> {
    let mut rule = Rule::deny("learn.capsa.invalid")?;
    rule.protocol = Some(Protocol::Tcp);
    Ok(NetworkPolicy::public().rule(rule))
}

/// Gathers what happens on a network.
#[derive(Debug, Default)]
pub(crate) struct Learner {
    resolved: BTreeSet<DomainName>,
    used: BTreeSet<Use>,
    /// What goes on, by protocol, the guest's address and the other one.
    flows: HashMap<(Protocol, SocketAddr, SocketAddr), Flow>,
    denied: BTreeSet<String>,
    /// What was not seen, or not remembered.
    missed: u64,
}

#[derive(Debug)]
struct Flow {
    /// Those that the address was resolved from, the latest last.
    names: Vec<DomainName>,
    /// The one of them that it has said last.
    said: Option<DomainName>,
    heard: Heard,
}

/// What is known of a flow behind its beginning.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    /// What it needs, and it has been noted.
    Noted,
    /// That no rule would let it on by a name. It may still say one, in a way that servers differ about.
    Unclear,
    /// Nothing.
    Silence,
}

/// What is needed of a policy. The order is that of the rules: the first that applies decides, so that those
/// that listen for a name stand behind those that do not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    /// To connect to an address.
    Address(Protocol, SocketAddr),
    /// To connect to an address of a name, whatever is said then.
    Resolved(Protocol, DomainName, u16),
    /// To connect to an address of a name, and to say that name.
    Named(DomainName, u16),
    /// To resolve a name.
    Lookup(DomainName),
}

impl Learner {
    /// Takes note of an event.
    pub(crate) fn see(&mut self, event: &Event) {
        match event {
            Event::Resolve { name, decision, .. } if decision.allows() => {
                insert(&mut self.resolved, name.clone(), &mut self.missed);
            }
            Event::Resolve { name, decision, .. } => self.deny(name, decision.reason),
            Event::AnswerRemoved {
                name,
                address,
                block,
            } => self.deny(format!("{name} at {address}"), Reason::NotPublic(*block)),
            // The configuration names them, and no rule has to.
            Event::Connect { decision, .. } if decision.reason == Reason::HostService => {}
            Event::Connect {
                protocol,
                from,
                to,
                names,
                decision,
            } => {
                let ends = (*protocol, *from, *to);
                if decision.allows() {
                    self.begin(ends, names.clone());
                } else {
                    // That it is the host's own address shows only when it is connected to.
                    self.flows.remove(&ends);
                    self.deny(format!("{protocol} {to}"), decision.reason);
                }
            }
            Event::Name {
                from,
                to,
                name,
                decision,
            } if !decision.allows() => {
                // What it needs is not known by what it began with.
                self.flows.remove(&(Protocol::Tcp, *from, *to));
                let said = name.as_ref().map(|name| format!(" as {name}"));
                let said = said.unwrap_or_default();
                self.deny(format!("TCP {to}{said}"), decision.reason);
            }
            Event::Name { from, to, name, .. } => {
                if let Some(flow) = self.flows.get_mut(&(Protocol::Tcp, *from, *to)) {
                    let before = std::mem::replace(&mut flow.heard, Heard::Noted);
                    let used = match name {
                        Some(name) if flow.names.contains(name) && may_be_allowed(name) => {
                            flow.said = Some(name.clone());
                            match before {
                                Heard::Unclear => {
                                    Use::Resolved(Protocol::Tcp, name.clone(), to.port())
                                }
                                _ => Use::Named(name.clone(), to.port()),
                            }
                        }
                        Some(_) => Use::Address(Protocol::Tcp, *to),
                        None => {
                            flow.heard = Heard::Unclear;
                            return;
                        }
                    };
                    insert(&mut self.used, used, &mut self.missed);
                }
            }
            Event::LimitReached { limit } => {
                let denied = format!("too many at once: {limit}");
                insert(&mut self.denied, denied, &mut self.missed);
            }
            Event::Lost { events } => self.missed = self.missed.saturating_add(*events),
            _ => {}
        }
    }

    fn begin(&mut self, ends: (Protocol, SocketAddr, SocketAddr), names: Vec<DomainName>) {
        let flow = Flow {
            names,
            said: None,
            heard: Heard::Silence,
        };
        if let Some(earlier) = self.flows.insert(ends, flow) {
            self.end(ends, &earlier);
        }
        if self.flows.len() > MOST {
            self.end_all();
        }
    }

    fn deny(&mut self, what: impl Display, reason: Reason) {
        insert(
            &mut self.denied,
            format!("{what}: {reason}"),
            &mut self.missed,
        );
    }

    /// A flow that said nothing by itself needs no more than to begin.
    fn end(&mut self, (protocol, _, to): (Protocol, SocketAddr, SocketAddr), flow: &Flow) {
        if flow.heard == Heard::Noted {
            return;
        }
        let mut names = flow.names.iter().rev().filter(|name| may_be_allowed(name));
        let used = match (protocol, &flow.said, names.next()) {
            // It has gone on as something else.
            (_, Some(name), _) => Use::Resolved(protocol, name.clone(), to.port()),
            (Protocol::Tcp, None, Some(name)) if flow.heard == Heard::Silence => {
                let begins = |name: &DomainName| {
                    let named = Use::Named(name.clone(), to.port());
                    let resolved = Use::Resolved(protocol, name.clone(), to.port());
                    self.used.contains(&named) || self.used.contains(&resolved)
                };
                if flow.names.iter().any(begins) {
                    return;
                }
                Use::Named(name.clone(), to.port())
            }
            _ => nameless(protocol, to, &flow.names),
        };
        insert(&mut self.used, used, &mut self.missed);
    }

    fn end_all(&mut self) {
        let mut flows: Vec<_> = std::mem::take(&mut self.flows).into_iter().collect();
        // What is needed by those that said something may be enough for the others.
        flows.sort_by_key(|(_, flow)| flow.heard == Heard::Silence);
        for (ends, flow) in flows {
            self.end(ends, &flow);
        }
    }

    /// What has been learned.
    pub(crate) fn finish(mut self) -> Result<Learned, RuleError> {
        self.end_all();
        for name in std::mem::take(&mut self.resolved) {
            let allowed = self.used.iter().any(|used| match used {
                Use::Resolved(_, own, _) | Use::Named(own, _) => *own == name,
                Use::Address(..) | Use::Lookup(_) => false,
            });
            if !may_be_allowed(&name) {
                self.denied.insert(format!(
                    "{name}: it resolved, but anybody can have a name below it, and no rule allows it"
                ));
            } else if !allowed {
                insert(&mut self.used, Use::Lookup(name), &mut self.missed);
            }
        }
        let rules: Result<Vec<Rule>, RuleError> = self
            .used
            .iter()
            .filter(|used| match used {
                Use::Named(name, port) => {
                    let wider = Use::Resolved(Protocol::Tcp, name.clone(), *port);
                    !self.used.contains(&wider)
                }
                _ => true,
            })
            .map(Use::rule)
            .collect();
        Ok(Learned {
            policy: rules?
                .into_iter()
                .fold(NetworkPolicy::deny_all(), NetworkPolicy::rule),
            denied: self.denied,
            missed: self.missed,
        })
    }
}

/// Adds to a set that stays small, or counts what is missing.
fn insert<T: Ord>(set: &mut BTreeSet<T>, item: T, missed: &mut u64) {
    if set.len() < MOST || set.contains(&item) {
        set.insert(item);
    } else {
        *missed = missed.saturating_add(1);
    }
}

/// Whether a rule can allow this name.
fn may_be_allowed(name: &DomainName) -> bool {
    !DomainPattern::Exact(name.clone()).is_public_suffix()
}

/// What a flow needs that says no name.
fn nameless(protocol: Protocol, to: SocketAddr, names: &[DomainName]) -> Use {
    let mut names = names.iter().rev().filter(|name| may_be_allowed(name));
    match names.next() {
        Some(name) if (protocol, to.port()) != (Protocol::Udp, QUIC) => {
            Use::Resolved(protocol, name.clone(), to.port())
        }
        _ => Use::Address(protocol, to),
    }
}

impl Use {
    fn rule(&self) -> Result<Rule, RuleError> {
        let (text, protocol, check) = match self {
            Self::Address(protocol, to) => (to.to_string(), Some(*protocol), Check::Web),
            Self::Resolved(protocol, name, port) => {
                (format!("{name}:{port}"), Some(*protocol), Check::Address)
            }
            Self::Named(name, port) => (format!("{name}:{port}"), None, Check::Web),
            // A rule for a name allows nothing over UDP unless it says how.
            Self::Lookup(name) => (name.to_string(), Some(Protocol::Udp), Check::Web),
        };
        let mut rule = Rule::allow(&text)?.with_check(check);
        rule.protocol = protocol;
        if protocol == Some(Protocol::Udp) && rule.ports.is_some() {
            // The same may be used over TCP.
            rule.id.push_str("/udp");
        }
        Ok(rule)
    }
}

/// A policy that was learned, to be written to a file.
#[derive(Debug)]
pub(crate) struct Learned {
    pub(crate) policy: NetworkPolicy,
    denied: BTreeSet<String>,
    missed: u64,
}

impl Display for Learned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# What a command used of the network.")?;
        if self.missed > 0 {
            let missed = self.missed;
            writeln!(
                f,
                "# Not all: {missed} decisions came too fast, or were too many."
            )?;
        }
        if !self.denied.is_empty() {
            writeln!(f, "#\n# It was denied, and this does not allow it:")?;
        }
        for denied in &self.denied {
            writeln!(f, "#   {denied}")?;
        }
        writeln!(f, "default = \"deny\"")?;
        if self.policy.rules.is_empty() {
            return writeln!(f, "rules = []");
        }
        writeln!(f, "rules = [")?;
        for rule in &self.policy.rules {
            writeln!(f, "    {},", Line(rule))?;
        }
        writeln!(f, "]")
    }
}

/// A rule as a file has it. Nothing in it needs to be escaped.
struct Line<'a>(&'a Rule);

impl Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(rule) = self;
        let says = rule.to_string();
        if rule.protocol.is_none() && rule.check == Check::Web && rule.id == says {
            return write!(f, "\"{says}\"");
        }
        write!(f, "{{ allow = \"{says}\"")?;
        match rule.protocol {
            Some(Protocol::Tcp) => f.write_str(", protocol = \"tcp\"")?,
            Some(Protocol::Udp) => f.write_str(", protocol = \"udp\"")?,
            None => {}
        }
        if rule.check == Check::Address {
            f.write_str(", check = \"address\"")?;
        }
        if rule.id != says {
            write!(f, ", id = \"{}\"", rule.id)?;
        }
        f.write_str(" }")
    }
}

#[cfg(test)]
#[path = "learner/tests.rs"]
mod tests;
