//! `pfs tail`: what is appended to a file.

use std::ffi::OsString;
use std::thread;
use std::time::Duration;

use blockdev::{Cancel, Error};
use nix::errno::Errno;

use crate::read;
use crate::session::{Failure, Session};

/// Print what is appended to a file, as it comes, until interrupted.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How often to look, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    interval: u64,

    /// Taken, and without a meaning, as in the original: it always follows.
    #[arg(short, hide = true)]
    follow: bool,

    /// Taken, and without a meaning, as in the original: it shows only what is new.
    #[arg(short = 'n', value_name = "LINES", hide = true)]
    lines: Option<u64>,

    /// The file.
    #[arg(value_name = "VOLUME:/FILE")]
    file: OsString,
}

pub(crate) fn run(args: &Args, session: &Session<'_>) -> Result<(), Failure> {
    let place = session.place(&args.file)?;
    let cancel = Cancel::on_signals()?;
    let mut volume = session.open(&place.volume)?;
    let inode = volume.metadata().lookup(&place.path)?.number;
    let first = volume.metadata().file_map(inode)?;
    let mut end = first.size;
    loop {
        cancel.check("tail")?;
        if !volume.refresh()? {
            thread::sleep(Duration::from_millis(args.interval));
            continue;
        }
        let map = volume.metadata().file_map(inode)?;
        if map.btime != first.btime {
            return Err(Error::io(format!("{} was removed", args.file.display()), Errno::ENOENT).into());
        }
        if map.size > end && !read::print(&mut volume, &map, end, map.size - end)? {
            return Ok(());
        }
        end = map.size;
    }
}
