//! Messages of DNS: what a guest may ask, what is asked for it, and what of the answer it gets.
//!
//! The guest's message goes no further than here, nor does the resolver's: both are read, and new ones made
//! of what is understood. So no bit of theirs carries anything through but the name, its type and the answer.

use std::net::IpAddr;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::svcb::{Mandatory, SvcParamKey, SvcParamValue};
use hickory_proto::rr::rdata::{A, AAAA, HTTPS, SVCB};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::policy::DomainName;

/// The port of resolvers.
pub(crate) const PORT: u16 = 53;

/// The largest message over UDP of who does not say otherwise (RFC 1035, 4.2.1).
const PLAIN_UDP: u16 = 512;

/// The largest over UDP that is asked for and given: one that no link cuts (DNS Flag Day 2020).
const LARGE_UDP: u16 = 1232;

/// How many records of an answer are looked at.
const MAX_RECORDS: usize = 256;

/// The longest time that records are said to be true for.
const MAX_TTL: u32 = 24 * 60 * 60;

/// How long names of the configuration are said to be true.
const LOCAL_TTL: u32 = 60;

/// A guest's question.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    id: u16,
    recursion: bool,
    edns: bool,
    /// How long an answer may be.
    limit: u16,
    query: Query,
    /// The name, if it is one of a host.
    pub(crate) name: Option<DomainName>,
}

/// What to ask a resolver for.
#[derive(Debug, Clone)]
pub struct Lookup {
    query: Query,
    edns: bool,
}

/// What a message from a resolver is.
#[derive(Debug)]
pub(crate) enum Reply {
    /// The answer.
    Answer(Box<Message>),
    /// The answer is too long for UDP.
    Truncated,
    /// No answer to this question, whoever sent it.
    Other,
}

/// What is left of an answer.
#[derive(Debug, Default)]
pub(crate) struct Sanitized {
    /// The records that the guest gets.
    pub(crate) records: Vec<Record>,
    /// The addresses among them, and for how long.
    pub(crate) addresses: Vec<(IpAddr, Duration)>,
    /// The addresses that it does not get.
    pub(crate) removed: Vec<IpAddr>,
}

impl Question {
    /// Reads a question, which came over UDP or over TCP. One that cannot be answered has an answer that says
    /// so, unless it is no question at all.
    pub(crate) fn read(message: &[u8], over_udp: bool) -> Result<Self, Option<Vec<u8>>> {
        let Ok(asked) = Message::from_vec(message) else {
            return Err(malformed(message));
        };
        let metadata = &asked.metadata;
        if metadata.message_type != MessageType::Query {
            return Err(None);
        }
        let refuse = |code| {
            let refusal = Message::error_msg(metadata.id, metadata.op_code, code);
            Err(refusal.to_vec().ok())
        };
        if metadata.op_code != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        let [query] = &asked.queries[..] else {
            return refuse(ResponseCode::FormErr);
        };
        if query.query_class() != DNSClass::IN {
            return refuse(ResponseCode::Refused);
        }
        let limit = match &asked.edns {
            _ if !over_udp => u16::MAX,
            Some(edns) => edns.max_payload().clamp(PLAIN_UDP, LARGE_UDP),
            None => PLAIN_UDP,
        };
        Ok(Self {
            id: metadata.id,
            recursion: metadata.recursion_desired,
            edns: asked.edns.is_some(),
            limit,
            name: query.name().to_ascii().parse().ok(),
            query: query.clone(),
        })
    }

    /// Whether it is for records that pass at all.
    pub(crate) fn is_for_known_records(&self) -> bool {
        matches!(
            self.query.query_type(),
            RecordType::A | RecordType::AAAA | RecordType::CNAME | RecordType::HTTPS
        )
    }

    /// The type of its records, as text.
    pub(crate) fn records(&self) -> String {
        self.query.query_type().to_string()
    }

    /// In lower case: how a guest writes a name is nothing that a resolver, or who it asks, has to know.
    pub(crate) fn lookup(&self) -> Lookup {
        let mut query = self.query.clone();
        query.set_name(query.name().to_lowercase());
        Lookup { query, edns: true }
    }

