//! A run as one self-contained HTML page: nothing is loaded from anywhere, and nothing in it runs.

mod axis;
mod chart;
mod facet;
mod markup;
mod svg;

use std::path::Path;

use blockdev::Result;

use super::file::FileKind;
use super::format;
use super::histogram::{Histogram, PERCENTILES};
use super::model::{Cell, Finding, Latency, Run, Schema, Severity, Unit};
use super::section::{self, Section, notes, spread_text};
use chart::Chart;
use markup::Markup;

/// How a page begins; what begins otherwise is not ours to replace.
pub(super) const PAGE_BEGINNING: &str = "<!doctype html>\n<!-- onedisk.bench.report -->\n";

/// Should a text from outside ever come out as markup, browsers still load and run nothing.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

impl Run {
    /// The whole run as a page.
    #[must_use]
    pub fn to_html(&self) -> String {
        let mut m = Markup::default();
        m.constant(PAGE_BEGINNING);
        m.element("html", &[("lang", &"en")], |m| {
            head(m, self);
            m.element("body", &[], |m| {
                m.element("main", &[], |m| body(m, self));
            });
        });
        m.newline();
        m.into_string()
    }

    /// Writes the page to `path`, whole or not at all. Another page of ours there is replaced, anything else only with
    /// `force`.
    ///
    /// # Errors
    /// When something else is there, or it cannot be written.
    pub fn save_html(&self, path: &Path, force: bool) -> Result<()> {
        FileKind::Page.write(path, self.to_html().as_bytes(), force)
    }
}

fn head(m: &mut Markup, run: &Run) {
    m.element("head", &[], |m| {
        m.void("meta", &[("charset", &"utf-8")]);
        m.void("meta", &[("http-equiv", &"Content-Security-Policy"), ("content", &POLICY)]);
        m.void("meta", &[("name", &"viewport"), ("content", &"width=device-width, initial-scale=1")]);
        m.leaf("title", &[], &format!("{} {}: {}", run.tool.name, run.experiment, run.subject));
        m.element("style", &[], |m| m.constant(include_str!("page.css")));
    });
    m.newline();
}

fn body(m: &mut Markup, run: &Run) {
    m.element("header", &[], |m| {
        m.leaf("div", &[("class", &"kicker")], &format!("{} {}", run.tool.name, run.experiment));
        m.leaf("h1", &[], &run.subject);
        let environment = &run.environment;
        let about = [
            format::instant(run.started),
            format!("took {}", format::seconds(run.elapsed_s)),
            format!("{} × {}", environment.cpu.count, environment.cpu.model),
            format!("Linux {}", environment.kernel),
        ];
        m.leaf("p", &[("class", &"soft")], &about.join(" · "));
        if !run.command.is_empty() {
            m.leaf("pre", &[("class", &"command")], &command_line(&run.command));
        }
    });
    m.newline();
    highlights(m, run);
    findings(m, run);
    for section in Section::all(run) {
        section_of(m, run, &section);
    }
    latencies(m, run);
    environment(m, run);
    m.leaf("footer", &[], &format!("{} {} · {Schema}", run.tool.name, run.tool.version));
}

/// The command as one would type it.
fn command_line(command: &[String]) -> String {
    let plain = |word: &str| !word.is_empty() && word.chars().all(|c| c.is_alphanumeric() || "-_./=,:+@%".contains(c));
    let words = command
        .iter()
        .map(|word| if plain(word) { word.clone() } else { format!("'{}'", word.replace('\'', "'\\''")) });
    words.collect::<Vec<_>>().join(" ")
}

fn highlights(m: &mut Markup, run: &Run) {
    let highlights = section::highlights(run);
    if highlights.is_empty() {
        return;
    }
    m.element("dl", &[("class", &"highlights")], |m| {
        for (label, number, unit) in highlights {
            m.element("div", &[], |m| {
                m.leaf("dt", &[], label);
                m.element("dd", &[], |m| {
                    m.text(&number);
                    m.text(" ");
                    m.leaf("small", &[], &unit);
                });
            });
        }
    });
    m.newline();
}

