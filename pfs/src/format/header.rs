//! The chunk header: the first sector of every chunk.

use std::fmt;
use std::num::NonZeroU32;

use super::bytes::{is_zero, put_u32, put_u64, u32_at, u64_at};
use super::checksum::checksum_around;
use super::{BLOCK_SIZE, CHUNK_SIZE, Checksum, ChunkId, Damage, Kind, OBJECT_SIZE, SECTOR_SIZE};

/// Bytes of a header; the rest of its sector is zero.
const SIZE: usize = 120;

/// `PFSCH`, read from the most significant byte on.
const MAGIC: u64 = 0x50_4653_4348;

const CHECKSUM_AT: usize = 112;

/// The version of the format that a volume is in. It stands in the header of chunk 0, added to the magic number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(transparent)]
pub struct Version(u8);

impl Version {
    /// The first; and what the headers of all chunks but the first say.
    pub const OLDEST: Self = Self(0);

    /// The newest that is known here: holes in blocks (since 1), names of 64 bytes and more (since 2).
    pub const NEWEST: Self = Self(2);

    /// How many versions the magic number has room for.
    const COUNT: u64 = 64;

    /// Whether blocks record how far they were written.
    #[must_use]
    pub fn has_holes(self) -> bool {
        self.0 >= 1
    }

    /// Whether names may go on in extension direntries.
    #[must_use]
    pub fn has_long_names(self) -> bool {
        self.0 >= 2
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The header of a chunk.
///
/// The sizes and places that it also holds are the same on every volume and not kept: parsing checks them, writing
/// writes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkHeader {
    /// Which chunk it is.
    pub id: ChunkId,
    /// The format's version; only chunk 0 says so, the others have version 0 here.
    pub version: Version,
    /// How many chunks the volume has, as far as this chunk knows.
    pub chunks: NonZeroU32,
    /// Whether it carries a checksum.
    pub checksum: Checksum,
}

/// Whether the sector at the start of a device is that of a volume, however damaged.
#[must_use]
pub fn has_magic(sector: &[u8; SECTOR_SIZE]) -> bool {
    version_of(u64_at(sector, 0)).is_some()
}

fn version_of(magic: u64) -> Option<Version> {
    let version = magic.checked_sub(MAGIC).filter(|version| *version < Version::COUNT)?;
    u8::try_from(version).ok().map(Version)
}

impl ChunkHeader {
    /// The header of chunk `id`, from its first sector.
    ///
    /// # Errors
    /// When it is not the header of that chunk.
    pub fn parse(sector: &[u8; SECTOR_SIZE], id: ChunkId) -> Result<Self, Damage> {
        let damage = |field, problem| Damage::new(format!("header of chunk {id}"), id.start(), field, problem);
        let expect = |field, at, expected: u64| match u64_at(sector, at) {
            found if found == expected => Ok(()),
            found => Err(damage(field, format!("{found:#x} instead of {expected:#x}"))),
        };
        let magic = u64_at(sector, 0);
        let version = version_of(magic)
            .filter(|version| id == ChunkId::FIRST || *version == Version(0))
            .ok_or_else(|| damage("ck_magic", format!("{magic:#x} instead of {MAGIC:#x}")))?;
        let computed = checksum_around(&sector[..SIZE], CHECKSUM_AT);
        let checksum =
            Checksum::check(u32_at(sector, CHECKSUM_AT), computed).map_err(|problem| damage("ck_checksum", problem))?;
        expect("ck_chunksize", 8, CHUNK_SIZE.bytes())?;
        expect("ck_blksize", 16, BLOCK_SIZE.bytes())?;
        expect("ck_sectsize", 24, SECTOR_SIZE as u64)?;
        expect("ck_number", 32, u64::from(id.raw()))?;
        let chunks = u32_at(sector, 40);
        let chunks = NonZeroU32::new(chunks)
            .filter(|chunks| chunks.get() > id.raw() && chunks.get() <= ChunkId::COUNT_MAX)
            .ok_or_else(|| damage("ck_nchunk", format!("{chunks} chunks, of which this is chunk {id}")))?;
        for kind in Kind::ALL {
            let at = set_at(kind);
            let [place, sectors, size] = set_fields(kind);
            expect(place, at, id.start().bytes() + kind.offset())?;
            let found = (u32_at(sector, at + 8), u32_at(sector, at + 12));
            if found.0 as usize != kind.sectors() {
                return Err(damage(sectors, format!("{} instead of {}", found.0, kind.sectors())));
            }
            if found.1 as usize != OBJECT_SIZE {
                return Err(damage(size, format!("{} instead of {OBJECT_SIZE}", found.1)));
            }
        }
        for range in [44..64, 116..SIZE] {
            if !is_zero(sector, range) {
                return Err(damage("reserved", "bytes are set where there should be none".to_owned()));
            }
        }
        Ok(Self { id, version, chunks, checksum })
    }

