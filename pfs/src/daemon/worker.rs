//! Workers: they look for requests, carry them out, and answer.
//!
//! There is no doorbell, so somebody has to look. Under load the looking is what there is to do anyway; without, one worker
//! looks once a millisecond and all others are parked. In between a worker that just had something to do goes on looking for
//! a moment, since who was answered usually asks again, then sleeps a little, then longer.
//!
//! A worker keeps many requests in flight, so what makes it need help is not how many there are but that it never has to wait
//! for the device: then it is the processor that is short, and it wakes one that is parked. One that mostly waits goes, unless
//! it is the last: what it had to do, another does besides, and looks for all.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::mount::{Current, MOUNT, Mount, Mounts};
use super::session::{Session, Surroundings, TASKS_MAX};
use super::slots::{Found, Slots};

/// How long to look without a pause after there was something.
const SPIN: Duration = Duration::from_micros(60);

/// How long to look without a pause whether a request is done, or another has come: to be woken would take a good part of the
/// time that a device does. Whoever else can run does so meanwhile.
const SPIN_DEVICE: Duration = Duration::from_micros(250);

/// Of so few requests the clients are waiting for just these: none is to wait for another.
const FEW: usize = 2;

/// How long to sleep no longer than the shortest nap then.
const ALERT: Duration = Duration::from_micros(300);

/// The shortest and the longest sleep between two looks.
const NAP_MIN: Duration = Duration::from_micros(8);
const NAP_MAX: Duration = Duration::from_millis(1);

/// How long to wait for the device before looking for requests again, and of the time since there was something the part that
/// it is, up to the most: who asks a disk that takes milliseconds does not notice.
const WAIT: Duration = Duration::from_micros(25);
const WAIT_PART: u32 = 8;
const WAIT_MAX: Duration = Duration::from_micros(250);

/// Over how long to judge whether a worker has too much to do, or too little.
const WINDOW: Duration = Duration::from_millis(4);

/// A worker that waits for less than one part in so many of the time calls for help.
const SHORT: u32 = 16;

/// A worker that waits for more than one part in so many of the time goes.
const AMPLE: u32 = 3;

/// All workers.
#[derive(Debug)]
pub(super) struct Crew {
    /// How many are not parked.
    active: AtomicUsize,
    parked: Mutex<Parked>,
    called: Condvar,
    stop: AtomicBool,
    /// How many there should be at most that are not parked: no more than can run.
    limit: usize,
    /// Never sleep.
    busy_poll: bool,
}

#[derive(Debug, Default)]
struct Parked {
    waiting: usize,
    calls: usize,
}

impl Crew {
    pub(super) fn new(workers: usize, busy_poll: bool) -> Self {
        Self {
            active: AtomicUsize::new(workers),
            parked: Mutex::default(),
            called: Condvar::new(),
            stop: AtomicBool::new(false),
            limit: std::thread::available_parallelism().map_or(workers, |cpus| workers.min(cpus.get())),
            busy_poll,
        }
    }

    /// Tells all workers to end what they are doing, and to do nothing more.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.rouse();
    }

    /// Lets all that are parked look whether they still should be.
    pub(super) fn rouse(&self) {
        // With the lock, so that none that has looked already and does not wait yet misses it.
        let _parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        self.called.notify_all();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// How many look for requests now.
    pub(super) fn active(&self) -> usize {
        self.active.load(Ordering::Relaxed)
    }

    /// Wakes a worker that is parked, if one is and it could run.
    fn call(&self) {
        if self.active() >= self.limit {
            return;
        }
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        if parked.calls < parked.waiting {
            parked.calls += 1;
            self.called.notify_one();
        }
    }

    /// Takes a worker out of those that look for requests, unless it is the last. Returns whether it is out: it then ends what
    /// it has under way, and [rests](Self::rest).
    fn leave(&self) -> bool {
        let leave = |active: usize| active.checked_sub(1).filter(|left| *left > 0);
        self.active.fetch_update(Ordering::AcqRel, Ordering::Acquire, leave).is_ok()
    }

    /// Takes one that is out back in.
    fn join(&self) {
        self.active.fetch_add(1, Ordering::AcqRel);
    }

    /// Parks until called, or until the mount is not of this generation any more: whoever is parked may have it open. For one
    /// that is out; it is in again afterwards.
    fn rest(&self, mounts: &Mounts, generation: u64) {
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        parked.waiting += 1;
        while parked.calls == 0 && !self.is_stopped() && mounts.generation() == generation {
            parked = self.called.wait(parked).unwrap_or_else(PoisonError::into_inner);
        }
        parked.waiting -= 1;
        parked.calls = parked.calls.saturating_sub(1);
        drop(parked);
        self.join();
    }
}

