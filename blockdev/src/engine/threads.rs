//! The backend for where io_uring is forbidden: plain system calls on a pool of threads.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{Backend, Call, Done, Interest, Watched};
use crate::error::{Context, Result};

/// Most threads in the pool; a deeper queue waits its turn.
const THREADS_MAX: u32 = 128;

/// A worker only makes system calls.
const STACK_BYTES: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct Threads {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    work: Mutex<Work>,
    work_came: Condvar,
    done: Mutex<Vec<Done>>,
    done_came: Condvar,
    /// Tells who waits for descriptors too that something is done. Made when that is first asked for.
    signal: OnceLock<EventFd>,
}

#[derive(Debug, Default)]
struct Work {
    queue: VecDeque<(u32, Carried)>,
    stop: bool,
}

/// A call on its way to another thread.
#[derive(Debug, Clone, Copy)]
struct Carried(Call);

// SAFETY: the pointer in a call is to memory that the engine lends to this call alone until it is done.
unsafe impl Send for Carried {}

/// No code panics while holding one of these locks; should it ever, the data is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Threads {
    pub(super) fn new(depth: u32) -> Result<Self> {
        let mut pool = Self { shared: Arc::default(), workers: Vec::new() };
        for index in 0..depth.min(THREADS_MAX) {
            let shared = Arc::clone(&pool.shared);
            let worker = std::thread::Builder::new()
                .name(format!("io-{index}"))
                .stack_size(STACK_BYTES)
                .spawn(move || shared.work())
                .context(|| format!("cannot start I/O thread {index}"))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }
}

impl Shared {
    fn work(&self) {
        let mut work = lock(&self.work);
        loop {
            match work.queue.pop_front() {
                Some((slot, Carried(call))) => {
                    drop(work);
                    let result = perform(call);
                    lock(&self.done).push(Done { slot, result });
                    self.done_came.notify_one();
                    if let Some(signal) = self.signal.get() {
                        // It fails only when it would overflow, and then it is set.
                        let _ = signal.write(1);
                    }
                    work = lock(&self.work);
                }
                None if work.stop => return,
                None => work = self.work_came.wait(work).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// Makes the system call; its result as io_uring would give it.
pub(super) fn perform(call: Call) -> i32 {
    let file_offset = |offset: u64| libc::off_t::try_from(offset).unwrap_or(-1);
    let result = match call {
        // SAFETY: the engine lends this range to this call until it is reported done.
        Call::Read { fd, at, len, offset, .. } => unsafe {
            libc::pread(fd, at.as_ptr().cast(), len as usize, file_offset(offset))
        },
        // SAFETY: as above; a write only reads it.
        Call::Write { fd, at, len, offset, .. } => unsafe {
            libc::pwrite(fd, at.as_ptr().cast(), len as usize, file_offset(offset))
        },
        // SAFETY: takes no pointer; a wrong descriptor is an error.
        Call::Fdatasync { fd, .. } => unsafe { libc::fdatasync(fd) as isize },
        // SAFETY: takes no pointer; a wrong descriptor is an error.
        Call::Fallocate { fd, mode, offset, len, .. } => unsafe {
            libc::fallocate(fd, mode, file_offset(offset), file_offset(len)) as isize
        },
        Call::BlockDiscard { fd, offset, len, .. } => {
            /// `_IO(0x12, 119)` in linux/fs.h; takes start and length.
            const BLKDISCARD: libc::c_ulong = 0x1277;
            let range = [offset, len];
            // SAFETY: BLKDISCARD reads two u64 from the pointer, which are there.
            unsafe { libc::ioctl(fd, BLKDISCARD, range.as_ptr()) as isize }
        }
    };
    if result < 0 {
        -io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
    } else {
        // A call moves at most u32::MAX bytes, and the kernel caps it at i32::MAX.
        i32::try_from(result).unwrap_or(i32::MAX)
    }
}

// SAFETY: a slot is reported after its system call returned; `drop` joins the workers, which first empty the queue.
unsafe impl Backend for Threads {
    fn push(&mut self, slot: u32, call: Call) {
        lock(&self.shared.work).queue.push_back((slot, Carried(call)));
        self.shared.work_came.notify_one();
    }

    fn wait(&mut self, min: usize, timeout: Option<Duration>, done: &mut Vec<Done>) -> io::Result<()> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut finished = lock(&self.shared.done);
        while finished.len() < min {
            finished = match deadline {
                None => self.shared.done_came.wait(finished).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    self.shared.done_came.wait_timeout(finished, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        done.append(&mut finished);
        Ok(())
    }

    fn wait_or_ready(
        &mut self,
        watched: &mut [Watched],
        timeout: Option<Duration>,
        done: &mut Vec<Done>,
    ) -> io::Result<()> {
        if self.shared.signal.get().is_none() {
            let signal = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
            // Nobody else sets it.
            let _ = self.shared.signal.set(signal);
        }
        let signal = self.shared.signal.get().map(|signal| Watched::new(signal.as_fd(), Interest::Readable));
        // What was done before there was a signal is not waited for.
        let timeout = if lock(&self.shared.done).is_empty() { timeout } else { Some(Duration::ZERO) };
        super::poll(watched, signal, timeout)?;
        if let Some(signal) = self.shared.signal.get() {
            // Not set is as good.
            let _ = signal.read();
        }
        done.append(&mut lock(&self.shared.done));
        Ok(())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        lock(&self.shared.work).stop = true;
        self.shared.work_came.notify_all();
        for worker in self.workers.drain(..) {
            // A worker that panicked has nothing in flight.
            let _ = worker.join();
        }
    }
}
