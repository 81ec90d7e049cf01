//! What a guest needs of its link: addresses, neighbors, a router, echoes.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;
use std::time::Duration;

use capsa_net::policy::{NetworkPolicy, Reason, Rule};
use capsa_net::stack::ConnectFailure;
use capsa_net::{Event, UserNetwork};
use dhcproto::v4::{DhcpOption, Message, MessageType, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::{dhcpv4, tcp};
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv4DstUnreachable, Icmpv4Packet,
    Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpAddress, IpProtocol, IpRepr, Ipv4Packet, Ipv6Packet,
    NdiscRepr, TcpPacket, UdpPacket, UdpRepr,
};

use crate::lab::{Lab, MAC};

const WEB: &str = "93.184.216.34:80";

/// A frame of the guest with an IP packet, whose content `write` fills.
fn frame(
    from: IpAddr,
    to: IpAddr,
    protocol: IpProtocol,
    length: usize,
    write: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let header = IpRepr::new(from.into(), to.into(), protocol, length, 255);
    let mut bytes = vec![0; 14 + header.buffer_len()];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    frame.set_src_addr(MAC);
    frame.set_dst_addr(EthernetAddress::BROADCAST);
    frame.set_ethertype(match from {
        IpAddr::V4(_) => EthernetProtocol::Ipv4,
        IpAddr::V6(_) => EthernetProtocol::Ipv6,
    });
    header.emit(&mut bytes[14..], &ChecksumCapabilities::default());
    write(&mut bytes[14 + header.header_len()..]);
    bytes
}

fn ping(from: &str, to: &str) -> Vec<u8> {
    let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let caps = ChecksumCapabilities::default();
    let data = &b"are you there?"[..];
    let (ident, seq_no) = (1, 2);
    match (from, to) {
        (IpAddr::V4(_), _) => {
            let message = Icmpv4Repr::EchoRequest {
                ident,
                seq_no,
                data,
            };
            frame(
                from,
                to,
                IpProtocol::Icmp,
                message.buffer_len(),
                |content| {
                    message.emit(&mut Icmpv4Packet::new_unchecked(content), &caps);
                },
            )
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            let message = Icmpv6Repr::EchoRequest {
                ident,
                seq_no,
                data,
            };
            frame(
                from,
                to,
                IpProtocol::Icmpv6,
                message.buffer_len(),
                |content| {
                    let mut packet = Icmpv6Packet::new_unchecked(content);
                    message.emit(&source, &target, &mut packet, &caps);
                },
            )
        }
        _ => unreachable!(),
    }
}

fn udp(from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let header = UdpRepr {
        src_port: from.1,
        dst_port: to.1,
    };
    frame(
        from.0,
        to.0,
        IpProtocol::Udp,
        8 + payload.len(),
        |content| {
            header.emit(
                &mut UdpPacket::new_unchecked(content),
                &from.0.into(),
                &to.0.into(),
                payload.len(),
                |room| room.copy_from_slice(payload),
                &ChecksumCapabilities::default(),
            );
        },
    )
}

/// The answer to a DHCP message, and the address that it was sent to.
fn dhcp(lab: &mut Lab, message: &Message) -> Option<(IpAddress, Message)> {
    let from = (Ipv4Addr::UNSPECIFIED.into(), 68);
    let to = (Ipv4Addr::BROADCAST.into(), 67);
    let mut answer = None;
    for frame in lab.raw(&udp(from, to, &message.to_vec().unwrap())) {
        match Ipv4Packet::new_checked(&frame[14..]).unwrap().next_header() {
            IpProtocol::Udp => answer = Some(frame),
            _ => lab.deliver(frame),
        }
    }
    let answer = answer?;
    let packet = Ipv4Packet::new_checked(&answer[14..]).unwrap();
    let datagram = UdpPacket::new_checked(packet.payload()).unwrap();
    assert_eq!((datagram.src_port(), datagram.dst_port()), (67, 68));
    let answer = Message::decode(&mut Decoder::new(datagram.payload())).unwrap();
    assert_eq!(answer.xid(), message.xid());
    Some((packet.dst_addr().into(), answer))
}

fn request(kind: MessageType, options: impl IntoIterator<Item = DhcpOption>) -> Message {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new(none, none, none, none, &MAC.0);
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    for option in options {
        message.opts_mut().insert(option);
    }
    message
}

