//! The blktag: one for each block of the volume.

use super::super::bytes::{i32_at, put_u32, put_u64, u32_at};
use super::super::{BLOCK_SIZE, Bda, BlktagNo, BlockIndex, Checksum, Damage, InodeNo, Number};
use super::{Common, Links, ObjectBytes, PAYLOAD, put_links, seal, start};

/// What is known of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blktag {
    /// Its number, which is also that of the block.
    pub number: BlktagNo,
    /// Whether it carries a checksum.
    pub checksum: Checksum,
    /// Free, or a file's.
    pub state: BlktagState,
}

/// Whose a block is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlktagState {
    /// Nobody's.
    Free {
        /// Whose it was last; nobody clears this.
        last_owner: InodeNo,
        /// Which of that file's blocks it was.
        last_index: BlockIndex,
        /// Whether the device was told.
        discard: DiscardState,
        /// How often the device was about to be told since the block was last used.
        discards: u32,
    },
    /// A file's, or that of a chunk's metadata: the blktag of index 0, whose fields say nothing.
    Used {
        /// Its neighbours in the list of the file's blocks.
        links: Links<BlktagNo>,
        /// Whose it is.
        owner: InodeNo,
        /// Which of the file's blocks it is.
        index: BlockIndex,
        /// What of it was never written.
        hole: Hole,
    },
}

/// Whether the device knows that a free block is not needed any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiscardState {
    /// It does, or the block was never used.
    Done = 0,
    /// It shall be told.
    Ready = 1,
    /// It is being told: the block must not be used meanwhile.
    InProgress = 2,
}

impl DiscardState {
    fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            0 => Some(Self::Done),
            1 => Some(Self::Ready),
            2 => Some(Self::InProgress),
            _ => None,
        }
    }
}

/// The part of a block that was never written, always at its end. It reads as zeroes, whatever the device has there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hole {
    /// None is recorded, as in volumes of version 0: all of the block is data.
    Unrecorded,
    /// It starts at this byte of the block, 0 to 4 MiB; at 4 MiB there is none.
    From(u32),
}

/// Bytes in a block, as the disk's signed numbers hold it.
#[allow(clippy::cast_possible_truncation, reason = "4 MiB")]
const BLOCK: u32 = BLOCK_SIZE.bytes() as u32;

impl Hole {
    /// All of a block, as it is when a file gets it.
    pub const WHOLE: Self = Self::From(0);

    /// How many bytes at the start of the block are data.
    #[must_use]
    pub fn written(self) -> u32 {
        match self {
            Self::Unrecorded => BLOCK,
            Self::From(start) => start,
        }
    }
}

impl Blktag {
    /// The blktag that lies `at` an address.
    ///
    /// # Errors
    /// When the bytes are no blktag.
    pub fn parse(bytes: &ObjectBytes, at: Bda) -> Result<Self, Damage> {
        let common = Common::<BlktagNo>::parse(bytes, at)?;
        let owner = common.reference(PAYLOAD, "bt_ino")?;
        let raw_index = common.u64(PAYLOAD + 8);
        let index = BlockIndex::new(raw_index)
            .ok_or_else(|| common.damage("bt_blkid", format!("no file has a block {}", raw_index.cast_signed())))?;
        let status = u32_at(bytes, PAYLOAD + 16);
        let discard = DiscardState::from_raw(status)
            .ok_or_else(|| common.damage("bt_dstatus", format!("there is no state {status}")))?;
        let discards = u32_at(bytes, PAYLOAD + 20);
        let (len, start) = (i32_at(bytes, PAYLOAD + 24), i32_at(bytes, PAYLOAD + 28));
        let state = if common.used {
            if discard != DiscardState::Done {
                return Err(common.damage("bt_dstatus", format!("{status} instead of 0: the block is used")));
            }
            if discards != 0 {
                return Err(common.damage("bt_ndiscard", format!("{discards} instead of 0: the block is used")));
            }
            let hole = match (start, len) {
                (0, 0) => Hole::Unrecorded,
                _ => u32::try_from(start)
                    .ok()
                    .filter(|start| i64::from(*start) + i64::from(len) == i64::from(BLOCK) && len >= 0)
                    .map(Hole::From)
                    .ok_or_else(|| {
                        common.damage(
                            "bt_holelen",
                            format!("a hole of {len} bytes from {start} is not at the block's end"),
                        )
                    })?,
            };
            BlktagState::Used { links: common.links()?, owner, index, hole }
        } else {
            common.no_links()?;
            if (start, len) != (0, 0) {
                return Err(
                    common.damage("bt_holelen", format!("a hole of {len} bytes from {start}, but the block is free"))
                );
            }
            BlktagState::Free { last_owner: owner, last_index: index, discard, discards }
        };
        common.nothing_in(PAYLOAD + 32..128)?;
        Ok(Self { number: common.number, checksum: common.checksum, state })
    }

    /// Its bytes.
    #[must_use]
    pub fn write(&self) -> ObjectBytes {
        let mut bytes = start(self.number, self.is_used());
        match self.state {
            BlktagState::Free { last_owner, last_index, discard, discards } => {
                put_u64(&mut bytes, PAYLOAD, last_owner.raw());
                put_u64(&mut bytes, PAYLOAD + 8, last_index.raw());
                put_u32(&mut bytes, PAYLOAD + 16, discard as u32);
                put_u32(&mut bytes, PAYLOAD + 20, discards);
            }
            BlktagState::Used { links, owner, index, hole } => {
                put_links(&mut bytes, links);
                put_u64(&mut bytes, PAYLOAD, owner.raw());
                put_u64(&mut bytes, PAYLOAD + 8, index.raw());
                if let Hole::From(start) = hole {
                    put_u32(&mut bytes, PAYLOAD + 24, BLOCK - start);
                    put_u32(&mut bytes, PAYLOAD + 28, start);
                }
            }
        }
        seal(bytes, self.checksum)
    }

