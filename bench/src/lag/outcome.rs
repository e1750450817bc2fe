//! From what was observed to what is reported.

use super::delay::calibration;
use super::probe::Probe;
use super::samples::Sample;
use super::session::Observed;
use super::tally::{INTENDED, LAG, Tally, Window, count, courses, kept, kept_of};
use super::watcher::Said;
use super::{Nodes, Options, Step, Stream};
use crate::report::vocabulary as v;
use crate::report::{Cell, Finding, Highlight, Histogram, Latency, Measure, Plot, PlotKind, Run, Severity};

/// The section of the report about steady streams.
const BUSY: &str = "Busy: a steady stream of updates";
/// The section of the report about single transactions.
const QUIET: &str = "Quiet: single transactions, each after a silence";

/// The section of the report about delays that are known.
const CALIBRATION: &str = "Calibration: a delay that is known";
/// The section of the report about what looking costs.
const OBSERVER: &str = "Observer effect: the same stream, looked at and not";
/// The section of the report about what replication says of itself.
const VIEW: &str = "Replication's own view: means, by the primary's clock";

/// So much of a rate must be kept.
const RATE_KEPT_MIN: f64 = 0.99;

/// So many times what it was at the lowest rate is past the knee.
const KNEE: f64 = 10.0;

/// The median lag of a quiet transaction that is worth a word, when others take far less.
const SLEEPY_NS: f64 = 100e6;

/// So many times less lag is much for a heartbeat to buy.
const MUCH: f64 = 2.0;

/// What has been measured so far.
pub(super) struct Outcome<'a> {
    nodes: &'a Nodes,
    options: &'a Options,
    cells: Vec<Cell>,
    views: Vec<Cell>,
    findings: Vec<Finding>,
    observer: Vec<Observer>,
}

/// One stream of the observer effect, looked at or not: a value for each round.
#[derive(Debug)]
struct Observer {
    stream: Stream,
    looked_at: bool,
    commit_p50: Vec<f64>,
    commit_p99: Vec<f64>,
    replay: Vec<f64>,
}

impl<'a> Outcome<'a> {
    pub(super) fn new(nodes: &'a Nodes, options: &'a Options) -> Self {
        Self { nodes, options, cells: Vec::new(), views: Vec::new(), findings: Vec::new(), observer: Vec::new() }
    }

