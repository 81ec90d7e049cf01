//! The host side of a virtio-fs share: one folder, served to one guest, by a process of its own.
//!
//! ```text
//! guest's virtiofs ── FUSE messages in virtqueues ──▶ queues    bounded chains, one reply each
//!                                                       │ fuse-backend-rs: decoding, dispatch
//!                                                       ▼
//! monitor ── vhost-user: memory, queues ──▶           folder    what a request may do, and does
//!                                                       │ system calls on descriptors
//!                                                       ▼
//! confine: namespaces, landlock, seccomp ─────────── the folder
//! ```
//!
//! The guest is the attacker, in particular a guest that speaks FUSE itself. Three walls stand between
//! it and the rest of the host, each enough by itself as far as it goes: [`folder`] resolves one name
//! at a time below a descriptor and follows nothing; the process sees no other files; and it has no
//! privilege and few system calls.

#![cfg(target_os = "linux")]

pub mod confine;
pub mod folder;
pub mod queues;
pub mod settings;

#[cfg(test)]
mod tests;
