//! Reading the metadata of a volume while somebody may be writing it.

use std::num::NonZeroU32;

use blockdev::{ByteSize, Error, ErrorKind, Result};

use crate::format::{
    Bda, BlockIndex, CHUNK_SIZE, ChunkHeader, ChunkId, Damage, InodeNo, LEADER_AT, LEADER_SIZE, LeaderBytes,
    LeaderRecord, SECTOR_SIZE, Version, has_magic,
};

use super::device::{Device, Part};
use super::journal::Journal;
use super::metadata::{Chunk, Metadata, damage};

/// How often to begin anew when the writer moved on meanwhile.
pub(crate) const ATTEMPTS: u32 = 8;

/// What to do with what was read.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Replay the journal over the metadata sectors. Without it the metadata are those of the last trim, however long ago.
    pub replay: bool,
    /// Refuse a volume with a wrong checksum anywhere in its metadata. Damage of what is asked for is an error either way.
    pub verify: bool,
}

impl Default for Load {
    fn default() -> Self {
        Self { replay: true, verify: true }
    }
}

/// What was loaded.
pub(super) struct Loaded {
    pub(super) metadata: Metadata,
    pub(super) journal: Journal,
    pub(super) leader: LeaderRecord,
}

/// Reads everything. Whatever is wrong is looked at again if the leader record moved meanwhile: then a writer trimmed or
/// overwrote what was being read. What is wrong while it stands still is damage.
pub(super) fn load(device: &mut Device, how: Load) -> Result<Loaded> {
    let mut seen = read_leader_bytes(device)?;
    for _ in 1..ATTEMPTS {
        match load_once(device, how) {
            Ok(loaded) => return Ok(loaded),
            Err(error) => {
                let now = read_leader_bytes(device)?;
                if now == seen {
                    return Err(error);
                }
                seen = now;
            }
        }
    }
    load_once(device, how)
}

fn load_once(device: &mut Device, how: Load) -> Result<Loaded> {
    let first = read_first_header(device)?;
    let before = read_leader(device)?;
    let mut metadata = read_metadata(device, &first)?;
    let leader = read_leader(device)?;
    if before.head.txid < leader.tail.txid {
        let problem = format!("{}, but the metadata were read at {}", leader.tail.txid, before.head.txid);
        return Err(Damage::new("leader record", LEADER_AT, "tail_txid", problem).into());
    }
    leader_in_place(&metadata)?;
    let journal = Journal::find(&metadata, &leader)?;
    if how.replay {
        journal.replay(device, (before.tail, before.tail_lsn()), &leader, &mut metadata)?;
    }
    if how.verify {
        metadata.verify()?;
    }
    Ok(Loaded { metadata, journal, leader })
}

/// The bytes of the leader record as they stand now, if there can be one.
pub(crate) fn read_leader_bytes(device: &mut Device) -> Result<LeaderBytes> {
    has_room(device)?;
    let mut bytes = [0; LEADER_SIZE];
    device.read(LEADER_AT, &mut bytes)?;
    Ok(bytes)
}

/// The leader record as it stands now.
pub(crate) fn read_leader(device: &mut Device) -> Result<LeaderRecord> {
    let mut bytes = [0; LEADER_SIZE];
    device.read(LEADER_AT, &mut bytes)?;
    Ok(LeaderRecord::parse(&bytes)?)
}

/// Sees that a volume fits onto the device at all.
fn has_room(device: &Device) -> Result<()> {
    if device.size() >= CHUNK_SIZE {
        return Ok(());
    }
    let (path, size) = (device.path().display(), device.size());
    Err(Error::invalid(format!("{path} has {size}, too little for a volume, which has {CHUNK_SIZE} or more")))
}

