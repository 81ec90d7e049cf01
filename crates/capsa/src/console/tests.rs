//! A console from end to end, with a socket pair in the machine's place.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use capsa_core::status::VmStatus;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::*;

/// The machine's side of a console.
pub(super) struct Guest {
    socket: UnixStream,
    status: watch::Sender<VmStatus>,
    pump: JoinHandle<InputQueue>,
}

impl Guest {
    pub(super) async fn says(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.unwrap();
    }

    pub(super) async fn takes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.socket.read_exact(&mut bytes).await.unwrap();
        bytes
    }

    /// Reads what is typed up to the next newline.
    pub(super) async fn takes_line(&mut self) -> String {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            line.push(self.socket.read_u8().await.unwrap());
        }
        String::from_utf8(line).unwrap()
    }

    async fn ends(self) {
        drop(self.socket);
        let queue = self.pump.await.unwrap();
        self.status
            .send_replace(VmStatus::Stopped { exit_code: None });
        drop(queue);
    }
}

/// A running machine with a ring of this size.
pub(super) fn machine(capacity: usize) -> (VmConsole, Guest) {
    let (ours, socket) = UnixStream::pair().unwrap();
    let (status, watched) = watch::channel(VmStatus::Running);
    let (input, mut queue) = console_input(move || watched.borrow().clone());
    let buffer = ConsoleBuffer::new(capacity);
    let console = VmConsole::new(Arc::clone(&buffer), input);
    let pump = tokio::spawn(async move {
        let (output, typed) = ours.into_split();
        pump(output, typed, &buffer, &mut queue).await;
        queue
    });
    let guest = Guest {
        socket,
        status,
        pump,
    };
    (console, guest)
}

/// A console without a machine: what it says is pushed by hand.
fn recorded(capacity: usize) -> (VmConsole, Arc<ConsoleBuffer>) {
    let (input, _) = console_input(|| VmStatus::Created);
    let buffer = ConsoleBuffer::new(capacity);
    (VmConsole::new(Arc::clone(&buffer), input), buffer)
}

fn poll_once<T>(future: impl Future<Output = T>) -> Poll<T> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test]
async fn a_prompt_needs_no_newline_and_may_come_in_pieces() {
    let (mut console, mut guest) = machine(CONSOLE_CAPACITY);
    guest.says(b"Debian 12 ttyS0\r\n\r\nlog").await;
    let waiting = tokio::spawn(async move { console.wait_for("login:").await });
    guest.says(b"i").await;
    guest.says(b"n: ").await;
    let output = waiting.await.unwrap().unwrap();
    assert_eq!(output, "Debian 12 ttyS0\r\n\r\nlogin:");
}

#[tokio::test]
async fn invalid_utf8_is_replaced_and_does_not_end_anything() {
    let (mut console, mut guest) = machine(CONSOLE_CAPACITY);
    guest
        .says(b"\xff\xfe\x80 gr\xc3\xbc\xc3\x9fe \xc3# rest")
        .await;
    let output = console.wait_for("#").await.unwrap();
    assert_eq!(output, "\u{fffd}\u{fffd}\u{fffd} grüße \u{fffd}#");
}

#[tokio::test]
async fn several_patterns_give_the_earliest_end_then_the_lowest_index() {
    let (mut console, buffer) = recorded(CONSOLE_CAPACITY);
    buffer.push(b"Kernel panic - not syncing");
    let patterns = ["not syncing", "anic", "panic", "login:"];
    let found = console.wait_for_any(&patterns).await.unwrap();
    assert_eq!(found, (1, "Kernel panic".to_owned()));
    assert_eq!(console.wait_for_any(&["x", ""]).await.unwrap().0, 1);
}

#[tokio::test]
async fn a_regex_ends_at_its_earliest_match() {
    let (mut console, buffer) = recorded(CONSOLE_CAPACITY);
    buffer.push(b"up 12345 s\r\nload 0.5\r\n");
    assert_eq!(console.wait_for_regex(r"\d+").await.unwrap(), "up 1");
    let output = console.wait_for_regex(r"(?m)^load [0-9.]+\r?\n").await;
    assert_eq!(output.unwrap(), "2345 s\r\nload 0.5\r\n");
}

#[tokio::test]
async fn bad_patterns_are_refused() {
    let (mut console, _buffer) = recorded(64);
    for regex in ["(", r"\p{Greek}", "(?:a{1000}){1000}", "(a|b)*a(a|b){20}"] {
        let error = console.wait_for_regex(regex).await.unwrap_err();
        assert_eq!(error.code(), "E0202", "{regex}");
        assert!(error.to_string().contains("pattern: "), "{error}");
    }
    let error = console.wait_for_any(&[]).await.unwrap_err();
    assert_eq!(error.code(), "E0202");
}

