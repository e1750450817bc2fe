//! Where a generator's operations go, and what time it is there: the engine and the clock, or a simulation of both.

use std::thread;
use std::time::{Duration, Instant};

use blockdev::Result;
use blockdev::engine::{Completion, Engine, Op, Span};

use super::offsets::Kind;

/// How long to wait for completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// Not at all: take what is there.
    Not,
    /// Until something completes or so much time has passed, which it does even with nothing in flight.
    AtMost(Duration),
    /// Until something completes; something must be in flight.
    ForCompletion,
}

/// A queue of operations with a clock. The tag of an operation is also the number of its buffer.
pub(super) trait Queue {
    /// Nanoseconds since the run began.
    fn now(&self) -> u64;

    /// Queues an operation, which starts at the next [`complete`](Self::complete).
    fn submit(&mut self, tag: u32, kind: Kind, offset: u64) -> Result<()>;

    /// Starts what is queued, waits, and appends all that is complete.
    fn complete(&mut self, wait: Wait, done: &mut Vec<Completion>) -> Result<()>;
}

/// The real disk in real time.
#[derive(Debug)]
pub(super) struct EngineQueue {
    engine: Engine,
    epoch: Instant,
    block: u32,
}

impl EngineQueue {
    /// A queue over the first target of `engine`, whose time began at `epoch`.
    pub(super) fn new(engine: Engine, epoch: Instant, block: u32) -> Self {
        Self { engine, epoch, block }
    }
}

impl Queue for EngineQueue {
    #[inline]
    fn now(&self) -> u64 {
        // Cheaper than `elapsed` through a Duration's u128, and 584 years are enough.
        let elapsed = self.epoch.elapsed();
        elapsed.as_secs() * 1_000_000_000 + u64::from(elapsed.subsec_nanos())
    }

    #[inline]
    fn submit(&mut self, tag: u32, kind: Kind, offset: u64) -> Result<()> {
        let span = Span::whole(tag, self.block);
        let op = match kind {
            Kind::Read => Op::Read { file: 0, offset, span },
            Kind::Write => Op::Write { file: 0, offset, span },
            Kind::Sync => Op::Fdatasync { file: 0 },
        };
        self.engine.submit(u64::from(tag), op)
    }

    #[inline]
    fn complete(&mut self, wait: Wait, done: &mut Vec<Completion>) -> Result<()> {
        match wait {
            Wait::Not => self.engine.complete(0, None, done)?,
            Wait::AtMost(time) if self.engine.in_flight() == 0 => {
                thread::sleep(time);
                0
            }
            Wait::AtMost(time) => self.engine.complete(1, Some(time), done)?,
            Wait::ForCompletion => self.engine.complete(1, None, done)?,
        };
        Ok(())
    }
}
