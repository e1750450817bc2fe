//! The checksum of every structure: CRC-32C as the original computes it.

/// The checksum of `bytes`: CRC-32C (Castagnoli) whose register starts as !1 and is not inverted at the end.
///
/// The standard CRC-32C starts as !0 and inverts at the end; this is one turned into the other.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(1, bytes)
}

/// The checksum of `bytes` with the 4 bytes at `hole`, which hold the checksum itself, taken as zero.
pub(super) fn checksum_around(bytes: &[u8], hole: usize) -> u32 {
    let before = crc32c::crc32c_append(1, &bytes[..hole]);
    let zeroes = crc32c::crc32c_append(before, &[0; 4]);
    !crc32c::crc32c_append(zeroes, &bytes[hole + 4..])
}

/// Whether a structure carries a checksum. A release before checksums left 0, which nobody checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checksum {
    /// It does, and it is right.
    #[default]
    Present,
    /// It does not.
    Absent,
}

impl Checksum {
    /// What a structure's `stored` checksum says, when its bytes give `computed`.
    pub(super) fn check(stored: u32, computed: u32) -> Result<Self, String> {
        match stored {
            0 => Ok(Self::Absent),
            _ if stored == computed => Ok(Self::Present),
            _ => Err(format!("{stored:#010x} is stored, the bytes give {computed:#010x}")),
        }
    }

    /// What to store, when the bytes give `computed`.
    pub(super) fn store(self, computed: u32) -> u32 {
        match self {
            Self::Present => computed,
            Self::Absent => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_values() {
        assert_eq!(checksum(b"123456789"), 0xE8C7_BB34);
        assert_eq!(checksum(b""), 0xFFFF_FFFE);
        assert_eq!(checksum(&[0; 128]), 0x9E4A_5586);
    }

    #[test]
    fn zero_means_none() {
        assert_eq!(Checksum::check(0, 5), Ok(Checksum::Absent));
        assert_eq!(Checksum::check(5, 5), Ok(Checksum::Present));
        assert_eq!(Checksum::check(6, 5).unwrap_err(), "0x00000006 is stored, the bytes give 0x00000005");
    }

    proptest! {
        #[test]
        fn the_hole_is_zero(mut bytes: [u8; 120]) {
            let around = checksum_around(&bytes, 112);
            bytes[112..116].fill(0);
            prop_assert_eq!(around, checksum(&bytes));
        }
    }
}
