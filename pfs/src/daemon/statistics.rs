//! What the workers count: requests of each type, how long they took, and how many failed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::proto::request::NAMES;

/// Latencies are counted in microseconds, to two digits, up to this.
const LATENCY_MAX_US: u64 = 600_000_000;

/// What one worker counts. It is the only one who writes; others look.
#[derive(Debug, Default)]
pub(super) struct Counters {
    counts: Mutex<[Option<Box<Count>>; NAMES.len()]>,
    /// Requests under way.
    pub(super) depth: AtomicU64,
    /// How often it took requests, and how many at once at most.
    pub(super) depth_max: AtomicU64,
}

#[derive(Debug)]
struct Count {
    latencies: Histogram<u64>,
    errors: u64,
}

impl Counters {
    /// Counts a request that was answered.
    pub(super) fn count(&self, number: i32, took: Duration, failed: bool) {
        let index = usize::try_from(number).ok().filter(|index| *index < NAMES.len()).unwrap_or(0);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts[index].is_none() {
            // These bounds are fine: where they were not, nothing would ever be counted.
            let Ok(latencies) = Histogram::new_with_bounds(1, LATENCY_MAX_US, 2) else { return };
            counts[index] = Some(Box::new(Count { latencies, errors: 0 }));
        }
        let Some(count) = &mut counts[index] else { return };
        count.latencies.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1));
        count.errors += u64::from(failed);
    }

    /// Says how many requests are under way.
    pub(super) fn set_depth(&self, depth: usize) {
        self.depth.store(depth as u64, Ordering::Relaxed);
        self.depth_max.fetch_max(depth as u64, Ordering::Relaxed);
    }
}

/// Requests of one type, since the daemon started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestCount {
    /// What is asked.
    pub request: String,
    /// How many were answered.
    pub count: u64,
    /// How many of these with an error.
    pub errors: u64,
    /// From when a worker took it until it was answered, in microseconds: half of them took less.
    pub p50_us: u64,
    /// 99 of 100 took less.
    pub p99_us: u64,
    /// All took no more.
    pub max_us: u64,
    /// Mean, in microseconds.
    pub mean_us: f64,
}

/// What all workers counted, of the types that there were.
pub(super) fn sum<'a>(workers: impl Iterator<Item = &'a Counters>) -> Vec<RequestCount> {
    let mut sums: [Option<(Histogram<u64>, u64)>; NAMES.len()] = Default::default();
    for worker in workers {
        let counts = worker.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for (sum, count) in sums.iter_mut().zip(counts.iter()) {
            match (sum, count) {
                (Some((latencies, errors)), Some(count)) => {
                    // Of the same bounds: nothing is lost.
                    let _ = latencies.add(&count.latencies);
                    *errors += count.errors;
                }
                (sum @ None, Some(count)) => *sum = Some((count.latencies.clone(), count.errors)),
                (_, None) => {}
            }
        }
    }
    let named = NAMES.iter().zip(sums);
    named
        .filter_map(|(name, sum)| {
            let (latencies, errors) = sum?;
            Some(RequestCount {
                request: (*name).to_owned(),
                count: latencies.len(),
                errors,
                p50_us: latencies.value_at_quantile(0.5),
                p99_us: latencies.value_at_quantile(0.99),
                max_us: latencies.max(),
                mean_us: latencies.mean(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_summed_by_request() {
        let workers = [Counters::default(), Counters::default()];
        for us in 1..=50 {
            workers[0].count(2, Duration::from_micros(us), false);
            workers[1].count(2, Duration::from_micros(us + 50), us == 1);
        }
        workers[1].count(77, Duration::from_secs(3600), true);
        let sums = sum(workers.iter());
        let named: Vec<_> = sums.iter().map(|sum| (sum.request.as_str(), sum.count, sum.errors)).collect();
        assert_eq!(named, [("other", 1, 1), ("read", 100, 1)]);
        assert_eq!((sums[1].p50_us, sums[1].p99_us, sums[1].max_us), (50, 99, 100));
    }
}
