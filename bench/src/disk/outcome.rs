//! From what was measured to what is reported: rounds of one cell become a [`Cell`].

use super::plan::Spec;
use crate::load::{Lap, Measured, Rounds as Laps, nanos};
use crate::report::vocabulary as v;
use crate::report::{Cell, Histogram, Latency};

/// The rounds of one cell, as far as they have come.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rounds {
    laps: Laps,
    sync_p50: Vec<f64>,
    cpu: Vec<f64>,
    syncs: Histogram,
    /// The engine that it ran on.
    pub(crate) engine: Option<String>,
    /// In an open loop, how many arrivals still waited for a place in the queue when the windows ended.
    pub(crate) waiting: u64,
    /// The first error, and how many rounds had one.
    pub(crate) error: Option<String>,
    pub(crate) errors: u64,
}

impl Rounds {
    /// Takes in one round. One that was cut short before it measured anything leaves no trace.
    #[allow(clippy::cast_precision_loss, reason = "figures for a report")]
    pub(crate) fn add(&mut self, round: u32, spec: &Spec, measured: &Measured) {
        if measured.ios() == 0 {
            return;
        }
        let tallies = [&measured.reads, &measured.writes];
        self.laps.add(round, spec.work.block, &Lap::of(measured.window, tallies, &measured.intervals));
        if !measured.syncs.service.is_empty() {
            self.sync_p50.push(measured.syncs.service.percentile(50.0) as f64);
        }
        self.cpu.extend(measured.cpu_per_io().map(|cpu| nanos(cpu) as f64));
        self.syncs.merge(&measured.syncs.service);
        self.engine.get_or_insert_with(|| measured.engine.to_string());
        self.waiting += measured.waiting;
    }

    /// Notes that a round failed.
    pub(crate) fn fail(&mut self, error: String) {
        self.errors += 1;
        self.error.get_or_insert(error);
    }

    /// Whether there is anything to report.
    pub(crate) fn is_empty(&self) -> bool {
        self.laps.is_empty() && self.errors == 0
    }

    /// The latencies of fdatasync.
    pub(crate) fn syncs(&self) -> &Histogram {
        &self.syncs
    }

    /// The cell as it is reported.
    pub(crate) fn into_cell(self, spec: &Spec, target: &str) -> Cell {
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
            cell = cell.with_param(&v::RATE, v::rate(rate));
        }
        cell.errors = self.errors;
        cell.first_error = self.error;
        cell = self.laps.into_cell(cell);
        if !self.syncs.is_empty() {
            cell.latencies.push(Latency { name: "fdatasync".to_owned(), histogram: self.syncs });
        }
        cell.with_figure(&v::SYNC_P50, self.sync_p50).with_figure(&v::CPU_PER_OP, self.cpu)
    }
}
