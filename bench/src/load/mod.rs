//! Load on a disk: how many operations, of which kind, in which rhythm, and how long each took.
//!
//! A *closed* loop keeps a number of operations in flight and starts the next when one completes; it finds out how fast
//! the disk goes. An *open* loop starts operations when their time has come, whether or not the disk is ready, as
//! clients do; it finds out how long clients wait. Its response times count from the *intended* start, so that a stall
//! is felt by everyone who would have come during it (no coordinated omission).
//!
//! Each job is a thread with an engine of its own.

mod closed;
mod cpu;
pub mod fio;
mod offsets;
mod open;
mod queue;
mod recorder;
mod rounds;
mod run;
#[cfg(test)]
mod simulated;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use blockdev::engine::{self, QUEUE_DEPTH_MAX};
use blockdev::{ByteRange, ByteSize, Error, Result};
use serde::{Deserialize, Serialize};

use crate::report::Histogram;

pub use cpu::Cpu;
pub use run::run;

// What a load on something else than a disk is made of, too.
pub(crate) use offsets::{Kind, Ops, seed_of};
pub(crate) use open::{Arrivals, SPIN_NS};
pub(crate) use recorder::{Recorder, Sample, Window, gather, nanos};
pub(crate) use rounds::{Lap, Rounds};

/// The largest block.
pub const BLOCK_MAX: ByteSize = ByteSize::mib(64);

/// Most jobs, which are threads.
pub const JOBS_MAX: u32 = 256;

/// The highest rate of an open loop, in operations per second: one per nanosecond would be its clock's resolution.
pub const RATE_MAX: f64 = 1e8;

/// The shortest runtime that says anything.
pub const RUNTIME_MIN: Duration = Duration::from_millis(10);

/// Most memory that a job's buffers may take.
const BUFFERS_MAX: ByteSize = ByteSize::new(blockdev::buffer::MEMORY_MAX as u64);

/// Which operations, and in which order. The names are fio's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pattern {
    /// Sequential reads.
    Read,
    /// Sequential writes.
    Write,
    /// Random reads.
    RandRead,
    /// Random writes.
    RandWrite,
    /// Random reads and writes, mixed.
    RandRw,
}

impl Pattern {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Read, Self::Write, Self::RandRead, Self::RandWrite, Self::RandRw];

    /// Its name: what [`FromStr`] takes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::RandRead => "randread",
            Self::RandWrite => "randwrite",
            Self::RandRw => "randrw",
        }
    }

    /// Whether it jumps about.
    #[must_use]
    pub fn is_random(self) -> bool {
        matches!(self, Self::RandRead | Self::RandWrite | Self::RandRw)
    }

    /// Whether any of it is reads.
    #[must_use]
    pub fn reads(self) -> bool {
        matches!(self, Self::Read | Self::RandRead | Self::RandRw)
    }

    /// Whether any of it is writes.
    #[must_use]
    pub fn writes(self) -> bool {
        matches!(self, Self::Write | Self::RandWrite | Self::RandRw)
    }
}

impl FromStr for Pattern {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|pattern| pattern.name() == text).ok_or_else(|| {
            Error::invalid(format!("{text:?} is no access pattern"))
                .with_hint("read, write, randread, randwrite or randrw")
        })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One load: what every job does, and for how long.
#[derive(Debug, Clone, PartialEq)]
pub struct Work {
    /// Which operations.
    pub pattern: Pattern,
    /// How many of 100 operations of [`Pattern::RandRw`] are reads.
    pub read_percent: u8,
    /// Bytes in each operation.
    pub block: ByteSize,
    /// Where: its start and length are multiples of the block. Random jobs share it, sequential jobs split it, and so do
    /// jobs that touch every block [once](Self::once).
    pub region: ByteRange,
    /// Operations that each job keeps in flight, or has in flight at most in an open loop.
    pub depth: u32,
    /// How many jobs.
    pub jobs: u32,
    /// An fdatasync after so many writes of a job; 0 is never.
    pub fdatasync: u32,
    /// An open loop: so many operations a second start, over all jobs, as a Poisson process.
    pub rate: Option<f64>,
    /// Whether no block is touched twice: the jobs share the region out between them, and the run is over when all of it
    /// was touched, if not sooner. Random order then takes 8 bytes of memory per block.
    pub once: bool,
    /// Of all that is random.
    pub seed: u64,
    /// How long it runs before anything is measured.
    pub warmup: Duration,
    /// How long is measured.
    pub runtime: Duration,
}

