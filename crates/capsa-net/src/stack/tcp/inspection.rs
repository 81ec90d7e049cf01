//! What a connection must show before its bytes go on.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::inspect::{Inspector, Needed, Said, Step};
use crate::policy::{Decision, Destination, DomainName, Filter, Reason};

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
        }
    }

    /// Looks at bytes of the guest; `ended` says that no others come. Returns how many may go on, or that the
    /// connection ends.
    pub(super) fn look(
        &mut self,
        front: &[u8],
        ended: bool,
        filter: &Filter,
        judge: &mut impl FnMut(Judgement),
    ) -> Option<u64> {
        let (name, decision, length) = match self.inspector.step(front, ended) {
            Step::More => return Some(0),
            Step::Pass(length) => return Some(length),
            Step::Refuse(reason) => (None, self.refused(reason), 0),
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
        let allowed = decision.allows();
        judge(Judgement {
            from: self.from,
            to: self.to.address,
            name,
            decision,
        });
        allowed.then_some(length)
    }

    fn refused(&self, reason: Reason) -> Decision {
        Decision {
            rule: Some(Arc::clone(&self.rule)),
            ..Decision::deny(reason)
        }
    }
}
