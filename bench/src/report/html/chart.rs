//! What a plot shows: the points of every line, and the axes.

use super::super::format;
use super::super::histogram::{Histogram, PERCENTILES};
use super::super::model::{Cell, Figure, Measure, Parameter, Plot, PlotKind, Run, Series, Unit, Value};
use super::super::stats;
use super::axis::{Axis, nines};
use super::facet::{Facets, Style};

/// A line needs no more points than a panel has pixels.
const POINTS_MAX: usize = 240;

/// A plot ready to be drawn.
#[derive(Debug)]
pub(super) struct Chart {
    pub(super) title: String,
    /// What tells its lines apart: `queue depth`.
    pub(super) legend: String,
    pub(super) kind: Kind,
    pub(super) panels: Vec<Panel>,
    /// How many panels stand side by side.
    pub(super) columns: usize,
    /// Values to hold the lines against.
    pub(super) references: Vec<(f64, String)>,
    /// The unit of what is drawn.
    pub(super) unit: Unit,
}

/// How the points of a chart are drawn.
#[derive(Debug)]
pub(super) enum Kind {
    /// Against two axes that all panels share.
    Lines { x: Axis, y: Axis, markers: bool },
    /// One row for each point's label, along one axis.
    Rows { along: Axis },
}

/// One small chart among its like.
#[derive(Debug)]
pub(super) struct Panel {
    /// What tells it from the others; empty when there are none.
    pub(super) title: String,
    pub(super) lines: Vec<Line>,
}

/// One line of a panel.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) label: String,
    pub(super) style: Style,
    /// What it comes to, in words.
    pub(super) summary: String,
    /// Its stretches: it is not drawn from one to the next.
    pub(super) stretches: Vec<Vec<Point>>,
}

/// A point of a line.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    /// The lowest and highest round, where there are several.
    pub(super) span: Option<(f64, f64)>,
    /// Where it is along the x axis, in words; empty where points are too many for it.
    pub(super) label: String,
}

impl Chart {
    /// What `plot` shows of `run`; nothing when no cell has what it wants.
    pub(super) fn new(run: &Run, plot: &Plot) -> Option<Self> {
        let cells = run.cells.iter().filter(|cell| cell.group == plot.group && cell.not_disk.is_none());
        let chart = match &plot.kind {
            PlotKind::Figure { measure, x } => {
                let measure = run.measures.iter().find(|known| known.name == *measure)?;
                let along = run.parameters.iter().find(|known| known.name == *x)?;
                figures(run, plot, cells, measure, along)
            }
            PlotKind::Percentiles { latency } => percentiles(run, plot, cells, latency),
            PlotKind::Course { measure } => {
                let measure = run.measures.iter().find(|known| known.name == *measure)?;
                courses(run, plot, cells, measure)
            }
        };
        (!chart.panels.is_empty()).then_some(chart)
    }

    fn assemble(plot: &Plot, facets: &Facets, panels: Vec<Panel>, kind: Kind, unit: Unit) -> Self {
        // The names of rows take room.
        let columns = if matches!(kind, Kind::Rows { .. }) { 1 } else { facets.columns };
        Self {
            title: plot.title.clone(),
            legend: facets.legend(),
            kind,
            columns,
            panels,
            references: plot.references.iter().map(|r| (r.value, r.label.clone())).collect(),
            unit,
        }
    }
}

/// A measure against a parameter.
fn figures<'a>(
    run: &Run,
    plot: &Plot,
    cells: impl Iterator<Item = &'a Cell>,
    measure: &Measure,
    along: &Parameter,
) -> Chart {
    let cells: Vec<(&Cell, (&Value, &Figure))> = cells
        .filter_map(|cell| Some((cell, (cell.params.get(&*along.name)?, cell.figures.get(&*measure.name)?))))
        .collect();
    let mut values: Vec<&Value> = Vec::new();
    for (_, (value, _)) in &cells {
        if !values.contains(value) {
            values.push(value);
        }
    }
    let numbers: Option<Vec<u64>> = values.iter().map(|value| number(value)).collect();
    let facets = facets(run, plot, &cells, Some(along));
    let panels = facets.panels(&cells, |figures| {
        let mut points: Vec<Point> = figures
            .iter()
            .map(|(value, figure)| {
                let row = values.iter().position(|known| known == value).unwrap_or_default();
                let (low, high) = bounds(figure.samples.iter().copied());
                Point {
                    x: format::float(number(value).filter(|_| numbers.is_some()).unwrap_or(row as u64)),
                    y: figure.value,
                    span: (low < high).then_some((low, high)),
                    label: format::value(value, along),
                }
            })
            .collect();
        points.sort_by(|a, b| a.x.total_cmp(&b.x));
        (String::new(), vec![points])
    });
    let measured = cells.iter().flat_map(|(_, (_, figure))| figure.samples.iter().copied().chain([figure.value]));
    let y = Axis::of_measured(&measure.label, measured.chain(reference_values(plot)), measure.unit);
    let kind = match numbers {
        Some(mut numbers) => {
            numbers.sort_unstable();
            Kind::Lines { x: Axis::of_parameter(along, &numbers), y, markers: true }
        }
        None => Kind::Rows { along: y },
    };
    Chart::assemble(plot, &facets, panels, kind, measure.unit)
}