/// One worker.
#[derive(Debug)]
pub(super) struct Worker<'a> {
    /// Its number, and how many there are.
    pub(super) index: usize,
    pub(super) of: usize,
    pub(super) crew: &'a Crew,
    pub(super) mounts: &'a Mounts,
    pub(super) around: Surroundings<'a>,
}

impl Worker<'_> {
    /// Works until the crew is stopped.
    pub(super) fn run(&self) {
        // Naps of tens of microseconds would otherwise take 50 more. Where that cannot be had, they do.
        let _ = nix::sys::prctl::set_timerslack(1_000);
        while !self.crew.is_stopped() {
            let (current, generation) = self.mounts.current();
            match current {
                Current::Mounted(mount) => self.serve(&mount, generation),
                Current::Unmounted => self.refuse(generation),
                // It will be something else soon.
                Current::Paused => std::thread::sleep(NAP_MAX),
            }
        }
    }

    /// Where to begin looking, so that not all look at the same.
    fn first(&self, slots: &Slots) -> usize {
        self.index * slots.channels() / self.of
    }

    /// Works on a volume for as long as it is mounted so.
    fn serve(&self, mount: &Mount, generation: u64) {
        let slots = self.around.slots;
        let mut first = self.first(slots);
        let mut session: Option<Session<'_>> = None;
        let mut idle = Idle::new(self.crew);
        let mut load = Load::new();
        let mut is_out = false;
        loop {
            let leaving = self.mounts.generation() != generation || self.crew.is_stopped();
            let mut found = false;
            let under_way = session.as_ref().map_or(0, Session::len);
            if !leaving && !is_out && under_way < TASKS_MAX {
                let mut room = TASKS_MAX - under_way;
                found = slots.scan(first, |found| {
                    self.take(mount, &mut session, found);
                    room -= 1;
                    room > 0
                });
                // Should there be too much for one, nobody is always the last.
                first = (first + 1) % slots.channels();
            }
            let under_way = session.as_ref().map_or(0, Session::len);
            self.around.counters.set_depth(under_way);
            if leaving && under_way == 0 {
                if is_out {
                    self.crew.join();
                }
                return;
            }
            let before = Instant::now();
            match &mut session {
                Some(session) if under_way > 0 => {
                    let few = under_way <= FEW;
                    let spin = idle.for_no_longer_than(SPIN_DEVICE);
                    let wait = if spin || found && few { Duration::ZERO } else { idle.wait() };
                    if spin && !found {
                        // Whoever else has something to do may need this processor for that.
                        std::thread::yield_now();
                    }
                    if let Err(error) = session.turn(wait) {
                        self.around.log.error("a worker cannot go on with its device", &error);
                        std::thread::sleep(NAP_MAX);
                    }
                    if found || session.len() < under_way {
                        idle.begin();
                    }
                }
                _ if is_out => {
                    self.crew.rest(self.mounts, generation);
                    (is_out, load) = (false, Load::new());
                    continue;
                }
                _ if found => idle.begin(),
                _ => idle.pass(),
            }
            match load.judge(before, !found) {
                Verdict::Short => self.crew.call(),
                Verdict::Ample if !is_out => is_out = self.crew.leave(),
                Verdict::Ample | Verdict::Fair => {}
            }
        }
    }

    fn take<'m>(&self, mount: &'m Mount, session: &mut Option<Session<'m>>, found: Found)
    where
        Self: 'm,
    {
        let taken = match found {
            Found::Stale(taken) => return self.around.slots.answer_stale(taken, MOUNT),
            Found::Request(taken) => taken,
        };
        if session.is_none() {
            match Session::new(mount, self.around) {
                Ok(new) => *session = Some(new),
                Err(error) => {
                    self.around.log.error("a worker cannot reach the device", &error);
                    return self.around.slots.answer(taken, 0, &Err(libc::EIO));
                }
            }
        }
        if let Some(session) = session {
            session.begin(taken);
        }
    }

    /// Answers that there is no volume, for as long as there is none.
    fn refuse(&self, generation: u64) {
        let mut idle = Idle::new(self.crew);
        while self.mounts.generation() == generation && !self.crew.is_stopped() {
            let found = self.around.slots.scan(self.first(self.around.slots), |found| {
                match found {
                    Found::Stale(taken) => self.around.slots.answer_stale(taken, MOUNT),
                    Found::Request(taken) => {
                        let number = self.around.slots.request(&taken).1.map_or(0, |request| request.number());
                        self.around.slots.answer(taken, number, &Err(libc::ENODEV));
                    }
                }
                true
            });
            match found {
                true => idle.begin(),
                // One is enough to say no.
                false if self.crew.leave() => self.crew.rest(self.mounts, generation),
                false => idle.pass(),
            }
        }
    }
}

