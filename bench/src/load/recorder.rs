//! What happened, kept cheaply while it happens: one histogram per kind of operation and interval.
//!
//! The hot path is one increment in a histogram. When an interval ends, its histogram is folded into a short list of
//! counted values and cleared; totals and percentiles over several jobs are made of these lists afterwards. Which kinds
//! there are, the load knows; here they are numbers from 0.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Interval, Tally};
use crate::report::Histogram;

/// The measured window of a run, in nanoseconds since its start, and how it is cut into intervals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) interval: u64,
}

impl Window {
    /// A window of `runtime` after `warmup`, in at most [`INTERVALS_MAX`](Self::INTERVALS_MAX) intervals of at least 100 ms.
    pub(crate) fn new(warmup: Duration, runtime: Duration) -> Self {
        let start = nanos(warmup);
        let interval = (nanos(runtime) / Self::INTERVALS_MAX).max(100_000_000);
        Self { start, end: start + nanos(runtime), interval }
    }

    const INTERVALS_MAX: u64 = 120;
}

/// A duration in nanoseconds; 584 years are enough.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A histogram folded to the values that occur, each with its count.
pub(crate) type Counted = Vec<(u64, u64)>;

/// What one job did in one interval, by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) service: Vec<Counted>,
    /// Empty in a closed loop.
    pub(crate) response: Vec<Counted>,
}

/// Records one job.
#[derive(Debug)]
pub(crate) struct Recorder {
    window: Window,
    service: Vec<Histogram>,
    /// Empty in a closed loop, where nobody waits for an arrival.
    response: Vec<Histogram>,
    inside: bool,
    /// When the next interval begins or the window ends.
    boundary: u64,
    samples: Vec<Sample>,
}

impl Recorder {
    /// A recorder of so many kinds of what falls into `window`; with `responses`, also of the time since each intended
    /// start.
    pub(crate) fn new(window: Window, kinds: usize, responses: bool) -> Self {
        let histograms = |count| (0..count).map(|_| Histogram::new()).collect();
        Self {
            window,
            service: histograms(kinds),
            response: histograms(if responses { kinds } else { 0 }),
            inside: false,
            boundary: window.start,
            samples: Vec::new(),
        }
    }

    /// When the window ends.
    pub(crate) fn end(&self) -> u64 {
        self.window.end
    }

    /// Says what time it is; to be called before what completed by then is recorded. False once the window is over.
    #[inline]
    pub(crate) fn tick(&mut self, now: u64) -> bool {
        if now >= self.boundary {
            self.turn(now);
        }
        now < self.window.end
    }

    /// Ends every interval that is over at `now`, and begins the next.
    #[cold]
    fn turn(&mut self, now: u64) {
        while now >= self.boundary {
            if self.inside {
                self.fold();
            }
            self.inside = self.boundary < self.window.end;
            self.boundary =
                if self.inside { self.window.end.min(self.boundary + self.window.interval) } else { u64::MAX };
        }
    }

    fn fold(&mut self) {
        let fold = |histogram: &mut Histogram| {
            let counted: Counted = histogram.buckets().collect();
            if !counted.is_empty() {
                histogram.clear();
            }
            counted
        };
        let service = self.service.iter_mut().map(fold).collect();
        let response = self.response.iter_mut().map(fold).collect();
        self.samples.push(Sample { service, response });
    }

    /// An operation of `kind` completed, so many nanoseconds after it was submitted.
    #[inline]
    pub(crate) fn service(&mut self, kind: usize, nanos: u64) {
        if self.inside {
            self.service[kind].record(nanos);
        }
    }

    /// An operation of `kind` completed, so many nanoseconds after it was meant to start.
    #[inline]
    pub(crate) fn response(&mut self, kind: usize, nanos: u64) {
        if self.inside
            && let Some(response) = self.response.get_mut(kind)
        {
            response.record(nanos);
        }
    }

