//! How much was asked of the disk, by whom, and how long it took: counted where it happens, added up when somebody asks.
//!
//! Each port counts for itself, so counting is a handful of stores to memory that no other thread writes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::request::{Operation, Outcome};

/// Parts of a doubling: latencies are told apart by 1/16, so a percentile is at most 6 % off.
const PARTS: usize = 16;
/// Latencies are counted in units of 2^6 ns; what is shorter counts as that.
const UNIT_BITS: u32 = 6;
/// Doublings above the first; up to 2^(6 + 4 + 29) ns, nine minutes. What is longer counts as that.
const DOUBLINGS: usize = 29;
const BUCKETS: usize = PARTS * (DOUBLINGS + 1);

/// What is counted of one sort of operation. Written by one thread, read by any.
#[derive(Debug)]
struct Counter {
    operations: AtomicU64,
    errors: AtomicU64,
    bytes: AtomicU64,
    latencies: [AtomicU64; BUCKETS],
}

impl Default for Counter {
    fn default() -> Self {
        Self {
            operations: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            latencies: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }
}

impl Counter {
    fn add_latencies(&self, sums: &mut BTreeMap<u64, u64>) {
        for (bucket, count) in self.latencies.iter().enumerate() {
            let count = count.load(Relaxed);
            if count > 0 {
                let ns = u64::try_from(latency_of(bucket).as_nanos()).unwrap_or(u64::MAX);
                *sums.entry(ns).or_default() += count;
            }
        }
    }
}

fn bucket_of(latency: Duration) -> usize {
    let units = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX) >> UNIT_BITS;
    let Some(top) = units.checked_ilog2().filter(|top| *top >= PARTS.ilog2()) else {
        #[allow(clippy::cast_possible_truncation, reason = "less than 16")]
        return units as usize;
    };
    let doubling = (top - PARTS.ilog2()) as usize;
    #[allow(clippy::cast_possible_truncation, reason = "less than 32")]
    let part = (units >> doubling) as usize - PARTS;
    (PARTS * (doubling + 1) + part).min(BUCKETS - 1)
}

/// The middle of a bucket.
fn latency_of(bucket: usize) -> Duration {
    let (doubling, part) = (bucket / PARTS, bucket % PARTS);
    let (low, width) = if doubling == 0 {
        (part as u64, 1)
    } else {
        (((PARTS + part) as u64) << (doubling - 1), 1u64 << (doubling - 1))
    };
    Duration::from_nanos((low << UNIT_BITS) + ((width << UNIT_BITS) >> 1))
}

/// Adds without locking the bus: there is one writer.
fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(more), Relaxed);
}

/// What one port counts for one host.
#[derive(Debug, Default)]
pub(super) struct Counters([Counter; Operation::ALL.len()]);

impl Counters {
    pub(super) fn count(&self, operation: Operation, bytes: u64, outcome: Outcome, latency: Duration) {
        let counter = &self.0[operation as usize];
        add(&counter.operations, 1);
        if outcome.is_ok() {
            add(&counter.bytes, bytes);
        } else {
            add(&counter.errors, 1);
        }
        add(&counter.latencies[bucket_of(latency)], 1);
    }
}

/// The layers that a request can wait in, or be changed by, in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerName {
    /// It waits for a place.
    QueueDepth,
    /// It waits for its turn.
    Rate,
    /// It is stuck.
    Faults,
    /// Its answer is held back.
    Latency,
    /// It is written down.
    Record,
    /// It waits for room in the volatile cache, or until that is flushed.
    Cache,
}

impl LayerName {
    /// All of them, in the order of the layers.
    pub const ALL: [Self; 6] = [Self::QueueDepth, Self::Rate, Self::Faults, Self::Latency, Self::Record, Self::Cache];
}

/// What one port counts for the layers.
#[derive(Debug, Default)]
pub(super) struct LayerCounters([Counter; LayerName::ALL.len()]);

impl LayerCounters {
    /// Counts a request about `bytes` that was in a layer for so long.
    pub(super) fn count(&self, layer: LayerName, bytes: u64, waited: Duration) {
        let counter = &self.0[layer as usize];
        add(&counter.operations, 1);
        add(&counter.bytes, bytes);
        add(&counter.latencies[bucket_of(waited)], 1);
    }
}

/// What was counted of a layer since the disk was opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerCount {
    /// Which.
    pub layer: LayerName,
    /// How many requests it kept waiting, or changed.
    pub requests: u64,
    /// How many bytes those were about.
    pub bytes: u64,
    /// How many it kept for how long, in nanoseconds, within 3 %.
    pub waits: BTreeMap<u64, u64>,
}

impl LayerCount {
    /// Nothing, of each layer.
    pub(super) fn none() -> Vec<Self> {
        let none = |layer| Self { layer, requests: 0, bytes: 0, waits: BTreeMap::new() };
        LayerName::ALL.map(none).into()
    }

    /// Adds to `counts`, of each layer, what a port counted.
    pub(super) fn add(counts: &mut [Self], counters: &LayerCounters) {
        for (count, counter) in counts.iter_mut().zip(&counters.0) {
            count.requests += counter.operations.load(Relaxed);
            count.bytes += counter.bytes.load(Relaxed);
            counter.add_latencies(&mut count.waits);
        }
    }

