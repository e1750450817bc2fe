//! Measuring one disk: what it can do, and whether it keeps what it acknowledged.

mod flush;
mod outcome;
mod plan;
mod profile;
mod rival;
mod safety;
mod scratch;
mod target;
mod unwritten;
pub mod verify;

use std::time::{Duration, Instant};

use blockdev::{Cancel, Error, ErrorKind, Result};

use crate::load::{self, fio};
use crate::report::vocabulary as v;
use crate::report::{self, Cell, Environment, Finding, Plot, PlotKind, Run, Severity};
use outcome::Rounds;

pub use plan::{Common, Spec, Sweep, cells, region};
pub use profile::Profile;
pub use safety::may_overwrite;
pub use scratch::Scratch;
pub use target::{Caching, Target};
pub use unwritten::measure as measure_unwritten;

// What other experiments on a disk of their own have in common with this one.
pub(crate) use outcome::Rounds as DiskRounds;
pub(crate) use rival::{compare, summary};
pub(crate) use scratch::{Directory, IMAGE, LOOP};
pub(crate) use target::MEMORY_FILE_SYSTEMS;

/// Is told how far an experiment has come.
pub trait Progress {
    /// A cell begins: its number from 1, how many there are, its name, and how long this and all that follow will take.
    fn cell(&mut self, number: usize, of: usize, name: &str, left: Duration);
    /// The cell has been running so long.
    fn elapsed(&mut self, elapsed: Duration);
}

/// Tells nobody.
#[derive(Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn cell(&mut self, _number: usize, _of: usize, _name: &str, _left: Duration) {}
    fn elapsed(&mut self, _elapsed: Duration) {}
}

/// How an experiment is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Method {
    /// How often every cell is run.
    pub rounds: u32,
    /// Whether fio runs the same load after each of ours.
    pub against_fio: bool,
}

/// A run on `targets` that has measured nothing yet.
#[must_use]
pub fn begin(targets: &[Target]) -> Run {
    let names: Vec<&str> = targets.iter().map(Target::name).collect();
    let environment = Environment::of_this_machine(targets.iter().map(Target::facts).collect());
    Run::begin("disk", names.join(", "), environment)
}