fn findings(m: &mut Markup, run: &Run) {
    let interrupted = (!run.completed).then(|| {
        Finding::new(
            Severity::Warning,
            "interrupted",
            "The run was interrupted: only what was finished by then is here.",
        )
    });
    let all: Vec<&Finding> = interrupted.iter().chain(&run.findings).collect();
    if all.is_empty() {
        return;
    }
    m.element("ul", &[("class", &"findings")], |m| {
        for finding in all {
            let severity = match finding.severity {
                Severity::Note => "note",
                Severity::Warning => "warning",
                Severity::Error => "error",
            };
            m.element("li", &[("class", &severity)], |m| {
                m.leaf("b", &[], severity);
                m.text(&finding.text);
                if let Some(hint) = &finding.hint {
                    m.leaf("p", &[("class", &"hint")], hint);
                }
            });
        }
    });
    m.newline();
}

fn section_of(m: &mut Markup, run: &Run, section: &Section) {
    m.element("section", &[], |m| {
        m.leaf("h2", &[], section.title);
        m.leaf("p", &[("class", &"soft")], &section.common_text());
        for plot in run.plots.iter().filter(|plot| plot.group == section.title) {
            if let Some(chart) = Chart::new(run, plot) {
                self::chart(m, &chart);
            }
        }
        table(m, section);
    });
    m.newline();
}

fn chart(m: &mut Markup, chart: &Chart) {
    m.element("h3", &[], |m| {
        m.text(&chart.title);
        if !chart.legend.is_empty() {
            m.text(" ");
            m.leaf("span", &[("class", &"soft")], &format!("by {}", chart.legend));
        }
    });
    m.element("div", &[("class", &format!("panels columns-{}", chart.columns))], |m| {
        for panel in &chart.panels {
            m.newline();
            m.element("figure", &[], |m| {
                if !panel.title.is_empty() {
                    m.leaf("figcaption", &[], &panel.title);
                }
                svg::panel(m, chart, panel);
            });
        }
    });
    m.newline();
}

/// The figures of a section, a row for each cell.
fn table(m: &mut Markup, section: &Section) {
    let mut footnotes: Vec<String> = Vec::new();
    m.element("div", &[("class", &"wide")], |m| {
        m.element("table", &[], |m| {
            m.element("thead", &[], |m| {
                m.element("tr", &[], |m| {
                    if section.named {
                        m.leaf("th", &[], "");
                    }
                    for parameter in &section.parameters {
                        m.leaf("th", &[], &parameter.label);
                    }
                    for measure in &section.measures {
                        m.leaf("th", &[("class", &"number")], &measure.label);
                    }
                });
            });
            m.element("tbody", &[], |m| {
                let mut above: Option<&Cell> = None;
                for cell in &section.cells {
                    m.newline();
                    row(m, section, cell, above, &mut footnotes);
                    above = Some(cell);
                }
            });
        });
    });
    if !footnotes.is_empty() {
        m.element("ol", &[("class", &"footnotes")], |m| {
            for note in &footnotes {
                m.leaf("li", &[], note);
            }
        });
    }
}

