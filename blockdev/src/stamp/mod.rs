//! Blocks that say what they are: who wrote them, where, as which generation. A block read back then shows not only
//! *that* a disk failed but how.
//!
//! Every 512-byte sector, the least that a disk writes whole, is stamped by itself, so that a block torn between two
//! generations is seen as such:
//!
//! | bytes | little-endian |
//! | --- | --- |
//! | 0..4 | magic `1DST` |
//! | 4..8 | CRC32C of bytes 8..512 |
//! | 8..16 | seed: which run wrote it |
//! | 16..24 | offset of this sector on the disk, in bytes |
//! | 24..32 | generation: rises with every write to the block, from 1 |
//! | 32..36 | index of this sector in its block, from 0 |
//! | 36..40 | how many sectors the block has |
//! | 40..512 | pseudo-random, from seed, offset and generation: nothing on the way can compress or deduplicate it |

mod scan;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::units::ByteOffset;
use crate::zero;

pub use scan::{Scan, Tally};

/// The least that is stamped, and that a disk writes whole, in bytes.
pub const SECTOR: usize = 512;

const MAGIC: [u8; 4] = *b"1DST";
const CRC: std::ops::Range<usize> = 4..8;
const CHECKED: usize = 8;
const PAYLOAD: usize = 40;

/// A write of a block: by which run, where, and the how-manieth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Tells runs apart.
    pub seed: u64,
    /// Where the block starts on the disk.
    pub offset: ByteOffset,
    /// Rises with every write to the block. The first is 1.
    pub generation: u64,
}

/// What a sector says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Label {
    seed: u64,
    offset: u64,
    generation: u64,
    index: u32,
    count: u32,
}

/// What is found in a sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sector {
    Stamped(Label),
    Zeroes,
    /// It starts like a stamp, and its checksum is wrong.
    Damaged,
    /// Neither a stamp nor zeroes.
    Foreign,
}

/// What a block is expected to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// Which run wrote it.
    pub seed: u64,
    /// Where the block starts on the disk.
    pub offset: ByteOffset,
    /// The last generation whose write was acknowledged: nothing older may be there. 0 when none was, and then zeroes
    /// and the stamps of other runs are in order too.
    pub acknowledged: u64,
    /// The last generation whose write was begun: nothing newer can be there. A block torn between these two is still
    /// reported as torn; whoever cut a write off decides what that means.
    pub newest: u64,
}

impl From<Stamp> for Expected {
    /// Exactly this write, and none begun after it.
    fn from(Stamp { seed, offset, generation }: Stamp) -> Self {
        Self { seed, offset, acknowledged: generation, newest: generation }
    }
}

/// What was there before, where an acknowledged write is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Before {
    /// Zeroes: never written.
    Zeroes,
    /// What another run, with this seed, wrote.
    OtherRun(u64),
    /// An older generation.
    Generation(u64),
}

/// What is wrong with a block. Offsets are those of the first sector where it shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fault", rename_all = "kebab-case")]
pub enum Fault {
    /// The write was acknowledged, and the whole block holds what was there before.
    Lost {
        /// Where.
        at: ByteOffset,
        /// What is there.
        found: Before,
        /// What was acknowledged.
        acknowledged: u64,
    },
    /// As lost, but another read of the same block shows that the disk does hold it: this reader was given a cached past.
    /// See [`Fault::though_on_disk`].
    Stale {
        /// Where.
        at: ByteOffset,
        /// What was read.
        found: Before,
        /// What was acknowledged.
        acknowledged: u64,
    },
    /// Some sectors of the block are of one write, some of another or of none.
    Torn {
        /// The first sector that is not of the same write as the one before it.
        at: ByteOffset,
    },
    /// A write that was meant for another place. (That place will show a lost one.)
    Misdirected {
        /// Where it is.
        at: ByteOffset,
        /// Where it belongs.
        belongs: ByteOffset,
    },
    /// The checksum is wrong, or it is neither a stamp nor zeroes, or of a generation that was never written.
    Corrupt {
        /// Where.
        at: ByteOffset,
    },
}

impl Fault {
    /// The same fault, given that another read of this block found on the disk what was expected: what looked lost is stale.
    #[must_use]
    pub fn though_on_disk(self) -> Self {
        match self {
            Self::Lost { at, found, acknowledged } => Self::Stale { at, found, acknowledged },
            other => other,
        }
    }

    /// Its name: `lost`, `stale`, `torn`, `misdirected` or `corrupt`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Lost { .. } => "lost",
            Self::Stale { .. } => "stale",
            Self::Torn { .. } => "torn",
            Self::Misdirected { .. } => "misdirected",
            Self::Corrupt { .. } => "corrupt",
        }
    }

    /// Where it shows first.
    #[must_use]
    pub fn at(&self) -> ByteOffset {
        match *self {
            Self::Lost { at, .. }
            | Self::Stale { at, .. }
            | Self::Torn { at }
            | Self::Misdirected { at, .. }
            | Self::Corrupt { at } => at,
        }
    }
}

