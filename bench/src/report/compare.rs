//! What changed between two runs, and which of it is noise.

use std::collections::{BTreeMap, BTreeSet};

use blockdev::{Error, Result};
use jiff::Timestamp;
use serde::Serialize;

use super::format;
use super::model::{Better, Cell, Figure, Measure, Run, Tool, Value};
use super::stats::{self, CONFIDENCE, Estimate};

/// The name and version of the schema of a comparison's JSON.
const SCHEMA: &str = "onedisk.bench.compare/1";

/// Two runs of one experiment, cell by cell.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// `onedisk.bench.compare/1`.
    pub schema: &'static str,
    /// Which experiment both are.
    pub experiment: String,
    /// The run to compare with.
    pub a: Side,
    /// The run that is compared.
    pub b: Side,
    /// In what the runs differ besides their numbers.
    pub differences: Vec<Difference>,
    /// What became of each measure.
    pub measures: Vec<MeasureChange>,
    /// Cells of `a` that `b` has not.
    pub only_in_a: Vec<String>,
    /// Cells of `b` that `a` has not.
    pub only_in_b: Vec<String>,
    /// Cells left out because their numbers are not a disk's, in one run or the other, and why.
    pub not_disk: Vec<(String, String)>,
}

/// One of the two runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Side {
    /// The file it was read from.
    pub file: String,
    /// What was measured.
    pub subject: String,
    /// When.
    pub started: Timestamp,
    /// By what.
    pub tool: Tool,
    /// False when it was interrupted.
    pub completed: bool,
}

/// Something in which two runs differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What.
    pub what: String,
    /// What it is in `a`; nothing where `a` does not tell.
    pub a: Option<String>,
    /// What it is in `b`.
    pub b: Option<String>,
}

/// What became of one measure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MeasureChange {
    /// The measure.
    pub measure: Measure,
    /// The geometric mean of the ratios of all cells below, where each has one, with its interval.
    pub overall: Option<Estimate>,
    /// Cell by cell.
    pub cells: Vec<CellChange>,
}

/// What became of one measure in one cell.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CellChange {
    /// The cell, as `b` calls it.
    pub cell: String,
    /// The median of `a`'s rounds.
    pub a: f64,
    /// The median of `b`'s rounds.
    pub b: f64,
    /// How many times `b` is `a`; nothing where either is not positive.
    pub ratio: Option<f64>,
    /// The confidence interval of that ratio; nothing with a single round.
    pub interval: Option<(f64, f64)>,
    /// How likely such a difference is by chance: the rank-sum test's p.
    pub p: f64,
    /// What to make of it.
    pub verdict: Verdict,
}

/// What to make of a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// `b` is better, and it is not chance.
    Better,
    /// `b` is worse, and it is not chance.
    Worse,
    /// It may well be chance.
    Noise,
    /// No difference could be told from chance: it takes at least four rounds on both sides.
    TooFewRounds,
}

impl Verdict {
    /// Its name for people.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Noise => "noise",
            Self::TooFewRounds => "too few rounds",
        }
    }
}

impl Comparison {
    /// Compares `b`, read from `b_file`, with `a`.
    ///
    /// # Errors
    /// When they are different experiments or have no cell in common.
    pub fn new(a: &Run, a_file: &str, b: &Run, b_file: &str) -> Result<Self> {
        if a.experiment != b.experiment {
            return Err(Error::invalid(format!(
                "{a_file} is of bench {}, {b_file} of bench {}: they have nothing to compare",
                a.experiment, b.experiment
            )));
        }
        let moved = moved_parameters(a, b);
        let (a_cells, b_cells) = (keyed(a, &moved), keyed(b, &moved));
        let pairs: Vec<(&Cell, &Cell)> =
            b_cells.iter().filter_map(|(key, b)| Some((cell_at(&a_cells, key)?, *b))).collect();
        if pairs.is_empty() {
            return Err(Error::invalid(format!("{a_file} and {b_file} have no cell in common"))
                .with_hint("compare runs of the same parameters, such as two standard profiles"));
        }
        let missing = |from: &[(Key, &Cell)], in_: &[(Key, &Cell)]| -> Vec<String> {
            from.iter().filter(|(key, _)| cell_at(in_, key).is_none()).map(|(_, cell)| cell.name.clone()).collect()
        };
        let not_disk = pairs.iter().filter_map(|(a, b)| {
            let why = b.not_disk.as_ref().or(a.not_disk.as_ref())?;
            Some((b.name.clone(), why.clone()))
        });
        let disk: Vec<(&Cell, &Cell)> =
            pairs.iter().filter(|(a, b)| a.not_disk.is_none() && b.not_disk.is_none()).copied().collect();
        Ok(Self {
            schema: SCHEMA,
            experiment: b.experiment.clone(),
            a: Side::of(a, a_file),
            b: Side::of(b, b_file),
            differences: differences(a, b, &moved),
            measures: b.measures.iter().filter_map(|measure| MeasureChange::of(measure, &disk)).collect(),
            only_in_a: missing(&a_cells, &b_cells),
            only_in_b: missing(&b_cells, &a_cells),
            not_disk: not_disk.collect(),
        })
    }
}

impl Side {
    fn of(run: &Run, file: &str) -> Self {
        Self {
            file: file.to_owned(),
            subject: run.subject.clone(),
            started: run.started,
            tool: run.tool.clone(),
            completed: run.completed,
        }
    }
}

