//! Changes of what is in files: which blocks they have, how far those were written, how long the files are.

use std::ops::RangeInclusive;

use blockdev::{ByteSize, Result};

use crate::format::{
    BLOCK_SIZE, Blktag, BlktagNo, BlktagState, BlockIndex, Content, Damage, DiscardState, File, Hole, Inode, InodeNo,
    Links, Seconds,
};

use super::super::data::FileMap;
use super::super::metadata::damage;
use super::names::Now;
use super::transaction::Transaction;

/// Most bytes that one transaction cuts off a file.
const CUT_MAX: u64 = 10 << 30;

impl Transaction<'_> {
    /// Gives a file all blocks of a range that it has not yet.
    ///
    /// # Errors
    /// ENOSPC when there are not enough; or damage.
    pub(super) fn allocate(&mut self, file: &FileMap, range: RangeInclusive<u64>, hole: Hole) -> Result<()> {
        let missing = range.filter_map(BlockIndex::new).filter(|index| file.block(*index).is_none());
        for index in missing {
            let mut blktag: Blktag = self.take()?;
            let (mut inode, mut content) = self.file(file.inode)?;
            blktag.state = BlktagState::Used { links: Links::default(), owner: file.inode, index, hole };
            self.append(&mut content.list, &mut blktag)?;
            content.blocks += 1;
            inode.content = Content::File(content);
            self.put(blktag);
            self.put(inode);
        }
        Ok(())
    }

    /// Makes a file `size` bytes long, or longer by as much as one transaction cannot cut off. What is beyond its end goes,
    /// also what was beyond it before. Returns how long the file is now.
    pub(super) fn truncate(&mut self, file: &FileMap, size: u64, now: Now) -> Result<u64, Damage> {
        // Where there are no blocks there is nothing to free, however long the file says that it is.
        let end = file.blocks().next_back().map_or(0, |(index, _)| index.offset().saturating_add(BLOCK_SIZE.bytes()));
        let size = size.max(file.size.min(end).saturating_sub(CUT_MAX));
        let (last, within) = BlockIndex::of(size);
        if let Some(block) = file.block(last)
            && within > 0
            && size < file.size
            && within < u64::from(block.hole.written())
        {
            self.write_to(block.tag, within)?;
        }
        let kept = size.div_ceil(BLOCK_SIZE.bytes());
        for (_, block) in file.blocks().filter(|(index, _)| index.raw() >= kept) {
            let blktag: Blktag = self.touch(block.tag)?;
            let (mut inode, mut content) = self.file(file.inode)?;
            self.release_block(&mut content, blktag)?;
            inode.content = Content::File(content);
            self.put(inode);
        }
        if size != file.size {
            self.resize(file.inode, size, now)?;
        }
        Ok(size)
    }

    /// Says how long a file is.
    pub(super) fn resize(&mut self, number: InodeNo, size: u64, now: Now) -> Result<(), Damage> {
        let (mut inode, mut content) = self.file(number)?;
        content.size = ByteSize::new(size);
        inode.content = Content::File(content);
        (inode.ctime, inode.mtime) = (now.seconds(), now.seconds());
        self.put(inode);
        Ok(())
    }

    /// Says how far each of some blocks of a file is written, and how long the file is.
    pub(super) fn written(
        &mut self,
        file: &FileMap,
        blocks: &[(BlktagNo, u64)],
        size: u64,
        now: Now,
    ) -> Result<(), Damage> {
        for (tag, written) in blocks {
            self.write_to(*tag, *written)?;
        }
        if size > file.size {
            return self.resize(file.inode, size, now);
        }
        let (mut inode, _) = self.file(file.inode)?;
        // Another host sees that a file changed by its inode, which must therefore differ.
        if inode.ctime == now.seconds() {
            inode.atime = Seconds(inode.atime.0.wrapping_add(1));
        }
        (inode.ctime, inode.mtime) = (now.seconds(), now.seconds());
        self.put(inode);
        Ok(())
    }

    /// Frees an inode that has no name any more, and the blocks that it still has.
    pub(super) fn release(&mut self, number: InodeNo) -> Result<(), Damage> {
        let mut inode: Inode = self.touch(number)?;
        if let Content::File(content) = &mut inode.content {
            while let Some(head) = content.list.head() {
                let blktag: Blktag = self.touch(head)?;
                self.release_block(content, blktag)?;
            }
        }
        inode.content = Content::Free;
        (inode.atime, inode.ctime, inode.mtime) = (Seconds(0), Seconds(0), Seconds(0));
        self.put(inode);
        self.give(number);
        Ok(())
    }

    fn release_block(&mut self, content: &mut File, mut blktag: Blktag) -> Result<(), Damage> {
        let BlktagState::Used { owner, index, .. } = blktag.state else {
            return Err(damage(blktag.number, "mo_used", "0, but it is in a file's list"));
        };
        self.unlink(&mut content.list, &mut blktag)?;
        content.blocks = content.blocks.saturating_sub(1);
        blktag.state =
            BlktagState::Free { last_owner: owner, last_index: index, discard: DiscardState::Ready, discards: 0 };
        self.give(blktag.number);
        self.put(blktag);
        Ok(())
    }

    /// Says how far a block is written.
    fn write_to(&mut self, tag: BlktagNo, written: u64) -> Result<(), Damage> {
        let mut blktag: Blktag = self.touch(tag)?;
        let BlktagState::Used { hole, .. } = &mut blktag.state else {
            return Err(damage(tag, "mo_used", "0, but it is in a file's list"));
        };
        #[allow(clippy::cast_possible_truncation, reason = "at most 4 MiB")]
        let start = written as u32;
        *hole = Hole::From(start);
        self.put(blktag);
        Ok(())
    }

    /// A file, touched.
    fn file(&mut self, number: InodeNo) -> Result<(Inode, File), Damage> {
        let inode: Inode = self.touch(number)?;
        match &inode.content {
            Content::File(file) => Ok((inode.clone(), file.clone())),
            _ => Err(damage(number, "in_type", "it should be a file")),
        }
    }
}
