//! Giving a file its space: reserved, and then written.

use std::fmt;
use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use serde::Serialize;

use super::access::Access;
use super::fill::{Filled, Method, fill};
use super::{Cost, Prealloc};
use crate::cancel::Cancel;
use crate::engine::{Choice, Kind};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::extents::{Extents, State, Summary};
use crate::ui::Progress;
use crate::units::{ByteOffset, ByteRange};

/// How an image, or the new part of one, got its space.
#[derive(Debug, Clone, Serialize)]
pub struct Allocation {
    /// How its space was set aside.
    pub prealloc: Prealloc,
    /// How zeroes came to the disk, if they did.
    pub method: Option<Method>,
    /// Which engine wrote, if one did.
    pub engine: Option<Kind>,
    /// What it took, until it was durable.
    pub cost: Cost,
    /// What the file system says of it.
    pub extents: Summary,
    /// What it costs later, if anything.
    pub price: Option<&'static str>,
    /// What could not be promised here.
    pub missing: Vec<String>,
    /// What a person should know about how it was done.
    pub notices: Vec<String>,
}

impl fmt::Display for Allocation {
    /// How it was set aside and, if it was written, what that took.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.method.zip(self.engine) {
            Some((method, engine)) => write!(f, "{} {}, {}, {engine}", self.prealloc, self.cost, method.in_words()),
            None => self.prealloc.fmt(f),
        }
    }
}

/// Makes `file` end with `range`, whose space is set aside as `prealloc` says. Durable once the file is synced.
///
/// What lies before `fresh` may hold data: only what was never written is filled there.
pub(super) fn allocate(
    file: &Access,
    range: ByteRange,
    fresh: ByteOffset,
    prealloc: Prealloc,
    engine: Choice,
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<Option<Filled>> {
    match prealloc {
        Prealloc::Sparse => extend(file, range.end()).map(|()| None),
        Prealloc::Reserved => match reserve(file, range) {
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                Err(error.with_hint("this file system reserves no space: use --prealloc written, or sparse"))
            }
            outcome => outcome.map(|()| None),
        },
        Prealloc::Written => {
            // All the space at once, before the first write: in few extents, and if there is not enough, nothing was done in
            // vain. The file has its size before it has its content, so that the writes need not extend it one by one.
            progress.begin("reserving", range.len.bytes());
            match reserve(file, range) {
                Err(error) if error.kind() == ErrorKind::Unsupported => extend(file, range.end())?,
                outcome => outcome?,
            }
            progress.end();
            cancel.check("reserving space")?;
            fill(file, &to_be_filled(file, range, fresh)?, engine, progress, cancel).map(Some)
        }
    }
}

fn to_be_filled(file: &Access, range: ByteRange, fresh: ByteOffset) -> Result<Vec<ByteRange>> {
    let old = ByteRange { start: range.start, len: fresh - range.start };
    let mut ranges = Vec::new();
    for extent in Extents::of(file.cached(), file.name(), old)? {
        let extent = extent?;
        if matches!(extent.state, State::Hole | State::Unwritten) {
            ranges.push(extent.range);
        }
    }
    ranges.push(ByteRange { start: fresh, len: range.end() - fresh });
    Ok(ranges)
}

fn extend(file: &Access, end: ByteOffset) -> Result<()> {
    match file.cached().set_len(end.bytes()) {
        Err(error) if error.raw_os_error() == Some(libc::EFBIG) => Err(too_large(file.name(), end)),
        outcome => outcome.context(|| format!("cannot make {} {} bytes large", file.name().display(), end)),
    }
}

fn reserve(file: &Access, range: ByteRange) -> Result<()> {
    let number = |bytes: u64| libc::off_t::try_from(bytes).map_err(|_| too_large(file.name(), range.end()));
    let (start, len) = (number(range.start.bytes())?, number(range.len.bytes())?);
    loop {
        match fallocate(file.cached().as_fd(), FallocateFlags::empty(), start, len) {
            Err(Errno::EINTR) => {}
            Err(Errno::EFBIG) => return Err(too_large(file.name(), range.end())),
            outcome => {
                return outcome.context(|| format!("cannot reserve {} for {}", range.len, file.name().display()));
            }
        }
    }
}

fn too_large(name: &Path, end: ByteOffset) -> Error {
    Error::invalid(format!("{} cannot be {} bytes: its file system has no files so large", name.display(), end))
        .with_hint("choose a smaller size, or another file system")
}

/// Checks that what was written *is* written, as the file system has it. Returns what it cannot say, if anything.
pub(super) fn prove(extents: &Summary, name: &Path) -> Result<Option<&'static str>> {
    let gap = extents.gap();
    if extents.is_all_written() || (gap.is_some() && extents.not_on_disk().bytes() == 0) {
        return Ok(gap);
    }
    let message = format!("{} was written, but its file system has {extents}", name.display());
    Err(Error::new(ErrorKind::VerifyFailed, message)
        .with_hint("a file system that compresses or copies on write keeps no block in place: use ext4 or xfs"))
}
