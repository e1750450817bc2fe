//! The content of files, read and written.

use std::sync::PoisonError;

use blockdev::{Error, Result};
use nix::errno::Errno;

use crate::format::{BLOCK_SIZE, Bda, BlktagNo, BlockIndex, InodeNo, SECTOR_SIZE};

use super::super::data::{FileMap, Segment};
use super::super::device::{self, Device, Source};
use super::names::Now;
use super::sectors::Part;
use super::{Allocate, Handle, Writer};

const BLOCK: u64 = BLOCK_SIZE.bytes();
const SECTOR: u64 = SECTOR_SIZE as u64;

/// A thread's way to the content of files: it stays on the thread that asked for it.
#[derive(Debug)]
pub struct Content<'a> {
    writer: &'a Writer,
    device: Device,
}

/// Where in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// So many bytes from its start.
    At(u64),
    /// At its end, wherever that is by then.
    End,
}

/// What writing does to a file.
#[derive(Debug, Default)]
struct Plan {
    /// Data of the file go to the device: neighbouring bytes of the file that are neighbours there.
    runs: Vec<Run>,
    /// The blocks that are written further than they were, and how far.
    written: Vec<(BlktagNo, u64)>,
    /// Whether some block is not there yet.
    lacks_blocks: bool,
    /// Whether the file will be longer.
    grows: bool,
}

/// Bytes that are together in the file and on the device.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    /// Where it starts on the device.
    at: u64,
    /// How many zeroes come first: what was skipped since the last write to a block.
    zeroes: u64,
    /// How many bytes of data.
    data: u64,
    /// How many bytes after it, up to the end of its last sector, are to stay.
    keep: bool,
}

impl Run {
    fn end(&self) -> u64 {
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

    /// Whether it changes the file's metadata.
    fn extends(&self) -> bool {
        self.lacks_blocks || self.grows || !self.written.is_empty()
    }
}

/// Somebody uses a file's content until this is dropped.
struct Using<'a> {
    writer: &'a Writer,
    file: InodeNo,
    extending: bool,
}

impl Drop for Using<'_> {
    fn drop(&mut self) {
        let extending = self.extending;
        self.writer.use_ends(self.file, |used| {
            used.shared -= 1;
            used.extending &= !extending;
        });
    }
}

impl Writer {
    /// This thread's way to the content of files.
    ///
    /// # Errors
    /// When the device cannot be opened once more.
    pub fn content(&self) -> Result<Content<'_>> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner).try_clone()?;
        Ok(Content { writer: self, device: file.device()? })
    }
}