    /// Takes in one measurement.
    pub(super) fn add(&mut self, step: Step, observed: &Observed) {
        let wrote = &observed.wrote;
        let warmup = step.stream().map_or(0, |_| super::clock::nanos(self.options.warmup));
        let window = Window { start: wrote.began + warmup, end: wrote.ended };
        if let Some(error) = observed.broken() {
            let text = format!("{}: {}. What was measured until then is here.", step.name(), with_cause(error));
            self.findings.push(Finding::new(Severity::Error, "run-broken", text));
        }
        let waiting: Vec<u64> =
            wrote.waiting.iter().filter(|due| **due >= window.start).map(|due| window.end - due).collect();
        let sent = wrote.slots.iter().flatten().filter(|written| written.intended >= window.start).count();
        let kept = step.stream().and_then(|_| kept(sent, waiting.len()));
        let rate = step.stream().and_then(|_| window.rate(wrote));
        let load_kept = step
            .stream()
            .and_then(|stream| stream.load)
            .and_then(|_| kept_of(observed.background.sent.min(observed.background.due), observed.background.due));
        self.say_what_was_not_kept(step, kept, load_kept);
        if let Step::Observer { stream, looked_at } = step {
            self.add_observer(stream, looked_at, window, observed);
            return;
        }
        let mut views = Vec::new();
        for (index, (reader, (looks, samples))) in self.nodes.readers.iter().zip(&observed.readers).enumerate() {
            let measured: Vec<Sample> =
                samples.iter().filter(|sample| sample.written.intended >= window.start).copied().collect();
            let tally = Tally::new(&measured, &waiting);
            let group = match step {
                Step::Quiet { .. } => QUIET,
                Step::Calibration { .. } => CALIBRATION,
                Step::Busy(_) | Step::Observer { .. } => BUSY,
            };
            let mut cell = Cell::new(group, format!("{}, {}", step.name(), reader.name))
                .with_param(&v::READER, reader.name.as_str())
                .with_figure(&v::SENT_RATE, rate.into_iter().collect())
                .with_figure(&v::RATE_KEPT, kept.into_iter().collect())
                .with_figure(&v::LOAD_KEPT, load_kept.into_iter().collect());
            if let Some(stream) = step.stream() {
                cell.series = courses(&measured, window, stream.rate);
                cell = with_stream(cell, stream);
            }
            match step {
                Step::Quiet { probe, heartbeat } => {
                    cell = cell.with_param(&v::TRANSACTION, probe.description());
                    if self.options.heartbeat.is_some() {
                        let every = heartbeat.map_or_else(|| "none".to_owned(), |every| format!("every {every:?}"));
                        cell = cell.with_param(&v::HEARTBEAT, every);
                    }
                }
                Step::Calibration { delay, .. } => {
                    let (found, finding) = calibration(&measured, delay, &reader.name);
                    self.findings.extend(finding);
                    cell = cell
                        .with_param(&v::DELAY, super::clock::nanos(delay))
                        .with_figure(&v::FOUND, found.into_iter().collect());
                }
                Step::Busy(_) | Step::Observer { .. } => {}
            }
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
            if let Step::Busy(_) = step {
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

    /// Says where less was sent than was due.
    fn say_what_was_not_kept(&mut self, step: Step, stream: Option<f64>, load: Option<f64>) {
        for (what, kept) in [("the stream", stream), ("the load", load)] {
            let Some(kept) = kept.filter(|kept| *kept < RATE_KEPT_MIN) else { continue };
            let text = format!(
                "{}: only {:.1} % of {what} could be sent when it was due or later: the writer could not keep up, and \
                 times from the intended beginning have no end.",
                step.name(),
                kept * 100.0
            );
            self.findings.push(
                Finding::new(Severity::Warning, "rate-not-kept", text).with_hint("a lower rate, or more --connections"),
            );
        }
    }

    fn add_observer(&mut self, stream: Stream, looked_at: bool, window: Window, observed: &Observed) {
        let mut commit = Histogram::new();
        let written = observed.wrote.slots.iter().flatten().filter(|written| written.intended >= window.start);
        for (written, acknowledged) in written.filter_map(|written| Some((written, written.acknowledged?))) {
            commit.record(acknowledged.saturating_sub(written.sent));
        }
        if commit.is_empty() {
            return;
        }
        let mut replay = Histogram::new();
        observed.heard.readers.iter().for_each(|said| replay.merge(&said.replay));
        let known = self.observer.iter().position(|known| known.stream == stream && known.looked_at == looked_at);
        let index = known.unwrap_or_else(|| {
            let (commit_p50, commit_p99, replay) = (Vec::new(), Vec::new(), Vec::new());
            self.observer.push(Observer { stream, looked_at, commit_p50, commit_p99, replay });
            self.observer.len() - 1
        });
        let observer = &mut self.observer[index];
        observer.commit_p50.push(count(commit.percentile(50.0)));
        observer.commit_p99.push(count(commit.percentile(99.0)));
        if !replay.is_empty() {
            observer.replay.push(replay.mean());
        }
    }

    /// The cells of the observer effect, and what they say.
    fn observers(&mut self) {
        let median = |samples: &[f64]| crate::report::stats::median(samples);
        for observer in &self.observer {
            let name = Step::Observer { stream: observer.stream, looked_at: observer.looked_at }.name();
            let cell = with_stream(Cell::new(OBSERVER, name), observer.stream)
                .with_param(&v::LOOKED_AT, observer.looked_at)
                .with_figure(&v::COMMIT_P50, observer.commit_p50.clone())
                .with_figure(&v::COMMIT_P99, observer.commit_p99.clone())
                .with_figure(&v::REPLAY_LAG, observer.replay.clone());
            self.cells.push(cell);
        }
        let pairs = self.observer.iter().filter(|observer| observer.looked_at).filter_map(|on| {
            let off = self.observer.iter().find(|off| off.stream == on.stream && !off.looked_at)?;
            Some((on, off))
        });
        for (on, off) in pairs {
            let (Some(commit_on), Some(commit_off)) = (median(&on.commit_p50), median(&off.commit_p50)) else {
                continue;
            };
            let mut text = format!(
                "{}: to look at the readers makes a commit {:.2} times as long ({:.2} ms, {:.2} ms when nobody looks)",
                on.stream,
                commit_on / commit_off,
                commit_on / 1e6,
                commit_off / 1e6
            );
            if let (Some(on), Some(off)) = (median(&on.replay), median(&off.replay)) {
                text += &format!(", and replay_lag {:.2} times ({:.2} ms, {:.2} ms)", on / off, on / 1e6, off / 1e6);
            }
            let finding = Finding::new(Severity::Note, "observer-effect", text + ".");
            self.findings.push(finding.with_hint("a longer --poll-pause costs less, and tells less"));
        }
    }

    /// Says up to which rate readers keep up.
    fn knee(&mut self) {
        for reader in &self.nodes.readers {
            let loads: Vec<Option<super::Load>> = if self.options.loads.is_empty() {
                vec![None]
            } else {
                self.options.loads.iter().copied().map(Some).collect()
            };
            for load in loads {
                let figures = |rate: f64| {
                    let name = format!("{}, {}", Stream { rate, load }, reader.name);
                    let cell = self.cells.iter().find(|cell| cell.group == BUSY && cell.name == name)?;
                    let figure = |measure: &Measure| cell.figures.get(&*measure.name).map(|figure| figure.value);
                    Some((rate, figure(&v::INTENDED_P50)?, figure(&v::RATE_KEPT)?))
                };
                let mut rates = self.options.rates.clone();
                rates.sort_by(f64::total_cmp);
                let measured: Vec<(f64, f64, f64)> = rates.into_iter().filter_map(figures).collect();
                if measured.len() > 1 {
                    let under = load.map(|load| format!(" under a load of {load}")).unwrap_or_default();
                    let text = format!("{}{under} {}.", reader.name, knee_text(&measured));
                    self.findings.push(Finding::new(Severity::Note, "knee", text));
                }
            }
        }
    }

    /// Says what a heartbeat buys.
    fn heartbeat(&mut self) {
        let Some(every) = self.options.heartbeat else { return };
        for reader in &self.nodes.readers {
            for probe in Probe::ALL {
                let median = |heartbeat| {
                    let name = format!("{}, {}", Step::Quiet { probe, heartbeat }.name(), reader.name);
                    let cell = self.cells.iter().find(|cell| cell.name == name)?;
                    cell.figures.get(&*v::P50.name).map(|figure| figure.value)
                };
                let (Some(without), Some(with)) = (median(None), median(Some(every))) else { continue };
                let times = without / with;
                let much = times >= MUCH;
                let what = if much {
                    format!("brings the median lag down {times:.0} times")
                } else {
                    "buys next to nothing".to_owned()
                };
                let text = format!(
                    "A heartbeat every {every:?} {what} for {} on {}: {:.2} ms without, {:.2} ms with it.",
                    probe.description(),
                    reader.name,
                    without / 1e6,
                    with / 1e6
                );
                let finding = Finding::new(Severity::Note, "heartbeat", text);
                let keep = || format!("`provision up --heartbeat {}` keeps one", humantime::format_duration(every));
                self.findings.push(if much { finding.with_hint(keep()) } else { finding });
            }
        }
    }

    /// Puts everything into `run`.
    pub(super) fn finish(mut self, run: &mut Run) {
        self.observers();
        self.censored();
        self.sleepy();
        self.heartbeat();
        self.knee();
        run.parameters = vec![v::RATE, v::LOAD, v::TRANSACTION, v::HEARTBEAT, v::DELAY, v::LOOKED_AT, v::READER];
        run.measures = vec![
            v::FOUND,
            v::P50,
            v::P99,
            v::P999,
            v::MAX,
            v::INTENDED_P50,
            v::INTENDED_P99,
            v::COMMIT_P50,
            v::COMMIT_P99,
            v::POLL_P50,
            v::RESOLUTION,
            v::CENSORED,
            v::LOST,
            v::TIMED_OUT,
            v::SENT_RATE,
            v::RATE_KEPT,
            v::LOAD_KEPT,
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
        let (rate, load, reader) = (&*v::RATE.name, &*v::LOAD.name, &*v::READER.name);
        let figure =
            |measure: &Measure, x: &str| PlotKind::Figure { measure: measure.name.to_string(), x: x.to_owned() };
        let mut plots = Vec::new();
        if has(BUSY) {
            let percentiles = |latency: &str| PlotKind::Percentiles { latency: latency.to_owned() };
            let course = |measure: &Measure| PlotKind::Course { measure: measure.name.to_string() };
            if self.options.rates.len() > 1 {
                plots.push(plot("Median lag against rate", BUSY, figure(&v::P50, rate), &[load, reader]));
                plots.push(plot(
                    "99th percentile of the lag against rate",
                    BUSY,
                    figure(&v::P99, rate),
                    &[load, reader],
                ));
            }
            plots.push(plot(
                "Lag percentiles, from the acknowledgement",
                BUSY,
                percentiles(LAG),
                &[rate, load, reader],
            ));
            plots.push(plot(
                "Percentiles from the intended beginning",
                BUSY,
                percentiles(INTENDED),
                &[rate, load, reader],
            ));
            plots.push(plot("Median lag over time", BUSY, course(&v::P50), &[rate, load, reader]));
            plots.push(plot("99th percentile of the lag over time", BUSY, course(&v::P99), &[rate, load, reader]));
        }
        if has(CALIBRATION) {
            let kind = PlotKind::Percentiles { latency: LAG.to_owned() };
            plots.push(plot("Lag percentiles of delayed readers", CALIBRATION, kind, &[&v::DELAY.name, reader]));
        }
        if has(QUIET) {
            plots.push(plot(
                "Median lag after silence",
                QUIET,
                figure(&v::P50, &v::TRANSACTION.name),
                &[&v::HEARTBEAT.name, reader],
            ));
        }
        plots
    }
}

/// `cell` with what its stream was.
fn with_stream(cell: Cell, stream: Stream) -> Cell {
    let cell = cell.with_param(&v::RATE, whole(stream.rate));
    match stream.load {
        Some(load) => cell.with_param(&v::LOAD, load.name()),
        None => cell,
    }
}

/// Where `measured` (a rate, the median from the intended beginning, the share of it that was kept; by rate) has its knee.
fn knee_text(measured: &[(f64, f64, f64)]) -> String {
    let (lowest, least, _) = measured[0];
    let mut before = None;
    for (rate, median, kept) in measured {
        let past = if *kept < RATE_KEPT_MIN {
            Some(format!("only {:.1} % of {rate} a second can be sent", kept * 100.0))
        } else if *median > KNEE * least {
            let times = median / least;
            Some(format!(
                "at {rate} a second the median from the intended beginning is {times:.0} times that at {lowest}"
            ))
        } else {
            None
        };
        match (past, before) {
            (Some(past), Some(before)) => return format!("keeps up to {before} updates a second: {past}"),
            (Some(past), None) => return format!("does not keep up with the lowest rate: {past}"),
            (None, _) => before = Some(*rate),
        }
    }
    format!("keeps up to {} updates a second, the highest rate that was tried", before.unwrap_or(lowest))
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

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be in range")]
fn whole(rate: f64) -> u64 {
    rate.round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_knee_is_where_less_is_sent_or_the_median_leaps() {
        let ms = |ms: f64| ms * 1e6;
        let measured = [(100.0, ms(1.0), 1.0), (1000.0, ms(2.0), 1.0), (5000.0, ms(40.0), 1.0)];
        let leaps = "keeps up to 1000 updates a second: at 5000 a second the median from the intended beginning is 40 \
                     times that at 100";
        assert_eq!(knee_text(&measured), leaps);
        let measured = [(100.0, ms(1.0), 1.0), (1000.0, ms(2.0), 0.5)];
        assert_eq!(knee_text(&measured), "keeps up to 100 updates a second: only 50.0 % of 1000 a second can be sent");
        assert_eq!(knee_text(&measured[..1]), "keeps up to 100 updates a second, the highest rate that was tried");
        assert!(knee_text(&measured[1..]).starts_with("does not keep up with the lowest rate"));
    }
}
