//! The whole network over real sockets: a guest made of smoltcp at the other end of a socket pair, and servers
//! on this host's loopback in the place of public addresses.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod guest;
mod host;

mod cluster;
mod descriptors;
mod forwards;
mod names;
mod quiet;
mod requests;
mod routes;
mod streams;
mod tls;
mod udp;
