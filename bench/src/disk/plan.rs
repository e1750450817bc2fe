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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Caching, Profile};
    use std::fs::File;

    fn target(dir: &tempfile::TempDir, name: &str, size: u64) -> Target {
        let path = dir.path().join(name);
        File::create(&path).unwrap().set_len(size).unwrap();
        Target::open(&path, Caching::Buffered).unwrap().named(name)
    }

    fn common() -> Common {
        Common {
            read_percent: 70,
            offset: ByteSize::ZERO,
            size: None,
            seed: 1,
            warmup: Duration::ZERO,
            runtime: Duration::from_secs(1),
        }
    }

    fn names(specs: &[Spec]) -> Vec<&str> {
        specs.iter().map(|spec| spec.name.as_str()).collect()
    }

    #[test]
    fn every_combination_is_run_once_and_named_by_what_varies() {
        let dir = tempfile::tempdir().unwrap();
        let one = [target(&dir, "a", 1 << 20)];
        let sweep =
            Sweep { blocks: vec![ByteSize::kib(4), ByteSize::kib(8)], depths: vec![1, 4, 4], ..Sweep::default() };
        assert_eq!(
            names(&cells(&sweep, &common(), &one).unwrap()),
            [
                "randread 4 KiB, queue depth 1",
                "randread 4 KiB, queue depth 4",
                "randread 8 KiB, queue depth 1",
                "randread 8 KiB, queue depth 4",
            ]
        );
        let two = [target(&dir, "a", 1 << 20), target(&dir, "b", 1 << 20)];
        let sweep = Sweep {
            patterns: vec![Pattern::RandRw],
            jobs: vec![2],
            fdatasync: vec![1, 8],
            engines: vec![Choice::Uring, Choice::Threads],
            ..Sweep::default()
        };
        let specs = cells(&sweep, &common(), &two).unwrap();
        assert_eq!(specs.len(), 8);
        assert_eq!(
            specs[0].name,
            "randrw 8 KiB, queue depth 16, 70 % reads, 2 jobs, fdatasync after each on a through uring"
        );
        assert_eq!(specs[1].target, 1);
        assert_eq!(specs[7].name, specs[0].name.replace("each on a", "every 8 on b").replace("uring", "threads"));
        assert!(specs.iter().all(|spec| spec.group == "Durable writes"));
        let rate = Sweep { rates: vec![Some(1500.0)], ..Sweep::default() };
        let specs = cells(&rate, &common(), &one).unwrap();
        assert_eq!((specs[0].group, &*specs[0].name), ("Open loop", "randread 8 KiB, queue depth 16, 1500 arrivals/s"));
    }

    #[test]
    fn the_region_is_the_rest_of_the_target_in_whole_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let targets = [target(&dir, "a", (1 << 20) + 5000)];
        let common = Common { offset: ByteSize::kib(16), ..common() };
        let region = cells(&Sweep::default(), &common, &targets).unwrap()[0].work.region;
        assert_eq!(region, ByteRange::new(ByteOffset::new(16384), ByteSize::new((1 << 20) - 16384)).unwrap());
        let part = Common { size: Some(ByteSize::kib(64)), ..common };
        assert_eq!(cells(&Sweep::default(), &part, &targets).unwrap()[0].work.region.len, ByteSize::kib(64));
    }

    #[test]
    fn the_profiles_keep_to_their_time() {
        let dir = tempfile::tempdir().unwrap();
        let targets = [target(&dir, "a", 8 << 20), target(&dir, "b", 8 << 20)];
        for (profile, cells, seconds) in [(Profile::Standard, 54, 60), (Profile::Quick, 18, 15)] {
            let rounds = profile.rounds();
            let specs = profile.cells(&common(), rounds, &targets).unwrap();
            assert_eq!(specs.len(), cells);
            let time: Duration =
                specs.iter().map(|spec| spec.work.warmup + spec.work.runtime).sum::<Duration>() * rounds;
            assert!(time <= Duration::from_secs(seconds) && time > Duration::from_secs(seconds - 8), "{time:?}");
            let mut groups: Vec<&str> = specs.iter().map(|spec| spec.group).collect();
            groups.dedup();
            assert_eq!(groups, ["Sequential I/O", "Random I/O", "Durable writes"]);
        }
    }
}
