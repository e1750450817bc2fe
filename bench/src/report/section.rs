//! A run's cells as a reader wants them: by group, with what is common to a group said once.

use std::collections::BTreeSet;

use super::format;
use super::model::{Cell, Figure, Highlight, Measure, Parameter, Run, Steadiness, Value};

/// The cells of one group.
#[derive(Debug)]
pub(super) struct Section<'a> {
    pub(super) title: &'a str,
    /// Parameters that are the same in all its cells.
    pub(super) common: Vec<(&'a Parameter, &'a Value)>,
    /// Parameters that tell its cells apart.
    pub(super) parameters: Vec<&'a Parameter>,
    /// Whether they do so; otherwise cells go by their names.
    pub(super) named: bool,
    /// What was measured in any of its cells.
    pub(super) measures: Vec<&'a Measure>,
    pub(super) cells: Vec<&'a Cell>,
}

impl<'a> Section<'a> {
    /// The sections of `run`, in the order in which their first cells were measured.
    pub(super) fn all(run: &'a Run) -> Vec<Self> {
        let mut titles: Vec<&str> = Vec::new();
        for cell in &run.cells {
            if !titles.contains(&cell.group.as_str()) {
                titles.push(&cell.group);
            }
        }
        titles.into_iter().map(|title| Self::of(run, title)).collect()
    }

    fn of(run: &'a Run, title: &'a str) -> Self {
        let cells: Vec<&Cell> = run.cells.iter().filter(|cell| cell.group == title).collect();
        let (mut common, mut parameters) = (Vec::new(), Vec::new());
        for parameter in &run.parameters {
            let values: BTreeSet<Option<&Value>> = cells.iter().map(|cell| cell.params.get(&*parameter.name)).collect();
            match values.first() {
                Some(Some(value)) if values.len() == 1 => common.push((parameter, *value)),
                _ if values.len() > 1 => parameters.push(parameter),
                _ => {}
            }
        }
        let told_apart: BTreeSet<Vec<Option<&Value>>> = cells
            .iter()
            .map(|cell| parameters.iter().map(|parameter| cell.params.get(&*parameter.name)).collect())
            .collect();
        let measures =
            run.measures.iter().filter(|m| cells.iter().any(|cell| cell.figures.contains_key(&*m.name))).collect();
        Self {
            title,
            common,
            named: told_apart.len() < cells.len() || parameters.is_empty(),
            parameters,
            measures,
            cells,
        }
    }

    /// What is common to its cells, in one line: `engine uring · jobs 1`.
    pub(super) fn common_text(&self) -> String {
        let texts: Vec<String> = self
            .common
            .iter()
            .map(|(parameter, value)| format!("{} {}", parameter.label, format::value(value, parameter)))
            .collect();
        texts.join(" · ")
    }
}

/// A run's highlights: what each is, its figure, and what that counts. Numbers that are not a disk's are no highlight.
pub(super) fn highlights(run: &Run) -> Vec<(&str, String, String)> {
    let shown = |highlight: &Highlight| {
        let cell = run.cells.iter().find(|cell| cell.name == highlight.cell && cell.not_disk.is_none())?;
        let measure = run.measures.iter().find(|measure| measure.name == highlight.measure)?;
        let text = format::figure(cell.figures.get(&highlight.measure)?.value, measure.unit);
        Some(text.split_once(' ').map_or_else(
            || (text.clone(), measure.label.to_string()),
            |(number, unit)| (number.to_owned(), unit.to_owned()),
        ))
    };
    run.highlights
        .iter()
        .filter_map(|highlight| shown(highlight).map(|(number, unit)| (highlight.label.as_str(), number, unit)))
        .collect()
}

/// How far the rounds of a figure lie apart: half their span, as a share of the median. Nothing for a single round.
pub(super) fn spread(figure: &Figure) -> Option<f64> {
    let (low, high) = figure
        .samples
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), sample| (low.min(*sample), high.max(*sample)));
    (figure.samples.len() > 1 && figure.value > 0.0).then(|| (high - low) / 2.0 / figure.value)
}

/// A spread for people: `± 2.1 %`.
pub(super) fn spread_text(figure: &Figure) -> Option<String> {
    spread(figure).map(|share| {
        if share < 1.0 { format!("± {:.1} %", share * 100.0) } else { format!("± {:.0} %", share * 100.0) }
    })
}

/// What must be said beside the numbers of `cell`.
pub(super) fn notes(cell: &Cell) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(why) = &cell.not_disk {
        notes.push(format!("not numbers of a disk: {why}"));
    }
    if let Some(Steadiness::Drifting { change }) = cell.steadiness {
        notes.push(format!("had not settled: its end was {} times its beginning", format::ratio(change)));
    }
    if cell.errors > 0 {
        let first = cell.first_error.as_ref().map(|error| format!(", the first: {error}")).unwrap_or_default();
        notes.push(format!("{} operations failed{first}", format::whole(cell.errors)));
    }
    notes
}
