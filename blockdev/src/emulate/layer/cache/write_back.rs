//! The thread that writes what is in the cache to the image.

use std::collections::VecDeque;
use std::sync::{MutexGuard, PoisonError};

use nix::errno::Errno;

use super::log::{Content, Entry, usize_of};
use super::{Cut, Durable, Inner, Keep, Loss, State, Wish};
use crate::emulate::mailbox::{Letter, lock};
use crate::emulate::memory::zeroes;
use crate::emulate::port::errno_of;
use crate::emulate::request::Outcome;
use crate::engine::{Completion, Engine, Op};

/// A write to the image.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) content: Content,
    pub(super) from: u64,
}

/// The thread that writes to the image.
pub(super) struct WriteBack {
    pub(super) engine: Engine,
    pub(super) device: bool,
    pub(super) sector: u64,
    pub(super) done: Vec<Completion>,
}

impl WriteBack {
    pub(super) fn run(mut self, inner: &Inner) {
        let mut state = lock(&inner.state);
        loop {
            if let Some(Cut { keep, seed, tell }) = state.cut.take() {
                let log = state.log.clear();
                drop(state);
                // Who does not wait for it any more need not know.
                let _ = tell.send(self.lose(&log, keep, seed));
                state = lock(&inner.state);
                state = tell_waiting(state, Ok(()));
            } else if !state.wishes.is_empty() {
                state = self.fulfil(inner, state);
            } else if !state.waiting.is_empty() {
                state = self.make_room(inner, state);
            } else if state.ending {
                return;
            } else {
                state = inner.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Makes durable what was wished for: first single writes, then everything, once for all who wish for that.
    fn fulfil<'a>(&mut self, inner: &'a Inner, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let (all, single): (Vec<Wish>, Vec<Wish>) =
            std::mem::take(&mut state.wishes).into_iter().partition(|wish| wish.what == Durable::All);
        // All of each, also what something newer lies over: that is not durable.
        let entries = single.iter().filter_map(|wish| match wish.what {
            Durable::Entry(seq) => state.log.entry(seq),
            Durable::All => None,
        });
        let writes: Vec<Write> = entries.flat_map(Entry::writes).collect();
        let last = state.log.next().checked_sub(1);
        let everything =
            if all.is_empty() { Vec::new() } else { last.map_or(Vec::new(), |last| state.log.newest(last)) };
        drop(state);
        let mut outcome = if single.is_empty() { Ok(()) } else { self.write(&writes, true).and_then(|()| self.sync()) };
        let alone = outcome;
        if outcome.is_ok() && !all.is_empty() {
            outcome = self.write(&everything, false).and_then(|()| self.sync());
        }
        let mut state = lock(&inner.state);
        if alone.is_ok() {
            for wish in &single {
                if let Durable::Entry(seq) = wish.what {
                    state.log.settle_alone(seq);
                }
            }
        }
        if outcome.is_ok()
            && !all.is_empty()
            && let Some(last) = last
        {
            state.log.settle(last);
        }
        single.into_iter().for_each(|wish| wish.who.told(alone));
        all.into_iter().for_each(|wish| wish.who.told(outcome));
        if state.waiting.is_empty() { state } else { tell_waiting(state, Ok(())) }
    }

    /// Writes the oldest to the image: half of them, or all where there is little.
    fn make_room<'a>(&mut self, inner: &'a Inner, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let half = inner.capacity / 2;
        let goal = if state.log.dirty > half { half } else { 0 };
        let mut left = state.log.dirty;
        let mut writes = Vec::new();
        let mut last = None;
        for (seq, entry) in (state.log.first..).zip(&state.log.entries) {
            if left <= goal {
                break;
            }
            left -= entry.weight();
            last = Some(seq);
            writes.extend(entry.writes());
        }
        drop(state);
        let outcome = self.write(&writes, true);
        let mut state = lock(&inner.state);
        if outcome.is_ok()
            && let Some(last) = last
        {
            state.log.settle(last);
        }
        tell_waiting(state, outcome)
    }

    /// What is left of the log when the power has gone, written to the image.
    fn lose(&mut self, log: &VecDeque<Entry>, keep: Keep, seed: u64) -> std::result::Result<Loss, Errno> {
        let mut rng = fastrand::Rng::with_seed(seed);
        // What has been made durable since cannot be lost.
        let entries: Vec<&Entry> = log.iter().filter(|entry| !entry.left.is_empty()).collect();
        let mut loss = Loss { unflushed: entries.len() as u64, ..Loss::default() };
        let mut writes = Vec::new();
        // The moment: before an entry, or after the last.
        let moment = if keep == Keep::Prefix { rng.usize(..=entries.len()) } else { 0 };
        for (index, entry) in entries.into_iter().enumerate() {
            let sectors = entry.len.div_ceil(self.sector);
            let survives: Vec<bool> = match keep {
                Keep::None => vec![false],
                Keep::Random => match rng.u8(..3) {
                    0 => vec![false],
                    1 => vec![true],
                    _ => (0..sectors).map(|_| rng.bool()).collect(),
                },
                Keep::Prefix if index < moment => vec![true],
                Keep::Prefix if index == moment => {
                    let torn = rng.u64(..sectors.max(1));
                    (0..sectors).map(|sector| sector < torn).collect()
                }
                Keep::Prefix => vec![false],
            };
            if survives.iter().all(|survives| *survives) {
                loss.kept += 1;
                writes.extend(entry.writes());
            } else if survives.iter().any(|survives| *survives) {
                loss.torn += 1;
                for (sector, _) in (0..).zip(&survives).filter(|(_, survives)| **survives) {
                    let start = entry.start + sector * self.sector;
                    let end = (start + self.sector).min(entry.start + entry.len);
                    let parts = entry.left.iter().map(|(from, to)| (start.max(*from), end.min(*to)));
                    writes.extend(parts.filter(|(from, to)| from < to).map(|(from, to)| entry.part(from, to)));
                }
            } else {
                loss.lost += 1;
            }
        }
        self.write(&writes, true)?;
        Ok(loss)
    }

    /// Writes to the image; where they may overlap, in their order.
    fn write(&mut self, writes: &[Write], ordered: bool) -> Outcome {
        let mut under_way: Vec<(u64, u64)> = Vec::new();
        let mut outcome = Ok(());
        for write in writes {
            let (start, end) = (write.start, write.start + write.len);
            if ordered && under_way.iter().any(|(from, to)| *from < end && start < *to) {
                outcome = outcome.and(self.arrive());
                under_way.clear();
            }
            if ordered {
                under_way.push((start, end));
            }
            outcome = outcome.and(self.submit(write));
        }
        // They stay until all of it has arrived.
        outcome.and(self.arrive())
    }

    fn submit(&mut self, write: &Write) -> Outcome {
        let (mut at, end) = (write.start, write.start + write.len);
        while at < end {
            while self.engine.room() == 0 {
                self.complete(1)?;
            }
            let left = end - at;
            let (op, len) = match &write.content {
                Content::Data(data) => {
                    let from = usize_of(write.from);
                    // SAFETY: `write` waits for what it has submitted before it gives the chunk back, and nobody writes it.
                    let memory = unsafe { data.lend_part(from, usize_of(left)) };
                    (Op::WriteLent { file: 0, offset: at, memory }, left)
                }
                Content::Zeroes { allocate: false } if !self.device => {
                    (Op::Discard { file: 0, offset: at, len: left }, left)
                }
                Content::Zeroes { .. } => {
                    let memory = zeroes(left);
                    (Op::WriteLent { file: 0, offset: at, memory }, u64::from(memory.len()))
                }
            };
            self.engine.submit(0, op).map_err(|error| errno_of(&error))?;
            at += len;
        }
        Ok(())
    }

    fn sync(&mut self) -> Outcome {
        self.engine.submit(0, Op::Fdatasync { file: 0 }).map_err(|error| errno_of(&error))?;
        self.arrive()
    }

    fn arrive(&mut self) -> Outcome {
        let mut outcome = Ok(());
        while self.engine.in_flight() > 0 {
            outcome = outcome.and(self.complete(self.engine.in_flight()));
        }
        outcome
    }

    fn complete(&mut self, min: usize) -> Outcome {
        let waited = self.engine.complete(min, None, &mut self.done);
        let failed = self.done.drain(..).find_map(|completion| completion.result.err());
        waited.map_err(|error| errno_of(&error))?;
        failed.map_or(Ok(()), |error| Err(errno_of(&error)))
    }
}

/// Those who wait for room may go on, or learn that there will be none.
fn tell_waiting(mut state: MutexGuard<'_, State>, outcome: Outcome) -> MutexGuard<'_, State> {
    for (port, job) in state.waiting.drain(..) {
        let letter = if outcome.is_ok() { Letter::GoOn { job } } else { Letter::Done { job, outcome } };
        port.mailbox.send(letter);
    }
    state
}
