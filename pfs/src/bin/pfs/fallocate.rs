//! `pfs fallocate`: gives a file its blocks before they are written.

use std::ffi::OsString;

use blockdev::ui;

use crate::original;
use crate::session::{Failure, Session, not_internal};

/// Give a file its blocks before they are written. It grows where the range ends beyond it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The byte to begin with.
    #[arg(short, long, value_name = "BYTES", default_value = "0", value_parser = original::number)]
    offset: u64,

    /// How many bytes.
    #[arg(short, long, value_name = "BYTES", default_value = "0", value_parser = original::number)]
    length: u64,

    /// The file.
    #[arg(value_name = "VOLUME:/PATH")]
    path: OsString,
}

pub(crate) fn run(args: &Args, session: &Session<'_>) -> Result<(), Failure> {
    session.write(&args.path, |changing, path| {
        not_internal(changing.stat(path)?.inode, path)?;
        match changing.allocate(path, args.offset, args.length) {
            // The original takes the number that posix_fallocate(3) returns for success.
            Err(error) if session.compatible => ui::report_error("pfs", &error),
            outcome => outcome?,
        }
        Ok(())
    })
}
