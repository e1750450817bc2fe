//! `pfs read`: the content of a file.

use std::ffi::OsString;

use blockdev::ui;

use crate::original::number;
use crate::reading::{Opened, Reading};
use crate::session::{Failure, Session};

/// Bytes read at once.
const BUFFER: usize = 4 << 20;

/// Print the content of a file.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The first byte.
    #[arg(short, value_name = "BYTES", default_value_t, value_parser = number)]
    offset: u64,

    /// How many bytes; without it, all up to the end.
    #[arg(short, value_name = "BYTES", value_parser = number)]
    length: Option<u64>,

    /// The file.
    #[arg(value_name = "VOLUME:/FILE")]
    file: OsString,
}

pub(crate) fn run(args: &Args, session: &Session<'_>) -> Result<(), Failure> {
    let place = session.place(&args.file)?;
    let mut reading = session.reading(&place)?;
    let file = reading.open(&place.path)?;
    print(&mut reading, &file, args.offset, args.length.unwrap_or(u64::MAX))?;
    Ok(())
}

/// Prints so much of a file. Returns whether anybody still reads it.
pub(crate) fn print(reading: &mut Reading, file: &Opened, from: u64, len: u64) -> blockdev::Result<bool> {
    let end = from.saturating_add(len).min(file.size());
    let mut at = from;
    let mut buffer = vec![0; BUFFER];
    while at < end {
        #[allow(clippy::cast_possible_truncation, reason = "no longer than the buffer")]
        let wanted = (end - at).min(BUFFER as u64) as usize;
        let got = reading.read(file, at, &mut buffer[..wanted])?;
        if got == 0 {
            // It has become shorter meanwhile.
            break;
        }
        if !ui::print_bytes(&buffer[..got])? {
            return Ok(false);
        }
        at += got as u64;
    }
    Ok(true)
}
