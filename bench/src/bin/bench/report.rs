//! `bench report`: a run as a page, or as text.

use std::path::PathBuf;

use bench::report::Run;
use blockdev::{Result, ui};
use serde::Serialize;

/// Turn a run into a self-contained HTML page, or print it. Several runs become one report.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A run that bench saved.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Write an HTML page to this file; without it, the run is printed.
    #[arg(short = 'o', long = "html", value_name = "FILE")]
    html: Option<PathBuf>,
    /// Replace FILE even when it is not a report.
    #[arg(long, requires = "html")]
    force: bool,
}

/// What was written.
#[derive(Serialize)]
struct Written {
    report: PathBuf,
}

pub(crate) fn run(args: &Args, output: ui::Output) -> Result<()> {
    let runs = args.runs.iter().map(|path| Run::load(path)).collect::<Result<Vec<_>>>()?;
    // At least one is required above.
    let Some(run) = runs.into_iter().reduce(Run::and) else { return Ok(()) };
    let Some(path) = &args.html else {
        return ui::print_result(output, &run, Run::to_text);
    };
    run.save_html(path, args.force)?;
    ui::print_result(output, &Written { report: path.clone() }, |written| format!("{}\n", written.report.display()))
}
