//! Many block I/Os at once, through io_uring or, where that is forbidden, Linux's older asynchronous I/O or a pool of threads.
//!
//! [`Engine`] owns the buffers, bounds the queue depth, continues what the kernel cut short and says which block
//! failed; a backend only carries single system calls. So all backends behave alike, down to the errors.
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

mod aio;
mod op;
mod probe;
mod run;
mod threads;
mod uring;

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;
use std::time::Duration;

use nix::sys::time::TimeSpec;

use crate::buffer::Memory;
use crate::error::{Error, ErrorKind, Result};

pub use op::{
    Choice, Completion, Config, Interest, Kind, Lent, Op, QUEUE_DEPTH_MAX, Reserve, Span, Target, WATCHED_MAX, Watched,
};
pub use probe::uring_works;

/// How often in a row an operation that makes no progress (EINTR, EAGAIN) is tried again.
const RETRIES_MAX: u32 = 1000;

/// One system call on its way: what a backend carries. Pointers stay valid until it is reported done.
#[derive(Debug, Clone, Copy)]
enum Call {
    Read { file: u32, fd: RawFd, at: NonNull<u8>, len: u32, offset: u64, lent: bool },
    Write { file: u32, fd: RawFd, at: NonNull<u8>, len: u32, offset: u64, lent: bool, inline: bool },
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

    /// As [`wait`](Self::wait) for one call, but also until one of `watched` is ready, which it notes there.
    fn wait_or_ready(
        &mut self,
        watched: &mut [Watched],
        timeout: Option<Duration>,
        done: &mut Vec<Done>,
    ) -> io::Result<()>;
}

