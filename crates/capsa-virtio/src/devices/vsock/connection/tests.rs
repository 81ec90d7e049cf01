//! A connection against a guest that keeps to the rules, packets of both on their way for any time,
//! and programs on both sides that read when they like.

use std::collections::VecDeque;
use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;

type Packet = (Header, Vec<u8>);

/// How much each program has to say.
const TOTAL: usize = 400_000;

/// What a program says.
static SPEECH: LazyLock<Vec<u8>> = LazyLock::new(|| {
    (0..TOTAL)
        .map(|index| (index % 251).to_le_bytes()[0])
        .collect()
});

/// A program's side: what it said, and what it heard.
#[derive(Default)]
struct Program {
    said: usize,
    heard: usize,
    ended: bool,
}

impl Program {
    fn say(&mut self, most: usize) -> Vec<u8> {
        let bytes = SPEECH[self.said..][..most.min(TOTAL - self.said)].to_vec();
        self.said += bytes.len();
        bytes
    }

    fn hear(&mut self, bytes: &[u8]) {
        assert!(
            bytes == &SPEECH[self.heard..][..bytes.len()],
            "at byte {}",
            self.heard
        );
        self.heard += bytes.len();
    }
}

struct Model {
    connection: Connection,
    to_guest: VecDeque<Packet>,
    to_host: VecDeque<Packet>,
    /// What the host's program has not taken yet.
    outbox: VecDeque<u8>,
    host: Program,
    guest: Program,
    /// What the guest's program has not taken yet.
    inbox: VecDeque<u8>,
    guest_room: u32,
    /// The guest's count of bytes that its program took, and the host's announcements.
    guest_forwarded: u32,
    guest_sent: u32,
    host_room: u32,
    host_forwarded: u32,
    over: bool,
}

impl Model {
    /// Established by the guest.
    fn new(guest_room: u32) -> Self {
        let request = Header {
            op: Op::Request as u16,
            buf_alloc: guest_room,
            ..Header::default()
        };
        Self {
            connection: Connection::accepted(&request),
            to_guest: VecDeque::new(),
            to_host: VecDeque::new(),
            outbox: VecDeque::new(),
            host: Program::default(),
            guest: Program::default(),
            inbox: VecDeque::new(),
            guest_room,
            guest_forwarded: 0,
            guest_sent: 0,
            host_room: 0,
            host_forwarded: 0,
            over: false,
        }
    }

    fn host_says(&mut self, most: usize) {
        let data = self.host.say(most.min(self.connection.may_send()));
        if self.host.ended || data.is_empty() {
            self.host.said -= data.len();
            return;
        }
        let count = u32::try_from(data.len()).unwrap();
        let mut header = Header {
            length: count,
            ..Header::default()
        };
        self.connection.sent(count);
        self.connection.stamp(Op::Data, &mut header);
        self.to_guest.push_back((header, data));
    }

    fn host_owes(&mut self) {
        if let Some(op) = self.connection.owes() {
            let mut header = Header::default();
            self.connection.stamp(op, &mut header);
            self.to_guest.push_back((header, Vec::new()));
        }
    }

    fn guest_packet(&mut self, op: Op, flags: u32, data: Vec<u8>) {
        let header = Header {
            op: op as u16,
            length: u32::try_from(data.len()).unwrap(),
            flags,
            buf_alloc: self.guest_room,
            fwd_cnt: self.guest_forwarded,
            ..Header::default()
        };
        self.to_host.push_back((header, data));
    }

    fn guest_says(&mut self, most: usize) {
        let in_flight = self.guest_sent.wrapping_sub(self.host_forwarded);
        let credit = self.host_room - in_flight;
        let data = self.guest.say(most.min(credit as usize));
        if self.guest.ended || data.is_empty() {
            self.guest.said -= data.len();
            return;
        }
        self.guest_sent += u32::try_from(data.len()).unwrap();
        self.guest_packet(Op::Data, 0, data);
    }

    fn guest_receives(&mut self) {
        let Some((header, data)) = self.to_guest.pop_front() else {
            return;
        };
        self.host_room = header.buf_alloc;
        self.host_forwarded = header.fwd_cnt;
        match header.op().unwrap() {
            Op::Data => {
                self.inbox.extend(data);
                assert!(
                    self.inbox.len() <= self.guest_room as usize,
                    "beyond the credit"
                );
            }
            Op::CreditRequest => self.guest_packet(Op::CreditUpdate, 0, Vec::new()),
            Op::Response | Op::Shutdown | Op::CreditUpdate => {}
            op => panic!("{op:?}"),
        }
    }

    fn host_receives(&mut self) {
        let Some((header, data)) = self.to_host.pop_front() else {
            return;
        };
        match self.connection.receive(&header) {
            Event::Nothing => {}
            Event::Data => {
                self.outbox.extend(data);
                assert!(
                    self.outbox.len() <= ROOM as usize,
                    "more than there is room for"
                );
            }
            Event::Over { reset: true } if header.op() == Some(Op::Shutdown) => self.over = true,
            event => panic!("{event:?} for {header:?}"),
        }
    }

