//! Does the disk keep what it acknowledged? Stamped blocks are written at random, read back meanwhile and at the end, and
//! what is wrong with them is named: lost, stale, torn, misdirected, corrupt (see [`blockdev::stamp`]).
//!
//! With a second way to the same disk, a *reader*, everything is read through that one: what one host writes, another
//! must see.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use blockdev::engine::{Choice, Completion, Config, Engine, Op, Span};
use blockdev::stamp::{self, Expected, Fault, Stamp};
use blockdev::ui::Progress;
use blockdev::{ByteOffset, ByteRange, ByteSize, Cancel, Error, Result};
use fastrand::Rng;

use super::target::Target;
use crate::report::{Finding, Severity};

/// How many faults are kept one by one; all are counted.
const FAULTS_KEPT: usize = 100;

/// How many random blocks are tried before waiting for one that is not in flight.
const PICKS: usize = 16;

/// How long it waits for a completion before it looks at the clock and at who wants it to stop.
const WATCH: Duration = Duration::from_millis(100);

/// What to write and check.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where: its start and length are multiples of `block`.
    pub region: ByteRange,
    /// Bytes in a stamped block, a multiple of [`stamp::SECTOR`].
    pub block: ByteSize,
    /// How many of 100 operations are reads of what was written before, while the writing goes on.
    pub read_percent: u8,
    /// Tells this run's stamps from those of others, and makes its offsets.
    pub seed: u64,
    /// How long the writing goes on.
    pub runtime: Duration,
}

impl Plan {
    fn blocks(&self) -> usize {
        usize::try_from(self.region.len.bytes() / self.block.bytes()).unwrap_or(usize::MAX)
    }

    fn check(&self) -> Result<()> {
        let whole = |bytes: u64| bytes.is_multiple_of(self.block.bytes());
        if self.block == ByteSize::ZERO || !self.block.is_multiple_of(ByteSize::new(stamp::SECTOR as u64)) {
            return Err(Error::invalid(format!("a stamped block of {} is not made of 512-byte sectors", self.block)));
        }
        if self.region.is_empty() || !whole(self.region.start.bytes()) || !whole(self.region.len.bytes()) {
            return Err(Error::invalid(format!(
                "a region of {} from {} is not made of whole blocks of {}",
                self.region.len, self.region.start, self.block
            )));
        }
        Ok(())
    }
}

/// What was checked, and what was found.
#[derive(Debug, Clone, Default)]
pub struct Verified {
    /// Writes that were acknowledged.
    pub writes: u64,
    /// Blocks that were read and checked, while writing and at the end.
    pub checks: u64,
    /// Different blocks that were written.
    pub blocks: u64,
    /// The first faults, in the order in which they were seen.
    pub faults: Vec<Fault>,
    /// How often each sort of fault was seen.
    pub counts: BTreeMap<&'static str, u64>,
    /// Whether it was stopped before everything was read back.
    pub interrupted: bool,
}

impl Verified {
    /// How many faults were seen.
    #[must_use]
    pub fn fault_count(&self) -> u64 {
        self.counts.values().sum()
    }

    /// What a report says of it: one finding for each sort of fault, or that all is well.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        if self.counts.is_empty() {
            let (blocks, checks) = (self.blocks, self.checks);
            let (id, severity, text) = if self.interrupted {
                ("verify-interrupted", Severity::Warning, format!("stopped early; {checks} checks found nothing wrong"))
            } else {
                let text = format!("{blocks} stamped blocks hold what was last written to them, by {checks} checks");
                ("verify-clean", Severity::Note, text)
            };
            return vec![Finding::new(severity, id, text)];
        }
        let finding = |(name, count): (&&'static str, &u64)| {
            let examples: Vec<String> =
                self.faults.iter().filter(|fault| fault.name() == *name).take(3).map(ToString::to_string).collect();
            let text = format!("{count} {name} of {} checks: {}", self.checks, examples.join("; "));
            Finding::new(Severity::Error, format!("verify-{name}"), text)
        };
        self.counts.iter().map(finding).collect()
    }

    fn note(&mut self, fault: Fault) {
        *self.counts.entry(fault.name()).or_default() += 1;
        if self.faults.len() < FAULTS_KEPT {
            self.faults.push(fault);
        }
    }
}

