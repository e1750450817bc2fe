//! `pfsd start NAME`: start a daemon in the background, and wait until it lets clients in.

use std::time::Duration;

use blockdev::{Context, Result, ui};
use pfs::daemon::launch;

use crate::serve;
use crate::status;

/// Start a daemon in the background, and wait until it lets clients in
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The disk: its name below /dev, by which clients call it.
    name: String,

    #[command(flatten)]
    serve: serve::Args,

    /// How long to wait for it, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,

    /// How results are printed on standard output.
    #[arg(long, value_enum, default_value_t)]
    output: ui::Output,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let program = std::env::current_exe().context(|| "cannot find this program itself")?;
    let serve = &args.serve;
    let mut arguments = vec!["-p".to_owned(), args.name.clone(), "-w".to_owned(), serve.worker_count().to_string()];
    let mut option = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            arguments.extend([name.to_owned(), value]);
        }
    };
    option("-s", Some(serve.pause.to_string()));
    option("-a", serve.shm.as_ref().map(|path| path.display().to_string()));
    option("--device", serve.device.as_ref().map(|path| path.display().to_string()));
    option("--root", serve.at.root.as_ref().map(|path| path.display().to_string()));
    option("--engine", Some(serve.engine.to_string()));
    option("--metrics", serve.metrics.as_ref().map(ToString::to_string));
    if serve.durable {
        arguments.push("--durable".to_owned());
    }
    let patience = Duration::from_secs(args.timeout);
    let status = launch::start(&program, &arguments, &serve.places(), &args.name, patience)?;
    ui::print_result(args.output, &status, status::line)
}
