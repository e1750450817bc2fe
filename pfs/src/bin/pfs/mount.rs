//! `pfs mount`: shows a volume in a directory of the host.

use std::ffi::OsString;
use std::path::PathBuf;

use blockdev::{Cancel, ui};
use pfs::mount::mount;

use crate::session::{Failure, Session};

/// Show a volume in a directory of the host, read-only, so that ordinary programs can look inside.
///
/// It stays there until Ctrl-C, or until it is unmounted (`umount DIR`). What others write to the volume meanwhile is seen.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The volume.
    #[arg(value_name = "VOLUME")]
    volume: OsString,

    /// The directory.
    #[arg(value_name = "DIR")]
    point: PathBuf,
}

pub(crate) fn run(args: &Args, session: &Session<'_>) -> Result<(), Failure> {
    let path = session.volume(&args.volume)?;
    session.original.known_cluster().map_err(Failure::Mount)?;
    let point = args.point.display();
    let ready = || ui::notice(&format!("{} is in {point}; Ctrl-C or `umount {point}` ends it", path.display()));
    Ok(mount(&path, &args.point, &Cancel::on_signals()?, ready)?)
}
