//! The socket device (5.10), with Unix sockets on the host side.
