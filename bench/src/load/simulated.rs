//! A disk and a clock that are one and the same: time passes only when somebody waits.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use blockdev::engine::Completion;
use blockdev::{Error, ErrorKind, Result};

use super::offsets::Kind;
use super::queue::{Queue, Wait};
use super::recorder::nanos;

/// What looking at the queue takes, so that spinning gets somewhere.
const POLL_NS: u64 = 100;

/// An operation as it reached the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) at: u64,
    pub(super) kind: Kind,
    pub(super) offset: u64,
}

/// A disk on which an operation submitted at some time is complete at the time that `completes` says.
pub(super) struct Simulated<F> {
    now: u64,
    completes: F,
    /// When each completes, its tag and its offset.
    in_flight: BinaryHeap<Reverse<(u64, u32, u64)>>,
    /// All that was submitted, in order.
    pub(super) seen: Vec<Seen>,
    /// Most operations that were in flight together.
    pub(super) deepest: usize,
    /// The offset where every operation fails.
    pub(super) bad: Option<u64>,
}

impl<F: FnMut(u64, Kind) -> u64> Simulated<F> {
    pub(super) fn new(completes: F) -> Self {
        Self { now: 0, completes, in_flight: BinaryHeap::new(), seen: Vec::new(), deepest: 0, bad: None }
    }

    fn first_done(&self) -> Option<u64> {
        self.in_flight.peek().map(|Reverse((at, ..))| *at)
    }
}

impl<F: FnMut(u64, Kind) -> u64> Queue for Simulated<F> {
    fn now(&self) -> u64 {
        self.now
    }

    fn submit(&mut self, tag: u32, kind: Kind, offset: u64) -> Result<()> {
        assert!(self.in_flight.iter().all(|Reverse((_, other, _))| *other != tag), "tag {tag} is in flight");
        let done = (self.completes)(self.now, kind);
        assert!(done >= self.now, "nothing completes before it began");
        self.in_flight.push(Reverse((done, tag, offset)));
        self.seen.push(Seen { at: self.now, kind, offset });
        self.deepest = self.deepest.max(self.in_flight.len());
        Ok(())
    }

    fn complete(&mut self, wait: Wait, done: &mut Vec<Completion>) -> Result<()> {
        self.now = match (wait, self.first_done()) {
            (Wait::Not, _) => self.now + POLL_NS,
            (Wait::AtMost(time), None) => self.now + nanos(time),
            (Wait::AtMost(time), Some(first)) => first.clamp(self.now, self.now + nanos(time)),
            (Wait::ForCompletion, first) => first.expect("something is in flight to wait for").max(self.now),
        };
        while self.first_done().is_some_and(|at| at <= self.now)
            && let Some(Reverse((_, tag, offset))) = self.in_flight.pop()
        {
            let failed = self.bad == Some(offset);
            let result = if failed { Err(Error::new(ErrorKind::Io, "a bad block")) } else { Ok(()) };
            done.push(Completion { tag: u64::from(tag), result });
        }
        Ok(())
    }
}

/// Milliseconds in nanoseconds.
pub(super) const fn ms(ms: u64) -> u64 {
    ms * 1_000_000
}
