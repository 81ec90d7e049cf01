use std::sync::mpsc;

use capsa_agent_proto::frame::expect_message;
use tokio::net::UnixStream;
use tokio_util::compat::TokioAsyncReadCompatExt;
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

#[tokio::test]
async fn a_host_that_goes_once_it_was_promised_a_shutdown_gets_it() {
    let (init, first_process) = init();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let serving = tokio::spawn(Agent::new(Some(init)).serve(theirs.compat()));

    let mut host = Connection::new(ours.compat(), Config::default(), Mode::Client);
    let mut stream = poll_fn(|cx| host.poll_new_outbound(cx)).await.unwrap();
    let driving = tokio::spawn(async move { poll_fn(|cx| host.poll_next_inbound(cx)).await });
    let grace = Duration::from_secs(60);
    write_message(&mut stream, &Open::Shutdown { grace })
        .await
        .unwrap();
    let answer: Result<Accepted, Failure> = expect_message(&mut stream).await.unwrap();
    answer.unwrap();
    driving.abort();

    // It may have been about to send something, which then fails.
    let _ = serving.await.unwrap();
    let shutdown = told(&first_process);
    assert!(matches!(shutdown, Some(FromAgent::Shutdown { grace: told }) if told == grace));
}
