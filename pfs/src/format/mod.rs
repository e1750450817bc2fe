//! The bytes of a volume: every structure as a type, parsed from bytes and written to them. No I/O.
//!
//! All numbers are little-endian. A device is cut into *chunks* of 10 GiB, what remains at its end is not used. A chunk:
//!
//! | offset    | sectors | content                                                                       |
//! | --------- | ------- | ----------------------------------------------------------------------------- |
//! | 0         | 1       | [chunk header](ChunkHeader)                                                   |
//! | 0x1000    | 80      | 2560 [blktags](Blktag), one for each block of the chunk                       |
//! | 0x51000   | 64      | 2048 [direntries](Direntry)                                                   |
//! | 0x91000   | 64      | 2048 [inodes](Inode)                                                          |
//! | 0x40_0000 | -       | blocks 1 to 2559, of 4 MiB; block 0 is what stands above                      |
//!
//! A hostile volume is an ordinary input: parsing takes any bytes and gives a value or a [`Damage`], which names the
//! structure, its address and the field. A value that was parsed is written back to the very bytes it came from,
//! because parsing refuses what it could not write: a flag that is neither 0 nor 1, a byte set where there is nothing.

mod bytes;
mod checksum;
mod damage;
mod fields;
mod header;
mod journal;
mod leader;
mod lease;
mod number;
mod object;

pub use checksum::{Checksum, checksum};
pub use damage::Damage;
pub use fields::{Field, Value, entry_fields, header_fields, object_fields};
pub use header::{ChunkHeader, Version, has_magic};
pub use journal::{ENTRY_SIZE, EntryBytes, EntrySubject, JournalEntry, entry_subject};
pub use leader::{LEADER_SIZE, LeaderBytes, LeaderRecord, LogPosition};
pub use lease::{LEASES, LEASES_AT, Label, LeaseRecord, LeaseState, ProcessId};
pub use number::{
    Bda, BlktagNo, BlockIndex, BlockNo, ChunkId, DirentryNo, InodeNo, Kind, LogOffset, Lsn, Number, Slot, Txid,
};
pub use object::{
    Blktag, BlktagState, Content, Directory, Direntry, DirentryState, DiscardState, File, Head, Hole, Inode, Links,
    List, NamePiece, Object, ObjectBytes, Seconds, Stamp, check_object, is_used,
};

use blockdev::ByteSize;

/// What a device is cut into.
pub const CHUNK_SIZE: ByteSize = ByteSize::gib(10);

/// What files are made of.
pub const BLOCK_SIZE: ByteSize = ByteSize::mib(4);

/// What metadata are read and written in, and the alignment of all I/O. A sector is taken to be written whole or not at all.
pub const SECTOR_SIZE: usize = 4096;

/// Bytes in a blktag, direntry or inode.
pub const OBJECT_SIZE: usize = 128;

/// Objects in a sector.
pub const OBJECTS_PER_SECTOR: usize = SECTOR_SIZE / OBJECT_SIZE;

/// Blocks in a chunk, the one with its metadata among them.
pub const BLOCKS_PER_CHUNK: usize = 2560;

/// Where the leader record lies: the first sector of `.pfs-paxos`, whose only block is block 1. A reader needs it before it
/// knows any metadata.
pub const LEADER_AT: Bda = Bda::new(BLOCK_SIZE.bytes());

/// Most bytes in a name.
pub const NAME_MAX: usize = 255;

#[cfg(test)]
mod tests {
    /// The bytes that `hex` writes, spaces aside.
    pub(super) fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex
            .chars()
            .filter(|c| !c.is_whitespace())
            .map(|c| u8::try_from(c.to_digit(16).unwrap()).unwrap())
            .collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }
}
