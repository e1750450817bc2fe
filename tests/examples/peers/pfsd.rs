//! Our pfsd against the original's, by way of `bench pfsd --against`: on the disk, and in memory.

use std::path::Path;

use bench::report::vocabulary::{
    CLIENTS, IDLE_CPU, IOPS_RATIO, MEMORY, OF_DISK, P50_RATIO, P99_RATIO, PFSD, RW, WORKERS,
};
use bench::report::{Cell, Finding, Measure, Run, Value};
use blockdev::{Cancel, Result};

use crate::child;
use crate::programs::Programs;
use crate::target::{Target, Wanted};

/// Where the original is where it is installed.
const ORIGINAL: &str = "/usr/local/polarstore/pfsd/bin/pfsdaemon";

/// The medium beside the disk.
const MEMORY_MEDIUM: &str = "/dev/shm";

/// What ours is called in the report.
const OURS: &str = "pfsd";

/// How many workers the memory of a pfsd is looked at with.
const MANY: &str = "32";

/// What a pfsd may have of memory, in bytes, with that many workers.
const MEMORY_MAX: f64 = 64e6;

/// The pfsds, which take turns.
pub(crate) struct Job<'a> {
    pub(crate) programs: &'a Programs,
    /// Where images are made.
    pub(crate) dir: &'a Path,
    pub(crate) rounds: u32,
    pub(crate) runtime: &'a str,
}

/// Whether the original is here, and this user may run it.
pub(crate) fn has_original() -> bool {
    Path::new(ORIGINAL).exists() && nix::unistd::geteuid().is_root()
}

impl Job<'_> {
    /// Measures both; ours alone where there is no other.
    pub(crate) fn table(&self, cancel: &Cancel) -> Result<Run> {
        let media = format!("--scratch={},{MEMORY_MEDIUM}", self.dir.display());
        let sweep = ["--workers=1,4", "--clients=1,16", "--rw=randread,randwrite,read,write,meta", &media];
        let mut run = self.measure(&sweep, has_original(), cancel)?;
        let scratch = format!("--scratch={}", self.dir.display());
        let workers = format!("--workers={MANY}");
        let many = self.measure(&[&workers, "--clients=16", "--rw=randread", &scratch], false, cancel)?;
        run.cells.extend(many.cells.into_iter().filter(|cell| cell.figures.contains_key(&*MEMORY.name)));
        Ok(run)
    }

    fn measure(&self, sweep: &[&str], against: bool, cancel: &Cancel) -> Result<Run> {
        let mut command = self.programs.bench();
        command.arg("pfsd").args(sweep).arg(format!("--rounds={}", self.rounds));
        command.arg(format!("--runtime={}", self.runtime)).arg("--output=json");
        if against {
            command.arg(format!("--against={ORIGINAL}"));
        }
        let mut run = Run::parse(child::run(command, cancel)?.stdout.as_bytes(), "what bench pfsd printed")?;
        // What it says of one table is said of all of them in the end.
        run.findings.clear();
        for cell in &mut run.cells {
            cell.name = format!("pfsd: {}", cell.name);
            cell.group = format!("pfsd: {}", cell.group);
        }
        Ok(run)
    }
}

/// Something that is asked of cells, all of which must keep it.
struct Asked {
    id: &'static str,
    what: &'static str,
    measure: &'static Measure,
    wanted: Wanted,
    rw: &'static [&'static str],
    workers: &'static [u64],
    clients: &'static [u64],
}

const RANDOM: &[&str] = &["randread", "randwrite"];

/// What is asked of our pfsd. The shares of the disk are of the loop device with as many in flight.
const ASKED: [Asked; 8] = [
    Asked {
        id: "pfsd-1-worker",
        what: "IOPS of pfsd over the original's, 8 KiB, -w 1, 16 clients",
        measure: &IOPS_RATIO,
        wanted: Wanted::AtLeast(4.0),
        rw: RANDOM,
        workers: &[1],
        clients: &[16],
    },
    Asked {
        id: "pfsd-of-disk",
        what: "IOPS of pfsd over the loop device's, 8 KiB, -w 1, 16 clients",
        measure: &OF_DISK,
        wanted: Wanted::AtLeast(0.8),
        rw: RANDOM,
        workers: &[1],
        clients: &[16],
    },
    Asked {
        id: "pfsd-4-workers",
        what: "IOPS of pfsd over the original's, 8 KiB, -w 4, 16 clients",
        measure: &IOPS_RATIO,
        wanted: Wanted::AtLeast(1.5),
        rw: RANDOM,
        workers: &[4],
        clients: &[16],
    },
    Asked {
        id: "pfsd-p50",
        what: "p50 of pfsd over the original's, 8 KiB, -w 1, 1 client",
        measure: &P50_RATIO,
        wanted: Wanted::AtMost(0.75),
        rw: RANDOM,
        workers: &[1],
        clients: &[1],
    },
    Asked {
        id: "pfsd-p99",
        what: "p99 of pfsd over the original's, 8 KiB, -w 1, 1 client",
        measure: &P99_RATIO,
        wanted: Wanted::AtMost(0.75),
        rw: RANDOM,
        workers: &[1],
        clients: &[1],
    },
    Asked {
        id: "pfsd-idle",
        what: "what of a core an idle pfsd takes",
        measure: &IDLE_CPU,
        wanted: Wanted::AtMost(0.03),
        rw: &[],
        workers: &[1, 4],
        clients: &[],
    },
    Asked {
        id: "pfsd-sequential",
        what: "bandwidth of pfsd over the loop device's, 4 MiB, 16 clients",
        measure: &OF_DISK,
        wanted: Wanted::AtLeast(0.9),
        rw: &["read", "write"],
        workers: &[1, 4],
        clients: &[16],
    },
    Asked {
        id: "pfsd-creates",
        what: "files made by pfsd over the original's, 16 clients",
        measure: &IOPS_RATIO,
        wanted: Wanted::AtLeast(3.0),
        rw: &["meta"],
        workers: &[1, 4],
        clients: &[16],
    },
];

