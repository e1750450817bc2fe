//! What happened, kept cheaply while it happens: one histogram per kind of operation and interval.
//!
//! The hot path is one increment in a histogram. When an interval ends, its histogram is folded into a short list of
//! counted values and cleared; totals and percentiles over several jobs are made of these lists afterwards.

use std::time::Duration;

use super::offsets::Kind;
use crate::report::Histogram;

/// How many kinds of operation there are.
const KINDS: usize = 3;

/// The measured window of a run, in nanoseconds since its start, and how it is cut into intervals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) interval: u64,
}

impl Window {
    /// A window of `runtime` after `warmup`, in at most [`INTERVALS_MAX`](Self::INTERVALS_MAX) intervals of at least 100 ms.
    pub(super) fn new(warmup: Duration, runtime: Duration) -> Self {
        let start = nanos(warmup);
        let interval = (nanos(runtime) / Self::INTERVALS_MAX).max(100_000_000);
        Self { start, end: start + nanos(runtime), interval }
    }

    const INTERVALS_MAX: u64 = 120;
}

/// A duration in nanoseconds; 584 years are enough.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A histogram folded to the values that occur, each with its count.
pub(super) type Counted = Vec<(u64, u64)>;

/// What one job did in one interval, by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) service: [Counted; KINDS],
    pub(super) response: [Counted; KINDS],
}

/// Records one job.
#[derive(Debug)]
pub(super) struct Recorder {
    window: Window,
    service: [Histogram; KINDS],
    /// Empty in a closed loop, where nobody waits for an arrival.
    response: Option<[Histogram; KINDS]>,
    inside: bool,
    /// When the next interval begins or the window ends.
    boundary: u64,
    samples: Vec<Sample>,
}

impl Recorder {
    /// A recorder of what falls into `window`; with `responses`, also of the time since each intended start.
    pub(super) fn new(window: Window, responses: bool) -> Self {
        Self {
            window,
            service: <[Histogram; KINDS]>::default(),
            response: responses.then(<[Histogram; KINDS]>::default),
            inside: false,
            boundary: window.start,
            samples: Vec::new(),
        }
    }

    /// When the window ends.
    pub(super) fn end(&self) -> u64 {
        self.window.end
    }

    /// Says what time it is; to be called before what completed by then is recorded. False once the window is over.
    #[inline]
    pub(super) fn tick(&mut self, now: u64) -> bool {
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
        self.samples.push(Sample {
            service: self.service.each_mut().map(fold),
            response: self.response.as_mut().map(|kinds| kinds.each_mut().map(fold)).unwrap_or_default(),
        });
    }

    /// An operation of `kind` completed, so many nanoseconds after it was submitted.
    #[inline]
    pub(super) fn service(&mut self, kind: Kind, nanos: u64) {
        if self.inside {
            self.service[kind as usize].record(nanos);
        }
    }

    /// An operation of `kind` completed, so many nanoseconds after it was meant to start.
    #[inline]
    pub(super) fn response(&mut self, kind: Kind, nanos: u64) {
        if let Some(response) = &mut self.response
            && self.inside
        {
            response[kind as usize].record(nanos);
        }
    }

    /// The intervals of the window up to `now`. The last one may be cut short.
    pub(super) fn finish(mut self, now: u64) -> Vec<Sample> {
        self.tick(now);
        if self.inside {
            self.fold();
        }
        self.samples
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Window = Window { start: 1000, end: 1250, interval: 100 };

    fn counts(samples: &[Sample], kind: Kind) -> Vec<u64> {
        samples.iter().map(|sample| sample.service[kind as usize].iter().map(|(_, count)| count).sum()).collect()
    }

    #[test]
    fn warm_up_is_left_out_and_the_last_interval_may_be_short() {
        let mut recorder = Recorder::new(WINDOW, false);
        for now in (900..1400).step_by(10) {
            let going = recorder.tick(now);
            assert_eq!(going, now < 1250);
            recorder.service(Kind::Read, 7);
        }
        let samples = recorder.finish(1400);
        assert_eq!(counts(&samples, Kind::Read), [10, 10, 5]);
        assert_eq!(counts(&samples, Kind::Write), [0, 0, 0]);
    }

    #[test]
    fn a_stall_shows_as_intervals_without_operations() {
        let mut recorder = Recorder::new(WINDOW, false);
        recorder.tick(1000);
        recorder.service(Kind::Write, 7);
        recorder.tick(1210);
        recorder.service(Kind::Write, 210);
        let samples = recorder.finish(1250);
        assert_eq!(counts(&samples, Kind::Write), [1, 0, 1]);
        assert_eq!(samples[2].service[Kind::Write as usize], [(210, 1)]);
    }

    #[test]
    fn what_is_cut_short_keeps_what_was_measured() {
        let mut recorder = Recorder::new(WINDOW, true);
        assert!(recorder.tick(1010));
        recorder.service(Kind::Read, 5);
        recorder.response(Kind::Read, 9);
        let samples = recorder.finish(1020);
        assert_eq!(samples.len(), 1);
        assert_eq!(samples[0].response[Kind::Read as usize], [(9, 1)]);

        let mut before = Recorder::new(WINDOW, false);
        before.tick(10);
        assert!(before.finish(20).is_empty());
    }
}
