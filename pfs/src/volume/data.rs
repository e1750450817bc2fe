//! The content of files: which block is where, and reading it.

use std::collections::BTreeMap;

use blockdev::{Error, Result};
use nix::errno::Errno;

use crate::format::{BLOCK_SIZE, Bda, BlktagNo, BlockIndex, Content, Damage, Hole, InodeNo, Stamp};

use super::device::{Device, Part};
use super::metadata::{Metadata, damage};

/// Which block of a file is where, at one moment.
#[derive(Debug, Clone)]
pub struct FileMap {
    /// Whose map it is.
    pub inode: InodeNo,
    /// Which file: an inode's next file has another.
    pub btime: Stamp,
    /// How long it is, in bytes.
    pub size: u64,
    blocks: BTreeMap<BlockIndex, MappedBlock>,
}

/// A block of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappedBlock {
    /// Which block of the volume.
    pub tag: BlktagNo,
    /// What of it was never written.
    pub hole: Hole,
}

/// A run of a file's bytes of one sort.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment {
    /// They stand on the device from here on.
    Data {
        /// The address of the first.
        at: Bda,
        /// How many.
        len: u64,
    },
    /// They were never written, and are zero.
    Zero {
        /// How many.
        len: u64,
    },
}

impl Segment {
    /// How many bytes it is, at least 1.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "it never is")]
    pub fn len(self) -> u64 {
        match self {
            Self::Data { len, .. } | Self::Zero { len } => len,
        }
    }
}

impl Metadata {
    /// Which block of a file is where.
    ///
    /// # Errors
    /// When the inode is no file (EISDIR, or ENOENT if it is free), or its blocks are damaged.
    pub fn file_map(&self, number: InodeNo) -> Result<FileMap> {
        let inode = self.inode(number)?;
        let size = match &inode.content {
            Content::File(file) => file.size.bytes(),
            Content::Directory(_) => return Err(Error::io(format!("inode {number} is a directory"), Errno::EISDIR)),
            Content::Free => return Err(Error::io(format!("inode {number} is free"), Errno::ENOENT)),
        };
        let mut blocks = BTreeMap::new();
        self.visit_blocks(&inode, |block| {
            let mapped = MappedBlock { tag: block.tag, hole: block.hole };
            match blocks.insert(block.index, mapped) {
                None => Ok(()),
                Some(other) => Err(twice(block.tag, block.index, other.tag)),
            }
        })?;
        Ok(FileMap { inode: number, btime: inode.btime, size, blocks })
    }
}

/// Two blocks of a file claim to be the same part of it.
pub(crate) fn twice(tag: BlktagNo, index: BlockIndex, other: BlktagNo) -> Damage {
    damage(tag, "bt_blkid", format!("{index}, but blktag {other} is that block of the file"))
}

impl FileMap {
    /// A block of the file, unless it has none there.
    #[must_use]
    pub fn block(&self, index: BlockIndex) -> Option<MappedBlock> {
        self.blocks.get(&index).copied()
    }

    /// Says what a block of the file is.
    pub(super) fn set(&mut self, index: BlockIndex, block: MappedBlock) {
        self.blocks.insert(index, block);
    }

    /// Says that a block of the volume is not that block of the file any more.
    pub(super) fn unset(&mut self, index: BlockIndex, tag: BlktagNo) {
        if self.block(index).is_some_and(|block| block.tag == tag) {
            self.blocks.remove(&index);
        }
    }

    /// The blocks that it has, in the order of the file.
    pub fn blocks(&self) -> impl ExactSizeIterator<Item = (BlockIndex, MappedBlock)> + DoubleEndedIterator {
        self.blocks.iter().map(|(index, block)| (*index, *block))
    }

    /// What the bytes from `offset` on are, `len` of them or up to the file's end; neighbouring runs of one sort are one
    /// where they also are neighbours on the device.
    pub fn segments(&self, offset: u64, len: u64) -> impl Iterator<Item = Segment> {
        let end = offset.saturating_add(len).min(self.size);
        let mut at = offset;
        let mut ahead = None;
        std::iter::from_fn(move || {
            let mut run: Option<Segment> = ahead.take();
            while at < end {
                let segment = self.segment(at, end);
                at += segment.len();
                run = match (run, segment) {
                    (None, segment) => Some(segment),
                    (Some(Segment::Zero { len }), Segment::Zero { len: more }) => {
                        Some(Segment::Zero { len: len + more })
                    }
                    (Some(Segment::Data { at, len }), Segment::Data { at: next, len: more })
                        if at.bytes() + len == next.bytes() =>
                    {
                        Some(Segment::Data { at, len: len + more })
                    }
                    (run, segment) => {
                        ahead = Some(segment);
                        return run;
                    }
                };
            }
            run
        })
    }

