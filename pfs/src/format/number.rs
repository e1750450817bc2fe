//! Everything that is a number on the disk, each its own type: a block is not an inode, an address not a length.

use std::fmt;

use serde::{Serialize, Serializer};

use super::{BLOCK_SIZE, BLOCKS_PER_CHUNK, CHUNK_SIZE, OBJECT_SIZE, OBJECTS_PER_SECTOR, SECTOR_SIZE};

/// An address on the device, in bytes from its start (the original's *block device address*).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bda(u64);

impl Bda {
    /// So many bytes from the start of the device.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Bytes from the start of the device.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Bda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:#x}", self.0))
    }
}

impl Serialize for Bda {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

/// A chunk of the device, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ChunkId(u32);

impl ChunkId {
    /// The first chunk, whose header speaks for the volume.
    pub const FIRST: Self = Self(0);

    /// How many chunks a volume can have: as many as a file offset can reach.
    #[allow(clippy::cast_possible_truncation, reason = "2^63 / 10 GiB is less than 2^30")]
    pub const COUNT_MAX: u32 = (i64::MAX as u64 / CHUNK_SIZE.bytes()) as u32;

    /// Chunk `id`, unless there cannot be one.
    #[must_use]
    pub const fn new(id: u32) -> Option<Self> {
        if id < Self::COUNT_MAX { Some(Self(id)) } else { None }
    }

    /// Its number as an index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Its number on the disk.
    #[must_use]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// Where it starts.
    #[must_use]
    pub const fn start(self) -> Bda {
        Bda(self.0 as u64 * CHUNK_SIZE.bytes())
    }

    /// The chunks of a volume of `count` of them, in order.
    pub fn all(count: u32) -> impl Iterator<Item = Self> {
        (0..count).map_while(Self::new)
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A block of the device, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct BlockNo(u64);

impl BlockNo {
    /// Its number on the disk.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Where its data start.
    #[must_use]
    pub const fn start(self) -> Bda {
        Bda(self.0 * BLOCK_SIZE.bytes())
    }
}

impl fmt::Display for BlockNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which block of a file, from 0: the file's bytes from `index * 4 MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct BlockIndex(u64);

impl BlockIndex {
    /// The last block that a file offset can reach.
    pub const MAX: Self = Self(i64::MAX as u64 / BLOCK_SIZE.bytes());

    /// Block `index` of a file, unless no file can have one.
    #[must_use]
    pub const fn new(index: u64) -> Option<Self> {
        if index <= Self::MAX.0 { Some(Self(index)) } else { None }
    }

    /// The block of a file that holds its byte `offset`, and which byte of the block that is.
    #[must_use]
    pub const fn of(offset: u64) -> (Self, u64) {
        (Self(offset / BLOCK_SIZE.bytes()), offset % BLOCK_SIZE.bytes())
    }

    /// Its number on the disk.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The file offset of its first byte.
    #[must_use]
    pub const fn offset(self) -> u64 {
        self.0 * BLOCK_SIZE.bytes()
    }
}

impl fmt::Display for BlockIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What an object is. Its number on the disk is the type byte of the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A block: whose it is, and how far it was written.
    Blktag = 1,
    /// A name in a directory, or 64 bytes more of one.
    Direntry = 2,
    /// A file or directory.
    Inode = 3,
}

impl Kind {
    /// All of them, in the order in which they lie on the disk.
    pub const ALL: [Self; 3] = [Self::Blktag, Self::Direntry, Self::Inode];

    /// What the type byte says.
    #[must_use]
    pub const fn from_raw(raw: u8) -> Option<Self> {
        match raw {
            1 => Some(Self::Blktag),
            2 => Some(Self::Direntry),
            3 => Some(Self::Inode),
            _ => None,
        }
    }

    /// How many of them a chunk has.
    #[must_use]
    pub const fn per_chunk(self) -> usize {
        match self {
            Self::Blktag => BLOCKS_PER_CHUNK,
            Self::Direntry | Self::Inode => 2048,
        }
    }

    /// How many sectors of a chunk they fill.
    #[must_use]
    pub const fn sectors(self) -> usize {
        self.per_chunk() / OBJECTS_PER_SECTOR
    }

    /// Where their sectors start in a chunk.
    #[must_use]
    pub const fn offset(self) -> u64 {
        match self {
            Self::Blktag => 0x1000,
            Self::Direntry => 0x5_1000,
            Self::Inode => 0x9_1000,
        }
    }

