//! `pfs growfs`: gives a volume more chunks.

use std::ffi::OsString;

use blockdev::{ByteSize, Error, ErrorKind, ui};
use nix::errno::Errno;
use pfs::format::ChunkId;
use pfs::growfs::{GrowfsOptions, Grown, growfs};

use crate::mkfs::chunk_as_the_original;
use crate::session::{Failure, Session};

/// Grow a volume to as many chunks of 10 GiB as there is room for by now.
///
/// What it stands on has to be grown before (`vdisk grow`). The volume may be in use meanwhile; who has it open sees the new
/// space when it is told, or opens it again.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many chunks the volume must have now.
    #[arg(short = 'o', long = "oldcknum", value_name = "CHUNKS")]
    from: Option<u32>,

    /// How many it is to have: exactly as many as there is room for.
    #[arg(short = 'n', long = "newcknum", value_name = "CHUNKS")]
    to: Option<u32>,

    /// Format the new chunks although the first of them looks as if it had been formatted before.
    #[arg(short, long)]
    force: bool,

    /// The file or device.
    #[arg(value_name = "VOLUME")]
    volume: OsString,
}

pub(crate) fn run(args: &Args, session: &Session<'_>) -> Result<(), Failure> {
    let path = session.disk_to_write(&args.volume)?;
    let options = GrowfsOptions { from: args.from, to: args.to, force: args.force, ..GrowfsOptions::default() };
    let grown = growfs(&path, &options).map_err(|error| failure(error, session))?;
    let original = session.compatible;
    if !original {
        match session.tell_grown(&path) {
            Ok(Some(disk)) => ui::notice(&format!("the pfsd of {disk} uses the new chunks from now on")),
            Ok(None) => {}
            // It is grown all the same.
            Err(error) => ui::report_error("pfs", &error),
        }
    }
    session.print(&grown, |grown| if original { as_the_original(grown) } else { text(grown) }.into_bytes())
}

/// How the original ends over it.
fn failure(error: Error, session: &Session<'_>) -> Failure {
    let errno = match (error.kind(), error.errno()) {
        (ErrorKind::Refused, Some(libc::EAGAIN)) => return session.failed("growfs", error, Errno::EACCES),
        (ErrorKind::InvalidInput, Some(libc::EINVAL)) => return session.failed("growfs", error, Errno::EINVAL),
        (ErrorKind::Refused, _) => Errno::EBUSY,
        (ErrorKind::NotFound | ErrorKind::Permission, _) => Errno::EINVAL,
        _ => Errno::EIO,
    };
    Failure::Exit { error, errno }
}

fn text(grown: &Grown) -> String {
    let Grown { path, from, to, size, unused } = grown;
    let mut out = format!("grew the volume on {} from {from} to {to} chunks: {size}\n", path.display());
    if *unused > ByteSize::ZERO {
        out.push_str(&format!("the last {unused} are left over: a volume consists of whole chunks of 10 GiB\n"));
    }
    out
}

fn as_the_original(grown: &Grown) -> String {
    let chunks: String = ChunkId::all(grown.to).skip(grown.from as usize).map(chunk_as_the_original).collect();
    chunks + "pfs growfs succeeds!\n"
}
