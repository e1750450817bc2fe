//! `bench lag` against what is known: a delay that was asked for, what replication says of itself, and the rate that was
//! asked for.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use bench::report::vocabulary::{DELAY, FOUND, RATE, RATE_KEPT, READER, REPLAY_LAG, SENT_RATE};
use bench::report::{Better, Cell, Finding, Measure, Run, Unit, Value};
use blockdev::{Cancel, Context, Result, ui};

use crate::child;
use crate::contest::median;
use crate::programs::Programs;
use crate::target::{Target, Wanted};

/// The section of the report.
const GROUP: &str = "bench lag, against what is known";
/// The mean of the lag, from the acknowledgement of a commit.
pub(crate) const MEAN: Measure = Measure::new("lag_mean", "lag, mean", Unit::Nanoseconds, Better::Lower);

/// So many commits may wait for their replay in the mean for `replay_lag` to be their lag: PostgreSQL says how old the oldest
/// is that is not replayed when it hears of one that is.
const IN_A_ROW_MAX: f64 = 0.5;

/// What is measured in every round.
const MEASURED: [&[&str]; 2] = [&["--calibrate"], &["--busy", "--rate=100,1000"]];

/// A cluster of this machine's PostgreSQL, and `bench lag` on it.
pub(crate) struct Job<'a> {
    pub(crate) programs: &'a Programs,
    pub(crate) rounds: u32,
    pub(crate) runtime: &'a str,
}

impl Job<'_> {
    /// Measures, in turns, and holds it against what is known.
    pub(crate) fn run(&self, cancel: &Cancel) -> Result<(Vec<Cell>, Vec<Finding>)> {
        let cluster = Cluster::up(self.programs, cancel)?;
        let mut runs = Vec::new();
        for round in 1..=self.rounds {
            ui::notice(&format!("bench lag, round {round} of {}", self.rounds));
            for what in MEASURED {
                let mut command = self.programs.bench();
                command.args(["lag", "--cluster", NAME, "--output=json", "--runtime", self.runtime]).args(what);
                command.arg("--state-dir").arg(cluster.directory.path());
                runs.push(Run::parse(child::run(command, cancel)?.stdout.as_bytes(), "what bench lag printed")?);
            }
        }
        let cells = cells(&runs);
        let findings = judge(&cells);
        Ok((cells, findings))
    }
}

/// What the cluster is called.
const NAME: &str = "peers";

/// A primary and a replica, until it is dropped.
struct Cluster<'a> {
    programs: &'a Programs,
    directory: tempfile::TempDir,
}

impl<'a> Cluster<'a> {
    fn up(programs: &'a Programs, cancel: &Cancel) -> Result<Self> {
        // Not beside the programs: the database's user may not be able to get there.
        let made = tempfile::Builder::new().prefix("onedisk-peers-").tempdir_in("/var/tmp");
        let directory = made.context(|| "cannot make a directory in /var/tmp")?;
        let open = fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755));
        open.context(|| format!("cannot open {} for the database's user", directory.path().display()))?;
        let cluster = Self { programs, directory };
        child::run(cluster.provision(&["up"]), cancel)?;
        Ok(cluster)
    }

    fn provision(&self, arguments: &[&str]) -> Command {
        let mut command = self.programs.provision();
        command.arg("--state-dir").arg(self.directory.path()).args(["--name", NAME]).args(arguments);
        command
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        // What it could not take away it says itself.
        let _ = self.provision(&["down", "--purge", "--yes"]).stdin(Stdio::null()).status();
    }
}

/// The cells of several runs as one each: a sample for each time that it was measured. What replication says of a cell is a
/// cell of its own there.
fn cells(runs: &[Run]) -> Vec<Cell> {
    let mut cells: Vec<Cell> = Vec::new();
    let all = || runs.iter().flat_map(|run| &run.cells);
    let of_replication = |name: &str| format!("replication, {name}");
    for found in all() {
        let name = found.name.as_str();
        let is_view = all().any(|cell| of_replication(&cell.name) == name);
        if is_view || cells.iter().any(|cell| cell.name == name) {
            continue;
        }
        let each = |name: &str, figure: &dyn Fn(&Cell) -> Option<f64>| {
            all().filter(|cell| cell.name == name).filter_map(figure).collect()
        };
        let cell = Cell { params: found.params.clone(), ..Cell::new(GROUP, name) };
        cells.push(
            cell.with_figure(&FOUND, each(name, &|cell| value(cell, &FOUND)))
                .with_figure(&MEAN, each(name, &mean))
                .with_figure(&REPLAY_LAG, each(&of_replication(name), &|cell| value(cell, &REPLAY_LAG)))
                .with_figure(&SENT_RATE, each(name, &|cell| value(cell, &SENT_RATE)))
                .with_figure(&RATE_KEPT, each(name, &|cell| value(cell, &RATE_KEPT))),
        );
    }
    cells
}

