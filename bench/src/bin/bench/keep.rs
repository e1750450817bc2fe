//! Where a run goes besides standard output: what every command that measures has in common.

use std::path::PathBuf;

use bench::report::{FileKind, Run};
use blockdev::Result;

/// Where a run is kept.
#[derive(Debug, clap::Args)]
pub(crate) struct Keep {
    /// Save the run as JSON, for `bench report` and `bench compare`.
    #[arg(long, value_name = "RUN.json")]
    save: Option<PathBuf>,

    /// Write a self-contained page.
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,

    /// Replace the files of --save and --report also when they are something else.
    #[arg(long)]
    force: bool,
}

impl Keep {
    /// Finds out before anything is measured, not after, that something could not be kept.
    pub(crate) fn check(&self) -> Result<()> {
        if let Some(path) = &self.save {
            FileKind::Run.check(path, self.force)?;
        }
        if let Some(path) = &self.report {
            FileKind::Page.check(path, self.force)?;
        }
        Ok(())
    }

    /// Writes `run` to where it is to be kept.
    pub(crate) fn write(&self, run: &Run) -> Result<()> {
        if let Some(path) = &self.save {
            run.save(path, self.force)?;
        }
        if let Some(path) = &self.report {
            run.save_html(path, self.force)?;
        }
        Ok(())
    }
}