    /// How far the chunk is shifted in an object's number: the index is what is below. Blktags leave a gap, because 2560 is
    /// no power of two.
    #[must_use]
    pub const fn shift(self) -> u32 {
        match self {
            Self::Blktag => 12,
            Self::Direntry | Self::Inode => 11,
        }
    }

    /// Splits an object's number into its chunk and its index there, if there can be such an object.
    fn split(self, raw: u64) -> Option<(ChunkId, usize)> {
        let chunk = ChunkId::new(u32::try_from(raw >> self.shift()).ok()?)?;
        let index = usize::try_from(raw & ((1 << self.shift()) - 1)).ok()?;
        (index < self.per_chunk()).then_some((chunk, index))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Blktag => "blktag",
            Self::Direntry => "direntry",
            Self::Inode => "inode",
        })
    }
}

/// Where an object lies: which of the 32 in which sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// The sector's address.
    pub sector: Bda,
    /// Which object of the sector, 0 to 31.
    pub index: u32,
}

impl Slot {
    /// The address of the object itself.
    #[must_use]
    pub const fn start(self) -> Bda {
        Bda(self.sector.0 + self.index as u64 * OBJECT_SIZE as u64)
    }
}

/// The number of an object of one kind. The three kinds are counted apart.
pub trait Number: Copy + Eq + Ord + fmt::Display + fmt::Debug {
    /// What it is the number of.
    const KIND: Kind;

    /// The number as it stands on the disk.
    fn raw(self) -> u64;

    /// The number as it stands on the disk, unless there can be no such object.
    fn from_raw(raw: u64) -> Option<Self>;

    /// Object `index` of a chunk, unless a chunk has fewer.
    #[must_use]
    fn new(chunk: ChunkId, index: usize) -> Option<Self> {
        if index >= Self::KIND.per_chunk() {
            return None;
        }
        Self::from_raw(u64::from(chunk.raw()) << Self::KIND.shift() | index as u64)
    }

    /// The chunk it lies in.
    fn chunk(self) -> ChunkId;

    /// Which of its kind it is in its chunk.
    fn index(self) -> usize;

    /// Where it lies.
    fn slot(self) -> Slot {
        let (sector, index) = (self.index() / OBJECTS_PER_SECTOR, self.index() % OBJECTS_PER_SECTOR);
        let start = self.chunk().start().0 + Self::KIND.offset();
        #[allow(clippy::cast_possible_truncation, reason = "a remainder of 32")]
        Slot { sector: Bda(start + (sector * SECTOR_SIZE) as u64), index: index as u32 }
    }
}