#[test]
fn a_client_of_dhcp_gets_its_address_and_keeps_it() {
    let mut lab = Lab::new(&UserNetwork::default());
    let mut socket = dhcpv4::Socket::new();
    socket.set_ignore_naks(false);
    let client = lab.sockets.add(socket);
    let configured = |lab: &mut Lab, patience| {
        lab.until(patience, |lab| {
            match lab.sockets.get_mut::<dhcpv4::Socket<'_>>(client).poll() {
                Some(dhcpv4::Event::Configured(config)) => Some((
                    config.address.address(),
                    config.router,
                    config.dns_servers.first().copied(),
                )),
                _ => None,
            }
        })
    };
    let [guest, gateway] = [3, 1].map(|number| Ipv4Addr::new(10, 0, 2, number));
    let expected = Some((guest, Some(gateway), Some(gateway)));
    assert_eq!(configured(&mut lab, Duration::from_secs(60)), expected);
    // It renews half-way through the lease and is told nothing new; it would lose the address otherwise.
    assert_eq!(
        configured(&mut lab, Duration::from_secs(10 * 24 * 60 * 60)),
        None
    );
    let reset = lab.sockets.get_mut::<dhcpv4::Socket<'_>>(client);
    reset.reset();
    assert_eq!(configured(&mut lab, Duration::from_secs(60)), expected);
}

#[test]
fn dhcp_says_what_a_guest_needs_to_know() {
    let network = UserNetwork {
        mtu: 9000,
        host_name: Some("sandbox".parse().unwrap()),
        ..UserNetwork::default()
    };
    let mut lab = Lab::new(&network);
    let (to, offer) = dhcp(&mut lab, &request(MessageType::Discover, [])).unwrap();
    assert_eq!(to, IpAddress::v4(10, 0, 2, 3));
    assert_eq!(offer.yiaddr(), Ipv4Addr::new(10, 0, 2, 3));
    assert_eq!(offer.chaddr(), MAC.0);
    assert!(offer.opts().has_msg_type(MessageType::Offer));
    for option in [
        DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)),
        DhcpOption::InterfaceMtu(9000),
        DhcpOption::Hostname("sandbox".into()),
        DhcpOption::AddressLeaseTime(86_400),
    ] {
        assert_eq!(offer.opts().get(OptionCode::from(&option)), Some(&option));
    }
    let wanted = |number| DhcpOption::RequestedIpAddress(Ipv4Addr::new(10, 0, 2, number));
    let kind = |answer: Option<(IpAddress, Message)>| Some(answer?.1.opts().msg_type().unwrap());
    for (options, expected) in [
        (vec![wanted(3)], Some(MessageType::Ack)),
        (vec![wanted(99)], Some(MessageType::Nak)),
        (
            vec![
                wanted(3),
                DhcpOption::ServerIdentifier(Ipv4Addr::new(10, 0, 2, 99)),
            ],
            None,
        ),
    ] {
        let answer = dhcp(&mut lab, &request(MessageType::Request, options));
        assert_eq!(kind(answer), expected);
    }
    assert_eq!(
        kind(dhcp(&mut lab, &request(MessageType::Release, []))),
        None
    );
    let mut asking = request(MessageType::Discover, []);
    asking.set_flags(dhcproto::v4::Flags::default().set_broadcast());
    assert_eq!(
        dhcp(&mut lab, &asking).unwrap().0,
        IpAddress::v4(255, 255, 255, 255)
    );
}

#[test]
fn a_guest_that_starts_anew_loses_its_old_connections_and_one_that_does_not_keeps_them() {
    let own = Ipv4Addr::new(10, 0, 2, 3);
    let discover = request(MessageType::Discover, []);
    let had_before = [DhcpOption::RequestedIpAddress(own)];
    let reboot = request(MessageType::Request, had_before);
    let mut renewal = request(MessageType::Request, []);
    renewal.set_ciaddr(own);
    assert!(loses_old_connections(&discover));
    assert!(loses_old_connections(&reboot));
    assert!(!loses_old_connections(&renewal));
}

/// Whether a guest that says `message` loses a connection that it knows no more. It keeps the one that it knows.
fn loses_old_connections(message: &Message) -> bool {
    let mut lab = Lab::new(&UserNetwork::default());
    lab.world.answers.insert(WEB.parse().unwrap(), Ok(()));
    let [old, kept] = [0, 1].map(|_| lab.connect(WEB.parse().unwrap()));
    lab.pass(Duration::from_secs(10));
    assert_eq!(lab.state(old), tcp::State::Established);
    // The one is forgotten as by a reboot: what comes for it is answered with a reset.
    lab.sockets.remove(old);
    assert_eq!(lab.stack.flows().0, 2);
    dhcp(&mut lab, message).unwrap();
    lab.pass(Duration::from_secs(1));
    let gone = lab.world.streams.values().filter(|stream| stream.gone);
    let lost = gone.count();
    assert_eq!(lab.stack.flows().0, 2 - lost);
    lab.tcp(kept).send_slice(b"still here").unwrap();
    lab.pass(Duration::from_secs(1));
    assert!(
        lab.world
            .streams
            .values()
            .any(|stream| stream.received == b"still here")
    );
    lost == 1
}