/// Waits until one of `watched`, or `more`, is ready, `timeout` is up or a signal came.
fn poll(watched: &mut [Watched], more: Option<Watched>, timeout: Option<Duration>) -> io::Result<()> {
    let mut fds = [libc::pollfd { fd: -1, events: 0, revents: 0 }; WATCHED_MAX + 1];
    for (fd, watched) in fds.iter_mut().zip(watched.iter().copied().chain(more)) {
        *fd = libc::pollfd { fd: watched.fd, events: watched.events, revents: 0 };
    }
    let timeout = timeout.map(TimeSpec::from_duration);
    let timeout = timeout.as_ref().map_or(std::ptr::null(), |timeout| std::ptr::from_ref(timeout.as_ref()));
    // SAFETY: the descriptors and the time are there; descriptors that are negative or closed are no harm.
    let ready = unsafe { libc::ppoll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout, std::ptr::null()) };
    let error = io::Error::last_os_error();
    for (watched, fd) in watched.iter_mut().zip(&fds) {
        watched.ready = if ready > 0 { fd.revents } else { 0 };
    }
    if ready < 0 && error.raw_os_error() != Some(libc::EINTR) { Err(error) } else { Ok(()) }
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
            Choice::Aio => {
                let aio = aio::Aio::new(config.queue_depth).map_err(|source| {
                    Error::io("cannot set up asynchronous I/O", source)
                        .with_hint("raise the limit (sysctl fs.aio-max-nr), or use the engine `threads`")
                })?;
                (Box::new(aio), Kind::Aio)
            }
            Choice::Threads => (Box::new(threads::Threads::new(config.queue_depth)?), Kind::Threads),
            Choice::Uring | Choice::UringSqpoll => {
                let sqpoll = choice == Choice::UringSqpoll;
                let ring = uring::Uring::new(config.queue_depth, sqpoll, &memory, buffer_size, &fds, &mut notices)
                    .map_err(|source| {
                        Error::io("cannot set up an io_uring", source)
                            .with_hint("use the engine `threads`, or allow io_uring (sysctl kernel.io_uring_disabled, the container's seccomp profile)")
                    })?;
                (Box::new(ring), if sqpoll { Kind::UringSqpoll } else { Kind::Uring })
            }
            Choice::Auto => match uring_works()
                .and_then(|()| uring::Uring::new(config.queue_depth, false, &memory, buffer_size, &fds, &mut notices))
            {
                Ok(ring) => (Box::new(ring), Kind::Uring),
                Err(why) => {
                    let aio = aio::suits(&fds).then(|| aio::Aio::new(config.queue_depth)).and_then(io::Result::ok);
                    let kind = if aio.is_some() { Kind::Aio } else { Kind::Threads };
                    notices.push(format!("io_uring does not work here ({why}); using {kind}, which costs more CPU"));
                    match aio {
                        Some(aio) => (Box::new(aio), kind),
                        None => (Box::new(threads::Threads::new(config.queue_depth)?), kind),
                    }
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
        if let Op::ReadLent { memory: Lent { len: 0, .. }, .. } | Op::WriteLent { memory: Lent { len: 0, .. }, .. } = op
        {
            return Err(Error::invalid("no bytes of memory are lent"));
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
        let left = |offset: u64, len: u32| (offset + u64::from(done), len - done);
        // SAFETY: `submit` checked that the span lies inside its buffer, and `done` is less than its length.
        let at = |span: Span| unsafe { self.buffer_start(span.buffer).add((span.start + done) as usize) };
        // SAFETY: who lent the memory promised that it is there, and `done` is less than its length.
        let lent = |memory: Lent| unsafe { memory.start.add(done as usize) };
        let call = match op {
            Op::Read { offset, span, .. } => {
                let (offset, len) = left(offset, span.len);
                Call::Read { file, fd, at: at(span), len, offset, lent: false }
            }
            Op::Write { offset, span, .. } => {
                let (offset, len) = left(offset, span.len);
                Call::Write { file, fd, at: at(span), len, offset, lent: false, inline: target.inline_writes }
            }
            Op::ReadLent { offset, memory, .. } => {
                let (offset, len) = left(offset, memory.len);
                Call::Read { file, fd, at: lent(memory), len, offset, lent: true }
            }
            Op::WriteLent { offset, memory, .. } => {
                let (offset, len) = left(offset, memory.len);
                Call::Write { file, fd, at: lent(memory), len, offset, lent: true, inline: target.inline_writes }
            }
            Op::Fdatasync { .. } => Call::Fdatasync { file, fd },
            Op::Fallocate { mode, offset, len, .. } => Call::Fallocate { file, fd, mode: mode.flags(), offset, len },
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
                break Err(self.cannot_wait(source));
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

    /// Starts everything submitted, waits until an operation is complete, one of `watched` is ready, `timeout` is up or a
    /// signal came, and appends what is complete to `out`. Nothing need be in flight. Which of `watched` are
    /// [ready](Watched::ready) it notes there. It may return for no reason at all.
    ///
    /// Returns how many it appended.
    ///
    /// # Errors
    /// When the backend itself fails.
    ///
    /// # Panics
    /// When more than [`WATCHED_MAX`] are to be watched.
    pub fn complete_or_ready(
        &mut self,
        watched: &mut [Watched],
        timeout: Option<Duration>,
        out: &mut Vec<Completion>,
    ) -> Result<usize> {
        assert!(watched.len() <= WATCHED_MAX, "{} descriptors are to be watched", watched.len());
        let before = out.len();
        let mut done = std::mem::take(&mut self.done);
        done.clear();
        let outcome = self.backend.wait_or_ready(watched, timeout, &mut done);
        for done in &done {
            // What goes on is waited for when it is called next.
            let _ = self.finish(*done, out);
        }
        self.done = done;
        outcome.map(|()| out.len() - before).map_err(|source| self.cannot_wait(source))
    }

    #[cold]
    fn cannot_wait(&self, source: io::Error) -> Error {
        Error::io(format!("cannot wait for I/O on the {} engine", self.kind), source)
    }

    /// Takes a finished call: appends its completion, or pushes the rest of it again and returns false.
    fn finish(&mut self, done: Done, out: &mut Vec<Completion>) -> bool {
        let Some(mut flight) = self.slots[done.slot as usize] else {
            unreachable!("the backend reports only slots that were pushed");
        };
        let wanted = flight.op.moves().map(|(_, len)| len - flight.done);
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
        let (offset, len) = match (flight.op, flight.op.moves()) {
            (_, Some((offset, len))) => (offset + u64::from(flight.done), u64::from(len - flight.done)),
            (Op::Fallocate { offset, len, .. } | Op::Discard { offset, len, .. }, _) => (offset, len),
            _ => (0, 0),
        };
        let what = match flight.op {
            Op::Fdatasync { .. } => format!("{path}: fdatasync failed"),
            _ => format!("{path}: {verb} of {len} bytes at offset {offset} failed"),
        };
        match (errno, flight.op) {
            (Some(errno), _) => Error::io(what, io::Error::from_raw_os_error(errno)),
            (None, Op::Read { .. } | Op::ReadLent { .. }) => Error::new(ErrorKind::Io, what)
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

#[cfg(test)]
mod fault_tests;
