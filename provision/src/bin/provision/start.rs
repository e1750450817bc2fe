//! `provision start`: nodes that were stopped run again.

use blockdev::{Cancel, Result, ui};

use crate::selection::{Selection, make_files_with_their_own_modes, observer};
use crate::stop::named;

/// Start nodes that were stopped, or all of them.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The nodes; all of them if none is named.
    nodes: Vec<String>,
}

pub(crate) fn run(args: &Args, selection: &Selection, output: ui::Output) -> Result<()> {
    make_files_with_their_own_modes();
    let (cluster, _lock) = selection.open_to_change(&Cancel::on_signals()?)?;
    cluster.start(&named(&cluster, &args.nodes)?, &mut *observer(output))
}