fn row(m: &mut Markup, section: &Section, cell: &Cell, above: Option<&Cell>, footnotes: &mut Vec<String>) {
    let marks = notes(cell).into_iter().map(|note| {
        let known = footnotes.iter().position(|known| *known == note);
        known.unwrap_or_else(|| {
            footnotes.push(note);
            footnotes.len() - 1
        }) + 1
    });
    let marks: Vec<String> = marks.map(|mark| mark.to_string()).collect();
    m.element("tr", if cell.not_disk.is_some() { &[("class", &"void")] } else { &[] }, |m| {
        if section.named {
            m.leaf("td", &[], &cell.name);
        }
        // A value is only repeated in ink where something to its left has changed.
        let mut same = true;
        for parameter in &section.parameters {
            let value = cell.params.get(&*parameter.name);
            same = same && above.is_some_and(|above| above.params.get(&*parameter.name) == value);
            let text = value.map(|value| format::value(value, parameter)).unwrap_or_default();
            m.leaf("td", if same { &[("class", &"again")] } else { &[] }, &text);
        }
        for (index, measure) in section.measures.iter().enumerate() {
            m.element("td", &[("class", &"number")], |m| {
                let figure = cell.figures.get(&*measure.name);
                m.text(&figure.map_or_else(|| "–".to_owned(), |figure| format::figure(figure.value, measure.unit)));
                if index > 0 {
                    return;
                }
                if !marks.is_empty() {
                    m.leaf("sup", &[], &marks.join(" "));
                }
                if let Some(spread) = figure.and_then(spread_text) {
                    m.leaf("small", &[], &spread);
                }
            });
        }
    });
}

/// Every latency to its last percentile.
fn latencies(m: &mut Markup, run: &Run) {
    let all: Vec<(&Cell, &Latency)> =
        run.cells.iter().flat_map(|cell| cell.latencies.iter().map(move |latency| (cell, latency))).collect();
    if all.is_empty() {
        return;
    }
    m.element("section", &[], |m| {
        m.leaf("h2", &[], "Latencies in full");
        m.leaf("p", &[("class", &"soft")], "All rounds together.");
        m.element("div", &[("class", &"wide")], |m| {
            m.element("table", &[("class", &"dense")], |m| {
                m.element("thead", &[], |m| {
                    m.element("tr", &[], |m| {
                        m.leaf("th", &[], "");
                        m.leaf("th", &[], "of");
                        let percentiles = PERCENTILES.map(|p| format!("p{p}"));
                        for title in ["operations", "min", "mean"]
                            .into_iter()
                            .chain(percentiles.iter().map(String::as_str))
                            .chain(["max"])
                        {
                            m.leaf("th", &[("class", &"number")], title);
                        }
                    });
                });
                m.element("tbody", &[], |m| {
                    for (cell, latency) in all {
                        m.newline();
                        latency_row(m, cell, latency);
                    }
                });
            });
        });
    });
    m.newline();
}

fn latency_row(m: &mut Markup, cell: &Cell, latency: &Latency) {
    let histogram: &Histogram = &latency.histogram;
    let mut values = vec![Some(format::float(histogram.min())), Some(histogram.mean())];
    values.extend(PERCENTILES.map(|p| histogram.tells(p).then(|| format::float(histogram.percentile(p)))));
    values.push(Some(format::float(histogram.max())));
    m.element("tr", if cell.not_disk.is_some() { &[("class", &"void")] } else { &[] }, |m| {
        m.leaf("td", &[], &cell.name);
        m.leaf("td", &[], &latency.name);
        m.leaf("td", &[("class", &"number")], &format::whole(histogram.count()));
        for value in values {
            let text = value.map_or_else(|| "–".to_owned(), |value| format::figure(value, Unit::Nanoseconds));
            m.leaf("td", &[("class", &"number")], &text);
        }
    });
}

fn environment(m: &mut Markup, run: &Run) {
    m.element("section", &[], |m| {
        m.leaf("h2", &[], "Environment");
        facts(m, run.environment.lines().into_iter().map(|(what, value)| (what.to_owned(), value)));
        for target in &run.environment.targets {
            m.leaf("h3", &[], &target.name);
            facts(m, format::flattened(&target.facts).into_iter());
        }
    });
    m.newline();
}

fn facts(m: &mut Markup, lines: impl Iterator<Item = (String, String)>) {
    m.element("dl", &[("class", &"facts")], |m| {
        for (what, value) in lines {
            m.leaf("dt", &[], &what);
            m.leaf("dd", &[], &value);
        }
    });
}
