//! Many block I/Os at once, through io_uring or, where that is forbidden, a pool of threads.
//!
//! [`Engine`] owns the buffers, bounds the queue depth, continues what the kernel cut short and says which block
//! failed; a backend only carries single system calls. So both backends behave alike, down to the errors.
//!
//! ```
//! use blockdev::engine::{Choice, Config, Engine, Op, Span, Target};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("disk");
//! let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path)?;
//! let mut engine = Engine::open(Choice::Auto, &Config::new(8, 2, 4096), vec![Target::new(file, &path)])?;
//! engine.buffer_mut(0).fill(7);
//! engine.submit(1, Op::Write { file: 0, offset: 4096, span: Span::whole(0, 4096) })?;
//! let mut done = Vec::new();
//! engine.complete(1, None, &mut done)?;
//! assert!(done[0].result.is_ok());
//! # Ok(()) }
//! ```

mod probe;
mod threads;
mod uring;

use std::fmt;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::buffer::Memory;
use crate::error::{Error, ErrorKind, Result};

pub use probe::uring_works;

/// Most operations in flight at once.
pub const QUEUE_DEPTH_MAX: u32 = 4096;

/// How often in a row an operation that makes no progress (EINTR, EAGAIN) is tried again.
const RETRIES_MAX: u32 = 1000;

/// Which backend to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    /// io_uring where a ring sets up and completes an I/O, else threads, with a notice.
    #[default]
    Auto,
    /// io_uring, or an error.
    Uring,
    /// io_uring with a kernel thread that polls for submissions, or an error.
    UringSqpoll,
    /// pread and pwrite on a pool of threads.
    Threads,
}

impl Choice {
    /// The names that [`Choice::from_str`] takes.
    pub const NAMES: [&str; 4] = ["auto", "uring", "uring-sqpoll", "threads"];
}

impl FromStr for Choice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "uring" => Ok(Self::Uring),
            "uring-sqpoll" => Ok(Self::UringSqpoll),
            "threads" => Ok(Self::Threads),
            _ => {
                Err(Error::invalid(format!("{text:?} is no engine")).with_hint("auto, uring, uring-sqpoll or threads"))
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
            Self::Threads => "threads",
        })
    }
}

/// Queue and buffers of an [`Engine`].
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
    file: File,
    path: PathBuf,
    block_device: bool,
}

impl Target {
    /// `file`, which was opened as `path`.
    pub fn new(file: File, path: impl AsRef<Path>) -> Self {
        let block_device = file.metadata().is_ok_and(|metadata| metadata.file_type().is_block_device());
        Self { file, path: path.as_ref().to_owned(), block_device }
    }

    /// What it was opened as.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
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
    fn file(self) -> u32 {
        match self {
            Self::Read { file, .. }
            | Self::Write { file, .. }
            | Self::Fdatasync { file }
            | Self::Fallocate { file, .. }
            | Self::Discard { file, .. } => file,
        }
    }

    fn verb(self) -> &'static str {
        match self {
            Self::Read { .. } => "read",
            Self::Write { .. } => "write",
            Self::Fdatasync { .. } => "fdatasync",
            Self::Fallocate { .. } => "fallocate",
            Self::Discard { .. } => "discard",
        }
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

/// One system call on its way: what a backend carries. Pointers stay valid until it is reported done.
#[derive(Debug, Clone, Copy)]
enum Call {
    Read { file: u32, fd: RawFd, at: NonNull<u8>, len: u32, offset: u64 },
    Write { file: u32, fd: RawFd, at: NonNull<u8>, len: u32, offset: u64 },
    Fdatasync { file: u32, fd: RawFd },
    Fallocate { file: u32, fd: RawFd, mode: i32, offset: u64, len: u64 },
    BlockDiscard { file: u32, fd: RawFd, offset: u64, len: u64 },
}

/// A finished system call: the slot it was pushed with, and its result as io_uring gives it (a count, or `-errno`).
#[derive(Debug, Clone, Copy)]
struct Done {
    slot: u32,
    result: i32,
}

/// Carries system calls. The engine keeps at most `queue_depth` of them pushed and not yet done.
///
/// # Safety
/// After `push` the memory of a `Read` or `Write` belongs to the backend until `wait` reports that slot; a backend that is
/// dropped must first be done with every call.
unsafe trait Backend: fmt::Debug {
    /// Takes one call; nothing need happen before `wait`.
    fn push(&mut self, slot: u32, call: Call);

