//! Sizes, offsets and ranges on a disk as types, so that a byte count is never taken for a block number.

use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A number of bytes. Parses what people write (`20G`, `20GiB`, `20480M`, `4096`); a bare letter is binary, as in dd,
/// fio and qemu-img, and only `kB`/`MB`/`GB`/`TB` are decimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteSize(u64);

impl ByteSize {
    /// No bytes.
    pub const ZERO: Self = Self(0);

    /// `bytes` bytes.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// `n` KiB.
    ///
    /// # Panics
    /// When that is more than `u64::MAX` bytes.
    #[must_use]
    pub const fn kib(n: u64) -> Self {
        Self(n * 1024)
    }

    /// `n` MiB.
    ///
    /// # Panics
    /// When that is more than `u64::MAX` bytes.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self::kib(n * 1024)
    }

    /// `n` GiB.
    ///
    /// # Panics
    /// When that is more than `u64::MAX` bytes.
    #[must_use]
    pub const fn gib(n: u64) -> Self {
        Self::mib(n * 1024)
    }

    /// The number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The number of bytes as an index into memory.
    ///
    /// # Errors
    /// When this machine cannot address so much.
    pub fn to_usize(self) -> Result<usize> {
        usize::try_from(self.0).map_err(|_| Error::invalid(format!("{self} is more than this machine can address")))
    }

    /// Whether this is a whole number of `unit`s.
    #[must_use]
    pub const fn is_multiple_of(self, unit: Self) -> bool {
        self.0.is_multiple_of(unit.0)
    }

    /// The difference, or zero where `other` is larger.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Add for ByteSize {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl Sub for ByteSize {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 - other.0)
    }
}

impl std::iter::Sum for ByteSize {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Add::add)
    }
}

const UNITS: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl fmt::Display for ByteSize {
    /// The largest unit that leaves at least 1, with two decimals where it is not whole: `20 GiB`, `1.50 MiB`, `512 B`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, unit) = UNITS.into_iter().find(|(_, unit)| self.0 >= *unit).unwrap_or(("B", 1));
        let text = if self.0.is_multiple_of(unit) {
            format!("{} {name}", self.0 / unit)
        } else {
            #[allow(clippy::cast_precision_loss, reason = "two decimals are shown")]
            let value = self.0 as f64 / unit as f64;
            format!("{value:.2} {name}")
        };
        f.pad(&text)
    }
}

impl FromStr for ByteSize {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: &str| {
            Error::invalid(format!("{text:?} is not a size: {why}"))
                .with_hint("write a number and a unit, such as 20G, 20GiB, 20480M or 4096 (bytes)")
        };
        let trimmed = text.trim();
        if trimmed.starts_with('-') {
            return Err(bad("it is negative"));
        }
        let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = (&trimmed[..split], trimmed[split..].trim());
        let unit: u64 = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1 << 40,
            "kb" => 1000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(bad(&format!("{unit:?} is no unit of bytes"))),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return Err(bad("it has no number"));
        }
        if number.matches('.').count() > 1 || fraction.len() > 9 {
            return Err(bad("its number is malformed"));
        }
        let too_large = || bad("it does not fit 64 bits");
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| too_large())? };
        let bytes = whole.checked_mul(unit).ok_or_else(too_large)?;
        let part = if fraction.is_empty() {
            0
        } else {
            let digits = u64::from(fraction.parse::<u32>().map_err(|_| bad("its number is malformed"))?);
            let scale = 10u64.pow(u32::try_from(fraction.len()).unwrap_or(9));
            let scaled = u128::from(digits) * u128::from(unit);
            if !scaled.is_multiple_of(u128::from(scale)) {
                return Err(bad("it is not a whole number of bytes"));
            }
            u64::try_from(scaled / u128::from(scale)).map_err(|_| too_large())?
        };
        bytes.checked_add(part).map(Self).ok_or_else(too_large)
    }
}

/// A position on a disk, in bytes from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteOffset(u64);

impl ByteOffset {
    /// The start of the disk.
    pub const ZERO: Self = Self(0);

    /// `bytes` from the start.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Bytes from the start.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl Add<ByteSize> for ByteOffset {
    type Output = Self;
    fn add(self, size: ByteSize) -> Self {
        Self(self.0 + size.0)
    }
}

