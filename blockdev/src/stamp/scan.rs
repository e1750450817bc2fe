//! Checking a disk full of stamps without knowing what was written: every stamp must be whole and in its place.

use serde::{Deserialize, Serialize};

use super::{Fault, Label, SECTOR, Sector};
use crate::units::{ByteOffset, ByteSize};

/// How many faults are kept by name; all are counted.
const FAULTS_KEPT: usize = 16;

/// What a [`Scan`] found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Bytes with a good stamp.
    pub stamped: ByteSize,
    /// Bytes that are zero: never written, or lost. Only who wrote the disk can tell.
    pub zeroes: ByteSize,
    /// Bytes with a good stamp of another run than the one asked for.
    pub other_runs: ByteSize,
    /// How many sectors are of another write than the sector before them in the same block.
    pub torn: u64,
    /// How many sectors belong somewhere else.
    pub misdirected: u64,
    /// How many sectors are neither a stamp nor zeroes.
    pub corrupt: u64,
    /// The first of these faults.
    pub first_faults: Vec<Fault>,
}

impl Tally {
    /// How many faults there are.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.torn + self.misdirected + self.corrupt
    }

    fn fault(&mut self, fault: Fault) {
        *match fault {
            Fault::Torn { .. } => &mut self.torn,
            Fault::Misdirected { .. } => &mut self.misdirected,
            _ => &mut self.corrupt,
        } += 1;
        if self.first_faults.len() < FAULTS_KEPT {
            self.first_faults.push(fault);
        }
    }
}

/// A sector, as far as its neighbour has to know it.
#[derive(Debug, Clone, Copy)]
enum Neighbour {
    Zeroes,
    Ours(Label),
    OtherRun,
    Faulty,
}

/// Checks a disk from one end to the other, piece by piece.
#[derive(Debug)]
pub struct Scan {
    seed: Option<u64>,
    next: ByteOffset,
    previous: Neighbour,
    tally: Tally,
}

impl Scan {
    /// A scan that begins at `start`, of the stamps of the run with `seed`, or of all.
    #[must_use]
    pub fn new(seed: Option<u64>, start: ByteOffset) -> Self {
        Self { seed, next: start, previous: Neighbour::Faulty, tally: Tally::default() }
    }

    /// Looks at the bytes that come next.
    ///
    /// # Panics
    /// When they are not a whole number of [`SECTOR`]s.
    pub fn push(&mut self, bytes: &[u8]) {
        let (sectors, rest) = bytes.as_chunks::<SECTOR>();
        assert!(rest.is_empty(), "a disk is a whole number of sectors");
        for sector in sectors {
            let at = self.next;
            let size = ByteSize::new(SECTOR as u64);
            let current = match Sector::read(sector) {
                Sector::Zeroes => {
                    self.tally.zeroes = self.tally.zeroes + size;
                    Neighbour::Zeroes
                }
                Sector::Stamped(label) if self.seed.is_some_and(|seed| seed != label.seed) => {
                    self.tally.other_runs = self.tally.other_runs + size;
                    Neighbour::OtherRun
                }
                Sector::Stamped(label) if label.offset != at.bytes() => {
                    self.tally.fault(Fault::Misdirected { at, belongs: ByteOffset::new(label.offset) });
                    Neighbour::Faulty
                }
                Sector::Stamped(label) => {
                    self.tally.stamped = self.tally.stamped + size;
                    Neighbour::Ours(label)
                }
                Sector::Damaged | Sector::Foreign => {
                    self.tally.fault(Fault::Corrupt { at });
                    Neighbour::Faulty
                }
            };
            if self.torn_between(current) {
                self.tally.fault(Fault::Torn { at });
            }
            self.previous = current;
            self.next = at + size;
        }
    }

    /// Whether the previous sector and this one should be of the same write, and are not.
    fn torn_between(&self, current: Neighbour) -> bool {
        let unfinished = |label: Label| label.index.saturating_add(1) < label.count;
        let begun = |label: Label| label.index > 0;
        // Without a seed nobody knows which of two runs came later, and a later run may well end inside an earlier block.
        let latest_known = self.seed.is_some();
        match (self.previous, current) {
            (Neighbour::Ours(a), Neighbour::Ours(b)) => a.block() == b.block() && a.generation != b.generation,
            (Neighbour::Ours(a), Neighbour::Zeroes) => unfinished(a),
            (Neighbour::Zeroes, Neighbour::Ours(b)) => begun(b),
            (Neighbour::Ours(a), Neighbour::OtherRun) => latest_known && unfinished(a),
            (Neighbour::OtherRun, Neighbour::Ours(b)) => latest_known && begun(b),
            _ => false,
        }
    }

    /// What was found.
    #[must_use]
    pub fn finish(self) -> Tally {
        self.tally
    }
}

impl Label {
    /// The block it says to be part of. Labels are what the disk gave us: their arithmetic may overflow.
    fn block(self) -> (u64, u64, u32) {
        (self.seed, self.offset.wrapping_sub(u64::from(self.index) * SECTOR as u64), self.count)
    }
}
