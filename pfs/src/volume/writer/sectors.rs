//! Which sectors are being written: one that is written in part is first read, and nobody else may write it meanwhile.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The parts of the device that are being written.
#[derive(Debug, Default)]
pub(super) struct Sectors {
    busy: Mutex<Vec<Busy>>,
}

#[derive(Debug)]
struct Busy {
    parts: Vec<Part>,
    id: u64,
}

/// Addresses of whole sectors on the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) range: Range<u64>,
    /// Whether it is read, changed and written back; parts that are only written may overlap.
    pub(super) changed: bool,
}

impl Part {
    fn excludes(&self, other: &Self) -> bool {
        (self.changed || other.changed) && self.range.start < other.range.end && other.range.start < self.range.end
    }
}

/// Parts of the device that nobody else changes until this is dropped.
#[derive(Debug)]
pub(super) struct Hold<'a> {
    sectors: &'a Sectors,
    id: u64,
}

impl Sectors {
    fn lock(&self) -> MutexGuard<'_, Vec<Busy>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes these parts of the device if nobody writes them, all at once: nobody holds some and waits for others.
    pub(super) fn try_hold(&self, parts: Vec<Part>) -> Option<Hold<'_>> {
        let mut busy = self.lock();
        if busy.iter().flat_map(|busy| &busy.parts).any(|taken| parts.iter().any(|part| part.excludes(taken))) {
            return None;
        }
        let id = busy.last().map_or(0, |last| last.id + 1);
        busy.push(Busy { parts, id });
        Some(Hold { sectors: self, id })
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.sectors.lock().retain(|busy| busy.id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(range: Range<u64>, changed: bool) -> Part {
        Part { range, changed }
    }

    #[test]
    fn only_what_is_changed_excludes() {
        let sectors = Sectors::default();
        let one = sectors.try_hold(vec![part(0..8192, false)]).unwrap();
        let two = sectors.try_hold(vec![part(4096..12288, false), part(12288..16384, true)]).unwrap();
        assert!(sectors.try_hold(vec![part(20480..24576, true), part(12288..16384, false)]).is_none());
        assert!(sectors.try_hold(vec![part(0..4096, true)]).is_none());
        drop(two);
        assert!(sectors.try_hold(vec![part(12288..16384, true)]).is_some());
        assert!(sectors.try_hold(vec![part(4096..8192, true)]).is_none());
        drop(one);
        assert!(sectors.try_hold(vec![part(4096..8192, true)]).is_some());
        assert!(sectors.lock().is_empty());
    }
}
