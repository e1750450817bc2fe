//! `provision exec`: a command on a node.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use blockdev::{Cancel, Result};
use provision::runtime::Command;

use crate::selection::Selection;

/// Run a command on a node, as the user whom its database runs as.
///
/// It finds the database's programs on its path, and PGHOST, PGPORT, PGUSER, PGPASSFILE and PGDATA set for the node. Ends
/// as the command does.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The node.
    node: String,

    /// The command and its arguments, after `--`.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

pub(crate) fn run(args: &Args, selection: &Selection) -> Result<()> {
    // Ctrl-C is for the command; we end when it does.
    let cluster = selection.open(&Cancel::on_signals()?)?;
    let node = cluster.record.topology.node(&args.node)?;
    let mut words = args.command.iter();
    // clap requires one word at least.
    let program = words.next().cloned().unwrap_or_default();
    let command = cluster.engine().with_environment(&cluster, node, Command::new(program).args(words.cloned()));
    exit_as(cluster.runtime().exec(node, &command)?)
}

/// Ends as a command did that ended with `status`.
pub(crate) fn exit_as(status: ExitStatus) -> Result<()> {
    const SIGNALLED: i32 = 128;
    match status.code().unwrap_or(SIGNALLED + status.signal().unwrap_or(0)) {
        0 => Ok(()),
        code => std::process::exit(code),
    }
}