    fn host_hears(&mut self, most: usize) {
        let count = most.min(self.outbox.len());
        self.host
            .hear(&self.outbox.drain(..count).collect::<Vec<_>>());
        self.connection.forwarded(count);
    }

    fn guest_hears(&mut self, most: usize) {
        let count = most.min(self.inbox.len());
        self.guest
            .hear(&self.inbox.drain(..count).collect::<Vec<_>>());
        self.guest_forwarded = self
            .guest_forwarded
            .wrapping_add(u32::try_from(count).unwrap());
        if count > 0 {
            self.guest_packet(Op::CreditUpdate, 0, Vec::new());
        }
    }

    fn host_ends(&mut self) {
        if !std::mem::replace(&mut self.host.ended, true) {
            self.connection.host_ends(SENDS_NO_MORE);
        }
    }

    fn guest_ends(&mut self) {
        if !std::mem::replace(&mut self.guest.ended, true) {
            self.guest_packet(Op::Shutdown, SENDS_NO_MORE, Vec::new());
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::HostSays(count) => self.host_says(count),
            Step::HostOwes => self.host_owes(),
            Step::GuestSays(count) => self.guest_says(count),
            Step::GuestReceives => self.guest_receives(),
            Step::HostReceives => self.host_receives(),
            Step::HostHears(count) => self.host_hears(count),
            Step::GuestHears(count) => self.guest_hears(count),
            Step::HostEnds => self.host_ends(),
            Step::GuestEnds => self.guest_ends(),
        }
    }