impl MeasureChange {
    fn of(measure: &Measure, pairs: &[(&Cell, &Cell)]) -> Option<Self> {
        let figures: Vec<(&str, &Figure, &Figure)> = pairs
            .iter()
            .filter_map(|(a, b)| {
                Some((b.name.as_str(), a.figures.get(&*measure.name)?, b.figures.get(&*measure.name)?))
            })
            .collect();
        if figures.is_empty() {
            return None;
        }
        let samples: Vec<(&[f64], &[f64])> =
            figures.iter().map(|(_, a, b)| (a.samples.as_slice(), b.samples.as_slice())).collect();
        Some(Self {
            measure: measure.clone(),
            overall: stats::mean_ratio_of_medians(&samples),
            cells: figures.into_iter().map(|(cell, a, b)| CellChange::of(cell, measure.better, a, b)).collect(),
        })
    }

    /// How many cells have this verdict.
    #[must_use]
    pub fn count(&self, verdict: Verdict) -> usize {
        self.cells.iter().filter(|cell| cell.verdict == verdict).count()
    }
}

impl CellChange {
    fn of(cell: &str, better: Better, a: &Figure, b: &Figure) -> Self {
        let estimate = stats::ratio_of_medians(&a.samples, &b.samples);
        let p = stats::rank_sum_p(&a.samples, &b.samples);
        let noise_max = 1.0 - CONFIDENCE;
        // Both must say so: the test may find a shift that leaves the medians where they were.
        let verdict = if stats::smallest_rank_sum_p(a.samples.len(), b.samples.len()) > noise_max {
            Verdict::TooFewRounds
        } else if p > noise_max || estimate.is_some_and(|ratio| ratio.contains(1.0)) {
            Verdict::Noise
        } else if (b.value > a.value) == (better == Better::Higher) {
            Verdict::Better
        } else {
            Verdict::Worse
        };
        Self {
            cell: cell.to_owned(),
            a: a.value,
            b: b.value,
            ratio: (a.value > 0.0 && b.value > 0.0).then(|| b.value / a.value),
            interval: estimate.map(|estimate| (estimate.low, estimate.high)),
            p,
            verdict,
        }
    }
}

/// What makes a cell of one run the same as a cell of another: its group, its parameters, and how many before it have
/// the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key<'a> {
    group: &'a str,
    params: Vec<(&'a str, &'a Value)>,
    repetition: usize,
}

fn keyed<'a>(run: &'a Run, without: &BTreeSet<&str>) -> Vec<(Key<'a>, &'a Cell)> {
    let mut seen: BTreeMap<Key, usize> = BTreeMap::new();
    run.cells
        .iter()
        .map(|cell| {
            let params = cell.params.iter().map(|(name, value)| (name.as_str(), value));
            let params = params.filter(|(name, _)| !without.contains(name)).collect();
            let mut key = Key { group: &cell.group, params, repetition: 0 };
            let count = seen.entry(key.clone()).or_default();
            key.repetition = *count;
            *count += 1;
            (key, cell)
        })
        .collect()
}

fn cell_at<'a>(cells: &[(Key, &'a Cell)], key: &Key) -> Option<&'a Cell> {
    cells.iter().find(|(other, _)| other == key).map(|(_, cell)| *cell)
}

/// Parameters that are one thing all through `a` and another all through `b`, as the target is where two disks are
/// compared: they are what is compared, and so do not keep cells from being the same.
fn moved_parameters<'a>(a: &'a Run, b: &'a Run) -> BTreeSet<&'a str> {
    let names = a.parameters.iter().chain(&b.parameters).map(|parameter| &*parameter.name);
    names.filter(|name| matches!((only_value(a, name), only_value(b, name)), (Some(a), Some(b)) if a != b)).collect()
}

/// The value that a parameter has in every cell of a run.
fn only_value<'a>(run: &'a Run, name: &str) -> Option<&'a Value> {
    let values: BTreeSet<Option<&Value>> = run.cells.iter().map(|cell| cell.params.get(name)).collect();
    values.first().copied().flatten().filter(|_| values.len() == 1)
}

/// What a run says of where and how it was made, by name.
fn differences(a: &Run, b: &Run, moved: &BTreeSet<&str>) -> Vec<Difference> {
    let told = |run: &Run| -> Vec<(String, String)> {
        let mut told = vec![
            ("subject".to_owned(), run.subject.clone()),
            ("version".to_owned(), format!("{} {}", run.tool.name, run.tool.version)),
        ];
        told.extend(run.parameters.iter().filter(|parameter| moved.contains(&*parameter.name)).filter_map(
            |parameter| {
                Some((parameter.label.to_string(), format::value(only_value(run, &parameter.name)?, parameter)))
            },
        ));
        told.extend(run.environment.lines().into_iter().map(|(what, value)| (what.to_owned(), value)));
        for (index, target) in run.environment.targets.iter().enumerate() {
            // Targets are compared by their place: their names are mostly what differs.
            let place = if index == 0 { String::new() } else { format!("target {} › ", index + 1) };
            told.push((format!("{place}target"), target.name.clone()));
            told.extend(
                format::flattened(&target.facts).into_iter().map(|(what, value)| (format!("{place}{what}"), value)),
            );
        }
        told
    };
    let (a, b) = (told(a), told(b));
    let find =
        |told: &[(String, String)], what: &str| told.iter().find(|(name, _)| name == what).map(|(_, v)| v.clone());
    let mut seen = BTreeSet::new();
    a.iter()
        .chain(&b)
        .filter(|(what, _)| seen.insert(what))
        .map(|(what, _)| Difference { what: what.clone(), a: find(&a, what), b: find(&b, what) })
        .filter(|difference| difference.a != difference.b)
        .collect()
}
