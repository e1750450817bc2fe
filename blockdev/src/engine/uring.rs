//! The io_uring backend: registered files and buffers, completions run on the submitting thread.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use io_uring::squeue::Entry;
use io_uring::types::{Fd, Fixed, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode};

use super::{Backend, Call, Done, WATCHED_MAX, Watched, threads};
use crate::buffer::Memory;

/// How long the kernel's polling thread stays awake without work, in milliseconds.
const SQPOLL_IDLE_MS: u32 = 1000;

/// `BLOCK_URING_CMD_DISCARD`, `_IO(0x12, 0)` in linux/blkdev.h (Linux 6.12).
const BLOCK_URING_CMD_DISCARD: u32 = 0x1200;

/// How many entries wait before they are handed over: the device should work on the first while the next are prepared.
/// On a virtio disk at queue depth 32, handing over whatever has gathered cost up to a quarter of the IOPS, and one by one
/// up to an eighth more CPU for the same IOPS.
const SUBMIT_BATCH: usize = 2;

/// From this size on it hardly matters whether buffers are registered: the pages of one I/O are pinned in one go, and are
/// few where they are huge. Reads of 2 MiB at queue depth 16 took 8 % of a core either way.
const LARGE_BUFFER: usize = 1 << 20;

/// All of the engine's memory is registered as this one buffer.
const MEMORY_INDEX: u16 = 0;

/// In the user data of an entry that watches a descriptor, beside its number.
const WATCH: u64 = 1 << 32;

/// In the user data of an entry that ends the watching of a descriptor: nobody waits for it.
const UNWATCH: u64 = 1 << 33;

pub(super) struct Uring {
    ring: IoUring,
    sqpoll: bool,
    buffers_registered: bool,
    in_flight: usize,
    /// What was done when it was pushed.
    inline: Vec<Done>,
    watches: [Watch; WATCHED_MAX],
}

/// The state of one watched descriptor.
#[derive(Debug, Clone, Copy, Default)]
struct Watch {
    /// What the ring watches, if anything: the descriptor and the events.
    armed: Option<(RawFd, i16)>,
    /// How often that changed: an answer to an earlier question is none to this one.
    generation: u32,
    /// What happened since somebody asked.
    ready: i16,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring")
            .field("sqpoll", &self.sqpoll)
            .field("buffers_registered", &self.buffers_registered)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

impl Uring {
    /// A ring for `depth` calls over `memory`, which is of buffers of `buffer_size` bytes, and `files`. What the kernel
    /// refuses to register is used unregistered, with a notice where that costs something.
    pub(super) fn new(
        depth: u32,
        sqpoll: bool,
        memory: &Memory,
        buffer_size: usize,
        files: &[RawFd],
        notices: &mut Vec<String>,
    ) -> io::Result<Self> {
        let ring = if sqpoll {
            // Twice the depth: the kernel's thread takes entries in batches and gives their places back only after a batch,
            // when some of its operations may long be complete and have successors.
            IoUring::builder().setup_single_issuer().setup_sqpoll(SQPOLL_IDLE_MS).build(2 * depth)?
        } else {
            Self::lean_ring(depth)?
        };
        if !files.is_empty() {
            ring.submitter().register_files(files)?;
        }
        let whole = [libc::iovec { iov_base: memory.as_ptr().as_ptr().cast(), iov_len: memory.len() }];
        // SAFETY: the engine drops this backend before `memory`, so the range outlives the registration.
        let buffers_registered = match unsafe { ring.submitter().register_buffers(&whole) } {
            Ok(()) => true,
            Err(_) if buffer_size >= LARGE_BUFFER => false,
            Err(why) => {
                notices.push(format!(
                    "cannot register {} bytes of I/O buffers ({why}); each I/O pins its pages itself, which costs CPU. \
                     Raise RLIMIT_MEMLOCK (ulimit -l) or use a smaller queue depth or block size",
                    memory.len()
                ));
                false
            }
        };
        let (inline, watches) = (Vec::new(), Default::default());
        Ok(Self { ring, sqpoll, buffers_registered, in_flight: 0, inline, watches })
    }

