//! `bench disk`: measure a file, an image or a block device.

use std::path::PathBuf;
use std::time::Duration;

use bench::disk::{self, Caching, Common, Method, Progress, Sweep, Target};
use bench::load::Pattern;
use bench::report::Run;
use blockdev::engine::Choice;
use blockdev::{ByteSize, Cancel, Error, ErrorKind, Result, ui};

/// Measure a disk: a file, an image or a block device.
///
/// Parameters that take a list are swept: every combination is one cell of the result.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The file or block device.
    target: PathBuf,

    /// Access pattern: read, write, randread, randwrite or randrw.
    #[arg(long, value_name = "PATTERN", value_delimiter = ',', default_value = "randread")]
    rw: Vec<Pattern>,

    /// Bytes per I/O, such as 8k.
    #[arg(long, value_name = "SIZE", value_delimiter = ',', default_value = "8k")]
    bs: Vec<ByteSize>,

    /// I/Os that each job keeps in flight.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "16")]
    iodepth: Vec<u32>,

    /// Jobs that run side by side, each a thread.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1")]
    jobs: Vec<u32>,

    /// An fdatasync after so many writes of a job; 0 is never.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "0")]
    fdatasync: Vec<u32>,

    /// Start so many I/Os a second, whether or not the disk is ready (an open loop with Poisson arrivals), and report
    /// response times from when each should have started.
    #[arg(long, value_name = "IOPS", value_delimiter = ',')]
    rate: Vec<f64>,

    /// How I/O is submitted: auto, uring, uring-sqpoll or threads.
    #[arg(long, value_name = "ENGINE", value_delimiter = ',', default_value = "auto")]
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

    /// How long each cell is measured, such as 10s; a bare number is seconds.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10s")]
    runtime: Duration,

    /// How long each cell runs before it is measured.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "1s")]
    warmup: Duration,

    /// How often all cells are run, one after the other; figures are medians of the rounds.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,

    /// Run the same load through another program after each of ours, and print the ratio of the two.
    #[arg(long, value_name = "PROGRAM")]
    against: Option<Rival>,

    /// Seed of all that is random.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Save the run as JSON, for `bench report` and `bench compare`.
    #[arg(long, value_name = "RUN.json")]
    save: Option<PathBuf>,

    /// Write a self-contained page.
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,

    /// Replace the files of --save and --report also when they are something else.
    #[arg(long)]
    force: bool,

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

/// A time as people write it; a bare number is seconds.
fn duration(text: &str) -> Result<Duration> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.map_or_else(
        || {
            humantime::parse_duration(text).map_err(|source| {
                Error::invalid(format!("{text:?} is no time, such as 10s or 500ms")).with_source(source)
            })
        },
        Ok,
    )
}

/// Shows on a terminal how far it is.
#[derive(Debug, Default)]
struct Shown(Option<ui::Countdown>);

impl Progress for Shown {
    fn cell(&mut self, number: usize, of: usize, name: &str, left: Duration) {
        self.0.get_or_insert_with(|| ui::Countdown::new(left)).step(number, of, name, left);
    }

    fn elapsed(&mut self, elapsed: Duration) {
        if let Some(countdown) = &mut self.0 {
            countdown.elapsed(elapsed);
        }
    }
}

pub(crate) fn run(args: &Args, output: ui::Output) -> Result<()> {
    let cancel = Cancel::on_signals()?;
    let caching = match (args.direct, args.buffered) {
        (true, _) => Caching::Direct,
        (_, true) => Caching::Buffered,
        _ => Caching::Auto,
    };
    let targets = [Target::open(&args.target, caching)?];
    let sweep = Sweep {
        patterns: args.rw.clone(),
        blocks: args.bs.clone(),
        depths: args.iodepth.clone(),
        jobs: args.jobs.clone(),
        fdatasync: args.fdatasync.clone(),
        rates: if args.rate.is_empty() { vec![None] } else { args.rate.iter().copied().map(Some).collect() },
        engines: args.engine.clone(),
    };
    let common = Common {
        read_percent: args.rwmixread,
        offset: args.offset,
        size: args.size,
        seed: args.seed,
        warmup: args.warmup,
        runtime: args.runtime,
    };
    let specs = disk::cells(&sweep, &common, &targets)?;
    if specs.iter().any(|spec| spec.work.pattern.writes()) {
        targets.iter().try_for_each(|target| disk::may_overwrite(target, args.destroy))?;
    }
    let method = Method { rounds: args.rounds, against_fio: args.against.is_some() };
    let run = disk::measure(&targets, &specs, method, &mut Shown::default(), &cancel)?;
    ui::print_result(output, &run, Run::to_text)?;
    if let Some(path) = &args.save {
        run.save(path, args.force)?;
    }
    if let Some(path) = &args.report {
        run.save_html(path, args.force)?;
    }
    cancel.check("bench disk")?;
    match run.cells.iter().filter(|cell| cell.errors > 0).count() {
        0 => Ok(()),
        failed => Err(Error::new(ErrorKind::Io, format!("{failed} of {} cells had I/O errors", run.cells.len()))),
    }
}