#[test]
fn a_port_of_a_connection_is_used_again_after_a_reboot() {
    let mut lab = Lab::new(&UserNetwork::default());
    lab.world.answers.insert(WEB.parse().unwrap(), Ok(()));
    let connection = lab.connect(WEB.parse().unwrap());
    lab.pass(Duration::from_secs(1));
    // The same port, with another beginning.
    let port = lab.tcp(connection).local_endpoint().unwrap().port;
    lab.sockets.remove(connection);
    let [rx, tx] = [4096; 2].map(|size| tcp::SocketBuffer::new(vec![0; size]));
    let again = lab.sockets.add(tcp::Socket::new(rx, tx));
    let socket = lab.sockets.get_mut::<tcp::Socket<'_>>(again);
    let to = smoltcp::wire::IpEndpoint::from(WEB.parse::<std::net::SocketAddr>().unwrap());
    socket.connect(lab.interface.context(), to, port).unwrap();
    lab.pass(Duration::from_secs(10));
    assert_eq!(lab.state(again), tcp::State::Established);
    assert_eq!(lab.stack.flows().0, 1);
}

#[test]
fn the_gateway_answers_echoes_and_nobody_fakes_those_of_others() {
    let mut lab = Lab::new(&UserNetwork::default());
    let caps = ChecksumCapabilities::default();
    for to in ["10.0.2.1", "10.0.2.2"] {
        let [reply] = &lab.raw(&ping("10.0.2.3", to))[..] else {
            panic!("no answer of {to}");
        };
        let packet = Ipv4Packet::new_checked(&reply[14..]).unwrap();
        assert!(packet.verify_checksum());
        assert_eq!(packet.src_addr(), to.parse::<Ipv4Addr>().unwrap());
        let message = Icmpv4Packet::new_checked(packet.payload()).unwrap();
        let expected = Icmpv4Repr::EchoReply {
            ident: 1,
            seq_no: 2,
            data: b"are you there?",
        };
        assert_eq!(Icmpv4Repr::parse(&message, &caps), Ok(expected));
    }
    for to in ["8.8.8.8", "10.0.2.77", "169.254.169.254"] {
        let [reply] = &lab.raw(&ping("10.0.2.3", to))[..] else {
            panic!("no answer for {to}");
        };
        let packet = Ipv4Packet::new_checked(&reply[14..]).unwrap();
        assert_eq!(packet.src_addr(), Ipv4Addr::new(10, 0, 2, 1));
        let message = Icmpv4Packet::new_checked(packet.payload()).unwrap();
        let message = Icmpv4Repr::parse(&message, &caps).unwrap();
        let Icmpv4Repr::DstUnreachable { reason, header, .. } = message else {
            panic!("{message:?}");
        };
        assert_eq!(reason, Icmpv4DstUnreachable::CommProhibited);
        assert_eq!(header.dst_addr, to.parse::<Ipv4Addr>().unwrap());
    }
    for (to, answered) in [
        ("fd00:ca95:a::1", true),
        ("fd00:ca95:a::2", true),
        ("2001:4860::8", false),
    ] {
        let [reply] = &lab.raw(&ping("fd00:ca95:a::9", to))[..] else {
            panic!("no answer for {to}");
        };
        let packet = Ipv6Packet::new_checked(&reply[14..]).unwrap();
        let message = Icmpv6Packet::new_checked(packet.payload()).unwrap();
        let (from, back) = (packet.src_addr(), packet.dst_addr());
        let message = Icmpv6Repr::parse(&from, &back, &message, &caps).unwrap();
        match message {
            Icmpv6Repr::EchoReply {
                data: b"are you there?",
                ..
            } => assert!(answered),
            Icmpv6Repr::DstUnreachable { .. } => assert!(!answered),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn nobody_answers_a_guest_that_is_somebody_else() {
    let mut lab = Lab::new(&UserNetwork::default());
    for (from, to) in [
        ("10.0.2.1", "10.0.2.1"),
        ("10.0.2.255", "10.0.2.1"),
        ("10.0.2.0", "10.0.2.1"),
        ("8.8.8.8", "10.0.2.1"),
        ("127.0.0.1", "10.0.2.1"),
        ("0.0.0.0", "10.0.2.1"),
        ("10.0.2.3", "10.0.2.255"),
        ("10.0.2.3", "224.0.0.1"),
        ("fd00:ca95:a::1", "fd00:ca95:a::1"),
        ("2001:4860::8", "fd00:ca95:a::1"),
        ("::", "fd00:ca95:a::1"),
        ("fd00:ca95:a::9", "ff02::1"),
    ] {
        assert!(lab.raw(&ping(from, to)).is_empty(), "{from} {to}");
        let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
        assert!(lab.raw(&udp((from, 1000), (to, 53), b"x")).is_empty());
    }
}

/// A frame of a guest that looks for a router.
fn solicit(from: Ipv6Addr) -> Vec<u8> {
    let to: Ipv6Addr = "ff02::2".parse().unwrap();
    let caps = ChecksumCapabilities::default();
    let message = Icmpv6Repr::Ndisc(NdiscRepr::RouterSolicit { lladdr: None });
    let length = message.buffer_len();
    frame(
        from.into(),
        to.into(),
        IpProtocol::Icmpv6,
        length,
        |content| {
            message.emit(&from, &to, &mut Icmpv6Packet::new_unchecked(content), &caps);
        },
    )
}

/// To whom a frame says that the router is one, and for how long.
fn advertised(frame: &[u8]) -> Option<(Ipv6Addr, Duration)> {
    let packet = Ipv6Packet::new_checked(frame.get(14..)?).ok()?;
    let message = Icmpv6Packet::new_checked(packet.payload()).ok()?;
    let (from, to) = (packet.src_addr(), packet.dst_addr());
    let caps = ChecksumCapabilities::default();
    match Icmpv6Repr::parse(&from, &to, &message, &caps).ok()? {
        Icmpv6Repr::Ndisc(NdiscRepr::RouterAdvert {
            router_lifetime, ..
        }) => Some((to, router_lifetime.into())),
        _ => None,
    }
}

#[test]
fn the_router_says_again_that_it_is_one_to_a_guest_that_has_asked() {
    const HOUR: Duration = Duration::from_secs(60 * 60);
    let mut lab = Lab::new(&UserNetwork::default());
    let seen = Rc::new(RefCell::new(Vec::new()));
    let heard = Rc::clone(&seen);
    lab.to_guest = Box::new(move |frame| {
        heard.borrow_mut().extend(advertised(&frame));
        vec![frame]
    });
    lab.pass(24 * HOUR);
    assert_eq!(*seen.borrow(), [], "to a guest that has not asked");
    assert_eq!(lab.stack.send_at(), None);

    let guest = "fe80::9".parse().unwrap();
    let answers = lab.raw(&solicit(guest));
    let (to, lifetime) = answers.iter().find_map(|frame| advertised(frame)).unwrap();
    assert_eq!(to, guest);
    let mut route_ends = lab.now + lifetime;
    let mut count = 0;
    for _ in 0..24 {
        lab.pass(HOUR);
        for (to, lifetime) in seen.borrow_mut().drain(..) {
            assert_eq!(to, "ff02::1".parse::<Ipv6Addr>().unwrap());
            route_ends = lab.now + lifetime - HOUR;
            count += 1;
        }
        assert!(lab.now < route_ends, "{count}");
    }
    assert_eq!(count, 3);
}

#[test]
fn the_router_says_which_network_this_is() {
    let mut lab = Lab::new(&UserNetwork::default());
    let from: Ipv6Addr = "fe80::9".parse().unwrap();
    let caps = ChecksumCapabilities::default();
    let [reply] = &lab.raw(&solicit(from))[..] else {
        panic!("no router");
    };
    let packet = Ipv6Packet::new_checked(&reply[14..]).unwrap();
    assert_eq!((packet.hop_limit(), packet.dst_addr()), (255, from));
    let message = Icmpv6Packet::new_checked(packet.payload()).unwrap();
    let (router, guest) = (packet.src_addr(), packet.dst_addr());
    let parsed = Icmpv6Repr::parse(&router, &guest, &message, &caps).unwrap();
    let Icmpv6Repr::Ndisc(NdiscRepr::RouterAdvert {
        mtu,
        prefix_info,
        router_lifetime,
        ..
    }) = parsed
    else {
        panic!("{parsed:?}");
    };
    assert_eq!((mtu, router_lifetime.secs()), (Some(1500), 65_535));
    assert_eq!(
        prefix_info.unwrap().prefix,
        "fd00:ca95:a::".parse::<Ipv6Addr>().unwrap()
    );
    // Who resolves names stands at the end, where smoltcp does not look.
    let gateway: Ipv6Addr = "fd00:ca95:a::1".parse().unwrap();
    assert!(packet.payload().ends_with(&gateway.octets()));

    let without = UserNetwork {
        subnet6: None,
        ..UserNetwork::default()
    };
    assert!(Lab::new(&without).raw(&solicit(from)).is_empty());
}

#[test]
fn a_destination_without_a_way_is_said_to_have_none() {
    let mut lab = Lab::new(&UserNetwork::default());
    let refused = "93.184.216.34:81".parse().unwrap();
    let unreachable = "93.184.216.34:82".parse().unwrap();
    let host = "93.184.216.34:83".parse().unwrap();
    for (to, why) in [
        (refused, ConnectFailure::Refused),
        (unreachable, ConnectFailure::Unreachable),
        (host, ConnectFailure::HostAddress),
    ] {
        lab.world.answers.insert(to, Err(why));
    }
    let connection = lab.connect(refused);
    lab.pass(Duration::from_millis(10));
    assert_eq!(lab.state(connection), tcp::State::Closed, "a reset");
    for to in [unreachable, host] {
        let messages = std::rc::Rc::new(std::cell::Cell::new(0));
        let seen = std::rc::Rc::clone(&messages);
        lab.to_guest = Box::new(move |frame| {
            let packet = Ipv4Packet::new_checked(&frame[14..]).unwrap();
            assert_eq!(packet.next_header(), IpProtocol::Icmp);
            seen.set(seen.get() + 1);
            vec![]
        });
        lab.connect(to);
        lab.pass(Duration::from_millis(10));
        assert_eq!(messages.get(), 1);
    }
    let denied = lab
        .events()
        .into_iter()
        .filter(|event| matches!(event, Event::Connect { decision, .. } if !decision.allows()));
    assert_eq!(denied.count(), 1, "the host's own address");
}

#[test]
fn what_stays_on_the_link_is_told_once_and_opened_by_no_rule() {
    let rules = [
        "0.0.0.0",
        "10.0.0.0/8",
        "255.255.255.255",
        "224.0.0.0/4",
        "fe80::/10",
        "fd00::/8",
        "ff00::/8",
    ];
    let rules = rules.map(|rule| Rule::allow(rule).unwrap());
    let mut lab = Lab::new(&UserNetwork {
        policy: rules
            .into_iter()
            .fold(NetworkPolicy::public(), NetworkPolicy::rule),
        ..UserNetwork::default()
    });
    for (to, answered) in [
        ("10.0.2.77", true),
        ("10.0.2.1", true),
        ("10.0.2.2", true),
        ("fd00:ca95:a::77", true),
        ("fe80::77", true),
        ("10.0.2.255", false),
        ("255.255.255.255", false),
        ("0.0.0.0", false),
        ("224.0.0.251", false),
        ("ff02::fb", false),
    ] {
        let to: IpAddr = to.parse().unwrap();
        let from = match to {
            IpAddr::V4(_) => "10.0.2.3",
            IpAddr::V6(_) => "fd00:ca95:a::9",
        };
        let datagram = udp((from.parse().unwrap(), 1000), (to, 5353), b"x");
        for _ in 0..5 {
            assert_eq!(lab.raw(&datagram).len(), usize::from(answered), "{to}");
            lab.pass(Duration::from_secs(1));
        }
        let events = lab.events();
        let [
            Event::Connect {
                to: told, decision, ..
            },
        ] = &events[..]
        else {
            panic!("{to}: {events:?}");
        };
        assert_eq!((told.ip(), decision.reason), (to, Reason::Local));
        // Whom nobody is, nobody is told of.
        lab.raw(&udp(
            ("1.1.1.1".parse().unwrap(), 1),
            ("224.0.0.251".parse().unwrap(), 1),
            b"x",
        ));
        assert!(lab.events().is_empty());
    }
    let from = "10.0.2.3".parse().unwrap();
    let syn = frame(
        from,
        "224.0.0.251".parse().unwrap(),
        IpProtocol::Tcp,
        20,
        |content| {
            let mut segment = TcpPacket::new_unchecked(content);
            segment.set_src_port(1000);
            segment.set_dst_port(80);
            segment.set_header_len(20);
            segment.set_syn(true);
        },
    );
    assert!(lab.raw(&syn).is_empty() && lab.raw(&syn).is_empty());
    assert_eq!(lab.events().len(), 1);
    assert!(lab.world.peers.is_empty());
}