    /// The leanest ring this kernel makes: newer flags first.
    fn lean_ring(depth: u32) -> io::Result<IoUring> {
        // Linux 6.6: no indirection from queue to entries. 6.1: completions wait until this thread asks for them, and
        // never interrupt it.
        let newest = IoUring::builder()
            .setup_no_sqarray()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .build(depth);
        let rejected = |error: &io::Error| error.raw_os_error() == Some(libc::EINVAL);
        let newer = newest.or_else(|error| match error {
            error if rejected(&error) => IoUring::builder()
                .setup_single_issuer()
                .setup_defer_taskrun()
                .setup_taskrun_flag()
                .setup_submit_all()
                .build(depth),
            error => Err(error),
        });
        newer.or_else(|error| if rejected(&error) { IoUring::new(depth) } else { Err(error) })
    }

    fn reap(&mut self, done: &mut Vec<Done>) {
        done.append(&mut self.inline);
        for entry in self.ring.completion() {
            let (data, result) = (entry.user_data(), entry.result());
            if let Ok(slot) = u32::try_from(data) {
                self.in_flight -= 1;
                done.push(Done { slot, result });
            } else if data & UNWATCH == 0 {
                let (index, generation) = unpack(data);
                let watch = &mut self.watches[index];
                if watch.generation == generation {
                    // A failure to watch is for who uses the descriptor to find.
                    let events =
                        if result < 0 { libc::POLLERR } else { i16::try_from(result).unwrap_or(libc::POLLERR) };
                    *watch = Watch { armed: None, ready: watch.ready | events, generation };
                }
            }
        }
    }

    /// Adds an entry to the queue, making room first where there is none.
    fn enqueue(&mut self, entry: &Entry) -> io::Result<()> {
        // SAFETY: what it refers to stays valid until its completion: of calls the engine sees to that; watching has no memory.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.ring.submit()?;
        }
        Ok(())
    }

    /// Lets the ring watch what is asked for and not watched yet. Returns whether something is ready already.
    fn arm(&mut self, watched: &[Watched]) -> io::Result<bool> {
        let mut ready = false;
        for index in 0..WATCHED_MAX {
            let wanted = watched.get(index).map(|watched| (watched.fd, watched.events));
            let watch = self.watches[index];
            ready |= wanted.is_some() && watch.ready != 0;
            if wanted == watch.armed || (wanted.is_some() && watch.ready != 0) {
                continue;
            }
            if watch.armed.is_some() {
                self.enqueue(&opcode::PollRemove::new(pack(index, watch.generation)).build().user_data(UNWATCH))?;
            }
            let generation = watch.generation.wrapping_add(1);
            self.watches[index] = Watch { armed: wanted, generation, ready: 0 };
            if let Some((fd, events)) = wanted {
                let events = u32::from(events.unsigned_abs());
                let entry = opcode::PollAdd::new(Fd(fd), events).build().user_data(pack(index, generation));
                self.enqueue(&entry)?;
            }
        }
        Ok(ready)
    }

    /// Starts what is in the queue, and waits for `missing` completions.
    fn enter(&mut self, missing: usize, timeout: Option<Duration>) -> io::Result<()> {
        let outcome = match timeout {
            Some(timeout) if missing > 0 => {
                let timeout = Timespec::from(timeout);
                self.ring.submitter().submit_with_args(missing, &SubmitArgs::new().timespec(&timeout))
            }
            _ => self.ring.submit_and_wait(missing),
        };
        match outcome.map_err(|error| (error.raw_os_error(), error)) {
            // Time is up, a signal came, or the kernel is short of something that a completion gives back.
            Ok(_) | Err((Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY), _)) => Ok(()),
            Err((_, error)) => Err(error),
        }
    }

    fn entry(&self, call: Call) -> Entry {
        match call {
            Call::Read { file, at, len, offset, lent: false, .. } if self.buffers_registered => {
                opcode::ReadFixed::new(Fixed(file), at.as_ptr(), len, MEMORY_INDEX).offset(offset).build()
            }
            Call::Read { file, at, len, offset, .. } => {
                opcode::Read::new(Fixed(file), at.as_ptr(), len).offset(offset).build()
            }
            Call::Write { file, at, len, offset, lent: false, .. } if self.buffers_registered => {
                opcode::WriteFixed::new(Fixed(file), at.as_ptr(), len, MEMORY_INDEX).offset(offset).build()
            }
            Call::Write { file, at, len, offset, .. } => {
                opcode::Write::new(Fixed(file), at.as_ptr(), len).offset(offset).build()
            }
            Call::Fdatasync { file, .. } => opcode::Fsync::new(Fixed(file)).flags(FsyncFlags::DATASYNC).build(),
            Call::Fallocate { file, mode, offset, len, .. } => {
                opcode::Fallocate::new(Fixed(file), len).offset(offset).mode(mode).build()
            }
            Call::BlockDiscard { file, offset, len, .. } => {
                let mut command = [0; 16];
                command[..8].copy_from_slice(&len.to_ne_bytes());
                opcode::UringCmd16::new(Fixed(file), BLOCK_URING_CMD_DISCARD).cmd(command).addr(Some(offset)).build()
            }
        }
    }
}

