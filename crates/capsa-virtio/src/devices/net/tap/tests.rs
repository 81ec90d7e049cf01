//! The card on a tap of the kernel, which answers as a neighbour would. In a network namespace of
//! the test's own, which the test starts itself again in.

use std::fs::File;
use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::ioctl::Updater;

use super::*;
use crate::device::VirtioDevice;
use crate::devices::driver_ring::{Bench, DATA, UPPER};
use crate::devices::net::header::{GUEST, HEADER};
use crate::devices::net::{Net, Peer, RECEIVE, TRANSMIT};

const INSIDE: &str = "CAPSA_TEST_IN_NAMESPACE";
const NAME: &str = "devices::net::tap::tests::frames_and_offloads_pass_a_tap";

const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const GUEST_IP: [u8; 4] = [10, 0, 0, 2];
const HOST_IP: [u8; 4] = [10, 0, 0, 1];

/// `struct ifreq` for the tap.
fn request(value: &[u8]) -> [u8; 40] {
    let mut request = [0; 40];
    request[..6].copy_from_slice(b"capsa0");
    request[16..][..value.len()].copy_from_slice(value);
    request
}

/// A tap with an address, which is up.
fn tap() -> OwnedFd {
    const TUNSETIFF: rustix::ioctl::Opcode = opcode::write::<i32>(b'T', 202);
    const SIOCSIFFLAGS: rustix::ioctl::Opcode = 0x8914;
    const SIOCSIFADDR: rustix::ioctl::Opcode = 0x8916;
    // IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
    let flags: u16 = 0x0002 | 0x1000 | 0x4000;
    let mut new = request(&flags.to_ne_bytes());
    let [a, b, c, d] = HOST_IP;
    let mut address = request(&[2, 0, 0, 0, a, b, c, d]);
    let mut up = request(&[1, 0]);
    let tap = File::options().read(true).write(true).open("/dev/net/tun");
    let tap = tap.expect("the tests need /dev/net/tun");
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // SAFETY: all three take a `struct ifreq`, 40 bytes, which they read and may write.
    unsafe {
        ioctl(&tap, Updater::<TUNSETIFF, _>::new(&mut new)).unwrap();
        ioctl(&socket, Updater::<SIOCSIFADDR, _>::new(&mut address)).unwrap();
        ioctl(&socket, Updater::<SIOCSIFFLAGS, _>::new(&mut up)).unwrap();
    }
    tap.into()
}

fn transmit(bench: &mut Bench<Net>, header: [u8; HEADER], frame: &[u8]) {
    bench.write(DATA, &[&header[..], frame].concat());
    let length = u32::try_from(HEADER + frame.len()).unwrap();
    bench.rings[TRANSMIT].offer(&[(DATA, length, false)]);
    bench.kick(TRANSMIT).unwrap();
    bench.settle().unwrap();
    assert_eq!(bench.rings[TRANSMIT].used().len(), 1);
}

/// The next frame that `wanted` says yes to, with its header. The kernel sends others too.
fn receive(bench: &mut Bench<Net>, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        assert!(Instant::now() < deadline, "the frame does not come");
        if bench.rings[RECEIVE].free() == 64 {
            bench.rings[RECEIVE].offer(&[(UPPER, 4096, true)]);
            bench.kick(RECEIVE).unwrap();
        }
        bench.poll().unwrap();
        for (_, written) in bench.rings[RECEIVE].used() {
            let frame = bench.read(UPPER, written as usize);
            if wanted(&frame[HEADER..]) {
                return frame;
            }
        }
    }
}

fn udp(destination: &[u8], payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    let mut ip = vec![0x45, 0, 0, 28 + length, 0, 0, 0, 0, 64, 17, 0, 0];
    ip.extend([GUEST_IP, HOST_IP].concat());
    let words = ip
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum: u32 = words.sum();
    let sum = u16::try_from(sum % 0xffff).unwrap();
    ip[10..12].copy_from_slice(&(!sum).to_be_bytes());
    // Ports 9 to 4242; a checksum that is not the packet's.
    let udp = [0, 9, 0x10, 0x92, 0, 8 + length, 0x12, 0x34];
    [destination, &GUEST_MAC, &[8, 0], &ip, &udp, payload].concat()
}

#[test]
fn frames_and_offloads_pass_a_tap() {
    if std::env::var_os(INSIDE).is_none() {
        let outcome = Command::new("unshare")
            .args(["--map-root-user", "--net"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env(INSIDE, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&outcome.stdout);
        let errors = String::from_utf8_lossy(&outcome.stderr);
        assert!(outcome.status.success(), "{text}{errors}");
        assert!(text.contains("1 passed"), "{text}");
        return;
    }
    let net = Net::new(tap(), GUEST_MAC, None, Peer::Tap).unwrap();
    let features = net.features();
    let mut bench = Bench::with_queue_size(net, features, 64);

    // Who has 10.0.0.1? The answer tells the address, and the kernel knows the guest's from then on.
    let mut question = vec![0xff; 6];
    question.extend(GUEST_MAC);
    question.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    question.extend(GUEST_MAC);
    question.extend(GUEST_IP);
    question.extend([0; 6]);
    question.extend(HOST_IP);
    transmit(&mut bench, [0; HEADER], &question);
    let answer = receive(&mut bench, |frame| {
        frame[12..14] == [8, 6] && frame[21] == 2
    });
    let host_mac = &answer[HEADER + 22..][..6];

    // The kernel is to compute the checksum, so it does not mind the wrong one.
    let host = UdpSocket::bind("10.0.0.1:4242").unwrap();
    host.set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let frame = udp(host_mac, b"to the host");
    let mut partial = [0; HEADER];
    partial[0] = 1;
    partial[6] = 34;
    partial[8] = 6;
    transmit(&mut bench, partial, &frame);
    let mut text = [0; 100];
    let (length, guest) = host.recv_from(&mut text).unwrap();
    assert_eq!(&text[..length], b"to the host");

    // And the other way round, as long as the driver accepts that.
    let is_udp = |frame: &[u8]| frame[12..14] == [8, 0] && frame.ends_with(b"to the guest");
    host.send_to(b"to the guest", guest).unwrap();
    assert_eq!(receive(&mut bench, is_udp)[0], 1);
    bench.device.reset();
    let features = features & !Offloads::ALL.features(GUEST);
    let mut bench = Bench::with_queue_size(bench.device, features, 64);
    host.send_to(b"to the guest", guest).unwrap();
    assert_eq!(receive(&mut bench, is_udp)[0], 0);
}
