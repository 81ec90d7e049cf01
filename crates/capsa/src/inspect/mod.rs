//! Blocking checks of the files that a configuration names, before anything of the VM exists.
//!
//! A monitor that is given a truncated kernel or a disk of the wrong format fails late, in a
//! process of its own, with words about its own internals, or boots and corrupts the disk. Here
//! each file is looked at first, as far as a bounded number of small reads goes, and every
//! problem names the file, what was expected of it and what helps. Nothing is locked, changed or
//! kept open. The files may come from anyone: everything that is read from them is checked.
//!
//! All functions block on the file system; call them where that is allowed.

pub(crate) mod disk;
pub(crate) mod initrd;
pub(crate) mod kernel;
pub(crate) mod lock;
pub(crate) mod share;
pub(crate) mod variables;

mod content;
mod elf;
mod host_file;
mod qcow2;

#[cfg(any(test, feature = "fuzzing"))]
#[cfg_attr(
    not(feature = "fuzzing"),
    expect(
        unreachable_pub,
        reason = "only the fuzz targets reach it from outside"
    )
)]
pub mod fuzz;
#[cfg(test)]
mod tests;
