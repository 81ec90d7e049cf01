//! Memory in which a forked child leaves something for its parent.
#![expect(unsafe_code, reason = "a mapping and what is in it are raw memory")]

use std::io;
use std::ops::Deref;
use std::ptr::{self, NonNull};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// A value in memory that forked children share with this process.
pub(super) struct Shared<T>(NonNull<T>);

impl<T: Sync> Shared<T> {
    /// A mapping of its own, freed on drop in the process that made it.
    pub(super) fn new(value: T) -> io::Result<Self> {
        const { assert!(align_of::<T>() <= 4096) };
        // SAFETY: a new mapping at an address that the kernel chooses.
        let page = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                size_of::<T>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
            )
        }?;
        let page = NonNull::new(page.cast::<T>()).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: the mapping is writable, large enough, page-aligned, and nobody else's.
        unsafe { page.write(value) };
        Ok(Self(page))
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: initialised in `new`, unmapped in `drop`. T is Sync, and another process that
        // shares the page is to it what another thread is.
        unsafe { self.0.as_ref() }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: the value and the mapping made in `new`, to which no reference outlives `self`.
        let unmapped = unsafe {
            self.0.drop_in_place();
            munmap(self.0.as_ptr().cast(), size_of::<T>())
        };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}
