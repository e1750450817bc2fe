//! `pfs flushlog`: brings the journal into the metadata sectors.

use std::ffi::OsString;

use blockdev::Cancel;

use crate::session::{Failure, Session};

/// Bring everything from the journal into the metadata sectors, and leave the journal empty.
///
/// A reader of the original that has not read all of the journal yet dies of that.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The volume.
    #[arg(value_name = "VOLUME")]
    volume: OsString,
}

pub(crate) fn run(args: &Args, session: &Session<'_>) -> Result<(), Failure> {
    let path = session.volume(&args.volume)?;
    let writer = session.writer(&path, &Cancel::on_signals()?)?;
    let emptied = writer.empty_journal();
    let closed = writer.close();
    emptied?;
    Ok(closed?)
}