    /// An answer with records, or one that says why there are none.
    pub(crate) fn answer(&self, code: ResponseCode, records: Vec<Record>) -> Vec<u8> {
        let mut answer = Message::response(self.id, OpCode::Query);
        answer.metadata.recursion_desired = self.recursion;
        answer.metadata.recursion_available = true;
        answer.metadata.response_code = code;
        answer.add_query(self.query.clone());
        answer.add_answers(records);
        if self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(LARGE_UDP);
            answer.set_edns(edns);
        }
        match answer.to_vec() {
            Ok(message) if message.len() <= usize::from(self.limit) => message,
            // The guest asks again over TCP.
            _ => answer.truncate().to_vec().unwrap_or_default(),
        }
    }

    /// An answer that a name has these addresses, as far as they are what was asked for.
    pub(crate) fn answer_locally(&self, addresses: &[IpAddr]) -> Vec<u8> {
        let wanted = addresses.iter().filter_map(|address| {
            let data = match (address, self.query.query_type()) {
                (IpAddr::V4(address), RecordType::A) => RData::A(A(*address)),
                (IpAddr::V6(address), RecordType::AAAA) => RData::AAAA(AAAA(*address)),
                _ => return None,
            };
            Some(Record::from_rdata(
                self.query.name().clone(),
                LOCAL_TTL,
                data,
            ))
        });
        self.answer(ResponseCode::NoError, wanted.collect())
    }

    /// What the guest gets of a resolver's answer: the chain of aliases from the name that it asked for, and
    /// at its end the records of the type that it asked for.
    pub(crate) fn sanitize(
        &self,
        answer: &Message,
        may_have: impl Fn(IpAddr) -> bool,
    ) -> Sanitized {
        let mut kept = Sanitized::default();
        let records = &answer.answers[..answer.answers.len().min(MAX_RECORDS)];
        let mut owner = self.query.name().clone();
        let chained = |owner: &Name| {
            let alias = records.iter().find_map(|record| match &record.data {
                RData::CNAME(target) if record.name == *owner => Some((record, target.0.clone())),
                _ => None,
            });
            alias.filter(|_| self.query.query_type() != RecordType::CNAME)
        };
        // Each step is another record, so that a chain in a circle ends too.
        for _ in 0..records.len() {
            let Some((record, target)) = chained(&owner) else {
                break;
            };
            kept.records.push(limited(record.clone()));
            owner = target;
        }
        for record in records {
            if record.name != owner || record.record_type() != self.query.query_type() {
                continue;
            }
            let mut record = limited(record.clone());
            let address = match &mut record.data {
                RData::A(address) => IpAddr::V4(address.0),
                RData::AAAA(address) => IpAddr::V6(address.0),
                RData::HTTPS(service) => {
                    if let Some(service) = without_secrets(service, &owner) {
                        record.data = RData::HTTPS(service);
                        kept.records.push(record);
                    }
                    continue;
                }
                RData::CNAME(_) => {
                    kept.records.push(record);
                    continue;
                }
                _ => continue,
            };
            if may_have(address) {
                let ttl = Duration::from_secs(record.ttl.into());
                kept.addresses.push((address, ttl));
                kept.records.push(record);
            } else {
                kept.removed.push(address);
            }
        }
        kept
    }
}

impl Lookup {
    /// The same, for who does not know EDNS.
    pub(crate) fn without_edns(&self) -> Self {
        Self {
            edns: false,
            ..self.clone()
        }
    }

    /// The message that asks for it.
    pub(crate) fn message(&self, id: u16) -> Vec<u8> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(self.query.clone());
        if self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(LARGE_UDP);
            message.set_edns(edns);
        }
        message.to_vec().unwrap_or_default()
    }

    /// What `message` is to the one with this id.
    pub(crate) fn reply(&self, id: u16, message: &[u8]) -> Reply {
        let Ok(message) = Message::from_vec(message) else {
            return Reply::Other;
        };
        let metadata = &message.metadata;
        // Who has not understood the question may not repeat it.
        let repeated = message.queries == [self.query.clone()]
            || (metadata.response_code == ResponseCode::FormErr && message.queries.is_empty());
        if metadata.id != id || metadata.message_type != MessageType::Response || !repeated {
            return Reply::Other;
        }
        if metadata.truncation {
            Reply::Truncated
        } else {
            Reply::Answer(Box::new(message))
        }
    }
}

/// The answer to what cannot be read, as long as its header can.
fn malformed(message: &[u8]) -> Option<Vec<u8>> {
    let [high, low, flags, ..] = message else {
        return None;
    };
    let response = flags & 0x80 != 0;
    if response || message.len() < 12 {
        return None;
    }
    let id = u16::from_be_bytes([*high, *low]);
    Message::error_msg(id, OpCode::Query, ResponseCode::FormErr)
        .to_vec()
        .ok()
}

fn limited(mut record: Record) -> Record {
    record.ttl = record.ttl.min(MAX_TTL);
    record
}

