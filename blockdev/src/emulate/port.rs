//! Where one thread puts its requests to the disk: many in flight, and none that blocks another.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::disk::{Disk, Shared};
use super::host::{HostId, Leave};
use super::mailbox::Letter;
use super::request::{Answer, Outcome, Request};
use crate::engine::{Completion, Config, Engine, Interest, Lent, Op, Reserve, Watched};
use crate::error::Result;

/// The zeroes that are written where no operation of the file system makes them.
static ZEROES: Zeroes = Zeroes([0; ZEROES_LEN]);
const ZEROES_LEN: usize = 256 << 10;

/// Aligned for direct I/O.
#[repr(align(4096))]
struct Zeroes([u8; ZEROES_LEN]);

/// The engine's own buffer, of which there is one at least: all memory is lent.
const BUFFER: usize = 4096;

/// The image among the engine's files.
const IMAGE: u32 = 0;

/// A thread's way to the disk. It stays on its thread; dropping it waits for what is on its way to the image.
#[derive(Debug)]
pub struct Port {
    // Dropped first: it waits for the memory that was lent.
    engine: Engine,
    disk: Arc<Disk>,
    shared: Arc<Shared>,
    jobs: Vec<Job>,
    free: Vec<u32>,
    /// Jobs that wait for room in the engine, in the order they came.
    backlog: VecDeque<u32>,
    /// Jobs that wait until the disk lets them.
    barred: Vec<u32>,
    answers: Vec<Answer>,
    done: Vec<Completion>,
    letters: Vec<Letter>,
}

/// A request on its way.
#[derive(Debug, Clone, Copy)]
struct Job {
    tag: u64,
    host: HostId,
    request: Request,
    since: Instant,
    step: Step,
}

/// What the engine is doing for a job, or is to do.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// What was asked for.
    Main,
    /// Zeroes are written from here on, since nothing else could make them.
    Zeroes { from: u64 },
    /// What was done is made durable.
    Sync,
}

impl Port {
    pub(super) fn new(disk: Arc<Disk>, shared: Arc<Shared>, depth: u32) -> Result<Self> {
        let engine = Engine::open(disk.options().engine, &Config::new(depth, 1, BUFFER), vec![disk.target()?])?;
        Ok(Self {
            engine,
            disk,
            shared,
            jobs: Vec::new(),
            free: Vec::new(),
            backlog: VecDeque::new(),
            barred: Vec::new(),
            answers: Vec::new(),
            done: Vec::new(),
            letters: Vec::new(),
        })
    }

    /// The disk it leads to.
    #[must_use]
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// What a person should know about how it runs.
    #[must_use]
    pub fn notices(&self) -> &[String] {
        self.engine.notices()
    }

