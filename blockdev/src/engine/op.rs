//! The words of the engine: what can be asked of it, of which file, and what comes back.

use std::fmt;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Most operations in flight at once.
pub const QUEUE_DEPTH_MAX: u32 = 4096;

/// Which backend to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    /// io_uring where a ring sets up and completes an I/O; else asynchronous I/O past the page cache, or threads, with a notice.
    #[default]
    Auto,
    /// io_uring, or an error.
    Uring,
    /// io_uring with a kernel thread that polls for submissions, or an error.
    UringSqpoll,
    /// Linux's older asynchronous I/O (io_submit), or an error. Docker's default seccomp profile allows it, and not io_uring.
    Aio,
    /// pread and pwrite on a pool of threads.
    Threads,
}

impl Choice {
    /// The names that [`Choice::from_str`] takes.
    pub const NAMES: [&str; 5] = ["auto", "uring", "uring-sqpoll", "aio", "threads"];
}

impl FromStr for Choice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "uring" => Ok(Self::Uring),
            "uring-sqpoll" => Ok(Self::UringSqpoll),
            "aio" => Ok(Self::Aio),
            "threads" => Ok(Self::Threads),
            _ => {
                Err(Error::invalid(format!("{text:?} is no engine"))
                    .with_hint("auto, uring, uring-sqpoll, aio or threads"))
            }
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::UringSqpoll => "uring-sqpoll",
            Self::Aio => "aio",
            Self::Threads => "threads",
        })
    }
}

/// Queue and buffers of an [`Engine`](super::Engine).
#[derive(Debug, Clone)]
pub struct Config {
    /// Most operations in flight at once, 1 to [`QUEUE_DEPTH_MAX`].
    pub queue_depth: u32,
    /// How many buffers, at least 1.
    pub buffer_count: u32,
    /// Bytes in each buffer; rounded up to a multiple of 4096, so that every buffer is aligned for O_DIRECT.
    pub buffer_size: usize,
}

impl Config {
    /// A queue of `queue_depth`, over `buffer_count` buffers of `buffer_size` bytes each.
    #[must_use]
    pub fn new(queue_depth: u32, buffer_count: u32, buffer_size: usize) -> Self {
        Self { queue_depth, buffer_count, buffer_size }
    }
}

/// An open file or device, with the name that errors call it by.
#[derive(Debug)]
pub struct Target {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) block_device: bool,
    pub(super) inline_writes: bool,
}

impl Target {
    /// `file`, which was opened as `path`.
    pub fn new(file: File, path: impl AsRef<Path>) -> Self {
        let block_device = file.metadata().is_ok_and(|metadata| metadata.file_type().is_block_device());
        Self { file, path: path.as_ref().to_owned(), block_device, inline_writes: false }
    }

    /// The same, but io_uring leaves its writes to the thread that submits them, which makes them there and then. Into the
    /// page cache that is the quicker way: not every file system lets a ring write there (ext4 does not), and handing a write
    /// of 4 KiB to another thread of the kernel costs more than the write. Where the page cache is full, `submit` waits.
    #[must_use]
    pub fn with_inline_writes(mut self) -> Self {
        self.inline_writes = true;
        self
    }

    /// What it was opened as.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a block device.
    #[must_use]
    pub fn is_block_device(&self) -> bool {
        self.block_device
    }

    /// The open file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// A part of one of the engine's buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Which buffer, from 0.
    pub buffer: u32,
    /// Its first byte in that buffer.
    pub start: u32,
    /// How many bytes.
    pub len: u32,
}

impl Span {
    /// The first `len` bytes of `buffer`.
    #[must_use]
    pub const fn whole(buffer: u32, len: u32) -> Self {
        Self { buffer, start: 0, len }
    }
}

/// Memory that is not the engine's: of the caller, or shared with another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lent {
    pub(super) start: NonNull<u8>,
    pub(super) len: u32,
}

impl Lent {
    /// The `len` bytes from `start` on, at least one. With O_DIRECT, `start` is aligned as the file asks for.
    ///
    /// # Safety
    /// The memory stays valid until every operation on it is complete or the engine is dropped, which waits for that. Until
    /// then nobody else writes it; and nobody else reads it, where it is being read into.
    #[must_use]
    pub unsafe fn new(start: NonNull<u8>, len: u32) -> Self {
        Self { start, len }
    }

    /// Its first byte.
    #[must_use]
    pub fn start(self) -> NonNull<u8> {
        self.start
    }

    /// How many bytes it is.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "it never is")]
    pub fn len(self) -> u32 {
        self.len
    }

    /// The `len` bytes of it from `from` on.
    ///
    /// # Panics
    /// When it has not so many.
    #[must_use]
    pub fn part(self, from: u32, len: u32) -> Self {
        assert!(u64::from(from) + u64::from(len) <= u64::from(self.len), "{len} bytes from {from} of {}", self.len);
        // SAFETY: inside the memory, as was just seen.
        Self { start: unsafe { self.start.add(from as usize) }, len }
    }
}

/// How to reserve space, as fallocate(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserve {
    /// Allocate, and extend the file where the range ends beyond it.
    Extend,
    /// Allocate and leave the size alone.
    KeepSize,
    /// Make the range zeroes that are *written* (`FALLOC_FL_WRITE_ZEROES`, Linux 6.17): the file system asks the device
    /// to zero it and marks the extents written.
    WriteZeroes,
}