fn value(cell: &Cell, measure: &Measure) -> Option<f64> {
    cell.figures.get(&*measure.name).map(|figure| figure.value)
}

fn mean(cell: &Cell) -> Option<f64> {
    cell.latencies.iter().find(|latency| latency.name == "lag").map(|latency| latency.histogram.mean())
}

fn number(cell: &Cell, name: &str) -> Option<f64> {
    match cell.params.get(name) {
        #[allow(clippy::cast_precision_loss, reason = "a rate, or a time of seconds")]
        Some(Value::Number(number)) => Some(*number as f64),
        _ => None,
    }
}

/// Holds every cell against what is asked of it.
fn judge(cells: &[Cell]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for cell in cells {
        let reader = match cell.params.get(&*READER.name) {
            Some(Value::Text(reader)) => reader.as_str(),
            _ => "",
        };
        let Some(rate) = number(cell, &RATE.name) else { continue };
        let mut ask = |id, what: String, most: f64, off: f64| {
            let what = format!("{what}, {rate} updates a second, {reader}");
            findings.push(Target { id, what, wanted: Wanted::AtMost(most) }.judge(off));
        };
        if let (Some(delay), Some(found)) = (number(cell, &DELAY.name), median(cell, &FOUND)) {
            let (delay, found) = (delay / 1e6, found / 1e6);
            let what = format!("ms off of what bench lag finds ({found:.2} ms) of a delay of {delay} ms");
            ask("lag-calibration", what, 2.0, (found - delay).abs());
        } else if let (Some(mean), Some(replay)) = (median(cell, &MEAN), median(cell, &REPLAY_LAG))
            && mean / 1e9 * rate <= IN_A_ROW_MAX
        {
            let (mean, replay) = (mean / 1e6, replay / 1e6);
            let what = format!("ms between the mean of bench lag ({mean:.2} ms) and of replay_lag ({replay:.2} ms)");
            ask("lag-replay-lag", what, 1.0, (mean - replay).abs());
        }
        if let Some(sent) = median(cell, &SENT_RATE) {
            ask("lag-rate", format!("share by which the rate was missed ({sent:.1})"), 0.01, (sent / rate - 1.0).abs());
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use bench::report::{Environment, Severity};

    use super::*;

    #[test]
    fn every_cell_is_held_against_what_is_known() {
        let ms = 1e6;
        let run = |found: f64, sent: f64, replay: f64| {
            let mut run = Run::begin("lag", "x", Environment::of_this_machine(Vec::new()));
            let histogram = |ns: u64| {
                let mut histogram = bench::report::Histogram::new();
                histogram.record(ns);
                vec![bench::report::Latency { name: "lag".to_owned(), histogram }]
            };
            let with = |name: &str| Cell::new("", name).with_param(&RATE, 100_u64).with_param(&READER, "r");
            let calibrated = with("a").with_param(&DELAY, 50_000_000_u64).with_figure(&FOUND, vec![found * ms]);
            let busy = with("b").with_figure(&SENT_RATE, vec![sent]);
            let view = with("replication, b").with_figure(&REPLAY_LAG, vec![replay * ms]);
            let lag = histogram(2_000_000);
            run.cells = [calibrated, busy, view].map(|cell| Cell { latencies: lag.clone(), ..cell }).into();
            run
        };
        let cells = cells(&[run(51.0, 100.0, 2.5), run(53.0, 100.0, 2.5), run(50.5, 98.0, 2.5)]);
        assert_eq!(cells.iter().map(|cell| cell.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(cells[0].figures["found"].samples, [51.0 * ms, 53.0 * ms, 50.5 * ms]);
        let verdicts = |cells: &[Cell]| -> Vec<(String, bool)> {
            let findings = judge(cells).into_iter();
            findings.map(|finding| (finding.id, finding.severity == Severity::Note)).collect()
        };
        let expected = |met: [bool; 3]| -> Vec<(String, bool)> {
            ["lag-calibration", "lag-replay-lag", "lag-rate"].map(str::to_owned).into_iter().zip(met).collect()
        };
        assert_eq!(verdicts(&cells), expected([true; 3]));
        let cells = self::cells(&[run(47.9, 98.0, 3.5)]);
        assert_eq!(verdicts(&cells), expected([false; 3]));
        // Many that wait in a row are another matter.
        let mut cells = self::cells(&[run(50.0, 1000.0, 3.5)]);
        cells.iter_mut().for_each(|cell| *cell = cell.clone().with_param(&RATE, 1000_u64));
        let ids: Vec<String> = verdicts(&cells).into_iter().map(|(id, _)| id).collect();
        assert_eq!(ids, ["lag-calibration", "lag-rate"]);
    }
}
