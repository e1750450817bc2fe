//! Who may do what to a slot when.
//!
//! One word says who owns a slot and how far it is; every step is a compare-and-exchange of all of it. A bitmap in the
//! channel says besides which slots are worth a look. The two are not changed together, and the order matters: a slot is
//! taken word first, bitmap second, and given back bitmap first, word second. So a free word with its bit clear is one that is
//! about to be free, and a used word with its bit set one that somebody just took, or died over.
//!
//! ```text
//!         client            client            daemon             daemon            client
//!  Free ─────────► Alloc ─────────► WaitReply ─────► InProgress ─────► WaitRelease ─────► Free
//!         claim             post               take              finish            release
//! ```
//!
//! All this is written for any sort of atomic word, so that a model checker can run it with its own.

use std::sync::atomic::{AtomicU64, Ordering};

use super::geometry::SlotNo;

/// An atomic word that several processes have.
pub trait Atomic64 {
    /// What it is; what was written before it was stored is seen after.
    fn look(&self) -> u64;
    /// Stores `new` if it is `old`. Returns whether.
    fn exchange(&self, old: u64, new: u64) -> bool;
    /// Sets bits.
    fn set(&self, bits: u64);
    /// Clears bits.
    fn clear(&self, bits: u64);
}

impl Atomic64 for AtomicU64 {
    fn look(&self) -> u64 {
        self.load(Ordering::Acquire)
    }

    fn exchange(&self, old: u64, new: u64) -> bool {
        self.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    fn set(&self, bits: u64) {
        self.fetch_or(bits, Ordering::AcqRel);
    }

    fn clear(&self, bits: u64) {
        self.fetch_and(!bits, Ordering::AcqRel);
    }
}

/// How far a slot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotState {
    /// Nobody's.
    Free = 0,
    /// A client is filling it.
    Alloc = 1,
    /// The daemon has not seen it yet.
    WaitReply = 2,
    /// The daemon is at it.
    InProgress = 3,
    /// The client has not taken the answer yet.
    WaitRelease = 4,
}

impl SlotState {
    fn new(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Free,
            1 => Self::Alloc,
            2 => Self::WaitReply,
            3 => Self::InProgress,
            4 => Self::WaitRelease,
            _ => return None,
        })
    }
}

/// Whose a slot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner {
    /// The number of their connection, which need not be one; -1 for nobody.
    pub connection: i16,
    /// The process, as its own pid namespace counts; a child of the one that connected, perhaps.
    pub pid: i32,
}

impl Owner {
    /// Whose a free slot is that nobody ever had.
    pub const NOBODY: Self = Self { connection: -1, pid: 0 };
}

/// The word of a slot: the connection, the state in the third byte, and the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotWord(u64);

impl SlotWord {
    /// The word that says this.
    #[must_use]
    pub const fn new(owner: Owner, state: SlotState) -> Self {
        let connection = owner.connection.cast_unsigned() as u64;
        Self(connection | (state as u64) << 16 | (owner.pid.cast_unsigned() as u64) << 32)
    }

    /// The word as it stands in memory.
    #[must_use]
    pub const fn from_raw(word: u64) -> Self {
        Self(word)
    }

    /// The word as it stands in memory.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// How far the slot is. Nothing when somebody wrote what is no state.
    #[must_use]
    pub fn state(self) -> Option<SlotState> {
        SlotState::new((self.0 >> 16) as u8)
    }

    /// Whose the slot is.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "parts of the word")]
    pub const fn owner(self) -> Owner {
        Owner { connection: (self.0 as u16).cast_signed(), pid: ((self.0 >> 32) as u32).cast_signed() }
    }

    /// The same slot in another state.
    #[must_use]
    const fn in_state(self, state: SlotState) -> Self {
        Self(self.0 & !(0xff << 16) | (state as u64) << 16)
    }
}

/// Client: takes a free slot of a channel, if there is one.
pub fn claim<'w, A: Atomic64 + 'w>(
    bitmap: &A,
    slots: impl Iterator<Item = SlotNo>,
    word: impl Fn(SlotNo) -> &'w A,
    owner: Owner,
) -> Option<SlotNo> {
    let worth_a_look = bitmap.look();
    for slot in slots.filter(|slot| worth_a_look & slot.bit() != 0) {
        let old = SlotWord(word(slot).look());
        let taken = SlotWord::new(owner, SlotState::Alloc);
        if old.state() == Some(SlotState::Free) && word(slot).exchange(old.0, taken.0) {
            bitmap.clear(slot.bit());
            return Some(slot);
        }
    }
    None
}

/// Client: what it claimed is filled. Returns false where somebody else changed the slot, who must not.
pub fn post(word: &impl Atomic64, owner: Owner) -> bool {
    let old = SlotWord::new(owner, SlotState::Alloc);
    word.exchange(old.0, old.in_state(SlotState::WaitReply).0)
}

/// Client: takes back what no daemon has taken. Returns whether it could; it has the slot then as after [`claim`].
pub fn withdraw(word: &impl Atomic64, owner: Owner) -> bool {
    let old = SlotWord::new(owner, SlotState::WaitReply);
    word.exchange(old.0, old.in_state(SlotState::Alloc).0)
}

/// Client: whether the answer is there.
pub fn is_answered(word: &impl Atomic64, owner: Owner) -> bool {
    word.look() == SlotWord::new(owner, SlotState::WaitRelease).0
}

/// Client: whether the slot is still its own, however far it is. It is not once a daemon has closed the connection.
pub fn is_owned(word: &impl Atomic64, owner: Owner) -> bool {
    let word = SlotWord(word.look());
    word.owner() == owner && word.state() != Some(SlotState::Free)
}