macro_rules! object_number {
    ($(#[$doc:meta])* $name:ident, $kind:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(u64);

        impl Number for $name {
            const KIND: Kind = $kind;

            fn raw(self) -> u64 {
                self.0
            }

            fn from_raw(raw: u64) -> Option<Self> {
                $kind.split(raw).map(|_| Self(raw))
            }

            #[allow(clippy::cast_possible_truncation, reason = "`from_raw` saw that it fits")]
            fn chunk(self) -> ChunkId {
                ChunkId((self.0 >> $kind.shift()) as u32)
            }

            #[allow(clippy::cast_possible_truncation, reason = "`from_raw` saw that it fits")]
            fn index(self) -> usize {
                (self.0 & ((1 << $kind.shift()) - 1)) as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

object_number!(
    /// The number of a blktag.
    BlktagNo,
    Kind::Blktag
);
object_number!(
    /// The number of a direntry.
    DirentryNo,
    Kind::Direntry
);
object_number!(
    /// The number of an inode.
    InodeNo,
    Kind::Inode
);

impl BlktagNo {
    /// The block that it stands for.
    #[must_use]
    pub fn block(self) -> BlockNo {
        BlockNo(u64::from(self.chunk().raw()) * BLOCKS_PER_CHUNK as u64 + self.index() as u64)
    }
}

impl InodeNo {
    /// The root directory.
    pub const ROOT: Self = Self(0);
    /// `.pfs-paxos`, which holds the leader record.
    pub const PAXOS: Self = Self(1);
    /// `.pfs-journal`.
    pub const JOURNAL: Self = Self(2);

    /// Whether it is the root directory or one of the two files that are the file system's own.
    #[must_use]
    pub fn is_internal(self) -> bool {
        self <= Self::JOURNAL
    }
}

impl DirentryNo {
    /// The entry of the root directory, which lies in no directory.
    pub const ROOT: Self = Self(0);
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Before the first.
            pub const ZERO: Self = Self(0);

            /// The number as it stands on the disk, unless it is negative there.
            #[must_use]
            pub const fn new(raw: u64) -> Option<Self> {
                if raw <= i64::MAX as u64 { Some(Self(raw)) } else { None }
            }

            /// The number as it stands on the disk.
            #[must_use]
            pub const fn raw(self) -> u64 {
                self.0
            }

            /// The one after it.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter!(
    /// The number of a journal entry, counted since the volume was made; the first is 1.
    Lsn
);
counter!(
    /// The number of a transaction, counted since the volume was made; the first is 1.
    Txid
);

/// A position in the journal file, where an entry starts: a multiple of 256 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct LogOffset(u64);

impl LogOffset {
    /// The start of the journal file.
    pub const ZERO: Self = Self(0);

    /// So many bytes from the start of the journal file, unless no entry can start there.
    #[must_use]
    pub const fn new(bytes: u64) -> Option<Self> {
        if bytes.is_multiple_of(super::ENTRY_SIZE as u64) && bytes <= i64::MAX as u64 {
            Some(Self(bytes))
        } else {
            None
        }
    }

    /// Bytes from the start of the journal file.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for LogOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sets_lie_one_after_another() {
        for kind in Kind::ALL {
            assert_eq!(kind.per_chunk() % OBJECTS_PER_SECTOR, 0);
        }
        assert_eq!(Kind::Blktag.offset() + (Kind::Blktag.sectors() * SECTOR_SIZE) as u64, Kind::Direntry.offset());
        assert_eq!(Kind::Direntry.offset() + (Kind::Direntry.sectors() * SECTOR_SIZE) as u64, Kind::Inode.offset());
        assert_eq!((Kind::Blktag.sectors(), Kind::Direntry.sectors(), Kind::Inode.sectors()), (80, 64, 64));
    }

    #[test]
    fn objects_of_the_second_chunk() {
        let chunk = ChunkId::new(1).unwrap();
        assert_eq!(BlktagNo::new(chunk, 1).unwrap().raw(), 0x1001);
        assert_eq!(BlktagNo::new(chunk, 1).unwrap().block().raw(), 2561);
        assert_eq!(BlktagNo::new(chunk, 1).unwrap().block().start(), Bda::new(0x2_8040_0000));
        assert_eq!(DirentryNo::new(chunk, 0).unwrap().slot(), Slot { sector: Bda::new(0x2_8005_1000), index: 0 });
        assert_eq!(InodeNo::new(chunk, 33).unwrap().slot().start(), Bda::new(0x2_8009_2080));
    }

    #[test]
    fn what_cannot_be_is_no_number() {
        assert_eq!(BlktagNo::from_raw(2560), None);
        assert_eq!(BlktagNo::from_raw(4095), None);
        assert!(BlktagNo::from_raw(4096).is_some());
        assert_eq!(InodeNo::from_raw(u64::MAX), None);
        assert_eq!(InodeNo::new(ChunkId::FIRST, 2048), None);
        assert_eq!(BlockIndex::new(1 << 50), None);
        assert_eq!(ChunkId::new(u32::MAX), None);
        assert_eq!(Lsn::new(u64::MAX), None);
        assert_eq!(LogOffset::new(100), None);
    }

    proptest! {
        #[test]
        fn a_number_is_its_chunk_and_index(raw: u64) {
            for raw in [raw, raw & 0xff_ffff] {
                if let Some(number) = BlktagNo::from_raw(raw) {
                    prop_assert_eq!(BlktagNo::new(number.chunk(), number.index()), Some(number));
                    prop_assert_eq!(number.raw(), raw);
                }
                if let Some(number) = InodeNo::from_raw(raw) {
                    prop_assert_eq!(InodeNo::new(number.chunk(), number.index()), Some(number));
                }
            }
        }

        #[test]
        fn an_offset_is_its_block_and_the_rest(offset in 0..=i64::MAX as u64) {
            let (index, within) = BlockIndex::of(offset);
            prop_assert!(within < BLOCK_SIZE.bytes());
            prop_assert_eq!(BlockIndex::new(index.raw()), Some(index));
            prop_assert_eq!(index.offset() + within, offset);
        }
    }
}