/// The header of chunk 0 of what is a volume known here, and wholly on its device.
pub(crate) fn read_first_header(device: &mut Device) -> Result<ChunkHeader> {
    device.measure()?;
    has_room(device)?;
    let path = device.path().display().to_string();
    let mut sector = [0; SECTOR_SIZE];
    device.read(Bda::new(0), &mut sector)?;
    let header = ChunkHeader::parse(&sector, ChunkId::FIRST).map_err(|damage| {
        if has_magic(&sector) {
            return Error::from(damage);
        }
        Error::invalid(format!("{path} holds no PolarFS volume")).with_source(damage)
    })?;
    if header.version > Version::NEWEST {
        let (version, newest) = (header.version, Version::NEWEST);
        let message = format!("{path} holds a volume of version {version}; known here are those up to {newest}");
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    let (chunks, needed) = (header.chunks, u64::from(header.chunks.get()) * CHUNK_SIZE.bytes());
    if device.size().bytes() < needed {
        let (needed, size) = (ByteSize::new(needed), device.size());
        let problem = format!("{chunks} chunks, which are {needed}, but {path} has {size}");
        return Err(Damage::new("header of chunk 0", Bda::new(0), "ck_nchunk", problem).into());
    }
    Ok(header)
}

/// The metadata sectors of all chunks, as they stand on the disk.
fn read_metadata(device: &mut Device, first: &ChunkHeader) -> Result<Metadata> {
    let headers = read_headers(device, first.chunks)?;
    let headers = headers.into_iter().map(|(_, header)| header).collect::<Result<_, _>>()?;
    read_sets(device, headers)
}

/// The chunks by which a volume was grown that had so many, for who is its only writer: none of them was ever used.
pub(super) fn read_growth(device: &mut Device, known: usize) -> Result<Vec<Chunk>> {
    let first = read_first_header(device)?;
    if (first.chunks.get() as usize) < known {
        let problem = format!("{} chunks, which were {known}", first.chunks);
        return Err(Damage::new("header of chunk 0", Bda::new(0), "ck_nchunk", problem).into());
    }
    let headers = read_headers(device, first.chunks)?;
    let new = headers.into_iter().skip(known).map(|(_, header)| header).collect::<Result<_, _>>()?;
    let chunks = read_chunks(device, new)?;
    chunks.iter().try_for_each(Chunk::is_fresh)?;
    Ok(chunks)
}

/// The headers of all chunks.
pub(crate) fn read_headers(
    device: &mut Device,
    chunks: NonZeroU32,
) -> Result<Vec<(ChunkId, Result<ChunkHeader, Damage>)>> {
    let ids = || ChunkId::all(chunks.get());
    let mut sectors = vec![[0; SECTOR_SIZE]; chunks.get() as usize];
    let parts = ids().zip(&mut sectors).map(|(id, sector)| Part { at: id.start(), into: sector.as_mut_slice() });
    device.read_parts(parts)?;
    Ok(ids().zip(&sectors).map(|(id, sector)| (id, ChunkHeader::parse(sector, id))).collect())
}

/// The objects of all chunks.
pub(crate) fn read_sets(device: &mut Device, headers: Vec<ChunkHeader>) -> Result<Metadata> {
    Ok(Metadata::new(read_chunks(device, headers)?))
}

fn read_chunks(device: &mut Device, headers: Vec<ChunkHeader>) -> Result<Vec<Chunk>> {
    let mut chunks: Vec<Chunk> = headers.into_iter().map(Chunk::new).collect();
    let sets = chunks.iter_mut().flat_map(Chunk::sets_mut);
    device.read_parts(sets.map(|(at, into)| Part { at, into }))?;
    Ok(chunks)
}

/// Sees that the place from which the leader record is read is that of `.pfs-paxos`.
pub(crate) fn leader_in_place(metadata: &Metadata) -> Result<(), Damage> {
    let inode = metadata.inode(InodeNo::PAXOS)?;
    let mut first = None;
    metadata.visit_blocks(&inode, |block| {
        if block.index == BlockIndex::of(0).0 {
            first = Some(block.tag.block().start());
        }
        Ok(())
    })?;
    if first == Some(LEADER_AT) {
        return Ok(());
    }
    Err(damage(inode.number, "mo_head", format!("it should hold the leader record, but does not begin at {LEADER_AT}")))
}
