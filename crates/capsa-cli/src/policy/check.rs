//! `capsa policy check`: what a policy decides, by the engine that decides for a running VM.
//!
//! A name has no address here: nothing is asked on the network. The engine is shown an address of IPv4 and one
//! of IPv6 for which the policy has no rule, and one of each network for which it has one, since a rule for a
//! network may decide about a name's addresses too.

use std::fmt::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use capsa::network::{
    Action, Admission, Check, Decision, Destination, DomainName, DomainPattern, Filter,
    NetworkPolicy, Protocol, Reason, Rule, Target, UserNetwork,
};
use serde::Serialize;

use super::destination::{DestinationArg, Host};
use crate::cli::CheckArgs;
use crate::exit::{Done, Exit, Failure};
use crate::stdout;

/// Ports whose protocols say a name.
const WEB: [u16; 2] = [80, 443];

/// Prints which rule decides, and why. The status says what was decided.
pub(crate) fn check(args: &CheckArgs) -> Done {
    let policy = super::read(&args.file).map_err(Failure::Usage)?;
    let filter = Filter::new(policy.clone()).map_err(|problems| {
        let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
        Failure::Usage(told.join("\n"))
    })?;
    let protocol = match args.udp {
        true => Protocol::Udp,
        false => Protocol::Tcp,
    };
    let verdict = Verdict::new(&policy, &filter, &args.to, protocol);
    match args.json {
        true => stdout::json(&verdict),
        false => stdout::text(&verdict.to_string()),
    }?;
    Ok(match verdict.action {
        Action::Allow => Exit::SUCCESS,
        Action::Deny => Exit::DENIED,
    })
}

/// What becomes of a connection.
#[derive(Debug, Serialize)]
struct Verdict {
    to: String,
    protocol: Protocol,
    action: Action,
    /// Only IPv4 or only IPv6 is denied.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    in_part: bool,
    stages: Vec<Stage>,
    /// Networks where it is another rule that decides, if the name resolves into them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    elsewhere: Vec<Elsewhere>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

/// One decision. Its name is that of the event that tells of it.
#[derive(Debug, Serialize)]
struct Stage {
    event: &'static str,
    #[serde(flatten)]
    decision: Decision,
}

/// What is decided about one address, stage by stage until one denies.
#[derive(Debug, Default)]
struct Course {
    stages: Vec<Stage>,
    notes: Vec<String>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Elsewhere {
    network: String,
    #[serde(flatten)]
    decision: Decision,
}

impl Verdict {
    fn new(
        policy: &NetworkPolicy,
        filter: &Filter,
        to: &DestinationArg,
        protocol: Protocol,
    ) -> Self {
        let mut verdict = Self {
            to: to.to_string(),
            protocol,
            action: Action::Deny,
            in_part: false,
            stages: Vec::new(),
            elsewhere: Vec::new(),
            notes: Vec::new(),
        };
        let at = |address| Destination {
            protocol,
            address: SocketAddr::new(address, to.port),
        };
        match &to.host {
            Host::Address(address) => {
                let to = at(*address);
                verdict.take(Course::new(filter, None, to));
                let last = verdict.stages.last();
                let note = last.and_then(|last| about_address(policy, filter, to, &last.decision));
                verdict.notes.extend(note);
            }
            Host::Name(name) => {
                let samples = Samples::new(policy, filter, at(FIRST));
                let course = |address| Course::new(filter, Some(name), at(address));
                let mut courses = samples
                    .families
                    .map(|(all, address)| (all, course(address)));
                // The guest may get addresses of both: what denies one is the answer.
                courses.sort_by_key(|(_, course)| course.allows());
                let [(_, first), (all, other)] = courses;
                verdict.in_part = !first.allows() && other.allows();
                if verdict.in_part {
                    verdict.add_elsewhere(all, &other);
                    verdict.notes.extend(other.notes);
                }
                verdict.take(first);
                for (rule, network, address) in &samples.networks {
                    let course = course(*address);
                    if course.connects_by(rule) {
                        verdict.add_elsewhere(network, &course);
                    }
                }
                verdict.notes.extend(about_service(name, verdict.action));
                let last = verdict.stages.last();
                let notes = last.map(|last| about_name(policy, name, last, protocol, to.port));
                verdict.notes.extend(notes.unwrap_or_default());
            }
        }
        verdict
    }

