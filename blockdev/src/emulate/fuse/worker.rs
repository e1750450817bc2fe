//! Requests and replies of the kernel: as many in flight as it likes, up to a bound, on one of several threads.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::uio::readv;

use super::abi::{self, Fallocate, HEAD, HEADER, Header, OUT_HEADER, Transfer, opcode};
use super::files::Files;
use crate::emulate::host::HostId;
use crate::emulate::memory::{Budget, Chunk, Pool};
use crate::emulate::port::Port;
use crate::emulate::request::{Answer, Outcome, Request};
use crate::engine::Interest;
use crate::error::{Context, Error, Result};
use crate::units::{ByteOffset, ByteRange, ByteSize};

/// The most that one request reads or writes, in bytes.
pub(super) const TRANSFER_MAX: u32 = 512 << 10;

/// How many requests of all threads are taken before they have replies.
pub(super) const IN_FLIGHT_MAX: u32 = 256;

/// From what size on a write keeps the memory that it was received in, and is not copied, in bytes.
const COPY_MAX: u32 = 64 << 10;

/// How many requests are taken before those that are done are looked for again.
const BATCH: usize = 16;

/// For how long at most to look for the next request again and again before the kernel is asked to wake us.
const SPIN_MAX: Duration = Duration::from_micros(40);

/// How long requests that do not come to an end may keep a thread from ending.
const GOODBYE_MAX: Duration = Duration::from_secs(2);

/// What one thread has.
#[derive(Debug)]
pub(super) struct Worker {
    // Dropped first: it waits for what is lent from `flights`.
    port: Port,
    /// The thread's own way to the kernel's requests. Replies go the way that the request came.
    device: File,
    /// Readable when the device is. A ring that watches a descriptor holds it as long as its memory is mapped, that is, until the
    /// last thread of this process is gone; and one that waits for an answer of ours goes only when the device is closed.
    requests: Epoll,
    files: Arc<Files>,
    pool: Pool,
    /// Where requests are received.
    inbox: Chunk,
    /// By tag: what is being done.
    flights: Vec<Option<Flight>>,
    free: Vec<u32>,
    answers: Vec<Answer>,
    /// Whether the kernel has said that no more will come.
    unmounted: bool,
    ending: Arc<AtomicBool>,
    spin: Duration,
}

/// A request on its way to the disk.
#[derive(Debug)]
struct Flight {
    unique: u64,
    memory: Option<Chunk>,
    reply: Reply,
}

/// What is said when it is done.
#[derive(Debug, Clone, Copy)]
enum Reply {
    /// A part of the memory.
    Data { from: usize, len: usize },
    /// How much was written.
    Written(u32),
    /// That it is done.
    Done,
}

impl Worker {
    /// A thread of `count`.
    ///
    /// # Errors
    /// When memory is short.
    pub(super) fn new(
        port: Port,
        device: File,
        files: Arc<Files>,
        ending: Arc<AtomicBool>,
        count: u32,
    ) -> Result<Self> {
        let in_flight = IN_FLIGHT_MAX.div_ceil(count);
        // So much that it is never short: a transfer that starts and ends within sectors takes twice its size.
        let mut pool = Pool::new(Budget::new(2 * u64::from(in_flight + 1) * u64::from(TRANSFER_MAX)));
        let requests = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .and_then(|epoll| epoll.add(&device, EpollEvent::new(EpollFlags::EPOLLIN, 0)).map(|()| epoll))
            .context(|| "cannot watch the device of a FUSE file system")?;
        let inbox = pool
            .take(TRANSFER_MAX as usize)
            .ok_or_else(|| Error::io("cannot have memory for the requests of the kernel", Errno::ENOMEM))?;
        Ok(Self {
            port,
            device,
            requests,
            files,
            pool,
            inbox,
            flights: (0..in_flight).map(|_| None).collect(),
            free: (0..in_flight).rev().collect(),
            answers: Vec::new(),
            unmounted: false,
            ending,
            spin: Duration::ZERO,
        })
    }

    /// Serves until the file system is unmounted, or to end.
    ///
    /// # Errors
    /// When the engine fails, or the kernel breaks the protocol.
    pub(super) fn run(mut self) -> Result<()> {
        let mut ends_since = None;
        loop {
            let mut moved = self.receive()?;
            self.port.poll(&mut self.answers)?;
            moved |= self.reply();
            let ends = self.unmounted || self.ending.load(Ordering::Acquire);
            if ends {
                let since: Instant = *ends_since.get_or_insert_with(Instant::now);
                if self.port.pending() == 0 || since.elapsed() >= GOODBYE_MAX {
                    return Ok(());
                }
            }
            if !moved {
                self.wait(ends)?;
            }
        }
    }

