//! The guest's side of the tests of vsock.
//!
//! ```text
//! vsock-peer echo PORT   listens, says so, and sends back what each connection brings
//! vsock-peer send PORT   connects to the host, sends its input, prints what comes back
//! ```

use std::env;
use std::error::Error;
use std::io::{self, Write};
use std::net::Shutdown;
use std::thread;

use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockListener, VsockStream};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["echo", port] => echo(port.parse()?),
        ["send", port] => send(port.parse()?),
        _ => Err("usage: vsock-peer echo|send PORT".into()),
    }
}

fn echo(port: u32) -> Result<(), Box<dyn Error>> {
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, port)?;
    writeln!(io::stdout(), "vsock-peer listens")?;
    loop {
        let (mut stream, _) = listener.accept()?;
        // A connection that fails is the host's to notice.
        thread::spawn(move || io::copy(&mut stream.try_clone()?, &mut stream));
    }
}

fn send(port: u32) -> Result<(), Box<dyn Error>> {
    let mut stream = VsockStream::connect_with_cid_port(VMADDR_CID_HOST, port)?;
    io::copy(&mut io::stdin(), &mut stream)?;
    stream.shutdown(Shutdown::Write)?;
    io::copy(&mut stream, &mut io::stdout())?;
    Ok(())
}
