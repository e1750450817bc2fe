//! `bench disk`: measure a file, an image or a block device.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bench::disk::verify::{Plan, Verifier};
use bench::disk::{self, Caching, Common, Method, Profile, Progress, Scratch, Spec, Sweep, Target};
use bench::load::Pattern;
use bench::report::Run;
use blockdev::engine::Choice;
use blockdev::{ByteSize, Cancel, Error, ErrorKind, Result, ui};

use crate::keep::Keep;
use crate::shown::Shown;
use crate::time::duration;

/// Measure a disk: a file, an image or a block device.
///
/// Without a target it makes an image of its own, attaches it to a loop device where it may, measures both, and removes
/// them. Without --rw, --bs and the like it runs a standard profile of about a minute.
///
/// Parameters that take a list are swept: every combination is one cell of the result.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The file or block device.
    target: Option<PathBuf>,

    /// Access pattern: read, write, randread, randwrite or randrw [default: randread].
    #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
    rw: Vec<Pattern>,

    /// Bytes per I/O [default: 8k].
    #[arg(long, value_name = "SIZE", value_delimiter = ',')]
    bs: Vec<ByteSize>,

    /// I/Os that each job keeps in flight [default: 16].
    #[arg(long, value_name = "N", value_delimiter = ',')]
    iodepth: Vec<u32>,

    /// Jobs that run side by side, each a thread [default: 1].
    #[arg(long, value_name = "N", value_delimiter = ',')]
    jobs: Vec<u32>,

    /// An fdatasync after so many writes of a job; 0 is never [default: 0].
    #[arg(long, value_name = "N", value_delimiter = ',')]
    fdatasync: Vec<u32>,

    /// Start so many I/Os a second, whether or not the disk is ready (an open loop with Poisson arrivals), and report
    /// response times from when each should have started.
    #[arg(long, value_name = "IOPS", value_delimiter = ',')]
    rate: Vec<f64>,

    /// How I/O is submitted: auto, uring, uring-sqpoll, aio or threads [default: auto].
    #[arg(long, value_name = "ENGINE", value_delimiter = ',')]
    engine: Vec<Choice>,

    /// Of 100 I/Os of randrw, how many are reads.
    #[arg(long, value_name = "PERCENT", default_value_t = 50)]
    rwmixread: u8,

    /// Where on the target to begin.
    #[arg(long, value_name = "SIZE", default_value = "0")]
    offset: ByteSize,

    /// How much of the target to use; without it, the rest.
    #[arg(long)]
    size: Option<ByteSize>,

    /// How long each cell is measured, such as 500ms; a bare number is seconds [default: 10s].
    #[arg(long, value_name = "TIME", value_parser = duration)]
    runtime: Option<Duration>,

    /// How long each cell runs before it is measured [default: 1s].
    #[arg(long, value_name = "TIME", value_parser = duration)]
    warmup: Option<Duration>,

    /// How often all cells are run, one after the other; figures are medians of the rounds [default: 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,

    /// The profile in about 15 seconds: fewer block sizes and queue depths.
    #[arg(long, conflicts_with_all = ["rw", "bs", "iodepth", "jobs", "fdatasync", "rate", "engine"])]
    quick: bool,

    /// Without a target: where to make the image.
    #[arg(long, value_name = "DIR", default_value = ".", conflicts_with = "target")]
    scratch: PathBuf,

    /// Without a target: how large the image is.
    #[arg(long, value_name = "SIZE", default_value = "2G", conflicts_with = "target")]
    scratch_size: ByteSize,

    /// Run the same load through another program after each of ours, and print the ratio of the two.
    #[arg(long, value_name = "PROGRAM")]
    against: Option<Rival>,

    /// Instead of measuring, write stamped blocks at random and check that they are read back as they were written:
    /// none lost, torn, stale or misdirected. Takes --bs, --iodepth, --offset, --size, --runtime, --seed and --engine.
    #[arg(long, conflicts_with_all = ["against", "fdatasync", "jobs", "quick", "rate", "rounds", "rw", "warmup"])]
    verify: bool,

    /// With --verify: another way to the same disk, to read through what is written to the target.
    #[arg(long, value_name = "PATH", requires_all = ["verify", "target"])]
    reader: Option<PathBuf>,

    /// Seed of all that is random.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    #[command(flatten)]
    keep: Keep,

    /// Write to the target whatever it holds. All of it may be lost.
    #[arg(long)]
    destroy: bool,

    /// Go past the page cache (O_DIRECT) or fail. Without this and --buffered: where the target can.
    #[arg(long)]
    direct: bool,

    /// Go through the page cache.
    #[arg(long, conflicts_with = "direct")]
    buffered: bool,
}

