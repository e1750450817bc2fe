//! What state the blocks of a file are in, as the file system tells it.
//!
//! A disk image is only as honest as its extents: a *hole* has no block at all, an *unwritten* extent has blocks whose
//! content the file system never looks at. Reading either is no disk read, and the first write to either costs a change
//! of metadata. `FIEMAP` (linux/fiemap.h) tells them apart; file systems without it (tmpfs, most network mounts) at best
//! tell holes from data, and [`Summary::gap`] says what is then not known.

use std::fmt;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};
use crate::units::{ByteOffset, ByteRange, ByteSize};

/// How many extents are asked for at once.
const PAGE: usize = 256;

// From linux/fiemap.h.
const FIEMAP_FLAG_SYNC: u32 = 0x1;
const FIEMAP_EXTENT_LAST: u32 = 0x1;
const FIEMAP_EXTENT_UNKNOWN: u32 = 0x2;
const FIEMAP_EXTENT_DELALLOC: u32 = 0x4;
const FIEMAP_EXTENT_ENCODED: u32 = 0x8;
const FIEMAP_EXTENT_UNWRITTEN: u32 = 0x800;
const FIEMAP_EXTENT_SHARED: u32 = 0x2000;

/// The head of `struct fiemap`; its extents follow it in memory.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct FiemapHead {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
}

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct FiemapExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

impl FiemapExtent {
    fn end(&self) -> u64 {
        self.logical.saturating_add(self.length)
    }
}

#[repr(C)]
#[derive(Debug)]
struct FiemapPage {
    head: FiemapHead,
    extents: [FiemapExtent; PAGE],
}

mod ioctl {
    nix::ioctl_readwrite!(
        /// `FS_IOC_FIEMAP` of linux/fs.h.
        fiemap, b'f', 11, super::FiemapHead
    );
}

/// What the file system has for a range of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Nothing: reads are zeroes from nowhere, a write has to allocate.
    Hole,
    /// Blocks that are reserved and never written: reads are zeroes from nowhere, a write has to convert the extent.
    Unwritten,
    /// Blocks with content, this file's alone. Only here are reads and writes those of the disk.
    Written,
    /// Blocks with content that another file uses too (a reflink, a snapshot): a write has to allocate.
    Shared,
    /// Content in memory for which no block is chosen yet.
    Delalloc,
    /// The file system does not say, or what it keeps is not the plain content (compressed, encrypted).
    Unknown,
}

impl State {
    fn of_flags(flags: u32) -> Self {
        // Delayed allocation comes with UNKNOWN (its place), so the more telling flag is looked at first.
        if flags & FIEMAP_EXTENT_DELALLOC != 0 {
            Self::Delalloc
        } else if flags & FIEMAP_EXTENT_UNWRITTEN != 0 {
            Self::Unwritten
        } else if flags & (FIEMAP_EXTENT_UNKNOWN | FIEMAP_EXTENT_ENCODED) != 0 {
            Self::Unknown
        } else if flags & FIEMAP_EXTENT_SHARED != 0 {
            Self::Shared
        } else {
            Self::Written
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Hole => "hole",
            Self::Unwritten => "unwritten",
            Self::Written => "written",
            Self::Shared => "shared",
            Self::Delalloc => "delalloc",
            Self::Unknown => "unknown",
        })
    }
}

/// A range of a file whose blocks are in one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where in the file.
    pub range: ByteRange,
    /// In what state.
    pub state: State,
}

/// Who was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// `FIEMAP`: every state is known.
    Fiemap,
    /// `SEEK_HOLE` and `SEEK_DATA`, because the file system has no `FIEMAP`: holes are known, the rest is not.
    SeekHole,
}

/// How many bytes of a file, or of a part of it, are in which state. In JSON all are bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Who said so.
    pub source: Source,
    /// How many extents the file system has there; holes are none.
    pub extents: u64,
    /// Bytes in [`State::Hole`].
    pub hole: ByteSize,
    /// Bytes in [`State::Unwritten`].
    pub unwritten: ByteSize,
    /// Bytes in [`State::Written`].
    pub written: ByteSize,
    /// Bytes in [`State::Shared`].
    pub shared: ByteSize,
    /// Bytes in [`State::Delalloc`].
    pub delalloc: ByteSize,
    /// Bytes in [`State::Unknown`].
    pub unknown: ByteSize,
}

impl Summary {
    fn new(source: Source) -> Self {
        Self {
            source,
            extents: 0,
            hole: ByteSize::ZERO,
            unwritten: ByteSize::ZERO,
            written: ByteSize::ZERO,
            shared: ByteSize::ZERO,
            delalloc: ByteSize::ZERO,
            unknown: ByteSize::ZERO,
        }
    }

