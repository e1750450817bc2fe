//! From options to cells: what is run, on what, in which order.

use std::collections::HashSet;
use std::time::Duration;

use blockdev::engine::Choice;
use blockdev::{ByteOffset, ByteRange, ByteSize, Error, Result};

use super::target::Target;
use crate::load::{Pattern, Work};

/// Lists of parameters: their product is what is run.
#[derive(Debug, Clone, PartialEq)]
pub struct Sweep {
    /// Access patterns.
    pub patterns: Vec<Pattern>,
    /// Bytes per I/O.
    pub blocks: Vec<ByteSize>,
    /// I/Os in flight per job.
    pub depths: Vec<u32>,
    /// Jobs side by side.
    pub jobs: Vec<u32>,
    /// Writes per fdatasync, 0 being none.
    pub fdatasync: Vec<u32>,
    /// I/Os per second of an open loop, none being a closed one.
    pub rates: Vec<Option<f64>>,
    /// Engines.
    pub engines: Vec<Choice>,
}

impl Default for Sweep {
    /// Random 8 KiB reads at queue depth 16, which harm nothing.
    fn default() -> Self {
        Self {
            patterns: vec![Pattern::RandRead],
            blocks: vec![ByteSize::kib(8)],
            depths: vec![16],
            jobs: vec![1],
            fdatasync: vec![0],
            rates: vec![None],
            engines: vec![Choice::Auto],
        }
    }
}

/// What all cells share.
#[derive(Debug, Clone, PartialEq)]
pub struct Common {
    /// How many of 100 operations of [`Pattern::RandRw`] are reads.
    pub read_percent: u8,
    /// Where the region begins.
    pub offset: ByteSize,
    /// How large it is; the rest of the target where not said.
    pub size: Option<ByteSize>,
    /// Of all that is random.
    pub seed: u64,
    /// How long a cell runs before it is measured.
    pub warmup: Duration,
    /// How long a cell is measured.
    pub runtime: Duration,
}

/// One thing to run on one target.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// The section of the report that it belongs to.
    pub group: &'static str,
    /// Its name, unique in the plan.
    pub name: String,
    /// Which of the targets.
    pub target: usize,
    /// Through which engine.
    pub engine: Choice,
    /// What.
    pub work: Work,
}

impl Spec {
    fn group_of(work: &Work) -> &'static str {
        match work {
            Work { rate: Some(_), .. } => "Open loop",
            Work { fdatasync: 1.., .. } => "Durable writes",
            work if work.pattern.is_random() => "Random I/O",
            _ => "Sequential I/O",
        }
    }
}

/// The cells of `sweep` on each of `targets`: targets change fastest, so that neighbours are to be compared.
///
/// # Errors
/// When a parameter is out of range, does not suit a target, or two contradict each other.
pub fn cells(sweep: &Sweep, common: &Common, targets: &[Target]) -> Result<Vec<Spec>> {
    let nowhere = ByteRange::from_start(ByteSize::ZERO);
    let work = Work {
        read_percent: common.read_percent,
        seed: common.seed,
        warmup: common.warmup,
        runtime: common.runtime,
        ..Work::new(Pattern::RandRead, ByteSize::ZERO, 0, nowhere)
    };
    let first = Spec { group: "", name: String::new(), target: 0, engine: Choice::Auto, work };
    let specs = product(&[first], &sweep.patterns, |spec, pattern| spec.work.pattern = pattern);
    let specs = product(&specs, &sweep.fdatasync, |spec, writes| spec.work.fdatasync = writes);
    let specs = product(&specs, &sweep.blocks, |spec, block| spec.work.block = block);
    let specs = product(&specs, &sweep.jobs, |spec, jobs| spec.work.jobs = jobs);
    let specs = product(&specs, &sweep.depths, |spec, depth| spec.work.depth = depth);
    let specs = product(&specs, &sweep.rates, |spec, rate| spec.work.rate = rate);
    let specs = product(&specs, &sweep.engines, |spec, engine| spec.engine = engine);
    let indices: Vec<usize> = (0..targets.len()).collect();
    let mut specs = product(&specs, &indices, |spec, target| spec.target = target);
    for spec in &mut specs {
        let target = &targets[spec.target];
        spec.work.region = region(common, spec.work.block, target)?;
        spec.work.check()?;
        spec.group = Spec::group_of(&spec.work);
        spec.name = name(&spec.work);
        if targets.len() > 1 {
            spec.name += &format!(" on {}", target.name());
        }
        if sweep.engines.len() > 1 {
            spec.name += &format!(" through {}", spec.engine);
        }
    }
    let mut names = HashSet::new();
    specs.retain(|spec| names.insert(spec.name.clone()));
    Ok(specs)
}

/// Each of `specs` with each of `values`.
fn product<T: Copy>(specs: &[Spec], values: &[T], set: impl Fn(&mut Spec, T)) -> Vec<Spec> {
    let with = |spec: &Spec, value: T| {
        let mut spec = spec.clone();
        set(&mut spec, value);
        spec
    };
    specs.iter().flat_map(|spec| values.iter().map(move |value| (spec, *value))).map(|(s, v)| with(s, v)).collect()
}

/// What is read and written on `target` in blocks of `block`.
///
/// # Errors
/// When the target has no such region, or no blocks of this size.
pub fn region(common: &Common, block: ByteSize, target: &Target) -> Result<ByteRange> {
    let (path, whole, align) = (target.path().display(), target.size(), target.alignment());
    if block > ByteSize::ZERO && !block.is_multiple_of(align) {
        return Err(Error::invalid(format!("a block of {block} is no multiple of {align}, as I/O on {path} must be"))
            .with_hint("--buffered goes through the page cache, in multiples of 512 B"));
    }
    let offset = common.offset;
    if offset >= whole {
        return Err(Error::invalid(format!("an offset of {offset} is beyond the end of {path}, which is {whole}")));
    }
    let rest = whole - offset;
    let len = match common.size {
        Some(size) if size > rest => {
            return Err(Error::invalid(format!(
                "{size} from offset {offset} are beyond the end of {path}, which is {whole}"
            )));
        }
        Some(size) => size,
        // Zero blocks are for `Work::check` to complain of.
        None => ByteSize::new(rest.bytes() - rest.bytes().checked_rem(block.bytes()).unwrap_or(0)),
    };
    ByteRange::new(ByteOffset::new(offset.bytes()), len)
}

/// What `work` is called among others: `randread 8 KiB, queue depth 16`.
fn name(work: &Work) -> String {
    let mut name = format!("{} {}, queue depth {}", work.pattern, work.block, work.depth);
    if work.pattern == Pattern::RandRw {
        name += &format!(", {} % reads", work.read_percent);
    }
    if work.jobs > 1 {
        name += &format!(", {} jobs", work.jobs);
    }
    match work.fdatasync {
        0 => {}
        1 => name += ", fdatasync after each",
        writes => name += &format!(", fdatasync after every {writes}"),
    }
    if let Some(rate) = work.rate {
        name += &format!(", {rate} arrivals/s");
    }
    name
}