/// What can be measured against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Rival {
    /// fio with io_uring, registered buffers and files.
    Fio,
}

impl Args {
    /// What the options sweep, or nothing if they leave it to the profile.
    fn sweep(&self) -> Option<Sweep> {
        let given = !(self.rw.is_empty()
            && self.bs.is_empty()
            && self.iodepth.is_empty()
            && self.jobs.is_empty()
            && self.fdatasync.is_empty()
            && self.rate.is_empty()
            && self.engine.is_empty());
        fn or<T: Clone>(given: &[T], default: Vec<T>) -> Vec<T> {
            if given.is_empty() { default } else { given.to_vec() }
        }
        let default = Sweep::default();
        let rates: Vec<Option<f64>> = self.rate.iter().copied().map(Some).collect();
        given.then(|| Sweep {
            patterns: or(&self.rw, default.patterns),
            blocks: or(&self.bs, default.blocks),
            depths: or(&self.iodepth, default.depths),
            jobs: or(&self.jobs, default.jobs),
            fdatasync: or(&self.fdatasync, default.fdatasync),
            rates: or(&rates, default.rates),
            engines: or(&self.engine, default.engines),
        })
    }

    fn common(&self) -> Common {
        Common {
            read_percent: self.rwmixread,
            offset: self.offset,
            size: self.size,
            seed: self.seed,
            warmup: self.warmup.unwrap_or(Duration::from_secs(1)),
            runtime: self.runtime.unwrap_or(Duration::from_secs(10)),
        }
    }

    fn caching(&self) -> Caching {
        match (self.direct, self.buffered) {
            (true, _) => Caching::Direct,
            (_, true) => Caching::Buffered,
            _ => Caching::Auto,
        }
    }

    /// What is run on `targets`, and how often.
    fn plan(&self, targets: &[Target]) -> Result<(Vec<Spec>, u32)> {
        if let Some(sweep) = self.sweep() {
            return Ok((disk::cells(&sweep, &self.common(), targets)?, self.rounds.unwrap_or(1)));
        }
        let profile = if self.quick { Profile::Quick } else { Profile::Standard };
        let rounds = self.rounds.unwrap_or(profile.rounds());
        let mut specs = profile.cells(&self.common(), rounds, targets)?;
        for spec in &mut specs {
            spec.work.warmup = self.warmup.unwrap_or(spec.work.warmup);
            spec.work.runtime = self.runtime.unwrap_or(spec.work.runtime);
        }
        Ok((specs, rounds))
    }
}

/// The one value of an option that takes lists elsewhere.
fn only<T: Clone>(option: &str, values: &[T], default: T) -> Result<T> {
    match values {
        [] => Ok(default),
        [value] => Ok(value.clone()),
        _ => Err(Error::invalid(format!("--verify takes one value of {option}, not {}", values.len()))),
    }
}

