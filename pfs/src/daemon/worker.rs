//! Workers: they look for requests, carry them out, and answer.
//!
//! There is no doorbell, so somebody has to look. Under load the looking is what there is to do anyway; without, one worker
//! looks once a millisecond and all others are parked. In between a worker that just had something to do goes on looking for
//! a moment, since who was answered usually asks again, then sleeps a little, then longer. A worker that has more than it
//! should keep to itself wakes one that is parked.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::mount::{Current, MOUNT, Mount, Mounts};
use super::session::{Session, Surroundings, TASKS_MAX};
use super::slots::{Found, Slots};

/// How long to look without a pause after there was something.
const SPIN: Duration = Duration::from_micros(60);

/// The shortest and the longest sleep between two looks.
const NAP_MIN: Duration = Duration::from_micros(20);
const NAP_MAX: Duration = Duration::from_millis(1);

/// How long to wait for the device before looking for requests again.
const WAIT: Duration = Duration::from_micros(25);

/// From how many requests under way on a worker calls for help.
const ENOUGH: usize = 6;

/// How long a worker that has nothing to do stays, if it is not the last.
const STAY: Duration = Duration::from_millis(5);

/// All workers.
#[derive(Debug)]
pub(super) struct Crew {
    /// How many are not parked.
    active: AtomicUsize,
    parked: Mutex<Parked>,
    called: Condvar,
    stop: AtomicBool,
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

    /// Wakes a worker that is parked, if one is.
    fn call(&self, workers: usize) {
        if self.active.load(Ordering::Relaxed) >= workers {
            return;
        }
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        if parked.calls < parked.waiting {
            parked.calls += 1;
            self.called.notify_one();
        }
    }

    /// Parks until called, or until the mount is not of this generation any more: whoever is parked may have it open. The last
    /// one does not park. Returns whether it did.
    fn park(&self, mounts: &Mounts, generation: u64) -> bool {
        let leave = |active: usize| active.checked_sub(1).filter(|left| *left > 0);
        if self.active.fetch_update(Ordering::AcqRel, Ordering::Acquire, leave).is_err() {
            return false;
        }
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        parked.waiting += 1;
        while parked.calls == 0 && !self.is_stopped() && mounts.generation() == generation {
            parked = self.called.wait(parked).unwrap_or_else(PoisonError::into_inner);
        }
        parked.waiting -= 1;
        parked.calls = parked.calls.saturating_sub(1);
        self.active.fetch_add(1, Ordering::AcqRel);
        true
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
        let mut idle = Idle::new(self.crew, self.mounts, generation);
        loop {
            let leaving = self.mounts.generation() != generation || self.crew.is_stopped();
            let mut found = false;
            if !leaving {
                let room = session.as_ref().map_or(TASKS_MAX, |session| TASKS_MAX - session.len());
                let mut taken = 0;
                found = room > 0
                    && slots.scan(first, |found| {
                        self.take(mount, &mut session, found);
                        taken += 1;
                        taken < room
                    });
                // Should there be too much for one, nobody is always the last.
                first = (first + 1) % slots.channels();
            }
            let under_way = session.as_ref().map_or(0, Session::len);
            self.around.counters.set_depth(under_way);
            if leaving && under_way == 0 {
                return;
            }
            if under_way > ENOUGH {
                self.crew.call(self.of);
            }
            match &mut session {
                Some(session) if under_way > 0 => {
                    let wait = if found { Duration::ZERO } else { WAIT };
                    if let Err(error) = session.turn(wait) {
                        self.around.log.error("a worker cannot go on with its device", &error);
                        std::thread::sleep(NAP_MAX);
                    }
                    idle.begin();
                }
                _ if found => idle.begin(),
                _ => idle.pass(),
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
        let mut idle = Idle::new(self.crew, self.mounts, generation);
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
            if found { idle.begin() } else { idle.pass() }
        }
    }
}

/// What a worker does that has nothing to do.
#[derive(Debug)]
struct Idle<'a> {
    crew: &'a Crew,
    mounts: &'a Mounts,
    generation: u64,
    since: Option<Instant>,
    nap: Duration,
}

impl<'a> Idle<'a> {
    fn new(crew: &'a Crew, mounts: &'a Mounts, generation: u64) -> Self {
        Self { crew, mounts, generation, since: None, nap: NAP_MIN }
    }

    /// There was something to do.
    fn begin(&mut self) {
        self.since = None;
        self.nap = NAP_MIN;
    }

    /// There was nothing to do.
    fn pass(&mut self) {
        if self.crew.busy_poll {
            return std::hint::spin_loop();
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        let idle = since.elapsed();
        if idle < SPIN {
            // Whoever is about to ask may need this processor for that.
            std::thread::yield_now();
        } else if idle > STAY && self.crew.park(self.mounts, self.generation) {
            self.begin();
        } else {
            std::thread::sleep(self.nap);
            self.nap = (self.nap * 2).min(NAP_MAX);
        }
    }
}