    /// The intervals of the window up to `now`. The last one may be cut short.
    pub(crate) fn finish(mut self, now: u64) -> Vec<Sample> {
        self.tick(now);
        if self.inside {
            self.fold();
        }
        self.samples
    }
}

/// Puts together what several jobs recorded in a window that lasted for `length`: a tally of each of `kinds`, and the
/// intervals of those that `counts` as operations.
pub(crate) fn gather(
    window: Window,
    length: u64,
    kinds: usize,
    jobs: &[Vec<Sample>],
    counts: impl Fn(usize) -> bool,
) -> (Vec<Tally>, Vec<Interval>) {
    let mut tallies: Vec<Tally> = (0..kinds).map(|_| Tally::new()).collect();
    let mut intervals = Vec::new();
    let count = jobs.iter().map(Vec::len).max().unwrap_or(0);
    for (index, start) in (0..count).zip((0..length).step_by(usize::try_from(window.interval).unwrap_or(usize::MAX))) {
        let mut ios = 0;
        let mut latency = Histogram::new();
        for sample in jobs.iter().filter_map(|samples| samples.get(index)) {
            for (kind, tally) in tallies.iter_mut().enumerate() {
                let none = Counted::new();
                let service = sample.service.get(kind).unwrap_or(&none);
                let response = sample.response.get(kind).unwrap_or(&none);
                merge(&mut tally.service, service);
                merge(&mut tally.response, response);
                if counts(kind) {
                    ios += service.iter().map(|(_, count)| count).sum::<u64>();
                    merge(&mut latency, if response.is_empty() { service } else { response });
                }
            }
        }
        intervals.push(Interval {
            start: Duration::from_nanos(start),
            length: Duration::from_nanos(window.interval.min(length - start)),
            ios,
            p99: (!latency.is_empty()).then(|| Duration::from_nanos(latency.percentile(99.0))),
        });
    }
    (tallies, intervals)
}

fn merge(histogram: &mut Histogram, counted: &Counted) {
    for (value, count) in counted {
        histogram.record_n(*value, *count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: usize = 0;
    const WRITE: usize = 1;
    const KINDS: usize = 2;

    const WINDOW: Window = Window { start: 1000, end: 1250, interval: 100 };

    fn counts(samples: &[Sample], kind: usize) -> Vec<u64> {
        samples.iter().map(|sample| sample.service[kind].iter().map(|(_, count)| count).sum()).collect()
    }

    #[test]
    fn warm_up_is_left_out_and_the_last_interval_may_be_short() {
        let mut recorder = Recorder::new(WINDOW, KINDS, false);
        for now in (900..1400).step_by(10) {
            let going = recorder.tick(now);
            assert_eq!(going, now < 1250);
            recorder.service(READ, 7);
        }
        let samples = recorder.finish(1400);
        assert_eq!(counts(&samples, READ), [10, 10, 5]);
        assert_eq!(counts(&samples, WRITE), [0, 0, 0]);
    }

    #[test]
    fn a_stall_shows_as_intervals_without_operations() {
        let mut recorder = Recorder::new(WINDOW, KINDS, false);
        recorder.tick(1000);
        recorder.service(WRITE, 7);
        recorder.tick(1210);
        recorder.service(WRITE, 210);
        let samples = recorder.finish(1250);
        assert_eq!(counts(&samples, WRITE), [1, 0, 1]);
        assert_eq!(samples[2].service[WRITE], [(210, 1)]);
    }

    #[test]
    fn what_is_cut_short_keeps_what_was_measured() {
        let mut recorder = Recorder::new(WINDOW, KINDS, true);
        assert!(recorder.tick(1010));
        recorder.service(READ, 5);
        recorder.response(READ, 9);
        let samples = recorder.finish(1020);
        assert_eq!(samples.len(), 1);
        assert_eq!(samples[0].response[READ], [(9, 1)]);

        let mut before = Recorder::new(WINDOW, KINDS, false);
        before.tick(10);
        assert!(before.finish(20).is_empty());
    }
}
