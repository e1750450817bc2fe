//! `pfs ls`: what is in a directory.

use std::ffi::OsString;

use pfs::volume::{FileKind, Name, Stat};
use serde::Serialize;

use crate::session::{Failure, Session};
use crate::text;

/// List what is in a directory.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory.
    #[arg(value_name = "VOLUME:/DIR")]
    directory: OsString,
}

#[derive(Debug, Serialize)]
struct Line {
    name: Name,
    #[serde(flatten)]
    stat: Stat,
}

pub(crate) fn run(args: &Args, session: &Session<'_>) -> Result<(), Failure> {
    let place = session.place(&args.directory)?;
    let entries = session.reading(&place)?.entries(&place.path)?.into_iter();
    let lines: Vec<Line> = entries.map(|entry| Line { name: entry.name, stat: entry.stat }).collect();
    session.print(&lines, |lines| text(lines))
}

fn text(lines: &[Line]) -> Vec<u8> {
    let mut out = Vec::new();
    for Line { name, stat } in lines {
        let kind = match stat.kind {
            FileKind::File => "  File  ",
            FileKind::Directory => "   Dir  ",
        };
        let time = text::time(stat.mtime);
        out.extend(format!("{kind}{:<4}  {:<16}  {time}  ", stat.links, stat.size).into_bytes());
        out.extend(name.as_bytes());
        out.push(b'\n');
    }
    let total = lines.iter().fold(0, |total: u64, line| total.saturating_add(line.stat.blocks));
    out.extend(format!("total {total} (unit: 512Bytes)\n").into_bytes());
    out
}