impl Asked {
    /// Whether it is asked of `cell`.
    fn is_of(&self, cell: &Cell) -> bool {
        let number = |name: &str, wanted: &[u64]| match cell.params.get(name) {
            Some(Value::Number(number)) => wanted.contains(number),
            _ => wanted.is_empty(),
        };
        let rw = match cell.params.get(&*RW.name) {
            Some(Value::Text(rw)) => self.rw.contains(&rw.as_str()),
            _ => self.rw.is_empty(),
        };
        is_ours(cell) && rw && number(&WORKERS.name, self.workers) && number(&CLIENTS.name, self.clients)
    }

    fn judge<'a>(&'a self, cells: &'a [Cell]) -> impl Iterator<Item = Finding> + 'a {
        let of = cells.iter().filter(|cell| self.is_of(cell));
        of.filter_map(|cell| {
            let ratio = cell.figures.get(&*self.measure.name)?.value;
            let what = format!("{} ({})", self.what, cell.name);
            Some(Target { id: self.id, what, wanted: self.wanted }.judge(ratio))
        })
    }
}

fn is_ours(cell: &Cell) -> bool {
    cell.params.get(&*PFSD.name) == Some(&OURS.into())
}

/// Holds every cell against what is asked of it.
pub(crate) fn judge(cells: &[Cell]) -> Vec<Finding> {
    let mut findings: Vec<Finding> = ASKED.iter().flat_map(|asked| asked.judge(cells)).collect();
    let most = cells.iter().filter(|cell| is_ours(cell)).filter_map(|cell| cell.figures.get(&*MEMORY.name));
    let most = most.map(|figure| figure.value).max_by(f64::total_cmp);
    findings.extend(most.map(|bytes| {
        let what = "memory of pfsd beyond what it shares, over 64 MB, at most".to_owned();
        Target { id: "pfsd-memory", what, wanted: Wanted::AtMost(1.0) }.judge(bytes / MEMORY_MAX)
    }));
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use bench::report::Severity;

    fn cell(name: &str, workers: u64) -> Cell {
        Cell::new("", name).with_param(&PFSD, OURS).with_param(&WORKERS, workers)
    }

    #[test]
    fn every_cell_is_held_against_what_is_asked_of_it() {
        let load = |name: &str, rw: &str, workers: u64, clients: u64| {
            cell(name, workers).with_param(&RW, rw).with_param(&CLIENTS, clients)
        };
        let cells = [
            load("a", "randread", 1, 16).with_figure(&IOPS_RATIO, vec![5.0]).with_figure(&OF_DISK, vec![0.7]),
            load("b", "randwrite", 4, 16).with_figure(&IOPS_RATIO, vec![1.2]),
            load("c", "randread", 1, 1).with_figure(&P50_RATIO, vec![0.5]).with_figure(&P99_RATIO, vec![0.9]),
            load("d", "randread", 4, 1).with_figure(&P99_RATIO, vec![9.0]),
            load("e", "meta", 1, 16).with_figure(&IOPS_RATIO, vec![3.5]),
            cell("f", 4).with_figure(&IDLE_CPU, vec![0.01]).with_figure(&MEMORY, vec![32e6]),
            load("g", "randread", 1, 16).with_param(&PFSD, "pfsdaemon").with_figure(&OF_DISK, vec![0.1]),
        ];
        let verdicts: Vec<(String, bool)> =
            judge(&cells).into_iter().map(|finding| (finding.id, finding.severity == Severity::Note)).collect();
        let expected = [
            ("pfsd-1-worker", true),
            ("pfsd-of-disk", false),
            ("pfsd-4-workers", false),
            ("pfsd-p50", true),
            ("pfsd-p99", false),
            ("pfsd-idle", true),
            ("pfsd-creates", true),
            ("pfsd-memory", true),
        ];
        assert_eq!(verdicts, expected.map(|(id, met)| (id.to_owned(), met)));
        assert!(judge(&[]).is_empty());
    }
}
