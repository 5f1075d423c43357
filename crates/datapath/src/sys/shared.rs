//! The memory of an array map, shared with the kernel: written without a call, and there as long as the map is.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    ptr::NonNull,
    sync::atomic::AtomicU64,
};

use super::{Kind, RawMap, invalid};

/// Map flag: an array whose elements user space may map into its memory (`BPF_F_MMAPABLE`, Linux 5.5).
pub const MMAPABLE: u32 = 1 << 10;

/// An array's elements, one after the other, as words. A word is read and written whole; what a process has written
/// stays when it is killed.
#[derive(Debug)]
pub struct SharedWords {
    first: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the memory belongs to the mapping, which lives as long as the value, and is only used as atomics.
unsafe impl Send for SharedWords {}
// SAFETY: as for `Send`.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Maps the elements of an array that was made with [`MMAPABLE`] and has values of whole words.
    ///
    /// # Errors
    /// `InvalidInput` for any other map; `ENOMEM`.
    pub fn new(map: &RawMap) -> io::Result<Self> {
        let info = map.info();
        let is_array = info.kind == Kind::Array as u32 && info.flags & MMAPABLE != 0;
        if !is_array || info.value == 0 || !info.value.is_multiple_of(8) {
            return Err(invalid("only arrays made for it, of whole words, are mapped"));
        }
        let bytes = info.value as usize * info.entries as usize;
        let (access, fd) = (libc::PROT_READ | libc::PROT_WRITE, map.as_fd().as_raw_fd());
        // SAFETY: a new mapping at a place of the kernel's choice; the kernel refuses lengths beyond the array's.
        let place = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, libc::MAP_SHARED, fd, 0) };
        match NonNull::new(place.cast()) {
            Some(first) if place != libc::MAP_FAILED => Ok(Self { first, words: bytes / 8 }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// How many words there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.words
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.words == 0
    }

    /// The words.
    #[must_use]
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: `words` words are mapped from `first` on, aligned to a page, as long as `self` lives; atomics may be
        // changed through shared references, by the kernel and other processes as well.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.words) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made, which nobody borrows any more.
        unsafe { libc::munmap(self.first.as_ptr().cast(), self.words * 8) };
    }
}
