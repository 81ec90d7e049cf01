//! Which names the resolver gave an address for.
//!
//! An address may have many names, and a name many addresses. What is remembered is the name that was asked
//! for, not those that it is an alias of. It outlives the answer's own time, as programs keep addresses longer
//! than they should; it is forgotten when newer ones need the room.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::policy::DomainName;

/// How many names an address may have; beyond it the oldest is forgotten. Shared addresses of a large provider
/// have thousands, but one guest asks for few of them.
const NAMES: usize = 64;

/// How long a name is remembered at least, and at most.
const SHORTEST: Duration = Duration::from_secs(10 * 60);
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Debug)]
pub(crate) struct Names {
    limit: usize,
    by_address: HashMap<IpAddr, Known>,
    /// Addresses by when they last got a name.
    order: BTreeMap<u64, IpAddr>,
    count: u64,
}

#[derive(Debug, Default)]
struct Known {
    place: u64,
    names: Vec<(DomainName, Instant)>,
}

impl Names {
    /// Remembers the names of at most `limit` addresses.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            by_address: HashMap::new(),
            order: BTreeMap::new(),
            count: 0,
        }
    }

    /// An answer said for `ttl` that `name` has `address`.
    pub(crate) fn add(&mut self, name: &DomainName, address: IpAddr, ttl: Duration, now: Instant) {
        let until = now + ttl.clamp(SHORTEST, LONGEST);
        if !self.by_address.contains_key(&address)
            && self.by_address.len() == self.limit
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.by_address.remove(&oldest);
        }
        let known = self.by_address.entry(address).or_default();
        self.order.remove(&known.place);
        self.count += 1;
        known.place = self.count;
        self.order.insert(known.place, address);
        let names = &mut known.names;
        names.retain(|(known, known_until)| known != name && *known_until > now);
        if names.len() == NAMES {
            names.remove(0);
        }
        names.push((name.clone(), until));
    }

    /// The names of an address.
    pub(crate) fn of(&self, address: IpAddr, now: Instant) -> Vec<DomainName> {
        let known = self.by_address.get(&address).into_iter();
        let names = known.flat_map(|known| &known.names);
        let current = names.filter(|(_, until)| *until > now);
        current.map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(number).into()
    }

    #[test]
    fn names_share_addresses_and_are_forgotten_in_time() {
        let (mut names, start) = (Names::new(10), Instant::now());
        let [a, b] = ["a.com", "b.com"].map(|name| name.parse::<DomainName>().unwrap());
        names.add(&a, address(1), Duration::ZERO, start);
        names.add(&b, address(1), Duration::from_secs(3600), start);
        names.add(&a, address(2), Duration::MAX, start);
        assert_eq!(names.of(address(1), start), [a.clone(), b.clone()]);
        let later = start + SHORTEST;
        assert_eq!(names.of(address(1), later), [b]);
        assert_eq!(names.of(address(2), later), [a]);
        assert!(names.of(address(2), start + LONGEST).is_empty());
        assert!(names.of(address(3), start).is_empty());
    }

    #[test]
    fn a_guest_that_asks_without_end_makes_nothing_grow() {
        let (mut names, start) = (Names::new(10), Instant::now());
        for number in 0..1000_u32 {
            let name: DomainName = format!("{number}.com").parse().unwrap();
            names.add(&name, address(number), Duration::ZERO, start);
            names.add(&name, address(999), Duration::ZERO, start);
        }
        assert_eq!((names.by_address.len(), names.order.len()), (10, 10));
        assert_eq!(names.of(address(999), start).len(), NAMES);
        assert!(names.of(address(1), start).is_empty());
    }
}
