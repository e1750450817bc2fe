//! Flushes of the device, shared by those who wait for one: who comes while one is under way waits for the next.

use blockdev::{Error, Result};
use nix::errno::Errno;

/// How many there were, and who waits for which: they are numbered.
#[derive(Debug, Default)]
pub(super) struct Flushes {
    /// The last that somebody waits for.
    wanted: u64,
    /// The last that was begun.
    begun: u64,
    under_way: bool,
    /// The last that failed and all that were wanted by then, whose writes it may have lost; and why.
    failed: Option<(std::ops::RangeInclusive<u64>, String, Errno)>,
}

impl Flushes {
    /// The one to wait for, for who has written something by now.
    pub(super) fn next(&mut self) -> u64 {
        self.wanted = self.begun + 1;
        self.wanted
    }

    /// Whether one should begin.
    pub(super) fn is_due(&self) -> bool {
        !self.under_way && self.wanted > self.begun
    }

    pub(super) fn begin(&mut self) {
        (self.begun, self.under_way) = (self.begun + 1, true);
    }

    pub(super) fn end(&mut self, outcome: Result<()>) {
        self.under_way = false;
        if let Err(error) = outcome {
            let errno = error.errno().map_or(Errno::EIO, Errno::from_raw);
            self.failed = Some((self.begun..=self.wanted, error.to_string(), errno));
            // Who waits for the next has been told.
            self.begun = self.wanted;
        }
    }

    /// Whether one is over.
    ///
    /// # Errors
    /// When it failed.
    pub(super) fn has(&self, number: u64) -> Result<bool> {
        match &self.failed {
            Some((lost, why, errno)) if lost.contains(&number) => Err(Error::io(why, *errno)),
            _ => Ok(self.begun > number || (self.begun == number && !self.under_way)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_while_one_is_under_way_waits_for_the_next() {
        let mut flushes = Flushes::default();
        assert!(!flushes.is_due());
        let (one, two) = (flushes.next(), flushes.next());
        assert_eq!(one, two);
        assert!(flushes.is_due());
        flushes.begin();
        let late = flushes.next();
        assert!(late > one && !flushes.is_due() && !flushes.has(one).unwrap());
        flushes.end(Ok(()));
        assert!(flushes.has(one).unwrap() && !flushes.has(late).unwrap() && flushes.is_due());
        flushes.begin();
        flushes.end(Ok(()));
        assert!(flushes.has(late).unwrap() && !flushes.is_due());
    }

    #[test]
    fn one_that_fails_fails_all_who_wait() {
        let mut flushes = Flushes::default();
        let before = flushes.next();
        flushes.begin();
        flushes.end(Ok(()));
        let one = flushes.next();
        flushes.begin();
        let late = flushes.next();
        flushes.end(Err(Error::io("fdatasync failed", Errno::ENOSPC)));
        assert!(flushes.has(before).unwrap());
        for number in [one, late] {
            let error = flushes.has(number).unwrap_err();
            assert_eq!((error.to_string().as_str(), error.errno()), ("fdatasync failed", Some(libc::ENOSPC)));
        }
        assert!(!flushes.is_due());
        let after = flushes.next();
        flushes.begin();
        flushes.end(Ok(()));
        assert!(flushes.has(after).unwrap());
    }
}
