//! `bench lag`: how long after a commit on the primary does each replica see it?

use std::path::{Path, PathBuf};
use std::time::Duration;

use bench::lag::{self, Load, Nodes, Options, Question};
use bench::report::{Run, Severity};
use blockdev::{Cancel, Error, ErrorKind, Result, ui};
use provision::Cluster;
use provision::config::{FILE_NAME, Layers, Origin, Settings};
use provision::state::StateDirectory;
use provision::topology::Name;

use crate::keep::Keep;
use crate::shown::Shown;
use crate::time::duration;

/// Measure replication lag: how long after a commit on the primary does each replica see it?
///
/// Without arguments it measures the cluster that `provision up` made. It writes to a schema of its own on the primary,
/// which it drops at the end, also after Ctrl-C, and looks for what it wrote on every replica at once.
///
/// The report answers two questions. Busy: what does an application see while transactions come steadily, each started
/// when its time has come, whether or not the one before is done? Quiet: what does it see of a single transaction of each
/// kind after a silence?
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Connection strings of libpq, the primary's first, instead of a cluster of provision.
    #[arg(value_name = "DSN", conflicts_with = "cluster")]
    servers: Vec<String>,

    /// The cluster; without it the one that `cluster.toml` in this directory names, or `default`.
    #[arg(long, value_name = "NAME", env = "PROVISION_NAME")]
    cluster: Option<Name>,

    /// Where clusters are noted; without it $XDG_STATE_HOME/onedisk, for root /var/lib/onedisk.
    #[arg(long, value_name = "PATH", env = "PROVISION_STATE_DIR")]
    state_dir: Option<PathBuf>,

    /// Transactions a second of the steady stream; several are measured one after the other.
    #[arg(long, alias = "rates", value_name = "N", value_delimiter = ',', default_value = "100")]
    rate: Vec<f64>,

    /// How long each steady stream is measured, such as 15s; a bare number is seconds.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10s")]
    runtime: Duration,

    /// How long it goes on before it is measured.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "1s")]
    warmup: Duration,

    /// How many connections send the steady stream.
    #[arg(long, value_name = "N", default_value_t = 16)]
    connections: usize,

    /// Load beside the steady stream: pgbench-like, insert (which extends a table) or update (in place); several are
    /// measured one after the other.
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    load: Vec<Load>,

    /// Transactions a second of the load.
    #[arg(long, value_name = "N", default_value_t = 1000.0)]
    load_rate: f64,

    /// Measure single transactions after silence alone.
    #[arg(long, conflicts_with_all = ["busy", "rate", "runtime", "warmup", "connections", "load", "load_rate"])]
    quiet: bool,

    /// Measure the steady stream alone.
    #[arg(long)]
    busy: bool,

    /// Measure single transactions once more with a tiny update so often, such as 10ms, and say what it buys.
    #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with = "busy")]
    heartbeat: Option<Duration>,

    /// Instead: measure what it costs that somebody looks, by commits and `replay_lag` with pollers and without.
    #[arg(long, conflicts_with_all = ["quiet", "busy", "heartbeat", "singles", "silence", "calibrate"])]
    observer_effect: bool,

    /// Instead: let every replica wait so long before it replays a commit (recovery_min_apply_delay), find that delay
    /// again, and take it back. Takes a superuser.
    #[arg(long, value_name = "TIME", value_parser = duration, num_args = 0..=1, default_missing_value = "50ms",
          require_equals = true, conflicts_with_all = ["quiet", "busy", "heartbeat", "singles", "silence"])]
    calibrate: Option<Duration>,

    /// How many single transactions of each kind.
    #[arg(long, value_name = "N", default_value_t = 10, conflicts_with = "busy")]
    singles: u32,

    /// How long it is silent before each; up to half as much is added at random.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "200ms", conflicts_with = "busy")]
    silence: Duration,

    /// How long a poller rests between two looks at its replica: less tells shorter lags, and costs the replica more.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "200us")]
    poll_pause: Duration,

    /// Seed of all that is random.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    #[command(flatten)]
    keep: Keep,
}

impl Args {
    fn question(&self) -> Question {
        match self.calibrate {
            Some(delay) => Question::Calibration(delay),
            None if self.observer_effect => Question::ObserverEffect,
            None if self.quiet => Question::Quiet,
            None if self.busy => Question::Busy,
            None => Question::BusyAndQuiet,
        }
    }

    fn options(&self) -> Options {
        Options {
            question: self.question(),
            rates: self.rate.clone(),
            runtime: self.runtime,
            warmup: self.warmup,
            connections: self.connections,
            loads: self.load.clone(),
            load_rate: self.load_rate,
            singles: self.singles,
            heartbeat: self.heartbeat,
            silence: self.silence,
            pause: self.poll_pause,
            seed: self.seed,
        }
    }

    fn nodes(&self, cancel: &Cancel) -> Result<Nodes> {
        if !self.servers.is_empty() {
            return Nodes::of_connection_strings(&self.servers);
        }
        let name = match &self.cluster {
            Some(name) => name.clone(),
            None => name_in_file(Path::new(FILE_NAME))?,
        };
        let cluster = Cluster::open(&StateDirectory::find(self.state_dir.as_deref())?, &name, cancel)?;
        Nodes::of_cluster(&cluster)
    }
}

/// The name of the cluster that the cluster file describes, or that of one without a file.
fn name_in_file(path: &Path) -> Result<Name> {
    let mut layers = Layers::default();
    if path.exists() {
        layers.add(Settings::read(path)?, |_| Origin::File(path.to_owned()));
    }
    Ok(layers.config()?.name)
}

pub(crate) fn run(args: &Args, output: ui::Output) -> Result<()> {
    args.keep.check()?;
    let cancel = Cancel::on_signals()?;
    let options = args.options();
    options.check()?;
    let run = lag::measure(&args.nodes(&cancel)?, &options, &mut Shown::default(), &cancel)?;
    ui::print_result(output, &run, Run::to_text)?;
    args.keep.write(&run)?;
    cancel.check("bench lag")?;
    match run.findings.iter().find(|finding| finding.severity == Severity::Error) {
        Some(finding) => Err(Error::new(ErrorKind::Io, finding.text.clone())),
        None => Ok(()),
    }
}