impl fmt::Display for Before {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zeroes => f.write_str("zeroes"),
            Self::OtherRun(seed) => write!(f, "what a run with seed {seed} wrote"),
            Self::Generation(generation) => write!(f, "generation {generation}"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        match self {
            Self::Lost { at, found, acknowledged } => {
                write!(f, "{name} at offset {at}: generation {acknowledged} was acknowledged, the disk holds {found}")
            }
            Self::Stale { at, found, acknowledged } => {
                write!(f, "{name} at offset {at}: the disk holds generation {acknowledged}, the read returned {found}")
            }
            Self::Torn { at } => write!(f, "{name} at offset {at}: the block is of two writes, which meet there"),
            Self::Misdirected { at, belongs } => write!(f, "{name} at offset {at}: it was written to offset {belongs}"),
            Self::Corrupt { at } => write!(f, "{name} at offset {at}: no sector that was ever written there"),
        }
    }
}

/// SplitMix64, which turns a counter into noise.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Stamps `block`, which is to be written as `stamp` says.
///
/// # Panics
/// When `block` is not a whole number of [`SECTOR`]s, or more than `u32::MAX` of them.
pub fn write(block: &mut [u8], stamp: Stamp) {
    /// The step of SplitMix64.
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let (sectors, rest) = block.as_chunks_mut::<SECTOR>();
    assert!(rest.is_empty(), "a block is a whole number of sectors");
    let count = u32::try_from(sectors.len()).unwrap_or_else(|_| panic!("a block of too many sectors"));
    let mut offset = stamp.offset.bytes();
    for (index, sector) in (0u32..).zip(sectors) {
        sector[..4].copy_from_slice(&MAGIC);
        sector[8..16].copy_from_slice(&stamp.seed.to_le_bytes());
        sector[16..24].copy_from_slice(&offset.to_le_bytes());
        sector[24..32].copy_from_slice(&stamp.generation.to_le_bytes());
        sector[32..36].copy_from_slice(&index.to_le_bytes());
        sector[36..40].copy_from_slice(&count.to_le_bytes());
        let mut noise = mix(stamp.seed ^ mix(offset ^ mix(stamp.generation)));
        for word in sector[PAYLOAD..].as_chunks_mut::<8>().0 {
            noise = noise.wrapping_add(GOLDEN);
            *word = mix(noise).to_le_bytes();
        }
        let crc = crc32c::crc32c(&sector[CHECKED..]);
        sector[CRC].copy_from_slice(&crc.to_le_bytes());
        offset += SECTOR as u64;
    }
}

impl Sector {
    fn read(sector: &[u8; SECTOR]) -> Self {
        fn u64_at(sector: &[u8; SECTOR], at: usize) -> u64 {
            u64::from_le_bytes(std::array::from_fn(|byte| sector[at + byte]))
        }
        fn u32_at(sector: &[u8; SECTOR], at: usize) -> u32 {
            u32::from_le_bytes(std::array::from_fn(|byte| sector[at + byte]))
        }
        if sector[..4] != MAGIC {
            return if zero::is_zero(sector) { Self::Zeroes } else { Self::Foreign };
        }
        if crc32c::crc32c(&sector[CHECKED..]) != u32_at(sector, CRC.start) {
            return Self::Damaged;
        }
        Self::Stamped(Label {
            seed: u64_at(sector, 8),
            offset: u64_at(sector, 16),
            generation: u64_at(sector, 24),
            index: u32_at(sector, 32),
            count: u32_at(sector, 36),
        })
    }
}

/// What the sectors of a block share when they are of the same write: `None` is zeroes.
type Origin = Option<(u64, u64)>;

/// Checks that `block`, as read from the disk, holds what is `expected`.
///
/// # Errors
/// The gravest fault in it: corrupt, misdirected, torn, lost.
///
/// # Panics
/// When `block` is not a whole number of [`SECTOR`]s.
pub fn check(block: &[u8], expected: &Expected) -> Result<(), Fault> {
    let (sectors, rest) = block.as_chunks::<SECTOR>();
    assert!(rest.is_empty(), "a block is a whole number of sectors");
    let (mut misdirected, mut torn, mut lost) = (None, None, None);
    let mut before: Option<Origin> = None;
    for (index, sector) in (0u64..).zip(sectors) {
        let at = ByteOffset::new(expected.offset.bytes() + index * SECTOR as u64);
        let origin = match Sector::read(sector) {
            Sector::Damaged | Sector::Foreign => return Err(Fault::Corrupt { at }),
            Sector::Zeroes => None,
            Sector::Stamped(label) if label.seed != expected.seed => Some((label.seed, label.generation)),
            Sector::Stamped(label) if label.offset != at.bytes() => {
                let belongs = ByteOffset::new(label.offset);
                misdirected = misdirected.or(Some(Fault::Misdirected { at, belongs }));
                continue;
            }
            Sector::Stamped(label) if label.generation > expected.newest => return Err(Fault::Corrupt { at }),
            Sector::Stamped(label) => Some((label.seed, label.generation)),
        };
        let found = match origin {
            None => Some(Before::Zeroes),
            Some((seed, _)) if seed != expected.seed => Some(Before::OtherRun(seed)),
            Some((_, generation)) if generation < expected.acknowledged => Some(Before::Generation(generation)),
            Some(_) => None,
        };
        if let Some(found) = found
            && expected.acknowledged > 0
        {
            lost = lost.or(Some(Fault::Lost { at, found, acknowledged: expected.acknowledged }));
        }
        // What other runs left may be of any shape: only sectors of this run make a block torn.
        let ours = |origin: Origin| origin.is_some_and(|(seed, _)| seed == expected.seed);
        if before.is_some_and(|before| before != origin && (ours(before) || ours(origin))) {
            torn = torn.or(Some(Fault::Torn { at }));
        }
        before = Some(origin);
    }
    misdirected.or(torn).or(lost).map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests;
