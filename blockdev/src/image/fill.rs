//! Writing zeroes, as fast as the disk takes them.

use std::os::unix::fs::FileExt;

use serde::Serialize;

use super::access::{Access, Parts};
use crate::cancel::Cancel;
use crate::engine::{Choice, Config, Engine, Kind, Op, Reserve, Span};
use crate::error::{Context, ErrorKind, Result};
use crate::ui::Progress;
use crate::units::{ByteRange, ByteSize};

/// Bytes in one write: one huge page, which is one segment for the device. Measured on ext4 over virtio, 4 GiB: writes of 1
/// to 8 MiB at queue depths of 8 to 32 are alike (3.1 GB/s), those of 256 KiB slower (2.0 GB/s); this costs the least CPU.
const WRITE: ByteSize = ByteSize::mib(2);

/// Writes in flight.
const QUEUE_DEPTH: u32 = 16;

/// Bytes that the file system is asked to make zeroes by itself at once, so that it can be interrupted.
const ZERO_REQUEST: ByteSize = ByteSize::mib(256);

/// What is being done, where it is interrupted.
const WHAT: &str = "writing zeroes";

/// How zeroes came to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// The device made them (`FALLOC_FL_WRITE_ZEROES`).
    WriteZeroes,
    /// They were written with direct I/O.
    DirectWrites,
    /// They were written through the page cache.
    CachedWrites,
}

impl Method {
    /// In words.
    #[must_use]
    pub fn in_words(self) -> &'static str {
        match self {
            Self::WriteZeroes => "zeroed by the device",
            Self::DirectWrites => "direct writes",
            Self::CachedWrites => "writes through the page cache",
        }
    }
}

/// How a fill went.
#[derive(Debug)]
pub(super) struct Filled {
    pub(super) method: Method,
    pub(super) engine: Kind,
    pub(super) notices: Vec<String>,
}

/// Writes zeroes to all of `ranges` of `file`. They are durable once the file is synced.
pub(super) fn fill(
    file: &Access,
    ranges: &[ByteRange],
    engine: Choice,
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<Filled> {
    // The disk may read one buffer for many writes at once, so that it stays in the cache of the CPU that copies it.
    let config = Config::new(QUEUE_DEPTH, 1, WRITE.to_usize()?);
    let mut engine = Engine::open(engine, &config, vec![file.target()?])?;
    progress.begin("writing", ranges.iter().map(|range| range.len).sum::<ByteSize>().bytes());
    let parts: Vec<Parts> = ranges.iter().map(|range| file.parts(*range)).collect();
    let bodies: Vec<ByteRange> = parts.iter().map(|parts| parts.body).collect();
    let method = if zero_by_device(&mut engine, &bodies, progress, cancel)? {
        Method::WriteZeroes
    } else {
        write(&mut engine, &bodies, progress, cancel)?;
        if file.is_direct() { Method::DirectWrites } else { Method::CachedWrites }
    };
    for end in parts.iter().flat_map(|parts| [parts.head, parts.tail]) {
        write_end(file, end)?;
    }
    progress.end();
    Ok(Filled { method, engine: engine.kind(), notices: engine.notices().to_vec() })
}

/// Writes what direct I/O cannot reach.
fn write_end(file: &Access, range: ByteRange) -> Result<()> {
    let zeroes = vec![0; range.len.to_usize()?];
    file.cached().write_all_at(&zeroes, range.start.bytes()).context(|| {
        format!("{}: write of {} bytes at offset {} failed", file.name().display(), zeroes.len(), range.start)
    })
}

/// Lets the file system have the device make the zeroes, or returns false where it does not do that.
fn zero_by_device(
    engine: &mut Engine,
    ranges: &[ByteRange],
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<bool> {
    let mut requests = ranges.iter().flat_map(|range| range.pieces(ZERO_REQUEST)).map(|piece| {
        let (offset, len) = (piece.start.bytes(), piece.len.bytes());
        (Op::Fallocate { file: 0, mode: Reserve::WriteZeroes, offset, len }, len)
    });
    let Some(first) = requests.next() else { return Ok(false) };
    match engine.run(WHAT, std::iter::once(first), progress, cancel) {
        Ok(()) => engine.run(WHAT, requests, progress, cancel).map(|()| true),
        Err(error) if error.kind() == ErrorKind::Interrupted => Err(error),
        // Kernel, file system or device cannot. If something worse is amiss, the writes will tell.
        Err(_) => Ok(false),
    }
}

fn write(engine: &mut Engine, ranges: &[ByteRange], progress: &mut dyn Progress, cancel: &Cancel) -> Result<()> {
    let writes = ranges.iter().flat_map(|range| range.pieces(WRITE)).map(|piece| {
        // At most WRITE.
        let len = u32::try_from(piece.len.bytes()).unwrap_or(u32::MAX);
        (Op::Write { file: 0, offset: piece.start.bytes(), span: Span::whole(0, len) }, piece.len.bytes())
    });
    engine.run(WHAT, writes, progress, cancel)
}
