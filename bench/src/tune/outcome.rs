//! What came of it: the figures, the ranking and the words.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use blockdev::topology;
use serde_json::json;

use super::command::commands;
use super::plan::{Plan, ROUNDS_MIN};
use super::rank::{Comparison, Difference, Rates, Verdict, compare};
use super::setup::{Factor, Setup};
use super::visit::{Reading, Visit};
use super::workload::Workload;
use super::{LeftOut, Options};
use crate::report::stats::{self, Estimate};
use crate::report::vocabulary::{CPU_PER_OP, IOPS, P50, P99};
use crate::report::{
    Better, Cell, Environment, Finding, Measure, Parameter, Plot, PlotKind, Reference, Run, Severity, Target, Unit,
};

const SETUP: Parameter = Parameter::new("setup", "setup", Unit::Count);
const VERDICT: Parameter = Parameter::new("verdict", "verdict", Unit::Count);

/// How fast a setup is, the baseline being 1: the median over the rounds of the ratio within each.
const SPEED: Measure = Measure::new("speed", "speed", Unit::Ratio, Better::Higher);
/// Where the speed really is, with 95 % confidence.
const SPEED_LOW: Measure = Measure::new("speed_low", "at least", Unit::Ratio, Better::Higher);
const SPEED_HIGH: Measure = Measure::new("speed_high", "at most", Unit::Ratio, Better::Higher);

/// How many times as fast the baseline may be in one round as in another before the reader is warned.
const UNREST: f64 = 1.5;

/// The section of the report that ranks.
const RANKING: &str = "Ranking";

/// All that a tuning found out.
#[derive(Debug)]
pub(super) struct Outcome {
    dir: PathBuf,
    plan: Plan,
    /// What was compared; the first is the baseline.
    pub(super) setups: Vec<Setup>,
    left_out: Vec<LeftOut>,
    /// For each round, a visit of each setup.
    rounds: Vec<Vec<Visit>>,
    comparisons: Vec<Comparison>,
    /// The best combination against the baseline.
    pub(super) duel: Option<Duel>,
    run: Run,
}

/// Two setups, measured against each other alone.
#[derive(Debug)]
pub(super) struct Duel {
    best: Setup,
    rounds: usize,
    comparison: Comparison,
}

impl Duel {
    /// What came of the visits of the baseline and the best.
    pub(super) fn new([_, best]: [Setup; 2], rounds: &[Vec<Visit>]) -> Self {
        Self { best, rounds: rounds.len(), comparison: compare(&rates(rounds, 2), 0).swap_remove(1) }
    }

    fn overall(&self) -> Option<&Difference> {
        self.comparison.overall.as_ref()
    }
}

impl Outcome {
    /// Nothing is measured yet.
    pub(super) fn new(options: &Options, plan: &Plan, setups: Vec<Setup>, left_out: Vec<LeftOut>) -> Self {
        let facts = json!({
            "file_system": File::open(&options.dir).ok().and_then(|dir| topology::file_system(&dir).ok().flatten()),
            "image_size": plan.image,
            "seed": options.seed,
        });
        let name = options.dir.display().to_string();
        let environment = Environment::of_this_machine(vec![Target { name: name.clone(), facts }]);
        Self {
            dir: options.dir.clone(),
            plan: *plan,
            comparisons: vec![Comparison::default(); setups.len()],
            setups,
            left_out,
            rounds: Vec::new(),
            duel: None,
            run: Run::begin("tune", name, environment),
        }
    }

    /// Takes what the rounds measured.
    pub(super) fn compare(&mut self, rounds: Vec<Vec<Visit>>) {
        self.comparisons = compare(&rates(&rounds, self.setups.len()), 0);
        self.rounds = rounds;
    }

