//! `bench pfsd`: what a pfsd does with so many workers, for so many clients.

use std::path::PathBuf;
use std::time::Duration;

use bench::pfsd::{self, Common, Options, Rw, Sweep, Which};
use bench::report::{Run, Severity};
use blockdev::{ByteSize, Cancel, Context, Error, ErrorKind, Result, ui};

use crate::keep::Keep;
use crate::shown::Shown;
use crate::time::duration;

/// Measure a pfsd: what it does with so many workers, for so many clients, and how much of the disk's own speed that is.
///
/// Without arguments it makes a volume on a scratch image, attaches it to a loop device where it may, and starts our pfsd once
/// for each number of workers in each round. Its clients read and write one file, which is written first. In the same rounds
/// the loop device and the image are measured alone, where that file lies, with as many I/Os in flight. Then it says how many
/// workers to use here, and removes everything again.
///
/// Parameters that take a list are swept: every combination is one cell of the result.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Numbers of workers.
    #[arg(short, long, value_name = "N", value_delimiter = ',', default_value = "1,2,4,8")]
    workers: Vec<u32>,

    /// Numbers of clients, each of which does one thing at a time.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,4,16")]
    clients: Vec<u32>,

    /// Clients are processes that share a connection, as a database's are, not threads.
    #[arg(long)]
    processes: bool,

    /// What they do: read, write, randread, randwrite, randrw, append (each to a file of its own) or meta (create, stat,
    /// rename, unlink).
    #[arg(long, value_name = "PATTERN", value_delimiter = ',', default_value = "randread,randwrite")]
    rw: Vec<Rw>,

    /// Bytes per operation [default: 8k; of read and write 4M].
    #[arg(long, value_name = "SIZE", value_delimiter = ',')]
    bs: Vec<ByteSize>,

    /// How large the file is.
    #[arg(long, default_value = "1G")]
    size: ByteSize,

    /// Of 100 operations of randrw, how many are reads.
    #[arg(long, value_name = "PERCENT", default_value_t = 50)]
    rwmixread: u8,

    /// Start so many operations a second, over all clients, whether or not the pfsd is ready (an open loop with Poisson
    /// arrivals), and report response times from when each should have started.
    #[arg(long, value_name = "RATE", value_delimiter = ',')]
    rate: Vec<f64>,

    /// How long each cell is measured, such as 500ms; a bare number is seconds.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "1s")]
    runtime: Duration,

    /// How long each cell runs before it is measured.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "200ms")]
    warmup: Duration,

    /// How long each pfsd is watched while nobody asks it anything; 0 leaves it out.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "1s")]
    idle: Duration,

    /// How often everything is run, in an order of its own; figures are medians of the rounds.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,

    /// Which pfsd: ours, the path of one or of the directory in which the original is installed (as root), or container:NAME
    /// for the one that runs there, on the disk that it serves; it is started anew with each number of workers, unless it has
    /// clients.
    #[arg(long, value_name = "WHICH", default_value = "ours")]
    pfsd: Which,

    /// Another one on the same disk, in turns, and the ratio of the two in every cell.
    #[arg(long, value_name = "WHICH")]
    against: Option<Which>,

    /// Where to make the image; several directories are several media, measured one after the other. One in /dev/shm is memory.
    #[arg(long, value_name = "DIR", value_delimiter = ',', default_value = ".")]
    scratch: Vec<PathBuf>,

    /// With container:NAME: which disk, where more than one is served there or none yet.
    #[arg(long, value_name = "NAME")]
    disk: Option<String>,

    /// With container:NAME: where Docker is, a URL or the name of a context; without it, where Docker's own client would look.
    #[arg(long, value_name = "URL")]
    docker: Option<String>,

    /// With container:NAME: the `bench` that is taken there; it must run there, so it may have to be a static one
    /// [default: this program].
    #[arg(long, value_name = "PROGRAM")]
    container_bench: Option<PathBuf>,

    /// Seed of all that is random.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    #[command(flatten)]
    keep: Keep,
}

impl Args {
    fn options(&self) -> Result<Options> {
        let program = std::env::current_exe().context(|| "cannot find out where this program is")?;
        let rates = if self.rate.is_empty() { vec![None] } else { self.rate.iter().copied().map(Some).collect() };
        Ok(Options {
            pfsd: self.pfsd.clone(),
            against: self.against.clone(),
            workers: self.workers.clone(),
            sweep: Sweep { rw: self.rw.clone(), blocks: self.bs.clone(), clients: self.clients.clone(), rates },
            common: Common {
                read_percent: self.rwmixread,
                size: self.size,
                processes: self.processes,
                seed: self.seed,
                warmup: self.warmup,
                runtime: self.runtime,
            },
            rounds: self.rounds,
            idle: self.idle,
            scratch: self.scratch.clone(),
            disk: self.disk.clone(),
            docker: self.docker.clone(),
            container_program: self.container_bench.clone().unwrap_or_else(|| program.clone()),
            program,
        })
    }
}

pub(crate) fn run(args: &Args, output: ui::Output) -> Result<()> {
    args.keep.check()?;
    let options = args.options()?;
    let cancel = Cancel::on_signals()?;
    let run = pfsd::measure(&options, &mut Shown::default(), &cancel)?;
    ui::print_result(output, &run, Run::to_text)?;
    args.keep.write(&run)?;
    cancel.check("bench pfsd")?;
    match run.findings.iter().find(|finding| finding.severity == Severity::Error) {
        Some(finding) => Err(Error::new(ErrorKind::Io, finding.text.clone())),
        None => Ok(()),
    }
}

/// Be the agent of a `bench pfsd`: for its use alone.
#[derive(Debug, clap::Args)]
pub(crate) struct AgentArgs {}

pub(crate) fn run_agent(_args: &AgentArgs) -> Result<()> {
    pfsd::agent::serve()
}
