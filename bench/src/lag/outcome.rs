//! From what was observed to what is reported.

use super::probe::Probe;
use super::samples::{Fate, Sample};
use super::session::Observed;
use super::watcher::Said;
use super::{Nodes, Options, Step};
use crate::report::vocabulary as v;
use crate::report::{Cell, Finding, Highlight, Histogram, Latency, Measure, Plot, PlotKind, Run, Series, Severity};

/// The section of the report about steady streams.
const BUSY: &str = "Busy: a steady stream of updates";
/// The section of the report about single transactions.
const QUIET: &str = "Quiet: single transactions, each after a silence";

/// The section of the report about what replication says of itself.
const VIEW: &str = "Replication's own view: means, by the primary's clock";

/// So much of a rate must be kept.
const RATE_KEPT_MIN: f64 = 0.99;

/// The median lag of a quiet transaction that is worth a word, when others take far less.
const SLEEPY_NS: f64 = 100e6;

/// Intervals of a course, at most.
const INTERVALS_MAX: u64 = 120;
/// Transactions in one of them, at least: fewer have no percentiles.
const PER_INTERVAL_MIN: f64 = 20.0;

/// What has been measured so far.
pub(super) struct Outcome<'a> {
    nodes: &'a Nodes,
    options: &'a Options,
    cells: Vec<Cell>,
    views: Vec<Cell>,
    findings: Vec<Finding>,
}

impl<'a> Outcome<'a> {
    pub(super) fn new(nodes: &'a Nodes, options: &'a Options) -> Self {
        Self { nodes, options, cells: Vec::new(), views: Vec::new(), findings: Vec::new() }
    }

    /// Takes in one measurement.
    pub(super) fn add(&mut self, step: Step, observed: &Observed) {
        let wrote = &observed.wrote;
        let warmup = match step {
            Step::Busy { .. } => super::clock::nanos(self.options.warmup),
            Step::Quiet { .. } => 0,
        };
        let window = Window { start: wrote.began + warmup, end: wrote.ended };
        if let Some(error) = observed.broken() {
            let text = format!("{}: {}. What was measured until then is here.", step.name(), with_cause(error));
            self.findings.push(Finding::new(Severity::Error, "run-broken", text));
        }
        let waiting: Vec<u64> =
            wrote.waiting.iter().filter(|due| **due >= window.start).map(|due| window.end - due).collect();
        let mut views = Vec::new();
        for (index, (reader, (looks, samples))) in self.nodes.readers.iter().zip(&observed.readers).enumerate() {
            let measured: Vec<Sample> =
                samples.iter().filter(|sample| sample.written.intended >= window.start).copied().collect();
            let tally = Tally::new(&measured, &waiting);
            let (group, name) = match step {
                Step::Busy { rate } => (BUSY, format!("{rate} updates a second, {}", reader.name)),
                Step::Quiet { probe } => (QUIET, format!("{}, {}", probe.description(), reader.name)),
            };
            let mut cell = Cell::new(group, name).with_param(&v::READER, reader.name.as_str());
            cell = match step {
                Step::Busy { rate } => {
                    cell.series = courses(&measured, window, rate);
                    let kept = tally.kept(waiting.len());
                    if kept.is_some_and(|kept| kept < RATE_KEPT_MIN) {
                        self.say_rate_not_kept(rate, kept.unwrap_or(0.0));
                    }
                    cell.with_param(&v::RATE, whole(rate)).with_figure(&v::RATE_KEPT, kept.into_iter().collect())
                }
                Step::Quiet { probe } => cell.with_param(&v::TRANSACTION, probe.description()),
            };
            if tally.timed_out > 0 && observed.broken().is_none() {
                self.findings.push(Finding::new(
                    Severity::Warning,
                    "not-seen",
                    format!(
                        "{}: {} of {} transactions were not seen on {} before the run ended.",
                        step.name(),
                        tally.timed_out,
                        measured.len(),
                        reader.name
                    ),
                ));
            }
            if measured.is_empty() {
                continue;
            }
            let said = &observed.heard.readers[index];
            if let Step::Busy { .. } = step {
                self.findings.extend(where_it_is(&cell.name, tally.lag.mean(), said));
            }
            views.extend(view(&cell, said));
            self.cells.push(tally.into_cell(cell, &looks.round_trips));
        }
        self.views.extend(views);
        if let Some(error) = &observed.heard.deaf {
            let finding = Finding::new(
                Severity::Note,
                "no-replication-view",
                format!("What replication says of itself is missing: {}.", with_cause(error)),
            );
            if !self.findings.contains(&finding) {
                self.findings.push(finding);
            }
        }
    }