    /// Starts everything pushed, waits until `min` calls are done, the time is up or a signal came, and appends what is done.
    fn wait(&mut self, min: usize, timeout: Option<Duration>, done: &mut Vec<Done>) -> io::Result<()>;
}

/// Which backend an [`Engine`] ended up with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// io_uring.
    Uring,
    /// io_uring with a polling kernel thread.
    UringSqpoll,
    /// A pool of threads.
    Threads,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Uring => "uring",
            Self::UringSqpoll => "uring-sqpoll",
            Self::Threads => "threads",
        })
    }
}

#[derive(Debug, Clone, Copy)]
struct InFlight {
    tag: u64,
    op: Op,
    done: u32,
    retries: u32,
}

/// Who is using a buffer: the disk may read one for many writes at once, but writes it for one read only.
#[derive(Debug, Clone, Copy, Default)]
struct Loans {
    writes: u32,
    read: bool,
}

/// A queue of block I/Os over a set of files, with its own buffers.
///
/// It stays on the thread that opened it (`SINGLE_ISSUER`); give each thread its own. Dropping it waits for what is in flight.
#[derive(Debug)]
pub struct Engine {
    // Declared first, dropped first: it is done with the memory and the files before they go.
    backend: Box<dyn Backend>,
    kind: Kind,
    notices: Vec<String>,
    targets: Vec<Target>,
    memory: Memory,
    buffer_size: usize,
    loans: Vec<Loans>,
    slots: Vec<Option<InFlight>>,
    free: Vec<u32>,
    done: Vec<Done>,
    _stays_on_its_thread: PhantomData<*const ()>,
}

impl Engine {
    /// An engine over `targets`, which operations name by their index.
    ///
    /// # Errors
    /// When `config` is out of range, memory is short, or the chosen backend does not work here.
    pub fn open(choice: Choice, config: &Config, targets: Vec<Target>) -> Result<Self> {
        if config.queue_depth == 0 || config.queue_depth > QUEUE_DEPTH_MAX {
            return Err(Error::invalid(format!("queue depth {} is not in 1..={QUEUE_DEPTH_MAX}", config.queue_depth)));
        }
        let buffer_size = config.buffer_size.next_multiple_of(4096);
        let memory = Memory::new(buffer_size.saturating_mul(config.buffer_count as usize))?;
        let fds: Vec<RawFd> = targets.iter().map(|target| target.file.as_raw_fd()).collect();
        let mut notices = Vec::new();
        let (backend, kind): (Box<dyn Backend>, Kind) = match choice {
            Choice::Threads => (Box::new(threads::Threads::new(config.queue_depth)?), Kind::Threads),
            Choice::Uring | Choice::UringSqpoll => {
                let sqpoll = choice == Choice::UringSqpoll;
                let ring = uring::Uring::new(config.queue_depth, sqpoll, &memory, &fds, &mut notices)
                    .map_err(|source| {
                        Error::io("cannot set up an io_uring", source)
                            .with_hint("use the engine `threads`, or allow io_uring (sysctl kernel.io_uring_disabled, the container's seccomp profile)")
                    })?;
                (Box::new(ring), if sqpoll { Kind::UringSqpoll } else { Kind::Uring })
            }
            Choice::Auto => match uring_works()
                .and_then(|()| uring::Uring::new(config.queue_depth, false, &memory, &fds, &mut notices))
            {
                Ok(ring) => (Box::new(ring), Kind::Uring),
                Err(why) => {
                    notices.push(format!("io_uring does not work here ({why}); using threads, which cost more CPU"));
                    (Box::new(threads::Threads::new(config.queue_depth)?), Kind::Threads)
                }
            },
        };
        Ok(Self::over(backend, kind, notices, config, buffer_size, memory, targets))
    }

    fn over(
        backend: Box<dyn Backend>,
        kind: Kind,
        notices: Vec<String>,
        config: &Config,
        buffer_size: usize,
        memory: Memory,
        targets: Vec<Target>,
    ) -> Self {
        Self {
            backend,
            kind,
            notices,
            targets,
            memory,
            buffer_size,
            loans: vec![Loans::default(); config.buffer_count as usize],
            slots: vec![None; config.queue_depth as usize],
            free: (0..config.queue_depth).rev().collect(),
            done: Vec::with_capacity(config.queue_depth as usize),
            _stays_on_its_thread: PhantomData,
        }
    }

    /// Which backend it runs on.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What a person should know about how it runs: a fallback, a registration that was refused.
    #[must_use]
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// The files it was opened over.
    #[must_use]
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// How many operations are submitted and not yet completed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// How many more operations may be submitted now.
    #[must_use]
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// A buffer's content.
    ///
    /// # Panics
    /// When there is no such buffer, or a read into it is in flight.
    #[must_use]
    pub fn buffer(&self, index: u32) -> &[u8] {
        assert!(!self.loans[index as usize].read, "buffer {index} is being read into");
        // SAFETY: the range lies in `memory`, is initialised, and nothing writes it: no read is in flight, and `&self`
        // keeps `buffer_mut` and `submit` away. Writes in flight only read it.
        unsafe { std::slice::from_raw_parts(self.buffer_start(index).as_ptr(), self.buffer_size) }
    }

