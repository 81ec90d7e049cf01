//! What a flow says about where it goes: the name in TLS' ClientHello or in the heads of HTTP's requests.
//!
//! An [`Inspector`] looks at the bytes of the guest that nobody has seen yet, and says how many of them may
//! go on. What it cannot understand for certain does not: whoever reads the bytes later could understand
//! something else. A flow that need not say a name may also be something else than TLS or HTTP, which
//! [`begin`] tells by what the most lenient of servers takes for either.

mod begin;
mod http;
mod tls;

use std::net::IpAddr;

use crate::policy::{DomainName, Reason};

use begin::Kind;

/// How much of a flow's beginning is looked at, and so the longest ClientHello, and the longest head of a
/// request. Servers take 8 to 16 KiB of the latter.
pub(crate) const MAX_HEAD: usize = 16 << 10;

/// What to do next with a flow's bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// This many may go on, at least one, those to come included.
    Pass(u64),
    /// This many may go on if the flow may go where it says. None, if the same bytes have to be looked at again.
    Ask(Said, u64),
    /// It takes more to know.
    More,
    /// It takes more to know even what it is.
    Unclear,
    /// The flow ends.
    Refuse(Reason),
}

/// Where a flow says that it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    /// To a name.
    Name(DomainName),
    /// To an address.
    Address(IpAddr),
    /// Nothing.
    Nothing,
}

/// How much a flow has to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needed {
    /// A name, in the one way that every server reads alike.
    Name,
    /// Nothing; but if it says a name, in a way that can be understood.
    Nothing,
}

/// What is known of a flow by now.
#[derive(Debug)]
pub(crate) struct Inspector {
    needed: Needed,
    state: State,
    /// Where no name is needed: how the flow looks to who needs one, as long as that lets it go on.
    strict: Option<State>,
}

#[derive(Debug, Clone)]
enum State {
    /// Nothing has gone on but empty lines, if so much.
    Beginning {
        blank: bool,
    },
    Http(http::Requests),
    /// Nothing further is said in the clear.
    Done,
}

impl Inspector {
    /// For a flow that begins.
    pub(crate) fn new(needed: Needed) -> Self {
        let state = State::Beginning { blank: false };
        Self {
            needed,
            strict: (needed == Needed::Nothing).then(|| state.clone()),
            state,
        }
    }

    /// Looks at `front`, the bytes that have not gone on yet: not empty, and up to [`MAX_HEAD`] of them. `ended`
    /// says that no others come.
    ///
    /// Before a flow that needs no name goes on where one that does would end, it says nothing, once. A name that
    /// it says then is not said in the one way.
    pub(crate) fn step(&mut self, front: &[u8], ended: bool) -> Step {
        let Some(strict) = &mut self.strict else {
            return self.state.step(self.needed, front, ended);
        };
        let mut state = self.state.clone();
        let step = state.step(self.needed, front, ended);
        if matches!(step, Step::Pass(_) | Step::Ask(..))
            && strict.step(Needed::Name, front, ended) != step
        {
            self.strict = None;
            if matches!(step, Step::Pass(_) | Step::Ask(Said::Name(_), _)) {
                return Step::Ask(Said::Nothing, 0);
            }
        }
        self.state = state;
        step
    }
}

impl State {
    fn step(&mut self, needed: Needed, front: &[u8], ended: bool) -> Step {
        match self.look(needed, front, ended) {
            Step::More | Step::Unclear if ended || front.len() >= MAX_HEAD => {
                Step::Refuse(Reason::Malformed)
            }
            Step::Ask(Said::Address(_) | Said::Nothing, _) if needed == Needed::Name => {
                Step::Refuse(Reason::NoName)
            }
            step => step,
        }
    }

    fn look(&mut self, needed: Needed, front: &[u8], ended: bool) -> Step {
        let blank = match self {
            Self::Done => return Step::Pass(u64::MAX),
            Self::Http(requests) if needed == Needed::Name || !requests.may_have_ended() => {
                return requests.step(front, needed);
            }
            Self::Http(_) => false,
            Self::Beginning { blank } => *blank,
        };
        let kind = match needed {
            Needed::Name => begin::strictly(front),
            Needed::Nothing => begin::leniently(front, blank, ended),
        };
        match kind {
            Kind::Unclear => Step::Unclear,
            Kind::Blank(length) => {
                *self = Self::Beginning { blank: true };
                Step::Pass(length as u64)
            }
            Kind::Tls => {
                let step = tls::client_hello(front, needed);
                if matches!(step, Step::Ask(..)) {
                    *self = Self::Done;
                }
                step
            }
            Kind::Http => {
                let mut requests = http::Requests::default();
                let step = requests.step(front, needed);
                *self = Self::Http(requests);
                step
            }
            Kind::Malformed => Step::Refuse(Reason::Malformed),
            Kind::Other if needed == Needed::Name => Step::Refuse(Reason::NoWebProtocol),
            Kind::Other => {
                *self = Self::Done;
                Step::Ask(Said::Nothing, u64::MAX)
            }
        }
    }
}

impl Said {
    /// Reads the name of a host, or an address. Where a name is needed, a final dot is refused: servers differ
    /// about it.
    fn read(text: &str, needed: Needed) -> Result<Self, Reason> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        if needed == Needed::Name && text.ends_with('.') {
            return Err(Reason::Malformed);
        }
        text.parse().map(Self::Name).map_err(|_| Reason::Malformed)
    }
}

#[cfg(test)]
mod tests;
