//! `provision psql`: the database's own client on a node.

use std::os::unix::process::CommandExt;

use blockdev::{Cancel, Error, Result};

use crate::exec::exit_as;
use crate::selection::Selection;

/// Open psql on a node.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The node.
    node: String,

    /// What psql gets beside the connection, after `--`.
    #[arg(last = true)]
    args: Vec<String>,
}

pub(crate) fn run(args: &Args, selection: &Selection) -> Result<()> {
    // In a container it is ended when we are; on this machine it takes our place, and our signals.
    let cluster = selection.open(&Cancel::on_signals()?)?;
    let node = cluster.record.topology.node(&args.node)?;
    let command = cluster.engine().client(&cluster, node).args(args.args.clone());
    if !cluster.runtime().is_this_machine() {
        return exit_as(cluster.runtime().exec(node, &command)?);
    }
    // It takes our place: its terminal, its signals and its exit code are its own.
    let error = std::process::Command::new(&command.program)
        .args(&command.args)
        .envs(command.environment.iter().map(|(name, value)| (name, value)))
        .exec();
    Err(Error::io(format!("cannot run {}", command.program), error).with_hint("install PostgreSQL's client programs"))
}
