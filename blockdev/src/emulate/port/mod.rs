//! Where one thread puts its requests to the disk: many in flight, and none that blocks another.
//!
//! A request is a job with a number. Where the disk has layers it goes [through them](layered); then it has its
//! [effect](effect) on the image. Whatever a job has to wait for (a completion of the engine, a moment, a letter, the gate), the
//! port waits for all of it at once.

mod effect;
mod layered;
mod timer;

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::disk::{Disk, Shared};
use super::host::{HostId, Leave};
use super::layer::Stack;
use super::mailbox::Letter;
use super::request::{Answer, Outcome, Request};
use crate::engine::{Completion, Config, Engine, Interest, Watched};
use crate::error::Result;
use effect::Step;
use layered::{Layered, Stage};
use timer::Timers;

/// The engine's own buffer, of which there is one at least: all memory is lent.
const BUFFER: usize = 4096;

/// A thread's way to the disk. It stays on its thread; dropping it waits for what is on its way to the image.
#[derive(Debug)]
pub struct Port {
    // Dropped first: it waits for the memory that was lent.
    engine: Engine,
    disk: Arc<Disk>,
    shared: Arc<Shared>,
    /// The layers when somebody looked last, and when that was.
    stack: Arc<Stack>,
    generation: u64,
    jobs: Vec<Job>,
    free: Vec<u32>,
    /// Jobs that wait for room in the engine, in the order they came.
    backlog: VecDeque<u32>,
    /// Jobs that wait until something about the disk changes.
    barred: Vec<u32>,
    timers: Timers,
    rng: fastrand::Rng,
    answers: Vec<Answer>,
    done: Vec<Completion>,
    letters: Vec<Letter>,
}

/// A request on its way.
#[derive(Debug)]
struct Job {
    tag: u64,
    host: HostId,
    request: Request,
    since: Instant,
    step: Step,
    /// What it has to do with layers, if there are any.
    layered: Option<Box<Layered>>,
}

impl Job {
    /// What it does to the disk, which need not be what was asked for.
    fn effect(&self) -> Request {
        self.layered.as_ref().map_or(self.request, |layered| layered.effect)
    }
}

impl Port {
    pub(super) fn new(disk: Arc<Disk>, shared: Arc<Shared>, depth: u32) -> Result<Self> {
        let engine = Engine::open(disk.options().engine, &Config::new(depth, 1, BUFFER), vec![disk.target()?])?;
        let (generation, stack) = disk.stack();
        Ok(Self {
            engine,
            disk,
            shared,
            stack,
            generation,
            jobs: Vec::new(),
            free: Vec::new(),
            backlog: VecDeque::new(),
            barred: Vec::new(),
            timers: Timers::new(),
            rng: fastrand::Rng::new(),
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

    /// What others need of it.
    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
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
        let job = Job { tag, host, request, since: Instant::now(), step: Step::Main, layered: None };
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
        self.look_at_layers();
        if !self.is_legal(&request) {
            self.answer(number, Err(Errno::EINVAL));
        } else if self.stack.is_empty() {
            self.set_out(number);
        } else {
            self.enter(number);
        }
    }

    fn job(&mut self, number: u32) -> &mut Job {
        &mut self.jobs[number as usize]
    }

    /// Sees whether the layers have changed.
    fn look_at_layers(&mut self) {
        if self.disk.generation() != self.generation {
            (self.generation, self.stack) = self.disk.stack();
        }
    }

    /// Whether it is about whole sectors of this disk.
    fn is_legal(&self, request: &Request) -> bool {
        let sector = self.disk.options().sector_size;
        let Some(range) = request.range() else { return false };
        let size = self.disk.size();
        let inside = range.end().bytes() <= size.bytes();
        inside && range.start.bytes().is_multiple_of(sector.bytes()) && range.len.is_multiple_of(sector)
    }

    /// Asks the gate of the job's host for leave, and lets it have its effect.
    fn set_out(&mut self, number: u32) {
        let job = &self.jobs[number as usize];
        match self.disk.set_out(&self.shared, job.host, job.request.operation()) {
            Leave::Go => {
                // What it goes through now stays as it is until it arrives.
                self.look_at_layers();
                self.begin(number);
            }
            Leave::Wait => self.wait_for_change(number, Stage::AtGate),
            Leave::Refused(errno) => self.finish(number, Err(errno)),
        }
    }

    /// Waits until something about the disk changes.
    fn wait_for_change(&mut self, number: u32, stage: Stage) {
        self.stage(number, stage);
        self.barred.push(number);
    }

    fn answer(&mut self, number: u32, outcome: Outcome) {
        let job = &mut self.jobs[number as usize];
        if let Some(depth) = job.layered.take().and_then(|layered| layered.place) {
            depth.leave();
        }
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
        self.go_on();
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
        let timeout = if self.answers.is_empty() { self.timers.timeout(timeout) } else { Some(Duration::ZERO) };
        let mail = Watched::new(self.shared.mailbox.as_fd(), Interest::Readable);
        let other = watched.map_or(mail, |(fd, interest)| Watched::new(fd, interest));
        let mut both = [mail, other];
        let count = if watched.is_some() { 2 } else { 1 };
        let mut done = std::mem::take(&mut self.done);
        let outcome = self.engine.complete_or_ready(&mut both[..count], timeout, &mut done);
        self.timers.woke();
        self.advance(&mut done);
        self.done = done;
        outcome?;
        self.go_on();
        answers.append(&mut self.answers);
        Ok(count == 2 && both[1].ready())
    }

    /// Takes what the engine has done, and gives it what waited for room.
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

    /// Goes on with the jobs whose time has come, or that have a letter.
    fn go_on(&mut self) {
        if !self.timers.is_empty() {
            let now = Instant::now();
            while let Some(number) = self.timers.due(now) {
                self.time_is_up(number);
            }
        }
        if self.shared.mailbox.is_full() {
            self.read_letters();
        }
    }

    #[cold]
    fn read_letters(&mut self) {
        let mut letters = std::mem::take(&mut self.letters);
        self.shared.mailbox.take(&mut letters);
        for letter in letters.drain(..) {
            match letter {
                Letter::Look => {
                    self.look_at_layers();
                    for number in std::mem::take(&mut self.barred) {
                        self.look_again(number);
                    }
                }
                Letter::Done { job, outcome } => self.done_elsewhere(job, outcome),
                Letter::GoOn { job } => self.told_to_go_on(job),
            }
        }
        self.letters = letters;
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // What is on its way to the image comes to its end. Should the engine fail, dropping it does not return.
        let mut done = Vec::new();
        let _ = self.engine.drain(&mut done);
        self.leave_layers();
        self.disk.close_port(&self.shared);
    }
}

/// What a block device would say of an error.
pub(super) fn errno_of(error: &crate::Error) -> Errno {
    error.errno().map_or(Errno::EIO, Errno::from_raw)
}