/// Runs each of `specs` on its target, and all of them again in each further round, so that whatever changes meanwhile
/// changes for all. Once `cancel` is set, what was measured by then is returned, and [`Run::completed`] is false.
///
/// An I/O error ends its cell and is reported in it; the other cells are run.
///
/// # Errors
/// When a target cannot be opened or looked at.
pub fn measure(
    targets: &[Target],
    specs: &[Spec],
    method: Method,
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<Run> {
    let began = Instant::now();
    let mut run = begin(targets);
    let mut outcomes: Vec<Outcome> = specs.iter().map(|_| Outcome::default()).collect();
    let fio = method.against_fio.then(fio::version).transpose()?;
    let programs = if fio.is_some() { 2 } else { 1 };
    let cost = |spec: &Spec| (spec.work.warmup + spec.work.runtime) * programs;
    let mut left: Duration = specs.iter().map(cost).sum::<Duration>() * method.rounds;
    let steps = specs.len() * method.rounds as usize;
    let mut step = 0;
    for round in 0..method.rounds {
        for (spec, outcome) in specs.iter().zip(&mut outcomes) {
            if cancel.is_cancelled() {
                break;
            }
            step += 1;
            progress.cell(step, steps, &spec.name, left);
            left = left.saturating_sub(cost(spec));
            let target = &targets[spec.target];
            outcome.run(round, spec, target, progress, cancel)?;
            if fio.is_some() && !cancel.is_cancelled() {
                match fio::run(&spec.work, target.path(), target.is_direct(), cancel) {
                    Ok(measured) => outcome.rival.add(round, spec, &measured),
                    // One cell less to compare; what is measured already is not lost for it.
                    Err(error) if error.kind() == ErrorKind::Io => outcome.rival.fail(with_cause(&error)),
                    Err(error) => return Err(error),
                }
            }
        }
    }
    run.findings = findings(specs, targets, &outcomes);
    run.parameters =
        vec![v::TARGET, v::RW, v::BLOCK_SIZE, v::QUEUE_DEPTH, v::JOBS, v::FDATASYNC, v::RATE, v::ENGINE, v::PROGRAM];
    run.measures =
        vec![v::IOPS, v::BANDWIDTH, v::P50, v::P99, v::P999, v::SYNC_P50, v::CPU_PER_OP, v::IOPS_RATIO, v::CPU_RATIO];
    run.plots = plots(specs);
    for (spec, outcome) in specs.iter().zip(outcomes) {
        run.cells.extend(outcome.into_cells(spec, &targets[spec.target], fio.as_deref()));
    }
    profile::highlight(&mut run, specs);
    let summary = fio.and_then(|fio| rival::summary(&run.cells, &fio, &rival::RATIOS));
    run.findings.extend(summary.map(|text| Finding::new(Severity::Note, "against-fio", text)));
    run.end(began.elapsed(), !cancel.is_cancelled());
    Ok(run)
}

/// What became of one cell.
#[derive(Debug, Default)]
struct Outcome {
    rounds: Rounds,
    rival: Rounds,
    not_disk: Option<String>,
    notices: Vec<String>,
}

impl Outcome {
    fn run(
        &mut self,
        round: u32,
        spec: &Spec,
        target: &Target,
        progress: &mut dyn Progress,
        cancel: &Cancel,
    ) -> Result<()> {
        // Extents change when they are written: what one round finds is not what the next will.
        let not_disk = target.why_not_disk(&spec.work)?;
        self.not_disk = self.not_disk.take().or(not_disk);
        let open = || target.engine(spec.engine, &spec.work);
        match load::run(&spec.work, open, cancel, |elapsed| progress.elapsed(elapsed)) {
            Ok(measured) => {
                self.rounds.add(round, spec, &measured);
                self.notices.extend(measured.notices);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Io => {
                self.rounds.fail(with_cause(&error));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Our cell, and that of `fio` where it ran too.
    fn into_cells(self, spec: &Spec, target: &Target, fio: Option<&str>) -> Vec<Cell> {
        let cell = |rounds: Rounds| (!rounds.is_empty()).then(|| rounds.into_cell(spec, target.name()));
        let (mut ours, mut theirs) = (cell(self.rounds), cell(self.rival));
        if let Some(fio) = fio {
            ours = ours.map(|cell| cell.with_param(&v::PROGRAM, "bench"));
            theirs = theirs.map(|cell| cell.with_param(&v::PROGRAM, fio));
        }
        if let (Some(ours), Some(theirs)) = (&mut ours, &mut theirs) {
            theirs.name += ", fio";
            rival::compare(ours, theirs, &rival::COMPARED);
        }
        let mut cells: Vec<Cell> = ours.into_iter().chain(theirs).collect();
        for cell in &mut cells {
            cell.not_disk.clone_from(&self.not_disk);
        }
        cells
    }
}

/// An error and why it came about, in one line.
pub(crate) fn with_cause(error: &Error) -> String {
    let cause = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    format!("{error}{cause}")
}

/// What the cells together have to say.
fn findings(specs: &[Spec], targets: &[Target], outcomes: &[Outcome]) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    let mut say = |finding: Finding| {
        if !findings.contains(&finding) {
            findings.push(finding);
        }
    };
    for (spec, outcome) in specs.iter().zip(outcomes) {
        if let Some(error) = &outcome.rounds.error {
            say(Finding::new(Severity::Error, "io-error", format!("{}: {error}", spec.name)));
        }
        if let Some(error) = &outcome.rival.error {
            say(Finding::new(Severity::Error, "rival-failed", format!("{}: not compared: {error}", spec.name)));
        }
        if let Some(why) = &outcome.not_disk {
            say(Finding::new(Severity::Warning, "not-disk", format!("Some numbers are not those of a disk: {why}."))
                .with_hint("`vdisk create` writes every block of an image; measure that, or its loop device"));
        }
        if outcome.rounds.waiting > 0 {
            say(Finding::new(
                Severity::Warning,
                "overload",
                format!(
                    "{}: {} arrivals were due and still waited for a place in the queue when time was up. Where that \
                     grows with the runtime, the disk cannot keep up, and response times have no end.",
                    spec.name, outcome.rounds.waiting
                ),
            )
            .with_hint("a lower --rate, or a greater --iodepth"));
        }
        flush::finding(spec, &targets[spec.target], outcome.rounds.syncs()).map(&mut say);
        for notice in &outcome.notices {
            say(Finding::new(Severity::Note, "engine", notice));
        }
    }
    findings
}

/// What is worth drawing.
fn plots(specs: &[Spec]) -> Vec<Plot> {
    let mut groups: Vec<&str> = specs.iter().map(|spec| spec.group).collect();
    groups.dedup();
    let names = |parameters: &[&report::Parameter]| parameters.iter().map(|p| p.name.to_string()).collect::<Vec<_>>();
    let mut plots = Vec::new();
    for group in groups {
        let of_group = || specs.iter().filter(|spec| spec.group == group);
        let depths: std::collections::HashSet<u32> = of_group().map(|spec| spec.work.depth).collect();
        let plot = |title: &str, kind, lines: &[&report::Parameter]| Plot {
            title: title.to_owned(),
            kind,
            group: group.to_owned(),
            panels: names(&[&v::TARGET, &v::RW]),
            lines: names(lines),
            references: Vec::new(),
        };
        if depths.len() > 1 {
            let kind = PlotKind::Figure { measure: v::IOPS.name.to_string(), x: v::QUEUE_DEPTH.name.to_string() };
            plots.push(plot("IOPS against queue depth", kind, &[&v::BLOCK_SIZE, &v::JOBS]));
        }
        let lines = [&v::BLOCK_SIZE, &v::QUEUE_DEPTH, &v::JOBS];
        let open_loop = of_group().any(|spec| spec.work.rate.is_some());
        let latency = if open_loop { "response" } else { "service" };
        plots.push(plot("Latency percentiles", PlotKind::Percentiles { latency: latency.to_owned() }, &lines));
        if of_group().any(|spec| spec.work.fdatasync > 0) {
            let kind = PlotKind::Percentiles { latency: "fdatasync".to_owned() };
            plots.push(plot("fdatasync percentiles", kind, &lines));
        }
        plots.push(plot("IOPS over time", PlotKind::Course { measure: v::IOPS.name.to_string() }, &lines));
    }
    plots
}
