//! Free blocks that the device was not yet told of: the first to be used again.

use std::ffi::{c_int, c_void};
use std::fmt;
use std::ptr;

use crate::format::{BlktagNo, Number};

// From <search.h>; not in the libc crate.
unsafe extern "C" {
    fn tsearch(key: *const c_void, root: *mut *mut c_void, compare: Compare) -> *mut c_void;
    fn tdelete(key: *const c_void, root: *mut *mut c_void, compare: Compare) -> *mut c_void;
}

type Compare = extern "C" fn(*const c_void, *const c_void) -> c_int;

/// A set of free blocks, of which the next to be used is the one at the root of a tree.
///
/// The original keeps them in a tree of the C library and takes whatever happens to be at its root. So that the same work
/// leads to the same blocks, this is the very same tree. Its keys are no pointers but numbers of blktags, never 0.
pub(super) struct Ready {
    root: *mut c_void,
}

// SAFETY: the tree is reached through this value alone; its nodes are the C library's ordinary memory, of any thread.
unsafe impl Send for Ready {}

impl fmt::Debug for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ready").field("next", &self.next()).finish()
    }
}

extern "C" fn compare(one: *const c_void, other: *const c_void) -> c_int {
    one.addr().cmp(&other.addr()) as c_int
}

fn key(block: BlktagNo) -> *const c_void {
    #[allow(clippy::cast_possible_truncation, reason = "a volume of 64 TiB has 2^24 blocks")]
    ptr::without_provenance(block.raw() as usize)
}

impl Ready {
    pub(super) fn new() -> Self {
        Self { root: ptr::null_mut() }
    }

    pub(super) fn insert(&mut self, block: BlktagNo) {
        // SAFETY: `root` is a tree of this comparison, which takes any keys.
        unsafe { tsearch(key(block), &raw mut self.root, compare) };
    }

    pub(super) fn remove(&mut self, block: BlktagNo) {
        // SAFETY: as in `insert`. The node it may return, a freed one's parent, is not looked at.
        unsafe { tdelete(key(block), &raw mut self.root, compare) };
    }

    /// The one to be used next.
    pub(super) fn next(&self) -> Option<BlktagNo> {
        if self.root.is_null() {
            return None;
        }
        // SAFETY: POSIX lets a node be taken as a pointer to its key, and `root` is a node.
        let key = unsafe { *self.root.cast::<*const c_void>() };
        BlktagNo::from_raw(key.addr() as u64)
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        while let Some(block) = self.next() {
            self.remove(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ChunkId;

    fn block(index: usize) -> BlktagNo {
        BlktagNo::new(ChunkId::FIRST, index).unwrap()
    }

    #[test]
    fn the_next_is_at_the_root() {
        let mut ready = Ready::new();
        assert_eq!(ready.next(), None);
        for index in 1..=7 {
            ready.insert(block(index));
        }
        // Seven in ascending order: a tree that is balanced as far as the C library does it.
        assert_eq!(ready.next(), Some(block(2)));
        let mut left: Vec<_> = std::iter::from_fn(|| {
            let next = ready.next()?;
            ready.remove(next);
            Some(next)
        })
        .collect();
        left.sort();
        assert_eq!(left, (1..=7).map(block).collect::<Vec<_>>());
        ready.remove(block(3));
        assert_eq!(ready.next(), None);
    }
}
