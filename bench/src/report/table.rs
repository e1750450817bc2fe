//! Runs and comparisons as text.

use std::fmt::Write as _;

use comfy_table::{Cell as TableCell, CellAlignment, ContentLineStyle, LineStyle, Table, TableStyle};

use super::compare::{Comparison, MeasureChange, Verdict};
use super::format;
use super::model::{Better, Cell, Environment, Finding, Measure, Run, Severity};
use super::section::{Section, highlights, notes, spread_text};

/// Columns apart by two spaces, the header underlined: it reads well, and pastes well into a mail.
const STYLE: TableStyle = TableStyle::new()
    .header_lines(ContentLineStyle::none())
    .header_separator(LineStyle::none().fill('─').junction('─'))
    .content_lines(ContentLineStyle::none());

/// A table with `header`, of whose columns the first `left` are flush left and the others, being numbers, right.
pub(super) fn table(header: &[String], left: usize, rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(STYLE);
    let cells = |texts: &[String]| -> Vec<TableCell> {
        let aligned = |(column, text): (usize, &String)| {
            TableCell::new(text).set_alignment(if column < left { CellAlignment::Left } else { CellAlignment::Right })
        };
        texts.iter().enumerate().map(aligned).collect()
    };
    table.set_header(cells(header));
    for row in rows {
        table.add_row(cells(&row));
    }
    table.lines().fold(String::new(), |text, line| text + line.trim_end() + "\n")
}

impl Run {
    /// The whole run as text, to be read in a terminal or a mail.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = format!("{}\n", self.title());
        let highlights = highlights(self);
        let label_width = highlights.iter().map(|(label, ..)| label.chars().count()).max().unwrap_or(0);
        if !highlights.is_empty() {
            text += "\n";
        }
        for (label, number, unit) in highlights {
            let _ = writeln!(text, "  {label:<label_width$}  {number:>5} {unit}");
        }
        for finding in &self.findings {
            text += "\n";
            text += &finding_text(finding);
        }
        for section in Section::all(self) {
            text += "\n";
            text += &section_text(&section);
        }
        text += "\n";
        text += &environment_text(&self.environment);
        format::printable(&text)
    }

    /// What was measured when, by what, in one line.
    pub(super) fn title(&self) -> String {
        let state = if self.completed { "" } else { ", interrupted" };
        format!(
            "{} · {} · {} · took {}{state} · {} {}",
            self.experiment,
            self.subject,
            format::instant(self.started),
            format::seconds(self.elapsed_s),
            self.tool.name,
            self.tool.version,
        )
    }
}

fn finding_text(finding: &Finding) -> String {
    let severity = match finding.severity {
        Severity::Note => "note",
        Severity::Warning => "warning",
        Severity::Error => "error",
    };
    let hint = finding.hint.as_ref().map(|hint| format!("  hint: {hint}\n")).unwrap_or_default();
    format!("{severity}: {}\n{hint}", finding.text)
}

fn section_text(section: &Section) -> String {
    let common = section.common_text();
    let mut text = section.title.to_owned();
    if !common.is_empty() {
        let _ = write!(text, "  ({common})");
    }
    text += "\n";

    let mut header: Vec<String> = Vec::new();
    if section.named {
        header.push(String::new());
    }
    header.extend(section.parameters.iter().map(|parameter| parameter.label.to_string()));
    let left = header.len();
    let rounds = section.measures.first().is_some_and(|measure| {
        section.cells.iter().any(|cell| cell.figures.get(&*measure.name).is_some_and(|figure| figure.samples.len() > 1))
    });
    for (index, measure) in section.measures.iter().enumerate() {
        header.push(measure.label.to_string());
        if index == 0 && rounds {
            header.push("rounds".to_owned());
        }
    }
    let mut footnotes: Vec<String> = Vec::new();
    let mut rows = Vec::new();
    for cell in &section.cells {
        let mut row: Vec<String> = Vec::new();
        if section.named {
            row.push(cell.name.clone());
        }
        row.extend(section.parameters.iter().map(|parameter| {
            cell.params.get(&*parameter.name).map_or_else(String::new, |value| format::value(value, parameter))
        }));
        for (index, measure) in section.measures.iter().enumerate() {
            row.push(figure_text(cell, measure));
            if index == 0 && rounds {
                row.push(cell.figures.get(&*measure.name).and_then(spread_text).unwrap_or_default());
            }
        }
        let marks: Vec<String> = notes(cell).into_iter().map(|note| mark(&mut footnotes, note)).collect();
        row.push(marks.join(""));
        rows.push(row);
    }
    if !footnotes.is_empty() {
        header.push(String::new());
    } else {
        rows.iter_mut().for_each(|row| row.truncate(header.len()));
    }
    text += &table(&header, left, rows);
    for (index, note) in footnotes.iter().enumerate() {
        let _ = writeln!(text, " [{}] {note}", index + 1);
    }
    text
}

/// The mark of a footnote, which many cells may share.
fn mark(footnotes: &mut Vec<String>, note: String) -> String {
    let index = footnotes.iter().position(|known| *known == note).unwrap_or_else(|| {
        footnotes.push(note);
        footnotes.len() - 1
    });
    format!("[{}]", index + 1)
}