    fn add(&mut self, extent: Extent) {
        if extent.state != State::Hole {
            self.extents += 1;
        }
        let bytes = match extent.state {
            State::Hole => &mut self.hole,
            State::Unwritten => &mut self.unwritten,
            State::Written => &mut self.written,
            State::Shared => &mut self.shared,
            State::Delalloc => &mut self.delalloc,
            State::Unknown => &mut self.unknown,
        };
        *bytes = *bytes + extent.range.len;
    }

    /// How many bytes this speaks of.
    #[must_use]
    pub fn size(&self) -> ByteSize {
        self.states().into_iter().map(|(_, bytes)| bytes).sum()
    }

    /// Every state with its bytes.
    #[must_use]
    pub fn states(&self) -> [(State, ByteSize); 6] {
        [
            (State::Hole, self.hole),
            (State::Unwritten, self.unwritten),
            (State::Written, self.written),
            (State::Shared, self.shared),
            (State::Delalloc, self.delalloc),
            (State::Unknown, self.unknown),
        ]
    }

    /// Whether it is proven that every byte has a written block of its own, so that reads and writes are the disk's.
    #[must_use]
    pub fn is_all_written(&self) -> bool {
        self.written == self.size()
    }

    /// Bytes that a read gets from nowhere: no disk is asked for them.
    #[must_use]
    pub fn not_on_disk(&self) -> ByteSize {
        self.hole + self.unwritten
    }

    /// What this cannot say, where that is something.
    #[must_use]
    pub fn gap(&self) -> Option<&'static str> {
        match self.source {
            Source::Fiemap if self.unknown == ByteSize::ZERO => None,
            Source::Fiemap => Some("the file system does not say of every extent what state it is in"),
            Source::SeekHole => Some("the file system has no FIEMAP: written and reserved blocks cannot be told apart"),
        }
    }
}

impl fmt::Display for Summary {
    /// `20 GiB written in 161 extents`, with every state that occurs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let present: Vec<String> = self
            .states()
            .into_iter()
            .filter(|(_, bytes)| *bytes != ByteSize::ZERO)
            .map(|(state, bytes)| format!("{bytes} {state}"))
            .collect();
        let text = if present.is_empty() { "nothing".to_owned() } else { present.join(", ") };
        let plural = if self.extents == 1 { "" } else { "s" };
        f.pad(&format!("{text} in {} extent{plural}", self.extents))
    }
}

/// The extents of a range of a file, in order and without gaps: holes are extents too.
#[derive(Debug)]
pub struct Extents<'a> {
    file: &'a File,
    path: &'a Path,
    /// Where the next extent starts.
    next: ByteOffset,
    end: ByteOffset,
    source: Source,
    page: Box<FiemapPage>,
    /// The next unused extent of the page.
    cursor: usize,
    /// The page is the last one.
    last: bool,
}

impl<'a> Extents<'a> {
    /// The extents of `range` of `file`, which was opened as `path`. What is still in the page cache is written out first.
    ///
    /// # Errors
    /// When `file` is no regular file (a block device has no extents; the file behind a loop device does), or cannot be asked.
    pub fn of(file: &'a File, path: &'a Path, range: ByteRange) -> Result<Self> {
        let kind = file.metadata().context(|| format!("cannot look at {}", path.display()))?.file_type();
        if !kind.is_file() {
            let what = if kind.is_block_device() { "a block device" } else { "no regular file" };
            return Err(Error::invalid(format!("{} is {what}: only regular files have extents", path.display())));
        }
        let page = Box::new(FiemapPage { head: FiemapHead::default(), extents: [FiemapExtent::default(); PAGE] });
        let mut extents = Self {
            file,
            path,
            next: range.start,
            end: range.end(),
            source: Source::Fiemap,
            page,
            cursor: 0,
            last: false,
        };
        match extents.turn_page() {
            Ok(()) => {}
            // ENOTTY is how FUSE and old kernels say it.
            Err(Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::ENOSYS) => extents.source = Source::SeekHole,
            Err(errno) => return Err(extents.failure(errno)),
        }
        Ok(extents)
    }

    /// Who is asked.
    #[must_use]
    pub fn source(&self) -> Source {
        self.source
    }

    fn failure(&self, errno: Errno) -> Error {
        Error::io(format!("cannot ask for the extents of {} from offset {}", self.path.display(), self.next), errno)
    }

