//! Random I/O against fio, by way of `bench disk --against fio`.

use std::path::{Path, PathBuf};
use std::process::Command;

use bench::report::vocabulary::{BLOCK_SIZE, CPU_RATIO, IOPS_RATIO, QUEUE_DEPTH, RW, TARGET};
use bench::report::{Cell, Finding, Measure, Run, Severity, Value, stats};
use blockdev::{Cancel, Result, ui};

use crate::child;
use crate::programs::Programs;
use crate::target::{Target, Wanted};

/// What every load runs for before it is measured, in each round.
const WARMUP: &str = "--warmup=500ms";

/// What no load may fall short of, in IOPS over fio's.
const LEAST: f64 = 0.93;

/// How many times the rounds a load has when it is measured again.
const AGAIN: u32 = 3;

/// Random reads and writes of one target, which bench and fio take turns at.
pub(crate) struct Job<'a> {
    pub(crate) programs: &'a Programs,
    pub(crate) target: &'a Path,
    /// What its cells are called after.
    pub(crate) what: &'a str,
    pub(crate) rounds: u32,
    pub(crate) runtime: &'a str,
}

impl Job<'_> {
    /// Measures the table. Of two dozen loads, a few seem slow by chance; those that fall short are measured again, longer,
    /// and what that finds stands in their place, with a word about it.
    pub(crate) fn table(&self, cancel: &Cancel) -> Result<Run> {
        let mut run = self.measure(["randread,randwrite", "4k,8k,16k", "1,8,32,128"], self.rounds, cancel)?;
        for (name, ratio) in too_slow(&run.cells) {
            let load = run.cells.iter().find(|cell| cell.name == name).map(|cell| {
                [&RW, &BLOCK_SIZE, &QUEUE_DEPTH].map(|parameter| cell.params.get(&*parameter.name).map(option_of))
            });
            let Some([Some(pattern), Some(block), Some(depth)]) = load else { continue };
            ui::notice(&format!("Once more, since bench reached {ratio:.3} of fio's IOPS: {name}"));
            let again = self.measure([&pattern, &block, &depth], self.rounds * AGAIN, cancel)?;
            let ratio_again =
                again.cells.iter().find_map(iops_ratio).map_or("nothing".to_owned(), |ratio| format!("{ratio:.3}"));
            let text = format!(
                "{name}: bench reached {ratio:.3} of fio's IOPS (rounds: {}), and {ratio_again} when measured again (rounds: {}), \
                 which counts",
                self.rounds,
                self.rounds * AGAIN
            );
            run.findings.push(Finding::new(Severity::Note, "random-again", text));
            for cell in again.cells {
                if let Some(before) = run.cells.iter_mut().find(|before| before.name == cell.name) {
                    *before = cell;
                }
            }
        }
        Ok(run)
    }

    /// Runs bench and fio under the loads that the values of `--rw`, `--bs` and `--iodepth` make.
    fn measure(&self, [rw, bs, iodepth]: [&str; 3], rounds: u32, cancel: &Cancel) -> Result<Run> {
        let mut command = self.programs.bench();
        command.arg("disk").arg(format!("--rw={rw}")).arg(format!("--bs={bs}")).arg(format!("--iodepth={iodepth}"));
        command.arg(format!("--rounds={rounds}")).arg(format!("--runtime={}", self.runtime)).arg(WARMUP);
        command.args(["--against=fio", "--output=json"]).arg(self.target);
        let mut run = Run::parse(child::run(command, cancel)?.stdout.as_bytes(), "what bench disk printed")?;
        // What it says of one table is said of all of them in the end.
        run.findings.clear();
        for cell in &mut run.cells {
            cell.group = format!("{} on the {}", cell.group, self.what);
            cell.name = format!("{} on the {}", cell.name, self.what);
            // Two sections of one report, each about one target.
            cell.params.insert(TARGET.name.to_string(), self.what.into());
        }
        Ok(run)
    }
}