    /// Whether the block is a file's or holds metadata.
    #[must_use]
    pub fn is_used(&self) -> bool {
        matches!(self.state, BlktagState::Used { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::tests::bytes;
    use proptest::prelude::*;

    fn used(number: u64, owner: u64, index: u64, hole: Hole) -> Blktag {
        Blktag {
            number: BlktagNo::from_raw(number).unwrap(),
            checksum: Checksum::Present,
            state: BlktagState::Used {
                links: Links::default(),
                owner: InodeNo::from_raw(owner).unwrap(),
                index: BlockIndex::new(index).unwrap(),
                hole,
            },
        }
    }

    /// Blktag 1 after `pfs mkfs`, and 131 after 8 KiB were written to a file.
    #[test]
    fn the_blktags_of_the_original() {
        for (blktag, text) in [
            (
                used(0, 0, 0, Hole::Unrecorded),
                "0000000000000000 0000000000000000 0000000000000000 0000000000000000 01010000f6f93951",
            ),
            (
                used(1, 1, 0, Hole::From(BLOCK)),
                "0100000000000000 0000000000000000 0000000000000000 0000000000000000
                 010100009a8079e2 0100000000000000 0000000000000000 0000000000000000 0000000000004000",
            ),
            (
                used(131, 3, 0, Hole::From(8192)),
                "8300000000000000 0000000000000000 0000000000000000 0000000000000000
                 01010000568f6b1b 0300000000000000 0000000000000000 0000000000000000 00e03f0000200000",
            ),
        ] {
            let mut expected = bytes(text);
            expected.resize(128, 0);
            assert_eq!(blktag.write(), *expected, "{}", blktag.number);
            assert_eq!(Blktag::parse(&blktag.write(), Bda::new(0)).unwrap(), blktag);
        }
    }

    #[test]
    fn a_wrong_field_is_named() {
        let text = |blktag: &Blktag, at: usize, value: u64| {
            let mut bytes = blktag.write();
            put_u64(&mut bytes, at, value);
            Blktag::parse(&seal(bytes, Checksum::Present), Bda::new(0x1000)).unwrap_err().to_string()
        };
        let free = Blktag {
            state: BlktagState::Free {
                last_owner: InodeNo::ROOT,
                last_index: BlockIndex::new(0).unwrap(),
                discard: DiscardState::Ready,
                discards: 0,
            },
            ..used(5, 0, 0, Hole::WHOLE)
        };
        let used = used(5, 3, 1, Hole::WHOLE);
        let half = |low: i32, high: i32| u64::from(low.cast_unsigned()) | u64::from(high.cast_unsigned()) << 32;
        for (blktag, at, value, problem) in [
            (&used, 16, 2560, "mo_next: there can be no blktag 2560"),
            (&used, 40, u64::MAX, "bt_ino: there can be no inode 18446744073709551615"),
            (&used, 48, 1 << 50, "bt_blkid: no file has a block 1125899906842624"),
            (&used, 48, u64::MAX, "bt_blkid: no file has a block -1"),
            (&used, 56, 3, "bt_dstatus: there is no state 3"),
            (&used, 56, 1, "bt_dstatus: 1 instead of 0: the block is used"),
            (&used, 56, 1 << 32, "bt_ndiscard: 1 instead of 0: the block is used"),
            (&used, 64, half(4096, 0), "bt_holelen: a hole of 4096 bytes from 0 is not at the block's end"),
            (
                &used,
                64,
                half(-4_194_304, 8_388_608),
                "bt_holelen: a hole of -4194304 bytes from 8388608 is not at the block's end",
            ),
            (
                &used,
                64,
                half(i32::MAX, -4096),
                "bt_holelen: a hole of 2147483647 bytes from -4096 is not at the block's end",
            ),
            (&used, 120, 1, "mo_data: bytes are set where there should be none"),
            (&free, 24, 7, "mo_prev: 7 instead of 0: it is in no list"),
            (&free, 64, half(4_194_304, 0), "bt_holelen: a hole of 4194304 bytes from 0, but the block is free"),
        ] {
            assert_eq!(text(blktag, at, value), format!("blktag 5 at 0x1000: {problem}"));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_parsed(
            number in 0u64..2560, owner in 0u64..2048, index in 0u64..1 << 40, written in 0..=BLOCK, next in 1u64..2560,
            free: bool, discards: u32, absent: bool,
        ) {
            let hole = if absent && written == 0 { Hole::Unrecorded } else { Hole::From(written) };
            let mut blktag = used(number, owner, index, hole);
            if let BlktagState::Used { links, .. } = &mut blktag.state {
                links.next = BlktagNo::from_raw(next);
            }
            if free {
                blktag.state = BlktagState::Free {
                    last_owner: InodeNo::from_raw(owner).unwrap(),
                    last_index: BlockIndex::new(index).unwrap(),
                    discard: DiscardState::InProgress,
                    discards,
                };
            }
            if absent {
                blktag.checksum = Checksum::Absent;
            }
            prop_assert_eq!(Blktag::parse(&blktag.write(), Bda::new(0)).unwrap(), blktag);
        }
    }
}
