//! `pfs ls`: what is in a directory.

use std::ffi::OsString;

use pfs::client::Named;
use pfs::volume::{FileKind, Name, Stat, VolumePath};
use serde::Serialize;

use crate::session::{Failure, Session};
use crate::text;

/// List what is in a directory.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also what is in all directories below it, each under its path.
    #[arg(short = 'R', long)]
    recursive: bool,

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

/// What is in one of many directories.
#[derive(Debug, Serialize)]
struct Listing {
    #[serde(serialize_with = "as_shown")]
    directory: VolumePath,
    entries: Vec<Line>,
}

fn as_shown<S: serde::Serializer>(path: &VolumePath, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.display())
}

pub(crate) fn run(args: &Args, session: &Session<'_>) -> Result<(), Failure> {
    let place = session.place(&args.directory)?;
    let reading = session.reading(&place)?;
    if args.recursive {
        let listings = listings(place.path.clone(), reading.walk(&place.path)?);
        return session.print(&listings, |listings| all(listings));
    }
    let entries = reading.entries(&place.path)?.into_iter();
    let lines: Vec<Line> = entries.map(|entry| Line { name: entry.name, stat: entry.stat }).collect();
    session.print(&lines, |lines| text(lines))
}

/// Everything below a directory, which comes with each directory before what is in it, by directories.
fn listings(top: VolumePath, below: Vec<Named>) -> Vec<Listing> {
    let listing = |directory| Listing { directory, entries: Vec::new() };
    let mut listings = vec![listing(top)];
    // The way from the top to where we are.
    let mut way = vec![0];
    for Named { depth, name, stat } in below {
        way.truncate(depth + 1);
        let Some(parent) = way.last().copied() else { continue };
        if stat.kind == FileKind::Directory {
            way.push(listings.len());
            listings.push(listing(listings[parent].directory.join(&name)));
        }
        listings[parent].entries.push(Line { name, stat });
    }
    listings
}

fn all(listings: &[Listing]) -> Vec<u8> {
    let one = |listing: &Listing| [listing.directory.as_bytes(), b":\n", &text(&listing.entries)].concat();
    listings.iter().map(one).collect::<Vec<_>>().join(&b'\n')
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
