//! `pfs touch`: makes an empty file.

use std::ffi::OsString;

use crate::session::{Failure, Session};

/// Make an empty file, unless there is one of that name already.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The file.
    #[arg(value_name = "VOLUME:/PATH")]
    path: OsString,
}

pub(crate) fn run(args: &Args, session: &Session<'_>) -> Result<(), Failure> {
    session.write(&args.path, |changing, path| Ok(changing.create(path)?))
}
