use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;

use futures_executor::{LocalPool, LocalSpawner, block_on};
use futures_util::io::Cursor;
use futures_util::task::LocalSpawnExt;
use futures_util::{AsyncReadExt, AsyncWriteExt};
use proptest::prelude::*;
use tokio::io::DuplexStream;
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};
use yamux::{Config, Connection, Mode};

use super::*;

/// More than a pipe and both windows hold.
const CONTENT: usize = 1 << 20;

type Pipe = Compat<DuplexStream>;

/// A side that fills a stream while it reads the other side's. Returns how much comes.
fn side<S>(spawner: &LocalSpawner, pipe: S, mode: Mode) -> Rc<Cell<usize>>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let mut connection = Connection::new(pipe, Config::default(), mode);
    let received = Rc::new(Cell::new(0));
    let (count, tasks) = (received.clone(), spawner.clone());
    let drive = async move {
        let opened = poll_fn(|cx| connection.poll_new_outbound(cx)).await;
        let mut stream = opened.unwrap();
        // There is something to write before the connection, and with it its ping, gets its turn.
        let first = stream.write(&[7; CONTENT]).await.unwrap();
        let write = async move {
            stream.write_all(&[7; CONTENT][first..]).await.unwrap();
            stream
        };
        let writer = tasks.spawn_local_with_handle(write).unwrap();
        let mut from_other = poll_fn(|cx| connection.poll_next_inbound(cx))
            .await
            .unwrap()
            .unwrap();
        let read = async move {
            let mut buffer = vec![0; 4096];
            while count.get() < CONTENT {
                count.set(count.get() + from_other.read(&mut buffer).await.unwrap());
            }
            from_other
        };
        let reader = tasks.spawn_local_with_handle(read).unwrap();
        let inbound = poll_fn(|cx| connection.poll_next_inbound(cx)).await;
        assert!(inbound.is_none_or(|stream| stream.is_err()));
        drop((writer, reader));
    };
    spawner.spawn_local(drive).unwrap();
    received
}

/// What has come on both sides when nothing moves any more.
fn exchange<S>(wrap: impl Fn(Pipe) -> S) -> [usize; 2]
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    // Less than a frame, so that a side writes only while the other one reads.
    let (ours, theirs) = tokio::io::duplex(64);
    let mut pool = LocalPool::new();
    let spawner = pool.spawner();
    let ours = side(&spawner, wrap(ours.compat()), Mode::Client);
    let theirs = side(&spawner, wrap(theirs.compat()), Mode::Server);
    pool.run_until_stalled();
    [ours.get(), theirs.get()]
}

#[test]
fn both_sides_may_send_as_much_as_they_like() {
    assert_eq!(exchange(Quiet::new), [CONTENT; 2]);
}

/// If this fails, yamux has been mended, and nothing here is needed any more.
#[test]
fn with_pings_both_sides_stop_for_good() {
    let received = exchange(|pipe| pipe);
    assert!(
        received.iter().all(|count| *count < CONTENT),
        "{received:?}"
    );
}

fn frame(kind: u8, flags: u8, length: u32, content: &[u8]) -> Vec<u8> {
    let mut frame = vec![0, kind, 0, flags, 0, 0, 0, 1];
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(content);
    frame
}

/// Frames, and whether they go on.
fn frames() -> impl Strategy<Value = Vec<(Vec<u8>, bool)>> {
    let content = prop::collection::vec(any::<u8>(), 0..40);
    let data = (content, 0..16_u8).prop_map(|(content, flags)| {
        (
            frame(DATA, flags, u32::try_from(content.len()).unwrap(), &content),
            true,
        )
    });
    let number = any::<u32>();
    let frame = prop_oneof![
        data,
        (number, 0..16_u8).prop_map(|(credit, flags)| (frame(1, flags, credit, b""), true)),
        number.prop_map(|id| (frame(PING, 1, id, b""), false)),
        number.prop_map(|id| (frame(PING, ACK, id, b""), true)),
        number.prop_map(|reason| (frame(3, 0, reason, b""), true)),
    ];
    prop::collection::vec(frame, 0..8)
}

proptest! {
    #[test]
    fn all_but_pings_goes_on_however_it_is_cut(frames in frames(), cut in 1..50_usize) {
        let written: Vec<u8> = frames.iter().flat_map(|(frame, _)| frame.clone()).collect();
        let expected: Vec<u8> = frames
            .iter()
            .filter(|(_, goes_on)| *goes_on)
            .flat_map(|(frame, _)| frame.clone())
            .collect();
        let mut quiet = Quiet::new(Cursor::new(Vec::new()));
        block_on(async {
            for part in written.chunks(cut) {
                quiet.write_all(part).await.unwrap();
            }
            quiet.flush().await.unwrap();
        });
        prop_assert_eq!(quiet.stream.into_inner(), expected);
    }
}
