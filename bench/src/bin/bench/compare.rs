//! `bench compare`: what changed between two runs.

use std::path::PathBuf;

use bench::report::{Comparison, Run};
use blockdev::{Result, ui};

/// Say what changed between two runs, and which of it is noise.
///
/// Cells are matched by their parameters. What is one thing all through A and another all through B, such as the target
/// or the engine, is taken for what is being compared.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The run to compare with.
    a: PathBuf,
    /// The run that is compared.
    b: PathBuf,
    /// Show the cells whose difference is noise, too.
    #[arg(long)]
    all: bool,
}

pub(crate) fn run(args: &Args, output: ui::Output) -> Result<()> {
    let (a, b) = (Run::load(&args.a)?, Run::load(&args.b)?);
    let comparison = Comparison::new(&a, &args.a.display().to_string(), &b, &args.b.display().to_string())?;
    ui::print_result(output, &comparison, |comparison| comparison.to_text(args.all))
}
