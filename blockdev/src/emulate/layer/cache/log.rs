//! The writes that are not durable yet: in their order, and what is newest where.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::write_back::Write;
use crate::emulate::memory::Chunk;
use crate::units::ByteRange;

/// What an entry without data counts for, in bytes.
pub(super) const EMPTY: u64 = 512;

/// The log, and the index over it.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) entries: VecDeque<Entry>,
    /// The number of the first entry.
    pub(super) first: u64,
    index: BTreeMap<u64, Piece>,
    /// How many bytes would be lost.
    pub(super) dirty: u64,
}

/// What is written.
#[derive(Debug, Clone)]
pub(in crate::emulate) enum Content {
    Data(Arc<Chunk>),
    /// Zeroes; as a hole, unless they are to be allocated.
    Zeroes {
        allocate: bool,
    },
}

/// Some bytes that are newer than the image's.
#[derive(Debug, Clone)]
pub(in crate::emulate) struct Patch {
    /// Where, in bytes from the start of the range that was asked about.
    pub(in crate::emulate) at: u64,
    pub(in crate::emulate) len: u64,
    /// What; and from where on, in bytes.
    content: Content,
    from: u64,
}

impl Patch {
    /// Puts it where it belongs in `bytes`, which are what the image had in the range.
    pub(in crate::emulate) fn apply(&self, bytes: &mut [u8]) {
        let (at, from, len) = (usize_of(self.at), usize_of(self.from), usize_of(self.len));
        let place = &mut bytes[at..at + len];
        match &self.content {
            Content::Data(data) => place.copy_from_slice(&data.part(from + len)[from..]),
            Content::Zeroes { .. } => place.fill(0),
        }
    }
}

/// Ranges of requests fit memory.
pub(super) fn usize_of(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// What is newest from some byte on.
#[derive(Debug, Clone, Copy)]
struct Piece {
    len: u64,
    /// Of which entry.
    seq: u64,
    /// From which of its bytes on.
    from: u64,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) start: u64,
    pub(super) len: u64,
    content: Content,
    /// The parts of it, from and to, that nothing newer has made durable.
    pub(super) left: Vec<(u64, u64)>,
}

impl Entry {
    /// The part of it from one byte of the disk to another.
    pub(super) fn part(&self, from: u64, to: u64) -> Write {
        Write { start: from, len: to - from, content: self.content.clone(), from: from - self.start }
    }

    /// What is to be written of it.
    pub(super) fn writes(&self) -> impl Iterator<Item = Write> {
        self.left.iter().map(|(from, to)| self.part(*from, *to))
    }

    pub(super) fn weight(&self) -> u64 {
        if matches!(self.content, Content::Data(_)) { self.len } else { EMPTY }
    }
}

impl Log {
    pub(super) fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    pub(super) fn insert(&mut self, start: u64, len: u64, content: Content) -> u64 {
        let seq = self.next();
        carve(&mut self.index, start, start + len);
        self.index.insert(start, Piece { len, seq, from: 0 });
        let entry = Entry { start, len, content, left: vec![(start, start + len)] };
        self.dirty += entry.weight();
        self.entries.push_back(entry);
        seq
    }

    pub(super) fn entry(&self, seq: u64) -> Option<&Entry> {
        self.entries.get(usize_of(seq.checked_sub(self.first)?))
    }

    /// What is newer than the image in a range.
    pub(super) fn patches(&self, range: ByteRange) -> Vec<Patch> {
        let (start, end) = (range.start.bytes(), range.end().bytes());
        let first = self.index.range(..start).next_back().filter(|(at, piece)| *at + piece.len > start);
        let mut patches = Vec::new();
        for (at, piece) in first.into_iter().chain(self.index.range(start..end)) {
            let (from, to) = ((*at).max(start), (at + piece.len).min(end));
            let Some(entry) = self.entry(piece.seq) else { continue };
            let skipped = from - at;
            let content = entry.content.clone();
            patches.push(Patch { at: from - start, len: to - from, content, from: piece.from + skipped });
        }
        patches
    }

    /// What is newest and came no later than `last`.
    pub(super) fn newest(&self, last: u64) -> Vec<Write> {
        let of = |(start, piece): (&u64, &Piece)| {
            let content = self.entry(piece.seq)?.content.clone();
            Some(Write { start: *start, len: piece.len, content, from: piece.from })
        };
        self.index.iter().filter(|(_, piece)| piece.seq <= last).filter_map(of).collect()
    }

    /// Forgets everything up to `last`: it is on the image.
    pub(super) fn settle(&mut self, last: u64) {
        self.index.retain(|_, piece| piece.seq > last);
        while self.first <= last
            && let Some(entry) = self.entries.pop_front()
        {
            self.first += 1;
            self.dirty -= entry.weight();
        }
    }

    /// Entry `seq` alone is on the image: nothing older may come over it.
    pub(super) fn settle_alone(&mut self, seq: u64) {
        let Some((start, len)) = self.entry(seq).map(|entry| (entry.start, entry.len)) else { return };
        let count = usize_of(seq - self.first) + 1;
        for entry in self.entries.iter_mut().take(count) {
            entry.left = entry.left.iter().flat_map(|part| without(*part, (start, start + len))).collect();
        }
        self.index.retain(|_, piece| piece.seq != seq);
    }

    /// Forgets everything; returns it.
    pub(super) fn clear(&mut self) -> VecDeque<Entry> {
        self.first = self.next();
        self.index.clear();
        self.dirty = 0;
        std::mem::take(&mut self.entries)
    }
}

/// Takes a range out of the index.
fn carve(index: &mut BTreeMap<u64, Piece>, start: u64, end: u64) {
    let before = index.range(..start).next_back().map(|(at, piece)| (*at, *piece));
    let overlapping: Vec<(u64, Piece)> =
        before.into_iter().chain(index.range(start..end).map(|(at, piece)| (*at, *piece))).collect();
    for (at, piece) in overlapping {
        let piece_end = at + piece.len;
        if piece_end <= start {
            continue;
        }
        index.remove(&at);
        if at < start {
            index.insert(at, Piece { len: start - at, ..piece });
        }
        if piece_end > end {
            index.insert(end, Piece { len: piece_end - end, from: piece.from + (end - at), ..piece });
        }
    }
}

/// What is left of `part` without `taken`.
fn without(part: (u64, u64), taken: (u64, u64)) -> impl Iterator<Item = (u64, u64)> {
    let parts = [(part.0, part.1.min(taken.0)), (part.0.max(taken.1), part.1)];
    parts.into_iter().filter(|(from, to)| from < to)
}
