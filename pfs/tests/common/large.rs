//! A fresh volume of many chunks.

use std::fs::OpenOptions;
use std::num::NonZeroU32;
use std::path::PathBuf;

use blockdev::engine::Choice;
use pfs::format::{
    BLOCKS_PER_CHUNK, Bda, Blktag, BlktagNo, ChunkHeader, ChunkId, Direntry, DirentryNo, Inode, InodeNo, Kind, Number,
};
use pfs::volume::{Device, Source, Volume};

/// The image of an empty volume of so many chunks: what the original made of two, with more like the second.
#[must_use]
pub fn of_chunks(count: u32) -> (PathBuf, tempfile::TempDir) {
    let (path, directory) = super::copy("fresh-20g-default");
    let volume = Volume::open(&path).unwrap();
    let metadata = volume.metadata();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(u64::from(count) * (10 << 30)).unwrap();
    let mut device = Device::open_writable(&path, Choice::Auto).unwrap();
    let second = ChunkId::new(1).unwrap();
    for id in ChunkId::all(count) {
        let of = metadata.headers().nth(id.index().min(1)).unwrap();
        let header = ChunkHeader { id, chunks: NonZeroU32::new(count).unwrap(), ..of.clone() };
        device.write_parts([Source { at: id.start(), from: &header.write() }]).unwrap();
        if id <= second {
            continue;
        }
        // The block with the metadata is used, the last one is free.
        let blktag = |index: usize| {
            let of = metadata.blktag(BlktagNo::new(second, if index == 0 { 0 } else { BLOCKS_PER_CHUNK - 1 }).unwrap());
            Blktag { number: BlktagNo::new(id, index).unwrap(), ..of.unwrap() }.write()
        };
        let direntry = |index: usize| {
            let of = metadata.direntry(DirentryNo::new(second, 0).unwrap()).unwrap();
            Direntry { number: DirentryNo::new(id, index).unwrap(), ..of }.write()
        };
        let inode = |index: usize| {
            let of = metadata.inode(InodeNo::new(second, 0).unwrap()).unwrap();
            Inode { number: InodeNo::new(id, index).unwrap(), ..of }.write()
        };
        for kind in Kind::ALL {
            let objects = (0..kind.per_chunk()).flat_map(|index| match kind {
                Kind::Blktag => blktag(index),
                Kind::Direntry => direntry(index),
                Kind::Inode => inode(index),
            });
            let at = Bda::new(id.start().bytes() + kind.offset());
            device.write_parts([Source { at, from: &objects.collect::<Vec<u8>>() }]).unwrap();
        }
    }
    (path, directory)
}