pub(crate) fn run(args: &Args, output: ui::Output) -> Result<()> {
    args.keep.check()?;
    let cancel = Cancel::on_signals()?;
    let began = Instant::now();
    // Dropped last: the image goes when nothing measures it any more.
    let mut scratch = None;
    let targets = match &args.target {
        Some(path) => vec![Target::open(path, args.caching())?],
        None => {
            let made = Scratch::make(&args.scratch, args.scratch_size, &mut ui::ProgressBar::new(), &cancel)?;
            scratch.insert(made).targets()?
        }
    };
    let scratch = scratch.as_ref();
    let (mut run, verdict) = if args.verify {
        verify(args, &targets, scratch.is_some(), &cancel)?
    } else {
        measure(args, &targets, scratch, &cancel)?
    };
    run.findings.extend(scratch.into_iter().flat_map(Scratch::findings).cloned());
    run.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    run.end(began.elapsed(), !cancel.is_cancelled());
    ui::print_result(output, &run, Run::to_text)?;
    args.keep.write(&run)?;
    cancel.check("bench disk")?;
    verdict
}

/// Runs the cells. The verdict is an error if one of them had I/O errors.
fn measure(args: &Args, targets: &[Target], scratch: Option<&Scratch>, cancel: &Cancel) -> Result<(Run, Result<()>)> {
    let (specs, rounds) = args.plan(targets)?;
    if scratch.is_none() && specs.iter().any(|spec| spec.work.pattern.writes()) {
        targets.iter().try_for_each(|target| disk::may_overwrite(target, args.destroy))?;
    }
    let method = Method { rounds, against_fio: args.against.is_some() };
    let mut run = disk::measure(targets, &specs, method, &mut Shown::default(), cancel)?;
    if let Some(scratch) = scratch.filter(|_| args.sweep().is_none()) {
        disk::measure_unwritten(&mut run, scratch.directory(), &mut Shown::default(), cancel)?;
    }
    let failed = run.cells.iter().filter(|cell| cell.errors > 0).count();
    let verdict = if failed == 0 {
        Ok(())
    } else {
        Err(Error::new(ErrorKind::Io, format!("{failed} of {} cells failed", run.cells.len())))
    };
    Ok((run, verdict))
}

/// Writes and checks stamped blocks. The verdict is an error if a fault was found.
fn verify(args: &Args, targets: &[Target], own: bool, cancel: &Cancel) -> Result<(Run, Result<()>)> {
    let reader = args.reader.as_ref().map(|path| Target::open(path, args.caching())).transpose()?;
    // On a disk of our own, the loop device is written, and the image below it is the other way to it.
    let (target, reader) = match targets {
        [image, device] => (device, Some(image)),
        [target, ..] => (target, reader.as_ref()),
        [] => unreachable!("there is always a target"),
    };
    if !own {
        disk::may_overwrite(target, args.destroy)?;
    }
    let block = only("--bs", &args.bs, ByteSize::kib(8))?;
    let plan = Plan {
        region: disk::region(&args.common(), block, target)?,
        block,
        read_percent: args.rwmixread,
        seed: args.seed,
        runtime: args.runtime.unwrap_or(Duration::from_secs(10)),
    };
    let (engine, depth) = (only("--engine", &args.engine, Choice::Auto)?, only("--iodepth", &args.iodepth, 16)?);
    let runtime = plan.runtime;
    let mut verifier = Verifier::open(plan, target, reader, engine, depth)?;
    let mut shown = Shown::default();
    shown.cell(1, 2, "writing and checking", runtime);
    verifier.churn(cancel, |elapsed| shown.elapsed(elapsed))?;
    drop(shown);
    verifier.read_back(cancel, &mut ui::ProgressBar::new())?;
    let verified = verifier.finish();
    let mut run = disk::begin(targets);
    run.findings = verified.findings();
    let verdict = match verified.fault_count() {
        0 => Ok(()),
        faults => Err(Error::new(
            ErrorKind::VerifyFailed,
            format!("{faults} of {} checks on {} found a fault", verified.checks, target.name()),
        )),
    };
    Ok((run, verdict))
}