/// Client: gives back what it claimed or was answered in. Returns false where somebody else changed the slot.
pub fn release(word: &impl Atomic64, bitmap: &impl Atomic64, slot: SlotNo, owner: Owner) -> bool {
    let old = SlotWord(word.look());
    if old.owner() != owner || !matches!(old.state(), Some(SlotState::Alloc | SlotState::WaitRelease)) {
        return false;
    }
    bitmap.set(slot.bit());
    word.exchange(old.0, old.in_state(SlotState::Free).0)
}

/// Client: frees a slot of a child that died, unless a daemon is at it. Returns whether it did.
pub fn abandon(word: &impl Atomic64, bitmap: &impl Atomic64, slot: SlotNo, dead: Owner) -> bool {
    let seen = SlotWord(word.look());
    let ours = seen.owner() == dead && matches!(seen.state(), Some(SlotState::Alloc | SlotState::WaitRelease));
    // The daemon may find it at the same time: one of the two frees it.
    ours && reclaim(word, bitmap, slot, seen)
}

/// Daemon: takes a slot in which it saw `seen`: a request, or one that an earlier daemon was at. Nothing when another worker
/// was faster, or the client thought better of it. What comes is what [`finish`] needs.
pub fn take(word: &impl Atomic64, seen: SlotWord) -> Option<SlotWord> {
    let taken = seen.in_state(SlotState::InProgress);
    match seen.state() {
        Some(SlotState::WaitReply) => word.exchange(seen.0, taken.0).then_some(taken),
        // Nobody but an earlier daemon was at it: that it still stands so is all there is to see.
        Some(SlotState::InProgress) => (word.look() == seen.0).then_some(taken),
        _ => None,
    }
}

/// Daemon: what it took is answered. Returns false where somebody changed the slot meanwhile, who must not: nobody waits for
/// the answer then.
pub fn finish(word: &impl Atomic64, taken: SlotWord) -> bool {
    word.exchange(taken.0, taken.in_state(SlotState::WaitRelease).0)
}

/// Daemon: frees a slot in which it saw `seen`, and whose owner is gone. Returns whether it still stood so.
pub fn reclaim(word: &impl Atomic64, bitmap: &impl Atomic64, slot: SlotNo, seen: SlotWord) -> bool {
    // Made its own first, and then given back as a client does. Were it free before its bit is set, whoever claims it between
    // would clear the bit before that: the daemon would see a free slot and never the request in it.
    let own = SlotWord::new(Owner::NOBODY, SlotState::Alloc);
    if !word.exchange(seen.0, own.0) {
        return false;
    }
    bitmap.set(slot.bit());
    word.exchange(own.0, SlotWord::new(Owner::NOBODY, SlotState::Free).0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner = Owner { connection: 2, pid: 26_376 };

    /// As it stands in a slot of the original's: connection 2, process 0x6708.
    #[test]
    fn the_word_is_the_originals() {
        let word = SlotWord::new(OWNER, SlotState::Free);
        assert_eq!(word.raw().to_le_bytes(), [2, 0, 0, 0, 8, 0x67, 0, 0]);
        assert_eq!((word.owner(), word.state()), (OWNER, Some(SlotState::Free)));
        let nobody = SlotWord::new(Owner::NOBODY, SlotState::Free);
        assert_eq!(nobody.raw().to_le_bytes(), [0xff, 0xff, 0, 0, 0, 0, 0, 0]);
        assert_eq!(SlotWord::from_raw(0x0005_0000).state(), None);
    }

    #[test]
    fn a_slot_goes_round() {
        let bitmap = AtomicU64::new(0b10);
        let words = [AtomicU64::new(u64::from(u16::MAX)), AtomicU64::new(u64::from(u16::MAX))];
        let slots = || [0, 1].into_iter().filter_map(SlotNo::new);
        let slot = claim(&bitmap, slots(), |slot| &words[slot.index()], OWNER).unwrap();
        assert_eq!((slot.index(), bitmap.look()), (1, 0));
        assert_eq!(claim(&bitmap, slots(), |slot| &words[slot.index()], OWNER), None);
        let word = &words[1];
        assert_eq!(take(word, SlotWord(word.look())), None, "not posted yet");
        assert!(post(word, OWNER));
        let seen = SlotWord(word.look());
        let taken = take(word, seen).unwrap();
        assert_eq!(take(word, seen), None, "taken already");
        assert!(!release(word, &bitmap, slot, OWNER), "not answered yet");
        assert!(!is_answered(word, OWNER));
        assert!(finish(word, taken));
        assert!(is_answered(word, OWNER));
        assert!(release(word, &bitmap, slot, OWNER));
        assert_eq!((bitmap.look(), SlotWord(word.look())), (0b10, SlotWord::new(OWNER, SlotState::Free)));
        assert!(!finish(word, taken), "nobody waits for it");
    }

    #[test]
    fn what_a_dead_client_left_is_freed_once() {
        let (bitmap, word) = (AtomicU64::new(0), AtomicU64::new(SlotWord::new(OWNER, SlotState::Alloc).0));
        let seen = SlotWord(word.look());
        let slot = SlotNo::new(3).unwrap();
        assert!(reclaim(&word, &bitmap, slot, seen));
        assert!(!reclaim(&word, &bitmap, slot, seen));
        assert_eq!((bitmap.look(), SlotWord(word.look()).owner()), (0b1000, Owner::NOBODY));
    }
}