    fn say_rate_not_kept(&mut self, rate: f64, kept: f64) {
        let text = format!(
            "Of {rate} updates a second only {:.1} % could be sent: the writer could not keep up, and times from the \
             intended beginning have no end.",
            kept * 100.0
        );
        let finding =
            Finding::new(Severity::Warning, "rate-not-kept", text).with_hint("a lower --rate, or more --connections");
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    /// Puts everything into `run`.
    pub(super) fn finish(mut self, run: &mut Run) {
        self.censored();
        self.sleepy();
        run.parameters = vec![v::RATE, v::TRANSACTION, v::READER];
        run.measures = vec![
            v::P50,
            v::P99,
            v::P999,
            v::MAX,
            v::INTENDED_P50,
            v::INTENDED_P99,
            v::COMMIT_P50,
            v::POLL_P50,
            v::RESOLUTION,
            v::CENSORED,
            v::LOST,
            v::TIMED_OUT,
            v::RATE_KEPT,
            v::WRITE_LAG,
            v::FLUSH_LAG,
            v::REPLAY_LAG,
            v::BEHIND,
            v::RECEIVED,
            v::BACKGROUND,
        ];
        run.plots = self.plots();
        run.highlights = self.highlights();
        run.findings.extend(self.findings);
        run.cells = self.cells;
        run.cells.extend(self.views);
    }

    /// Says where most of a lag is shorter than can be told.
    fn censored(&mut self) {
        for cell in &self.cells {
            let figure = |measure: &Measure| cell.figures.get(&*measure.name).map(|figure| figure.value);
            if let (Some(share), Some(poll)) = (figure(&v::CENSORED), figure(&v::POLL_P50))
                && share > 0.5
            {
                self.findings.push(Finding::new(
                    Severity::Note,
                    "left-censored",
                    format!(
                        "{}: {:.0} % were seen by the first look after the commit, which took {:.0} µs: they lag less \
                         than can be told.",
                        cell.name,
                        share * 100.0,
                        poll / 1000.0
                    ),
                ));
            }
        }
    }

    /// Says where a quiet reader sleeps over a transaction.
    fn sleepy(&mut self) {
        for reader in &self.nodes.readers {
            let median = |probe: Probe| {
                let name = format!("{}, {}", probe.description(), reader.name);
                let cell = self.cells.iter().find(|cell| cell.group == QUIET && cell.name == name)?;
                cell.figures.get(&*v::P50.name).map(|figure| figure.value)
            };
            let lags: Vec<(Probe, f64)> =
                Probe::ALL.into_iter().filter_map(|probe| Some((probe, median(probe)?))).collect();
            let Some((_, least)) = lags.iter().min_by(|a, b| a.1.total_cmp(&b.1)).copied() else { continue };
            for (probe, lag) in lags {
                if lag >= SLEEPY_NS && lag >= 10.0 * least {
                    let text = format!(
                        "After a silence, {} takes {:.0} ms to be seen on {} (median), where the quickest kind takes \
                         {:.1} ms: the reader sleeps until something else wakes it.",
                        probe.description(),
                        lag / 1e6,
                        reader.name,
                        least / 1e6
                    );
                    self.findings.push(
                        Finding::new(Severity::Warning, "sleeping-reader", text)
                            .with_hint("--heartbeat 10ms shows what a stream of tiny updates buys"),
                    );
                }
            }
        }
    }

    fn highlights(&self) -> Vec<Highlight> {
        let mut highlights = Vec::new();
        let mut add = |label: String, cell: &Cell, measure: &Measure| {
            if cell.figures.contains_key(&*measure.name) {
                highlights.push(Highlight { label, cell: cell.name.clone(), measure: measure.name.to_string() });
            }
        };
        if let Some(busy) = self.cells.iter().find(|cell| cell.group == BUSY) {
            add("lag when busy, median".to_owned(), busy, &v::P50);
            add("lag when busy, 99 of 100".to_owned(), busy, &v::P99);
        }
        for probe in [Probe::Update, Probe::Bulk] {
            let starts = format!("{}, ", probe.description());
            if let Some(quiet) = self.cells.iter().find(|cell| cell.group == QUIET && cell.name.starts_with(&starts)) {
                add(format!("{} when quiet, median", probe.description()), quiet, &v::P50);
            }
        }
        highlights
    }

    fn plots(&self) -> Vec<Plot> {
        let plot = |title: &str, group: &str, kind: PlotKind, lines: &[&str]| Plot {
            title: title.to_owned(),
            kind,
            group: group.to_owned(),
            panels: Vec::new(),
            lines: lines.iter().map(|name| (*name).to_owned()).collect(),
            references: Vec::new(),
        };
        let has = |group: &str| self.cells.iter().any(|cell| cell.group == group);
        let (rate, reader) = (&*v::RATE.name, &*v::READER.name);
        let figure =
            |measure: &Measure, x: &str| PlotKind::Figure { measure: measure.name.to_string(), x: x.to_owned() };
        let mut plots = Vec::new();
        if has(BUSY) {
            let percentiles = |latency: &str| PlotKind::Percentiles { latency: latency.to_owned() };
            let course = |measure: &Measure| PlotKind::Course { measure: measure.name.to_string() };
            if self.options.rates.len() > 1 {
                plots.push(plot("Median lag against rate", BUSY, figure(&v::P50, rate), &[reader]));
                plots.push(plot("99th percentile of the lag against rate", BUSY, figure(&v::P99, rate), &[reader]));
            }
            plots.push(plot("Lag percentiles, from the acknowledgement", BUSY, percentiles(LAG), &[rate, reader]));
            plots.push(plot("Percentiles from the intended beginning", BUSY, percentiles(INTENDED), &[rate, reader]));
            plots.push(plot("Median lag over time", BUSY, course(&v::P50), &[rate, reader]));
            plots.push(plot("99th percentile of the lag over time", BUSY, course(&v::P99), &[rate, reader]));
        }
        if has(QUIET) {
            plots.push(plot("Median lag after silence", QUIET, figure(&v::P50, &v::TRANSACTION.name), &[reader]));
        }
        plots
    }
}

/// An error and why it came about, in one line.
fn with_cause(error: &blockdev::Error) -> String {
    let cause = std::error::Error::source(error).map(|source| format!(" ({source})")).unwrap_or_default();
    format!("{error}{cause}")
}

/// What replication said of a reader while `cell` was measured there.
fn view(cell: &Cell, said: &Said) -> Option<Cell> {
    let mean = |histogram: &Histogram| if histogram.is_empty() { Vec::new() } else { vec![histogram.mean()] };
    let average = |bytes: &[f64]| {
        let sum: f64 = bytes.iter().sum();
        if bytes.is_empty() { Vec::new() } else { vec![sum / count(bytes.len() as u64)] }
    };
    let mut view = Cell { params: cell.params.clone(), ..Cell::new(VIEW, format!("replication, {}", cell.name)) }
        .with_figure(&v::WRITE_LAG, mean(&said.write))
        .with_figure(&v::FLUSH_LAG, mean(&said.flush))
        .with_figure(&v::REPLAY_LAG, mean(&said.replay))
        .with_figure(&v::BEHIND, average(&said.behind))
        .with_figure(&v::RECEIVED, average(&said.received))
        .with_figure(&v::BACKGROUND, average(&said.background));
    for (name, histogram) in [("write_lag", &said.write), ("flush_lag", &said.flush), ("replay_lag", &said.replay)] {
        if !histogram.is_empty() {
            view.latencies.push(Latency { name: name.to_owned(), histogram: histogram.clone() });
        }
    }
    (!view.figures.is_empty()).then_some(view)
}

/// Which part of a mean `lag`, in nanoseconds, is what.
fn where_it_is(name: &str, lag: f64, said: &Said) -> Option<Finding> {
    if lag <= 0.0 || said.write.is_empty() || said.flush.is_empty() || said.replay.is_empty() {
        return None;
    }
    let (write, flush, replay) = (said.write.mean(), said.flush.mean(), said.replay.mean());
    let ms = |ns: f64| format!("{:.2} ms", ns.max(0.0) / 1e6);
    Some(Finding::new(
        Severity::Note,
        "where-the-lag-is",
        format!(
            "{name}: {} in the mean. By replication's own account, shipping takes {} (until the replica has written the \
             WAL), storing it {}, replaying it {}; {}.",
            ms(lag),
            ms(write),
            ms(flush - write),
            ms(replay - flush),
            if lag > replay {
                format!("the rest, {}, is looking, and what replication does not see", ms(lag - replay))
            } else {
                format!("{} of that pass before the commit is acknowledged", ms(replay - lag))
            },
        ),
    ))
}

/// Names of latencies.
const LAG: &str = "lag";
const INTENDED: &str = "intended";

/// When what is measured was due, in nanoseconds.
#[derive(Debug, Clone, Copy)]
struct Window {
    start: u64,
    end: u64,
}

/// The samples of one reader, counted.
#[derive(Debug)]
struct Tally {
    lag: Histogram,
    intended: Histogram,
    commit: Histogram,
    resolution: Histogram,
    censored: u64,
    /// Those whose commit was never acknowledged.
    lost: u64,
    /// Those that were acknowledged and not seen.
    timed_out: u64,
    sent: usize,
}

impl Tally {
    /// Counts `samples`, and those that `waited` so long for a connection that they were never sent.
    fn new(samples: &[Sample], waited: &[u64]) -> Self {
        let mut tally = Self {
            lag: Histogram::new(),
            intended: Histogram::new(),
            commit: Histogram::new(),
            resolution: Histogram::new(),
            censored: 0,
            lost: 0,
            timed_out: 0,
            sent: samples.len(),
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

    /// The share of what was due that was sent, where `waiting` were not.
    fn kept(&self, waiting: usize) -> Option<f64> {
        let due = self.sent + waiting;
        (due > 0).then(|| count(self.sent as u64) / count(due as u64))
    }

    fn into_cell(self, mut cell: Cell, round_trips: &Histogram) -> Cell {
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
fn courses(samples: &[Sample], window: Window, rate: f64) -> Vec<Series> {
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
fn count(number: u64) -> f64 {
    number as f64
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be in range")]
fn whole(rate: f64) -> u64 {
    rate.round() as u64
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
        assert_eq!(tally.kept(1), Some(0.75));
        assert_eq!(Tally::new(&[], &[]).kept(0), None);
        let cell = tally.into_cell(Cell::new("", ""), &Histogram::new());
        assert_eq!((cell.figures["lost"].value, cell.figures["timed_out"].value), (1.0, 1.0));
        assert!(!cell.figures.contains_key("p99"));
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