/// The value of a parameter as an option takes it.
fn option_of(value: &Value) -> String {
    match value {
        Value::Flag(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::Text(text) => text.clone(),
    }
}

fn iops_ratio(cell: &Cell) -> Option<f64> {
    cell.figures.get(&*IOPS_RATIO.name).map(|figure| figure.value)
}

/// The loads that fall short, by name, and what they reached.
fn too_slow(cells: &[Cell]) -> Vec<(String, f64)> {
    let ratio = |cell: &Cell| Some((cell.name.clone(), iops_ratio(cell)?));
    cells.iter().filter_map(ratio).filter(|(_, ratio)| *ratio < LEAST).collect()
}

/// Judges all tables together.
pub(crate) fn judge(cells: &[Cell]) -> Vec<Finding> {
    let ratios = |measure: &Measure| -> Vec<f64> {
        cells.iter().filter_map(|cell| cell.figures.get(&*measure.name)).map(|figure| figure.value).collect()
    };
    let (iops, cpu) = (ratios(&IOPS_RATIO), ratios(&CPU_RATIO));
    let target = |id, what: String, wanted| Target { id, what, wanted };
    let median = stats::median(&iops).map(|ratio| {
        let what = format!("IOPS of bench over fio's, median of {} loads", iops.len());
        target("random-iops", what, Wanted::AtLeast(1.0)).judge(ratio)
    });
    let worst = cells.iter().filter_map(|cell| Some((iops_ratio(cell)?, &cell.name)));
    let worst = worst.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(ratio, name)| {
        let what = format!("IOPS of bench over fio's where that is least ({name})");
        target("random-iops-least", what, Wanted::AtLeast(LEAST)).judge(ratio)
    });
    let cpu = stats::median(&cpu).map(|ratio| {
        let what = format!("CPU per I/O of bench over fio's, median of {} loads", cpu.len());
        target("random-cpu", what, Wanted::AtMost(1.0)).judge(ratio)
    });
    median.into_iter().chain(worst).chain(cpu).collect()
}

/// A loop device, detached when it goes out of scope.
pub(crate) struct Attached<'a> {
    programs: &'a Programs,
    /// The device.
    pub(crate) device: PathBuf,
}

impl<'a> Attached<'a> {
    /// Attaches `image`.
    pub(crate) fn new(programs: &'a Programs, image: &Path, cancel: &Cancel) -> Result<Self> {
        let mut command = programs.vdisk();
        command.arg("attach").arg(image);
        // What it prints is the device and nothing else.
        let device = PathBuf::from(child::run(command, cancel)?.stdout.trim_end());
        Ok(Self { programs, device })
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        let mut command: Command = self.programs.vdisk();
        command.arg("detach").arg(&self.device);
        // Also when it is over because somebody asked to stop.
        if let Err(error) = child::run(command, &Cancel::new()) {
            blockdev::ui::report_error("peers", &error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_judged_as_a_whole_and_at_its_worst() {
        let cell = |name: &str, iops: f64, cpu: f64| {
            Cell::new("", name).with_figure(&IOPS_RATIO, vec![iops]).with_figure(&CPU_RATIO, vec![cpu])
        };
        let cells = [cell("a", 1.1, 0.5), cell("b", 0.9, 0.8), cell("c", 1.0, 1.2), Cell::new("", "fio's own")];
        let verdicts: Vec<(String, Severity)> =
            judge(&cells).into_iter().map(|finding| (finding.text, finding.severity)).collect();
        let [median, worst, cpu] = verdicts.as_slice() else { panic!("{verdicts:?}") };
        assert!(median.0.starts_with("IOPS of bench over fio's, median of 3 loads: 1.000"), "{median:?}");
        assert_eq!(median.1, Severity::Note);
        assert!(worst.0.contains("(b): 0.900, wanted at least 0.93: NOT met"), "{worst:?}");
        assert!(cpu.0.contains("0.800, wanted at most 1.00: met"), "{cpu:?}");
        assert!(judge(&[]).is_empty());
        assert_eq!(too_slow(&cells), [("b".to_owned(), 0.9)]);
    }
}