    fn turn_page(&mut self) -> Result<(), Errno> {
        self.page.head = FiemapHead {
            start: self.next.bytes(),
            // Of no bytes at all the kernel refuses to speak.
            length: (self.end - self.next).bytes().max(1),
            flags: FIEMAP_FLAG_SYNC,
            extent_count: PAGE as u32,
            ..FiemapHead::default()
        };
        // SAFETY: the kernel writes at most `extent_count` extents behind the head, and the page, of which the pointer may
        // reach every byte, has room for so many.
        unsafe { ioctl::fiemap(self.file.as_raw_fd(), (&raw mut *self.page).cast()) }?;
        self.cursor = 0;
        // A page that leads nowhere would be the file system's mistake, and is the last one as well.
        self.last = self
            .mapped()
            .last()
            .is_none_or(|found| found.flags & FIEMAP_EXTENT_LAST != 0 || found.end() <= self.next.bytes());
        Ok(())
    }

    fn mapped(&self) -> &[FiemapExtent] {
        &self.page.extents[..(self.page.head.mapped_extents as usize).min(PAGE)]
    }

    /// The next extent as FIEMAP knows it.
    fn next_mapped(&mut self) -> Result<Extent, Errno> {
        loop {
            if self.cursor == self.mapped().len() && !self.last {
                self.turn_page()?;
            }
            let Some(found) = self.mapped().get(self.cursor).copied() else {
                return Ok(self.until(self.end.bytes(), State::Hole));
            };
            if found.logical > self.next.bytes() {
                return Ok(self.until(found.logical, State::Hole));
            }
            self.cursor += 1;
            if found.end() > self.next.bytes() {
                return Ok(self.until(found.end(), State::of_flags(found.flags)));
            }
        }
    }

    /// The next stretch of data or hole. Moves the file's position, which nothing here reads from.
    fn next_sought(&mut self) -> Result<Extent, Errno> {
        match self.seek(libc::SEEK_DATA) {
            Ok(data) if data > self.next.bytes() => Ok(self.until(data, State::Hole)),
            Ok(_) => {
                let hole = self.seek(libc::SEEK_HOLE)?;
                Ok(self.until(hole, State::Unknown))
            }
            // No data from here on.
            Err(Errno::ENXIO) => Ok(self.until(self.end.bytes(), State::Hole)),
            // Not even holes are known.
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(self.until(self.end.bytes(), State::Unknown)),
            Err(errno) => Err(errno),
        }
    }

    fn seek(&self, whence: libc::c_int) -> Result<u64, Errno> {
        let from = libc::off_t::try_from(self.next.bytes()).map_err(|_| Errno::EOVERFLOW)?;
        // SAFETY: takes no pointer; a wrong descriptor is an error.
        let found = Errno::result(unsafe { libc::lseek(self.file.as_raw_fd(), from, whence) })?;
        u64::try_from(found).map_err(|_| Errno::EOVERFLOW)
    }

    /// The extent from where we are to `end`, cut to the range asked for.
    fn until(&self, end: u64, state: State) -> Extent {
        let end = ByteOffset::new(end.min(self.end.bytes()));
        Extent { range: ByteRange { start: self.next, len: end - self.next }, state }
    }
}

impl Iterator for Extents<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Result<Extent>> {
        if self.next >= self.end {
            return None;
        }
        let found = match self.source {
            Source::Fiemap => self.next_mapped(),
            Source::SeekHole => self.next_sought(),
        };
        match found {
            Ok(extent) => {
                self.next = extent.range.end();
                Some(Ok(extent))
            }
            Err(errno) => {
                let error = self.failure(errno);
                self.next = self.end;
                Some(Err(error))
            }
        }
    }
}

/// How many bytes of the whole of `file`, which was opened as `path`, are in which state.
///
/// # Errors
/// As [`Extents::of`].
pub fn summarize(file: &File, path: &Path) -> Result<Summary> {
    let size = file.metadata().context(|| format!("cannot look at {}", path.display()))?.len();
    summarize_range(file, path, ByteRange::from_start(ByteSize::new(size)))
}

/// How many bytes of `range` of `file`, which was opened as `path`, are in which state.
///
/// # Errors
/// As [`Extents::of`].
pub fn summarize_range(file: &File, path: &Path, range: ByteRange) -> Result<Summary> {
    let mut extents = Extents::of(file, path, range)?;
    let mut summary = Summary::new(extents.source());
    extents.try_for_each(|extent| {
        summary.add(extent?);
        Ok(())
    })?;
    Ok(summary)
}

/// As [`summarize`], for a file that is not open.
///
/// # Errors
/// As [`Extents::of`], and when it cannot be opened.
pub fn summarize_path(path: &Path) -> Result<Summary> {
    let file = File::open(path).context(|| format!("cannot open {}", path.display()))?;
    summarize(&file, path)
}