/// A figure; in parentheses when it is not one of a disk, so that nobody takes it for one.
fn figure_text(cell: &Cell, measure: &Measure) -> String {
    let text = cell.figures.get(&*measure.name).map(|figure| format::figure(figure.value, measure.unit));
    match text {
        Some(text) if cell.not_disk.is_some() => format!("({text})"),
        Some(text) => text,
        None => none(),
    }
}

fn environment_text(environment: &Environment) -> String {
    environment.lines().into_iter().fold(String::new(), |text, (what, value)| text + &format!("{what:<12} {value}\n"))
}

impl Comparison {
    /// The comparison as text: with `all`, every cell, otherwise those that are not noise.
    #[must_use]
    pub fn to_text(&self, all: bool) -> String {
        let mut text = String::new();
        for (name, side) in [("A", &self.a), ("B", &self.b)] {
            let state = if side.completed { "" } else { " · interrupted" };
            let when = format::instant(side.started);
            let _ = writeln!(text, "{name}  {} · {} {} · {when}{state}", side.file, self.experiment, side.subject);
        }
        if !self.differences.is_empty() {
            let told = |value: &Option<String>| value.clone().unwrap_or_else(|| "–".to_owned());
            let rows = self.differences.iter().map(|d| vec![d.what.clone(), told(&d.a), told(&d.b)]).collect();
            text += "\n";
            text += &table(&["they differ in", "A", "B"].map(str::to_owned), 3, rows);
        }
        text += "\n";
        text += &self.summary();
        for change in &self.measures {
            text += &cells_text(change, all);
        }
        for (what, cells) in [("A", &self.only_in_a), ("B", &self.only_in_b)] {
            if !cells.is_empty() {
                let _ = writeln!(text, "\nOnly in {what}: {}", cells.join("; "));
            }
        }
        if !self.not_disk.is_empty() {
            text += "\nLeft out, not being numbers of a disk:\n";
            for (cell, why) in &self.not_disk {
                let _ = writeln!(text, "  {cell}: {why}");
            }
        }
        text += "\n";
        text += &self.advice();
        format::printable(&text)
    }

    /// What became of each measure, all cells together.
    fn summary(&self) -> String {
        const VERDICTS: [Verdict; 4] = [Verdict::Better, Verdict::Worse, Verdict::Noise, Verdict::TooFewRounds];
        let shown: Vec<Verdict> = VERDICTS
            .into_iter()
            .filter(|verdict| *verdict != Verdict::TooFewRounds || self.measures.iter().any(|m| m.count(*verdict) > 0))
            .collect();
        let mut header = vec![String::new()];
        header.extend(shown.iter().map(|verdict| verdict.label().to_owned()));
        header.extend(["geometric mean B / A", "95 % interval"].map(str::to_owned));
        let row = |change: &MeasureChange| {
            let better = match change.measure.better {
                Better::Higher => "higher",
                Better::Lower => "lower",
            };
            let mut row = vec![format!("{}, {better} is better", change.measure.label)];
            row.extend(shown.iter().map(|verdict| change.count(*verdict).to_string()));
            row.push(change.overall.map_or_else(none, |overall| format::ratio(overall.value)));
            row.push(change.overall.map_or_else(none, |overall| interval_text((overall.low, overall.high))));
            row
        };
        table(&header, 1, self.measures.iter().map(row).collect())
    }

    /// How far to trust the verdicts.
    fn advice(&self) -> String {
        let few: usize = self.measures.iter().map(|change| change.count(Verdict::TooFewRounds)).sum();
        let all: usize = self.measures.iter().map(|change| change.cells.len()).sum();
        let mut text = String::new();
        if few > 0 {
            let _ = writeln!(
                text,
                "{few} of {all} comparisons have too few rounds to tell a difference from noise: measure at least 4 on both sides."
            );
        }
        if all > few {
            let _ = writeln!(
                text,
                "Intervals and verdicts are at 95 %: of {} comparisons, chance alone may call about {} a difference.\n\
                 They know how the rounds of a run differ, not what changed on the machine between the runs.",
                all - few,
                (all - few).div_ceil(20)
            );
        }
        text
    }
}

/// What became of one measure, cell by cell; nothing when there is nothing to show.
fn cells_text(change: &MeasureChange, all: bool) -> String {
    let rows: Vec<Vec<String>> = change
        .cells
        .iter()
        .filter(|cell| all || cell.verdict != Verdict::Noise)
        .map(|cell| {
            vec![
                cell.cell.clone(),
                format::figure(cell.a, change.measure.unit),
                format::figure(cell.b, change.measure.unit),
                cell.ratio.map_or_else(none, format::ratio),
                cell.interval.map_or_else(none, interval_text),
                cell.verdict.label().to_owned(),
            ]
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let header = [&*change.measure.label, "A", "B", "B / A", "95 % interval", ""].map(str::to_owned);
    format!("\n{}", table(&header, 1, rows))
}

fn interval_text((low, high): (f64, f64)) -> String {
    format!("{} … {}", format::ratio(low), format::ratio(high))
}

/// What stands where there is nothing to say.
fn none() -> String {
    "–".to_owned()
}
