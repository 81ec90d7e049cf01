//! The connection on a clock that goes on by itself as soon as everybody waits.

use std::os::unix::net::UnixStream as StdStream;

use capsa_agent_proto::Accepted;
use capsa_agent_proto::preamble::Token;
use tokio::time::sleep;

use super::*;

const TOKEN: [u8; 32] = [7; 32];

/// An agent that takes a day for each answer.
async fn slow_agent(socket: StdStream) {
    socket.set_nonblocking(true).unwrap();
    let mut channel = UnixStream::from_std(socket).unwrap().compat();
    preamble::guest(&mut channel, &Token(TOKEN)).await.unwrap();
    let mut connection = Connection::new(channel, Config::default(), Mode::Server);
    while let Some(Ok(mut stream)) = poll_fn(|cx| connection.poll_next_inbound(cx)).await {
        tokio::spawn(async move {
            expect_message::<_, Open>(&mut stream).await.unwrap();
            sleep(Duration::from_secs(24 * 60 * 60)).await;
            let accepted = Ok::<_, Failure>(Accepted);
            write_message(&mut stream, &accepted).await.unwrap();
        });
    }
}

#[tokio::test(start_paused = true)]
async fn neither_a_request_nor_the_connection_ends_by_itself() {
    let (host, guest) = StdStream::pair().unwrap();
    tokio::spawn(slow_agent(guest));
    let host = HostEnd {
        stream: host,
        token: Token(TOKEN),
    };
    let (link, drive) = AgentLink::establish(host).await.unwrap();
    tokio::spawn(drive);
    for _ in 0..2 {
        let mut request = link.request(&Open::Info).await.unwrap();
        let Accepted = request.answer().await.unwrap();
    }
}
