//! Memory for the data of requests: aligned, used again, and never more of it than was agreed on.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::buffer::Memory;
use crate::engine::Lent;

/// What every file takes for direct I/O.
const ALIGN: usize = 4096;

/// The smallest chunk, as a power of two.
const SMALLEST: u32 = 12;
/// Up to which size chunks are kept to be used again, as a power of two.
const KEPT: u32 = 20;
/// How many bytes of one size are kept.
const KEPT_BYTES: usize = 1 << 20;

/// What one user may always have, whatever others took, in bytes.
pub(super) const FLOOR: u64 = 128 << 10;

/// How many bytes all users together may have beyond their floors.
#[derive(Debug)]
pub(super) struct Budget {
    left: AtomicU64,
    /// How many are waiting for some.
    wanting: AtomicU32,
}

impl Budget {
    pub(super) fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self { left: AtomicU64::new(bytes), wanting: AtomicU32::new(0) })
    }

    fn take(&self, bytes: u64) -> bool {
        self.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(bytes)).is_ok()
    }

    fn give_back(&self, bytes: u64) {
        self.left.fetch_add(bytes, Ordering::AcqRel);
    }

    fn is_short(&self) -> bool {
        self.wanting.load(Ordering::Acquire) > 0
    }
}

/// The smallest power of two that is enough.
fn class_of(len: usize) -> u32 {
    len.next_power_of_two().trailing_zeros().max(SMALLEST)
}

/// From which size on memory comes from the kernel directly, as a power of two: untouched, it is not there yet.
const MAPPED: u32 = 17;

/// Aligned memory of a power of two bytes.
#[derive(Debug)]
pub(super) struct Chunk {
    start: NonNull<u8>,
    class: u32,
    /// Where it comes from, if not from the heap.
    mapped: Option<Memory>,
    /// Where it is charged; nowhere what lies within a user's floor.
    charged: Option<Arc<Budget>>,
}

// SAFETY: the memory belongs to this value alone.
unsafe impl Send for Chunk {}

impl Chunk {
    /// `None` where there is no such memory.
    fn new(class: u32) -> Option<Self> {
        if class >= MAPPED {
            let memory = Memory::new(1 << class).ok()?;
            return Some(Self { start: memory.as_ptr(), class, mapped: Some(memory), charged: None });
        }
        let layout = Layout::from_size_align(1 << class, ALIGN).ok()?;
        // SAFETY: the layout is of at least 4096 bytes.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self { start, class, mapped: None, charged: None })
    }

    /// At least `len` bytes that no budget knows of; nothing where there is no such memory.
    pub(super) fn of(len: usize) -> Option<Self> {
        Self::new(class_of(len))
    }

    fn size(&self) -> usize {
        1 << self.class
    }

    /// Its content. Nothing may be reading or writing it meanwhile.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: it is ours, and initialised.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.size()) }
    }

    /// The first `len` bytes, to be looked at.
    pub(super) fn part(&self, len: usize) -> &[u8] {
        assert!(len <= self.size(), "{len} bytes of {}", self.size());
        // SAFETY: it is ours, and initialised.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), len) }
    }

    /// Lends the first `len` bytes.
    ///
    /// # Safety
    /// As [`Lent::new`]: the chunk stays, and is not touched, until whoever takes it is done.
    pub(super) unsafe fn lend(&mut self, len: u32) -> Lent {
        assert!(len as usize <= self.size(), "{len} bytes of {}", self.size());
        // SAFETY: the caller promises.
        unsafe { Lent::new(self.start, len) }
    }

    /// Lends `len` bytes from `from` on, to be written to the disk.
    ///
    /// # Safety
    /// As [`lend`](Self::lend); and whoever takes them only reads them.
    pub(super) unsafe fn lend_part(&self, from: usize, len: usize) -> Lent {
        assert!(from + len <= self.size(), "{len} bytes from {from} of {}", self.size());
        // SAFETY: inside the chunk; the caller promises the rest.
        unsafe { Lent::new(self.start.add(from), u32::try_from(len).unwrap_or(u32::MAX)) }
    }
}

// SAFETY: shared, it is only read.
unsafe impl Sync for Chunk {}