    /// Whether another request may be read.
    fn is_open(&self) -> bool {
        !self.unmounted && !self.free.is_empty() && !self.ending.load(Ordering::Acquire)
    }

    /// Waits until something can go on.
    fn wait(&mut self, ends: bool) -> Result<()> {
        let open = self.is_open();
        let began = Instant::now();
        if open && self.port.pending() == 0 {
            while began.elapsed() < self.spin {
                if self.receive()? {
                    return Ok(());
                }
                std::hint::spin_loop();
            }
        }
        let watched = open.then(|| (self.requests.0.as_fd(), Interest::Readable));
        self.port.wait(watched, ends.then_some(GOODBYE_MAX), &mut self.answers)?;
        self.spin = if began.elapsed() < SPIN_MAX { SPIN_MAX } else { Duration::ZERO };
        self.reply();
        Ok(())
    }

    /// Takes requests that have come. Returns whether there were any.
    fn receive(&mut self) -> Result<bool> {
        for taken in 0..BATCH {
            if !self.is_open() || !self.receive_one()? {
                return Ok(taken > 0);
            }
        }
        Ok(true)
    }

    /// Takes one request. Returns whether there was one.
    fn receive_one(&mut self) -> Result<bool> {
        let mut head = [0; HEAD];
        let mut parts = [IoSliceMut::new(&mut head), IoSliceMut::new(self.inbox.bytes())];
        let got = match readv(&self.device, &mut parts) {
            Ok(got) => got,
            Err(Errno::EAGAIN) => return Ok(false),
            // Who asked has given up while we took it, or a signal came: look again.
            Err(Errno::ENOENT | Errno::EINTR) => return Ok(true),
            Err(Errno::ENODEV | Errno::ECONNABORTED) => {
                self.unmounted = true;
                return Ok(false);
            }
            Err(errno) => return Err(Error::io("cannot take requests from the kernel", errno)),
        };
        let header = Header::parse(&head);
        let len = header.len as usize;
        if got < HEADER || got != len {
            return Err(Error::io(
                format!("the kernel sent {got} bytes of a request of {len}"),
                std::io::Error::from(std::io::ErrorKind::InvalidData),
            ));
        }
        self.take(header, &head, len);
        Ok(true)
    }

    /// Begins what a request asks for, or answers it. There is room for one more.
    fn take(&mut self, header: Header, head: &[u8; HEAD], len: usize) {
        let arguments = &head[HEADER..len.min(HEAD)];
        let outcome = match (header.opcode, self.files.host(header.node)) {
            (opcode::READ, Some(host)) => self.read(host, header.unique, Transfer::parse(arguments)),
            (opcode::WRITE, Some(host)) => self.write(host, header.unique, Transfer::parse(arguments)),
            (opcode::FSYNC, Some(host)) => {
                self.fly(host, header.unique, None, Reply::Done, Request::Flush);
                Ok(())
            }
            (opcode::FALLOCATE, Some(host)) => self.fallocate(host, header.unique, Fallocate::parse(arguments)),
            // Nobody waits for an answer.
            (opcode::FORGET | opcode::BATCH_FORGET, _) => Ok(()),
            (code, _) => {
                let rest = self.inbox.part(len.saturating_sub(HEAD));
                let answer = self.files.answer(code, header.node, &[arguments, rest].concat());
                answer.map(|bytes| self.say(header.unique, Ok(()), &bytes))
            }
        };
        if let Err(errno) = outcome {
            self.say(header.unique, Err(errno), &[]);
        }
    }

    /// Reads whole sectors, and replies with the part of them that was asked for.
    fn read(&mut self, host: HostId, unique: u64, Transfer { offset, size, .. }: Transfer) -> Result<(), Errno> {
        let disk = self.port.disk();
        let (sector, end) = (disk.options().sector_size.bytes(), disk.size().bytes());
        let end = offset.saturating_add(u64::from(size.min(TRANSFER_MAX))).min(end);
        if offset >= end {
            self.say(unique, Ok(()), &[]);
            return Ok(());
        }
        let start = offset / sector * sector;
        // A transfer and two sectors at the most.
        let (from, len) = ((offset - start) as usize, (end - offset) as usize);
        let whole = u32::try_from(end.next_multiple_of(sector) - start).map_err(|_| Errno::EINVAL)?;
        let mut memory = self.pool.take(whole as usize).ok_or(Errno::ENOMEM)?;
        // SAFETY: the chunk stays in `flights`, untouched, until the port has answered; the port is dropped before it.
        let lent = unsafe { memory.lend(whole) };
        let request = Request::Read { offset: ByteOffset::new(start), memory: lent };
        self.fly(host, unique, Some(memory), Reply::Data { from, len }, request);
        Ok(())
    }

