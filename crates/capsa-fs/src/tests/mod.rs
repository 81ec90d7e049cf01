//! Attacks and ordinary work, as a guest does both that speaks FUSE itself: its kernel would refuse
//! half of the attacks before they are sent.
//!
//! The server is not confined here. What holds is the first wall, [`folder`](crate::folder).

mod attributes;
mod bounds;
mod escape;
mod guest;
mod listing;
mod memory;
mod places;
mod random;
mod read_only;
mod rings;
mod single_file;
mod work;
