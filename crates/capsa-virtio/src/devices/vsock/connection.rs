//! One connection's state, without its data and without I/O.
//!
//! ```text
//!     the host asks                        the guest asks
//!          │ ▶ REQUEST                           │ ◀ REQUEST
//!          ▼                                     ▼ ▶ RESPONSE
//!      Requested ────────── ◀ RESPONSE ─────▶ Established ◀─┐ ◀▶ data, credit,
//!          │                                     │      └──┘ ◀▶ SHUTDOWN of one direction
//!          │                                     │ both directions have ended,
//!          │                                     │ ▶ SHUTDOWN of both
//!          │                                     ▼
//!          │                                  Closing
//!          ▼                                     ▼
//!   over, from any state: ◀ RST; ◀ SHUTDOWN of both (▶ RST); a fault of the guest (▶ RST);
//!   from Requested after 10 s, from Closing after 2 s (▶ RST)
//! ```
//!
//! A direction ends when its sender has no more or its receiver takes no more, for good
//! (5.10.6.5). Flow control (5.10.6.3) counts bytes modulo 2^32: a sender never has more bytes on
//! the way than the receiver has room for.

use super::packet::{ENDED, Header, Op, RECEIVES_NO_MORE, SENDS_NO_MORE};

/// Room for the guest's data on the host, for each connection: so much a host program may leave
/// unread before the guest has to wait, beyond what its socket takes. Two of Linux's largest
/// packets, so that one can be under way while the other is passed on.
pub(super) const ROOM: u32 = 128 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// The guest has not answered yet.
    Requested,
    /// Data may flow.
    Established,
    /// All has been said; the guest's RST is waited for.
    Closing,
}

/// What a packet of the guest means for the connection's host side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// Nothing that the other methods do not tell.
    Nothing,
    /// The guest takes the connection that the host asked for.
    Accepted,
    /// The packet's data is to be passed on, and then counted by [`Connection::forwarded`].
    Data,
    /// The connection is over for the guest. With `reset`, it is to be told so.
    Over { reset: bool },
}

#[derive(Debug)]
pub(super) struct Connection {
    state: State,
    /// REQUEST or RESPONSE, until it is sent.
    opening: Option<Op>,
    /// Which directions the host has ended, and which of these the guest knows: SHUTDOWN's flags.
    host_ended: u32,
    host_ended_told: u32,
    /// The flags of the guest's SHUTDOWNs.
    guest_ended: u32,

    /// Bytes from the guest.
    received: u32,
    /// Of these, the ones passed on.
    forwarded: u32,
    /// Of these, the ones that the guest knows of.
    forwarded_told: u32,
    /// The guest asked for what it should know.
    update_due: bool,

    /// Bytes to the guest.
    sent: u32,
    /// Of these, the ones that the guest has passed on.
    taken: u32,
    /// The guest's room.
    guest_room: u32,
    /// The guest has been asked for credit since there was none.
    credit_asked: bool,
}

impl Connection {
    /// One that the host asks for.
    pub(super) fn requested() -> Self {
        Self::new(State::Requested, Op::Request, 0)
    }

    /// One that the guest asks for by `request` and the host takes.
    pub(super) fn accepted(request: &Header) -> Self {
        Self::new(State::Established, Op::Response, request.buf_alloc)
    }

    fn new(state: State, opening: Op, guest_room: u32) -> Self {
        Self {
            state,
            opening: Some(opening),
            host_ended: 0,
            host_ended_told: 0,
            guest_ended: 0,
            received: 0,
            forwarded: 0,
            forwarded_told: 0,
            update_due: false,
            sent: 0,
            taken: 0,
            guest_room,
            credit_asked: false,
        }
    }

    pub(super) fn state(&self) -> State {
        self.state
    }

    /// Whether the guest knows of the connection.
    pub(super) fn is_known(&self) -> bool {
        self.opening != Some(Op::Request)
    }

    /// A packet of the guest.
    pub(super) fn receive(&mut self, header: &Header) -> Event {
        const FAULT: Event = Event::Over { reset: true };
        self.learn_credit(header);
        let Some(op) = header.op() else {
            return FAULT;
        };
        match (op, self.state) {
            (Op::Reset, _) => Event::Over { reset: false },
            (Op::Response, State::Requested) if self.is_known() => {
                self.state = State::Established;
                Event::Accepted
            }
            (_, State::Requested) | (Op::Request | Op::Response, _) => FAULT,
            (Op::Data, _) => self.receive_data(header.length).unwrap_or(FAULT),
            (Op::CreditUpdate, _) => Event::Nothing,
            (Op::CreditRequest, _) => {
                self.update_due = true;
                Event::Nothing
            }
            (Op::Shutdown, _) => {
                self.guest_ended |= header.flags & ENDED;
                if self.guest_ended == ENDED {
                    return Event::Over { reset: true };
                }
                self.close_if_ended();
                Event::Nothing
            }
        }
    }

