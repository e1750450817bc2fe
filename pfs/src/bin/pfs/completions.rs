//! `pfs completions`: a completion script for a shell, or the man page.

use blockdev::ui;
use clap::CommandFactory;

use crate::session::Failure;

/// Print a completion script for a shell, or the man page.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to print.
    #[arg(value_enum)]
    what: ui::Generated,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    Ok(ui::generate(crate::Cli::command(), args.what)?)
}
