//! The file or device that a volume is made on, opened for writing.

use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use blockdev::engine::{Choice, Config, Engine, Op, Span, Target};
use blockdev::ui::{Progress, Silent, needs_root};
use blockdev::{ByteRange, ByteSize, Cancel, Context, Result};

use super::chunk;
use crate::format::Bda;
use crate::volume::takes_writes;

/// Bytes of zeroes in one write: one huge page, which is one segment for the device.
const ZEROES: ByteSize = ByteSize::mib(2);

/// Writes in flight.
const QUEUE_DEPTH: u32 = 16;

/// The buffer that stays zero; the disk may read it for many writes at once.
const ZERO_BUFFER: u32 = 0;
const DATA_BUFFER: u32 = 1;

/// The file or device that a volume is made on.
pub(crate) struct Disk {
    engine: Engine,
    size: ByteSize,
}

/// Who else may have a block device open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// Nobody whom the kernel counts: no mount, no device mapper.
    Exclusive,
    /// Anybody.
    Shared,
}

impl Disk {
    /// Opens a file or block device for writing.
    pub(crate) fn open(path: &Path, sharing: Sharing, engine: Choice) -> Result<Self> {
        let what = || format!("cannot open {} for writing", path.display());
        let block_device = std::fs::metadata(path).context(what)?.file_type().is_block_device();
        let exclusive = if block_device && sharing == Sharing::Exclusive { libc::O_EXCL } else { 0 };
        let open = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags | exclusive).open(path);
        // Past the page cache, where there is a way past.
        let mut file = needs_root(open(libc::O_DIRECT).or_else(|_| open(0)).context(what))?;
        takes_writes(&file, path)?;
        let size = file.seek(SeekFrom::End(0)).context(|| format!("cannot see how large {} is", path.display()))?;
        let config = Config::new(QUEUE_DEPTH, 2, ZEROES.to_usize()?);
        let engine = Engine::open(engine, &config, vec![Target::new(file, path)])?;
        const { assert!(chunk::SIZE as u64 <= ZEROES.bytes()) };
        Ok(Self { engine, size: ByteSize::new(size) })
    }

    /// How large it is.
    pub(crate) fn size(&self) -> ByteSize {
        self.size
    }

    /// Writes whole sectors, no more than 2 MiB.
    pub(crate) fn write(&mut self, at: Bda, bytes: &[u8]) -> Result<()> {
        self.engine.buffer_mut(DATA_BUFFER)[..bytes.len()].copy_from_slice(bytes);
        #[allow(clippy::cast_possible_truncation, reason = "no more than the buffer")]
        let span = Span::whole(DATA_BUFFER, bytes.len() as u32);
        self.one(Op::Write { file: 0, offset: at.bytes(), span })
    }

    /// Writes zeroes to all of `ranges`, which are whole sectors.
    pub(crate) fn zero(
        &mut self,
        ranges: impl Iterator<Item = ByteRange>,
        progress: &mut dyn Progress,
        cancel: &Cancel,
    ) -> Result<()> {
        let writes = ranges.flat_map(|range| range.pieces(ZEROES)).map(|piece| {
            #[allow(clippy::cast_possible_truncation, reason = "at most `ZEROES`")]
            let span = Span::whole(ZERO_BUFFER, piece.len.bytes() as u32);
            (Op::Write { file: 0, offset: piece.start.bytes(), span }, piece.len.bytes())
        });
        self.engine.run("writing zeroes", writes, progress, cancel)
    }

    /// Makes durable what was written.
    pub(crate) fn sync(&mut self) -> Result<()> {
        self.one(Op::Fdatasync { file: 0 })
    }

    /// Carries out one operation, which is not interrupted.
    fn one(&mut self, op: Op) -> Result<()> {
        self.engine.run("writing", std::iter::once((op, 0)), &mut Silent, &Cancel::new())
    }
}
