//! What a flow says about where it goes: the name in TLS' ClientHello or in the heads of HTTP's requests.
//!
//! An [`Inspector`] looks at the bytes of the guest that nobody has seen yet, and says how many of them may
//! go on. What it cannot understand for certain does not: whoever reads the bytes later could understand
//! something else.

mod http;
mod tls;

use crate::policy::{DomainName, Reason};

/// How much of a flow's beginning is looked at, and so the longest ClientHello, and the longest head of a
/// request. Servers take 8 to 16 KiB of the latter.
pub(crate) const MAX_HEAD: usize = 16 << 10;

/// What to do next with a flow's bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// This many may go on, at least one, those to come included.
    Pass(u64),
    /// This many may go on if the flow may go to this name.
    Ask(DomainName, u64),
    /// All may go on: no name is needed, and none will be said in the clear.
    Unnamed,
    /// It takes more to know.
    More,
    /// The flow ends.
    Refuse(Reason),
}

/// What is known of a flow by now.
#[derive(Debug)]
pub(crate) struct Inspector {
    name_needed: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    Unknown,
    Http(http::Requests),
    /// Nothing further is said in the clear.
    Done,
}

/// What the first bytes are.
enum Kind {
    Tls,
    Http,
    Other,
    Unclear,
}

/// The methods by which a flow that need not be HTTP is known as such.
const METHODS: [&[u8]; 8] = [
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"PUT ",
    b"DELETE ",
    b"OPTIONS ",
    b"PATCH ",
    b"CONNECT ",
];

impl Inspector {
    /// For a flow that begins. If no name is needed, one that is neither TLS nor HTTP goes on.
    pub(crate) fn new(name_needed: bool) -> Self {
        Self {
            name_needed,
            state: State::Unknown,
        }
    }

    /// Looks at `front`, the bytes that have not gone on yet: not empty, and up to [`MAX_HEAD`] of them.
    pub(crate) fn step(&mut self, front: &[u8]) -> Step {
        let step = self.look(front);
        match step {
            Step::More if front.len() >= MAX_HEAD => Step::Refuse(Reason::Malformed),
            step => step,
        }
    }

    fn look(&mut self, front: &[u8]) -> Step {
        match &mut self.state {
            State::Done => Step::Pass(u64::MAX),
            State::Http(requests) => requests.step(front),
            State::Unknown => match self.kind(front) {
                Kind::Unclear => Step::More,
                Kind::Tls => {
                    let step = tls::client_hello(front);
                    let step = match step {
                        Step::Refuse(_) if !self.name_needed => Step::Unnamed,
                        step => step,
                    };
                    if matches!(step, Step::Ask(..) | Step::Unnamed) {
                        self.state = State::Done;
                    }
                    step
                }
                Kind::Http => {
                    let mut requests = http::Requests::default();
                    let step = requests.step(front);
                    self.state = State::Http(requests);
                    step
                }
                Kind::Other if self.name_needed => Step::Refuse(Reason::NoWebProtocol),
                Kind::Other => {
                    self.state = State::Done;
                    Step::Unnamed
                }
            },
        }
    }

    /// A flow that has to say a name is TLS if it begins like it, and else HTTP or wrong. One that need not
    /// is held back only as long as it may become either.
    fn kind(&self, front: &[u8]) -> Kind {
        if front[0] == tls::HANDSHAKE {
            return Kind::Tls;
        }
        if self.name_needed {
            return if front[0].is_ascii_alphabetic() {
                Kind::Http
            } else {
                Kind::Other
            };
        }
        let begins = |method: &&[u8]| {
            let length = method.len().min(front.len());
            method[..length] == front[..length]
        };
        match METHODS.iter().find(|method| begins(method)) {
            Some(method) if front.len() >= method.len() => Kind::Http,
            Some(_) => Kind::Unclear,
            None => Kind::Other,
        }
    }
}

#[cfg(test)]
mod tests;