    /// How many requests are submitted and not yet answered.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.jobs.len() - self.free.len()
    }

    /// Takes a request of `host`. The answer, with `tag`, comes from [`poll`](Self::poll) or [`wait`](Self::wait), also where
    /// the request is wrong.
    pub fn submit(&mut self, host: HostId, tag: u64, request: Request) {
        let job = Job { tag, host, request, since: Instant::now(), step: Step::Main };
        let number = match self.free.pop() {
            Some(number) => {
                self.jobs[number as usize] = job;
                number
            }
            None => {
                self.jobs.push(job);
                // Far more than memory could hold.
                u32::try_from(self.jobs.len() - 1).unwrap_or(u32::MAX)
            }
        };
        if self.is_legal(&request) { self.set_out(number) } else { self.answer(number, Err(Errno::EINVAL)) }
    }

    /// Whether it is about whole sectors of this disk.
    fn is_legal(&self, request: &Request) -> bool {
        let sector = self.disk.options().sector_size;
        let Some(range) = request.range() else { return false };
        let size = self.disk.size();
        let inside = range.end().bytes() <= size.bytes();
        inside && range.start.bytes().is_multiple_of(sector.bytes()) && range.len.is_multiple_of(sector)
    }

    fn set_out(&mut self, number: u32) {
        let job = self.jobs[number as usize];
        match self.disk.set_out(&self.shared, job.host, job.request.operation()) {
            Leave::Go if self.engine.room() > 0 => self.start(number),
            Leave::Go => self.backlog.push_back(number),
            Leave::Wait => self.barred.push(number),
            Leave::Refused(errno) => self.answer(number, Err(errno)),
        }
    }

    /// Hands the next step of a job to the engine, which has room.
    fn start(&mut self, number: u32) {
        let job = self.jobs[number as usize];
        let op = match (job.step, job.request) {
            (Step::Sync, _) | (_, Request::Flush) => Op::Fdatasync { file: IMAGE },
            (Step::Main, Request::Read { offset, memory }) => {
                Op::ReadLent { file: IMAGE, offset: offset.bytes(), memory }
            }
            (Step::Main, Request::Write { offset, memory, .. }) => {
                Op::WriteLent { file: IMAGE, offset: offset.bytes(), memory }
            }
            (Step::Main, Request::Trim { range, .. } | Request::WriteZeroes { range, .. }) if range.is_empty() => {
                return self.arrive(number, Ok(()));
            }
            (Step::Main, Request::Trim { range, .. } | Request::WriteZeroes { range, allocate: false, .. }) => {
                Op::Discard { file: IMAGE, offset: range.start.bytes(), len: range.len.bytes() }
            }
            (Step::Main, Request::WriteZeroes { range, .. }) => Op::Fallocate {
                file: IMAGE,
                mode: Reserve::WriteZeroes,
                offset: range.start.bytes(),
                len: range.len.bytes(),
            },
            (Step::Zeroes { from }, request) => {
                let end = request.range().map_or(from, |range| range.end().bytes());
                #[allow(clippy::cast_possible_truncation, reason = "not more than ZEROES_LEN")]
                let len = (end - from).min(ZEROES_LEN as u64) as u32;
                // SAFETY: the zeroes are always there and never written.
                let memory = unsafe { Lent::new(NonNull::from(&ZEROES.0).cast(), len) };
                Op::WriteLent { file: IMAGE, offset: from, memory }
            }
        };
        if let Err(error) = self.engine.submit(u64::from(number), op) {
            self.arrive(number, Err(errno_of(&error)));
        }
    }

    /// Takes what the engine has done of a job: goes on with the next step, if there is one.
    fn completed(&mut self, number: u32, outcome: Outcome) {
        let job = &mut self.jobs[number as usize];
        let device = self.engine.targets()[IMAGE as usize].is_block_device();
        let next = match (job.step, job.request, outcome) {
            // A trim is a hint.
            (Step::Main, Request::Trim { fua, .. }, Ok(()) | Err(Errno::EOPNOTSUPP)) if !fua => None,
            (Step::Main, Request::Trim { .. }, Ok(()) | Err(Errno::EOPNOTSUPP)) => Some(Step::Sync),
            // What a device discards need not read as zeroes.
            (Step::Main, Request::WriteZeroes { range, allocate: false, .. }, Ok(())) if device => {
                Some(Step::Zeroes { from: range.start.bytes() })
            }
            (
                Step::Main,
                Request::WriteZeroes { range, .. },
                Err(Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENODEV),
            ) => Some(Step::Zeroes { from: range.start.bytes() }),
            (Step::Zeroes { from }, Request::WriteZeroes { range, fua, .. }, Ok(())) => {
                let from = from + (range.end().bytes() - from).min(ZEROES_LEN as u64);
                if from < range.end().bytes() { Some(Step::Zeroes { from }) } else { fua.then_some(Step::Sync) }
            }
            (Step::Main, request, Ok(())) if request.fua() => Some(Step::Sync),
            _ => None,
        };
        match next {
            Some(step) => {
                job.step = step;
                // The engine has the room that this job has just left.
                self.start(number);
            }
            None => self.arrive(number, outcome),
        }
    }

    /// A job has had its effect on the image, or none.
    fn arrive(&mut self, number: u32, outcome: Outcome) {
        let job = &self.jobs[number as usize];
        // The image is a file of this machine, and knows nothing of trimming.
        let outcome = match (job.request, outcome) {
            (Request::Trim { .. }, Err(Errno::EOPNOTSUPP)) => Ok(()),
            (_, outcome) => outcome,
        };
        Disk::arrived(&self.shared, job.host);
        self.answer(number, outcome);
    }

    fn answer(&mut self, number: u32, outcome: Outcome) {
        let job = &self.jobs[number as usize];
        let bytes = job.request.range().map_or(0, |range| range.len.bytes());
        self.shared.counters(job.host).count(job.request.operation(), bytes, outcome, job.since.elapsed());
        self.answers.push(Answer { tag: job.tag, outcome });
        self.free.push(number);
    }

    /// Goes on with whatever can go on, without waiting, and appends the answers there are to `answers`.
    ///
    /// # Errors
    /// When the engine itself fails: then there is no way on.
    pub fn poll(&mut self, answers: &mut Vec<Answer>) -> Result<()> {
        if self.engine.in_flight() > 0 {
            let mut done = std::mem::take(&mut self.done);
            let outcome = self.engine.complete(0, None, &mut done);
            self.advance(&mut done);
            self.done = done;
            outcome?;
        }
        answers.append(&mut self.answers);
        Ok(())
    }

    /// Waits until there is an answer, `watched` is ready, the time is up or a signal came, and appends the answers there are
    /// to `answers`. Returns whether `watched` is ready. It may return for no reason at all.
    ///
    /// # Errors
    /// As [`poll`](Self::poll).
    pub fn wait(
        &mut self,
        watched: Option<(BorrowedFd<'_>, Interest)>,
        timeout: Option<Duration>,
        answers: &mut Vec<Answer>,
    ) -> Result<bool> {
        let timeout = if self.answers.is_empty() { timeout } else { Some(Duration::ZERO) };
        let mail = Watched::new(self.shared.mailbox.as_fd(), Interest::Readable);
        let other = watched.map_or(mail, |(fd, interest)| Watched::new(fd, interest));
        let mut both = [mail, other];
        let count = if watched.is_some() { 2 } else { 1 };
        let mut done = std::mem::take(&mut self.done);
        let outcome = self.engine.complete_or_ready(&mut both[..count], timeout, &mut done);
        self.advance(&mut done);
        self.done = done;
        outcome?;
        if both[0].ready() {
            self.read_letters();
        }
        answers.append(&mut self.answers);
        Ok(count == 2 && both[1].ready())
    }

    fn advance(&mut self, done: &mut Vec<Completion>) {
        for completion in done.drain(..) {
            let outcome = completion.result.map_err(|error| errno_of(&error));
            // Tags are the numbers of jobs.
            self.completed(u32::try_from(completion.tag).unwrap_or(u32::MAX), outcome);
        }
        while self.engine.room() > 0
            && let Some(number) = self.backlog.pop_front()
        {
            self.start(number);
        }
    }

    #[cold]
    fn read_letters(&mut self) {
        let mut letters = std::mem::take(&mut self.letters);
        self.shared.mailbox.take(&mut letters);
        for letter in letters.drain(..) {
            match letter {
                Letter::Look => {
                    for number in std::mem::take(&mut self.barred) {
                        self.set_out(number);
                    }
                }
            }
        }
        self.letters = letters;
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // What is on its way to the image comes to its end, and is counted as having come there.
        let mut done = Vec::new();
        self.backlog.drain(..).for_each(|number| Disk::arrived(&self.shared, self.jobs[number as usize].host));
        if self.engine.drain(&mut done).is_err() {
            done.clear();
        }
        for completion in done {
            let number = usize::try_from(completion.tag).unwrap_or(usize::MAX);
            if let Some(job) = self.jobs.get(number) {
                Disk::arrived(&self.shared, job.host);
            }
        }
        self.disk.close_port(&self.shared);
    }
}

/// What a block device would say of an error.
fn errno_of(error: &crate::Error) -> Errno {
    error.errno().map_or(Errno::EIO, Errno::from_raw)
}
