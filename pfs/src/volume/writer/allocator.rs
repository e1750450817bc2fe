//! Which objects are free, and which of them comes next: as the original chooses, so that the same work leads to the same
//! image.

use crate::format::{BlktagNo, BlktagState, ChunkId, Damage, DiscardState, Kind, Number, is_used};

use super::super::metadata::Metadata;
use super::ready::Ready;

/// The free objects of a volume.
#[derive(Debug)]
pub(super) struct Allocator {
    /// By chunk and kind.
    chunks: Vec<[Free; 3]>,
    ready: Ready,
}

/// The free objects of one kind in one chunk.
#[derive(Debug, Default)]
struct Free {
    /// One bit for each that may be taken.
    bits: Vec<u64>,
    /// How many are free, those among them that may not be taken now: whose blocks are being discarded.
    count: usize,
}

impl Free {
    fn set(&mut self, index: usize, free: bool) {
        let (word, bit) = (index / 64, 1 << (index % 64));
        if self.bits.len() <= word {
            self.bits.resize(word + 1, 0);
        }
        if free {
            self.bits[word] |= bit;
        } else {
            self.bits[word] &= !bit;
        }
    }

    fn first(&self) -> Option<usize> {
        let word = self.bits.iter().position(|word| *word != 0)?;
        Some(word * 64 + self.bits[word].trailing_zeros() as usize)
    }
}

impl Allocator {
    /// What is free in a volume.
    pub(super) fn new(metadata: &Metadata) -> Result<Self, Damage> {
        let mut allocator = Self { chunks: Vec::new(), ready: Ready::new() };
        allocator.extend(metadata)?;
        Ok(allocator)
    }

    /// Takes in what is free in chunks that were not known yet.
    pub(super) fn extend(&mut self, metadata: &Metadata) -> Result<(), Damage> {
        for header in metadata.headers().skip(self.chunks.len()) {
            let mut sets = <[Free; 3]>::default();
            for (kind, set) in Kind::ALL.into_iter().zip(&mut sets) {
                let free = metadata.set(header.id, kind).iter().enumerate().filter(|(_, bytes)| !is_used(bytes));
                for (index, _) in free {
                    set.count += 1;
                    set.set(index, true);
                    let Some(block) = BlktagNo::new(header.id, index).filter(|_| kind == Kind::Blktag) else {
                        continue;
                    };
                    match metadata.blktag(block)?.state {
                        BlktagState::Free { discard: DiscardState::Ready, .. } => self.ready.insert(block),
                        BlktagState::Free { discard: DiscardState::InProgress, .. } => set.set(index, false),
                        _ => {}
                    }
                }
            }
            self.chunks.push(sets);
        }
        Ok(())
    }

    /// Takes a free object, if there is one: the first in the chunk that has the most. Of blocks, rather one that was used
    /// before.
    pub(super) fn take<N: Number>(&mut self) -> Option<N> {
        let again = self.ready.next().filter(|_| N::KIND == Kind::Blktag).and_then(|block| N::from_raw(block.raw()));
        let number = match again {
            Some(number) => number,
            None => self.first()?,
        };
        self.mark_used(number);
        Some(number)
    }

    fn first<N: Number>(&self) -> Option<N> {
        let set = |chunk: usize| &self.chunks[chunk][N::KIND as usize - 1];
        // Of those that have the most, the first.
        let best = (0..self.chunks.len()).rev().max_by_key(|chunk| set(*chunk).count)?;
        (best..self.chunks.len()).chain(0..best).find_map(|chunk| {
            let id = ChunkId::new(u32::try_from(chunk).ok()?)?;
            N::new(id, set(chunk).first()?)
        })
    }

    fn mark_used<N: Number>(&mut self, number: N) {
        let free = self.free_of(number);
        free.count -= 1;
        free.set(number.index(), false);
        if let Some(block) = as_block(number) {
            self.ready.remove(block);
        }
    }

    /// Gives an object back that was used.
    pub(super) fn give<N: Number>(&mut self, number: N) {
        let free = self.free_of(number);
        free.count += 1;
        free.set(number.index(), true);
        if let Some(block) = as_block(number) {
            self.ready.insert(block);
        }
    }

    /// Says whether a free block must not be used, because the device is being told that it is free.
    pub(super) fn withhold(&mut self, block: BlktagNo, withheld: bool) {
        self.free_of(block).set(block.index(), !withheld);
        self.ready.remove(block);
    }

    /// Brings an object's state back to what it is in `metadata`, after a transaction that was not to be.
    pub(super) fn restore<N: Number>(&mut self, number: N, metadata: &Metadata) {
        let Ok(bytes) = metadata.bytes(number) else { return };
        let (free, was_free) = (!is_used(bytes), self.is_free(number));
        match (free, was_free) {
            (false, true) => self.mark_used(number),
            (true, false) => {
                self.give(number);
                let discard = as_block(number).map(|block| metadata.blktag(block).map(|blktag| blktag.state));
                if let (Some(block), Some(Ok(BlktagState::Free { discard, .. }))) = (as_block(number), discard)
                    && discard != DiscardState::Ready
                {
                    self.ready.remove(block);
                }
            }
            _ => {}
        }
    }

    fn is_free<N: Number>(&self, number: N) -> bool {
        let bits = &self.chunks[number.chunk().index()][N::KIND as usize - 1].bits;
        bits.get(number.index() / 64).is_some_and(|word| word & (1 << (number.index() % 64)) != 0)
    }

    fn free_of<N: Number>(&mut self, number: N) -> &mut Free {
        &mut self.chunks[number.chunk().index()][N::KIND as usize - 1]
    }
}

fn as_block<N: Number>(number: N) -> Option<BlktagNo> {
    BlktagNo::from_raw(number.raw()).filter(|_| N::KIND == Kind::Blktag)
}
