//! `pfs tree`: everything below a directory.

use std::ffi::OsString;

use pfs::client::Named;
use pfs::volume::{FileKind, Name, Stat};
use serde::Serialize;

use crate::session::{Failure, Session};
use crate::text;

/// List everything below a directory.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Show numbers, sizes and times, too.
    #[arg(short)]
    verbose: bool,

    /// The directory.
    #[arg(value_name = "VOLUME:/DIR")]
    directory: OsString,
}

#[derive(Debug, Serialize)]
struct Line {
    depth: usize,
    name: Name,
    #[serde(flatten)]
    stat: Stat,
}

pub(crate) fn run(args: &Args, session: &Session<'_>) -> Result<(), Failure> {
    let place = session.place(&args.directory)?;
    let below = session.reading(&place)?.walk(&place.path)?.into_iter();
    let lines: Vec<Line> = below.map(|Named { depth, name, stat }| Line { depth, name, stat }).collect();
    let verbose = args.verbose.then_some(session.compatible);
    session.print(&lines, |lines| text(lines, verbose))
}

/// With the details or without; `verbose` says whether as the original shows them.
fn text(lines: &[Line], verbose: Option<bool>) -> Vec<u8> {
    let mut out = Vec::new();
    if verbose.is_some() {
        out.extend(b"name\t\t\ttype\tinode\t\tsize\t\t\tctime\t\t\t\tmtime\n");
    }
    for Line { depth, name, stat } in lines {
        out.resize(out.len() + depth, b' ');
        out.extend(b"|-");
        out.extend(name.as_bytes());
        if let Some(original) = verbose {
            // C counts the column in bytes.
            out.resize(out.len() + 20usize.saturating_sub(name.as_bytes().len()), b' ');
            let kind = if stat.kind == FileKind::File { "File" } else { "Dir" };
            // Both its times are written into one buffer of C's, and it shows that twice.
            let mtime = if original { stat.ctime } else { stat.mtime };
            let (ctime, mtime) = (text::time(stat.ctime), text::time(mtime));
            out.extend(format!("\t{kind}\t{:<10}\t{:<20}\t{ctime}\t{mtime}", stat.inode, stat.size).into_bytes());
        }
        out.push(b'\n');
    }
    let files = lines.iter().filter(|line| line.stat.kind == FileKind::File).count();
    out.extend(format!("\n{} directories, {files} files\n", lines.len() - files).into_bytes());
    out
}
