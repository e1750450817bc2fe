//! What PolarDB does with our pfsd and with the original's: one cluster, whose pfsds are exchanged in turns under it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bench::report::vocabulary::{CLIENTS, LOAD, PFSD, WORKERS};
use bench::report::{Better, Cell, Finding, Measure, Parameter, Unit, stats};
use blockdev::{Cancel, Error, ErrorKind, Result, ui};

use crate::child;
use crate::programs::Programs;
use crate::target::{Target, Wanted};

/// What the cluster is called.
const NAME: &str = "onedisk_peers";

/// How many times pgbench's 16 MB the tables have.
const SCALE: &str = "20";
/// With these most of what is read comes through the pfsd, and the log fits into a disk of this size.
const PARAMETERS_OF_POLARDB: &str = "shared_buffers=16MB;min_wal_size=2GB;max_wal_size=2GB";
const DISK: &str = "10GiB";

/// Numbers of workers of each pfsd, and of clients of the database.
const WORKER_COUNTS: [u64; 2] = [1, 4];
const CLIENT_COUNTS: [u64; 2] = [1, 8];

/// pgbench's own loads.
const LOADS: [&str; 2] = ["select-only", "tpcb-like"];

/// Transactions a second, as pgbench reports them.
const TPS: Measure = Measure::new("tps", "TPS", Unit::PerSecond, Better::Higher);
/// How many times that of the original in the same round.
const TPS_RATIO: Measure = Measure::new("tps_ratio", "TPS over the original's", Unit::Ratio, Better::Higher);

/// What the report has columns for.
pub(crate) const PARAMETERS: [Parameter; 4] = [LOAD, PFSD, WORKERS, CLIENTS];
/// The same.
pub(crate) const MEASURES: [Measure; 2] = [TPS, TPS_RATIO];

/// The pfsds, which take turns.
pub(crate) struct Job<'a> {
    pub(crate) programs: &'a Programs,
    /// Where the cluster and its disk are made.
    pub(crate) dir: &'a Path,
    /// The image of the nodes, with PolarDB 15 and the original pfsd.
    pub(crate) image: &'a str,
    pub(crate) rounds: u32,
    /// How long each load runs in a round.
    pub(crate) runtime: Duration,
}

/// A cluster, which goes with this.
struct Cluster<'a> {
    job: &'a Job<'a>,
    ours: PathBuf,
}

impl Cluster<'_> {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.job.programs.provision();
        command.arg("--state-dir").arg(self.job.dir).args(["--name", NAME]).args(args);
        command
    }

    fn run(&self, args: &[&str], cancel: &Cancel) -> Result<String> {
        Ok(child::run(self.command(args), cancel)?.stdout)
    }

    /// Lets the nodes run one of the pfsds. Nothing happens to the databases.
    fn exchange(&self, ours: bool, workers: u64, cancel: &Cancel) -> Result<()> {
        let program = self.ours.to_string_lossy();
        let pfsd = if ours { &*program } else { "image" };
        self.run(&["up", "--pfsd", pfsd, "--workers", &workers.to_string()], cancel).map(drop)
    }

    /// Transactions a second of a load.
    fn measure(&self, load: &str, clients: u64, cancel: &Cancel) -> Result<f64> {
        // Nobody has to write what another has left.
        self.run(&["psql", "primary", "--", "-qc", "CHECKPOINT"], cancel)?;
        let (clients, time) = (clients.to_string(), self.job.runtime.as_secs().max(1).to_string());
        let pgbench = ["exec", "primary", "--", "pgbench", "--no-vacuum", "--builtin", load];
        let said = self.run(&[&pgbench[..], &["--client", &clients, "--time", &time]].concat(), cancel)?;
        tps_in(&said)
            .ok_or_else(|| Error::new(ErrorKind::VerifyFailed, format!("pgbench does not say its TPS: {said}")))
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        // After Ctrl-C, too; what cannot be removed it says itself.
        let _ = self.command(&["down", "--purge", "--yes"]).stdout(std::process::Stdio::null()).status();
    }
}

fn tps_in(said: &str) -> Option<f64> {
    said.lines().find_map(|line| line.strip_prefix("tps = ")?.split_whitespace().next()?.parse().ok())
}

