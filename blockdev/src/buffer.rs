//! Memory that a device can read and write directly: aligned, and in huge pages where the kernel has them.

use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::error::{Context, Error, Result};

/// A huge page on x86-64 and most of arm64; where it is something else, less is gained and nothing lost.
const HUGE_PAGE: usize = 2 << 20;

/// The largest memory that io_uring registers as one buffer, in bytes.
pub const MEMORY_MAX: usize = 1 << 30;

/// Zeroed, page-aligned memory that stays where it is until dropped.
///
/// Blocks of several pages are laid in huge pages where possible: a 1 MiB I/O is then one segment for the device
/// instead of 256, which many devices cannot take in one request.
#[derive(Debug)]
pub struct Memory {
    map: NonNull<u8>,
    map_len: NonZeroUsize,
    start: usize,
    len: usize,
}

// SAFETY: the mapping is owned by this value alone and reached only through its methods.
unsafe impl Send for Memory {}

impl Memory {
    /// `len` bytes (1 to 1 GiB) of zeroes.
    ///
    /// # Errors
    /// When `len` is out of range or the system has no such memory.
    pub fn new(len: usize) -> Result<Self> {
        if len == 0 || len > MEMORY_MAX {
            return Err(Error::invalid(format!("{len} bytes of I/O buffers asked for, 1 to {MEMORY_MAX} possible")));
        }
        let huge = len >= HUGE_PAGE / 2;
        let slack = if huge { HUGE_PAGE } else { 0 };
        let map_len = NonZeroUsize::new(len.next_multiple_of(if huge { HUGE_PAGE } else { 4096 }) + slack)
            .ok_or_else(|| Error::invalid("no bytes of I/O buffers asked for"))?;
        // SAFETY: a new anonymous mapping at an address the kernel chooses aliases nothing.
        let map = unsafe {
            mmap_anonymous(None, map_len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE)
        }
        .context(|| format!("cannot allocate {len} bytes of I/O buffers"))?;
        let start = if huge { map.addr().get().next_multiple_of(HUGE_PAGE) - map.addr().get() } else { 0 };
        if huge {
            // SAFETY: the range is ours. An error only means ordinary pages.
            let _ = unsafe { madvise(map, map_len.get(), MmapAdvise::MADV_HUGEPAGE) };
        }
        Ok(Self { map: map.cast(), map_len, start, len })
    }

    /// Its first byte.
    #[must_use]
    pub fn as_ptr(&self) -> NonNull<u8> {
        // SAFETY: `start` lies inside the mapping: the slack was added for it.
        unsafe { self.map.add(self.start) }
    }

    /// How many bytes it is.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it is no bytes, which never happens.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing borrows from it any more.
        let _ = unsafe { munmap(self.map.cast(), self.map_len.get()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zeroed_and_aligned() {
        for len in [1, 4096, 5000, HUGE_PAGE / 2, 3 * HUGE_PAGE + 1] {
            let memory = Memory::new(len).unwrap();
            assert_eq!(memory.len(), len);
            let align = if len >= HUGE_PAGE / 2 { HUGE_PAGE } else { 4096 };
            assert!(memory.as_ptr().addr().get().is_multiple_of(align));
            // SAFETY: nothing else touches this memory.
            let bytes = unsafe { std::slice::from_raw_parts(memory.as_ptr().as_ptr(), len) };
            assert!(bytes.iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn none_and_too_much_are_refused() {
        assert!(Memory::new(0).is_err());
        assert!(Memory::new(MEMORY_MAX + 1).is_err());
    }
}
