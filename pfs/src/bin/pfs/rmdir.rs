//! `pfs rmdir`: removes an empty directory.

use std::ffi::OsString;

use crate::session::{Failure, Session};

/// Remove an empty directory.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory.
    #[arg(value_name = "VOLUME:/PATH")]
    path: OsString,
}

pub(crate) fn run(args: &Args, session: &Session<'_>) -> Result<(), Failure> {
    session.write(&args.path, |changing, path| Ok(changing.rmdir(path)?))
}