    /// How many came since `before`, how many bytes they were about, and what the median and 99 of 100 waited at most, in
    /// nanoseconds.
    #[must_use]
    pub fn since(&self, before: &Self) -> (u64, u64, Option<u64>, Option<u64>) {
        let waits = difference(&self.waits, &before.waits);
        let requests = self.requests.saturating_sub(before.requests);
        (requests, self.bytes.saturating_sub(before.bytes), percentile(&waits, 0.50), percentile(&waits, 0.99))
    }
}

fn difference(now: &BTreeMap<u64, u64>, before: &BTreeMap<u64, u64>) -> BTreeMap<u64, u64> {
    let of = |(ns, count): (&u64, &u64)| (*ns, count.saturating_sub(before.get(ns).copied().unwrap_or(0)));
    now.iter().map(of).collect()
}

/// What was counted of the operations of one sort.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Of which sort.
    pub operation: Operation,
    /// How many were answered.
    pub operations: u64,
    /// How many of them with an error.
    pub errors: u64,
    /// How many bytes those without an error were about.
    pub bytes: u64,
    /// How many took how long, in nanoseconds, within 3 %.
    pub latencies: BTreeMap<u64, u64>,
}

/// What was counted of a host since the disk was opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Counts(Vec<Count>);

impl Default for Counts {
    fn default() -> Self {
        let none = |operation| Count { operation, operations: 0, errors: 0, bytes: 0, latencies: BTreeMap::new() };
        Self(Operation::ALL.map(none).into())
    }
}

impl Counts {
    pub(super) fn add(&mut self, counters: &Counters) {
        for (sum, counter) in self.0.iter_mut().zip(&counters.0) {
            sum.operations += counter.operations.load(Relaxed);
            sum.errors += counter.errors.load(Relaxed);
            sum.bytes += counter.bytes.load(Relaxed);
            counter.add_latencies(&mut sum.latencies);
        }
    }

    /// What came since `before`, by operation.
    #[must_use]
    pub fn since(&self, before: &Self) -> Vec<Activity> {
        let since = |now: &Count| {
            let none = Self::default();
            let of = |counts: &'_ Self| counts.0.iter().find(|count| count.operation == now.operation).cloned();
            let before = of(before).or_else(|| of(&none));
            let Some(before) = before else { return Activity::of(now.operation) };
            let latencies = difference(&now.latencies, &before.latencies);
            Activity {
                operation: now.operation,
                operations: now.operations.saturating_sub(before.operations),
                errors: now.errors.saturating_sub(before.errors),
                bytes: now.bytes.saturating_sub(before.bytes),
                p50_ns: percentile(&latencies, 0.50),
                p99_ns: percentile(&latencies, 0.99),
                p999_ns: percentile(&latencies, 0.999),
            }
        };
        self.0.iter().map(since).collect()
    }
}

fn percentile(latencies: &BTreeMap<u64, u64>, share: f64) -> Option<u64> {
    let total: u64 = latencies.values().sum();
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank")]
    let rank = ((total as f64 * share).ceil() as u64).max(1);
    let mut seen = 0;
    latencies
        .iter()
        .find(|(_, count)| {
            seen += **count;
            seen >= rank
        })
        .map(|(ns, _)| *ns)
}

/// What a host asked of the disk in some time, of one sort.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activity {
    /// Of which sort.
    pub operation: Operation,
    /// How many were answered.
    pub operations: u64,
    /// How many of them with an error.
    pub errors: u64,
    /// How many bytes those without an error were about.
    pub bytes: u64,
    /// Half of them took at most so long, in nanoseconds. Nothing where there were none.
    pub p50_ns: Option<u64>,
    /// 99 of 100 took at most so long.
    pub p99_ns: Option<u64>,
    /// 999 of 1,000 took at most so long.
    pub p999_ns: Option<u64>,
}

impl Activity {
    /// None.
    fn of(operation: Operation) -> Self {
        Self { operation, operations: 0, errors: 0, bytes: 0, p50_ns: None, p99_ns: None, p999_ns: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_latency_is_told_within_six_percent(ns in 1024u64..300_000_000_000) {
            let told = latency_of(bucket_of(Duration::from_nanos(ns))).as_nanos() as f64;
            prop_assert!((told / ns as f64 - 1.0).abs() < 0.0625, "{ns} told as {told}");
        }
    }

    #[test]
    fn what_is_counted_is_added_up() {
        let counters = Counters::default();
        let mut before = Counts::default();
        before.add(&counters);
        for index in 1..=100 {
            counters.count(Operation::Write, 4096, Ok(()), Duration::from_micros(index * 10));
        }
        counters.count(Operation::Write, 4096, Err(nix::errno::Errno::EIO), Duration::from_secs(3600));
        let mut now = Counts::default();
        now.add(&counters);
        let activity = now.since(&before);
        let write = &activity[Operation::Write as usize];
        assert_eq!((write.operations, write.errors, write.bytes), (101, 1, 409_600));
        let p50 = write.p50_ns.unwrap();
        assert!((470_000..=540_000).contains(&p50), "{p50}");
        assert_eq!(activity[Operation::Read as usize].p50_ns, None);
        assert_eq!(now.since(&now)[Operation::Write as usize].p99_ns, None);
        assert!(latency_of(bucket_of(Duration::MAX)) > Duration::from_secs(500));
    }
}
