//! From what was measured to what is reported: rounds of one cell become a [`Cell`].

use super::plan::Spec;
use crate::load::{Measured, Tally};
use crate::report::vocabulary as v;
use crate::report::{Cell, Histogram, Latency, Series, Steadiness, stats};

/// The rounds of one cell, as far as they have come.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    iops: Vec<f64>,
    bandwidth: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    p999: Vec<f64>,
    sync_p50: Vec<f64>,
    cpu: Vec<f64>,
    service: Histogram,
    response: Histogram,
    syncs: Histogram,
    series: Vec<Series>,
    /// The engine that it ran on.
    pub(super) engine: Option<String>,
    /// In an open loop, how many arrivals still waited for a place in the queue when the windows ended.
    pub(super) waiting: u64,
    /// The first error, and how many rounds had one.
    pub(super) error: Option<String>,
    pub(super) errors: u64,
}

fn all(tallies: [&Tally; 2], of: impl Fn(&Tally) -> &Histogram) -> Histogram {
    let mut all = Histogram::new();
    for tally in tallies {
        all.merge(of(tally));
    }
    all
}

#[allow(clippy::cast_precision_loss, reason = "nanoseconds for a report")]
fn ns(duration: std::time::Duration) -> f64 {
    duration.as_nanos() as f64
}

impl Rounds {
    /// Takes in one round. One that was cut short before it measured anything leaves no trace.
    #[allow(clippy::cast_precision_loss, reason = "figures for a report")]
    pub(super) fn add(&mut self, round: u32, spec: &Spec, measured: &Measured) {
        if measured.ios() == 0 {
            return;
        }
        let service = all([&measured.reads, &measured.writes], |tally| &tally.service);
        let response = all([&measured.reads, &measured.writes], |tally| &tally.response);
        // What a client feels.
        let felt = if response.is_empty() { &service } else { &response };
        self.iops.push(measured.iops());
        self.bandwidth.push(measured.iops() * spec.work.block.bytes() as f64);
        for (percentile, samples) in [(50.0, &mut self.p50), (99.0, &mut self.p99), (99.9, &mut self.p999)] {
            // Of too few operations it would be the maximum by another name; then the cell has no such figure.
            samples.push(if felt.tells(percentile) { felt.percentile(percentile) as f64 } else { f64::NAN });
        }
        if !measured.syncs.service.is_empty() {
            self.sync_p50.push(measured.syncs.service.percentile(50.0) as f64);
        }
        self.cpu.extend(measured.cpu_per_io().map(ns));
        self.service.merge(&service);
        self.response.merge(&response);
        self.syncs.merge(&measured.syncs.service);
        if let [first, ..] = &*measured.intervals {
            let step_s = first.length.as_secs_f64();
            let course = |measure: &str, values| Series { measure: measure.to_owned(), round, step_s, values };
            let iops = measured.intervals.iter().map(|interval| Some(interval.iops())).collect();
            let p99 = measured.intervals.iter().map(|interval| interval.p99.map(ns)).collect();
            self.series.push(course(&v::IOPS.name, iops));
            self.series.push(course(&v::P99.name, p99));
        }
        self.engine.get_or_insert_with(|| measured.engine.to_string());
        self.waiting += measured.waiting;
    }

    /// Notes that a round failed.
    pub(super) fn fail(&mut self, error: String) {
        self.errors += 1;
        self.error.get_or_insert(error);
    }

    /// Whether there is anything to report.
    pub(super) fn is_empty(&self) -> bool {
        self.iops.is_empty() && self.errors == 0
    }

    /// The latencies of fdatasync.
    pub(super) fn syncs(&self) -> &Histogram {
        &self.syncs
    }

    /// Whether IOPS had settled, by the sum of all rounds in each interval.
    fn steadiness(&self) -> Steadiness {
        let courses: Vec<&Series> = self.series.iter().filter(|series| series.measure == v::IOPS.name).collect();
        let intervals = courses.iter().map(|course| course.values.len()).min().unwrap_or(0);
        let sum = |interval: usize| courses.iter().filter_map(|course| course.values[interval]).sum::<f64>();
        stats::steadiness(&(0..intervals).map(sum).collect::<Vec<_>>())
    }

    /// The cell as it is reported.
    pub(super) fn into_cell(self, spec: &Spec, target: &str) -> Cell {
        let work = &spec.work;
        let mut cell = Cell::new(spec.group, &spec.name)
            .with_param(&v::TARGET, target)
            .with_param(&v::RW, work.pattern.name())
            .with_param(&v::BLOCK_SIZE, work.block)
            .with_param(&v::QUEUE_DEPTH, work.depth)
            .with_param(&v::JOBS, work.jobs)
            .with_param(&v::ENGINE, self.engine.clone().unwrap_or_else(|| spec.engine.to_string()));
        if work.fdatasync > 0 {
            cell = cell.with_param(&v::FDATASYNC, work.fdatasync);
        }
        if let Some(rate) = work.rate {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be in 0..=RATE_MAX")]
            let rate = rate.round() as u64;
            cell = cell.with_param(&v::RATE, rate);
        }
        cell.steadiness = (!self.iops.is_empty()).then(|| self.steadiness());
        cell.errors = self.errors;
        cell.first_error = self.error;
        cell.series = self.series;
        for (name, histogram) in [("service", self.service), ("response", self.response), ("fdatasync", self.syncs)] {
            if !histogram.is_empty() {
                cell.latencies.push(Latency { name: name.to_owned(), histogram });
            }
        }
        cell.with_figure(&v::IOPS, self.iops)
            .with_figure(&v::BANDWIDTH, self.bandwidth)
            .with_figure(&v::P50, self.p50)
            .with_figure(&v::P99, self.p99)
            .with_figure(&v::P999, self.p999)
            .with_figure(&v::SYNC_P50, self.sync_p50)
            .with_figure(&v::CPU_PER_OP, self.cpu)
    }
}
