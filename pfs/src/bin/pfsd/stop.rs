//! `pfsd stop NAME`: end the daemon of a disk.

use std::time::Duration;

use blockdev::{Cancel, Result, ui};
use pfs::daemon::launch;
use serde::Serialize;

use crate::target::Where;

/// End the daemon that serves a disk. Its clients wait, and go on with the next
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The disk, as the daemon was told.
    name: String,

    #[command(flatten)]
    at: Where,

    /// How long to wait for it, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,

    /// How results are printed on standard output.
    #[arg(long, value_enum, default_value_t)]
    output: ui::Output,
}

#[derive(Debug, Serialize)]
struct Stopped {
    disk: String,
    /// The process that ended; none if there was none.
    pid: Option<u32>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let cancel = Cancel::on_signals()?;
    let pid = launch::stop(&args.at.places(), &args.name, Duration::from_secs(args.timeout), &cancel)?;
    let stopped = Stopped { disk: args.name.clone(), pid };
    ui::print_result(args.output, &stopped, |stopped| match stopped.pid {
        Some(pid) => format!("{}: process {pid} ended\n", stopped.disk),
        None => format!("{}: not served\n", stopped.disk),
    })
}
