//! `pfs usedinfo`: which objects are used.

use std::ffi::OsString;

use clap::ValueEnum;
use pfs::format::{BlktagNo, ChunkId, DirentryNo, InodeNo, Number};
use pfs::volume::Metadata;
use serde::Serialize;

use crate::session::{Failure, Session};

/// How many numbers stand in a line.
const PER_LINE: usize = 10;

/// List the blocks, inodes or direntries that are used.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to list.
    #[arg(short = 't', value_name = "KIND", ignore_case = true)]
    kind: What,

    /// The first chunk.
    #[arg(short, value_name = "CHUNK", default_value_t)]
    begin: u32,

    /// The chunk after the last; without it, all are listed.
    #[arg(short, value_name = "CHUNK")]
    end: Option<u32>,

    /// The volume.
    #[arg(value_name = "VOLUME")]
    volume: OsString,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum What {
    /// Blocks.
    #[value(name = "b", alias = "blktag")]
    Blktags,
    /// Inodes.
    #[value(name = "i", alias = "inode")]
    Inodes,
    /// Direntries.
    #[value(name = "d", alias = "direntry")]
    Direntries,
}

#[derive(Debug, Serialize)]
struct Chunk {
    chunk: ChunkId,
    used: Vec<usize>,
}

pub(crate) fn run(args: &Args, session: &Session<'_>) -> Result<(), Failure> {
    let volume = session.open(&session.volume(&args.volume)?)?;
    let metadata = volume.metadata();
    let chunks = metadata.headers().map(|header| header.id);
    let chunks = chunks.filter(|id| id.raw() >= args.begin && args.end.is_none_or(|end| id.raw() < end));
    let lists: Vec<Chunk> = chunks
        .map(|chunk| {
            let used = match args.kind {
                What::Blktags => used::<BlktagNo>(metadata, chunk),
                What::Inodes => used::<InodeNo>(metadata, chunk),
                What::Direntries => used::<DirentryNo>(metadata, chunk),
            };
            Chunk { chunk, used }
        })
        .collect();
    session.print(&lists, |lists| lists.iter().map(text).collect::<String>().into_bytes())
}

fn used<N: Number>(metadata: &Metadata, chunk: ChunkId) -> Vec<usize> {
    metadata.used::<N>(chunk).map(Number::index).collect()
}

fn text(list: &Chunk) -> String {
    let mut out = format!("chunk {} has used {} objects:\n", list.chunk, list.used.len());
    for line in list.used.chunks(PER_LINE) {
        for number in line {
            out.push_str(&format!("{number:>6} "));
        }
        out.push('\n');
    }
    out
}