/// What is known of one block.
#[derive(Debug, Clone, Copy, Default)]
struct Block {
    /// The last acknowledged write; 0 before the first.
    generation: u64,
    /// An operation on it is in flight. There is never a second: what it should hold is then always certain.
    busy: bool,
}

/// What a buffer is in flight for.
#[derive(Debug, Clone, Copy)]
enum Errand {
    Write,
    Check,
    /// The reader did not see an acknowledged write: does the writer?
    Confirm(Fault),
}

/// A verification under way: the engine, what every block should hold, and what was found.
#[derive(Debug)]
pub struct Verifier {
    plan: Plan,
    engine: Engine,
    reader: u32,
    blocks: Vec<Block>,
    /// For each buffer of the engine: the block it is in flight for, and why.
    errands: Vec<Option<(usize, Errand)>>,
    idle: Vec<u32>,
    done: Vec<Completion>,
    verified: Verified,
}

impl Verifier {
    /// As [`new`](Self::new), over `target`, with `depth` operations in flight; everything is read through `reader` where
    /// there is one.
    ///
    /// # Errors
    /// When the plan cannot be, or a target or the engine cannot be opened.
    pub fn open(plan: Plan, target: &Target, reader: Option<&Target>, engine: Choice, depth: u32) -> Result<Self> {
        plan.check()?;
        let config = Config::new(depth, depth, plan.block.to_usize()?);
        let mut files = vec![target.open_file(true)?];
        files.extend(reader.map(|reader| reader.open_file(false)).transpose()?);
        Self::new(plan, Engine::open(engine, &config, files)?)
    }

    /// Over `engine`, whose first target is written; its second, if any, is another way to the same disk, and is read.
    /// The engine has one buffer of a block for each operation that it is to keep in flight.
    ///
    /// # Errors
    /// When the plan is not made of whole blocks and sectors.
    pub fn new(plan: Plan, engine: Engine) -> Result<Self> {
        plan.check()?;
        let buffers = u32::try_from(engine.room()).unwrap_or(u32::MAX);
        Ok(Self {
            reader: u32::from(engine.targets().len() > 1),
            blocks: vec![Block::default(); plan.blocks()],
            errands: vec![None; buffers as usize],
            idle: (0..buffers).collect(),
            done: Vec::new(),
            verified: Verified::default(),
            plan,
            engine,
        })
    }

    /// Writes and checks at random until the plan's time is up. `elapsed` is told now and then how long it has been.
    ///
    /// # Errors
    /// When an I/O fails. Faults are no errors: they are what is looked for.
    pub fn churn(&mut self, cancel: &Cancel, mut elapsed: impl FnMut(Duration)) -> Result<()> {
        let start = Instant::now();
        let mut rng = Rng::with_seed(self.plan.seed);
        while start.elapsed() < self.plan.runtime && !cancel.is_cancelled() {
            while let Some(block) = self.pick(&mut rng) {
                let check = self.blocks[block].generation > 0 && rng.u8(0..100) < self.plan.read_percent;
                self.send(block, if check { Errand::Check } else { Errand::Write })?;
            }
            self.collect()?;
            elapsed(start.elapsed());
        }
        self.settle()?;
        self.verified.interrupted |= cancel.is_cancelled();
        Ok(())
    }

    /// Reads back and checks every block that was written, in order.
    ///
    /// # Errors
    /// When an I/O fails.
    pub fn read_back(&mut self, cancel: &Cancel, progress: &mut dyn Progress) -> Result<()> {
        let written: Vec<usize> = (0..self.blocks.len()).filter(|block| self.blocks[*block].generation > 0).collect();
        self.verified.blocks = written.len() as u64;
        progress.begin("reading back", self.verified.blocks * self.plan.block.bytes());
        for block in written {
            if cancel.is_cancelled() {
                self.verified.interrupted = true;
                break;
            }
            while self.idle.is_empty() {
                self.collect()?;
            }
            self.send(block, Errand::Check)?;
            progress.advance(self.plan.block.bytes());
        }
        progress.end();
        self.settle()
    }