// SAFETY: the ring reports a slot only with its completion, after which the kernel no longer touches the memory; `drop`
// waits for every call.
unsafe impl Backend for Uring {
    fn push(&mut self, slot: u32, call: Call) {
        if let Call::Write { inline: true, .. } = call {
            self.inline.push(Done { slot, result: threads::perform(call) });
            return;
        }
        let entry = self.entry(call).user_data(u64::from(slot));
        // What the kernel does not take now, `wait` hands over again, and reports why not.
        let pushed = self.enqueue(&entry);
        // The ring has at least `queue_depth` entries and the engine keeps no more calls than that.
        assert!(pushed.is_ok(), "the submission queue holds what the engine may have in flight");
        self.in_flight += 1;
        if self.ring.submission().len() >= SUBMIT_BATCH {
            let _ = self.ring.submit();
        }
    }

    fn wait(&mut self, min: usize, timeout: Option<Duration>, done: &mut Vec<Done>) -> io::Result<()> {
        self.reap(done);
        let missing = min.saturating_sub(done.len());
        let queue = self.ring.submission();
        let idle = queue.is_empty() && !queue.taskrun();
        drop(queue);
        if missing == 0 && idle && !self.sqpoll {
            return Ok(());
        }
        self.enter(missing, timeout)?;
        self.reap(done);
        Ok(())
    }

    fn wait_or_ready(
        &mut self,
        watched: &mut [Watched],
        timeout: Option<Duration>,
        done: &mut Vec<Done>,
    ) -> io::Result<()> {
        self.reap(done);
        if self.in_flight == 0 && done.is_empty() {
            // Without a ring it is cheaper.
            return super::poll(watched, None, timeout);
        }
        if !done.is_empty() {
            // Somebody who has something to do does not ask the kernel about descriptors first.
            watched.iter_mut().for_each(|watched| watched.ready = 0);
            return self.enter(0, None);
        }
        let ready = self.arm(watched)?;
        self.enter(usize::from(!ready), timeout)?;
        self.reap(done);
        for (watched, watch) in watched.iter_mut().zip(&mut self.watches) {
            watched.ready = std::mem::take(&mut watch.ready);
        }
        Ok(())
    }
}

/// The user data of an entry that watches descriptor `index`.
fn pack(index: usize, generation: u32) -> u64 {
    WATCH | (index as u64) << 34 | u64::from(generation)
}

fn unpack(data: u64) -> (usize, u32) {
    #[allow(clippy::cast_possible_truncation, reason = "the lower half, and a small number")]
    ((data >> 34) as usize % WATCHED_MAX, data as u32)
}

impl Drop for Uring {
    fn drop(&mut self) {
        let mut done = Vec::new();
        // A descriptor that is watched is held, too. What cannot be ended here ends when the kernel takes the ring apart.
        let _ = self.arm(&[]).and_then(|_| self.enter(0, None));
        while self.in_flight > 0 {
            done.clear();
            if self.wait(1, None, &mut done).is_err() {
                // The kernel may still write into memory that is about to be freed: there is no safe way on.
                std::process::abort();
            }
        }
        // The kernel takes a closed ring apart later, in the background, and until then holds the files: a file system could
        // not be unmounted, nor space be had back of a file that is deleted. So they are given back here and now.
        let _ = self.ring.submitter().unregister_files();
    }
}
