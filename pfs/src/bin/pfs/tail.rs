//! `pfs tail`: what is appended to a file.

use std::ffi::OsString;
use std::thread;
use std::time::Duration;

use blockdev::Cancel;

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
    let mut reading = session.reading(&place)?;
    let mut file = reading.open(&place.path)?;
    loop {
        cancel.check("tail")?;
        let Some(now) = reading.look_again(&place.path, &file)? else {
            thread::sleep(Duration::from_millis(args.interval));
            continue;
        };
        let end = file.size();
        if now.size() > end && !read::print(&mut reading, &now, end, now.size() - end)? {
            return Ok(());
        }
        file = now;
    }
}