    /// The baseline with every choice that is faster, beyond noise and without a risk to the data; nothing where none is.
    pub(super) fn best(&self) -> Option<Setup> {
        let baseline = &self.setups[0];
        let mut gains: Vec<(f64, Factor, &Setup)> = Vec::new();
        for (setup, comparison) in self.setups.iter().zip(&self.comparisons) {
            if let ([factor], Some(difference)) = (&setup.changes_from(baseline)[..], &comparison.overall)
                && *factor != Factor::Device
                && setup.risk().is_none()
                && difference.verdict() == Verdict::Faster
            {
                gains.push((difference.ratio.value, *factor, setup));
            }
        }
        // The best of each factor is applied last, and stays.
        gains.sort_by(|a, b| a.0.total_cmp(&b.0));
        let best = gains.iter().fold(baseline.clone(), |best, (_, factor, setup)| best.with(*factor, setup));
        (best != *baseline).then_some(best)
    }

    /// The report.
    pub(super) fn into_run(mut self, elapsed: Duration, completed: bool) -> Run {
        self.run.parameters = vec![SETUP, VERDICT];
        self.run.measures = vec![SPEED, SPEED_LOW, SPEED_HIGH, IOPS, P50, P99, CPU_PER_OP];
        self.run.findings = self.findings();
        self.run.cells = self.cells();
        self.run.plots = self.plots();
        self.run.end(elapsed, completed);
        self.run
    }

    fn baseline(&self) -> &Setup {
        &self.setups[0]
    }

    fn name(&self, setup: &Setup) -> String {
        setup.name(self.baseline())
    }

    /// The setups from the fastest to the slowest; those that cannot be compared come last.
    fn ranking(&self) -> Vec<usize> {
        let speed = |setup: usize| match &self.comparisons[setup].overall {
            _ if setup == 0 => 1.0,
            Some(difference) => difference.ratio.value,
            None => 0.0,
        };
        let mut order: Vec<usize> = (0..self.setups.len()).collect();
        order.sort_by(|a, b| speed(*b).total_cmp(&speed(*a)));
        order
    }

    fn cells(&self) -> Vec<Cell> {
        let order = self.ranking();
        let mut cells: Vec<Cell> = order
            .iter()
            .map(|setup| {
                let name = self.name(&self.setups[*setup]);
                let cell = Cell::new(RANKING, &name).with_param(&SETUP, name);
                compared(cell, *setup == 0, self.comparisons[*setup].overall.as_ref())
            })
            .collect();
        if let Some(duel) = &self.duel {
            let name = self.name(&duel.best);
            let cell = Cell::new("Head to head", format!("{name}, head to head")).with_param(&SETUP, name);
            cells.push(compared(cell, false, duel.overall()));
        }
        for (index, workload) in Workload::ALL.into_iter().enumerate() {
            cells.extend(order.iter().map(|setup| self.workload_cell(*setup, index, workload)));
        }
        cells
    }

    fn workload_cell(&self, setup: usize, index: usize, workload: Workload) -> Cell {
        let name = self.name(&self.setups[setup]);
        let readings: Vec<&Reading> = self.rounds.iter().map(|round| &round[setup].readings[index]).collect();
        let each = |value: fn(&Reading) -> f64| readings.iter().map(|reading| value(reading)).collect::<Vec<f64>>();
        let cell = Cell::new(workload.name(), format!("{}: {name}", workload.name())).with_param(&SETUP, name);
        let mut cell = compared(cell, setup == 0, self.comparisons[setup].workloads[index].as_ref())
            .with_figure(&IOPS, each(|reading| reading.iops))
            .with_figure(&P50, each(|reading| reading.p50_ns))
            .with_figure(&P99, each(|reading| reading.p99_ns))
            .with_figure(&CPU_PER_OP, each(|reading| reading.cpu_per_op_ns));
        cell.not_disk = readings.iter().find_map(|reading| reading.not_disk.clone());
        cell
    }