    /// Writes what was received.
    fn write(&mut self, host: HostId, unique: u64, Transfer { offset, size, flags }: Transfer) -> Result<(), Errno> {
        let inside = offset.checked_add(u64::from(size)).is_some_and(|end| end <= self.port.disk().size().bytes());
        if !inside {
            // As a device says it.
            return Err(Errno::ENOSPC);
        }
        if size == 0 || size > TRANSFER_MAX {
            return Err(Errno::EINVAL);
        }
        let wanted = if size > COPY_MAX { TRANSFER_MAX } else { size };
        let mut memory = self.pool.take(wanted as usize).ok_or(Errno::ENOMEM)?;
        if size > COPY_MAX {
            std::mem::swap(&mut memory, &mut self.inbox);
        } else {
            memory.bytes()[..size as usize].copy_from_slice(self.inbox.part(size as usize));
        }
        // SAFETY: as in `read`.
        let lent = unsafe { memory.lend(size) };
        let fua = flags & libc::O_DSYNC != 0;
        let request = Request::Write { offset: ByteOffset::new(offset), memory: lent, fua };
        self.fly(host, unique, Some(memory), Reply::Written(size), request);
        Ok(())
    }

    /// Punches holes and writes zeroes, where the size stays.
    fn fallocate(
        &mut self,
        host: HostId,
        unique: u64,
        Fallocate { offset, len, mode }: Fallocate,
    ) -> Result<(), Errno> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.port.disk().size().bytes());
        if !inside {
            return Err(Errno::ENOSPC);
        }
        let range = ByteRange { start: ByteOffset::new(offset), len: ByteSize::new(len) };
        let request = match mode & !libc::FALLOC_FL_KEEP_SIZE {
            libc::FALLOC_FL_PUNCH_HOLE => Request::WriteZeroes { range, allocate: false, fua: false },
            libc::FALLOC_FL_ZERO_RANGE => Request::WriteZeroes { range, allocate: true, fua: false },
            _ => return Err(Errno::EOPNOTSUPP),
        };
        self.fly(host, unique, None, Reply::Done, request);
        Ok(())
    }

    /// Submits a request, with the memory that it reads into or writes from.
    fn fly(&mut self, host: HostId, unique: u64, memory: Option<Chunk>, reply: Reply, request: Request) {
        let Some(tag) = self.free.pop() else { unreachable!("requests are taken while there is room") };
        self.flights[tag as usize] = Some(Flight { unique, memory, reply });
        self.port.submit(host, u64::from(tag), request);
    }

    /// Makes replies of answers. Returns whether there were any.
    fn reply(&mut self) -> bool {
        let mut answers = std::mem::take(&mut self.answers);
        let any = !answers.is_empty();
        for answer in answers.drain(..) {
            // Tags are indices.
            let tag = usize::try_from(answer.tag).unwrap_or(usize::MAX);
            let Some(flight) = self.flights.get_mut(tag).and_then(Option::take) else { continue };
            self.free.push(u32::try_from(tag).unwrap_or(u32::MAX));
            self.reply_to(&flight, answer.outcome);
            if let Some(memory) = flight.memory {
                self.pool.give_back(memory);
            }
        }
        self.answers = answers;
        any
    }

    fn reply_to(&self, flight: &Flight, outcome: Outcome) {
        let (unique, memory) = (flight.unique, flight.memory.as_ref());
        match (outcome, flight.reply) {
            (Err(errno), _) => self.say(unique, Err(errno), &[]),
            (Ok(()), Reply::Data { from, len }) => {
                let data = memory.map_or(&[][..], |memory| &memory.part(from + len)[from..]);
                self.say(unique, Ok(()), data);
            }
            (Ok(()), Reply::Written(size)) => {
                let [a, b, c, d] = size.to_ne_bytes();
                self.say(unique, Ok(()), &[a, b, c, d, 0, 0, 0, 0]);
            }
            (Ok(()), Reply::Done) => self.say(unique, Ok(()), &[]),
        }
    }

    fn say(&self, unique: u64, outcome: Outcome, data: &[u8]) {
        let header: [u8; OUT_HEADER] = abi::reply_header(unique, data.len(), outcome);
        // It is taken whole, or not at all where who asked has given up meanwhile.
        let _ = (&self.device).write_vectored(&[IoSlice::new(&header), IoSlice::new(data)]);
    }
}
