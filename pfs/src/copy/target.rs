//! What is copied into: a volume on its disk, or through the pfsd that serves it.

use std::slice;
use std::thread;

use blockdev::buffer::Memory;
use blockdev::{Error, Result};

use super::pipe::{BUFFER, Pipe};
use crate::client::{self, Served};
use crate::proto::IO_MAX;
use crate::volume::writer::{Allocate, Handle, Writer};
use crate::volume::{FileKind, Stat, VolumePath};

/// Most bytes that are allocated in one transaction, which the smallest of journals has room for.
const ALLOCATED: u64 = 4 << 30;

/// A volume into which something is copied.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    /// On its disk.
    Disk(&'a Writer),
    /// Through a pfsd.
    Pfsd(&'a Served),
}

impl<'a> Target<'a> {
    /// What a path leads to, if anything.
    pub(super) fn found(self, path: &VolumePath) -> Result<Option<Stat>> {
        let found = match self {
            Self::Disk(writer) => writer.lookup(path).and_then(|handle| writer.stat(handle)),
            Self::Pfsd(served) => served.stat(path),
        };
        match found {
            Ok(stat) => Ok(Some(stat)),
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn mkdir(self, path: &VolumePath) -> Result<()> {
        match self {
            Self::Disk(writer) => writer.mkdir(path).map(drop),
            Self::Pfsd(served) => served.mkdir(path),
        }
    }

    fn unlink(self, path: &VolumePath) -> Result<()> {
        match self {
            Self::Disk(writer) => writer.unlink(path),
            Self::Pfsd(served) => served.unlink(path),
        }
    }

    /// Gets ready to write files.
    pub(super) fn sink(self) -> Result<Sink<'a>> {
        let way = match self {
            Self::Disk(writer) => Way::Disk { writer, pipe: Box::new(Pipe::new(writer)?), made: Vec::new() },
            Self::Pfsd(served) => Way::Pfsd { served, buffer: Memory::new(BUFFER as usize)?, written: 0 },
        };
        Ok(Sink { target: self, way })
    }
}

/// What writes files.
pub(super) struct Sink<'a> {
    target: Target<'a>,
    way: Way<'a>,
}

enum Way<'a> {
    /// Several writes at once, which end later; and the files that were made for that.
    Disk { writer: &'a Writer, pipe: Box<Pipe<'a>>, made: Vec<(Handle, VolumePath)> },
    /// Each write ends before the next begins.
    Pfsd { served: &'a Served, buffer: Memory, written: u64 },
}

/// A file that is being written.
pub(super) enum Open {
    Disk(Handle),
    /// And where it is, if it was made for that.
    Pfsd(client::File, Option<VolumePath>),
}

impl Sink<'_> {
    /// Opens a file to be written from its beginning: a new one, or one that is emptied. Where it takes several writes it gets
    /// all its blocks before: whether there are enough is known then, and no write waits for the journal to have its own.
    ///
    /// # Errors
    /// When it cannot be made, or the volume is too full.
    pub(super) fn open(&mut self, path: &VolumePath, exists: bool, size: u64) -> Result<Open> {
        let new = (!exists).then(|| path.clone());
        let open = match &mut self.way {
            Way::Disk { writer, made, .. } => {
                let file = writer.create(path, !exists)?;
                made.extend(new.map(|path| (file, path)));
                Open::Disk(file)
            }
            Way::Pfsd { served, .. } => Open::Pfsd(served.create(path, !exists)?, new),
        };
        let outcome = if exists { self.empty(&open) } else { Ok(()) };
        outcome.and_then(|()| self.allocate(&open, size)).inspect_err(|_| self.lose(&open))?;
        Ok(open)
    }

    fn empty(&self, open: &Open) -> Result<()> {
        match (&self.way, open) {
            (Way::Disk { writer, .. }, Open::Disk(file)) => writer.truncate(*file, 0),
            (Way::Pfsd { served, .. }, Open::Pfsd(file, _)) => served.client().ftruncate(file, 0),
            _ => unreachable!("a file is its target's"),
        }
    }

    fn allocate(&self, open: &Open, size: u64) -> Result<()> {
        let steps = if size > BUFFER { size.div_ceil(ALLOCATED) } else { 0 };
        (0..steps).map(|step| step * ALLOCATED).try_for_each(|start| {
            let len = ALLOCATED.min(size - start);
            match (&self.way, open) {
                (Way::Disk { writer, .. }, Open::Disk(file)) => {
                    writer.allocate(*file, start, len, Allocate { keep_size: true, ..Allocate::default() })
                }
                (Way::Pfsd { served, .. }, Open::Pfsd(file, _)) => {
                    // The original's makes the file longer, and it will be so long in the end.
                    served.client().fallocate(file, libc::FALLOC_FL_KEEP_SIZE, start, len)
                }
                _ => unreachable!("a file is its target's"),
            }
        })
    }

    /// Fills a buffer, and writes what is in it into a file, from a byte on, or starts that. Returns how many bytes there were:
    /// less than a buffer's at the end.
    ///
    /// # Errors
    /// Those of `fill`, which says how much it filled; or something could not be written.
    pub(super) fn write(
        &mut self,
        open: &Open,
        offset: u64,
        fill: impl FnOnce(&mut [u8]) -> Result<usize>,
    ) -> Result<u64> {
        match (&mut self.way, open) {
            (Way::Disk { pipe, .. }, Open::Disk(file)) => pipe.write(*file, offset, fill),
            (Way::Pfsd { served, buffer, written }, Open::Pfsd(file, _)) => {
                // SAFETY: it is so long, and nobody else has it.
                let buffer = unsafe { slice::from_raw_parts_mut(buffer.as_ptr().as_ptr(), BUFFER as usize) };
                let count = fill(buffer)?;
                write_at_once(served, file, offset, &buffer[..count])?;
                *written += count as u64;
                Ok(count as u64)
            }
            _ => unreachable!("a file is its target's"),
        }
    }

    /// How many bytes were written since this was last asked.
    pub(super) fn written(&mut self) -> u64 {
        match &mut self.way {
            Way::Disk { pipe, .. } => pipe.written(),
            Way::Pfsd { written, .. } => std::mem::take(written),
        }
    }

    /// Says that a file is not whole. A new one is removed, in the end.
    pub(super) fn lose(&mut self, open: &Open) {
        match (&mut self.way, open) {
            (Way::Disk { pipe, .. }, Open::Disk(file)) => pipe.lose(*file),
            (_, Open::Pfsd(_, Some(path))) => self.remove(path),
            _ => {}
        }
    }

    /// Waits for everything that was started.
    ///
    /// # Errors
    /// Why something could not be written.
    pub(super) fn finish(&mut self) -> Result<()> {
        match &mut self.way {
            Way::Disk { pipe, .. } => pipe.finish(),
            Way::Pfsd { .. } => Ok(()),
        }
    }

    /// Removes the new files that are not whole, once everything has ended.
    pub(super) fn remove_lost(&self) {
        if let Way::Disk { pipe, made, .. } = &self.way {
            made.iter().filter(|(file, _)| pipe.lost().contains(file)).for_each(|(_, path)| self.remove(path));
        }
    }

    fn remove(&self, path: &VolumePath) {
        // The error that led here is the one to tell.
        let _ = self.target.unlink(path);
    }
}

/// Writes what may be more than one request can: as many as that takes, at the same time.
fn write_at_once(served: &Served, file: &client::File, offset: u64, bytes: &[u8]) -> Result<()> {
    thread::scope(|scope| {
        let mut pieces = (0..).step_by(IO_MAX).map(|at| offset + at as u64).zip(bytes.chunks(IO_MAX));
        let own = pieces.next();
        let others: Vec<_> = pieces.map(|(at, piece)| scope.spawn(move || served.write(file, at, piece))).collect();
        let first = own.map_or(Ok(()), |(at, piece)| served.write(file, at, piece));
        let dead = || Err(Error::new(blockdev::ErrorKind::Io, "a thread that wrote died"));
        let rest: Vec<Result<()>> = others.into_iter().map(|other| other.join().unwrap_or_else(|_| dead())).collect();
        rest.into_iter().fold(first, Result::and)
    })
}

/// Whether there is something that is the file system's own.
pub(super) fn is_internal(stat: &Stat) -> bool {
    stat.kind == FileKind::File && stat.inode.is_internal()
}