    fn plots(&self) -> Vec<Plot> {
        let plot = |title: &str, group: &str, measure: &Measure, references| Plot {
            title: title.to_owned(),
            kind: PlotKind::Figure { measure: measure.name.to_string(), x: SETUP.name.to_string() },
            group: group.to_owned(),
            panels: Vec::new(),
            lines: Vec::new(),
            references,
        };
        let baseline = vec![Reference { label: "baseline".to_owned(), value: 1.0 }];
        let mut plots = vec![plot("Speed in the whole mix", RANKING, &SPEED, baseline)];
        plots.extend(Workload::ALL.map(|workload| plot(&workload.name(), &workload.name(), &IOPS, Vec::new())));
        plots
    }

    fn findings(&self) -> Vec<Finding> {
        let mut findings = vec![self.winner()];
        findings.extend(self.too_few_rounds());
        findings.extend(self.unrest());
        findings.push(Finding::new(
            Severity::Note,
            "baseline",
            format!("baseline: {}; images of {}, {} rounds", self.baseline(), self.plan.image, self.rounds.len()),
        ));
        for (setup, comparison) in self.setups.iter().zip(&self.comparisons).skip(1) {
            findings.extend(self.change(setup, comparison));
        }
        findings.extend(self.left_out.iter().map(|left_out| {
            Finding::new(Severity::Warning, "left-out", format!("not measured: {}: {}", left_out.what, left_out.why))
        }));
        findings
    }

    /// The verdict, with the commands that follow from it.
    fn winner(&self) -> Finding {
        let baseline = self.baseline();
        let held = self.duel.as_ref().and_then(|duel| {
            duel.overall().filter(|difference| difference.verdict() == Verdict::Faster).map(|found| (duel, found))
        });
        let (setup, mut text) = match (held, &self.duel) {
            (Some((duel, difference)), _) => (
                &duel.best,
                format!(
                    "best: {} ({}), {} as fast as the baseline over the whole mix, head to head in {} rounds",
                    self.name(&duel.best),
                    duel.best,
                    times(difference.ratio),
                    duel.rounds
                ),
            ),
            (None, Some(duel)) => {
                let against = duel.overall().map(|found| format!(": {}", times(found.ratio))).unwrap_or_default();
                let text = format!(
                    "best: the baseline; {} looked faster, but is not beyond noise when the two meet head to head in {} rounds{against}",
                    self.name(&duel.best),
                    duel.rounds
                );
                (baseline, text)
            }
            (None, None) => (baseline, "best: the baseline; no change that is safe is faster beyond noise".to_owned()),
        };
        let kernel_scheduler = baseline.device.as_ref().map(|device| device.scheduler.as_str());
        if setup.engine != baseline.engine {
            text += &format!("; its engine is an option of the programs that do the I/O: --engine {}", setup.engine);
        }
        Finding::new(Severity::Note, "best", text).with_hint(commands(setup, &self.dir, kernel_scheduler))
    }

    fn too_few_rounds(&self) -> Option<Finding> {
        let rounds = self.rounds.len();
        (rounds < ROUNDS_MIN as usize).then(|| {
            Finding::new(
                Severity::Warning,
                "too-few-rounds",
                format!("only {rounds} rounds were measured: fewer than {ROUNDS_MIN} can hardly tell a difference from noise"),
            )
            .with_hint("give more --time, or --vary fewer choices")
        })
    }

    /// A warning when even the baseline was far from the same in all rounds.
    fn unrest(&self) -> Option<Finding> {
        let speeds: Vec<f64> = self
            .rounds
            .iter()
            .filter_map(|round| {
                let rates: Vec<f64> = round[0].readings.iter().map(|reading| reading.iops).collect();
                stats::geometric_mean(&rates)
            })
            .collect();
        let slowest = speeds.iter().copied().fold(f64::INFINITY, f64::min);
        let fastest = speeds.iter().copied().fold(0.0, f64::max);
        (fastest > slowest * UNREST).then(|| {
            Finding::new(
                Severity::Warning,
                "unrest",
                format!(
                    "the baseline itself was {:.1} times as fast in one round as in another: only large differences can be told",
                    fastest / slowest
                ),
            )
            .with_hint("repeat it when nothing else works on this machine, or with more --time")
        })
    }

