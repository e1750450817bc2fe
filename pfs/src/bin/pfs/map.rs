//! `pfs map`: where the blocks of a file are.

use std::ffi::OsString;

use blockdev::ui::{self, Output};
use blockdev::{Error, ErrorKind};
use nix::errno::Errno;
use pfs::format::{BLOCK_SIZE, Bda, BlktagNo, BlockIndex, BlockNo, CHUNK_SIZE, ChunkId, Hole, Number};
use pfs::volume::{FileKind, FileMap};
use serde::Serialize;

use crate::session::{Failure, Session};

/// What the original shows where a block has no hole: the largest number in C's `int`.
const NO_HOLE: u32 = i32::MAX.cast_unsigned();

/// Bytes gathered before they are printed.
const FLUSH: usize = 64 << 10;

/// Show where the blocks of a file are.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only the block with this byte of the file.
    #[arg(short, long, value_name = "BYTES")]
    offset: Option<u64>,

    /// The file.
    #[arg(value_name = "VOLUME:/FILE")]
    file: OsString,
}

#[derive(Debug, Serialize)]
struct Map {
    size: u64,
    blocks: Vec<Block>,
}

/// A block that the file has.
#[derive(Debug, Serialize)]
struct Block {
    index: BlockIndex,
    offset: u64,
    btno: BlktagNo,
    hole: Option<u32>,
    blkno: BlockNo,
    chunk: ChunkId,
    bda: Bda,
}

pub(crate) fn run(args: &Args, session: &Session<'_>) -> Result<(), Failure> {
    let place = session.place(&args.file)?;
    let volume = session.open(&place.volume)?;
    let inode = volume.metadata().lookup(&place.path)?.number;
    let file = args.file.display();
    if volume.metadata().stat(inode)?.kind == FileKind::Directory {
        let error = Error::io(format!("{file} is a directory"), Errno::EISDIR);
        return Err(Failure::own(error, -(Errno::EISDIR as i32)));
    }
    let map = volume.metadata().file_map(inode)?;
    if let Some(offset) = args.offset.filter(|offset| *offset >= map.size) {
        let error = Error::invalid(format!("there is no byte {offset} in {file}: it has {}", map.size));
        return Err(Failure::own(error, -(Errno::EINVAL as i32)));
    }
    if session.output == Output::Json {
        let wanted = args.offset.map(|offset| BlockIndex::of(offset).0);
        return Ok(ui::print_result(session.output, &blocks(&map, wanted), |_| String::new())?);
    }
    let offsets = match args.offset {
        Some(offset) => (offset, 1),
        None => (0, map.size.div_ceil(BLOCK_SIZE.bytes())),
    };
    // The original cannot count further, nor make a list of nothing.
    if (offsets.1 == 0 && session.compatible) || i32::try_from(offsets.1).is_err() {
        let message = format!("{file} has {} bytes: there is no list of so many blocks", map.size);
        return Err(Error::io(message, Errno::EINVAL).with_kind(ErrorKind::InvalidInput).into());
    }
    print(&map, offsets)?;
    Ok(())
}

fn blocks(map: &FileMap, wanted: Option<BlockIndex>) -> Map {
    let blocks = map.blocks().filter(|(index, _)| wanted.is_none_or(|wanted| wanted == *index));
    let blocks = blocks.map(|(index, block)| Block {
        index,
        offset: index.offset(),
        btno: block.tag,
        hole: hole(block.hole),
        blkno: block.tag.block(),
        chunk: block.tag.chunk(),
        bda: block.tag.block().start(),
    });
    Map { size: map.size, blocks: blocks.collect() }
}

/// Where a block's hole starts, if it has one.
fn hole(hole: Hole) -> Option<u32> {
    Some(hole.written()).filter(|written| u64::from(*written) < BLOCK_SIZE.bytes())
}

/// Prints a row for each of so many blocks from an offset on, also for those that the file has not.
fn print(map: &FileMap, (first, count): (u64, u64)) -> blockdev::Result<()> {
    let mut out = format!("filesize(B): {:<8}\tblksize(B): {:<8}\n", map.size, BLOCK_SIZE.bytes());
    out.push_str("------------------\n");
    out.push_str("blkidx\t\toffset\t\tbtno\t\tbtholeoff\t\tblkno\t\tchunk\t\tbda\t\tcka\n");
    for row in 0..count {
        let offset = first + row * BLOCK_SIZE.bytes();
        let (index, within) = BlockIndex::of(offset);
        let (btno, hole, blkno, chunk) = match map.block(index) {
            Some(block) => {
                let (tag, hole) = (block.tag, hole(block.hole).unwrap_or(NO_HOLE));
                (tag.raw(), hole, tag.block().raw(), u64::from(tag.chunk().raw()))
            }
            None => (0, 0, 0, 0),
        };
        let bda = blkno * BLOCK_SIZE.bytes() + within;
        let cka = bda - chunk * CHUNK_SIZE.bytes();
        out.push_str(&format!(
            "{:<8}\t{offset:<8}\t{btno:<8}\t{hole:<8}\t\t{blkno:<8}\t{chunk:<8}\t{bda:<8}\t{cka:<8}\n",
            index.raw()
        ));
        if out.len() >= FLUSH {
            if !ui::print_bytes(out.as_bytes())? {
                return Ok(());
            }
            out.clear();
        }
    }
    ui::print(&out)
}