    /// None when the guest must not send that.
    fn receive_data(&mut self, length: u32) -> Option<Event> {
        if length > self.believed_room() || self.guest_ended & SENDS_NO_MORE != 0 {
            return None;
        }
        self.received = self.received.wrapping_add(length);
        if self.host_ended & RECEIVES_NO_MORE == 0 {
            return Some(Event::Data);
        }
        // It was under way when the guest was told.
        self.forwarded = self.received;
        Some(Event::Nothing)
    }

    /// What the guest knows to be left of the room: what it may send.
    fn believed_room(&self) -> u32 {
        ROOM - self.received.wrapping_sub(self.forwarded_told)
    }

    fn learn_credit(&mut self, header: &Header) {
        self.guest_room = header.buf_alloc;
        // Packets of a guest's threads may overtake each other, so an older count is not a fault.
        // Nor is it news, and a count of bytes that were never sent is neither.
        if self.sent.wrapping_sub(header.fwd_cnt) <= self.in_flight() {
            self.taken = header.fwd_cnt;
        }
        if self.credit() > 0 {
            self.credit_asked = false;
        }
    }

    fn in_flight(&self) -> u32 {
        self.sent.wrapping_sub(self.taken)
    }

    fn credit(&self) -> u32 {
        self.guest_room.saturating_sub(self.in_flight())
    }

    fn to_guest_ended(&self) -> bool {
        self.host_ended & SENDS_NO_MORE != 0 || self.guest_ended & RECEIVES_NO_MORE != 0
    }

    fn to_host_ended(&self) -> bool {
        self.host_ended & RECEIVES_NO_MORE != 0 || self.guest_ended & SENDS_NO_MORE != 0
    }

    fn close_if_ended(&mut self) {
        if self.to_guest_ended() && self.to_host_ended() {
            self.host_ended = ENDED;
            self.state = State::Closing;
        }
    }

    /// Whether the guest has no more data for the host.
    pub(super) fn guest_sends_no_more(&self) -> bool {
        self.guest_ended & SENDS_NO_MORE != 0
    }

    /// Whether the guest takes no more data of the host.
    pub(super) fn guest_receives_no_more(&self) -> bool {
        self.guest_ended & RECEIVES_NO_MORE != 0
    }

    /// The host's program ended one direction or both: SHUTDOWN's flags.
    pub(super) fn host_ends(&mut self, directions: u32) {
        self.host_ended |= directions;
        if self.host_ended & RECEIVES_NO_MORE != 0 {
            self.forwarded = self.received;
        }
        self.close_if_ended();
    }

    /// `count` bytes of the guest's have left the host's room.
    pub(super) fn forwarded(&mut self, count: usize) {
        let outstanding = self.received.wrapping_sub(self.forwarded);
        let count = u32::try_from(count).unwrap_or(u32::MAX).min(outstanding);
        self.forwarded = self.forwarded.wrapping_add(count);
    }

    /// How many bytes may be sent to the guest now.
    pub(super) fn may_send(&self) -> usize {
        if self.state != State::Established || self.to_guest_ended() {
            return 0;
        }
        self.credit() as usize
    }

    /// So many bytes are on their way to the guest: at most [`may_send`](Self::may_send).
    pub(super) fn sent(&mut self, count: u32) {
        self.sent = self.sent.wrapping_add(count);
    }

    /// The packet without data that the guest is to get next.
    pub(super) fn owes(&self) -> Option<Op> {
        if self.opening.is_some() {
            return self.opening;
        }
        if self.state == State::Requested {
            return None;
        }
        if self.host_ended != self.host_ended_told {
            return Some(Op::Shutdown);
        }
        // Half of the room keeps a sender busy until the update arrives.
        let scarce = self.believed_room() < ROOM / 2 && !self.to_host_ended();
        if self.update_due || (scarce && self.forwarded != self.forwarded_told) {
            return Some(Op::CreditUpdate);
        }
        let stalled = self.state == State::Established && !self.to_guest_ended();
        (stalled && self.credit() == 0 && !self.credit_asked).then_some(Op::CreditRequest)
    }

    /// Puts what the state says into the header of a packet that is now sent to the guest.
    pub(super) fn stamp(&mut self, op: Op, header: &mut Header) {
        match op {
            Op::Request | Op::Response => self.opening = None,
            Op::Shutdown => {
                header.flags = self.host_ended;
                self.host_ended_told = self.host_ended;
            }
            Op::CreditRequest => self.credit_asked = true,
            Op::Data | Op::CreditUpdate | Op::Reset => {}
        }
        header.op = op as u16;
        header.buf_alloc = ROOM;
        header.fwd_cnt = self.forwarded;
        self.forwarded_told = self.forwarded;
        self.update_due = false;
    }
}

#[cfg(test)]
mod tests;
