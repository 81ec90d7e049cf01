//! The host's side: paths, handles, listeners.

use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use super::*;
use crate::devices::vsock::guest::data_header;

struct AtPath {
    folder: tempfile::TempDir,
    guest: Guest,
}

impl AtPath {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let device = Vsock::new(CID, Some(&folder.path().join("vsock"))).unwrap();
        Self {
            folder,
            guest: Guest::new(device),
        }
    }

    fn program(&self) -> UnixStream {
        UnixStream::connect(self.folder.path().join("vsock")).unwrap()
    }
}

/// Counts how often somebody is woken.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl std::task::Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_program_names_the_port_at_the_path() {
    let mut at = AtPath::new();
    let mut program = at.program();
    program.write_all(b"CONN").unwrap();
    assert!(at.guest.next().is_none());
    // What follows the line is for the guest.
    program.write_all(b"ECT 1024\nhello").unwrap();
    let host = accepted(&mut at.guest, &program, 1024);
    assert_eq!(at.guest.next().unwrap().1, b"hello");
    at.guest.send(&data_header(1024, host, b"hi"), b"hi");
    assert_eq!(read(&program), b"hi");
}

#[test]
fn the_socket_is_the_users_own_and_goes_with_the_device() {
    let at = AtPath::new();
    let path = at.folder.path().join("vsock");
    assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
    let taken = Vsock::new(CID, Some(&path)).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AddrInUse);
    assert!(path.exists(), "it was the other's");
    drop(at.guest);
    assert!(!path.exists());
}

#[test]
fn impossible_arguments_are_refused() {
    for cid in [0, 1, 2, u32::MAX] {
        let error = Vsock::new(cid, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    let long = std::path::PathBuf::from(format!("/tmp/{}", "v".repeat(100)));
    assert!(Vsock::new(CID, Some(&long)).is_err());
    assert!(!long.exists());
}

#[test]
fn the_guest_reaches_a_program_at_a_numbered_path() {
    let mut at = AtPath::new();
    at.guest.send(&header(Op::Request, 5000, 80), &[]);
    expect_reset(&mut at.guest, 5000, 80);

    let listener = UnixListener::bind(at.folder.path().join("vsock_80")).unwrap();
    at.guest.send(&header(Op::Request, 5000, 80), &[]);
    let (mut program, _) = listener.accept().unwrap();
    let response = expect(&mut at.guest, Op::Response);
    assert_eq!(
        (response.destination_port, response.source_port),
        (5000, 80)
    );
    at.guest.send(&data_header(5000, 80, b"GET"), b"GET");
    assert_eq!(read(&program), b"GET");
    program.write_all(b"200").unwrap();
    assert_eq!(at.guest.next().unwrap().1, b"200");
}

#[test]
fn a_program_with_a_full_backlog_is_not_waited_for() {
    let mut at = AtPath::new();
    let _listener = UnixListener::bind(at.folder.path().join("vsock_80")).unwrap();
    let mut refused = false;
    for port in 0..500 {
        at.guest.send(&header(Op::Request, port, 80), &[]);
        refused |= at.guest.next().unwrap().0.op() == Some(Op::Reset);
    }
    assert!(refused || peers(&at.guest) == 500);
}

#[test]
fn a_listener_takes_the_guests_connections() {
    let device = device();
    let handle = device.handle();
    let mut listener = handle.listen(80).unwrap();
    assert_eq!(handle.listen(80).unwrap_err().kind(), ErrorKind::AddrInUse);
    let mut guest = Guest::new(device);
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&wakes));
    let context = &mut Context::from_waker(&waker);
    assert!(listener.poll_accept(context).is_pending());

    for port in [5000, 5001] {
        guest.send(&header(Op::Request, port, 80), &[]);
        expect(&mut guest, Op::Response);
    }
    assert_eq!(wakes.0.load(Ordering::Relaxed), 1, "once per wait");
    let mut programs = Vec::new();
    for port in [5000, 5001] {
        let (mut program, from) = listener.accept().unwrap();
        assert_eq!(from, port);
        program.write_all(&port.to_le_bytes()).unwrap();
        let (packet, data) = guest.next().unwrap();
        assert_eq!(packet.destination_port, port);
        assert_eq!(data, port.to_le_bytes());
        programs.push(program);
    }
    drop(listener);
    guest.send(&header(Op::Request, 5002, 80), &[]);
    expect_reset(&mut guest, 5002, 80);
    assert!(handle.listen(80).is_ok(), "the port is free again");
}

