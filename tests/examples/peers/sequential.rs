//! Filling an image against dd and fio, and reading it against fio.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bench::report::vocabulary::PROGRAM;
use bench::report::{Cell, Finding, Severity};
use blockdev::{ByteSize, Cancel, Context, Result};

use crate::contest::{CPU_SHARE, Contest, Contestant, LEAD, RATE, REPORTED, median};
use crate::fio;
use crate::programs::Programs;
use crate::target::{Target, Wanted};

/// What a deleted file leaves the file system to do, it does in this time.
const SETTLE: Duration = Duration::from_secs(1);

/// What is filled and read.
pub(crate) struct Job<'a> {
    /// Our programs.
    pub(crate) programs: &'a Programs,
    /// The image, which is there only while it is read.
    pub(crate) image: &'a Path,
    /// How large it is.
    pub(crate) size: ByteSize,
    /// How often each program has its turn.
    pub(crate) rounds: u32,
}

impl Job<'_> {
    /// The command that makes the image.
    pub(crate) fn create(&self) -> Command {
        let mut command = self.programs.vdisk();
        command.arg("create").arg(format!("--size={}", self.size.bytes())).arg(self.image);
        command
    }

    /// Compares `vdisk create` with dd and fio where they are here, each making a file of its own.
    pub(crate) fn fill(&self, dd: bool, fio: bool, cancel: &Cancel) -> Result<(Vec<Cell>, Vec<Finding>)> {
        let mut contestants = vec![Contestant::new("vdisk create", || self.create())];
        if dd {
            contestants.push(Contestant::new("dd", || self.dd()));
            contestants.push(Contestant::new("dd conv=fsync", || {
                let mut command = self.dd();
                command.arg("conv=fsync");
                command
            }));
        }
        if fio {
            contestants.extend(fio::sequential("write", self.image, self.size));
        }
        let contest = Contest { group: "Filling an image", contestants, size: self.size, rounds: self.rounds };
        let cells = contest.run(cancel, || {
            fs::remove_file(self.image).context(|| format!("cannot remove {}", self.image.display()))?;
            nix::unistd::sync();
            std::thread::sleep(SETTLE);
            Ok(())
        })?;
        let mut findings = Vec::new();
        if let Some(cell) = cells.iter().find(|cell| is_of(cell, "dd")) {
            findings.extend(over("create-over-dd", "vdisk create over dd oflag=direct", 1.3, &cells[0], cell));
        }
        if let Some(cell) = best_fio(&cells) {
            findings.extend(over("create-over-fio", "vdisk create over fio's best write", 0.97, &cells[0], cell));
        }
        if let Some(share) = median(&cells[0], &CPU_SHARE) {
            let what = "vdisk create's share of one core".to_owned();
            findings.push(Target { id: "create-cpu", what, wanted: Wanted::AtMost(0.2) }.judge(share));
        }
        Ok((cells, findings))
    }

    /// Compares `vdisk verify --zero` with fio, both reading the image.
    pub(crate) fn scan(&self, cancel: &Cancel) -> Result<(Vec<Cell>, Vec<Finding>)> {
        let verify = Contestant::new("vdisk verify --zero", || {
            let mut command = self.programs.vdisk();
            command.args(["verify", "--zero"]).arg(self.image);
            command
        });
        let contestants = std::iter::once(verify).chain(fio::sequential("read", self.image, self.size)).collect();
        let contest = Contest { group: "Reading an image", contestants, size: self.size, rounds: self.rounds };
        let cells = contest.run(cancel, || Ok(()))?;
        let findings = best_fio(&cells)
            .map(|cell| over("verify-over-fio", "vdisk verify --zero over fio's best read", 0.97, &cells[0], cell));
        Ok((cells, findings.unwrap_or_default()))
    }

    fn dd(&self) -> Command {
        let mut of = OsString::from("of=");
        of.push(self.image);
        let mut command = Command::new("dd");
        command.args(["if=/dev/zero", "bs=1M", "oflag=direct"]).arg(of);
        command.arg(format!("count={}", self.size.bytes() / ByteSize::mib(1).bytes()));
        command
    }
}

fn is_of(cell: &Cell, tool: &str) -> bool {
    cell.params.get(&*PROGRAM.name) == Some(&tool.into())
}

/// fio at the queue depth that serves it best.
fn best_fio(cells: &[Cell]) -> Option<&Cell> {
    cells.iter().filter(|cell| is_of(cell, "fio")).max_by(|a, b| f64::total_cmp(&rate(a), &rate(b)))
}

fn rate(cell: &Cell) -> f64 {
    median(cell, &RATE).unwrap_or(0.0)
}

/// Judges how much faster `ours` is than `theirs` by the clock, and notes it by what they say of themselves.
fn over(id: &'static str, what: &str, at_least: f64, ours: &Cell, theirs: &Cell) -> Vec<Finding> {
    let judge = |lead| Target { id, what: what.to_owned(), wanted: Wanted::AtLeast(at_least) }.judge(lead);
    let note = |reported| {
        let ratio = rate(ours) / reported;
        let text = format!("{what} as it reports itself, without its start, reservation and flush: {ratio:.3}");
        Finding::new(Severity::Note, format!("{id}-reported"), text)
    };
    let (lead, reported) = (median(theirs, &LEAD), median(theirs, &REPORTED));
    lead.map(judge).into_iter().chain(reported.map(note)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(name: &str, tool: &str, rate: f64, lead: f64) -> Cell {
        Cell::new("", name)
            .with_param(&PROGRAM, tool)
            .with_figure(&RATE, vec![rate])
            .with_figure(&LEAD, vec![lead])
            .with_figure(&REPORTED, if tool == "fio" { vec![rate * 2.0] } else { Vec::new() })
    }

    #[test]
    fn the_best_of_fio_is_the_one_to_beat() {
        let cells = [
            cell("ours", "vdisk create", 10.0, 1.0),
            cell("8", "fio", 5.0, 2.0),
            cell("16", "fio", 8.0, 1.25),
            cell("dd", "dd", 9.0, 1.1),
        ];
        let best = best_fio(&cells).unwrap();
        assert_eq!(best.name, "16");
        let findings = over("x", "ours over fio", 1.3, &cells[0], best);
        let texts: Vec<&str> = findings.iter().map(|finding| finding.text.as_str()).collect();
        assert_eq!(texts[0], "ours over fio: 1.250, wanted at least 1.30: NOT met");
        assert!(texts[1].ends_with("flush: 0.625"), "{texts:?}");
        assert_eq!(over("x", "ours over dd", 1.3, &cells[0], &cells[3]).len(), 1);
        assert!(best_fio(&cells[..1]).is_none());
    }
}
