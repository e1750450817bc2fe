//! The backend for where io_uring is forbidden and files are open past the page cache: Linux's older asynchronous I/O.
//!
//! Docker's default seccomp profile allows it. With O_DIRECT the device works on many calls without a thread for each; what
//! goes through the page cache would be done while it is submitted, one after the other, which is what
//! [`threads`](super::threads) is better at.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::ptr;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::threads::perform;
use super::{Backend, Call, Done, Interest, Watched};

/// From linux/aio_abi.h.
const IOCB_CMD_PREAD: u16 = 0;
const IOCB_CMD_PWRITE: u16 = 1;
const IOCB_CMD_FDSYNC: u16 = 3;
const IOCB_FLAG_RESFD: u32 = 1;

/// How many calls wait before they are handed over, as with io_uring.
const SUBMIT_BATCH: usize = 2;

/// `struct io_event` of linux/aio_abi.h.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct Event {
    data: u64,
    object: u64,
    result: i64,
    result2: i64,
}

#[derive(Debug)]
pub(super) struct Aio {
    context: libc::c_ulong,
    waiting: Vec<(u32, Call)>,
    in_flight: usize,
    /// What was done at once.
    ready: Vec<Done>,
    events: Vec<Event>,
    /// Counts what is done, for who waits for descriptors too.
    signal: EventFd,
}

/// Whether all of these files are open past the page cache.
pub(super) fn suits(files: &[RawFd]) -> bool {
    files.iter().all(|fd| {
        // SAFETY: takes no pointer; a wrong descriptor is an error.
        let flags = unsafe { libc::fcntl(*fd, libc::F_GETFL) };
        flags >= 0 && flags & libc::O_DIRECT != 0
    })
}

