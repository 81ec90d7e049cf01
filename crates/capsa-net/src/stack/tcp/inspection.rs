//! What a connection must show before its bytes go on.

use std::net::SocketAddr;
use std::sync::Arc;

use smoltcp::time::{Duration, Instant};

use crate::inspect::{Inspector, Needed, Said, Step};
use crate::policy::{Decision, Destination, DomainName, Filter, Reason};

/// How long it may be unclear what a connection is: long enough for a line that comes in parts, and not for ever, so
/// that somebody learns why nothing comes.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection that is listened to.
#[derive(Debug)]
pub(in crate::stack) struct Inspection {
    inspector: Inspector,
    from: SocketAddr,
    to: Destination,
    /// Those of the address when the connection began: that they are forgotten meanwhile cuts nothing.
    names: Vec<DomainName>,
    unnamed: Decision,
    rule: Arc<str>,
    /// How many bytes may go on without another look.
    allowed: u64,
    /// How many behind those were looked at, and say nothing yet.
    seen: usize,
    /// The time by which it has to be clear what it is, if it is not.
    unclear_until: Option<Instant>,
    /// It ends behind the bytes that may go on.
    refused: bool,
}

/// What an inspection decided.
#[derive(Debug)]
pub(in crate::stack) struct Judgement {
    pub(in crate::stack) from: SocketAddr,
    pub(in crate::stack) to: SocketAddr,
    pub(in crate::stack) name: Option<DomainName>,
    pub(in crate::stack) decision: Decision,
}

impl Inspection {
    /// `unnamed` is the decision if no name is said, `rule` the one that wants to know.
    pub(in crate::stack) fn new(
        from: SocketAddr,
        to: Destination,
        names: Vec<DomainName>,
        unnamed: Decision,
        rule: Arc<str>,
    ) -> Self {
        let needed = match unnamed.allows() {
            true => Needed::Nothing,
            false => Needed::Name,
        };
        Self {
            inspector: Inspector::new(needed),
            from,
            to,
            names,
            unnamed,
            rule,
            allowed: 0,
            seen: 0,
            unclear_until: None,
            refused: false,
        }
    }

    /// Whether another look may tell more, with `present` bytes to look at. `ended` says that no others come.
    pub(super) fn has_to_look(&self, present: usize, ended: bool, now: Instant) -> bool {
        let overdue = self.unclear_until.is_some_and(|until| until <= now);
        self.allowed == 0
            && !self.refused
            && present > 0
            && (present > self.seen || ended || overdue)
    }

    /// Looks at bytes of the guest; `ended` says that no others come.
    pub(super) fn look(
        &mut self,
        front: &[u8],
        ended: bool,
        now: Instant,
        filter: &Filter,
        judge: &mut impl FnMut(Judgement),
    ) {
        let mut rest = front;
        while !rest.is_empty() && !self.refused {
            let until = self.unclear_until.take().unwrap_or(now + PATIENCE);
            let (name, decision, length) = match self.inspector.step(rest, ended) {
                Step::More => break,
                Step::Unclear if now < until => {
                    self.unclear_until = Some(until);
                    break;
                }
                Step::Unclear => (None, self.refusal(Reason::Malformed), 0),
                Step::Pass(length) => {
                    rest = self.allow(rest, length);
                    continue;
                }
                Step::Refuse(reason) => (None, self.refusal(reason), 0),
                Step::Ask(Said::Nothing, length) => (None, self.unnamed.clone(), length),
                Step::Ask(Said::Address(address), length) => {
                    let decision = filter.admit_address(address, self.to, &self.names);
                    (None, decision, length)
                }
                Step::Ask(Said::Name(name), length) => {
                    let decision = filter.admit_name(&name, self.to, &self.names);
                    (Some(name), decision, length)
                }
            };
            self.refused = !decision.allows();
            judge(Judgement {
                from: self.from,
                to: self.to.address,
                name,
                decision,
            });
            if !self.refused {
                rest = self.allow(rest, length);
            }
        }
        self.seen = rest.len();
    }

    /// Lets `length` bytes go on. Returns those of `rest` that are behind them.
    fn allow<'a>(&mut self, rest: &'a [u8], length: u64) -> &'a [u8] {
        self.allowed = self.allowed.saturating_add(length);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        rest.get(length..).unwrap_or_default()
    }

    /// How many bytes may go on; `None` once the connection ends.
    pub(super) fn may_pass(&self) -> Option<usize> {
        let length = usize::try_from(self.allowed).unwrap_or(usize::MAX);
        (length > 0 || !self.refused).then_some(length)
    }

    /// So many bytes have gone on.
    pub(super) fn passed(&mut self, length: usize) {
        self.allowed = self.allowed.saturating_sub(length as u64);
    }

    /// The time by which it has to be clear what the connection is, if it is not.
    pub(super) fn unclear_until(&self) -> Option<Instant> {
        self.unclear_until
    }

    fn refusal(&self, reason: Reason) -> Decision {
        Decision {
            rule: Some(Arc::clone(&self.rule)),
            ..Decision::deny(reason)
        }
    }
}
