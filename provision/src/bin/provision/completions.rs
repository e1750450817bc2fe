//! `provision completions`: a completion script for a shell, or the man page.

use blockdev::{Result, ui};
use clap::CommandFactory;

/// Print a completion script for a shell, or the man page.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to print.
    #[arg(value_enum)]
    what: ui::Generated,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    ui::generate(crate::Cli::command(), args.what)
}