impl Job<'_> {
    /// Measures both under all loads.
    pub(crate) fn run(&self, cancel: &Cancel) -> Result<(Vec<Cell>, Vec<Finding>)> {
        let cluster = Cluster { job: self, ours: self.programs.directory().join("pfsd") };
        let make = ["up", "--engine", "polardb", "--runtime", "docker", "--image", self.image];
        cluster.run(&[&make[..], &["--disk-size", DISK, "--parameter", PARAMETERS_OF_POLARDB]].concat(), cancel)?;
        cluster.run(&["exec", "primary", "--", "pgbench", "--initialize", "--quiet", "--scale", SCALE], cancel)?;
        let mut table = Table::default();
        for round in 0..self.rounds {
            for workers in WORKER_COUNTS {
                for turn in 0..2 {
                    // Who comes first is another each round.
                    let ours = (round + turn) % 2 == 0;
                    cluster.exchange(ours, workers, cancel)?;
                    for (load, clients) in loads() {
                        let tps = cluster.measure(load, clients, cancel)?;
                        let line = name(load, clients, workers, ours);
                        ui::notice(&format!("{line}, round {} of {}: {tps:.0} TPS", round + 1, self.rounds));
                        table.add(load, clients, workers, ours, tps);
                    }
                }
            }
        }
        Ok(table.cells())
    }
}

fn loads() -> impl Iterator<Item = (&'static str, u64)> {
    LOADS.iter().flat_map(|load| CLIENT_COUNTS.map(|clients| (*load, clients)))
}

fn pfsd(ours: bool) -> &'static str {
    if ours { "pfsd" } else { "pfsdaemon" }
}

fn name(load: &str, clients: u64, workers: u64, ours: bool) -> String {
    let noun = if clients == 1 { "client" } else { "clients" };
    format!("PolarDB: {load}, {clients} {noun}, -w {workers}: {}", pfsd(ours))
}

/// What was measured, a row for a load with so many clients and workers.
#[derive(Default)]
struct Table(Vec<Row>);

struct Row {
    load: &'static str,
    clients: u64,
    workers: u64,
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

impl Table {
    fn add(&mut self, load: &'static str, clients: u64, workers: u64, ours: bool, tps: f64) {
        let same = |row: &Row| (row.load, row.clients, row.workers) == (load, clients, workers);
        let at = self.0.iter().position(same).unwrap_or_else(|| {
            self.0.push(Row { load, clients, workers, ours: Vec::new(), theirs: Vec::new() });
            self.0.len() - 1
        });
        let row = &mut self.0[at];
        if ours { row.ours.push(tps) } else { row.theirs.push(tps) }
    }

    /// A cell for each pfsd, and whether ours is no slower.
    fn cells(self) -> (Vec<Cell>, Vec<Finding>) {
        let (mut cells, mut findings) = (Vec::new(), Vec::new());
        for Row { load, clients, workers, ours, theirs } in self.0 {
            let cell = |is_ours: bool, tps: &[f64]| {
                Cell::new("PolarDB", name(load, clients, workers, is_ours))
                    .with_param(&LOAD, load)
                    .with_param(&PFSD, pfsd(is_ours))
                    .with_param(&WORKERS, workers)
                    .with_param(&CLIENTS, clients)
                    .with_figure(&TPS, tps.to_vec())
            };
            // What disturbed the machine in a round disturbed both, so rounds are compared, not medians.
            let ratios: Vec<f64> = ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs).collect();
            let what = format!(
                "TPS of PolarDB with pfsd over those with the original's ({load}, {clients} clients, -w {workers})"
            );
            let target = Target { id: "polardb-tps", what, wanted: Wanted::AtLeast(1.0) };
            findings.extend(stats::median(&ratios).map(|ratio| target.judge(ratio)));
            cells.push(cell(true, &ours).with_figure(&TPS_RATIO, ratios));
            cells.push(cell(false, &theirs));
        }
        (cells, findings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bench::report::Severity;

    #[test]
    fn pgbench_says_its_tps() {
        let said = "number of failed transactions: 0 (0.000%)\ntps = 528.601072 (without initial connection time)\n";
        assert_eq!(tps_in(said), Some(528.601_072));
        assert_eq!(tps_in("pgbench: error: out of memory"), None);
    }

    #[test]
    fn rounds_are_compared() {
        let mut table = Table::default();
        for (ours, tps) in [(true, 100.0), (false, 80.0), (false, 10.0), (true, 20.0), (true, 90.0), (false, 100.0)] {
            table.add("tpcb-like", 8, 1, ours, tps);
        }
        table.add("select-only", 8, 1, true, 1.0);
        table.add("select-only", 8, 1, false, 2.0);
        let (cells, findings) = table.cells();
        assert_eq!(cells.len(), 4);
        assert_eq!(cells[0].figures["tps_ratio"].samples, [1.25, 2.0, 0.9]);
        assert_eq!(cells[1].figures["tps"].samples, [80.0, 10.0, 100.0]);
        assert_eq!(
            findings.iter().map(|finding| finding.severity).collect::<Vec<_>>(),
            [Severity::Note, Severity::Warning]
        );
    }
}
