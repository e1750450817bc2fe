//! `pfs info`: what a volume is, and how full.

use std::ffi::OsString;

use blockdev::{ByteSize, Error};
use pfs::format::{BLOCK_SIZE, BlktagNo, CHUNK_SIZE, ChunkId, DirentryNo, ENTRY_SIZE, InodeNo, Kind, Number, Version};
use pfs::volume::{Holder, Metadata, Volume};
use serde::Serialize;

use crate::session::{Failure, Session};

/// Show what a volume is, and how full.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How deep: 1 is the volume, 2 also each of its chunks.
    #[arg(short, value_name = "LEVELS", default_value_t = 1)]
    depth: u32,

    /// The volume.
    #[arg(value_name = "VOLUME")]
    volume: OsString,
}

#[derive(Debug, Serialize)]
struct Info {
    size: u64,
    version: Version,
    hosts: u64,
    /// Who holds the lease. The original's writers have none.
    writer: Option<Holder>,
    journal: Journal,
    objects: Vec<Set>,
}

#[derive(Debug, Serialize)]
struct Journal {
    size: u64,
    used: u64,
    tail_txid: u64,
    head_txid: u64,
    head_lsn: u64,
}

/// The objects of one kind.
#[derive(Debug, Serialize)]
struct Set {
    kind: Kind,
    total: usize,
    free: usize,
    chunks: Vec<Part>,
}

/// The objects of one kind in one chunk.
#[derive(Debug, Serialize)]
struct Part {
    chunk: ChunkId,
    total: usize,
    free: usize,
    /// Where the original begins to look for a free one.
    next: usize,
}

pub(crate) fn run(args: &Args, session: &Session<'_>) -> Result<(), Failure> {
    let mut volume = session.open(&session.volume(&args.volume)?)?;
    if args.depth == 0 {
        return Err(Failure::own(Error::invalid("levels are counted from 1"), -1));
    }
    let writer = Holder::find(volume.device_mut())?;
    let info = info(&volume, writer);
    let original = session.compatible;
    session.print(&info, |info| {
        if original { allocators(info, args.depth) } else { summary(info, args.depth) }.into_bytes()
    })
}

fn info(volume: &Volume, writer: Option<Holder>) -> Info {
    let (metadata, leader) = (volume.metadata(), volume.leader());
    Info {
        size: metadata.headers().len() as u64 * CHUNK_SIZE.bytes(),
        version: metadata.version(),
        hosts: leader.hosts,
        writer,
        journal: Journal {
            size: leader.log_size,
            used: leader.entries() * ENTRY_SIZE as u64,
            tail_txid: leader.tail.txid.raw(),
            head_txid: leader.head.txid.raw(),
            head_lsn: leader.head_lsn.raw(),
        },
        objects: vec![set::<BlktagNo>(metadata), set::<DirentryNo>(metadata), set::<InodeNo>(metadata)],
    }
}

fn set<N: Number>(metadata: &Metadata) -> Set {
    let part = |chunk| {
        let used: Vec<usize> = metadata.used::<N>(chunk).map(Number::index).collect();
        let total = N::KIND.per_chunk();
        // Replay sends it back to the start; else it is at the first free one, or at the start where there is none.
        let first_free = (0..total).find(|index| used.binary_search(index).is_err()).unwrap_or(0);
        let next = if metadata.is_replayed(chunk, N::KIND) { 0 } else { first_free };
        Part { chunk, total, free: total - used.len(), next }
    };
    let chunks: Vec<Part> = metadata.headers().map(|header| part(header.id)).collect();
    let (total, free) = (chunks.iter().map(|part| part.total).sum(), chunks.iter().map(|part| part.free).sum());
    Set { kind: N::KIND, total, free, chunks }
}

fn title(kind: Kind) -> &'static str {
    match kind {
        Kind::Blktag => "Blktag",
        Kind::Direntry => "Direntry",
        Kind::Inode => "Inode",
    }
}

/// As the original shows its allocators, which are what it knows of a volume.
fn allocators(info: &Info, depth: u32) -> String {
    let mut out = String::new();
    for set in &info.objects {
        let (nchild, nall, nfree) = (set.chunks.len(), set.total, set.free);
        out.push_str(&format!("{} Info:\n", title(set.kind)));
        out.push_str(&format!(" (0)allocnode: id 0, shift 0, nchild={nchild}, nall {nall}, nfree {nfree}, next 0\n"));
        for Part { chunk, total, free, next } in set.chunks.iter().filter(|_| depth > 1) {
            let shift = set.kind.shift();
            out.push_str(&format!(
                " (1)allocnode: id {chunk}, shift {shift}, nchild=0, nall {total}, nfree {free}, next {next}\n"
            ));
        }
    }
    out
}

fn summary(info: &Info, depth: u32) -> String {
    let Info { size, version, hosts, writer, journal, objects } = info;
    let chunks = size / CHUNK_SIZE.bytes();
    let s = if chunks == 1 { "" } else { "s" };
    let mut out = format!("size        {} ({chunks} chunk{s} of {CHUNK_SIZE})\n", ByteSize::new(*size));
    out.push_str(&format!("version     {version}\nhosts       up to {hosts}\n"));
    if let Some(writer) = writer {
        out.push_str(&format!("writer      {writer}\n"));
    }
    let transactions = journal.head_txid - journal.tail_txid;
    let (used, of) = (ByteSize::new(journal.used), ByteSize::new(journal.size));
    out.push_str(&format!(
        "journal     {used} of {of}: {transactions} transactions, the last is {}\n",
        journal.head_txid
    ));
    for Set { kind, total, free, chunks } in objects {
        let name = match kind {
            Kind::Blktag => "blocks",
            Kind::Direntry => "direntries",
            Kind::Inode => "inodes",
        };
        let line = |total: usize, free: usize| {
            let bytes = if *kind == Kind::Blktag {
                format!(" ({} free)", ByteSize::new(free as u64 * BLOCK_SIZE.bytes()))
            } else {
                String::new()
            };
            format!("{} of {total} used{bytes}\n", total - free)
        };
        out.push_str(&format!("{name:<11} {}", line(*total, *free)));
        for part in chunks.iter().filter(|_| depth > 1) {
            out.push_str(&format!("  chunk {:<4} {}", part.chunk, line(part.total, part.free)));
        }
    }
    out
}