    /// What the bytes from `at` on are, no further than one block reaches or the file is unmapped. `at` is before `end`.
    fn segment(&self, at: u64, end: u64) -> Segment {
        let (index, within) = BlockIndex::of(at);
        let Some((found, block)) = self.blocks.range(index..).next() else { return Segment::Zero { len: end - at } };
        if *found > index {
            return Segment::Zero { len: found.offset().min(end) - at };
        }
        let written = u64::from(block.hole.written());
        if within < written {
            let start = block.tag.block().start().bytes() + within;
            Segment::Data { at: Bda::new(start), len: (written - within).min(end - at) }
        } else {
            Segment::Zero { len: (BLOCK_SIZE.bytes() - within).min(end - at) }
        }
    }
}

/// Fills `into` from byte `offset` of a file on, as [`Volume::read`](super::Volume::read).
pub(super) fn read(device: &mut Device, file: &FileMap, offset: u64, into: &mut [u8]) -> Result<usize> {
    let mut parts = Vec::new();
    let (asked, mut rest) = (into.len(), into);
    for segment in file.segments(offset, asked as u64) {
        #[allow(clippy::cast_possible_truncation, reason = "no longer than `into`")]
        let (part, later) = rest.split_at_mut(segment.len() as usize);
        rest = later;
        match segment {
            Segment::Data { at, .. } => parts.push(Part { at, into: part }),
            Segment::Zero { .. } => part.fill(0),
        }
    }
    let filled = asked - rest.len();
    device.read_parts(parts)?;
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{ChunkId, Number};
    use proptest::prelude::*;

    const BLOCK: u64 = BLOCK_SIZE.bytes();

    fn map(size: u64, blocks: &[(u64, usize, Hole)]) -> FileMap {
        let blocks = blocks.iter().map(|(index, tag, hole)| {
            let tag = BlktagNo::new(ChunkId::FIRST, *tag).unwrap();
            (BlockIndex::new(*index).unwrap(), MappedBlock { tag, hole: *hole })
        });
        FileMap { inode: InodeNo::ROOT, btime: Stamp(0), size, blocks: blocks.collect() }
    }

    fn data(block: u64, from: u64, len: u64) -> Segment {
        Segment::Data { at: Bda::new(block * BLOCK + from), len }
    }

    #[test]
    fn neighbours_are_one_run() {
        let full = Hole::From(4 << 20);
        let map = map(5 * BLOCK, &[(0, 7, full), (1, 8, full), (2, 5, Hole::From(100)), (4, 6, Hole::Unrecorded)]);
        let runs: Vec<Segment> = map.segments(0, u64::MAX).collect();
        assert_eq!(
            runs,
            [data(7, 0, 2 * BLOCK), data(5, 0, 100), Segment::Zero { len: 2 * BLOCK - 100 }, data(6, 0, BLOCK)]
        );
        let runs: Vec<Segment> = map.segments(2 * BLOCK + 50, 60).collect();
        assert_eq!(runs, [data(5, 50, 50), Segment::Zero { len: 10 }]);
        assert_eq!(map.segments(5 * BLOCK, 10).count(), 0);
    }

    #[test]
    fn a_giant_file_without_blocks_is_one_run() {
        let map = map(1 << 62, &[]);
        assert_eq!(map.segments(1, u64::MAX).collect::<Vec<_>>(), [Segment::Zero { len: (1 << 62) - 1 }]);
    }

    proptest! {
        #[test]
        fn runs_are_what_the_bytes_are_one_by_one(
            size in 0..6 * BLOCK,
            blocks in prop::collection::btree_map(0u64..6, (1usize..9, 0u32..=4 << 20), 0..6),
            offset in 0..6 * BLOCK,
            len in 0..6 * BLOCK,
        ) {
            let blocks: Vec<_> = blocks.into_iter().map(|(index, (tag, hole))| (index, tag, Hole::From(hole))).collect();
            let map = map(size, &blocks);
            let mut at = offset;
            for segment in map.segments(offset, len) {
                prop_assert!(segment.len() > 0);
                for probe in [at, at + segment.len() / 2, at + segment.len() - 1] {
                    let (index, within) = BlockIndex::of(probe);
                    let expected = map.block(index).filter(|block| within < u64::from(block.hole.written()));
                    let found = match segment {
                        Segment::Zero { .. } => None,
                        Segment::Data { at: start, .. } => Some(start.bytes() + probe - at),
                    };
                    prop_assert_eq!(found, expected.map(|block| block.tag.block().start().bytes() + within));
                }
                at += segment.len();
            }
            prop_assert_eq!(at, offset.max((offset + len).min(size.max(offset))));
        }
    }
}
