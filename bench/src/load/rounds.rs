//! The rounds of one load, as they become figures: what every experiment that runs loads reports of them.

use std::time::Duration;

use blockdev::ByteSize;

use super::{Interval, Tally, nanos};
use crate::report::vocabulary as v;
use crate::report::{Cell, Histogram, Latency, Series, Steadiness, stats};

/// One round, all kinds of operation together.
#[derive(Debug)]
pub(crate) struct Lap<'a> {
    window: Duration,
    service: Histogram,
    response: Histogram,
    intervals: &'a [Interval],
}

impl<'a> Lap<'a> {
    /// What the operations in `tallies` did in a window.
    pub(crate) fn of(
        window: Duration,
        tallies: impl IntoIterator<Item = &'a Tally>,
        intervals: &'a [Interval],
    ) -> Self {
        let mut lap = Self { window, service: Histogram::new(), response: Histogram::new(), intervals };
        for tally in tallies {
            lap.service.merge(&tally.service);
            lap.response.merge(&tally.response);
        }
        lap
    }

    #[allow(clippy::cast_precision_loss, reason = "a rate")]
    fn iops(&self) -> f64 {
        if self.window.is_zero() { 0.0 } else { self.service.count() as f64 / self.window.as_secs_f64() }
    }
}

/// The rounds of one load, as far as they have come.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rounds {
    iops: Vec<f64>,
    bandwidth: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    p999: Vec<f64>,
    service: Histogram,
    response: Histogram,
    series: Vec<Series>,
}

impl Rounds {
    /// Takes in round number `round`, of operations of `block` bytes each. It must have measured something.
    #[allow(clippy::cast_precision_loss, reason = "figures for a report")]
    pub(crate) fn add(&mut self, round: u32, block: ByteSize, lap: &Lap<'_>) {
        // What a client feels.
        let felt = if lap.response.is_empty() { &lap.service } else { &lap.response };
        self.iops.push(lap.iops());
        self.bandwidth.push(lap.iops() * block.bytes() as f64);
        for (percentile, samples) in [(50.0, &mut self.p50), (99.0, &mut self.p99), (99.9, &mut self.p999)] {
            // Of too few operations it would be the maximum by another name; then the cell has no such figure.
            samples.push(if felt.tells(percentile) { felt.percentile(percentile) as f64 } else { f64::NAN });
        }
        self.service.merge(&lap.service);
        self.response.merge(&lap.response);
        if let [first, ..] = lap.intervals {
            let step_s = first.length.as_secs_f64();
            let course = |measure: &str, values| Series { measure: measure.to_owned(), round, step_s, values };
            let iops = lap.intervals.iter().map(|interval| Some(interval.iops())).collect();
            let p99 = lap.intervals.iter().map(|interval| interval.p99.map(|p99| nanos(p99) as f64)).collect();
            self.series.push(course(&v::IOPS.name, iops));
            self.series.push(course(&v::P99.name, p99));
        }
    }

    /// Whether nothing was measured.
    pub(crate) fn is_empty(&self) -> bool {
        self.iops.is_empty()
    }

    /// Whether IOPS had settled, by the sum of all rounds in each interval.
    fn steadiness(&self) -> Steadiness {
        let courses: Vec<&Series> = self.series.iter().filter(|series| series.measure == v::IOPS.name).collect();
        let intervals = courses.iter().map(|course| course.values.len()).min().unwrap_or(0);
        let sum = |interval: usize| courses.iter().filter_map(|course| course.values[interval]).sum::<f64>();
        stats::steadiness(&(0..intervals).map(sum).collect::<Vec<_>>())
    }

    /// `cell` with all that they come to. Operations that move no data have no bandwidth.
    pub(crate) fn into_cell(self, mut cell: Cell) -> Cell {
        cell.steadiness = (!self.iops.is_empty()).then(|| self.steadiness());
        cell.series = self.series;
        for (name, histogram) in [("service", self.service), ("response", self.response)] {
            if !histogram.is_empty() {
                cell.latencies.push(Latency { name: name.to_owned(), histogram });
            }
        }
        let moves_data = self.bandwidth.iter().any(|bandwidth| *bandwidth > 0.0);
        cell.with_figure(&v::IOPS, self.iops)
            .with_figure(&v::BANDWIDTH, if moves_data { self.bandwidth } else { Vec::new() })
            .with_figure(&v::P50, self.p50)
            .with_figure(&v::P99, self.p99)
            .with_figure(&v::P999, self.p999)
    }
}
