//! What a shared-disk database does to its disk, in parts that are measured one by one.
//!
//! PolarDB reads and writes pages of 8 KiB at random, and appends to its log. Some of the writes it waits for with an
//! fdatasync. A write goes either into *fresh* space, which nothing was written to since the image was made, or over
//! *settled* space; how space was allocated ahead of time matters to the former alone. Reads are of settled space
//! only: a block that was never written is not read from the disk.

use std::time::Duration;

use blockdev::{ByteOffset, ByteRange, ByteSize};

use crate::load::{Pattern, Work};

/// A page of PostgreSQL, and a block of its log.
const PAGE: ByteSize = ByteSize::kib(8);

/// Pages of data in flight: the readers and the page writers of a busy database.
const DATA_DEPTH: u32 = 16;

/// Data writes between two fdatasyncs: a page writer's batch.
const DATA_BATCH: u32 = 16;

/// The unit that a [`Layout`] is cut from: whole sixteenths of whole MiB.
pub const LAYOUT_UNIT: ByteSize = ByteSize::mib(SIXTEENTHS);
const SIXTEENTHS: u64 = 16;

/// Which part of the mix a workload belongs to. Each counts a third.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// Random reads of pages.
    Reads,
    /// Random writes of pages.
    DataWrites,
    /// Sequential writes of log blocks, one after the other.
    LogWrites,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Reads, Self::DataWrites, Self::LogWrites];
}

/// One part of the mix, in one of its forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Workload {
    /// What is done.
    pub part: Part,
    /// Whether it is done where nothing was written before.
    pub fresh: bool,
    /// Whether it waits for fdatasyncs.
    pub synced: bool,
}

impl Workload {
    /// All of them, in the order in which a visit does them: first what needs fresh space.
    pub const ALL: [Self; 9] = [
        Self { part: Part::LogWrites, fresh: true, synced: false },
        Self { part: Part::LogWrites, fresh: true, synced: true },
        Self { part: Part::DataWrites, fresh: true, synced: false },
        Self { part: Part::DataWrites, fresh: true, synced: true },
        Self { part: Part::Reads, fresh: false, synced: false },
        Self { part: Part::DataWrites, fresh: false, synced: false },
        Self { part: Part::DataWrites, fresh: false, synced: true },
        Self { part: Part::LogWrites, fresh: false, synced: false },
        Self { part: Part::LogWrites, fresh: false, synced: true },
    ];

    /// What it is called: `log writes + fdatasync, fresh space`.
    #[must_use]
    pub fn name(self) -> String {
        let part = match self.part {
            Part::Reads => "reads",
            Part::DataWrites => "data writes",
            Part::LogWrites => "log writes",
        };
        let synced = if self.synced { " + fdatasync" } else { "" };
        let fresh = if self.fresh { ", fresh space" } else { "" };
        format!("{part}{synced}{fresh}")
    }

    /// The load that it is, for so long, somewhere in an image laid out like this. No block is touched twice, so that
    /// fresh space stays fresh and no cache below answers; when all are touched, it is over sooner.
    #[must_use]
    pub fn work(self, layout: Layout, runtime: Duration, seed: u64) -> Work {
        let (pattern, depth, batch) = match self.part {
            Part::Reads => (Pattern::RandRead, DATA_DEPTH, 0),
            Part::DataWrites => (Pattern::RandWrite, DATA_DEPTH, DATA_BATCH),
            Part::LogWrites => (Pattern::Write, 1, 1),
        };
        let fdatasync = if self.synced { batch } else { 0 };
        Work {
            fdatasync,
            warmup: Duration::ZERO,
            runtime,
            seed,
            once: true,
            ..Work::new(pattern, PAGE, depth, layout.region(self))
        }
    }
}

/// Where in an image each workload works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    size: ByteSize,
}

impl Layout {
    /// The layout of an image of `size`, a multiple of [`LAYOUT_UNIT`].
    #[must_use]
    pub fn new(size: ByteSize) -> Self {
        debug_assert!(size > ByteSize::ZERO && size.is_multiple_of(LAYOUT_UNIT), "{size} cannot be laid out");
        Self { size }
    }

    /// The size of the image.
    #[must_use]
    pub fn size(self) -> ByteSize {
        self.size
    }

    /// The half that stays as it was made until it is measured.
    #[must_use]
    pub fn fresh(self) -> ByteRange {
        self.sixteenths(0, 8)
    }

    /// The half that is filled before anything in it is measured.
    #[must_use]
    pub fn settled(self) -> ByteRange {
        self.sixteenths(8, 8)
    }

    /// Where `workload` works: each that needs fresh space has its own.
    #[must_use]
    pub fn region(self, workload: Workload) -> ByteRange {
        match workload {
            Workload { part: Part::LogWrites, fresh: true, synced: false } => self.sixteenths(0, 1),
            Workload { part: Part::LogWrites, fresh: true, synced: true } => self.sixteenths(1, 1),
            Workload { fresh: true, synced: false, .. } => self.sixteenths(2, 3),
            Workload { fresh: true, synced: true, .. } => self.sixteenths(5, 3),
            Workload { part: Part::LogWrites, fresh: false, .. } => self.sixteenths(8, 1),
            Workload { fresh: false, .. } => self.sixteenths(9, 7),
        }
    }

    fn sixteenths(self, from: u64, count: u64) -> ByteRange {
        let unit = self.size.bytes() / SIXTEENTHS;
        ByteRange { start: ByteOffset::new(from * unit), len: ByteSize::new(count * unit) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_tell_them_apart() {
        let mut names = Workload::ALL.map(Workload::name);
        assert_eq!(names[1], "log writes + fdatasync, fresh space");
        assert_eq!(names[4], "reads");
        names.sort();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
    }

    #[test]
    fn nothing_is_read_where_nothing_was_written() {
        assert!(Workload::ALL.iter().all(|workload| workload.part != Part::Reads || !workload.fresh));
    }

    #[test]
    fn fresh_space_comes_first() {
        assert!(Workload::ALL.is_sorted_by_key(|workload| !workload.fresh));
    }

    proptest! {
        #[test]
        fn fresh_space_is_used_once_and_settled_space_is_filled(units in 1u64..10_000) {
            let layout = Layout::new(ByteSize::new(units * LAYOUT_UNIT.bytes()));
            let mut fresh: Vec<ByteRange> = Workload::ALL
                .iter()
                .filter(|workload| workload.fresh)
                .map(|workload| layout.region(*workload))
                .collect();
            fresh.sort_by_key(|range| range.start);
            prop_assert_eq!(fresh[0].start, ByteOffset::ZERO);
            for pair in fresh.windows(2) {
                prop_assert_eq!(pair[0].end(), pair[1].start);
            }
            prop_assert_eq!(fresh[fresh.len() - 1].end(), layout.settled().start);
            prop_assert_eq!(layout.settled().end(), ByteOffset::ZERO + layout.size());
            for workload in Workload::ALL {
                let region = layout.region(workload);
                prop_assert!(workload.work(layout, Duration::from_secs(1), 1).check().is_ok());
                prop_assert!(workload.fresh != (region.start >= layout.settled().start));
                prop_assert!(region.end() <= layout.settled().end());
            }
        }
    }
}
