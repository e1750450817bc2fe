//! `pfs mkdir`: makes a directory.

use std::ffi::OsString;

use blockdev::{Error, Result};
use nix::errno::Errno;
use pfs::volume::{FileKind, VolumePath};

use crate::changing::Changing;
use crate::session::{Failure, Session};

/// Make a directory.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Make those on the way to it as well, and take what is there already.
    #[arg(short, long)]
    parents: bool,

    /// The directory.
    #[arg(value_name = "VOLUME:/PATH")]
    path: OsString,
}

pub(crate) fn run(args: &Args, session: &Session<'_>) -> Result<(), Failure> {
    session.write(&args.path, |changing, path| {
        if args.parents {
            with_parents(changing, path)?;
        } else {
            changing.mkdir(path)?;
        }
        Ok(())
    })
}

fn with_parents(changing: &Changing, path: &VolumePath) -> Result<()> {
    let mut way = Vec::new();
    for component in path.components() {
        way.push(b'/');
        way.extend(component);
        match changing.mkdir(&VolumePath::new(way.as_slice())) {
            Err(error) if error.errno() == Some(libc::EEXIST) => {}
            outcome => outcome?,
        }
    }
    if changing.stat(path)?.kind == FileKind::Directory {
        return Ok(());
    }
    Err(Error::io(format!("cannot make directory {:?}: it is a file", path.display()), Errno::EEXIST))
}
