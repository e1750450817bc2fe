//! `pfs du`: how much of the disk files and directories take.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use blockdev::{ByteSize, Result};
use pfs::format::Inode;
use pfs::volume::{FileKind, Metadata};
use serde::{Serialize, Serializer};

use crate::session::{Failure, Session};

/// Show how much of the disk files and directories take, in KiB.
///
/// A file takes whole blocks of 4 MiB; of a file with a single one, only what was written counts.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Show files, too.
    #[arg(short)]
    all: bool,

    /// Show no more than so many levels; 0 shows only what was named.
    #[arg(short, value_name = "LEVELS")]
    depth: Option<u32>,

    /// Where to begin.
    #[arg(value_name = "VOLUME:/PATH")]
    path: OsString,
}

/// What something takes.
#[derive(Debug, Serialize)]
struct Line {
    #[serde(serialize_with = "lossy")]
    path: Vec<u8>,
    bytes: ByteSize,
}

fn lossy<S: Serializer>(path: &[u8], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(path))
}

pub(crate) fn run(args: &Args, session: &Session<'_>) -> std::result::Result<(), Failure> {
    let place = session.place(&args.path)?;
    let volume = session.open(&place.volume)?;
    let start = volume.metadata().lookup(&place.path)?;
    let lines = lines(args, session, volume.metadata(), &start)?;
    session.print(&lines, |lines| {
        let mut out = Vec::new();
        for line in lines {
            out.extend(format!("{}\t", line.bytes.bytes() >> 10).into_bytes());
            out.extend(&line.path);
            out.push(b'\n');
        }
        out
    })
}

/// Every directory after what is in it.
fn lines(args: &Args, session: &Session<'_>, metadata: &Metadata, start: &Inode) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    // The directories that are not fully counted yet, each in the one before it.
    let mut open = vec![Line { path: args.path.as_bytes().to_vec(), bytes: metadata.disk_usage(start)? }];
    let mut close = |open: &mut Vec<Line>, depth: usize| {
        while open.len() > depth
            && let Some(done) = open.pop()
        {
            if let Some(parent) = open.last_mut() {
                parent.bytes = parent.bytes + done.bytes;
            }
            if args.depth.is_none_or(|shown| open.len() <= shown as usize) {
                lines.push(done);
            }
        }
    };
    let directory = metadata.stat(start.number)?.kind == FileKind::Directory;
    for visit in directory.then(|| metadata.walk(start.number)).transpose()?.into_iter().flatten() {
        let visit = visit?;
        close(&mut open, visit.depth + 1);
        let parent = open.last().map(|parent| parent.path.as_slice()).unwrap_or_default();
        let path = session.join(parent, visit.entry.name.as_bytes());
        let bytes = metadata.disk_usage(&visit.inode)?;
        open.push(Line { path, bytes });
        if visit.stat.kind == FileKind::File && !args.all {
            // Counted, but not shown.
            open.pop();
            if let Some(parent) = open.last_mut() {
                parent.bytes = parent.bytes + bytes;
            }
        }
    }
    close(&mut open, 0);
    Ok(lines)
}
