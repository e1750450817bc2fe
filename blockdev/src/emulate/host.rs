//! Who uses the disk: hosts, by name, and what each of them may do at this moment.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::request::Operation;
use crate::error::{Error, Result};

/// Most hosts of one disk.
pub const HOSTS_MAX: usize = 64;

/// The longest name of a host, in bytes.
pub const HOST_NAME_MAX: usize = 64;

/// The name of a host: letters, digits, `-`, `_` and `.`, and no leading `.`, so that it can be the name of a file and an
/// NBD export.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostName(String);

impl HostName {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for HostName {
    /// Who uses a disk that is not said to be shared.
    fn default() -> Self {
        Self("disk".to_owned())
    }
}

impl FromStr for HostName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let legal = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if text.is_empty() || text.len() > HOST_NAME_MAX || text.starts_with('.') || !text.chars().all(legal) {
            return Err(Error::invalid(format!("{text:?} is no name for a host"))
                .with_hint(format!("1 to {HOST_NAME_MAX} letters, digits, `-`, `_` and `.`, not starting with `.`")));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for HostName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<HostName> for String {
    fn from(name: HostName) -> Self {
        name.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Which of the disk's hosts, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(pub(super) u8);

impl HostId {
    pub(super) fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// What keeps a host from the disk, as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Bars(u8);

impl Bars {
    /// The disk has no power.
    pub(super) const POWER: Self = Self(1);
    /// It may not change anything: the disk is reserved by another, or it was fenced.
    pub(super) const WRITES: Self = Self(2);
    /// Wait: something about the disk is being changed.
    pub(super) const PAUSE: Self = Self(4);

    fn has(self, bar: Self) -> bool {
        self.0 & bar.0 != 0
    }
}

/// What the disk says to somebody who wants to start an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leave {
    Go,
    Wait,
    Refused(Errno),
}

/// The bars before one host. Who wants to change something says so first and looks at the bars then; who lowers a bar looks
/// then who has said so before: of two that come at once, one sees the other.
#[derive(Debug, Default)]
pub(super) struct Gate(AtomicU8);

impl Gate {
    pub(super) fn raise(&self, bar: Bars, on: bool) {
        if on {
            self.0.fetch_or(bar.0, Ordering::SeqCst);
        } else {
            self.0.fetch_and(!bar.0, Ordering::SeqCst);
        }
    }

    pub(super) fn is_barred(&self, bar: Bars) -> bool {
        Bars(self.0.load(Ordering::SeqCst)).has(bar)
    }

    pub(super) fn leave(&self, operation: Operation) -> Leave {
        let bars = Bars(self.0.load(Ordering::SeqCst));
        if bars == Bars::default() {
            Leave::Go
        } else if bars.has(Bars::POWER) {
            Leave::Refused(Errno::EIO)
        } else if bars.has(Bars::WRITES) && operation.changes() {
            // What Linux makes of a reservation conflict (BLK_STS_RESV_CONFLICT).
            Leave::Refused(Errno::EBADE)
        } else if bars.has(Bars::PAUSE) {
            Leave::Wait
        } else {
            Leave::Go
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_plain() {
        for good in ["a", "node-1", "primary.example", "A_b"] {
            assert_eq!(good.parse::<HostName>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", ".a", "a/b", "a b", "é", &"x".repeat(65)] {
            assert!(bad.parse::<HostName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn bars_are_lowered_one_by_one() {
        let gate = Gate::default();
        let leave = |operation| gate.leave(operation);
        assert_eq!(leave(Operation::Write), Leave::Go);
        gate.raise(Bars::WRITES, true);
        assert_eq!((leave(Operation::Read), leave(Operation::Flush)), (Leave::Go, Leave::Go));
        assert_eq!(leave(Operation::Trim), Leave::Refused(Errno::EBADE));
        gate.raise(Bars::POWER, true);
        assert_eq!(leave(Operation::Read), Leave::Refused(Errno::EIO));
        gate.raise(Bars::WRITES, false);
        gate.raise(Bars::PAUSE, true);
        gate.raise(Bars::POWER, false);
        assert_eq!(leave(Operation::Read), Leave::Wait);
        gate.raise(Bars::PAUSE, false);
        assert_eq!(leave(Operation::WriteZeroes), Leave::Go);
    }
}