    /// The sector that it fills.
    #[must_use]
    pub fn write(&self) -> [u8; SECTOR_SIZE] {
        let mut sector = [0; SECTOR_SIZE];
        put_u64(&mut sector, 0, MAGIC + u64::from(self.version.0));
        put_u64(&mut sector, 8, CHUNK_SIZE.bytes());
        put_u64(&mut sector, 16, BLOCK_SIZE.bytes());
        put_u64(&mut sector, 24, SECTOR_SIZE as u64);
        put_u64(&mut sector, 32, u64::from(self.id.raw()));
        put_u32(&mut sector, 40, self.chunks.get());
        for kind in Kind::ALL {
            let at = set_at(kind);
            put_u64(&mut sector, at, self.id.start().bytes() + kind.offset());
            #[allow(clippy::cast_possible_truncation, reason = "80 or 64 sectors, of objects of 128 bytes")]
            {
                put_u32(&mut sector, at + 8, kind.sectors() as u32);
                put_u32(&mut sector, at + 12, OBJECT_SIZE as u32);
            }
        }
        let checksum = checksum_around(&sector[..SIZE], CHECKSUM_AT);
        put_u32(&mut sector, CHECKSUM_AT, self.checksum.store(checksum));
        sector
    }
}

/// Where a header speaks of the set of objects of one kind: address, number of sectors, size of an object.
pub(super) const fn set_at(kind: Kind) -> usize {
    48 + 16 * kind as usize
}

fn set_fields(kind: Kind) -> [&'static str; 3] {
    match kind {
        Kind::Blktag => {
            ["ck_physet[MT_BLKTAG].ms_sectbda", "ck_physet[MT_BLKTAG].ms_nsect", "ck_physet[MT_BLKTAG].ms_objsize"]
        }
        Kind::Direntry => [
            "ck_physet[MT_DIRENTRY].ms_sectbda",
            "ck_physet[MT_DIRENTRY].ms_nsect",
            "ck_physet[MT_DIRENTRY].ms_objsize",
        ],
        Kind::Inode => {
            ["ck_physet[MT_INODE].ms_sectbda", "ck_physet[MT_INODE].ms_nsect", "ck_physet[MT_INODE].ms_objsize"]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(id: u32, version: u8, chunks: u32) -> ChunkHeader {
        ChunkHeader {
            id: ChunkId::new(id).unwrap(),
            version: Version(version),
            chunks: NonZeroU32::new(chunks).unwrap(),
            checksum: Checksum::Present,
        }
    }

    /// `pfs mkfs` of 20 GiB.
    const CHUNK_0: &str = "4a43534650000000 0000008002000000 0000400000000000 0010000000000000
        0000000000000000 0200000000000000 0000000000000000 0000000000000000
        0010000000000000 5000000080000000 0010050000000000 4000000080000000
        0010090000000000 4000000080000000 5286e98e00000000 0000000000000000";

    #[test]
    fn the_headers_that_mkfs_writes() {
        let sector = header(0, 2, 2).write();
        assert_eq!(sector[..128], crate::format::tests::bytes(CHUNK_0));
        assert!(sector[128..].iter().all(|byte| *byte == 0));
        assert_eq!(ChunkHeader::parse(&sector, ChunkId::FIRST).unwrap(), header(0, 2, 2));

        let sector = header(1, 0, 2).write();
        assert_eq!(u64_at(&sector, 64), 0x2_8000_1000);
        assert_eq!(u32_at(&sector, CHECKSUM_AT), 0x0523_69AF);
        assert_eq!(ChunkHeader::parse(&sector, ChunkId::new(1).unwrap()).unwrap(), header(1, 0, 2));
    }

    #[test]
    fn a_wrong_field_is_named() {
        let parse = |at: usize, value: u64, id: u32| {
            let mut sector = header(id, 0, 2).write();
            put_u64(&mut sector, at, value);
            let checksum = checksum_around(&sector[..SIZE], CHECKSUM_AT);
            put_u32(&mut sector, CHECKSUM_AT, checksum);
            ChunkHeader::parse(&sector, ChunkId::new(id).unwrap()).unwrap_err().to_string()
        };
        for (at, value, id, text) in [
            (0, 0, 0, "header of chunk 0 at 0x0: ck_magic: 0x0 instead of 0x5046534348"),
            (0, MAGIC + 64, 0, "header of chunk 0 at 0x0: ck_magic: 0x5046534388 instead of 0x5046534348"),
            (0, MAGIC + 1, 1, "header of chunk 1 at 0x280000000: ck_magic: 0x5046534349 instead of 0x5046534348"),
            (8, 1, 0, "header of chunk 0 at 0x0: ck_chunksize: 0x1 instead of 0x280000000"),
            (16, 1, 0, "header of chunk 0 at 0x0: ck_blksize: 0x1 instead of 0x400000"),
            (24, 512, 0, "header of chunk 0 at 0x0: ck_sectsize: 0x200 instead of 0x1000"),
            (32, 5, 0, "header of chunk 0 at 0x0: ck_number: 0x5 instead of 0x0"),
            (40, 0, 0, "header of chunk 0 at 0x0: ck_nchunk: 0 chunks, of which this is chunk 0"),
            (40, 1, 1, "header of chunk 1 at 0x280000000: ck_nchunk: 1 chunks, of which this is chunk 1"),
            (40, 1 << 31, 0, "header of chunk 0 at 0x0: ck_nchunk: 2147483648 chunks, of which this is chunk 0"),
            (64, 0, 0, "header of chunk 0 at 0x0: ck_physet[MT_BLKTAG].ms_sectbda: 0x0 instead of 0x1000"),
            (88, 0x80_0000_0000 + 5, 0, "header of chunk 0 at 0x0: ck_physet[MT_DIRENTRY].ms_nsect: 5 instead of 64"),
            (104, 64, 0, "header of chunk 0 at 0x0: ck_physet[MT_INODE].ms_objsize: 0 instead of 128"),
            (48, 1, 0, "header of chunk 0 at 0x0: reserved: bytes are set where there should be none"),
        ] {
            assert_eq!(parse(at, value, id), text);
        }
        let mut sector = header(0, 2, 1).write();
        sector[CHECKSUM_AT] ^= 1;
        let error = ChunkHeader::parse(&sector, ChunkId::FIRST).unwrap_err().to_string();
        assert!(error.starts_with("header of chunk 0 at 0x0: ck_checksum: 0x"), "{error}");
    }

    #[test]
    fn without_a_checksum_nothing_is_checked() {
        let old = ChunkHeader { checksum: Checksum::Absent, ..header(0, 0, 1) };
        assert_eq!(ChunkHeader::parse(&old.write(), ChunkId::FIRST).unwrap(), old);
    }

    proptest! {
        #[test]
        fn what_is_written_is_parsed(id in 0..ChunkId::COUNT_MAX, version in 0u8..64, more in 1u32..9) {
            let version = if id == 0 { version } else { 0 };
            prop_assume!(id + more <= ChunkId::COUNT_MAX);
            let header = header(id, version, id + more);
            prop_assert_eq!(ChunkHeader::parse(&header.write(), header.id).unwrap(), header);
        }

        #[test]
        fn any_bytes_are_a_header_or_an_error(changes in prop::collection::vec((0..SIZE, any::<u8>()), 0..4), fix: bool) {
            let mut sector = header(0, 2, 3).write();
            for (at, byte) in changes {
                sector[at] = byte;
            }
            if fix {
                let checksum = checksum_around(&sector[..SIZE], CHECKSUM_AT);
                put_u32(&mut sector, CHECKSUM_AT, checksum);
            }
            if let Ok(header) = ChunkHeader::parse(&sector, ChunkId::FIRST) {
                prop_assert_eq!(header.write(), sector);
            }
        }
    }
}