    /// What is decided first.
    fn take(&mut self, course: Course) {
        self.action = match course.allows() {
            true => Action::Allow,
            false => Action::Deny,
        };
        self.stages = course.stages;
        self.notes.extend(course.notes);
    }

    /// Notes what is decided if the name resolves there, unless that is nothing else.
    fn add_elsewhere(&mut self, network: &str, course: &Course) {
        let Some(last) = course.stages.last() else {
            return;
        };
        let elsewhere = Elsewhere {
            network: network.to_owned(),
            decision: last.decision.clone(),
        };
        let decided = self.stages.last().map(|stage| &stage.decision);
        if decided != Some(&last.decision) && !self.elsewhere.contains(&elsewhere) {
            self.elsewhere.push(elsewhere);
        }
    }
}

impl Course {
    /// Has the engine decide.
    fn new(filter: &Filter, name: Option<&DomainName>, to: Destination) -> Self {
        let mut course = Self::default();
        course.pass(filter, name, to);
        course
    }

    fn pass(&mut self, filter: &Filter, name: Option<&DomainName>, to: Destination) {
        if let Some(name) = name
            && !self.decide("resolve", filter.resolve(name))
        {
            return;
        }
        let names: Vec<DomainName> = name.into_iter().cloned().collect();
        match admit(filter, to, &names) {
            Admission::Settled(decision) => {
                self.decide("connect", decision);
            }
            Admission::Inspect {
                admitted, unnamed, ..
            } => {
                self.decide("connect", admitted);
                let allowed = name
                    .is_none_or(|name| self.decide("name", filter.admit_name(name, to, &names)));
                self.notes.extend(match name {
                    Some(name) if allowed && !unnamed.allows() => {
                        Some(format!("it has to be TLS or HTTP, and to say {name}"))
                    }
                    _ if allowed => Some(
                        "it ends if it then says a name that is denied, or is TLS or HTTP of a form \
                         that not every server reads alike"
                            .to_owned(),
                    ),
                    _ => None,
                });
            }
        }
    }

    /// Notes a decision. Returns whether it lets through.
    fn decide(&mut self, event: &'static str, decision: Decision) -> bool {
        let allows = decision.allows();
        self.stages.push(Stage { event, decision });
        allows
    }

    fn allows(&self) -> bool {
        let last = self.stages.last();
        last.is_some_and(|stage| stage.decision.allows())
    }