/// The percentiles of latencies.
fn percentiles<'a>(run: &Run, plot: &Plot, cells: impl Iterator<Item = &'a Cell>, latency: &str) -> Chart {
    let cells: Vec<(&Cell, &Histogram)> = cells
        .filter_map(|cell| Some((cell, &cell.latencies.iter().find(|known| known.name == latency)?.histogram)))
        .filter(|(_, histogram)| !histogram.is_empty())
        .collect();
    let facets = facets(run, plot, &cells, None);
    let panels = facets.panels(&cells, |histograms| {
        let summaries: Vec<String> = histograms.iter().map(|histogram| percentile_summary(histogram)).collect();
        (summaries.join("; "), histograms.iter().map(|histogram| percentile_points(histogram)).collect())
    });
    let (_, last) = bounds(points(&panels).map(|point| point.x));
    let (low, high) = bounds(points(&panels).map(|point| point.y).chain(reference_values(plot)));
    let kind = Kind::Lines {
        x: Axis::of_percentiles(last),
        y: Axis::log("latency", low.max(1.0), high, Unit::Nanoseconds),
        markers: false,
    };
    Chart::assemble(plot, &facets, panels, kind, Unit::Nanoseconds)
}

/// A measure over time.
fn courses<'a>(run: &Run, plot: &Plot, cells: impl Iterator<Item = &'a Cell>, measure: &Measure) -> Chart {
    let cells: Vec<(&Cell, Vec<&Series>)> = cells
        .map(|cell| (cell, cell.series.iter().filter(|series| series.measure == measure.name).collect()))
        .filter(|(_, series): &(_, Vec<_>)| !series.is_empty())
        .collect();
    let facets = facets(run, plot, &cells, None);
    let panels = facets.panels(&cells, |cells| {
        let all: Vec<f64> = cells.iter().flatten().flat_map(|series| series.values.iter().flatten().copied()).collect();
        let summary = stats::median(&all).map(|median| format!("median {}", format::figure(median, measure.unit)));
        (summary.unwrap_or_default(), cells.iter().flat_map(|series| course_points(series)).collect())
    });
    let (_, end) = bounds(points(&panels).map(|point| point.x));
    let measured = points(&panels).map(|point| point.y).chain(reference_values(plot));
    let kind = Kind::Lines {
        x: Axis::of_time("time measured, rounds one after another", end),
        y: Axis::of_measured(&measure.label, measured, measure.unit),
        markers: false,
    };
    Chart::assemble(plot, &facets, panels, kind, measure.unit)
}

fn facets<'a, T>(run: &'a Run, plot: &Plot, cells: &[(&Cell, T)], x: Option<&Parameter>) -> Facets<'a> {
    Facets::new(run, plot, &cells.iter().map(|(cell, _)| *cell).collect::<Vec<_>>(), x)
}

fn reference_values(plot: &Plot) -> impl Iterator<Item = f64> {
    plot.references.iter().map(|reference| reference.value)
}

fn points(panels: &[Panel]) -> impl Iterator<Item = &Point> {
    panels.iter().flat_map(|panel| &panel.lines).flat_map(|line| &line.stretches).flatten()
}

fn number(value: &Value) -> Option<u64> {
    if let Value::Number(number) = value { Some(*number) } else { None }
}