    /// A buffer, to be filled.
    ///
    /// # Panics
    /// When there is no such buffer, or an operation on it is in flight.
    #[must_use]
    pub fn buffer_mut(&mut self, index: u32) -> &mut [u8] {
        let loans = self.loans[index as usize];
        assert!(!loans.read && loans.writes == 0, "buffer {index} is in flight");
        // SAFETY: the range lies in `memory` and is initialised; no operation on it is in flight, and `&mut self` keeps
        // every other access away.
        unsafe { std::slice::from_raw_parts_mut(self.buffer_start(index).as_ptr(), self.buffer_size) }
    }

    fn buffer_start(&self, index: u32) -> NonNull<u8> {
        // SAFETY: callers have indexed `loans` with it, which has one entry per buffer of `memory`.
        unsafe { self.memory.as_ptr().add(index as usize * self.buffer_size) }
    }

    /// Queues `op`; `tag` comes back with its completion. It has started when [`complete`](Self::complete) was
    /// called next, perhaps before.
    ///
    /// Many writes may share a buffer; a read has its buffer for itself.
    ///
    /// # Errors
    /// When the queue is full, or the operation names a file, buffer or span that is not there, or a buffer that is in use.
    pub fn submit(&mut self, tag: u64, op: Op) -> Result<()> {
        if self.free.is_empty() {
            return Err(Error::invalid(format!("{} operations are in flight, the queue is full", self.slots.len())));
        }
        if op.file() as usize >= self.targets.len() {
            return Err(Error::invalid(format!("file {} of {} asked for", op.file(), self.targets.len())));
        }
        if let Op::Read { span, .. } | Op::Write { span, .. } = op {
            let fits = span.len > 0
                && u64::from(span.start) + u64::from(span.len) <= self.buffer_size as u64
                && (span.buffer as usize) < self.loans.len();
            if !fits {
                return Err(Error::invalid(format!(
                    "{span:?} is not inside {} buffers of {} bytes",
                    self.loans.len(),
                    self.buffer_size
                )));
            }
            let loans = &mut self.loans[span.buffer as usize];
            let read = matches!(op, Op::Read { .. });
            if loans.read || (read && loans.writes > 0) {
                return Err(Error::invalid(format!("buffer {} is in flight", span.buffer)));
            }
            if read {
                loans.read = true;
            } else {
                loans.writes += 1;
            }
        }
        let Some(slot) = self.free.pop() else { unreachable!("checked above") };
        self.slots[slot as usize] = Some(InFlight { tag, op, done: 0, retries: 0 });
        self.push(slot, op, 0);
        Ok(())
    }