impl Drop for Chunk {
    fn drop(&mut self) {
        if let Some(budget) = self.charged.take() {
            budget.give_back(self.size() as u64);
        }
        if self.mapped.is_none()
            && let Ok(layout) = Layout::from_size_align(self.size(), ALIGN)
        {
            // SAFETY: it was allocated with this layout.
            unsafe { dealloc(self.start.as_ptr(), layout) };
        }
    }
}

/// Zeroes for whoever needs some.
static ZEROES: Zeroes = Zeroes([0; ZEROES_LEN]);
const ZEROES_LEN: usize = 256 << 10;

/// Aligned for direct I/O.
#[repr(align(4096))]
struct Zeroes([u8; ZEROES_LEN]);

/// At most `len` zeroes, to be written: at least one.
pub(super) fn zeroes(len: u64) -> Lent {
    #[allow(clippy::cast_possible_truncation, reason = "not more than there are")]
    let len = len.clamp(1, ZEROES_LEN as u64) as u32;
    // SAFETY: they are always there and never written.
    unsafe { Lent::new(NonNull::from(&ZEROES.0).cast(), len) }
}

/// Where one user's chunks come from.
#[derive(Debug)]
pub(super) struct Pool {
    budget: Arc<Budget>,
    held: u64,
    wanting: bool,
    kept: [Vec<Chunk>; (KEPT - SMALLEST + 1) as usize],
}

impl Pool {
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        Self { budget, held: 0, wanting: false, kept: Default::default() }
    }

    /// At least `len` bytes; nothing when others have to give some back first.
    pub(super) fn take(&mut self, len: usize) -> Option<Chunk> {
        let class = class_of(len);
        let size = 1u64 << class;
        let free = self.held + size <= FLOOR;
        let granted = free || self.budget.take(size);
        self.wants(!granted);
        if !granted {
            return None;
        }
        let kept = self.kept.get_mut((class - SMALLEST) as usize).and_then(Vec::pop);
        match kept.or_else(|| Chunk::new(class)) {
            Some(mut chunk) => {
                if free {
                    self.held += size;
                } else {
                    chunk.charged = Some(Arc::clone(&self.budget));
                }
                Some(chunk)
            }
            None => {
                if !free {
                    self.budget.give_back(size);
                }
                None
            }
        }
    }

    pub(super) fn give_back(&mut self, mut chunk: Chunk) {
        match chunk.charged.take() {
            Some(budget) => budget.give_back(chunk.size() as u64),
            None => self.held -= chunk.size() as u64,
        }
        if let Some(kept) = self.kept.get_mut((chunk.class - SMALLEST) as usize)
            && kept.len() < KEPT_BYTES >> chunk.class
        {
            kept.push(chunk);
        }
    }

    /// Whether somebody waits for what others hold.
    pub(super) fn is_short(&self) -> bool {
        self.budget.is_short()
    }

    fn wants(&mut self, wanting: bool) {
        match (self.wanting, wanting) {
            (false, true) => self.budget.wanting.fetch_add(1, Ordering::AcqRel),
            (true, false) => self.budget.wanting.fetch_sub(1, Ordering::AcqRel),
            _ => return,
        };
        self.wanting = wanting;
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.wants(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_cannot_take_what_another_needs() {
        let budget = Budget::new(1 << 20);
        let (mut greedy, mut modest) = (Pool::new(Arc::clone(&budget)), Pool::new(Arc::clone(&budget)));
        let mut taken = Vec::new();
        while let Some(chunk) = greedy.take(100_000) {
            taken.push(chunk);
        }
        assert!(budget.is_short());
        // Its floor, and the whole budget.
        assert_eq!(taken.len(), 9);
        let small = modest.take(4096).unwrap();
        assert!(modest.take(1 << 20).is_none());
        taken.drain(..).for_each(|chunk| greedy.give_back(chunk));
        let mut large = modest.take(1 << 20).unwrap();
        assert_eq!((large.bytes().len(), small.part(10)), (1 << 20, &[0; 10][..]));
        modest.give_back(large);
        modest.give_back(small);
        assert!(greedy.take(1).is_some());
        assert!(!budget.is_short());
        assert_eq!(modest.held, 0);
    }
}
