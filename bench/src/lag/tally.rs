//! From samples to figures.

use super::samples::{Fate, Sample};
use super::writer::Wrote;
use crate::report::vocabulary as v;
use crate::report::{Cell, Histogram, Latency, Series};

/// Intervals of a course, at most.
const INTERVALS_MAX: u64 = 120;
/// Transactions in one of them, at least: fewer have no percentiles.
const PER_INTERVAL_MIN: f64 = 20.0;

/// The share of what was due that was `sent`, where so many still were `waiting`.
pub(super) fn kept(sent: usize, waiting: usize) -> Option<f64> {
    kept_of(sent, sent + waiting)
}

/// The share of what was `due` that was `done`.
pub(super) fn kept_of(done: usize, due: usize) -> Option<f64> {
    (due > 0).then(|| count(done as u64) / count(due as u64))
}

/// Names of latencies.
pub(super) const LAG: &str = "lag";
pub(super) const INTENDED: &str = "intended";

/// When what is measured was due, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Window {
    /// How many transactions were sent in a second of it.
    pub(super) fn rate(self, wrote: &Wrote) -> Option<f64> {
        let sent = wrote.slots.iter().flatten().filter(|written| (self.start..self.end).contains(&written.sent));
        let length = self.end.saturating_sub(self.start);
        (length > 0).then(|| count(sent.count() as u64) * 1e9 / count(length))
    }
}

/// The samples of one reader, counted.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) lag: Histogram,
    intended: Histogram,
    commit: Histogram,
    resolution: Histogram,
    censored: u64,
    /// Those whose commit was never acknowledged.
    lost: u64,
    /// Those that were acknowledged and not seen.
    pub(super) timed_out: u64,
}

impl Tally {
    /// Counts `samples`, and those that `waited` so long for a connection that they were never sent.
    pub(super) fn new(samples: &[Sample], waited: &[u64]) -> Self {
        let mut tally = Self {
            lag: Histogram::new(),
            intended: Histogram::new(),
            commit: Histogram::new(),
            resolution: Histogram::new(),
            censored: 0,
            lost: 0,
            timed_out: 0,
        };
        for sample in samples {
            if let Some(lag) = sample.lag() {
                tally.lag.record(lag);
            }
            if let Some(resolution) = sample.resolution() {
                tally.resolution.record(resolution);
            }
            tally.censored += u64::from(sample.is_left_censored());
            // Whoever was never seen has waited at least so long: to leave these out would be to forget the worst.
            tally.intended.record(sample.since_intended());
            match (sample.written.acknowledged, sample.fate) {
                (Some(acknowledged), fate) => {
                    tally.commit.record(acknowledged.saturating_sub(sample.written.sent));
                    tally.timed_out += u64::from(matches!(fate, Fate::Unseen { .. }));
                }
                (None, _) => tally.lost += 1,
            }
        }
        waited.iter().for_each(|waited| tally.intended.record(*waited));
        tally
    }

    pub(super) fn into_cell(self, mut cell: Cell, round_trips: &Histogram) -> Cell {
        let percentile = |histogram: &Histogram, percentile: f64| {
            if histogram.tells(percentile) { vec![count(histogram.percentile(percentile))] } else { Vec::new() }
        };
        let max = if self.lag.is_empty() { Vec::new() } else { vec![count(self.lag.max())] };
        let censored =
            if self.lag.is_empty() { Vec::new() } else { vec![count(self.censored) / count(self.lag.count())] };
        cell = cell
            .with_figure(&v::P50, percentile(&self.lag, 50.0))
            .with_figure(&v::P99, percentile(&self.lag, 99.0))
            .with_figure(&v::P999, percentile(&self.lag, 99.9))
            .with_figure(&v::MAX, max)
            .with_figure(&v::INTENDED_P50, percentile(&self.intended, 50.0))
            .with_figure(&v::INTENDED_P99, percentile(&self.intended, 99.0))
            .with_figure(&v::COMMIT_P50, percentile(&self.commit, 50.0))
            .with_figure(&v::POLL_P50, percentile(round_trips, 50.0))
            .with_figure(&v::RESOLUTION, percentile(&self.resolution, 50.0))
            .with_figure(&v::CENSORED, censored)
            .with_figure(&v::LOST, vec![count(self.lost)])
            .with_figure(&v::TIMED_OUT, vec![count(self.timed_out)]);
        let latencies =
            [(LAG, self.lag), (INTENDED, self.intended), ("commit", self.commit), ("poll", round_trips.clone())];
        for (name, histogram) in latencies {
            if !histogram.is_empty() {
                cell.latencies.push(Latency { name: name.to_owned(), histogram });
            }
        }
        cell
    }
}

