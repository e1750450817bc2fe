//! Where in shared memory what lies. Both sides know this; what the memory itself says of it is only compared.

use std::fmt;

use super::IO_MAX;

/// The first bytes of a region, and of a channel.
pub const MAGIC: u32 = 0x0133_C96C;

/// Bytes in the header of a region, and the alignment of all that is large.
pub const PAGE: usize = 4096;

/// Records of requests and responses in a channel, whether or not it has as many slots.
pub const RECORDS: usize = 64;

/// Bytes in the record of a request.
pub const REQUEST_SIZE: usize = 1088;

/// Bytes in the record of a response.
pub const RESPONSE_SIZE: usize = 544;

/// Where in a channel its bitmap of free slots is; where its requests, its responses and its buffers begin.
pub const BITMAP_AT: usize = 576;
/// See [`BITMAP_AT`].
pub const REQUESTS_AT: usize = 640;
/// See [`BITMAP_AT`].
pub const RESPONSES_AT: usize = REQUESTS_AT + RECORDS * REQUEST_SIZE;
/// See [`BITMAP_AT`].
pub const BUFFERS_AT: usize = 106_496;

const _: () = assert!((RESPONSES_AT + RECORDS * RESPONSE_SIZE).next_multiple_of(PAGE) == BUFFERS_AT);

/// How many regions there are.
pub const REGIONS: usize = 7;

/// What a region consists of: bytes in a buffer, channels, slots in a channel.
const SHAPES: [(usize, u8, u8); REGIONS] = [
    (4 << 10, 32, 64),
    (8 << 10, 32, 64),
    (16 << 10, 32, 64),
    (64 << 10, 16, 64),
    (256 << 10, 4, 64),
    (1 << 20, 1, 64),
    (IO_MAX, 1, 16),
];

/// A region, from 0: all its buffers are of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionNo(u8);

impl RegionNo {
    /// All, by the size of their buffers.
    pub fn all() -> impl Iterator<Item = Self> {
        #[allow(clippy::cast_possible_truncation, reason = "seven")]
        (0..REGIONS as u8).map(Self)
    }

    /// The smallest whose buffers have room for so many bytes, and those above it.
    pub fn for_bytes(bytes: usize) -> impl Iterator<Item = Self> {
        Self::all().filter(move |region| region.unit() >= bytes)
    }

    /// Its number as an index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Bytes in each of its buffers.
    #[must_use]
    pub const fn unit(self) -> usize {
        SHAPES[self.0 as usize].0
    }

    /// How many channels it has.
    #[must_use]
    pub const fn channels(self) -> u8 {
        SHAPES[self.0 as usize].1
    }

    /// How many slots each of its channels has.
    #[must_use]
    pub const fn slots(self) -> u8 {
        SHAPES[self.0 as usize].2
    }

    /// The bitmap of a channel none of whose slots is used.
    #[must_use]
    pub const fn all_free(self) -> u64 {
        u64::MAX >> (64 - self.slots())
    }

    /// Bytes in one of its channels.
    #[must_use]
    pub const fn channel_size(self) -> usize {
        BUFFERS_AT + self.slots() as usize * self.unit()
    }

    /// Bytes in all of it.
    #[must_use]
    pub const fn size(self) -> usize {
        PAGE + self.channels() as usize * self.channel_size()
    }

    /// Its channels.
    pub fn channel_numbers(self) -> impl Iterator<Item = ChannelNo> {
        (0..self.channels()).map(move |index| ChannelNo { region: self, index })
    }
}

impl fmt::Display for RegionNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A channel of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelNo {
    region: RegionNo,
    index: u8,
}

impl ChannelNo {
    /// All channels of all regions.
    pub fn all() -> impl Iterator<Item = Self> {
        RegionNo::all().flat_map(RegionNo::channel_numbers)
    }

    /// The `index`-th of a region, counted round.
    #[must_use]
    pub fn of(region: RegionNo, index: usize) -> Self {
        #[allow(clippy::cast_possible_truncation, reason = "less than the number of channels, which is a u8")]
        Self { region, index: (index % region.channels() as usize) as u8 }
    }

    /// The region.
    #[must_use]
    pub const fn region(self) -> RegionNo {
        self.region
    }

    /// Its number in the region.
    #[must_use]
    pub const fn index(self) -> usize {
        self.index as usize
    }

    /// Where in the region it starts.
    #[must_use]
    pub const fn start(self) -> usize {
        PAGE + self.index as usize * self.region.channel_size()
    }

    /// Its slots.
    pub fn slots(self) -> impl Iterator<Item = SlotNo> {
        (0..self.region.slots()).map(SlotNo)
    }
}

/// A slot of a channel, which its owner knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotNo(u8);

impl SlotNo {
    /// Slot `index`, in a channel of whatever size.
    #[must_use]
    pub const fn new(index: u32) -> Option<Self> {
        #[allow(clippy::cast_possible_truncation, reason = "less than 64")]
        if index < RECORDS as u32 { Some(Self(index as u8)) } else { None }
    }

    /// Its number as an index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Its bit in the channel's bitmap.
    #[must_use]
    pub const fn bit(self) -> u64 {
        1 << self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the original's own program prints of its structures.
    #[test]
    fn regions_are_as_large_as_the_originals() {
        let sizes: Vec<_> = RegionNo::all().map(|region| (region.channel_size(), region.size())).collect();
        assert_eq!(
            sizes,
            [
                (368_640, 11_800_576),
                (630_784, 20_189_184),
                (1_155_072, 36_966_400),
                (4_300_800, 68_816_896),
                (16_883_712, 67_538_944),
                (67_215_360, 67_219_456),
                (67_215_360, 67_219_456),
            ]
        );
        assert_eq!(sizes.iter().map(|(_, size)| size).sum::<usize>(), 339_750_912);
        assert_eq!(ChannelNo::all().count(), 118);
        assert_eq!(RegionNo::for_bytes(8193).next().unwrap().index(), 2);
        assert_eq!(RegionNo::for_bytes(IO_MAX + 1).next(), None);
        assert_eq!(RegionNo::all().last().unwrap().all_free(), 0xFFFF);
        assert_eq!(RESPONSES_AT, 70_272);
    }
}
