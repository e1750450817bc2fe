//! `pfsd -p NAME`: the daemon itself, called as the original is.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use blockdev::engine::Choice;
use blockdev::{Cancel, Context, Error, Result, ui};
use pfs::daemon::control::Endpoint;
use pfs::daemon::{self, Claim, Options, WORKERS_MAX};
use pfs::proto::Places;
use pfs::volume::{Volume, device_of};

use crate::target::Where;

/// What the original leaves with when it does not start.
pub(crate) const FAILED: u8 = 255;

/// The original's default, clamped to what there can be.
const WORKERS: i64 = 32;

#[derive(Debug, Clone, clap::Args)]
#[group(id = "serve")]
pub(crate) struct Args {
    /// The disk: its name below /dev, by which clients call it (`mapper_x` is /dev/mapper/x).
    #[arg(short = 'p', value_name = "NAME")]
    pub(crate) disk: Option<String>,

    /// How many workers there are at most, 1 to 128. They rest until there is work for them.
    #[arg(short = 'w', long = "workers", value_name = "N", default_value_t = WORKERS, allow_negative_numbers = true)]
    pub(crate) workers: i64,

    /// 0 to look for requests all the time, without a pause. Otherwise pauses suit themselves to the load.
    #[arg(short = 's', value_name = "MICROSECONDS", default_value_t = 10, allow_negative_numbers = true)]
    pub(crate) pause: i64,

    /// Serve this file or device under the name, instead of the device below /dev.
    #[arg(long, value_name = "FILE|DEVICE")]
    pub(crate) device: Option<PathBuf>,

    /// Flush before a change of metadata or data is acknowledged. The original never does.
    #[arg(long)]
    pub(crate) durable: bool,

    /// How I/O is done: auto, uring, uring-sqpoll, aio or threads.
    #[arg(long, value_name = "ENGINE", default_value_t)]
    pub(crate) engine: Choice,

    /// Also answer Prometheus, on a socket (unix:PATH) or a port of this machine's own (127.0.0.1:9187).
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) metrics: Option<Endpoint>,

    /// Stay in the foreground, and log to standard error, too.
    #[arg(short = 'f', overrides_with = "background")]
    pub(crate) foreground: bool,

    /// Go into the background. This is the default.
    #[arg(short = 'd')]
    pub(crate) background: bool,

    /// The directory for shared memory.
    #[arg(short = 'a', value_name = "DIR")]
    pub(crate) shm: Option<PathBuf>,

    /// Bind workers to processors. Taken, and without effect here: workers rest instead.
    #[arg(short = 'b', value_name = "0|1", default_value_t = 1, hide = true, allow_negative_numbers = true)]
    affinity: i64,

    /// The original's configuration of its log. Taken, and without effect here.
    #[arg(short = 'c', value_name = "FILE", hide = true)]
    log_configuration: Option<PathBuf>,

    /// The original's number of a server. Taken, and without effect here.
    #[arg(short = 'e', value_name = "ID", hide = true)]
    server: Option<String>,

    /// Without effect in the original, too.
    #[arg(short = 'i', value_name = "N", hide = true)]
    inodes: Option<String>,

    #[command(flatten)]
    pub(crate) at: Where,
}

impl Args {
    /// How many workers that is: as in the original, what is out of range is the nearest that is not.
    pub(crate) fn worker_count(&self) -> u32 {
        u32::try_from(self.workers.clamp(1, WORKERS_MAX.into())).unwrap_or(WORKERS_MAX)
    }

    pub(crate) fn places(&self) -> Places {
        let mut places = self.at.places();
        if let Some(shm) = &self.shm {
            shm.clone_into(&mut places.shm);
        }
        places
    }

    fn options(&self) -> Result<Options> {
        let Some(disk) = self.disk.clone() else {
            return Err(Error::invalid("which disk? -p NAME says so").with_hint("`pfsd --help` shows all there is"));
        };
        Ok(Options {
            device: self.device.clone().unwrap_or_else(|| device_of(Path::new("/dev"), disk.as_bytes())),
            disk,
            places: self.places(),
            workers: self.worker_count(),
            busy_poll: self.pause == 0,
            durable: self.durable,
            engine: self.engine,
            echo: self.foreground,
            metrics: self.metrics.clone(),
        })
    }
}

pub(crate) fn run(args: &Args) -> ExitCode {
    match serve(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            ui::report_error("pfsd", &error);
            ExitCode::from(FAILED)
        }
    }
}

fn serve(args: &Args) -> Result<()> {
    let options = args.options()?;
    let claim = ui::needs_root(Claim::take(&options.places, &options.disk))?;
    // While whoever called this is there to be told.
    drop(ui::needs_root(Volume::open(&options.device))?);
    let device = options.device.display();
    ui::notice(&format!("starting pfsd: disk {}, {device}, {} workers", options.disk, options.workers));
    if !args.foreground {
        // Before there is any thread. The directory stays, for relative paths; so do standard output and error.
        nix::unistd::daemon(true, true).context(|| "cannot go into the background")?;
    }
    let cancel = Cancel::on_signals()?;
    ignore_hangups()?;
    daemon::serve(&options, claim, &cancel, || {})
}

/// SIGHUP means nothing to a daemon.
fn ignore_hangups() -> Result<()> {
    // A handler that only sets what nobody reads: `Cancel` would take it for a wish to end.
    signal_hook::flag::register(libc::SIGHUP, Arc::new(AtomicBool::new(false)))
        .map(|_| ())
        .context(|| "cannot handle SIGHUP")
}
