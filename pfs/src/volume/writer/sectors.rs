//! Which sectors are being written: one that is written in part is first read, and nobody else may write it meanwhile.

use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The parts of the device that are being written.
#[derive(Debug, Default)]
pub(super) struct Sectors {
    busy: Mutex<Vec<Busy>>,
    freed: Condvar,
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

    /// Waits until all these parts may be written, and takes them at once: nobody waits holding some.
    pub(super) fn hold(&self, parts: Vec<Part>) -> Hold<'_> {
        let mut busy = self.lock();
        while busy.iter().flat_map(|busy| &busy.parts).any(|taken| parts.iter().any(|part| part.excludes(taken))) {
            busy = self.freed.wait(busy).unwrap_or_else(PoisonError::into_inner);
        }
        let id = busy.last().map_or(0, |last| last.id + 1);
        busy.push(Busy { parts, id });
        Hold { sectors: self, id }
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.sectors.lock().retain(|busy| busy.id != self.id);
        self.sectors.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn part(range: Range<u64>, changed: bool) -> Part {
        Part { range, changed }
    }

    #[test]
    fn only_what_is_changed_excludes() {
        let sectors = Sectors::default();
        let _one = sectors.hold(vec![part(0..8192, false)]);
        let _two = sectors.hold(vec![part(4096..12288, false)]);
        let _three = sectors.hold(vec![part(12288..16384, true)]);
        assert!(part(0..4096, true).excludes(&part(0..8192, false)));
        assert!(part(0..4096, false).excludes(&part(0..8192, true)));
        assert!(!part(0..4096, true).excludes(&part(4096..8192, true)));
    }

    #[test]
    fn a_changed_sector_has_one_writer() {
        let (sectors, inside) = (Sectors::default(), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let _hold = sectors.hold(vec![part(0..4096, true), part(8192..12288, true)]);
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(sectors.lock().is_empty());
    }
}