    /// Whether this rule decides about the address.
    fn connects_by(&self, rule: &str) -> bool {
        let mut stages = self.stages.iter();
        stages.any(|stage| stage.event == "connect" && stage.decision.rule.as_deref() == Some(rule))
    }
}

/// What the network decides about a connection: the link comes before the rules.
fn admit(filter: &Filter, to: Destination, names: &[DomainName]) -> Admission {
    if UserNetwork::default().is_local(to.address.ip()) {
        return Admission::Settled(Decision {
            action: Action::Deny,
            reason: Reason::Local,
            rule: None,
        });
    }
    filter.admit(to, names)
}

fn by_default(decision: &Decision) -> bool {
    decision.reason == Reason::Default && !decision.allows()
}

/// What people are surprised by.
fn about_address(
    policy: &NetworkPolicy,
    filter: &Filter,
    to: Destination,
    decision: &Decision,
) -> Option<String> {
    if by_default(decision) && has_names(policy) {
        let note = "rules for names open no address that was not resolved from one of them";
        return Some(note.to_owned());
    }
    if decision.reason == Reason::Local {
        let UserNetwork {
            subnet, subnet6, ..
        } = UserNetwork::default();
        let subnet6 = subnet6.map(|subnet| format!(" and {subnet}"));
        let subnet6 = subnet6.unwrap_or_default();
        return Some(format!(
            "the link is {subnet}{subnet6}, unless they are set otherwise, IPv6's link-local \
             addresses and those of groups; the host's services are there under their names"
        ));
    }
    let may_be_host = decision.allows() && !filter.means_exactly(to);
    may_be_host.then(|| {
        let address = to.address.ip();
        format!("if {address} is one of the host's own it is denied: a rule for it alone opens it")
    })
}

/// What people are surprised by.
fn about_name(
    policy: &NetworkPolicy,
    name: &DomainName,
    last: &Stage,
    protocol: Protocol,
    port: u16,
) -> Vec<String> {
    let mut rules = policy.rules.iter();
    match (last.event, &last.decision) {
        ("resolve", decision) if by_default(decision) => {
            let below = Target::Domain(DomainPattern::Below(name.clone()));
            let below = rules.find(|rule| rule.target == below).map(|rule| {
                let id = &rule.id;
                format!("rule `{id}` is for the names below {name}, not for {name}")
            });
            below.into_iter().collect()
        }
        ("connect", decision) if by_default(decision) => rules
            .filter_map(|rule| passes_by(rule, name, protocol, port))
            .collect(),
        (_, decision) if decision.reason == Reason::Quic => {
            vec!["browsers then use TLS over TCP".to_owned()]
        }
        (event, decision) if decision.allows() => {
            let mut notes = Vec::new();
            if event == "name" && !WEB.contains(&port) {
                let note = "a protocol that says no name, like SSH, needs a rule with \
                            check = \"address\"";
                notes.push(note.to_owned());
            }
            notes.push(format!(
                "every address of {name} is checked again: the guest does not get one that is not \
                 public, unless a rule for a network means it"
            ));
            notes
        }
        _ => Vec::new(),
    }
}

/// What no policy says: host services come before the rules. Their names are usually below one that nobody has
/// on the Internet.
fn about_service(name: &DomainName, action: Action) -> Option<String> {
    let may_be = action == Action::Deny && name.as_str().ends_with(".internal");
    may_be.then(|| format!("unless it is a host service: rules decide nothing about {name} then"))
}

fn has_names(policy: &NetworkPolicy) -> bool {
    let mut rules = policy.rules.iter();
    rules.any(|rule| matches!(rule.target, Target::Domain(_)))
}

/// Why a rule that allows the name does not allow the connection.
fn passes_by(rule: &Rule, name: &DomainName, protocol: Protocol, port: u16) -> Option<String> {
    let Target::Domain(pattern) = &rule.target else {
        return None;
    };
    if rule.action == Action::Deny || !pattern.matches(name) {
        return None;
    }
    let id = &rule.id;
    Some(if rule.ports.is_some_and(|ports| !ports.contains(port)) {
        format!("rule `{id}` is for other ports")
    } else if rule.protocol.is_some_and(|own| own != protocol) {
        format!("rule `{id}` is for another protocol")
    } else if rule.check == Check::Web && protocol == Protocol::Udp {
        format!("rule `{id}` is for TLS and HTTP: over UDP it needs check = \"address\"")
    } else {
        return None;
    })
}

/// Addresses to ask the engine about.
struct Samples {
    /// Of IPv4 and of IPv6 a public one that no rule for a network is for, if there is one.
    families: [(&'static str, IpAddr); 2],
    /// For each rule for a network its id, the network, and an address in it that is in no earlier one.
    networks: Vec<(String, String, IpAddr)>,
}

impl Samples {
    /// For connections with the protocol and the port of `to`.
    fn new(policy: &NetworkPolicy, filter: &Filter, to: Destination) -> Self {
        let rules = policy.rules.iter().filter(|rule| {
            rule.ports
                .is_none_or(|ports| ports.contains(to.address.port()))
                && rule.protocol.is_none_or(|own| own == to.protocol)
        });
        let networks = rules.filter_map(|rule| match rule.target {
            Target::Network(net) => Some((rule, Range(net.network(), net.broadcast()))),
            Target::Domain(_) => None,
        });
        let networks: Vec<(&Rule, Range)> = networks.collect();
        let public: Vec<IpAddr> = candidates()
            .filter(|address| filter.unanswerable(*address).is_none())
            .collect();
        // Where every address has a rule, the one with the fewest is the most usual.
        let usual = |first: IpAddr| {
            let family = public.iter().filter(|own| own.is_ipv4() == first.is_ipv4());
            let rules_for = |own: &&IpAddr| {
                networks
                    .iter()
                    .filter(|(_, net)| net.contains(**own))
                    .count()
            };
            family.min_by_key(rules_for).copied().unwrap_or(first)
        };
        let link = UserNetwork::default();
        let link6 = link
            .subnet6
            .map(|net| Range(net.network().into(), net.broadcast().into()));
        let link = Range(link.subnet.network().into(), link.subnet.broadcast().into());
        let sample = |place: usize, network: Range| {
            let earlier = networks.iter().take(place).map(|(_, net)| *net);
            let earlier = earlier.filter(|net| network.contains(net.0) && network.contains(net.1));
            let mut taken: Vec<Range> = earlier.chain([link]).chain(link6).collect();
            taken.sort_unstable();
            let mut within = public.iter().filter(|address| network.contains(**address));
            let free = within.find(|address| !taken.iter().any(|net| net.contains(**address)));
            let address = free.copied().or_else(|| first_outside(network.0, &taken));
            address.filter(|address| network.contains(*address))
        };
        let sampled = networks
            .iter()
            .enumerate()
            .filter_map(|(place, (rule, network))| {
                Some((
                    rule.id.clone(),
                    rule.target.to_string(),
                    sample(place, *network)?,
                ))
            });
        Self {
            families: [("0.0.0.0/0", usual(FIRST)), ("::/0", usual(FIRST6))],
            networks: sampled.collect(),
        }
    }
}

/// The first and the last address of a network.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Range(IpAddr, IpAddr);

impl Range {
    fn contains(self, address: IpAddr) -> bool {
        (self.0..=self.1).contains(&address)
    }
}

/// The first address from `address` on that is in none of the networks, which are sorted.
fn first_outside(mut address: IpAddr, taken: &[Range]) -> Option<IpAddr> {
    for network in taken {
        if network.contains(address) {
            address = match network.1 {
                IpAddr::V4(last) => Ipv4Addr::from_bits(last.to_bits().checked_add(1)?).into(),
                IpAddr::V6(last) => Ipv6Addr::from_bits(last.to_bits().checked_add(1)?).into(),
            };
        }
    }
    Some(address)
}

/// Public addresses.
const FIRST: IpAddr = IpAddr::V4(Ipv4Addr::new(1, 0, 0, 1));
const FIRST6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2400, 0, 0, 0, 0, 0, 0, 1));

/// An address of each first byte of IPv4, and of some networks of IPv6.
fn candidates() -> impl Iterator<Item = IpAddr> {
    let v4 = (1..224).map(|first| Ipv4Addr::new(first, 0, 0, 1).into());
    let v6 = (0x2400..0x2e00).step_by(0x100);
    let v6 = v6.map(|first| Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 1).into());
    [FIRST].into_iter().chain(v4).chain(v6)
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decided = match self.action {
            Action::Allow => "allowed",
            Action::Deny if self.in_part => "denied in part",
            Action::Deny => "denied",
        };
        writeln!(f, "{decided}: {} to {}", self.protocol, self.to)?;
        for Stage { event, decision } in &self.stages {
            writeln!(f, "  {:<9}{}", format!("{event}:"), describe(decision))?;
        }
        for Elsewhere { network, decision } in &self.elsewhere {
            writeln!(f, "  if it resolves into {network}: {}", describe(decision))?;
        }
        for note in &self.notes {
            writeln!(f, "  note: {note}")?;
        }
        Ok(())
    }
}

fn describe(decision: &Decision) -> String {
    let mut text = match decision.action {
        Action::Allow => "allowed",
        Action::Deny => "denied",
    }
    .to_owned();
    // Writing to a String does not fail.
    let _ = match (&decision.rule, decision.reason) {
        (Some(rule), Reason::Rule) => write!(text, " by rule `{rule}`"),
        (Some(rule), reason) => write!(text, " by rule `{rule}`: {reason}"),
        (None, reason) => write!(text, ": {reason}"),
    };
    text
}

#[cfg(test)]
#[path = "check/tests.rs"]
mod tests;