impl Work {
    /// A closed loop of one job over `region`, measured for 10 s after a second of warm-up.
    #[must_use]
    pub fn new(pattern: Pattern, block: ByteSize, depth: u32, region: ByteRange) -> Self {
        Self {
            pattern,
            read_percent: 50,
            block,
            region,
            depth,
            jobs: 1,
            fdatasync: 0,
            rate: None,
            once: false,
            seed: 1,
            warmup: Duration::from_secs(1),
            runtime: Duration::from_secs(10),
        }
    }

    /// Whether every job works on the whole region, rather than on a part of its own.
    fn shares_region(&self) -> bool {
        self.pattern.is_random() && !self.once
    }

    /// The block as the engine counts it.
    fn block_len(&self) -> u32 {
        u32::try_from(self.block.bytes()).expect("check() keeps it below BLOCK_MAX")
    }

    /// Whether it can be run at all.
    ///
    /// # Errors
    /// Says which number is out of range, or which two contradict each other.
    pub fn check(&self) -> Result<()> {
        let block = self.block;
        if block == ByteSize::ZERO || block > BLOCK_MAX {
            return Err(Error::invalid(format!("a block of {block} is not in 512 B to {BLOCK_MAX}")));
        }
        if self.depth == 0 || self.depth > QUEUE_DEPTH_MAX {
            return Err(Error::invalid(format!("an I/O depth of {} is not in 1 to {QUEUE_DEPTH_MAX}", self.depth)));
        }
        if self.jobs == 0 || self.jobs > JOBS_MAX {
            return Err(Error::invalid(format!("{} jobs are not in 1 to {JOBS_MAX}", self.jobs)));
        }
        let buffers = ByteSize::new(block.bytes().next_multiple_of(4096) * u64::from(self.depth));
        if buffers > BUFFERS_MAX {
            return Err(Error::invalid(format!(
                "an I/O depth of {} with blocks of {block} takes {buffers} of buffers in each job, {BUFFERS_MAX} are possible",
                self.depth
            )));
        }
        let (start, len) = (ByteSize::new(self.region.start.bytes()), self.region.len);
        if !start.is_multiple_of(block) || !len.is_multiple_of(block) {
            return Err(Error::invalid(format!(
                "the region of {len} from {start} is not made of whole blocks of {block}"
            )));
        }
        let blocks_wanted = if self.shares_region() { 1 } else { u64::from(self.jobs) };
        if len.bytes() / block.bytes() < blocks_wanted {
            return Err(Error::invalid(format!("a region of {len} has no room for {blocks_wanted} blocks of {block}")));
        }
        if self.read_percent > 100 {
            return Err(Error::invalid(format!("{} % reads are more than all", self.read_percent)));
        }
        if self.fdatasync > 0 && !self.pattern.writes() {
            return Err(Error::invalid(format!("{} writes nothing that an fdatasync could follow", self.pattern)));
        }
        if let Some(rate) = self.rate
            && !(rate > 0.0 && rate <= RATE_MAX)
        {
            return Err(Error::invalid(format!(
                "a rate of {rate} I/O per second is not above 0 and at most {RATE_MAX}"
            )));
        }
        if self.once && self.rate.is_some() {
            return Err(Error::invalid(
                "an open loop goes on until its time is up: it cannot touch every block once only",
            ));
        }
        if self.runtime < RUNTIME_MIN {
            return Err(Error::invalid(format!("a runtime of {:?} is below {RUNTIME_MIN:?}", self.runtime)));
        }
        Ok(())
    }
}

/// What the operations of one kind did in the measured window.
#[derive(Debug, Clone)]
pub struct Tally {
    /// How long each took from its submission to its completion, in nanoseconds.
    pub service: Histogram,
    /// How long each took from its intended start, in nanoseconds. In an open loop only; those that were due and not
    /// completed when the window ended are in it with the time they had waited by then.
    pub response: Histogram,
}

impl Tally {
    fn new() -> Self {
        Self { service: Histogram::new(), response: Histogram::new() }
    }

    /// How many operations completed.
    #[must_use]
    pub fn ios(&self) -> u64 {
        self.service.count()
    }
}

/// One piece of the measured window.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Since the window's start.
    pub start: Duration,
    /// How long it is.
    pub length: Duration,
    /// Reads and writes that completed in it.
    pub ios: u64,
    /// The 99th percentile of their latency: response time in an open loop, service time in a closed one. None where
    /// none completed.
    pub p99: Option<Duration>,
}

impl Interval {
    /// Reads and writes per second.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "a rate")]
    pub fn iops(&self) -> f64 {
        self.ios as f64 / self.length.as_secs_f64()
    }
}

