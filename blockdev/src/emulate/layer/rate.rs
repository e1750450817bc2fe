//! Rate: how much the disk does in a second at the most.
//!
//! Each limit is a bucket that fills at its rate and from which each request takes; what finds too little in it waits until
//! there is enough. Instead of filling a bucket, the time is kept at which it will be as full as it can be (the generic cell
//! rate algorithm, ITU-T I.371): one number, which all ports change without a lock, and which is exact whenever it is looked at.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::spec::Spec;
use crate::emulate::request::Operation;
use crate::error::{Error, Result};
use crate::units::ByteSize;

/// How much may come at once where nothing is said, in time at the rate: what a timer may be late.
const BURST: Duration = Duration::from_millis(10);

/// A limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Limit {
    what: Unit,
    /// In a second, at least 1.
    per_second: u64,
    /// How much may come at once after a time of silence, in units.
    burst: Option<u64>,
    /// What it is a limit of; nothing is everything that moves or changes data.
    operation: Option<Operation>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Operations,
    Bytes,
}

impl Limit {
    /// So many operations in a second.
    #[must_use]
    pub fn operations(per_second: u64) -> Self {
        Self { what: Unit::Operations, per_second: per_second.max(1), burst: None, operation: None }
    }

    /// So many bytes in a second.
    #[must_use]
    pub fn bandwidth(per_second: ByteSize) -> Self {
        Self { what: Unit::Bytes, per_second: per_second.bytes().max(1), burst: None, operation: None }
    }

    /// For how long a burst lasts that uses everything that was saved, at the rate.
    fn burst(&self) -> Duration {
        self.burst.map_or(BURST, |units| self.time(units))
    }

    /// How long `units` take.
    fn time(&self, units: u64) -> Duration {
        let ns = u128::from(units) * 1_000_000_000 / u128::from(self.per_second);
        Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    }

    fn concerns(&self, operation: Operation) -> bool {
        self.operation.map_or(operation != Operation::Flush, |only| only == operation)
    }
}

impl FromStr for Limit {
    type Err = Error;

    /// `iops=1800`, `bandwidth=100MB`, each with `burst=` (operations or bytes that may come at once) and `op=`.
    fn from_str(text: &str) -> Result<Self> {
        let spec = Spec { what: "rate", text };
        let (mut limit, mut burst) = (None, None);
        let mut operation = None;
        for (key, value) in spec.parts() {
            match key {
                Some("iops") if limit.is_none() => limit = Some((Unit::Operations, spec.value::<u64>(value)?)),
                Some("bandwidth") if limit.is_none() => limit = Some((Unit::Bytes, spec.size(value)?.bytes())),
                Some("iops" | "bandwidth") => return Err(spec.bad("it limits two things; give two rates")),
                Some("burst") => burst = Some(value),
                Some("op") => operation = Some(spec.operation(value)?),
                _ => return Err(spec.bad("its keys are iops or bandwidth, burst and op")),
            }
        }
        let Some((what, per_second)) = limit.filter(|(_, per_second)| *per_second > 0) else {
            return Err(spec.bad("it has neither iops= nor bandwidth=, or nothing of it"));
        };
        let burst = match (burst, what) {
            (None, _) => None,
            (Some(text), Unit::Operations) => Some(spec.value(text)?),
            (Some(text), Unit::Bytes) => Some(spec.size(text)?.bytes()),
        };
        Ok(Self { what, per_second, burst, operation })
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.what {
            Unit::Operations => write!(f, "iops={}", self.per_second)?,
            Unit::Bytes => write!(f, "bandwidth={}", self.per_second)?,
        }
        if let Some(burst) = self.burst {
            write!(f, ",burst={burst}")?;
        }
        self.operation.map_or(Ok(()), |operation| write!(f, ",op={}", operation.name()))
    }
}

impl TryFrom<String> for Limit {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Limit> for String {
    fn from(limit: Limit) -> Self {
        limit.to_string()
    }
}

/// Limits, and how far each is used up.
#[derive(Debug)]
pub(in super::super) struct Rate {
    limits: Vec<(Limit, AtomicU64)>,
    epoch: Instant,
}

impl Rate {
    pub(in super::super) fn new(limits: &[Limit]) -> Self {
        Self { limits: limits.iter().map(|limit| (limit.clone(), AtomicU64::new(0))).collect(), epoch: Instant::now() }
    }

    /// Takes what an operation on `bytes` needs from every limit that concerns it; returns when there is enough of it, if that
    /// is later than `now`.
    pub(in super::super) fn take(&self, operation: Operation, bytes: u64, now: Instant) -> Option<Instant> {
        let since = |instant: Instant| u64::try_from((instant - self.epoch).as_nanos()).unwrap_or(u64::MAX);
        let now_ns = since(now);
        let mut start_ns = now_ns;
        for (limit, full_at) in self.limits.iter().filter(|(limit, _)| limit.concerns(operation)) {
            let cost = match limit.what {
                Unit::Operations => limit.time(1),
                Unit::Bytes => limit.time(bytes),
            };
            let burst = u64::try_from(limit.burst().as_nanos()).unwrap_or(u64::MAX);
            let cost = u64::try_from(cost.as_nanos()).unwrap_or(u64::MAX);
            let after = |full_at: u64| full_at.max(now_ns).saturating_add(cost);
            let before = full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| Some(after(full_at)));
            let after = after(before.unwrap_or(0));
            // It has enough when what it takes leaves the bucket no emptier than it may be.
            start_ns = start_ns.max(after.saturating_sub(burst.max(cost)));
        }
        (start_ns > now_ns).then(|| self.epoch + Duration::from_nanos(start_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_and_written() {
        for text in ["iops=1800", "bandwidth=104857600,burst=1048576", "iops=100,burst=5000,op=write"] {
            assert_eq!(text.parse::<Limit>().unwrap().to_string(), text);
        }
        assert_eq!("bandwidth=100M".parse::<Limit>().unwrap(), Limit::bandwidth(ByteSize::mib(100)));
        for bad in ["", "iops=0", "iops=x", "1800", "iops=1,bandwidth=1", "burst=3", "iops=1,op=rode"] {
            assert!(bad.parse::<Limit>().is_err(), "{bad}");
        }
    }

    /// How many operations start within `seconds` when all are there from the beginning.
    fn started(limits: &[Limit], bytes: u64, seconds: u64) -> usize {
        let rate = Rate::new(limits);
        let now = rate.epoch + Duration::from_secs(5);
        let end = now + Duration::from_secs(seconds);
        (0..1_000_000).take_while(|_| rate.take(Operation::Read, bytes, now).is_none_or(|start| start < end)).count()
    }

    #[test]
    fn as_much_as_the_rate_and_the_burst() {
        // A burst of 10 ms is 18 operations.
        assert_eq!(started(&[Limit::operations(1800)], 4096, 10), 18_000 + 18);
        assert_eq!(started(&["iops=1000,burst=5000".parse().unwrap()], 4096, 2), 6999);
        let both = [Limit::operations(10_000), "bandwidth=4096000,burst=4096".parse().unwrap()];
        assert_eq!(started(&both, 4096, 3), 3001 - 1);
        // What is larger than a burst comes all the same, in its time.
        assert_eq!(started(&["bandwidth=1M,burst=4k".parse().unwrap()], 1 << 20, 10), 10);
        assert_eq!(started(&["iops=1,op=write".parse().unwrap()], 4096, 1), 1_000_000);
    }
}
