//! `pfs write`: writes standard input into a file.

use std::ffi::{OsStr, OsString};
use std::io::{Read, stdin};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use blockdev::{Cancel, Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pfs::volume::VolumePath;
use serde::Serialize;

use crate::changing::Changing;
use crate::original;
use crate::session::{Failure, Session, not_internal};

/// Bytes written at once, as by the original.
const BUFFER: usize = 4 << 20;

/// How often to look whether it is to end while nothing comes, in milliseconds.
const TICK: u16 = 100;

/// Write standard input into a file, which is made if there is none. What lies beyond stays.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The byte to begin with.
    #[arg(short, long, value_name = "BYTES", default_value = "0", value_parser = original::number)]
    offset: u64,

    /// How many bytes to write at most.
    #[arg(short, long, value_name = "BYTES", value_parser = original::number)]
    length: Option<u64>,

    /// The file.
    #[arg(value_name = "VOLUME:/PATH")]
    path: OsString,
}

/// What was written.
#[derive(Serialize)]
struct Written {
    offset: u64,
    bytes: u64,
}

pub(crate) fn run(args: &Args, session: &Session<'_>) -> Result<(), Failure> {
    let cancel = Cancel::on_signals()?;
    let place = session.place(&args.path)?;
    let changing = session.changing(&place, &cancel)?;
    let written = copy_in(&changing, &place.path, args, &cancel);
    let closed = changing.close();
    let written = written?;
    closed?;
    session.print(&written, |written| if session.compatible { coloured(written, &args.path) } else { text(written) })
}

fn copy_in(changing: &Changing, path: &VolumePath, args: &Args, cancel: &Cancel) -> Result<Written> {
    changing.create(path)?;
    not_internal(changing.stat(path)?.inode, path)?;
    let mut content = changing.pour(path)?;
    let mut written = Written { offset: args.offset, bytes: 0 };
    let mut buffer = Vec::with_capacity(BUFFER);
    loop {
        let wanted = args.length.map_or(u64::MAX, |length| length - written.bytes).min(BUFFER as u64);
        fill(&mut buffer, wanted, cancel)?;
        if buffer.is_empty() {
            return Ok(written);
        }
        content.write(args.offset + written.bytes, &buffer)?;
        written.bytes += buffer.len() as u64;
    }
}

/// Reads standard input until so many bytes came or its end.
fn fill(buffer: &mut Vec<u8>, wanted: u64, cancel: &Cancel) -> Result<()> {
    let what = || "cannot read standard input";
    let mut input = stdin().lock();
    buffer.clear();
    while (buffer.len() as u64) < wanted {
        let mut ready = [PollFd::new(input.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::from(TICK)) {
            Ok(0) | Err(Errno::EINTR) => {
                cancel.check("writing")?;
                continue;
            }
            outcome => drop(outcome.context(what)?),
        }
        let mut piece = [0; 64 << 10];
        #[allow(clippy::cast_possible_truncation, reason = "at most 64 KiB")]
        let most = (wanted - buffer.len() as u64).min(piece.len() as u64) as usize;
        let count = input.read(&mut piece[..most]).context(what)?;
        if count == 0 {
            return Ok(());
        }
        buffer.extend(&piece[..count]);
        cancel.check("writing")?;
    }
    Ok(())
}

fn text(written: &Written) -> Vec<u8> {
    format!("wrote {} bytes from byte {} on\n", written.bytes, written.offset).into_bytes()
}

fn coloured(Written { offset, bytes }: &Written, path: &OsStr) -> Vec<u8> {
    let mut line = format!("\x1b[40;32m[   OK   ]\x1b[0m Write {offset} offset, {bytes} bytes to file ").into_bytes();
    line.extend(path.as_bytes());
    line.push(b'\n');
    line
}