impl Aio {
    /// Sets it up for `depth` calls at once.
    ///
    /// # Errors
    /// When the kernel refuses: it has no such thing, or its limit (fs.aio-max-nr) is reached.
    pub(super) fn new(depth: u32) -> io::Result<Self> {
        let signal = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes the number of the context to where the pointer leads, which is there.
        if unsafe { libc::syscall(libc::SYS_io_setup, depth, &raw mut context) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let events = vec![Event::default(); depth as usize];
        Ok(Self { context, waiting: Vec::new(), in_flight: 0, ready: Vec::new(), events, signal })
    }

    fn block(&self, slot: u32, call: Call) -> Option<libc::iocb> {
        if is_plain(call) {
            return None;
        }
        let (opcode, fd, address, len, offset) = match call {
            Call::Read { fd, at, len, offset, .. } => (IOCB_CMD_PREAD, fd, at.as_ptr() as u64, len, offset),
            Call::Write { fd, at, len, offset, .. } => (IOCB_CMD_PWRITE, fd, at.as_ptr() as u64, len, offset),
            Call::Fdatasync { fd, .. } => (IOCB_CMD_FDSYNC, fd, 0, 0, 0),
            Call::Fallocate { .. } | Call::BlockDiscard { .. } => return None,
        };
        // SAFETY: a structure of numbers, for which zero is a value.
        let mut block: libc::iocb = unsafe { std::mem::zeroed() };
        block.aio_data = slot.into();
        block.aio_lio_opcode = opcode;
        block.aio_fildes = fd.cast_unsigned();
        block.aio_buf = address;
        block.aio_nbytes = len.into();
        block.aio_offset = i64::try_from(offset).unwrap_or(-1);
        block.aio_flags = IOCB_FLAG_RESFD;
        block.aio_resfd = self.signal.as_raw_fd().cast_unsigned();
        Some(block)
    }

    /// Hands over what waits. What the kernel refuses is done, with its error.
    fn submit(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        let mut blocks: Vec<libc::iocb> = waiting.iter().filter_map(|(slot, call)| self.block(*slot, *call)).collect();
        let mut pointers: Vec<*mut libc::iocb> = blocks.iter_mut().map(ptr::from_mut).collect();
        let mut first = 0;
        while first < pointers.len() {
            let count = libc::c_long::try_from(pointers.len() - first).unwrap_or(libc::c_long::MAX);
            // SAFETY: as many pointers to blocks that are there; the kernel copies them. The memory that they name is lent to
            // these calls until they are reported done.
            let taken =
                unsafe { libc::syscall(libc::SYS_io_submit, self.context, count, pointers[first..].as_mut_ptr()) };
            match usize::try_from(taken) {
                Ok(taken) if taken > 0 => {
                    self.in_flight += taken;
                    first += taken;
                }
                _ => {
                    let errno = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
                    #[allow(clippy::cast_possible_truncation, reason = "it was a slot")]
                    let slot = blocks[first].aio_data as u32;
                    // EAGAIN among them: the engine tries those again.
                    self.ready.push(Done { slot, result: -errno });
                    first += 1;
                }
            }
        }
        for (slot, call) in waiting.into_iter().filter(|(_, call)| is_plain(*call)) {
            self.ready.push(Done { slot, result: perform(call) });
        }
    }

    /// Takes what is done, waiting for at least `min`.
    fn reap(&mut self, min: usize, timeout: Option<Duration>, done: &mut Vec<Done>) -> io::Result<()> {
        let min = min.min(self.in_flight);
        let timeout = timeout.map(|timeout| libc::timespec {
            tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
        let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let timeout = if min == 0 { ptr::from_ref(&zero) } else { timeout };
        let room = libc::c_long::try_from(self.events.len()).unwrap_or(libc::c_long::MAX);
        let least = libc::c_long::try_from(min).unwrap_or(libc::c_long::MAX);
        let events = self.events.as_mut_ptr();
        // SAFETY: there is room for so many events; the time, if any, is there for the call.
        let count = unsafe { libc::syscall(libc::SYS_io_getevents, self.context, least, room, events, timeout) };
        let Ok(count) = usize::try_from(count) else {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        };
        self.in_flight -= count;
        done.extend(self.events[..count].iter().map(|event| {
            #[allow(clippy::cast_possible_truncation, reason = "it was a slot")]
            let slot = event.data as u32;
            Done { slot, result: i32::try_from(event.result).unwrap_or(i32::MAX) }
        }));
        Ok(())
    }
}

/// Whether a call is made at once: there is no asynchronous one, or it only copies.
fn is_plain(call: Call) -> bool {
    matches!(call, Call::Fallocate { .. } | Call::BlockDiscard { .. } | Call::Write { inline: true, .. })
}

// SAFETY: a slot is reported with its event, after which the kernel no longer touches the memory, or when it was never
// handed over; `drop` waits for every call.
unsafe impl Backend for Aio {
    fn push(&mut self, slot: u32, call: Call) {
        self.waiting.push((slot, call));
        if self.waiting.len() >= SUBMIT_BATCH {
            self.submit();
        }
    }

    fn wait(&mut self, min: usize, timeout: Option<Duration>, done: &mut Vec<Done>) -> io::Result<()> {
        self.submit();
        let before = done.len();
        done.append(&mut self.ready);
        if self.in_flight == 0 {
            return Ok(());
        }
        self.reap(min.saturating_sub(done.len() - before), timeout, done)
    }

    fn wait_or_ready(
        &mut self,
        watched: &mut [Watched],
        timeout: Option<Duration>,
        done: &mut Vec<Done>,
    ) -> io::Result<()> {
        self.submit();
        let signal = Watched::new(self.signal.as_fd(), Interest::Readable);
        let timeout = if self.ready.is_empty() { timeout } else { Some(Duration::ZERO) };
        super::poll(watched, Some(signal), timeout)?;
        // Not set is as good.
        let _ = self.signal.read();
        done.append(&mut self.ready);
        self.reap(0, None, done)
    }
}

impl Drop for Aio {
    fn drop(&mut self) {
        // What was never handed over is not begun.
        self.waiting.clear();
        let mut done = Vec::new();
        while self.in_flight > 0 {
            done.clear();
            if self.reap(1, None, &mut done).is_err() {
                // The kernel may still write into memory that is about to be freed: there is no safe way on.
                std::process::abort();
            }
        }
        // SAFETY: it is this context, and nothing of it is in flight.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}
