//! `pfs rename`: calls something otherwise, or puts it elsewhere in its volume.

use std::ffi::OsString;

use blockdev::{Cancel, Error};
use nix::errno::Errno;

use crate::session::{Failure, Session};

/// Call a file or directory otherwise, or put it elsewhere in its volume.
///
/// What has the new name already is replaced: a file by a file, an empty directory by a directory.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What it is called.
    #[arg(value_name = "VOLUME:/PATH")]
    from: OsString,

    /// What it is to be called.
    #[arg(value_name = "VOLUME:/PATH")]
    to: OsString,
}

pub(crate) fn run(args: &Args, session: &Session<'_>) -> Result<(), Failure> {
    let (from, to) = (session.place(&args.from)?, session.place(&args.to)?);
    let changing = session.changing(&from, &Cancel::on_signals()?)?;
    if from.volume != to.volume {
        let message = format!("cannot rename {} to {}: that is another volume", args.from.display(), args.to.display());
        return Err(Error::io(message, Errno::EXDEV).with_hint("`cp -r` copies from volume to volume").into());
    }
    let renamed = changing.rename(&from.path, &to.path);
    let closed = changing.close();
    renamed?;
    Ok(closed?)
}
