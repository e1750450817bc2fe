//! `provision repair`: after a crash, a reboot or a loss, everything is again as it was made.

use blockdev::{Cancel, Result, ui};
use provision::doctor::refuse_errors;
use provision::engine::Loss;

use crate::selection::{Selection, make_files_with_their_own_modes, observer};
use crate::up::tell;

/// Mend what a crash, a reboot or a loss has broken.
///
/// Starts what does not run, makes slots and configuration that are gone, and copies a replica whose data are gone from the
/// primary anew. The primary's own data are never made anew.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_args: &Args, selection: &Selection, output: ui::Output) -> Result<()> {
    make_files_with_their_own_modes();
    let (cluster, _lock) = selection.open_to_change(&Cancel::on_signals()?)?;
    refuse_errors(&cluster.findings()?)?;
    cluster.converge(Loss::CopyReplicas, &mut *observer(output))?;
    tell(&cluster, output)
}