    /// Both programs say and hear all they can, and the packets arrive.
    fn finish(&mut self) {
        // Each round moves a packet's worth at least, if the credit flows.
        for _ in 0..2 * TOTAL / self.guest_room.min(ROOM / 2) as usize + 100 {
            self.host_says(usize::MAX);
            self.guest_says(usize::MAX);
            while self.connection.owes().is_some() {
                self.host_owes();
            }
            while !(self.to_guest.is_empty() && self.to_host.is_empty()) {
                self.guest_receives();
                self.host_receives();
            }
            self.host_hears(usize::MAX);
            self.guest_hears(usize::MAX);
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    HostSays(usize),
    HostOwes,
    GuestSays(usize),
    GuestReceives,
    HostReceives,
    HostHears(usize),
    GuestHears(usize),
    HostEnds,
    GuestEnds,
}

fn step() -> impl Strategy<Value = Step> {
    let count = || prop_oneof![1usize..10, 1usize..70_000];
    prop_oneof![
        4 => count().prop_map(Step::HostSays),
        4 => Just(Step::HostOwes),
        4 => count().prop_map(Step::GuestSays),
        6 => Just(Step::GuestReceives),
        6 => Just(Step::HostReceives),
        4 => count().prop_map(Step::HostHears),
        4 => count().prop_map(Step::GuestHears),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever is under way when: the streams arrive whole, no room overflows, and neither side
    /// waits for credit for ever.
    #[test]
    fn streams_are_whole_and_credit_is_kept(
        room in prop_oneof![2_000u32..10_000, 10_000u32..300_000],
        steps in prop::collection::vec(step(), 0..300),
    ) {
        let mut model = Model::new(room);
        for step in steps {
            model.step(step);
        }
        model.finish();
        prop_assert_eq!((model.guest.heard, model.host.heard), (TOTAL, TOTAL));
        prop_assert_eq!(model.connection.state(), State::Established);
    }

    /// A direction's end comes after its data, and leaves the other as it is.
    #[test]
    fn an_end_loses_nothing(
        room in 2_000u32..300_000,
        steps in prop::collection::vec(
            prop_oneof![60 => step(), 1 => Just(Step::HostEnds), 1 => Just(Step::GuestEnds)],
            0..300,
        ),
    ) {
        let mut model = Model::new(room);
        for step in steps {
            model.step(step);
        }
        model.finish();
        prop_assert_eq!(model.guest.heard, model.host.said);
        prop_assert_eq!(model.host.heard, model.guest.said);
        prop_assert!(model.host.ended || model.host.said == TOTAL);
        prop_assert!(model.guest.ended || model.guest.said == TOTAL);
        let ended = model.host.ended && model.guest.ended;
        prop_assert_eq!(model.connection.state() == State::Closing, ended);
        prop_assert!(!model.over);
    }
}

fn packet(op: Op) -> Header {
    Header {
        op: op as u16,
        buf_alloc: 1000,
        ..Header::default()
    }
}

/// A connection after its RESPONSE.
fn established() -> Connection {
    let mut connection = Connection::accepted(&packet(Op::Request));
    connection.stamp(Op::Response, &mut Header::default());
    connection
}

#[test]
fn a_guest_beyond_its_credit_loses_the_connection() {
    let mut connection = established();
    let data = |length| Header {
        length,
        ..packet(Op::Data)
    };
    assert_eq!(connection.receive(&data(ROOM)), Event::Data);
    assert_eq!(connection.receive(&data(0)), Event::Data);
    assert_eq!(connection.receive(&data(1)), Event::Over { reset: true });

    // What the guest has not been told yet is no credit.
    let mut connection = established();
    assert_eq!(connection.receive(&data(ROOM)), Event::Data);
    connection.forwarded(ROOM as usize);
    assert_eq!(connection.owes(), Some(Op::CreditUpdate));
    connection.stamp(Op::CreditUpdate, &mut Header::default());
    assert_eq!(connection.receive(&data(ROOM)), Event::Data);
    assert_eq!(
        connection.receive(&data(u32::MAX)),
        Event::Over { reset: true }
    );
}

#[test]
fn lies_about_credit_only_stall() {
    let mut connection = established();
    let update = |buf_alloc, fwd_cnt| Header {
        buf_alloc,
        fwd_cnt,
        ..packet(Op::CreditUpdate)
    };
    connection.sent(600);
    connection.receive(&update(1000, 400));
    assert_eq!(connection.may_send(), 800);
    // An older count, and a count of what was never sent.
    connection.receive(&update(1000, 300));
    connection.receive(&update(1000, 601));
    connection.receive(&update(1000, 0u32.wrapping_sub(1)));
    assert_eq!(connection.may_send(), 800);
    // No room at all, less than is under way, and all there can be.
    connection.receive(&update(0, 400));
    assert_eq!(connection.may_send(), 0);
    connection.receive(&update(100, 400));
    assert_eq!(connection.may_send(), 0);
    connection.receive(&update(u32::MAX, 600));
    assert_eq!(connection.may_send(), u32::MAX as usize);
}

#[test]
fn credit_is_asked_for_once() {
    let mut connection = established();
    assert_eq!(connection.owes(), None);
    connection.sent(1000);
    assert_eq!(connection.owes(), Some(Op::CreditRequest));
    connection.stamp(Op::CreditRequest, &mut Header::default());
    connection.receive(&packet(Op::CreditUpdate));
    assert_eq!(connection.owes(), None, "the answer was no");
    connection.receive(&Header {
        fwd_cnt: 1,
        ..packet(Op::CreditUpdate)
    });
    connection.sent(1);
    assert_eq!(connection.owes(), Some(Op::CreditRequest));
}

#[test]
fn the_guest_is_told_its_credit_when_it_asks() {
    let mut connection = established();
    connection.receive(&packet(Op::CreditRequest));
    assert_eq!(connection.owes(), Some(Op::CreditUpdate));
    let mut header = Header::default();
    connection.stamp(Op::CreditUpdate, &mut header);
    assert_eq!((header.buf_alloc, header.fwd_cnt), (ROOM, 0));
    assert_eq!(connection.owes(), None);
}

#[test]
fn packets_out_of_order_are_faults() {
    let fault = Event::Over { reset: true };
    for op in [Op::Request, Op::Response] {
        assert_eq!(established().receive(&packet(op)), fault);
    }
    let mut early = Connection::requested();
    assert_eq!(early.receive(&packet(Op::Response)), fault, "not asked yet");
    let mut requested = Connection::requested();
    requested.stamp(Op::Request, &mut Header::default());
    assert_eq!(requested.receive(&packet(Op::Data)), fault);
    for op in [0, 8, u16::MAX] {
        let header = Header {
            op,
            ..packet(Op::Data)
        };
        assert_eq!(established().receive(&header), fault);
    }
    let mut ended = established();
    let shutdown = Header {
        flags: SENDS_NO_MORE,
        ..packet(Op::Shutdown)
    };
    assert_eq!(ended.receive(&shutdown), Event::Nothing);
    assert_eq!(
        ended.receive(&packet(Op::Data)),
        fault,
        "there was to be no more"
    );
}

#[test]
fn data_after_the_program_is_gone_is_thrown_away() {
    let mut connection = established();
    connection.receive(&Header {
        length: 10,
        ..packet(Op::Data)
    });
    connection.host_ends(RECEIVES_NO_MORE);
    assert_eq!(connection.owes(), Some(Op::Shutdown));
    let mut header = Header::default();
    connection.stamp(Op::Shutdown, &mut header);
    assert_eq!((header.flags, header.fwd_cnt), (RECEIVES_NO_MORE, 10));
    let late = Header {
        length: 5,
        ..packet(Op::Data)
    };
    assert_eq!(connection.receive(&late), Event::Nothing);
    assert_eq!(connection.may_send(), 1000, "the other direction goes on");
}