/// The median and the 99th percentile of the lag over the time at which transactions were due.
pub(super) fn courses(samples: &[Sample], window: Window, rate: f64) -> Vec<Series> {
    let length = window.end.saturating_sub(window.start);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time that a run can take")]
    let enough = (PER_INTERVAL_MIN / rate * 1e9) as u64;
    let step = (length / INTERVALS_MAX).max(100_000_000).max(enough);
    let intervals = usize::try_from(length.div_ceil(step)).unwrap_or(0);
    let mut lags: Vec<Vec<u64>> = vec![Vec::new(); intervals];
    for sample in samples {
        let interval = usize::try_from((sample.written.intended - window.start) / step).unwrap_or(usize::MAX);
        if let (Some(lags), Some(lag)) = (lags.get_mut(interval), sample.lag()) {
            lags.push(lag);
        }
    }
    lags.iter_mut().for_each(|lags| lags.sort_unstable());
    [(&v::P50, 50), (&v::P99, 99)]
        .map(|(measure, percentile)| Series {
            measure: measure.name.to_string(),
            round: 0,
            step_s: count(step) / 1e9,
            // The nearest rank.
            values: lags
                .iter()
                .map(|lags| lags.get((lags.len() * percentile).div_ceil(100).max(1) - 1))
                .map(|lag| lag.map(|lag| count(*lag)))
                .collect(),
        })
        .into()
}

#[allow(clippy::cast_precision_loss, reason = "a figure for a report")]
pub(super) fn count(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::super::samples::Written;
    use super::*;

    fn sample(intended: u64, lag: u64) -> Sample {
        let written = Written { intended, sent: intended, acknowledged: Some(intended + 1000) };
        let seen = intended + 1000 + lag;
        Sample { written, fate: Fate::Seen { missed: seen - 10, seen } }
    }

    #[test]
    fn what_is_not_seen_counts_with_the_time_it_was_waited_for() {
        let unseen = Sample { fate: Fate::Unseen { until: 9_000_000 }, ..sample(0, 5) };
        let lost = Sample { written: Written { acknowledged: None, ..unseen.written }, ..unseen };
        let tally = Tally::new(&[sample(0, 500), unseen, lost], &[7_000_000]);
        assert_eq!((tally.lag.count(), tally.intended.count(), tally.commit.count()), (1, 4, 2));
        assert_eq!((tally.lost, tally.timed_out, tally.censored), (1, 1, 0));
        assert_eq!(tally.intended.max() / 1000, 9003);
        let cell = tally.into_cell(Cell::new("", ""), &Histogram::new());
        assert_eq!((cell.figures["lost"].value, cell.figures["timed_out"].value), (1.0, 1.0));
        assert!(!cell.figures.contains_key("p99"));
    }

    #[test]
    fn what_was_kept_is_a_share_of_what_was_due() {
        assert_eq!((kept(3, 1), kept(100, 0), kept(0, 0)), (Some(0.75), Some(1.0), None));
    }

    #[test]
    fn a_rate_is_what_was_sent_while_it_was_measured() {
        let at = |sent| Written { intended: 0, sent, acknowledged: None };
        let ms = 1_000_000;
        let slots = vec![vec![at(99 * ms), at(100 * ms), at(350 * ms)], vec![at(599 * ms), at(600 * ms)]];
        let wrote = Wrote { slots, ..Wrote::default() };
        assert_eq!(Window { start: 100 * ms, end: 600 * ms }.rate(&wrote), Some(6.0));
        assert_eq!(Window { start: 7, end: 7 }.rate(&wrote), None);
    }

    #[test]
    fn a_course_has_a_value_for_each_interval_in_which_something_was_due() {
        let second = 1_000_000_000;
        let mut samples: Vec<Sample> = (0..100).map(|n| sample(second + n, 1000 + n)).collect();
        samples.push(sample(3 * second + second / 2, 7));
        let courses = courses(&samples, Window { start: second, end: 4 * second }, 20.0);
        assert_eq!(courses.len(), 2);
        assert_eq!((courses[0].measure.as_str(), courses[0].step_s), ("p50", 1.0));
        assert_eq!(courses[0].values, [Some(1049.0), None, Some(7.0)]);
        assert_eq!(courses[1].values, [Some(1098.0), None, Some(7.0)]);
    }
}
