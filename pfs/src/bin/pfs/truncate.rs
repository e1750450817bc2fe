//! `pfs truncate`: makes a file so long.

use std::ffi::OsString;

use blockdev::Error;
use nix::errno::Errno;

use crate::original;
use crate::session::{Failure, Session, not_internal};

/// Make a file shorter or longer. What it is longer reads as zeroes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How long.
    #[arg(short, long, value_name = "BYTES", value_parser = original::number)]
    length: Option<u64>,

    /// The file.
    #[arg(value_name = "VOLUME:/PATH")]
    path: OsString,
}

pub(crate) fn run(args: &Args, session: &Session<'_>) -> Result<(), Failure> {
    session.write(&args.path, |changing, path| {
        not_internal(changing.stat(path)?.inode, path)?;
        let Some(length) = args.length else {
            return Err(Error::io("cannot truncate: no length was given", Errno::EINVAL)
                .with_kind(blockdev::ErrorKind::InvalidInput)
                .with_hint("-l says how long the file is to be")
                .into());
        };
        Ok(changing.truncate(path, length)?)
    })
}
