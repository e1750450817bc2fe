//! Where the journal lies, and reading it from one position to another.

use blockdev::Result;

use crate::format::{
    BLOCK_SIZE, Bda, BlockIndex, Content, Damage, ENTRY_SIZE, EntryBytes, InodeNo, JournalEntry, LeaderRecord,
    LogOffset, LogPosition, Lsn,
};

use super::device::Device;
use super::metadata::{Metadata, damage};

/// Most bytes of the journal read at once.
const SPAN_MAX: u64 = 1 << 20;

/// Where the journal lies: a file of which a part goes round and round.
#[derive(Debug, Clone)]
pub struct Journal {
    /// The address of each of its blocks.
    blocks: Vec<Bda>,
    /// How much of the file it uses.
    size: u64,
}

impl Journal {
    /// The journal of a volume, from its metadata before replay: nothing in the journal moves it.
    pub(crate) fn find(metadata: &Metadata, leader: &LeaderRecord) -> Result<Self, Damage> {
        let inode = metadata.inode(InodeNo::JOURNAL)?;
        let Content::File(file) = &inode.content else {
            return Err(damage(inode.number, "in_type", "it should be the journal, but is no file"));
        };
        if leader.log_size > file.size.bytes() {
            let problem = format!("{} bytes, but the journal file has {}", leader.log_size, file.size.bytes());
            return Err(Damage::new("leader record", crate::format::LEADER_AT, "log_size", problem));
        }
        let mut found = std::collections::BTreeMap::new();
        metadata.visit_blocks(&inode, |block| {
            found.insert(block.index, block.tag.block().start());
            Ok(())
        })?;
        let blocks = (0..leader.log_size.div_ceil(BLOCK_SIZE.bytes()))
            .map(|index| {
                BlockIndex::new(index).and_then(|index| found.get(&index)).copied().ok_or_else(|| {
                    damage(
                        inode.number,
                        "mo_head",
                        format!("the journal has no block for its bytes from {}", index * BLOCK_SIZE.bytes()),
                    )
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { blocks, size: leader.log_size })
    }

    /// How many bytes go round.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Where `len` bytes from a position on lie: runs of them that are together on the device.
    pub(super) fn runs(&self, from: LogOffset, len: u64) -> impl Iterator<Item = (Bda, u64)> {
        let (mut offset, mut left) = (from.bytes(), len);
        std::iter::from_fn(move || {
            offset %= self.size;
            let (_, within) = BlockIndex::of(offset);
            let run = left.min(BLOCK_SIZE.bytes() - within).min(self.size - offset);
            let start = self.address(offset);
            (offset, left) = (offset + run, left - run);
            (run > 0).then_some((start, run))
        })
    }

    /// The address of a position in it.
    pub(super) fn address(&self, offset: u64) -> Bda {
        let (index, within) = BlockIndex::of(offset % self.size);
        // `find` saw that there is a block for every position.
        #[allow(clippy::cast_possible_truncation, reason = "the index of an element that exists")]
        Bda::new(self.blocks[index.raw() as usize].bytes() + within)
    }

    /// Visits the bytes of `count` entries from a position on, as they are, each with its address.
    ///
    /// # Errors
    /// When the device cannot be read, or `visit` says so.
    pub fn visit(
        &self,
        device: &mut Device,
        from: LogOffset,
        count: u64,
        mut visit: impl FnMut(&EntryBytes, Bda) -> Result<()>,
    ) -> Result<()> {
        let (mut offset, mut left) = (from.bytes(), count * ENTRY_SIZE as u64);
        let mut buffer = Vec::new();
        while left > 0 {
            offset %= self.size;
            let (_, within) = BlockIndex::of(offset);
            let span = left.min(SPAN_MAX).min(BLOCK_SIZE.bytes() - within).min(self.size - offset);
            #[allow(clippy::cast_possible_truncation, reason = "at most SPAN_MAX")]
            buffer.resize(span as usize, 0);
            let start = self.address(offset);
            device.read(start, &mut buffer)?;
            let (entries, _) = buffer.as_chunks::<ENTRY_SIZE>();
            for (bytes, at) in entries.iter().zip((start.bytes()..).step_by(ENTRY_SIZE)) {
                visit(bytes, Bda::new(at))?;
            }
            (offset, left) = (offset + span, left - span);
        }
        Ok(())
    }

    /// Brings metadata that are of `from` up to the head that `leader` names.
    ///
    /// # Errors
    /// When the device cannot be read, or an entry is not what should follow; what the metadata are of then is undefined.
    pub(crate) fn replay(
        &self,
        device: &mut Device,
        from: (LogPosition, Lsn),
        leader: &LeaderRecord,
        metadata: &mut Metadata,
    ) -> Result<()> {
        self.scan(device, from, leader, |entry, at| {
            metadata.expect(&entry.object, at)?;
            metadata.put(&entry.object);
            Ok(())
        })
    }

    /// Visits the entries after `from` up to the head that `leader` names, each with its address, and sees that they are
    /// all there, in order, and end where they should.
    ///
    /// # Errors
    /// When the device cannot be read, an entry is not what should follow, or `visit` says so.
    pub(super) fn scan(
        &self,
        device: &mut Device,
        from: (LogPosition, Lsn),
        leader: &LeaderRecord,
        mut visit: impl FnMut(&JournalEntry, Bda) -> Result<(), Damage>,
    ) -> Result<()> {
        let (position, mut lsn) = from;
        let end = |field, problem| Damage::new("leader record", crate::format::LEADER_AT, field, problem);
        let behind = LeaderRecord { tail: position, ..leader.clone() };
        let count = behind.entries();
        if leader.log_size != self.size {
            return Err(end("log_size", format!("{} bytes, which were {}", leader.log_size, self.size)).into());
        }
        let (mut txid, mut open) = (position.txid, false);
        self.visit(device, position.offset, count, |bytes, at| {
            let entry = JournalEntry::parse(bytes, at)?;
            let expected = (lsn.next(), if open { txid } else { txid.next() });
            let what = || format!("journal entry {} of transaction {}", entry.lsn, entry.txid);
            if entry.lsn != expected.0 {
                return Err(Damage::new(what(), at, "le_lsn", format!("{} should be here", expected.0)).into());
            }
            if entry.txid != expected.1 {
                return Err(
                    Damage::new(what(), at, "le_txid", format!("transaction {} should be here", expected.1)).into()
                );
            }
            visit(&entry, at)?;
            (lsn, txid, open) = (entry.lsn, entry.txid, !entry.last);
            Ok(())
        })?;
        if txid != leader.head.txid {
            return Err(end("head_txid", format!("{}, but the journal ends with {txid}", leader.head.txid)).into());
        }
        if open {
            return Err(
                end("head_offset", format!("{}, in the midst of transaction {txid}", leader.head.offset)).into()
            );
        }
        if lsn != leader.head_lsn {
            return Err(end("head_lsn", format!("{}, but the journal ends with {lsn}", leader.head_lsn)).into());
        }
        Ok(())
    }
}
