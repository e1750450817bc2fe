//! Which cells make which line of which panel.
//!
//! A plot names the parameters that divide its cells, but what a run varies is up to its user. So parameters that do
//! not vary are dropped, those that vary without having been named become lines, where there would be more lines than
//! anyone can tell apart, panels take over, and panels of a single line are laid over each other.

use std::collections::BTreeSet;

use super::super::format;
use super::super::model::{Cell, Parameter, Plot, Run, Value};
use super::chart::{Line, Panel, Point};

/// The number of colours that lines are told apart by: as many lines can be in a panel.
pub(super) const COLOURS: usize = 8;

/// The number of ways to draw a line of one colour: solid, dashed, dotted.
const DASHES: usize = 3;

/// How a line is told from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Style {
    pub(super) colour: Colour,
    /// Below [`DASHES`].
    pub(super) dash: usize,
}

/// One of the page's colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Colour {
    /// Of things that have no order.
    Kind(usize),
    /// Of things from least, 0, to most, 7.
    Level(usize),
}

/// The parameters that divide the cells of a plot.
#[derive(Debug)]
pub(super) struct Facets<'a> {
    panels: Vec<&'a Parameter>,
    lines: Vec<&'a Parameter>,
    /// How many panels stand side by side: those that differ in the last of their parameters alone, if they fit.
    pub(super) columns: usize,
}

/// The values that some parameters have in a cell.
type Key<'a> = Vec<Option<&'a Value>>;

impl<'a> Facets<'a> {
    /// What divides `cells`, of which the parameter `x` already tells some apart.
    pub(super) fn new(run: &'a Run, plot: &Plot, cells: &[&Cell], x: Option<&Parameter>) -> Self {
        let distinct = |parameters: &[&Parameter]| -> usize {
            cells.iter().map(|cell| key(cell, parameters)).collect::<BTreeSet<Key>>().len()
        };
        let named = |names: &[String]| -> Vec<&'a Parameter> {
            let declared = names.iter().filter_map(|name| run.parameters.iter().find(|known| known.name == *name));
            declared.filter(|parameter| Some(*parameter) != x && distinct(&[parameter]) > 1).collect()
        };
        let (mut panels, mut lines) = (named(&plot.panels), named(&plot.lines));
        for parameter in &run.parameters {
            let mut known: Vec<&Parameter> = panels.iter().chain(&lines).copied().chain(x).collect();
            let before = distinct(&known);
            known.push(parameter);
            if distinct(&known) > before {
                lines.push(parameter);
            }
        }
        while lines.len() > 1 && distinct(&lines) > COLOURS {
            panels.push(lines.remove(0));
        }
        // Rows of names are compared within their panel.
        let rows =
            x.is_some_and(|x| cells.iter().any(|cell| matches!(cell.params.get(&*x.name), Some(Value::Text(_)))));
        if lines.is_empty() && !rows {
            lines.extend(panels.pop_if(|last| distinct(&[last]) <= COLOURS));
        }
        let columns = match (distinct(&panels), panels.last().map(|last| distinct(&[last]))) {
            (0 | 1, _) => 1,
            (_, Some(last @ 2..=3)) => last,
            (2 | 4, _) => 2,
            _ => 3,
        };
        Self { panels, lines, columns }
    }

    /// What tells lines apart: `block size · jobs`.
    pub(super) fn legend(&self) -> String {
        self.lines.iter().map(|parameter| &*parameter.label).collect::<Vec<_>>().join(" · ")
    }

    /// The panels of `cells`, each with what is drawn of it; `draw` makes the summary and the stretches of a line of
    /// all that fell to it.
    pub(super) fn panels<T: Clone>(
        &self,
        cells: &[(&Cell, T)],
        draw: impl Fn(&[T]) -> (String, Vec<Vec<Point>>),
    ) -> Vec<Panel> {
        let line_keys: BTreeSet<Key> = cells.iter().map(|(cell, _)| key(cell, &self.lines)).collect();
        let line_keys: Vec<Key> = line_keys.into_iter().collect();
        let panel_keys = self.panel_keys(cells.iter().map(|(cell, _)| *cell));
        let line = |panel_key: &Key, index: usize| {
            let line_key = &line_keys[index];
            let mine = |cell: &Cell| key(cell, &self.panels) == *panel_key && key(cell, &self.lines) == *line_key;
            let drawn: Vec<T> = cells.iter().filter(|(cell, _)| mine(cell)).map(|(_, drawn)| drawn.clone()).collect();
            let (summary, stretches) = draw(&drawn);
            let label = text(line_key, &self.lines);
            (!drawn.is_empty()).then(|| Line { label, style: style(&line_keys, index), summary, stretches })
        };
        let panel = |panel_key: Key| Panel {
            lines: (0..line_keys.len()).filter_map(|index| line(&panel_key, index)).collect(),
            title: text(&panel_key, &self.panels),
        };
        panel_keys.into_iter().map(panel).collect()
    }
}