    /// What one change makes of the baseline.
    fn change(&self, setup: &Setup, comparison: &Comparison) -> Option<Finding> {
        let [factor] = setup.changes_from(self.baseline())[..] else { return None };
        let (new, old) = (setup.choice(factor), self.baseline().choice(factor));
        let overall = comparison.overall.as_ref()?;
        let mut text = match overall.verdict() {
            Verdict::Noise => format!("{new} vs {old}: noise over the whole mix, {}", times(overall.ratio)),
            Verdict::Faster => format!("{new}: {} as fast as {old} over the whole mix", times(overall.ratio)),
            Verdict::Slower => format!("{old}: {} as fast as {new} over the whole mix", times(inverse(overall.ratio))),
        };
        let mut strongest: Vec<(Workload, &Difference)> = Workload::ALL
            .into_iter()
            .zip(&comparison.workloads)
            .filter_map(|(workload, difference)| Some((workload, difference.as_ref()?)))
            .filter(|(_, difference)| difference.verdict() != Verdict::Noise)
            .collect();
        strongest.sort_by(|a, b| b.1.ratio.value.ln().abs().total_cmp(&a.1.ratio.value.ln().abs()));
        for (workload, difference) in strongest.iter().take(2) {
            let (winner, ratio) = match difference.verdict() {
                Verdict::Slower => (&old, inverse(difference.ratio)),
                _ => (&new, difference.ratio),
            };
            text += &format!("; {winner}: {} as fast in {}", times(ratio), workload.name());
        }
        if factor == Factor::Device {
            text += "; the raw file is the ceiling, not a disk that containers can share";
        }
        let mut finding = Finding::new(Severity::Note, format!("change-{}", new.replace(' ', "-")), text);
        if let Some(risk) = setup.risk() {
            finding = finding.with_hint(format!("never recommended: {risk}"));
        }
        Some(finding)
    }
}

/// The rates of every setup.
fn rates(rounds: &[Vec<Visit>], setups: usize) -> Vec<Rates> {
    let of = |setup: usize, workload: usize| -> Option<Vec<f64>> {
        let readings = rounds.iter().map(|round| &round[setup].readings[workload]);
        readings.map(|reading| reading.not_disk.is_none().then_some(reading.iops)).collect()
    };
    (0..setups).map(|setup| Rates(std::array::from_fn(|workload| of(setup, workload)))).collect()
}

/// `cell` with how it compares with the baseline.
fn compared(cell: Cell, is_baseline: bool, difference: Option<&Difference>) -> Cell {
    let Some(difference) = difference else {
        return if is_baseline {
            cell.with_param(&VERDICT, "baseline").with_figure(&SPEED, vec![1.0])
        } else {
            cell.with_param(&VERDICT, "not comparable")
        };
    };
    let verdict = match difference.verdict() {
        Verdict::Faster => "faster",
        Verdict::Slower => "slower",
        Verdict::Noise => "noise",
    };
    cell.with_param(&VERDICT, verdict)
        .with_figure(&SPEED, difference.ratios.clone())
        .with_figure(&SPEED_LOW, vec![difference.ratio.low])
        .with_figure(&SPEED_HIGH, vec![difference.ratio.high])
}

/// `1.9x (1.7 to 2.1)`.
fn times(ratio: Estimate) -> String {
    let Estimate { value, low, high } = ratio;
    format!("{value:.2}x ({low:.2} to {high:.2})")
}