impl Content<'_> {
    /// Fills `into` from byte `offset` of a file on. Returns how many bytes there were: fewer than asked for only at the end
    /// of the file. What was never written reads as zeroes.
    ///
    /// # Errors
    /// ENOENT once the file was removed, EISDIR for a directory; or when the device cannot be read.
    pub fn read(&mut self, file: Handle, offset: u64, into: &mut [u8]) -> Result<usize> {
        let (segments, using) = self.writer.start_reading(file, offset, into.len() as u64)?;
        let mut parts = Vec::new();
        let (asked, mut rest) = (into.len(), into);
        for segment in segments {
            #[allow(clippy::cast_possible_truncation, reason = "no longer than `into`")]
            let (part, later) = rest.split_at_mut(segment.len() as usize);
            rest = later;
            match segment {
                Segment::Data { at, .. } => parts.push(device::Part { at, into: part }),
                Segment::Zero { .. } => part.fill(0),
            }
        }
        let filled = asked - rest.len();
        self.device.read_parts(parts)?;
        drop(using);
        Ok(filled)
    }

    /// Writes `bytes` into a file. Returns where they start.
    ///
    /// # Errors
    /// ENOSPC, and nothing is changed; ENOENT once the file was removed, EISDIR for a directory, EFBIG beyond 2^63 - 1 bytes;
    /// or when the device cannot be written.
    pub fn write(&mut self, file: Handle, position: Position, bytes: &[u8]) -> Result<u64> {
        if bytes.is_empty() {
            let size = self.writer.file_map(file)?.size;
            return Ok(if let Position::At(start) = position { start } else { size });
        }
        let (plan, start, using) = self.writer.start_writing(file, position, bytes.len() as u64)?;
        self.write_runs(&plan.runs, bytes)?;
        if self.writer.durable {
            self.device.flush()?;
        }
        self.writer.finish_writing(file, &plan, start + bytes.len() as u64)?;
        drop(using);
        Ok(start)
    }

    fn write_runs(&mut self, runs: &[Run], bytes: &[u8]) -> Result<()> {
        let _hold = self.writer.sectors.hold(runs.iter().flat_map(parts).collect());
        let mut rest = bytes;
        let mut sectors = Vec::with_capacity(runs.len());
        for run in runs {
            #[allow(clippy::cast_possible_truncation, reason = "no more than there are bytes")]
            let (data, later) = rest.split_at(run.data as usize);
            rest = later;
            sectors.push((Bda::new(run.at - run.at % SECTOR), self.whole_sectors(run, data)?));
        }
        self.device.write_parts(sectors.iter().map(|(at, from)| Source { at: *at, from }))
    }

    /// A run as whole sectors: what of the first and last is to stay is read.
    #[allow(clippy::cast_possible_truncation, reason = "lengths of what is in memory, and less than a sector")]
    fn whole_sectors(&mut self, run: &Run, data: &[u8]) -> Result<Vec<u8>> {
        let before = (run.at % SECTOR) as usize;
        let (start, end) = (run.at - before as u64, run.end().next_multiple_of(SECTOR));
        let mut sectors = vec![0; (end - start) as usize];
        let last = sectors.len() - SECTOR_SIZE;
        if before > 0 {
            self.device.read(Bda::new(start), &mut sectors[..SECTOR_SIZE])?;
        }
        if run.keep && run.end() < end && (last > 0 || before == 0) {
            self.device.read(Bda::new(end - SECTOR), &mut sectors[last..])?;
        }
        let at = before + run.zeroes as usize;
        sectors[before..at].fill(0);
        sectors[at..at + data.len()].copy_from_slice(data);
        Ok(sectors)
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

impl Writer {
    /// What there is to read, which stays where it is as long as it is used.
    fn start_reading(&self, file: Handle, offset: u64, len: u64) -> Result<(Vec<Segment>, Using<'_>)> {
        let mut shared = self.lock();
        loop {
            let segments = shared.state.map(file)?.segments(offset, len).collect();
            let used = shared.used.entry(file.inode).or_default();
            if !used.alone {
                used.shared += 1;
                return Ok((segments, Using { writer: self, file: file.inode, extending: false }));
            }
            shared = self.ended.wait(shared).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What there is to write, and where in the file it starts. All blocks are there, and the journal has them.
    fn start_writing(&self, file: Handle, position: Position, len: u64) -> Result<(Plan, u64, Using<'_>)> {
        self.log.check()?;
        let mut shared = self.lock();
        let (start, end, using) = loop {
            let map = shared.state.map(file)?;
            let start = match position {
                Position::At(start) => start,
                Position::End => map.size,
            };
            let end = start.checked_add(len).filter(|end| i64::try_from(*end).is_ok());
            let end = end.ok_or_else(|| Error::io(format!("cannot write {len} bytes at {start}"), Errno::EFBIG))?;
            let plan = Plan::new(map, start, end);
            let extending = plan.extends();
            let used = shared.used.entry(file.inode).or_default();
            let free = !used.alone && (!extending || !used.extending);
            if free {
                used.shared += 1;
                used.extending |= extending;
                let using = Using { writer: self, file: file.inode, extending };
                if !plan.lacks_blocks {
                    return Ok((plan, start, using));
                }
                break (start, end, using);
            }
            shared = self.ended.wait(shared).unwrap_or_else(PoisonError::into_inner);
        };
        let how = Allocate { keep_size: true, ..Allocate::default() };
        let outcome = self.allocate_locked(&mut shared.state, file, start..end, how);
        let plan = outcome.and_then(|ticket| Ok((Plan::new(shared.state.map(file)?, start, end), ticket)));
        drop(shared);
        let (plan, ticket) = plan?;
        // A block may have been another file's until a moment ago, and be so again after a crash.
        self.log.wait(ticket)?;
        Ok((plan, start, using))
    }

    /// Says what was written, once it is.
    fn finish_writing(&self, file: Handle, plan: &Plan, end: u64) -> Result<()> {
        if plan.written.is_empty() && !plan.grows {
            return Ok(());
        }
        let mut shared = self.lock();
        let ((), ticket) = self.transact_on(&mut shared.state, file, |transaction, map| {
            Ok(transaction.written(map, &plan.written, end, Now::get())?)
        })?;
        drop(shared);
        self.log.wait(ticket)
    }
}