#[tokio::test(start_paused = true)]
async fn a_timeout_says_what_it_waited_for_and_keeps_the_output() {
    let (mut console, buffer) = recorded(CONSOLE_CAPACITY);
    buffer.push(b"Loading\x07 kernel\r\nlogi");
    let limit = Duration::from_secs(30);
    let error = console.wait_for_timeout("login:", limit).await.unwrap_err();
    let Error::Timeout {
        operation,
        after,
        console_tail,
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!(&*operation, r#"waiting for "login:" on the console"#);
    assert_eq!(after, limit);
    assert_eq!(console_tail.as_deref(), Some("Loading\\u{7} kernel\nlogi"));

    buffer.push(b"n: ");
    let limit = Duration::ZERO;
    let output = console.wait_for_timeout("login:", limit).await.unwrap();
    assert_eq!(output, "Loading\x07 kernel\r\nlogin:");
}

#[tokio::test]
async fn the_end_of_the_console_ends_every_wait_and_keeps_the_output() {
    let (mut console, mut guest) = machine(CONSOLE_CAPACITY);
    guest.says(b"end of story").await;
    let mut clone = console.clone();
    let waiting = tokio::spawn(async move { clone.wait_for_any(&["login:", "#"]).await });
    guest.ends().await;
    let error = waiting.await.unwrap().unwrap_err();
    assert_eq!(
        error.to_string(),
        "the console ended without any of \"login:\", \"#\"; the console's last lines:\n\
         end of story"
    );
    assert_eq!(console.wait_for("story").await.unwrap(), "end of story");
    assert_eq!(console.read(&mut [0; 8]).await.unwrap(), 0);
    assert_eq!(console.read_available().await.unwrap(), "");
}

#[tokio::test]
async fn a_guest_that_nobody_reads_is_not_stopped() {
    let (mut console, mut guest) = machine(CONSOLE_CAPACITY);
    // Returns only if everything is taken: far more than a socket holds.
    guest.says(&vec![b'.'; 3 * CONSOLE_CAPACITY]).await;
    guest.says(b"done").await;
    let mut latest = console.clone();
    let lost = 2 * CONSOLE_CAPACITY as u64 + 4;
    // The socket holds the rest, far less than the ring dropped.
    let error = console.wait_for("done").await.unwrap_err();
    assert!(
        matches!(error, Error::ConsoleOverrun { bytes } if bytes <= lost),
        "{error}"
    );
    drop(guest);
    let mut rest = Vec::new();
    let mut bytes = [0; 4096];
    let mut overrun = 0;
    loop {
        match latest.read(&mut bytes).await {
            Ok(0) => break,
            Ok(count) => rest.extend_from_slice(&bytes[..count]),
            Err(Error::ConsoleOverrun { bytes }) => overrun += bytes,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(overrun + rest.len() as u64, 3 * CONSOLE_CAPACITY as u64 + 4);
    assert!(rest.ends_with(b"done"));
}

#[tokio::test]
async fn output_flows_while_the_guest_takes_no_input() {
    let (mut console, mut guest) = machine(CONSOLE_CAPACITY);
    let typed = vec![b'i'; 2 << 20];
    let mut writer = console.clone();
    let expected = typed.clone();
    let writing = tokio::spawn(async move { writer.write(&typed).await });
    guest.says(&vec![b'o'; 1 << 20]).await;
    guest.says(b"# ").await;
    console.wait_for("# ").await.unwrap();
    assert!(!writing.is_finished());
    assert!(guest.takes(expected.len()).await == expected);
    writing.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_overrun_is_reported_once_and_reading_goes_on() {
    let (mut console, buffer) = recorded(8);
    buffer.push(b"0123456789ab");
    let error = console.read(&mut [0; 4]).await.unwrap_err();
    assert!(
        matches!(error, Error::ConsoleOverrun { bytes: 4 }),
        "{error}"
    );
    assert_eq!(console.read_available().await.unwrap(), "456789ab");

    // A wait that has looked at bytes has not lost them.
    buffer.push(b"to be forgotten, ");
    let error = console.read_available().await.unwrap_err();
    assert!(
        matches!(error, Error::ConsoleOverrun { bytes: 9 }),
        "{error}"
    );
    {
        let mut wait = pin!(console.wait_for("en, log"));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(wait.as_mut().poll(&mut cx).is_pending());
        buffer.push(b"lo");
        assert!(wait.as_mut().poll(&mut cx).is_pending());
        buffer.push(b"gin: ###");
        // The beginning of the match is gone, but it was seen.
        let Poll::Ready(output) = wait.as_mut().poll(&mut cx) else {
            panic!("no match");
        };
        assert_eq!(output.unwrap(), "g");
    }
}

#[tokio::test]
async fn what_is_dropped_before_it_was_searched_ends_a_wait() {
    let (mut console, buffer) = recorded(8);
    {
        let mut wait = pin!(console.wait_for("login:"));
        let mut cx = Context::from_waker(Waker::noop());
        buffer.push(b"abcd");
        assert!(wait.as_mut().poll(&mut cx).is_pending());
        buffer.push(b"0123456789");
        let Poll::Ready(Err(error)) = wait.as_mut().poll(&mut cx) else {
            panic!("no overrun");
        };
        assert!(
            matches!(error, Error::ConsoleOverrun { bytes: 6 }),
            "{error}"
        );
    }
    assert_eq!(console.read_available().await.unwrap(), "23456789");
}

#[tokio::test]
async fn a_cancelled_wait_or_read_loses_nothing() {
    let (mut console, buffer) = recorded(CONSOLE_CAPACITY);
    assert!(poll_once(console.read(&mut [0; 4])).is_pending());
    buffer.push(b"debian log");
    assert!(poll_once(console.wait_for("login:")).is_pending());
    buffer.push(b"in: ");
    assert_eq!(console.wait_for("login:").await.unwrap(), "debian login:");
}

#[tokio::test]
async fn a_clone_starts_where_its_source_is() {
    let (mut console, buffer) = recorded(CONSOLE_CAPACITY);
    buffer.push(b"one two three");
    console.wait_for("one ").await.unwrap();
    let mut clone = console.clone();
    assert_eq!(console.read_available().await.unwrap(), "two three");
    assert_eq!(clone.wait_for("two").await.unwrap(), "two");
    assert_eq!(clone.read_available().await.unwrap(), " three");
}

#[tokio::test]
async fn available_text_does_not_cut_a_character() {
    let (mut console, buffer) = recorded(CONSOLE_CAPACITY);
    let euro = "€".as_bytes();
    buffer.push(b"5 ");
    buffer.push(&euro[..2]);
    assert_eq!(console.read_available().await.unwrap(), "5 ");
    buffer.push(&euro[2..]);
    buffer.push(&euro[..1]);
    assert_eq!(console.read_available().await.unwrap(), "€");
    buffer.close();
    assert_eq!(console.read_available().await.unwrap(), "\u{fffd}");
}

struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Not on tokio, on purpose.
#[test]
fn a_reader_needs_no_runtime_and_leaves_one_waker() {
    let (mut console, buffer) = recorded(CONSOLE_CAPACITY);
    let mut clone = console.clone();
    let wakers: Vec<_> = (0..50)
        .map(|_| Arc::new(Woken(AtomicUsize::new(0))))
        .collect();
    for woken in &wakers {
        let waker = Waker::from(Arc::clone(woken));
        let mut cx = Context::from_waker(&waker);
        assert!(pin!(console.wait_for("#")).poll(&mut cx).is_pending());
        assert!(pin!(clone.read(&mut [0])).poll(&mut cx).is_pending());
    }
    assert_eq!(buffer.waiting(), 2);
    buffer.push(b"#");
    let counts: Vec<_> = wakers
        .iter()
        .map(|woken| woken.0.load(Ordering::Relaxed))
        .collect();
    assert_eq!(counts[..49], [0; 49]);
    assert_eq!(counts[49], 2);
    assert!(matches!(poll_once(console.wait_for("#")), Poll::Ready(Ok(output)) if output == "#"));

    assert!(poll_once(console.wait_for("#")).is_pending());
    assert_eq!(buffer.waiting(), 1);
    drop(console);
    assert_eq!(buffer.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_never_stops_writing_does_not_hold_up_a_timer() {
    let (mut console, buffer) = recorded(64);
    let reading = async {
        loop {
            buffer.push(b"x");
            console.read(&mut [0; 8]).await.unwrap();
        }
    };
    tokio::time::timeout(Duration::ZERO, reading)
        .await
        .unwrap_err();
}

#[tokio::test]
async fn the_bytes_of_a_write_stay_together() {
    const WRITERS: u8 = 8;
    const WRITES: usize = 20;
    const LENGTH: usize = 3001;
    let (console, mut guest) = machine(CONSOLE_CAPACITY);
    for writer in 0..WRITERS {
        let mut console = console.clone();
        tokio::spawn(async move {
            for _ in 0..WRITES {
                console.write(&[writer; LENGTH]).await.unwrap();
            }
        });
    }
    let mut counts = [0; WRITERS as usize];
    for _ in 0..usize::from(WRITERS) * WRITES {
        let bytes = guest.takes(LENGTH).await;
        assert!(bytes.iter().all(|byte| *byte == bytes[0]));
        counts[usize::from(bytes[0])] += 1;
    }
    assert_eq!(counts, [WRITES; WRITERS as usize]);
}

#[tokio::test]
async fn what_is_typed_arrives_in_order() {
    let (mut console, mut guest) = machine(CONSOLE_CAPACITY);
    console.write_line("échø").await.unwrap();
    console.write(b"").await.unwrap();
    console.write_str("x").await.unwrap();
    console.send_interrupt().await.unwrap();
    console.send_eof().await.unwrap();
    assert_eq!(
        guest.takes("échø\nx\x03\x04".len()).await,
        "échø\nx\x03\x04".as_bytes()
    );
}

#[tokio::test]
async fn writing_needs_a_running_vm() {
    let (input, _queue) = console_input(|| VmStatus::Created);
    let mut console = VmConsole::new(ConsoleBuffer::new(64), input);
    let error = console.write(b"x").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot write to the console: the VM is created"
    );

    // One write that the guest takes half of, and more than the queue holds behind it.
    let (mut console, mut guest) = machine(CONSOLE_CAPACITY);
    let writes: Vec<_> = (0..40)
        .map(|_| {
            let mut console = console.clone();
            tokio::spawn(async move { console.write(&[b'x'; 1 << 20]).await })
        })
        .collect();
    guest.takes(1 << 19).await;
    guest.ends().await;
    for write in writes {
        let error = write.await.unwrap().unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot write to the console: the VM is stopped"
        );
    }
    assert_eq!(console.write(b"x").await.unwrap_err().code(), "E0302");
}

#[tokio::test]
async fn the_halves_are_streams() {
    let (mut console, mut guest) = machine(CONSOLE_CAPACITY);
    guest.says(b"one two").await;
    console.wait_for("one ").await.unwrap();
    let (mut reader, mut writer) = console.split();

    let typed = vec![b'i'; 300_000];
    let expected = typed.clone();
    let writing = tokio::spawn(async move {
        writer.write_all(&typed).await.unwrap();
        writer.flush().await.unwrap();
        writer
    });
    assert!(guest.takes(expected.len()).await == expected);
    let mut writer = writing.await.unwrap();

    // What is queued is written although nobody flushes.
    writer.write_all(b"bye").await.unwrap();
    assert_eq!(guest.takes(3).await, b"bye");
    guest.ends().await;
    let error = writer.write_all(b"x").await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    let inner = error.get_ref().unwrap().downcast_ref::<Error>().unwrap();
    assert_eq!(inner.code(), "E0302");

    let mut rest = String::new();
    reader.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "two");
}

#[tokio::test]
async fn a_writing_half_has_one_write_under_way() {
    let (input, mut queue) = console_input(|| VmStatus::Running);
    let (_, mut writer) = VmConsole::new(ConsoleBuffer::new(64), input).split();
    let bytes = vec![b'x'; 1 << 20];
    let taken = writer.write(&bytes).await.unwrap();
    assert!(taken <= 64 << 10);
    assert!(poll_once(writer.write(&bytes)).is_pending());
    assert_eq!(queue.pending().await.unwrap().len(), taken);
    queue.advance(taken);
    assert!(poll_once(writer.write(&bytes)).is_ready());
}

#[tokio::test]
async fn a_reading_half_reports_an_overrun_once() {
    let (console, buffer) = recorded(8);
    buffer.push(b"0123456789");
    buffer.close();
    let (mut reader, _writer) = console.split();
    let error = reader.read_u8().await.unwrap_err();
    let inner = error.get_ref().unwrap().downcast_ref::<Error>().unwrap();
    assert!(matches!(inner, Error::ConsoleOverrun { bytes: 2 }));
    let mut rest = String::new();
    reader.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "23456789");
}

#[tokio::test]
async fn a_dropped_pump_ends_the_console() {
    let (mut console, mut guest) = machine(CONSOLE_CAPACITY);
    guest.says(b"# ").await;
    console.wait_for("# ").await.unwrap();
    guest.pump.abort();
    let error = console.wait_for("login:").await.unwrap_err();
    assert_eq!(error.code(), "E0403");
}