fn inverse(ratio: Estimate) -> Estimate {
    Estimate { value: 1.0 / ratio.value, low: 1.0 / ratio.high, high: 1.0 / ratio.low }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::plan::Budget;
    use crate::tune::workload::Part;
    use blockdev::ByteSize;
    use fastrand::Rng;

    const ROUNDS: usize = 8;

    fn options() -> Options {
        let budget = Budget { time: Duration::from_secs(120), space: ByteSize::gib(4) };
        Options { dir: PathBuf::from("/srv"), budget, vary: Vec::new(), seed: 1 }
    }

    fn setups() -> Vec<Setup> {
        Setup::recommended("none").one_change_each(&["none", "bfq"].map(str::to_owned))
    }

    /// A visit of a setup that is `speed` times as fast as the baseline.
    fn visit(rng: &mut Rng, speed: f64) -> Visit {
        let mut reading = || {
            let speed = speed * (0.98 + 0.04 * rng.f64());
            Reading {
                iops: 10_000.0 * speed,
                p50_ns: 1e6 / speed,
                p99_ns: 3e6 / speed,
                cpu_per_op_ns: 5e3,
                not_disk: None,
            }
        };
        Visit {
            readings: Workload::ALL.iter().map(|_| reading()).collect(),
            building: Duration::ZERO,
            measuring: Duration::ZERO,
            elapsed: Duration::ZERO,
        }
    }

    /// What comes of rounds in which setup `i` is `speed(i)` times as fast as the baseline.
    fn measured(speed: impl Fn(&str) -> f64, left_out: Vec<LeftOut>) -> Outcome {
        let mut rng = Rng::with_seed(1);
        let setups = setups();
        let round = |rng: &mut Rng| setups.iter().map(|setup| visit(rng, speed(&setup.name(&setups[0])))).collect();
        let rounds = (0..ROUNDS).map(|_| round(&mut rng)).collect();
        let mut outcome = Outcome::new(&options(), &Plan::trial(), setups.clone(), left_out);
        outcome.compare(rounds);
        outcome
    }

    fn head_to_head(outcome: &mut Outcome, speed: f64) {
        let mut rng = Rng::with_seed(2);
        let rounds: Vec<_> = (0..ROUNDS).map(|_| vec![visit(&mut rng, 1.0), visit(&mut rng, speed)]).collect();
        let best = outcome.best().expect("something is better");
        outcome.duel = Some(Duel::new([outcome.setups[0].clone(), best], &rounds));
    }

    fn texts(run: &Run) -> Vec<String> {
        let text = |finding: &Finding| match &finding.hint {
            Some(hint) => format!("{}\n  {hint}", finding.text),
            None => finding.text.clone(),
        };
        run.findings.iter().map(text).collect()
    }

    #[test]
    fn what_is_faster_and_safe_is_combined_and_verified() {
        let speed = |name: &str| match name {
            "4096-byte blocks" => 1.2,
            "bfq" => 1.3,
            "uring-sqpoll" => 1.1,
            "threads" => 0.7,
            // Faster than all, and yet no choice: one loses data, the other is no disk.
            "sparse" | "raw file" => 2.0,
            _ => 1.0,
        };
        let mut outcome = measured(speed, Vec::new());
        let best = outcome.best().unwrap();
        assert_eq!(best.name(outcome.baseline()), "4096-byte blocks + bfq + uring-sqpoll");
        head_to_head(&mut outcome, 1.7);
        let run = outcome.into_run(Duration::from_secs(100), true);
        let json = run.to_json().unwrap();
        assert_eq!(Run::parse(json.as_bytes(), "run").unwrap(), run);
        insta::assert_snapshot!(texts(&run).join("\n"));
    }

    #[test]
    fn what_does_not_hold_up_head_to_head_is_not_recommended() {
        let mut outcome = measured(|name| if name == "bfq" { 1.2 } else { 1.0 }, Vec::new());
        head_to_head(&mut outcome, 1.0);
        let texts = texts(&outcome.into_run(Duration::from_secs(100), true));
        assert!(texts[0].starts_with("best: the baseline; bfq looked faster, but is not beyond noise"), "{}", texts[0]);
        assert!(
            texts[0].ends_with(
                "\n  vdisk create /srv/nvme1n1.img --size 20G && vdisk attach /srv/nvme1n1.img --name nvme1n1"
            )
        );
    }

    #[test]
    fn nothing_better_leaves_the_baseline() {
        let why = LeftOut { what: "io_uring".to_owned(), why: "it is forbidden".to_owned() };
        let outcome = measured(|_| 1.0, vec![why]);
        assert_eq!(outcome.best(), None);
        let texts = texts(&outcome.into_run(Duration::from_secs(100), true));
        assert!(
            texts[0].starts_with("best: the baseline; no change that is safe is faster beyond noise\n"),
            "{}",
            texts[0]
        );
        assert_eq!(texts[texts.len() - 1], "not measured: io_uring: it is forbidden");
    }

    #[test]
    fn the_ranking_goes_from_the_fastest_to_the_slowest() {
        let outcome = measured(
            |name| {
                if name == "threads" {
                    0.5
                } else if name == "bfq" {
                    1.5
                } else {
                    1.0
                }
            },
            Vec::new(),
        );
        let run = outcome.into_run(Duration::from_secs(100), true);
        let ranking: Vec<&Cell> = run.cells.iter().filter(|cell| cell.group == RANKING).collect();
        assert_eq!((ranking[0].name.as_str(), ranking[ranking.len() - 1].name.as_str()), ("bfq", "threads"));
        assert!(ranking.iter().is_sorted_by(|a, b| a.figures["speed"].value >= b.figures["speed"].value));
        assert_eq!(ranking[0].figures["speed"].samples.len(), ROUNDS);
        assert_eq!(run.cells.len(), setups().len() * (1 + Workload::ALL.len()));
    }

    #[test]
    fn what_never_was_on_the_disk_is_shown_and_not_compared() {
        let mut outcome = measured(|name| if name == "buffered" { 50.0 } else { 1.0 }, Vec::new());
        let mut rounds = std::mem::take(&mut outcome.rounds);
        let buffered = outcome.setups.iter().position(|setup| setup.name(outcome.baseline()) == "buffered").unwrap();
        for round in &mut rounds {
            for (workload, reading) in Workload::ALL.iter().zip(&mut round[buffered].readings) {
                if workload.part != Part::Reads && !workload.synced {
                    reading.not_disk = Some("it ended in memory".to_owned());
                }
            }
        }
        outcome.compare(rounds);
        let run = outcome.into_run(Duration::from_secs(100), true);
        let cell = run.cells.iter().find(|cell| cell.name == "log writes: buffered").unwrap();
        assert_eq!(cell.not_disk.as_deref(), Some("it ended in memory"));
        assert_eq!(cell.params["verdict"], "not comparable".into());
        assert!(cell.figures.contains_key("iops") && !cell.figures.contains_key("speed"));
    }

    #[test]
    fn a_machine_that_is_not_quiet_is_warned_of() {
        let mut outcome = measured(|_| 1.0, Vec::new());
        assert_eq!(outcome.unrest(), None);
        let mut rounds = std::mem::take(&mut outcome.rounds);
        for reading in rounds[2].iter_mut().flat_map(|visit| &mut visit.readings) {
            reading.iops /= 4.0;
        }
        outcome.compare(rounds);
        let warning = outcome.unrest().unwrap();
        assert_eq!((&*warning.id, warning.severity), ("unrest", Severity::Warning));
        assert!(warning.text.starts_with("the baseline itself was 4."), "{}", warning.text);
    }

    #[test]
    fn few_rounds_are_warned_of() {
        let mut outcome = measured(|_| 1.0, Vec::new());
        let mut rounds = std::mem::take(&mut outcome.rounds);
        rounds.truncate(3);
        outcome.compare(rounds);
        let run = outcome.into_run(Duration::from_secs(100), true);
        let warning = run.findings.iter().find(|finding| finding.id == "too-few-rounds").unwrap();
        assert_eq!(warning.severity, Severity::Warning);
        assert!(warning.text.starts_with("only 3 rounds were measured"), "{}", warning.text);
    }
}