/// The latency at each share of operations. The middle of each operation's own share stands for it, as that leaves the
/// longest a place on an axis that never comes to 100 %.
fn percentile_points(histogram: &Histogram) -> Vec<Point> {
    let place = |seen: u64| nines((format::float(seen) - 0.5) / format::float(histogram.count()));
    let pixel = place(histogram.count()) / format::float(POINTS_MAX as u64);
    let mut points: Vec<Point> = Vec::new();
    let mut skipped = None;
    let mut seen = 0;
    for (ns, count) in histogram.buckets() {
        seen += count;
        let point = Point { x: place(seen), y: format::float(ns), span: None, label: String::new() };
        // What falls onto the same pixel is left out, but for the longest of all.
        if points.last().is_some_and(|before| point.x - before.x < pixel) {
            skipped = Some(point);
        } else {
            points.push(point);
            skipped = None;
        }
    }
    points.extend(skipped);
    points
}

fn percentile_summary(histogram: &Histogram) -> String {
    let parts = PERCENTILES.into_iter().filter(|p| histogram.tells(*p)).map(|p| {
        let latency = format::figure(format::float(histogram.percentile(p)), Unit::Nanoseconds);
        format!("p{p} {latency}")
    });
    parts.collect::<Vec<_>>().join(", ")
}

/// Rounds one after another, each a stretch (or several, where nothing was measured in between).
fn course_points(rounds: &[&Series]) -> Vec<Vec<Point>> {
    let mut stretches = Vec::new();
    let mut start_ns = 0.0;
    for series in rounds {
        let step_ns = series.step_s * 1e9;
        let merged = series.values.len().div_ceil(POINTS_MAX / rounds.len().clamp(1, POINTS_MAX)).max(1);
        let mut stretch = Vec::new();
        for (index, values) in series.values.chunks(merged).enumerate() {
            let there: Vec<f64> = values.iter().flatten().copied().collect();
            let end_ns = start_ns + step_ns * format::float((index * merged + values.len()) as u64);
            match stats::median(&there) {
                Some(y) => stretch.push(Point { x: end_ns, y, span: None, label: String::new() }),
                None => stretches.push(std::mem::take(&mut stretch)),
            }
        }
        stretches.push(stretch);
        start_ns += step_ns * format::float(series.values.len() as u64 + 1);
    }
    stretches.retain(|stretch| !stretch.is_empty());
    stretches
}

fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(points: &[Point]) -> Vec<(f64, f64)> {
        points.iter().map(|point| (point.x, point.y)).collect()
    }

    #[test]
    fn percentiles_rise_to_the_longest_and_have_a_pixel_each() {
        let mut histogram = Histogram::new();
        (1..=100_000).for_each(|ns| histogram.record(ns));
        let points = percentile_points(&histogram);
        assert!(points.len() <= POINTS_MAX + 2, "{}", points.len());
        assert!(points.windows(2).all(|pair| pair[0].x < pair[1].x && pair[0].y < pair[1].y));
        let last = points.last().unwrap();
        assert!((last.x - 200_000_f64.log10()).abs() < 1e-9 && last.y >= 100_000.0, "{last:?}");
        let median = points.iter().find(|point| point.x >= nines(0.5)).unwrap();
        assert!((median.y - 50_000.0).abs() < 1_500.0, "{median:?}");
    }

    #[test]
    fn a_course_breaks_between_rounds_and_where_nothing_was_measured() {
        let series = |round, values: &[Option<f64>]| Series {
            measure: String::new(),
            round,
            step_s: 1.0,
            values: values.to_vec(),
        };
        let (first, second) = (series(0, &[Some(1.0), None, Some(3.0)]), series(1, &[Some(4.0), Some(5.0)]));
        let stretches: Vec<_> = course_points(&[&first, &second]).iter().map(|points| places(points)).collect();
        assert_eq!(stretches, [vec![(1e9, 1.0)], vec![(3e9, 3.0)], vec![(5e9, 4.0), (6e9, 5.0)]]);
    }

    #[test]
    fn a_long_course_is_drawn_with_a_point_for_each_pixel() {
        let values = vec![Some(2.0); 100_000];
        let long = Series { measure: String::new(), round: 0, step_s: 0.1, values };
        let stretches = course_points(&[&long]);
        assert_eq!(stretches.len(), 1);
        assert!((POINTS_MAX / 2..=POINTS_MAX).contains(&stretches[0].len()));
        assert_eq!(stretches[0].last().unwrap().x, 1e13);
    }
}