/// What a run of a [`Work`] measured.
#[derive(Debug, Clone)]
pub struct Measured {
    /// How long was measured: the work's runtime, or less when it was interrupted or every block was touched.
    pub window: Duration,
    /// Whether it was stopped before its time.
    pub interrupted: bool,
    /// Its reads.
    pub reads: Tally,
    /// Its writes.
    pub writes: Tally,
    /// Its fdatasyncs.
    pub syncs: Tally,
    /// The window piece by piece.
    pub intervals: Vec<Interval>,
    /// CPU time in the window.
    pub cpu: Cpu,
    /// In an open loop, how many operations were due when the window ended and still waited for a place in the queue.
    pub waiting: u64,
    /// The engine that it ran on.
    pub engine: engine::Kind,
    /// What that engine had to say.
    pub notices: Vec<String>,
}

impl Measured {
    /// Reads and writes that completed.
    #[must_use]
    pub fn ios(&self) -> u64 {
        self.reads.ios() + self.writes.ios()
    }

    /// Reads and writes per second.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "a rate")]
    pub fn iops(&self) -> f64 {
        if self.window.is_zero() { 0.0 } else { self.ios() as f64 / self.window.as_secs_f64() }
    }

    /// CPU time per read or write.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "a ratio")]
    pub fn cpu_per_io(&self) -> Option<Duration> {
        (self.ios() > 0).then(|| self.cpu.total().div_f64(self.ios() as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockdev::ByteOffset;

    fn region(start: u64, len: u64) -> ByteRange {
        ByteRange::new(ByteOffset::new(start), ByteSize::new(len)).unwrap()
    }

    fn work() -> Work {
        Work::new(Pattern::RandRead, ByteSize::kib(8), 16, region(0, 1 << 20))
    }

    #[test]
    fn names_are_parsed_and_shown() {
        for pattern in Pattern::ALL {
            assert_eq!(pattern.to_string().parse::<Pattern>().unwrap(), pattern);
        }
        let error = "rand".parse::<Pattern>().unwrap_err();
        assert_eq!(error.to_string(), "\"rand\" is no access pattern");
        assert_eq!(error.hint(), Some("read, write, randread, randwrite or randrw"));
    }

    #[test]
    fn bad_input_says_which_number_and_why() {
        work().check().unwrap();
        for (work, why) in [
            (Work { block: ByteSize::ZERO, ..work() }, "a block of 0 B is not in 512 B to 64 MiB"),
            (Work { depth: 0, ..work() }, "an I/O depth of 0 is not in 1 to 4096"),
            (Work { depth: 4097, ..work() }, "an I/O depth of 4097 is not in 1 to 4096"),
            (Work { jobs: 0, ..work() }, "0 jobs are not in 1 to 256"),
            (
                Work { block: ByteSize::mib(1), depth: 2048, ..work() },
                "an I/O depth of 2048 with blocks of 1 MiB takes 2 GiB of buffers in each job, 1 GiB are possible",
            ),
            (
                Work { region: region(4096, 8192), ..work() },
                "the region of 8 KiB from 4 KiB is not made of whole blocks of 8 KiB",
            ),
            (
                Work { region: region(0, 8193), ..work() },
                "the region of 8.00 KiB from 0 B is not made of whole blocks of 8 KiB",
            ),
            (Work { region: region(0, 0), ..work() }, "a region of 0 B has no room for 1 blocks of 8 KiB"),
            (
                Work { pattern: Pattern::Write, jobs: 3, region: region(0, 16384), ..work() },
                "a region of 16 KiB has no room for 3 blocks of 8 KiB",
            ),
            (Work { read_percent: 101, ..work() }, "101 % reads are more than all"),
            (Work { fdatasync: 1, ..work() }, "randread writes nothing that an fdatasync could follow"),
            (Work { rate: Some(0.0), ..work() }, "a rate of 0 I/O per second is not above 0 and at most 100000000"),
            (
                Work { rate: Some(f64::NAN), ..work() },
                "a rate of NaN I/O per second is not above 0 and at most 100000000",
            ),
            (
                Work { once: true, rate: Some(1.0), ..work() },
                "an open loop goes on until its time is up: it cannot touch every block once only",
            ),
            (
                Work { once: true, jobs: 3, region: region(0, 16384), ..work() },
                "a region of 16 KiB has no room for 3 blocks of 8 KiB",
            ),
            (Work { runtime: Duration::ZERO, ..work() }, "a runtime of 0ns is below 10ms"),
        ] {
            assert_eq!(work.check().unwrap_err().to_string(), why);
        }
    }
}
