use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;

use capsa_agent_proto::frame::expect_message;
use yamux::Config;

use super::init::tests::{init, told};
use super::*;
use crate::supervision::FromAgent;

#[test]
fn work_that_hangs_does_not_keep_the_agent() {
    let (_never, hangs) = mpsc::channel::<()>();
    run_to_end(async {
        tokio::task::spawn_blocking(move || hangs.recv());
    })
    .unwrap();
}

#[test]
fn a_host_that_goes_once_it_was_promised_a_shutdown_gets_it() {
    let grace = Duration::from_secs(60);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let host = async move {
        let mut host = Connection::new(watched(ours), Config::default(), Mode::Client);
        let mut stream = poll_fn(|cx| host.poll_new_outbound(cx)).await.unwrap();
        tokio::spawn(async move { poll_fn(|cx| host.poll_next_inbound(cx)).await.is_some() });
        let open = Open::Shutdown { grace };
        write_message(&mut stream, &open).await.unwrap();
        let answer: Result<Accepted, Failure> = expect_message(&mut stream).await.unwrap();
        answer.unwrap();
    };
    let host = thread::spawn(|| run_to_end(host).unwrap());
    let first_process = run_to_end(async {
        let (init, first_process) = init();
        // It may have been about to send something, which then fails.
        let _ = Agent::new(Some(init)).serve(watched(theirs)).await;
        first_process
    });
    host.join().unwrap();
    let shutdown = told(&first_process.unwrap());
    assert!(matches!(shutdown, Some(FromAgent::Shutdown { grace: told }) if told == grace));
}

fn watched(socket: UnixStream) -> impl AsyncRead + AsyncWrite + Unpin {
    Descriptor::new(socket.into()).unwrap()
}
