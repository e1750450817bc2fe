//! Random I/O against fio, by way of `bench disk --against fio`.

use std::path::{Path, PathBuf};
use std::process::Command;

use bench::report::vocabulary::{CPU_RATIO, IOPS_RATIO, TARGET};
use bench::report::{Cell, Finding, Measure, Run, stats};
use blockdev::{Cancel, Result};

use crate::child;
use crate::programs::Programs;
use crate::target::{Target, Wanted};

/// What every load runs for before it is measured, in each round.
const WARMUP: &str = "--warmup=500ms";

/// Measures random reads and writes of `target`, which bench and fio take turns at. The cells are called after `what`.
pub(crate) fn table(
    programs: &Programs,
    target: &Path,
    what: &str,
    rounds: u32,
    runtime: &str,
    cancel: &Cancel,
) -> Result<Run> {
    let mut command = programs.bench();
    command.args(["disk", "--rw=randread,randwrite", "--bs=4k,8k,16k", "--iodepth=1,8,32,128", WARMUP]);
    command.arg(format!("--rounds={rounds}")).arg(format!("--runtime={runtime}"));
    command.args(["--against=fio", "--output=json"]).arg(target);
    let mut run = Run::parse(child::run(command, cancel)?.stdout.as_bytes(), "what bench disk printed")?;
    for cell in &mut run.cells {
        cell.group = format!("{} on the {what}", cell.group);
        cell.name = format!("{} on the {what}", cell.name);
        // Two sections of one report, each about one target.
        cell.params.insert(TARGET.name.to_string(), what.into());
    }
    Ok(run)
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
    let worst = cells.iter().filter_map(|cell| Some((cell.figures.get(&*IOPS_RATIO.name)?.value, &cell.name)));
    let worst = worst.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(ratio, name)| {
        let what = format!("IOPS of bench over fio's where that is least ({name})");
        target("random-iops-least", what, Wanted::AtLeast(0.93)).judge(ratio)
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
    use bench::report::Severity;

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
    }
}
