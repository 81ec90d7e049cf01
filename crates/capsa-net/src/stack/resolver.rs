//! Names for the guest: which it may ask for, how often, and what it gets of the answers.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use hickory_proto::op::{Message, ResponseCode};
use slab::Slab;

use super::tcp::FlowId;
use super::{Events, Wish};
use crate::config::{Limits, UserNetwork};
use crate::dns::Question;
use crate::event::{Event, Limit};
use crate::names::Names;
use crate::policy::{DomainName, Filter};

/// One question to a resolver, and none that later has its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct QuestionId {
    index: usize,
    serial: u64,
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asker {
    /// A datagram from the first to the second address.
    Udp(SocketAddr, SocketAddr),
    /// A connection.
    Tcp(FlowId),
}

/// What becomes of a question at once.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Answer(Vec<u8>),
    Waits,
    Dropped,
}

pub(super) struct Resolver {
    waiting: Slab<(u64, Asker, Question)>,
    serial: u64,
    limits: Limits,
    /// How many questions may come at once, and until when that was counted.
    credit: f64,
    counted: Instant,
    pub(super) names: Names,
    local: HashMap<DomainName, Vec<IpAddr>>,
}

impl Resolver {
    pub(super) fn new(network: &UserNetwork, now: Instant) -> Self {
        let host = [Some(network.host().into()), network.host6().map(IpAddr::V6)];
        let host: Vec<IpAddr> = host.into_iter().flatten().collect();
        let names = network.services.iter().map(|service| &service.name);
        Self {
            waiting: Slab::new(),
            serial: 0,
            limits: network.limits,
            credit: Self::most_credit(&network.limits),
            counted: now,
            names: Names::new(network.limits.dns_addresses),
            local: names.map(|name| (name.clone(), host.clone())).collect(),
        }
    }

    /// Lets a name have an address, whatever resolvers say.
    pub(super) fn add_name(&mut self, name: DomainName, address: IpAddr) {
        self.local.entry(name).or_default().push(address);
    }

    fn most_credit(limits: &Limits) -> f64 {
        2.0 * f64::from(limits.dns_rate)
    }

    /// Takes a question of the guest.
    pub(super) fn ask(
        &mut self,
        message: &[u8],
        asker: Asker,
        filter: &Filter,
        now: Instant,
        wishes: &mut impl Extend<Wish>,
        events: &mut Events,
    ) -> Asked {
        let passed = now.saturating_duration_since(self.counted).as_secs_f64();
        self.counted = self.counted.max(now);
        self.credit = (self.credit + passed * f64::from(self.limits.dns_rate))
            .min(Self::most_credit(&self.limits));
        if self.credit < 1.0 {
            events.limit(Limit::DnsRate, now);
            return Asked::Dropped;
        }
        self.credit -= 1.0;

        let question = match Question::read(message, matches!(asker, Asker::Udp(..))) {
            Ok(question) => question,
            Err(Some(refusal)) => return Asked::Answer(refusal),
            Err(None) => return Asked::Dropped,
        };
        let nothing = |code| Asked::Answer(question.answer(code, Vec::new()));
        let Some(name) = &question.name else {
            return nothing(ResponseCode::NXDomain);
        };
        if let Some(addresses) = self.local.get(name) {
            return Asked::Answer(question.answer_locally(addresses));
        }
        let decision = filter.resolve(name);
        let allowed = decision.allows();
        events.push(Event::Resolve {
            name: name.clone(),
            records: question.records(),
            decision,
        });
        if !allowed {
            return nothing(ResponseCode::NXDomain);
        }
        if !question.is_for_known_records() {
            return nothing(ResponseCode::NoError);
        }
        if self.waiting.len() >= self.limits.dns_questions {
            events.limit(Limit::DnsQuestions, now);
            return nothing(ResponseCode::ServFail);
        }
        self.serial += 1;
        let lookup = question.lookup();
        let index = self.waiting.insert((self.serial, asker, question));
        let id = QuestionId {
            index,
            serial: self.serial,
        };
        wishes.extend([Wish::Resolve {
            question: id,
            lookup,
        }]);
        Asked::Waits
    }

    /// Takes an answer, or that there is none. Returns who asked, and what to say.
    pub(super) fn answer(
        &mut self,
        id: QuestionId,
        answer: Option<&Message>,
        filter: &Filter,
        now: Instant,
        events: &mut Events,
    ) -> Option<(Asker, Vec<u8>)> {
        let (serial, ..) = self.waiting.get(id.index)?;
        if *serial != id.serial {
            return None;
        }
        let (_, asker, question) = self.waiting.remove(id.index);
        let (Some(answer), Some(name)) = (answer, &question.name) else {
            return Some((asker, question.answer(ResponseCode::ServFail, Vec::new())));
        };
        let kept = question.sanitize(answer, |address| filter.unanswerable(address).is_none());
        for (address, ttl) in kept.addresses {
            self.names.add(name, address, ttl, now);
        }
        for address in kept.removed {
            if let Some(block) = filter.unanswerable(address) {
                let name = name.clone();
                events.push(Event::AnswerRemoved {
                    name,
                    address,
                    block,
                });
            }
        }
        let code = match answer.metadata.response_code {
            code @ (ResponseCode::NoError | ResponseCode::NXDomain) => code,
            _ => ResponseCode::ServFail,
        };
        Some((asker, question.answer(code, kept.records)))
    }
}
