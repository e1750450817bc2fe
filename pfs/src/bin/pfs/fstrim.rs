//! `pfs fstrim`: tells the device which blocks are free.

use std::ffi::OsString;

use blockdev::{ByteSize, Cancel, Error, ErrorKind};
use pfs::format::BLOCK_SIZE;
use serde::Serialize;

use crate::session::{Failure, Session};

/// Tell the device which blocks are free: those that it was not told of yet.
///
/// On an image file they become holes, whose space is the host's again; writing them later allocates it anew.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// All that are free, whether it was told of them or not.
    #[arg(short, long)]
    all: bool,

    /// Nothing but what goes wrong. The original warns, and waits, because it cannot see whether it is the only writer.
    #[arg(short, long)]
    quiet: bool,

    /// The first chunk: there is no leaving out any here.
    #[arg(short, long = "beginid", value_name = "CHUNK", hide = true)]
    begin: Option<u32>,

    /// The chunk after the last: there is no leaving out any here.
    #[arg(short, long = "endid", value_name = "CHUNK", hide = true)]
    end: Option<u32>,

    /// The volume.
    #[arg(value_name = "VOLUME")]
    volume: OsString,
}

/// What the device was told.
#[derive(Serialize)]
struct Told {
    blocks: u64,
    bytes: u64,
}

pub(crate) fn run(args: &Args, session: &Session<'_>) -> Result<(), Failure> {
    let path = session.volume(&args.volume)?;
    if args.begin.is_some() || args.end.is_some() {
        let message = "cannot tell the device of some chunks only: it is told of the whole volume";
        return Err(Error::new(ErrorKind::Unsupported, message).with_hint("leave out -b and -e").into());
    }
    let cancel = Cancel::on_signals()?;
    let writer = session.writer(&path, &cancel)?;
    let told = writer.discard(args.all, &cancel);
    let closed = writer.close();
    let blocks = told?;
    closed?;
    let told = Told { blocks, bytes: blocks * BLOCK_SIZE.bytes() };
    if args.quiet || session.compatible {
        return Ok(());
    }
    session.print(&told, |told| {
        format!("told the device of {} free blocks, {}\n", told.blocks, ByteSize::new(told.bytes)).into_bytes()
    })
}
