//! Growing a volume: more chunks, after what it stands on has grown.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use blockdev::engine::Choice;
use blockdev::ui::path_as_text;
use blockdev::{ByteSize, Error, Result};
use nix::errno::Errno;
use serde::Serialize;

use crate::format::{CHUNK_SIZE, Checksum, ChunkHeader, ChunkId, SECTOR_SIZE};
use crate::mkfs::chunk::Chunk;
use crate::mkfs::disk::{Disk, Sharing};
use crate::mkfs::plan::header;
use crate::mkfs::whole_chunks;
use crate::volume::load::{read_first_header, read_headers};
use crate::volume::{Device, HostLock, Region};

/// How a volume is to be grown.
#[derive(Debug, Clone, Copy, Default)]
pub struct GrowfsOptions {
    /// How many chunks it must have now; whatever it has if nothing is said.
    pub from: Option<u32>,
    /// How many it is to have, which must be as many as there is room for; just that if nothing is said.
    pub to: Option<u32>,
    /// Overwrite the first new chunk although it looks as if it were one already: that of an older volume, or of an attempt to
    /// grow that was interrupted.
    pub force: bool,
    /// What writes.
    pub engine: Choice,
}

/// A volume that was grown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Grown {
    /// On what.
    #[serde(serialize_with = "path_as_text")]
    pub path: PathBuf,
    /// How many chunks it had.
    pub from: u32,
    /// How many it has.
    pub to: u32,
    /// How large it is now.
    pub size: ByteSize,
    /// How much of the disk is left over at its end, because it is less than a chunk.
    pub unused: ByteSize,
}

/// Gives the volume on the file or block device at `path` as many chunks as there is room for. It may be in use; who has it
/// open has to be told, or opens it again.
///
/// The volume has the new chunks all at once: its first header, which says so, is written last.
///
/// # Errors
/// Nothing is changed by
/// - [`InvalidInput`](blockdev::ErrorKind::InvalidInput): the volume has not `from` chunks, there is not room for exactly `to`,
///   or for none more;
/// - [`VerifyFailed`](blockdev::ErrorKind::VerifyFailed): a header of the volume is damaged;
/// - [`Refused`](blockdev::ErrorKind::Refused): the first new chunk looks as if it were one already, without `force`; or
///   somebody is growing it, or making it (errno EAGAIN).
pub fn growfs(path: &Path, options: &GrowfsOptions) -> Result<Grown> {
    let _lock = HostLock::take(path, Region::Chunks)?;
    let mut device = Device::open(path)?;
    let first = read_first_header(&mut device)?;
    let old = first.chunks;
    let new = whole_chunks(path, device.size())?;
    check(path, device.size(), old, new, options)?;
    // All of them must be right before the first is changed.
    let headers: Vec<ChunkHeader> =
        read_headers(&mut device, old)?.into_iter().map(|(_, header)| header).collect::<Result<_, _>>()?;
    if !options.force {
        not_a_chunk(&mut device, path, old)?;
    }
    let mut disk = Disk::open(path, Sharing::Shared, options.engine)?;
    for id in ChunkId::all(new.get()).skip(headers.len()) {
        let mut chunk = Chunk::new(id);
        chunk.set_header(&header(id, new));
        disk.write(id.start(), chunk.bytes())?;
    }
    disk.sync()?;
    for header in headers.into_iter().rev() {
        if header.id == ChunkId::FIRST {
            disk.sync()?;
        }
        let header = ChunkHeader { chunks: new, checksum: Checksum::Present, ..header };
        disk.write(header.id.start(), &header.write())?;
    }
    disk.sync()?;
    let size = ByteSize::new(u64::from(new.get()) * CHUNK_SIZE.bytes());
    Ok(Grown { path: path.to_owned(), from: old.get(), to: new.get(), size, unused: disk.size() - size })
}

fn check(path: &Path, size: ByteSize, old: NonZeroU32, new: NonZeroU32, options: &GrowfsOptions) -> Result<()> {
    let bad = |why: String| {
        Err(Error::io(format!("cannot grow the volume on {}: {why}", path.display()), Errno::EINVAL)
            .with_kind(blockdev::ErrorKind::InvalidInput))
    };
    let room = format!("it has {old} chunks of {CHUNK_SIZE}, and there is {size}, room for {new}");
    if options.from.is_some_and(|from| from != old.get()) || options.to.is_some_and(|to| to != new.get()) {
        return bad(room);
    }
    if new <= old {
        return bad(room).map_err(|error| {
            error.with_hint("let what it stands on grow first: vdisk grow VirtualDisk.img --size 40G")
        });
    }
    Ok(())
}

/// Sees that the first new chunk is none yet.
fn not_a_chunk(device: &mut Device, path: &Path, old: NonZeroU32) -> Result<()> {
    let Some(id) = ChunkId::new(old.get()) else { return Ok(()) };
    let mut sector = [0; SECTOR_SIZE];
    device.read(id.start(), &mut sector)?;
    if ChunkHeader::parse(&sector, id).is_err() {
        return Ok(());
    }
    Err(Error::refused(format!("chunk {id} of {}, the first new one, has been formatted before", path.display()))
        .with_hint("an older volume may lie there, or growing was interrupted: --force formats it anew"))
}