impl Reserve {
    /// The mode of fallocate(2).
    pub(super) fn flags(self) -> i32 {
        /// From linux/falloc.h, Linux 6.17; newer than the libc crate.
        const FALLOC_FL_WRITE_ZEROES: i32 = 0x80;
        match self {
            Self::Extend => 0,
            Self::KeepSize => libc::FALLOC_FL_KEEP_SIZE,
            Self::WriteZeroes => FALLOC_FL_WRITE_ZEROES,
        }
    }
}

/// One operation. Offsets are bytes from the start of the file; with O_DIRECT, offsets and lengths are multiples of what
/// the file asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Fill the span from the disk. The end of the file inside the span is an error.
    Read {
        /// Index into the engine's targets.
        file: u32,
        /// Where on the disk.
        offset: u64,
        /// Where in memory.
        span: Span,
    },
    /// Write the span to the disk.
    Write {
        /// Index into the engine's targets.
        file: u32,
        /// Where on the disk.
        offset: u64,
        /// Where in memory.
        span: Span,
    },
    /// Fill memory that is not the engine's from the disk, as [`Op::Read`].
    ReadLent {
        /// Index into the engine's targets.
        file: u32,
        /// Where on the disk.
        offset: u64,
        /// Where in memory.
        memory: Lent,
    },
    /// Write memory that is not the engine's to the disk.
    WriteLent {
        /// Index into the engine's targets.
        file: u32,
        /// Where on the disk.
        offset: u64,
        /// Where in memory.
        memory: Lent,
    },
    /// Make what completed before durable, as fdatasync(2).
    Fdatasync {
        /// Index into the engine's targets.
        file: u32,
    },
    /// Reserve space in a file.
    Fallocate {
        /// Index into the engine's targets.
        file: u32,
        /// In which way.
        mode: Reserve,
        /// Where it starts.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// Say that a range is no longer needed: TRIM on a block device, a hole in a file.
    Discard {
        /// Index into the engine's targets.
        file: u32,
        /// Where it starts.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
}

impl Op {
    /// Index into the engine's targets.
    pub(super) fn file(self) -> u32 {
        match self {
            Self::Read { file, .. }
            | Self::Write { file, .. }
            | Self::ReadLent { file, .. }
            | Self::WriteLent { file, .. }
            | Self::Fdatasync { file }
            | Self::Fallocate { file, .. }
            | Self::Discard { file, .. } => file,
        }
    }

    /// Where on the disk it moves how many bytes, if it moves any.
    pub(super) fn moves(self) -> Option<(u64, u32)> {
        match self {
            Self::Read { offset, span, .. } | Self::Write { offset, span, .. } => Some((offset, span.len)),
            Self::ReadLent { offset, memory, .. } | Self::WriteLent { offset, memory, .. } => {
                Some((offset, memory.len))
            }
            Self::Fdatasync { .. } | Self::Fallocate { .. } | Self::Discard { .. } => None,
        }
    }

    /// What it is called in an error.
    pub(super) fn verb(self) -> &'static str {
        match self {
            Self::Read { .. } | Self::ReadLent { .. } => "read",
            Self::Write { .. } | Self::WriteLent { .. } => "write",
            Self::Fdatasync { .. } => "fdatasync",
            Self::Fallocate { .. } => "fallocate",
            Self::Discard { .. } => "discard",
        }
    }
}

/// Most descriptors that an engine watches at once.
pub const WATCHED_MAX: usize = 4;

/// A descriptor that is watched while I/O is waited for: a socket, an event counter.
#[derive(Debug, Clone, Copy)]
pub struct Watched {
    pub(super) fd: RawFd,
    pub(super) events: i16,
    pub(super) ready: i16,
}

/// What a descriptor is watched for. An error, and the end of its other side, always count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// There is something to read.
    Readable,
    /// There is room to write.
    Writable,
    /// Either.
    Both,
}

impl Watched {
    /// `fd`, watched for what `interest` says.
    #[must_use]
    pub fn new(fd: BorrowedFd<'_>, interest: Interest) -> Self {
        let events = match interest {
            Interest::Readable => libc::POLLIN,
            Interest::Writable => libc::POLLOUT,
            Interest::Both => libc::POLLIN | libc::POLLOUT,
        };
        Self { fd: fd.as_raw_fd(), events, ready: 0 }
    }

    /// Whether something happened to it, an error or its end included.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.ready != 0
    }
}

/// A finished operation.
#[derive(Debug)]
pub struct Completion {
    /// What it was submitted with.
    pub tag: u64,
    /// Whether all of it was done. The error names the file, the offset and the length.
    pub result: Result<()>,
}

/// Which backend an [`Engine`](super::Engine) ended up with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// io_uring.
    Uring,
    /// io_uring with a polling kernel thread.
    UringSqpoll,
    /// Linux's older asynchronous I/O.
    Aio,
    /// A pool of threads.
    Threads,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Uring => "uring",
            Self::UringSqpoll => "uring-sqpoll",
            Self::Aio => "aio",
            Self::Threads => "threads",
        })
    }
}
