//! Writing files from buffers, several at once: while some are being written, another is filled.

use std::slice;

use blockdev::buffer::Memory;
use blockdev::engine::Lent;
use blockdev::{Error, ErrorKind, Result};

use crate::volume::writer::{Content, Finished, Handle, Position, Writer};

/// Bytes in a buffer: so many that the journal costs little beside them.
pub(super) const BUFFER: u64 = 8 << 20;

/// How many buffers there are at most.
const BUFFERS: usize = 6;

/// What writes.
pub(super) struct Pipe<'a> {
    // Declared first, dropped first: it waits for what is being written from the buffers.
    content: Content<'a>,
    buffers: Vec<Buffer>,
    finished: Vec<Finished>,
    written: u64,
    lost: Vec<Handle>,
    failed: Option<Error>,
}

/// Memory for some bytes of a file.
struct Buffer {
    memory: Memory,
    /// What is being written from it: to which file, and how many bytes.
    used: Option<(Handle, u64)>,
}

impl<'a> Pipe<'a> {
    pub(super) fn new(writer: &'a Writer) -> Result<Self> {
        Ok(Self {
            content: writer.content()?,
            buffers: Vec::new(),
            finished: Vec::new(),
            written: 0,
            lost: Vec::new(),
            failed: None,
        })
    }

    /// Fills a buffer and starts writing what is in it into a file, from a byte on. Returns how many bytes there were.
    ///
    /// # Errors
    /// Those of `fill`, which says how much it filled. When there is no memory; or something could not be written that was
    /// started before, and [`finish`](Self::finish) says why.
    pub(super) fn write(
        &mut self,
        file: Handle,
        offset: u64,
        fill: impl FnOnce(&mut [u8]) -> Result<usize>,
    ) -> Result<u64> {
        let index = self.empty()?;
        let buffer = &mut self.buffers[index];
        let start = buffer.memory.as_ptr();
        // SAFETY: nothing is being written from it, and nobody else has it.
        let count = fill(unsafe { slice::from_raw_parts_mut(start.as_ptr(), BUFFER as usize) })?;
        if count > 0 {
            buffer.used = Some((file, count as u64));
            #[allow(clippy::cast_possible_truncation, reason = "no more than a buffer")]
            // SAFETY: the memory is left alone until this is done, and outlives what may be using it.
            let bytes = unsafe { Lent::new(start, count as u32) };
            self.content.start_write(index as u64, file, Position::At(offset), bytes);
            // What was started before may have come so far that it can go on.
            self.take(0);
        }
        Ok(count as u64)
    }

    /// Waits for everything that was started.
    ///
    /// # Errors
    /// Why something could not be written; [`lost`](Self::lost) says of which files.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.take(usize::MAX);
        self.failed.take().map_or(Ok(()), Err)
    }

    /// How many bytes were written since this was last asked.
    pub(super) fn written(&mut self) -> u64 {
        std::mem::take(&mut self.written)
    }

    /// The files that are not whole.
    pub(super) fn lost(&self) -> &[Handle] {
        &self.lost
    }

    /// Says that a file is not whole.
    pub(super) fn lose(&mut self, file: Handle) {
        self.lost.push(file);
    }

    /// A buffer from which nothing is being written.
    fn empty(&mut self) -> Result<usize> {
        loop {
            if self.failed.is_some() {
                return Err(Error::new(ErrorKind::Io, "something could not be written"));
            }
            if let Some(index) = self.buffers.iter().position(|buffer| buffer.used.is_none()) {
                return Ok(index);
            }
            if self.buffers.len() < BUFFERS {
                self.buffers.push(Buffer { memory: Memory::new(BUFFER as usize)?, used: None });
            } else {
                self.take(1);
            }
        }
    }

    /// Goes on with what was started until at least so much of it is done.
    fn take(&mut self, min: usize) {
        if let Err(error) = self.content.complete(min, None, &mut self.finished) {
            self.failed.get_or_insert(error);
            self.lost.extend(self.buffers.iter().filter_map(|buffer| buffer.used).map(|(file, _)| file));
        }
        for Finished { tag, result } in self.finished.drain(..) {
            #[allow(clippy::cast_possible_truncation, reason = "tags are indices")]
            let Some((file, count)) = self.buffers[tag as usize].used.take() else { continue };
            match result {
                Ok(_) => self.written += count,
                Err(error) => {
                    self.failed.get_or_insert(error);
                    self.lost.push(file);
                }
            }
        }
    }
}