impl Sub for ByteOffset {
    type Output = ByteSize;
    fn sub(self, other: Self) -> ByteSize {
        ByteSize(self.0 - other.0)
    }
}

impl fmt::Display for ByteOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}

/// A half-open range of bytes on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ByteRange {
    /// Its first byte.
    pub start: ByteOffset,
    /// How many bytes it spans.
    pub len: ByteSize,
}

impl ByteRange {
    /// The range of `len` bytes from `start`.
    ///
    /// # Errors
    /// When its end does not fit 64 bits.
    pub fn new(start: ByteOffset, len: ByteSize) -> Result<Self> {
        start
            .0
            .checked_add(len.0)
            .map(|_| Self { start, len })
            .ok_or_else(|| Error::invalid(format!("a range of {len} from {start} ends beyond 64 bits")))
    }

    /// The first `len` bytes of a disk.
    #[must_use]
    pub const fn from_start(len: ByteSize) -> Self {
        Self { start: ByteOffset::ZERO, len }
    }

    /// The byte after its last.
    #[must_use]
    pub fn end(self) -> ByteOffset {
        self.start + self.len
    }

    /// Whether it spans no byte.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len.0 == 0
    }

    /// The pieces of at most `piece` bytes that it falls into, in order; only the last may be shorter.
    ///
    /// # Panics
    /// When `piece` is zero.
    pub fn pieces(self, piece: ByteSize) -> impl Iterator<Item = Self> {
        assert!(piece.0 > 0, "a range cannot be cut into pieces of no bytes");
        let count = self.len.0.div_ceil(piece.0);
        (0..count).map(move |index| {
            let skipped = index * piece.0;
            Self { start: ByteOffset(self.start.0 + skipped), len: ByteSize(piece.0.min(self.len.0 - skipped)) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_as_people_write_them() {
        for (text, bytes) in [
            ("20G", 20 << 30),
            ("20GiB", 20 << 30),
            ("20 gib", 20 << 30),
            ("20480M", 20 << 30),
            ("1.5g", 3 << 29),
            ("4096", 4096),
            ("0", 0),
            ("8k", 8192),
            ("1GB", 1_000_000_000),
            (" 2T ", 2 << 40),
            (".5K", 512),
            ("16777215T", 16_777_215 << 40),
        ] {
            assert_eq!(text.parse::<ByteSize>().unwrap().bytes(), bytes, "{text}");
        }
    }

    #[test]
    fn what_is_not_a_size_says_why() {
        for (text, why) in [
            ("", "has no number"),
            ("G", "has no number"),
            ("-5G", "negative"),
            ("5X", "no unit"),
            ("5 G B", "no unit"),
            ("1.2.3G", "malformed"),
            ("0.3", "whole number of bytes"),
            ("99999999999999999999", "64 bits"),
            ("16777216T", "64 bits"),
            ("٣G", "no unit"),
        ] {
            let error = text.parse::<ByteSize>().unwrap_err();
            assert!(error.to_string().contains(why), "{text}: {error}");
            assert!(error.hint().is_some());
        }
    }

    #[test]
    fn shown_in_the_largest_unit() {
        for (bytes, text) in [(0, "0 B"), (511, "511 B"), (4096, "4 KiB"), (1536, "1.50 KiB"), (20 << 30, "20 GiB")] {
            assert_eq!(ByteSize::new(bytes).to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_size_or_an_error(text in "\\PC*") {
            let _ = text.parse::<ByteSize>();
        }

        #[test]
        fn bytes_survive_writing_and_parsing(bytes: u64) {
            prop_assert_eq!(bytes.to_string().parse::<ByteSize>().unwrap().bytes(), bytes);
        }

        #[test]
        fn pieces_cover_a_range_once_and_in_order(start in 0u64..1 << 40, len in 0u64..1 << 24, piece in 1u64..1 << 20) {
            let piece = piece.max(len / 5000 + 1);
            let range = ByteRange::new(ByteOffset::new(start), ByteSize::new(len)).unwrap();
            let mut next = range.start;
            for part in range.pieces(ByteSize::new(piece)) {
                prop_assert_eq!(part.start, next);
                prop_assert!(!part.is_empty() && part.len.bytes() <= piece);
                next = part.end();
            }
            prop_assert_eq!(next, range.end());
        }
    }
}
