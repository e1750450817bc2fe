//! Charts as inline SVG. Colours and type are the page's style sheet's; positions are this module's.

use super::super::format;
use super::axis::Axis;
use super::chart::{Chart, Kind, Line, Panel, Point};
use super::facet::{Colour, Style};
use super::markup::{Attribute, Markup};

/// About how wide a character of a label is, in the type the style sheet gives it.
const CHARACTER: f64 = 6.1;

/// How far apart the lines' labels are at least.
const LABEL_HEIGHT: f64 = 13.0;

/// How much wider bold labels are.
const BOLD: f64 = 1.1;

/// How high a row of a chart of rows is.
const ROW_HEIGHT: f64 = 26.0;

/// How far apart the points of a row lie, where it has several.
const LANE_HEIGHT: f64 = 7.0;

/// The place of one panel: the size of its picture, and the margins around what is drawn.
struct Frame {
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Frame {
    fn x(&self, axis: &Axis, value: f64) -> f64 {
        self.left + axis.position(value) * (self.width - self.left - self.right)
    }

    fn y(&self, axis: &Axis, value: f64) -> f64 {
        self.floor() - axis.position(value) * (self.floor() - self.top)
    }

    /// The lower edge of what is drawn.
    fn floor(&self) -> f64 {
        self.height - self.bottom
    }

    /// The right edge of what is drawn.
    fn end(&self) -> f64 {
        self.width - self.right
    }
}

/// Draws one panel of `chart`.
pub(super) fn panel(m: &mut Markup, chart: &Chart, panel: &Panel) {
    match &chart.kind {
        Kind::Lines { x, y, markers } => lines(m, chart, panel, (x, y), *markers),
        Kind::Rows { along } => rows(m, chart, panel, along),
    }
}

fn picture(m: &mut Markup, chart: &Chart, panel: &Panel, frame: &Frame, inner: impl FnOnce(&mut Markup)) {
    let label = if panel.title.is_empty() { chart.title.clone() } else { format!("{}: {}", chart.title, panel.title) };
    let view = format!("0 0 {} {}", frame.width, frame.height);
    m.element("svg", &[("viewBox", &view), ("role", &"img"), ("aria-label", &label)], inner);
}

fn lines(m: &mut Markup, chart: &Chart, panel: &Panel, (x, y): (&Axis, &Axis), markers: bool) {
    let (width, height): (f64, f64) = match chart.columns {
        1 => (720.0, 320.0),
        2 => (520.0, 290.0),
        _ => (360.0, 250.0),
    };
    let longest = |texts: &mut dyn Iterator<Item = &str>| texts.map(text_width).fold(0.0, f64::max);
    let frame = Frame {
        width,
        height,
        left: 10.0 + longest(&mut y.ticks.iter().map(|tick| tick.label.as_str())),
        right: 14.0
            + BOLD * longest(&mut chart.panels.iter().flat_map(|panel| &panel.lines).map(|line| line.label.as_str())),
        top: 24.0,
        bottom: 38.0,
    };
    picture(m, chart, panel, &frame, |m| {
        grid(m, &frame, x, y);
        for (value, label) in &chart.references {
            reference(m, &frame, frame.y(y, *value), label);
        }
        for line in &panel.lines {
            let class = format!("line {}", class(line.style));
            m.element("g", &[("class", &class)], |m| {
                let summary =
                    [&line.label, &line.summary].map(String::as_str).into_iter().filter(|text| !text.is_empty());
                m.leaf("title", &[], &summary.collect::<Vec<_>>().join(": "));
                for stretch in &line.stretches {
                    path(m, &frame, (x, y), stretch);
                }
                if markers {
                    for point in line.stretches.iter().flatten() {
                        marker(m, chart, line, point, (frame.x(x, point.x), frame.y(y, point.y)), |m| {
                            if let Some((low, high)) = point.span {
                                let at = frame.x(x, point.x);
                                segment(m, "span", (at, frame.y(y, low)), (at, frame.y(y, high)));
                            }
                        });
                    }
                }
            });
        }
        labels(m, &frame, y, &panel.lines);
        m.newline();
    });
}

/// The axes: lines across at the ticks of `y`, ticks below at those of `x`, and the titles.
fn grid(m: &mut Markup, frame: &Frame, x: &Axis, y: &Axis) {
    m.element("g", &[("class", &"axes")], |m| {
        for tick in &y.ticks {
            let at = frame.y(y, tick.value);
            segment(m, "grid", (frame.left, at), (frame.end(), at));
            text(m, "end", (frame.left - 6.0, at + 3.8), &tick.label);
        }
        segment(m, "floor", (frame.left, frame.floor()), (frame.end(), frame.floor()));
        let mut free = f64::NEG_INFINITY;
        for tick in &x.ticks {
            let at = frame.x(x, tick.value);
            segment(m, "floor", (at, frame.floor()), (at, frame.floor() + 4.0));
            let half = text_width(&tick.label) / 2.0;
            if at - half > free {
                text(m, "middle", (at, frame.floor() + 16.0), &tick.label);
                free = at + half + 4.0;
            }
        }
        text(m, "start title", (0.0, 11.0), &y.title);
        text(m, "end title", (frame.end(), frame.height - 5.0), &x.title);
    });
}

fn path(m: &mut Markup, frame: &Frame, (x, y): (&Axis, &Axis), points: &[Point]) {
    let steps = points.iter().enumerate().map(|(index, point)| {
        let command = if index == 0 { 'M' } else { 'L' };
        format!("{command}{} {}", place(frame.x(x, point.x)), place(frame.y(y, point.y)))
    });
    m.void("path", &[("d", &steps.collect::<String>())]);
}

/// A point that says what it is when pointed at.
fn marker(
    m: &mut Markup,
    chart: &Chart,
    line: &Line,
    point: &Point,
    (x, y): (f64, f64),
    span: impl FnOnce(&mut Markup),
) {
    m.element("g", &[("class", &"point")], |m| {
        m.leaf("title", &[], &point_text(chart, line, point));
        span(m);
        m.void("circle", &[("class", &"reach"), ("cx", &place(x)), ("cy", &place(y)), ("r", &9)]);
        m.void("circle", &[("cx", &place(x)), ("cy", &place(y)), ("r", &"2.8")]);
    });
}

fn point_text(chart: &Chart, line: &Line, point: &Point) -> String {
    let at = match &chart.kind {
        Kind::Lines { x, .. } => format!("{} {}", x.title, point.label),
        Kind::Rows { .. } => point.label.clone(),
    };
    let what = if line.label.is_empty() { at } else { format!("{}, {at}", line.label) };
    let figure = |value| format::figure(value, chart.unit);
    let span = point.span.map(|(low, high)| format!(" (rounds from {} to {})", figure(low), figure(high)));
    format!("{what}: {}{}", figure(point.y), span.unwrap_or_default())
}

/// The lines' names at their ends, moved apart where they would overlap.
fn labels(m: &mut Markup, frame: &Frame, y: &Axis, lines: &[Line]) {
    let mut ends: Vec<(f64, &Line)> = lines
        .iter()
        .filter_map(|line| Some((frame.y(y, line.stretches.last()?.last()?.y), line)))
        .filter(|(_, line)| !line.label.is_empty())
        .collect();
    ends.sort_by(|a, b| a.0.total_cmp(&b.0));
    for index in 1..ends.len() {
        ends[index].0 = ends[index].0.max(ends[index - 1].0 + LABEL_HEIGHT);
    }
    // What was pushed out below goes back up, and pushes up what is above it.
    let mut lowest = frame.floor();
    for (at, _) in ends.iter_mut().rev() {
        *at = at.min(lowest);
        lowest = *at - LABEL_HEIGHT;
    }
    for (at, line) in ends {
        let class = format!("label {}", class(line.style));
        text(m, &class, (frame.end() + 8.0, at + 3.8), &line.label);
    }
}

fn rows(m: &mut Markup, chart: &Chart, panel: &Panel, along: &Axis) {
    let longest = chart.panels.iter().flat_map(row_names).map(|(_, name)| text_width(&name)).fold(0.0, f64::max);
    let names = row_names(panel);
    let several = panel.lines.len() > 1;
    let row_height = if several { 14.0 + LANE_HEIGHT * format::float(panel.lines.len() as u64) } else { ROW_HEIGHT };
    let above = if several || !chart.references.is_empty() { 20.0 } else { 4.0 };
    let frame = Frame {
        width: 720.0,
        height: above + row_height * format::float(names.len() as u64) + 38.0,
        left: 14.0 + longest,
        right: 64.0,
        top: above,
        bottom: 38.0,
    };
    let middle = |row: usize| frame.top + row_height * (format::float(row as u64) + 0.5);
    picture(m, chart, panel, &frame, |m| {
        m.element("g", &[("class", &"axes")], |m| {
            for tick in &along.ticks {
                let at = frame.x(along, tick.value);
                segment(m, "grid", (at, frame.top), (at, frame.floor()));
                text(m, "middle", (at, frame.floor() + 15.0), &tick.label);
            }
            text(m, "end title", (frame.end(), frame.height - 5.0), &along.title);
        });
        for (row, (_, name)) in names.iter().enumerate() {
            text(m, "end name", (frame.left - 10.0, middle(row) + 3.8), name);
        }
        for (value, label) in &chart.references {
            let at = frame.x(along, *value);
            m.element("g", &[("class", &"reference")], |m| {
                segment(m, "", (at, frame.top - 4.0), (at, frame.floor()));
                text(m, "end", (at, frame.top - 8.0), label);
            });
        }
        let mut legend_x = 0.0;
        for (lane, line) in panel.lines.iter().enumerate() {
            if several {
                text(m, &format!("label {}", class(line.style)), (legend_x, 11.0), &line.label);
                legend_x += text_width(&line.label) * BOLD + 18.0;
            }
            // Where a row has several points, they lie below each other.
            let offset =
                LANE_HEIGHT * (format::float(lane as u64) - (format::float(panel.lines.len() as u64) - 1.0) / 2.0);
            m.element("g", &[("class", &format!("line {}", class(line.style)))], |m| {
                for point in line.stretches.iter().flatten() {
                    let row = names.iter().position(|(row, _)| *row == point.x).unwrap_or_default();
                    row_point(m, chart, line, point, (&frame, along, middle(row) + offset), several);
                }
            });
        }
        m.newline();
    });
}

/// The rows of a panel, from the top: what identifies each, and its name.
fn row_names(panel: &Panel) -> Vec<(f64, String)> {
    let mut names: Vec<(f64, String)> = Vec::new();
    for point in panel.lines.iter().flat_map(|line| &line.stretches).flatten() {
        if !names.iter().any(|(row, _)| *row == point.x) {
            names.push((point.x, point.label.clone()));
        }
    }
    names.sort_by(|a, b| a.0.total_cmp(&b.0));
    names
}

/// One point of a row, at height `y`; where it is the only one, with its value beside it and, from a zero, a bar to it.
fn row_point(
    m: &mut Markup,
    chart: &Chart,
    line: &Line,
    point: &Point,
    (frame, along, y): (&Frame, &Axis, f64),
    several: bool,
) {
    let at = (frame.x(along, point.y), y);
    if !several && along.is_from_zero() {
        segment(m, "bar", (frame.left, y), at);
    }
    marker(m, chart, line, point, at, |m| {
        if let Some((low, high)) = point.span {
            segment(m, "span", (frame.x(along, low), y), (frame.x(along, high), y));
        }
    });
    if !several {
        let end = point.span.map_or(point.y, |(_, high)| high);
        text(m, "value", (frame.x(along, end) + 8.0, y + 3.8), &format::figure(point.y, chart.unit));
    }
}

fn reference(m: &mut Markup, frame: &Frame, at: f64, label: &str) {
    m.element("g", &[("class", &"reference")], |m| {
        segment(m, "", (frame.left, at), (frame.end(), at));
        text(m, "start", (frame.left + 4.0, at - 4.0), label);
    });
}

fn segment(m: &mut Markup, class: &'static str, from: (f64, f64), to: (f64, f64)) {
    let places = [from.0, from.1, to.0, to.1].map(place);
    let mut attributes: Vec<Attribute> =
        vec![("x1", &places[0]), ("y1", &places[1]), ("x2", &places[2]), ("y2", &places[3])];
    if !class.is_empty() {
        attributes.insert(0, ("class", &class));
    }
    m.void("line", &attributes);
}

fn text(m: &mut Markup, class: &str, (x, y): (f64, f64), text: &str) {
    m.leaf("text", &[("class", &class), ("x", &place(x)), ("y", &place(y))], text);
}

/// A coordinate, to a tenth of a pixel.
fn place(at: f64) -> String {
    let text = format!("{at:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

fn text_width(text: &str) -> f64 {
    CHARACTER * format::float(text.chars().count() as u64)
}

fn class(style: Style) -> String {
    let colour = match style.colour {
        Colour::Kind(index) => format!("k{index}"),
        Colour::Level(level) => format!("l{level}"),
    };
    if style.dash == 0 { colour } else { format!("{colour} d{}", style.dash) }
}