impl Facets<'_> {
    /// The keys of all panels: by the first of their parameters, then by the next, values in the order of the cells.
    fn panel_keys<'c>(&self, cells: impl Iterator<Item = &'c Cell>) -> Vec<Key<'c>> {
        let mut keys: Vec<Key> = Vec::new();
        for key in cells.map(|cell| key(cell, &self.panels)) {
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        let appeared = keys.clone();
        let rank = |key: &Key| -> Vec<Option<usize>> {
            (0..key.len()).map(|place| appeared.iter().position(|known| known[place] == key[place])).collect()
        };
        keys.sort_by_cached_key(rank);
        keys
    }
}

fn key<'c>(cell: &'c Cell, parameters: &[&Parameter]) -> Key<'c> {
    parameters.iter().map(|parameter| cell.params.get(&*parameter.name)).collect()
}

fn text(key: &Key, parameters: &[&Parameter]) -> String {
    let texts = key.iter().zip(parameters).filter_map(|(value, parameter)| Some(format::value((*value)?, parameter)));
    texts.collect::<Vec<_>>().join(" · ")
}

/// How the line of `keys[index]` is drawn. Two parameters become colour and dashes where there are dashes enough, so
/// that what belongs together looks alike; otherwise each line has a colour of its own.
fn style(keys: &[Key], index: usize) -> Style {
    let values = |place: usize| -> Vec<Option<&Value>> {
        keys.iter().map(|key| key[place]).collect::<BTreeSet<_>>().into_iter().collect()
    };
    let rank = |place: usize| values(place).iter().position(|value| *value == keys[index][place]).unwrap_or_default();
    let colour = |place: usize| {
        let values = values(place);
        let numbers = values.iter().all(|value| matches!(value, Some(Value::Number(_))));
        if numbers && values.len() > 1 {
            Colour::Level(rank(place) * (COLOURS - 1) / (values.len() - 1))
        } else {
            Colour::Kind(rank(place) % COLOURS)
        }
    };
    match keys[index].len() {
        1 => Style { colour: colour(0), dash: 0 },
        2 if values(1).len() <= DASHES => Style { colour: colour(0), dash: rank(1) },
        2 if values(0).len() <= DASHES => Style { colour: colour(1), dash: rank(0) },
        _ => Style { colour: Colour::Kind(index % COLOURS), dash: 0 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Environment, PlotKind, vocabulary as v};

    /// A run whose cells are all combinations of these.
    fn run(patterns: &[&str], blocks: &[u64], depths: &[u64], engines: &[&str]) -> Run {
        let mut run = Run::begin("disk", "", Environment::of_this_machine(Vec::new()));
        run.parameters = vec![v::RW, v::BLOCK_SIZE, v::QUEUE_DEPTH, v::ENGINE, v::TARGET];
        for pattern in patterns {
            for block in blocks {
                for depth in depths {
                    for engine in engines {
                        let cell = Cell::new("", format!("{}", run.cells.len()))
                            .with_param(&v::RW, *pattern)
                            .with_param(&v::BLOCK_SIZE, *block)
                            .with_param(&v::QUEUE_DEPTH, *depth)
                            .with_param(&v::ENGINE, *engine)
                            .with_param(&v::TARGET, format!("through {engine}"));
                        run.cells.push(cell);
                    }
                }
            }
        }
        run
    }

    fn plot(panels: &[&str], lines: &[&str]) -> Plot {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
        Plot {
            title: String::new(),
            kind: PlotKind::Course { measure: String::new() },
            group: String::new(),
            panels: names(panels),
            lines: names(lines),
            references: Vec::new(),
        }
    }

    fn facets(run: &Run, panels: &[&str], lines: &[&str], x: Option<&Parameter>) -> (Vec<String>, Vec<String>) {
        let cells: Vec<&Cell> = run.cells.iter().collect();
        let facets = Facets::new(run, &plot(panels, lines), &cells, x);
        let names = |list: &[&Parameter]| list.iter().map(|parameter| parameter.name.to_string()).collect();
        (names(&facets.panels), names(&facets.lines))
    }

    fn divided(panels: &[&str], lines: &[&str]) -> (Vec<String>, Vec<String>) {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
        (names(panels), names(lines))
    }

    #[test]
    fn as_the_plot_says_where_that_is_enough() {
        let run = run(&["randread", "randwrite"], &[4096, 8192], &[1, 16], &["uring"]);
        assert_eq!(facets(&run, &["rw"], &["bs"], Some(&v::QUEUE_DEPTH)), divided(&["rw"], &["bs"]));
    }

    #[test]
    fn what_does_not_vary_divides_nothing() {
        let run = run(&["randread"], &[8192], &[1, 16], &["uring"]);
        assert_eq!(facets(&run, &["rw"], &["bs", "engine"], Some(&v::QUEUE_DEPTH)), divided(&[], &[]));
        assert_eq!(facets(&run, &["rw"], &["bs"], None), divided(&[], &["iodepth"]));
    }

    #[test]
    fn what_varies_unnamed_becomes_lines_once() {
        // The target is another for each engine, and would tell nothing more.
        let run = run(&["randread"], &[4096, 8192], &[1, 16], &["threads", "uring"]);
        assert_eq!(facets(&run, &["rw"], &["bs"], Some(&v::QUEUE_DEPTH)), divided(&[], &["bs", "engine"]));
    }

    #[test]
    fn panels_of_a_single_line_are_laid_over_each_other() {
        let run = run(&["randread", "randwrite"], &[4096, 8192], &[16], &["uring"]);
        assert_eq!(facets(&run, &["bs", "rw"], &[], None), divided(&["bs"], &["rw"]));
        assert_eq!(facets(&run, &["bs"], &[], Some(&v::RW)), divided(&["bs"], &[]), "but not where x is a name");
    }

    #[test]
    fn panels_stand_in_rows_that_differ_in_one_parameter() {
        let run = run(&["randwrite", "randread"], &[16384, 4096, 8192], &[1, 16], &["uring"]);
        let mut cells: Vec<(&Cell, ())> = run.cells.iter().map(|cell| (cell, ())).collect();
        cells.sort_by_key(|(cell, ())| cell.params.get("iodepth").cloned());
        let cells_alone: Vec<&Cell> = cells.iter().map(|(cell, ())| *cell).collect();
        let facets = Facets::new(&run, &plot(&["bs", "rw"], &["iodepth"]), &cells_alone, None);
        assert_eq!(facets.columns, 2);
        let titles = facets.panels(&cells, |_| (String::new(), Vec::new())).into_iter().map(|panel| panel.title);
        assert_eq!(
            titles.collect::<Vec<_>>(),
            [
                "16 KiB · randwrite",
                "16 KiB · randread",
                "4 KiB · randwrite",
                "4 KiB · randread",
                "8 KiB · randwrite",
                "8 KiB · randread",
            ]
        );
    }

    #[test]
    fn too_many_lines_become_panels() {
        let run = run(&["randread"], &[4096, 8192, 16384], &[1, 4, 16, 64], &["uring"]);
        assert_eq!(facets(&run, &["rw"], &["bs", "iodepth"], None), divided(&["bs"], &["iodepth"]));
        let lines = run_of_one(40);
        assert_eq!(facets(&lines, &[], &["iodepth"], None), divided(&[], &["iodepth"]), "one must remain");
    }

    fn run_of_one(depths: u64) -> Run {
        run(&["randread"], &[8192], &(1..=depths).collect::<Vec<_>>(), &["uring"])
    }

    #[test]
    fn a_pair_is_told_by_colour_and_dashes() {
        let (four, eight) = (Value::Number(4), Value::Number(8));
        let (ours, theirs) = (Value::from("bench"), Value::from("fio"));
        let keys: Vec<Key> = [(&four, &ours), (&four, &theirs), (&eight, &ours), (&eight, &theirs)]
            .map(|(size, program)| vec![Some(size), Some(program)])
            .into();
        let styles: Vec<Style> = (0..4).map(|index| style(&keys, index)).collect();
        let expected = [(0, 0), (0, 1), (7, 0), (7, 1)];
        assert_eq!(styles, expected.map(|(level, dash)| Style { colour: Colour::Level(level), dash }));
        assert_eq!(style(&[vec![Some(&ours)]], 0), Style { colour: Colour::Kind(0), dash: 0 });
        assert_eq!(style(&[vec![]], 0), Style { colour: Colour::Kind(0), dash: 0 });
    }
}
