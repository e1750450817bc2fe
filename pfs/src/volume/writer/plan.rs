//! What reading and writing content does: to which bytes of the device, and to the metadata.

use std::ops::Range;

use blockdev::{Error, Result};
use nix::errno::Errno;

use crate::format::{BLOCK_SIZE, BlktagNo, BlockIndex, InodeNo, SECTOR_SIZE};

use super::super::data::{FileMap, Segment};
use super::log::Ticket;
use super::names::Now;
use super::sectors::Part;
use super::{Allocate, Handle, Position, Writer};

const BLOCK: u64 = BLOCK_SIZE.bytes();
pub(super) const SECTOR: u64 = SECTOR_SIZE as u64;

/// What writing does to a file.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Data of the file go to the device: neighbouring bytes of the file that are neighbours there.
    pub(super) runs: Vec<Run>,
    /// The blocks that are written further than they were, and how far.
    written: Vec<(BlktagNo, u64)>,
    /// Whether some block is not there yet.
    lacks_blocks: bool,
    /// Whether the file will be longer.
    grows: bool,
}

/// Bytes that are together in the file and on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// Where it starts on the device.
    pub(super) at: u64,
    /// How many zeroes come first: what was skipped since the last write to a block.
    pub(super) zeroes: u64,
    /// How many bytes of data.
    pub(super) data: u64,
    /// How many bytes after it, up to the end of its last sector, are to stay.
    pub(super) keep: bool,
}

impl Run {
    pub(super) fn end(&self) -> u64 {
        self.at + self.zeroes + self.data
    }
}

impl Plan {
    /// What writing bytes `from` to `to` does to a file.
    fn new(file: &FileMap, from: u64, to: u64) -> Self {
        let mut plan = Self { grows: to > file.size, ..Self::default() };
        let mut at = from;
        while at < to {
            let (index, within) = BlockIndex::of(at);
            let len = (BLOCK - within).min(to - at);
            at += len;
            let Some(block) = file.block(index) else {
                plan.lacks_blocks = true;
                continue;
            };
            let written = u64::from(block.hole.written());
            let zeroes = within.saturating_sub(written);
            let (start, end) = (block.tag.block().start().bytes() + within - zeroes, within + len);
            if end > written {
                plan.written.push((block.tag, end));
            }
            let keep = end < written;
            match plan.runs.last_mut() {
                Some(last) if last.end() == start && zeroes == 0 => {
                    last.data += len;
                    last.keep = keep;
                }
                _ => plan.runs.push(Run { at: start, zeroes, data: len, keep }),
            }
        }
        plan
    }

    /// Whether it changes the file's metadata once the data are written.
    pub(super) fn changes(&self) -> bool {
        self.grows || !self.written.is_empty()
    }

    /// The sectors that writing needs: those at the ends of runs for itself alone where it fills them in part.
    pub(super) fn parts(&self) -> Vec<Part> {
        self.runs.iter().flat_map(parts).collect()
    }
}

/// Somebody uses a file's content until this is dropped.
#[derive(Debug)]
pub(super) struct Using<'a> {
    writer: &'a Writer,
    file: InodeNo,
    extending: Option<Range<u64>>,
}

impl Drop for Using<'_> {
    fn drop(&mut self) {
        let extending = self.extending.take();
        self.writer.use_ends(self.file, |used| {
            used.shared -= 1;
            used.extending.retain(|other| Some(other) != extending.as_ref());
        });
    }
}

/// The sectors that writing a run needs: those at its ends for itself alone where it fills them in part.
fn parts(run: &Run) -> impl Iterator<Item = Part> {
    let (start, end) = (run.at - run.at % SECTOR, run.end().next_multiple_of(SECTOR));
    let first = (run.at > start).then_some(start..start + SECTOR);
    let last = (run.end() < end).then_some(end - SECTOR..end);
    let changed = first.into_iter().chain(last).map(|range| Part { range, changed: true });
    changed.chain([Part { range: start..end, changed: false }])
}

/// What there is to write.
#[derive(Debug)]
pub(super) struct Writing<'a> {
    /// What writing does; of blocks that the file lacked, as they are now.
    pub(super) plan: Plan,
    /// Where in the file it starts.
    pub(super) start: u64,
    pub(super) using: Using<'a>,
    /// What the journal must have before: a block may have been another file's until a moment ago, and be so again after a
    /// crash.
    pub(super) after: Ticket,
}

impl Writer {
    /// What there is to read, which stays where it is as long as it is used. Nothing while somebody is alone with the file.
    pub(super) fn try_reading(&self, file: Handle, offset: u64, len: u64) -> Result<Option<(Vec<Segment>, Using<'_>)>> {
        let mut shared = self.lock();
        let segments = shared.state.map(file)?.segments(offset, len).collect();
        let used = shared.used.entry(file.inode).or_default();
        if used.alone {
            return Ok(None);
        }
        used.shared += 1;
        Ok(Some((segments, Using { writer: self, file: file.inode, extending: None })))
    }

    /// What there is to write. Nothing while somebody is alone with the file, or extends it where this would, too.
    pub(super) fn try_writing(&self, file: Handle, position: Position, len: u64) -> Result<Option<Writing<'_>>> {
        self.log.check()?;
        let mut shared = self.lock();
        let map = shared.state.map(file)?;
        let start = match position {
            Position::At(start) => start,
            Position::End => map.size,
        };
        let end = start.checked_add(len).filter(|end| i64::try_from(*end).is_ok());
        let end = end.ok_or_else(|| Error::io(format!("cannot write {len} bytes at {start}"), Errno::EFBIG))?;
        let mut plan = Plan::new(map, start, end);
        // Where the end is, only one can find out at a time.
        let blocks = match position {
            Position::At(_) => start / BLOCK..end.div_ceil(BLOCK),
            Position::End => 0..u64::MAX,
        };
        let extending = (plan.lacks_blocks || plan.changes()).then_some(blocks);
        let used = shared.used.entry(file.inode).or_default();
        let taken = |blocks: &Range<u64>| {
            used.extending.iter().any(|other| other.start < blocks.end && blocks.start < other.end)
        };
        if used.alone || extending.as_ref().is_some_and(taken) {
            return Ok(None);
        }
        let mut after = Ticket::default();
        if plan.lacks_blocks {
            let how = Allocate { keep_size: true, ..Allocate::default() };
            after = self.allocate_locked(&mut shared.state, file, start..end, how)?;
            plan = Plan::new(shared.state.map(file)?, start, end);
        }
        let used = shared.used.entry(file.inode).or_default();
        used.shared += 1;
        used.extending.extend(extending.clone());
        Ok(Some(Writing { plan, start, using: Using { writer: self, file: file.inode, extending }, after }))
    }

    /// Says what was written, once it is.
    pub(super) fn finish_writing(&self, file: Handle, plan: &Plan, end: u64) -> Result<Ticket> {
        if !plan.changes() {
            return Ok(Ticket::default());
        }
        let mut shared = self.lock();
        let ((), ticket) = self.transact_on(&mut shared.state, file, |transaction, map| {
            Ok(transaction.written(map, &plan.written, end, Now::get())?)
        })?;
        Ok(ticket)
    }
}