#[test]
fn whoever_waits_hears_of_the_devices_end() {
    let device = device();
    let mut listener = device.handle().listen(80).unwrap();
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&wakes));
    let context = &mut Context::from_waker(&waker);
    assert!(listener.poll_accept(context).is_pending());
    drop(device);
    assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
    let Poll::Ready(Err(ended)) = listener.poll_accept(context) else {
        panic!("the wait goes on");
    };
    assert_eq!(ended.kind(), ErrorKind::NotConnected);
}

#[test]
fn a_listener_that_is_not_looked_at_fills_up() {
    let device = device();
    let mut listener = device.handle().listen(80).unwrap();
    let mut guest = Guest::new(device);
    for port in 0..200 {
        guest.send(&header(Op::Request, port, 80), &[]);
        let answer = if port < 128 { Op::Response } else { Op::Reset };
        expect(&mut guest, answer);
    }
    assert!(listener.accept().is_ok());
    guest.send(&header(Op::Request, 200, 80), &[]);
    expect(&mut guest, Op::Response);
}

#[test]
fn nothing_is_asked_of_a_guest_without_a_driver() {
    let mut device = device();
    let handle = device.handle();
    assert_eq!(
        handle.connect(1).unwrap_err().kind(),
        ErrorKind::NotConnected
    );
    handle.reset_transport();
    let mut guest = Guest::new(device);
    assert!(guest.next().is_none());
    let program = handle.connect(1).unwrap();
    device = guest.bench.device;
    crate::VirtioDevice::reset(&mut device);
    assert!(read_all(&program).1);
    assert_eq!(
        handle.connect(1).unwrap_err().kind(),
        ErrorKind::NotConnected
    );
    drop(device);
    assert_eq!(
        handle.connect(1).unwrap_err().kind(),
        ErrorKind::NotConnected
    );
}

#[test]
fn wishes_that_nobody_fulfils_are_bounded() {
    let guest = Guest::new(device());
    let handle = guest.bench.device.handle();
    let programs: Vec<_> = (0..128).map(|_| handle.connect(1).unwrap()).collect();
    assert_eq!(handle.connect(1).unwrap_err().kind(), ErrorKind::WouldBlock);
    drop(programs);
}

#[test]
fn many_programs_share_a_port_of_the_guest() {
    let mut at = AtPath::new();
    let mut programs: Vec<_> = (0..100).map(|_| at.program()).collect();
    let mut ports = Vec::new();
    for program in &mut programs {
        program.write_all(b"connect 22\n").unwrap();
        ports.push(accepted(&mut at.guest, program, 22));
    }
    let different: std::collections::HashSet<_> = ports.iter().collect();
    assert_eq!(different.len(), 100);
    for (program, host) in programs.iter().zip(&ports) {
        let data = host.to_le_bytes();
        at.guest.send(&data_header(22, *host, &data), &data);
        assert_eq!(read(program), data);
    }
}

#[test]
fn programs_that_say_something_else_are_sent_away() {
    let mut at = AtPath::new();
    let garbage: [&[u8]; 9] = [
        b"\n",
        b"CONNECT\n",
        b"CONNECT 1 2\n",
        b"CONNECT -1\n",
        b"CONNECT +1\n",
        b"CONNECT 4294967296\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"CONNECT \xff\n",
        b"                                 ",
    ];
    for line in garbage {
        let mut program = at.program();
        program.write_all(line).unwrap();
        at.guest.settle().unwrap();
        assert!(read_all(&program).1, "{line:?}");
    }
    let program = at.program();
    program.shutdown(std::net::Shutdown::Write).unwrap();
    at.guest.settle().unwrap();
    assert!(read_all(&program).1);
    assert!(at.guest.next().is_none());
    assert_eq!(peers(&at.guest), 0);
}

#[test]
fn silent_programs_and_long_lines_are_bounded() {
    let mut at = AtPath::new();
    let mut program = at.program();
    // A megabyte without a newline is refused after 32 bytes.
    program.set_nonblocking(true).unwrap();
    assert!(program.write(&vec![b'C'; 1 << 20]).unwrap() > 32);
    at.guest.settle().unwrap();
    assert!(read_all(&program).1);

    let silent: Vec<_> = (0..20).map(|_| at.program()).collect();
    at.guest.settle().unwrap();
    assert_eq!(peers(&at.guest), 20);
    pass(&mut at.guest, Duration::from_secs(29));
    assert_eq!(peers(&at.guest), 20);
    pass(&mut at.guest, Duration::from_secs(31));
    assert_eq!(peers(&at.guest), 0);
    assert!(silent.iter().all(|program| read_all(program).1));
}