    /// What was checked and found.
    #[must_use]
    pub fn finish(self) -> Verified {
        self.verified
    }

    /// A random block that is not in flight, if there is a buffer for it and one is found soon.
    fn pick(&self, rng: &mut Rng) -> Option<usize> {
        if self.idle.is_empty() {
            return None;
        }
        (0..PICKS).map(|_| rng.usize(0..self.blocks.len())).find(|block| !self.blocks[*block].busy)
    }

    fn stamp_of(&self, block: usize, generation: u64) -> Stamp {
        let offset = self.plan.region.start.bytes() + block as u64 * self.plan.block.bytes();
        Stamp { seed: self.plan.seed, offset: ByteOffset::new(offset), generation }
    }

    fn send(&mut self, block: usize, errand: Errand) -> Result<()> {
        let Some(buffer) = self.idle.pop() else { unreachable!("callers have looked that a buffer is idle") };
        self.blocks[block].busy = true;
        self.dispatch(buffer, block, errand)
    }

    fn dispatch(&mut self, buffer: u32, block: usize, errand: Errand) -> Result<()> {
        let stamp = self.stamp_of(block, self.blocks[block].generation + 1);
        let len = u32::try_from(self.plan.block.bytes())
            .map_err(|_| Error::invalid(format!("a stamped block of {} is too large", self.plan.block)))?;
        let (offset, span) = (stamp.offset.bytes(), Span::whole(buffer, len));
        let op = match errand {
            Errand::Write => {
                stamp::write(&mut self.engine.buffer_mut(buffer)[..len as usize], stamp);
                Op::Write { file: 0, offset, span }
            }
            Errand::Check => Op::Read { file: self.reader, offset, span },
            Errand::Confirm(_) => Op::Read { file: 0, offset, span },
        };
        self.errands[buffer as usize] = Some((block, errand));
        self.engine.submit(u64::from(buffer), op)
    }

    /// Takes in what has completed, waiting for one at most [`WATCH`].
    fn collect(&mut self) -> Result<()> {
        let mut done = std::mem::take(&mut self.done);
        self.engine.complete(1, Some(WATCH), &mut done)?;
        for completion in done.drain(..) {
            completion.result?;
            let buffer = u32::try_from(completion.tag).unwrap_or(u32::MAX);
            let Some((block, errand)) = self.errands[buffer as usize].take() else {
                unreachable!("only buffers with an errand are in flight")
            };
            self.finish_errand(buffer, block, errand)?;
        }
        self.done = done;
        Ok(())
    }

    fn finish_errand(&mut self, buffer: u32, block: usize, errand: Errand) -> Result<()> {
        let expected = Expected::from(self.stamp_of(block, self.blocks[block].generation));
        let len = usize::try_from(self.plan.block.bytes()).unwrap_or(usize::MAX);
        let check = || stamp::check(&self.engine.buffer(buffer)[..len], &expected);
        match errand {
            Errand::Write => {
                self.blocks[block].generation += 1;
                self.verified.writes += 1;
            }
            Errand::Check => {
                let outcome = check();
                self.verified.checks += 1;
                match outcome {
                    Err(fault @ Fault::Lost { .. }) if self.reader != 0 => {
                        return self.dispatch(buffer, block, Errand::Confirm(fault));
                    }
                    Err(fault) => self.verified.note(fault),
                    Ok(()) => {}
                }
            }
            Errand::Confirm(fault) => {
                let fault = if check().is_ok() { fault.though_on_disk() } else { fault };
                self.verified.note(fault);
            }
        }
        self.blocks[block].busy = false;
        self.idle.push(buffer);
        Ok(())
    }

    /// Waits until nothing is in flight.
    fn settle(&mut self) -> Result<()> {
        while self.engine.in_flight() > 0 {
            self.collect()?;
        }
        Ok(())
    }
}