/// Whether a worker has too much to do, or too little, by how much of the time it waits.
#[derive(Debug)]
struct Load {
    since: Instant,
    waited: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Fair,
    Short,
    Ample,
}

impl Load {
    fn new() -> Self {
        Self { since: Instant::now(), waited: Duration::ZERO }
    }

    /// Counts the time since `before`, in which it waited or worked. Says what it finds at the end of each window.
    fn judge(&mut self, before: Instant, waited: bool) -> Verdict {
        let now = Instant::now();
        if waited {
            self.waited += now - before;
        }
        let window = now - self.since;
        if window < WINDOW {
            return Verdict::Fair;
        }
        let verdict = match self.waited {
            waited if waited * SHORT < window => Verdict::Short,
            waited if waited * AMPLE > window => Verdict::Ample,
            _ => Verdict::Fair,
        };
        *self = Self { since: now, waited: Duration::ZERO };
        verdict
    }
}

/// What a worker does that has nothing to do.
#[derive(Debug)]
struct Idle<'a> {
    crew: &'a Crew,
    since: Option<Instant>,
    nap: Duration,
}

impl<'a> Idle<'a> {
    fn new(crew: &'a Crew) -> Self {
        Self { crew, since: None, nap: NAP_MIN }
    }

    /// There was something to do.
    fn begin(&mut self) {
        self.since = None;
        self.nap = NAP_MIN;
    }

    /// Whether there was something to do so short a time ago.
    fn for_no_longer_than(&mut self, time: Duration) -> bool {
        self.since.get_or_insert_with(Instant::now).elapsed() <= time
    }

    /// How long to wait for the device.
    fn wait(&mut self) -> Duration {
        let idle = self.since.get_or_insert_with(Instant::now).elapsed();
        if self.crew.busy_poll { WAIT } else { (idle / WAIT_PART).clamp(WAIT, WAIT_MAX) }
    }

    /// There was nothing to do.
    fn pass(&mut self) {
        if self.crew.busy_poll {
            return std::hint::spin_loop();
        }
        let idle = self.since.get_or_insert_with(Instant::now).elapsed();
        if idle < SPIN {
            // Whoever is about to ask may need this processor for that.
            std::thread::yield_now();
        } else {
            std::thread::sleep(self.nap);
            if idle > ALERT {
                self.nap = (self.nap * 2).min(NAP_MAX);
            }
        }
    }
}