/// A service without the keys for hiding the name that it is asked by, and without addresses, which nobody has
/// looked at. One that is elsewhere goes altogether, as does one that needs what is taken out: clients then do
/// without.
fn without_secrets(service: &HTTPS, owner: &Name) -> Option<HTTPS> {
    let service = &service.0;
    if !service.target_name.is_root() && service.target_name != *owner {
        return None;
    }
    let secret = |key: &SvcParamKey| {
        matches!(
            key,
            SvcParamKey::EchConfigList | SvcParamKey::Ipv4Hint | SvcParamKey::Ipv6Hint
        )
    };
    let mut kept = Vec::new();
    for (key, value) in &service.svc_params {
        match value {
            SvcParamValue::Mandatory(Mandatory(keys)) if keys.iter().any(secret) => return None,
            _ if secret(key) => {}
            _ => kept.push((*key, value.clone())),
        }
    }
    Some(HTTPS(SVCB::new(
        service.svc_priority,
        service.target_name.clone(),
        kept,
    )))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::rr::rdata::CNAME;
    use hickory_proto::rr::rdata::svcb::{Alpn, EchConfigList, IpHint};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn asked(text: &str, kind: RecordType) -> Message {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(name(text), kind));
        message
    }

    fn question(text: &str, kind: RecordType) -> Question {
        let message = asked(text, kind).to_vec().unwrap();
        Question::read(&message, true).unwrap()
    }

    fn a(owner: &str, address: [u8; 4]) -> Record {
        Record::from_rdata(name(owner), 300, RData::A(A(address.into())))
    }

    fn alias(owner: &str, target: &str) -> Record {
        Record::from_rdata(name(owner), u32::MAX, RData::CNAME(CNAME(name(target))))
    }

    fn answer(question: &Question, records: Vec<Record>) -> Message {
        Message::from_vec(&question.answer(ResponseCode::NoError, records)).unwrap()
    }

    #[test]
    fn an_answer_is_the_chain_from_the_name_that_was_asked_for() {
        let question = question("www.a.com.", RecordType::A);
        let answer = answer(
            &question,
            vec![
                a("cdn.net.", [1, 1, 1, 1]),
                alias("www.a.com.", "WWW.b.com."),
                alias("www.b.com.", "cdn.net."),
                a("other.com.", [2, 2, 2, 2]),
                a("www.a.com.", [3, 3, 3, 3]),
                a("cdn.net.", [10, 0, 0, 1]),
                Record::from_rdata(name("cdn.net."), 1, RData::AAAA(AAAA(1.into()))),
            ],
        );
        let kept = question.sanitize(&answer, |address| address != IpAddr::from([10, 0, 0, 1]));
        let owners: Vec<_> = kept
            .records
            .iter()
            .map(|record| record.name.to_ascii())
            .collect();
        assert_eq!(owners, ["www.a.com.", "www.b.com.", "cdn.net."]);
        let [(address, ttl)] = kept.addresses[..] else {
            panic!("{kept:?}");
        };
        assert_eq!(address, IpAddr::from([1, 1, 1, 1]));
        assert_eq!(ttl, Duration::from_secs(300));
        assert_eq!(kept.removed, [IpAddr::from([10, 0, 0, 1])]);
        assert!(kept.records.iter().all(|record| record.ttl <= MAX_TTL));
    }

    #[test]
    fn aliases_in_a_circle_end() {
        let question = question("a.com.", RecordType::A);
        let records = vec![alias("a.com.", "b.com."), alias("b.com.", "a.com.")];
        let kept = question.sanitize(&answer(&question, records), |_| true);
        assert_eq!((kept.records.len(), kept.addresses.len()), (2, 0));
    }

    #[test]
    fn the_keys_for_hiding_names_are_taken_out() {
        let question = question("a.com.", RecordType::HTTPS);
        let service = |target: &str, extra: Option<(SvcParamKey, SvcParamValue)>| {
            let alpn = SvcParamValue::Alpn(Alpn(vec!["h2".into()]));
            let hints = SvcParamValue::Ipv4Hint(IpHint(vec![A(Ipv4Addr::LOCALHOST)]));
            let ech = SvcParamValue::EchConfigList(EchConfigList(vec![1, 2, 3]));
            let mut parameters: Vec<_> = extra.into_iter().collect();
            parameters.push((SvcParamKey::Alpn, alpn));
            parameters.push((SvcParamKey::Ipv4Hint, hints));
            parameters.push((SvcParamKey::EchConfigList, ech));
            let service = HTTPS(SVCB::new(1, name(target), parameters));
            Record::from_rdata(name("a.com."), 60, RData::HTTPS(service))
        };
        let mandatory = |key| {
            let keys = SvcParamValue::Mandatory(Mandatory(vec![key]));
            Some((SvcParamKey::Mandatory, keys))
        };
        let records = vec![
            service(".", None),
            service("elsewhere.com.", None),
            service(".", mandatory(SvcParamKey::EchConfigList)),
            service("a.com.", mandatory(SvcParamKey::Alpn)),
        ];
        let kept = question.sanitize(&answer(&question, records), |_| true);
        let keys: Vec<Vec<_>> = kept
            .records
            .iter()
            .map(|record| match &record.data {
                RData::HTTPS(service) => service.svc_params.iter().map(|(key, _)| *key).collect(),
                other => panic!("{other:?}"),
            })
            .collect();
        let expected = [
            vec![SvcParamKey::Alpn],
            vec![SvcParamKey::Mandatory, SvcParamKey::Alpn],
        ];
        assert_eq!(keys, expected);
    }

    #[test]
    fn an_answer_beyond_what_the_asker_takes_says_that_it_is_not_whole() {
        let many = |count: u8| (0..count).map(|n| a("a.com.", [1, 1, 1, n])).collect();
        let plain = question("a.com.", RecordType::A);
        assert!(!answer(&plain, many(20)).metadata.truncation);
        let truncated = answer(&plain, many(60));
        assert!(truncated.metadata.truncation && truncated.answers.is_empty());

        let mut message = asked("a.com.", RecordType::A);
        let mut edns = Edns::new();
        edns.set_max_payload(4096);
        message.set_edns(edns);
        let message = message.to_vec().unwrap();
        let larger = Question::read(&message, true).unwrap();
        assert_eq!(answer(&larger, many(60)).answers.len(), 60);
        assert!(answer(&larger, many(100)).metadata.truncation);
        let over_tcp = Question::read(&message, false).unwrap();
        assert_eq!(answer(&over_tcp, many(100)).answers.len(), 100);
    }

    #[test]
    fn only_the_answer_to_the_question_is_one() {
        let lookup = question("a.com.", RecordType::A).lookup();
        let sent = Message::from_vec(&lookup.message(9)).unwrap();
        assert!(sent.metadata.recursion_desired && sent.queries.len() == 1);
        let reply = |change: &dyn Fn(&mut Message)| {
            let mut message = sent.clone().into_response();
            change(&mut message);
            lookup.reply(9, &message.to_vec().unwrap())
        };
        assert!(matches!(reply(&|_| ()), Reply::Answer(_)));
        let changes: [&dyn Fn(&mut Message); 4] = [
            &|message| message.metadata.id = 8,
            &|message| message.metadata.message_type = MessageType::Query,
            &|message| message.queries.clear(),
            &|message| message.queries[0] = Query::query(name("b.com."), RecordType::A),
        ];
        for change in changes {
            assert!(matches!(reply(change), Reply::Other));
        }
        let truncated = reply(&|message| message.metadata.truncation = true);
        assert!(matches!(truncated, Reply::Truncated));
        let not_understood = reply(&|message| {
            message.queries.clear();
            message.metadata.response_code = ResponseCode::FormErr;
        });
        assert!(matches!(not_understood, Reply::Answer(_)));
    }

    #[test]
    fn how_a_name_is_written_stays_with_the_guest() {
        let question = question("wWw.ExAmPlE.com.", RecordType::A);
        let sent = Message::from_vec(&question.lookup().message(9)).unwrap();
        assert_eq!(sent.queries[0].name().to_ascii(), "www.example.com.");
        let reply = sent.into_response().to_vec().unwrap();
        assert!(matches!(
            question.lookup().reply(9, &reply),
            Reply::Answer(_)
        ));
        // The guest sees its own, which it may compare.
        let answer = answer(&question, vec![a("www.example.com.", [1, 1, 1, 1])]);
        assert_eq!(answer.queries[0].name().to_ascii(), "wWw.ExAmPlE.com.");
        assert_eq!(question.sanitize(&answer, |_| true).addresses.len(), 1);
    }

    #[test]
    fn what_is_no_question_is_told_so() {
        let code = |message: &Message| {
            let refusal = Question::read(&message.to_vec().unwrap(), true).unwrap_err()?;
            Some(Message::from_vec(&refusal).unwrap().metadata.response_code)
        };
        let mut several = asked("a.com.", RecordType::A);
        several.add_query(Query::query(name("b.com."), RecordType::A));
        assert_eq!(code(&several), Some(ResponseCode::FormErr));
        let mut update = asked("a.com.", RecordType::A);
        update.metadata.op_code = OpCode::Update;
        assert_eq!(code(&update), Some(ResponseCode::NotImp));
        let mut chaos = asked("a.com.", RecordType::A);
        chaos.queries[0].set_query_class(DNSClass::CH);
        assert_eq!(code(&chaos), Some(ResponseCode::Refused));
        let response = asked("a.com.", RecordType::A).into_response();
        assert_eq!(code(&response), None);
        let garbage = [1, 2, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0xff];
        let refusal = Question::read(&garbage, true).unwrap_err().unwrap();
        assert_eq!(Message::from_vec(&refusal).unwrap().metadata.id, 0x0102);
        assert_eq!(Question::read(b"x", true).unwrap_err(), None);
    }
}