    /// Hands what is left of `op` after `done` bytes to the backend.
    fn push(&mut self, slot: u32, op: Op, done: u32) {
        let target = &self.targets[op.file() as usize];
        let (file, fd) = (op.file(), target.file.as_raw_fd());
        let at = |span: Span| {
            // SAFETY: `submit` checked that the span lies inside its buffer, and `done` is less than its length.
            unsafe { self.buffer_start(span.buffer).add((span.start + done) as usize) }
        };
        let call = match op {
            Op::Read { offset, span, .. } => {
                Call::Read { file, fd, at: at(span), len: span.len - done, offset: offset + u64::from(done) }
            }
            Op::Write { offset, span, .. } => {
                Call::Write { file, fd, at: at(span), len: span.len - done, offset: offset + u64::from(done) }
            }
            Op::Fdatasync { .. } => Call::Fdatasync { file, fd },
            Op::Fallocate { mode, offset, len, .. } => Call::Fallocate { file, fd, mode: flags_of(mode), offset, len },
            Op::Discard { offset, len, .. } if target.block_device => Call::BlockDiscard { file, fd, offset, len },
            Op::Discard { offset, len, .. } => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                Call::Fallocate { file, fd, mode, offset, len }
            }
        };
        self.backend.push(slot, call);
    }

    /// Starts everything submitted, waits until at least `min` operations are complete (no more than are in flight),
    /// and appends all that are complete to `out`. Returns early, perhaps with fewer, when `timeout` is up or a signal came.
    ///
    /// Returns how many it appended.
    ///
    /// # Errors
    /// When the backend itself fails. A failed operation is not an error here but in its [`Completion`].
    pub fn complete(&mut self, min: usize, timeout: Option<Duration>, out: &mut Vec<Completion>) -> Result<usize> {
        let before = out.len();
        let mut done = std::mem::take(&mut self.done);
        let outcome = loop {
            let wanted = min.saturating_sub(out.len() - before).min(self.in_flight());
            done.clear();
            if let Err(source) = self.backend.wait(wanted, timeout, &mut done) {
                break Err(Error::io(format!("cannot wait for I/O on the {} engine", self.kind), source));
            }
            // Only what made no visible progress for another reason than time or a signal is waited for again.
            let continued = done.iter().filter(|done| !self.finish(**done, out)).count();
            if continued == 0 || wanted == 0 || done.is_empty() {
                break Ok(());
            }
        };
        self.done = done;
        outcome.map(|()| out.len() - before)
    }

    /// Takes a finished call: appends its completion, or pushes the rest of it again and returns false.
    fn finish(&mut self, done: Done, out: &mut Vec<Completion>) -> bool {
        let Some(mut flight) = self.slots[done.slot as usize] else {
            unreachable!("the backend reports only slots that were pushed");
        };
        let wanted = match flight.op {
            Op::Read { span, .. } | Op::Write { span, .. } => Some(span.len - flight.done),
            _ => None,
        };
        let result = match (u32::try_from(done.result), wanted) {
            (Ok(got), Some(wanted)) if got > 0 && got < wanted => {
                flight.done += got;
                flight.retries = 0;
                self.slots[done.slot as usize] = Some(flight);
                self.push(done.slot, flight.op, flight.done);
                return false;
            }
            (Ok(0), Some(_)) => Err(self.failure(flight, None)),
            (Ok(_), _) => Ok(()),
            (Err(_), _) if matches!(-done.result, libc::EINTR | libc::EAGAIN) && flight.retries < RETRIES_MAX => {
                flight.retries += 1;
                self.slots[done.slot as usize] = Some(flight);
                self.push(done.slot, flight.op, flight.done);
                return false;
            }
            (Err(_), _) => Err(self.failure(flight, Some(-done.result))),
        };
        if let Op::Read { span, .. } | Op::Write { span, .. } = flight.op {
            let loans = &mut self.loans[span.buffer as usize];
            if matches!(flight.op, Op::Read { .. }) {
                loans.read = false;
            } else {
                loans.writes -= 1;
            }
        }
        self.slots[done.slot as usize] = None;
        self.free.push(done.slot);
        out.push(Completion { tag: flight.tag, result });
        true
    }

    /// The error of an operation: with an errno, or without one when the kernel did nothing and gave no reason.
    #[cold]
    fn failure(&self, flight: InFlight, errno: Option<i32>) -> Error {
        let path = self.targets[flight.op.file() as usize].path.display();
        let verb = flight.op.verb();
        let (offset, len) = match flight.op {
            Op::Read { offset, span, .. } | Op::Write { offset, span, .. } => {
                (offset + u64::from(flight.done), u64::from(span.len - flight.done))
            }
            Op::Fallocate { offset, len, .. } | Op::Discard { offset, len, .. } => (offset, len),
            Op::Fdatasync { .. } => (0, 0),
        };
        let what = match flight.op {
            Op::Fdatasync { .. } => format!("{path}: fdatasync failed"),
            _ => format!("{path}: {verb} of {len} bytes at offset {offset} failed"),
        };
        match (errno, flight.op) {
            (Some(errno), _) => Error::io(what, io::Error::from_raw_os_error(errno)),
            (None, Op::Read { .. }) => Error::new(ErrorKind::Io, what)
                .with_source(io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends there")),
            (None, _) => Error::new(ErrorKind::Io, what)
                .with_source(io::Error::new(io::ErrorKind::WriteZero, "nothing was written")),
        }
    }

    /// Waits until nothing is in flight, appending every completion to `out`.
    ///
    /// # Errors
    /// When the backend itself fails.
    pub fn drain(&mut self, out: &mut Vec<Completion>) -> Result<()> {
        while self.in_flight() > 0 {
            self.complete(self.in_flight(), None, out)?;
        }
        Ok(())
    }
}

fn flags_of(mode: Reserve) -> i32 {
    /// From linux/falloc.h, Linux 6.17; newer than the libc crate.
    const FALLOC_FL_WRITE_ZEROES: i32 = 0x80;
    match mode {
        Reserve::Extend => 0,
        Reserve::KeepSize => libc::FALLOC_FL_KEEP_SIZE,
        Reserve::WriteZeroes => FALLOC_FL_WRITE_ZEROES,
    }
}

#[cfg(test)]
mod fault_tests;
