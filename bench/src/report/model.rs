//! What an experiment leaves behind. `bench/schema/run-v1.md` describes its JSON.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use blockdev::ByteSize;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::histogram::{Histogram, PERCENTILES};
use super::stats;

/// The version of the schema that this program writes, and the newest it reads.
pub const SCHEMA_VERSION: u32 = 1;

/// Everything one experiment measured, on what, how, and what was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Which schema this document follows.
    pub schema: Schema,
    /// Which experiment this was: `disk`, `tune`, `lag`, `pfsd`.
    pub experiment: String,
    /// What was measured, in words for a title: `/dev/loop7`.
    pub subject: String,
    /// The program that measured.
    pub tool: Tool,
    /// Its command line, program first.
    pub command: Vec<String>,
    /// When it began (UTC).
    pub started: Timestamp,
    /// How long it took, in seconds.
    pub elapsed_s: f64,
    /// False when it was interrupted: the cells that were finished are here, others are not.
    pub completed: bool,
    /// On what it ran.
    pub environment: Environment,
    /// The few figures that say most, for the top of the page.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub highlights: Vec<Highlight>,
    /// What the run has to say, the most important first.
    pub findings: Vec<Finding>,
    /// The parameters that cells have, in the order in which they are shown.
    pub parameters: Vec<Parameter>,
    /// What is measured in cells, in the order in which it is shown.
    pub measures: Vec<Measure>,
    /// One for each combination of parameters.
    pub cells: Vec<Cell>,
    /// What is worth drawing.
    pub plots: Vec<Plot>,
}

impl Run {
    /// A run that begins now, by this program with its command line, and has measured nothing yet.
    #[must_use]
    pub fn begin(experiment: &str, subject: impl Into<String>, environment: Environment) -> Self {
        Self {
            schema: Schema,
            experiment: experiment.to_owned(),
            subject: subject.into(),
            tool: Tool { name: "bench".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() },
            command: std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect(),
            started: Timestamp::now(),
            elapsed_s: 0.0,
            completed: false,
            environment,
            highlights: Vec::new(),
            findings: Vec::new(),
            parameters: Vec::new(),
            measures: Vec::new(),
            cells: Vec::new(),
            plots: Vec::new(),
        }
    }

    /// Says that it is over, after `elapsed`; `completed` is false when it was interrupted.
    pub fn end(&mut self, elapsed: Duration, completed: bool) {
        self.elapsed_s = elapsed.as_secs_f64();
        self.completed = completed;
    }
}

/// The name and version of a document's schema: `onedisk.bench.run/1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Schema;

impl Schema {
    /// What stands before the slash.
    pub const NAME: &'static str = "onedisk.bench.run";
}

impl fmt::Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{SCHEMA_VERSION}", Self::NAME)
    }
}

impl Serialize for Schema {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Schema {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == Self.to_string() {
            Ok(Self)
        } else {
            Err(serde::de::Error::custom(format!("schema {text:?}, expected {Self}")))
        }
    }
}

/// The program that measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// On what a run ran. The host's name is left out unless asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// The kernel's release and version.
    pub kernel: String,
    /// The distribution.
    pub os: String,
    /// The processor.
    pub cpu: Cpu,
    /// Memory of the machine.
    pub memory: ByteSize,
    /// What the kernel reads time from.
    pub clocksource: String,
    /// The hypervisor, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtualisation: Option<String>,
    /// The container's kind, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The host's name, where the user wanted it told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// What was measured.
    pub targets: Vec<Target>,
}

/// A processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// As it names itself.
    pub model: String,
    /// How many the kernel lets this process use.
    pub count: u32,
}

/// Something that was measured, and all that is known of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// What it is called: a path.
    pub name: String,
    /// Sizes, file system, device, scheduler, extents: whatever whoever probed it found worth telling.
    pub facts: serde_json::Value,
}

/// A figure that stands for the whole run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Highlight {
    /// What it is, in a few words: `random 8 KiB reads`.
    pub label: String,
    /// The name of the [`Cell`] it is from.
    pub cell: String,
    /// The name of its [`Measure`].
    pub measure: String,
}

/// Something a reader of the report should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// A name that programs can look for: `flush-is-not-durable`.
    pub id: String,
    /// How much it matters.
    pub severity: Severity,
    /// What was found.
    pub text: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Note,
    /// Numbers may mean less than they seem to.
    Warning,
    /// Something is wrong.
    Error,
}

impl Finding {
    /// A finding without a hint.
    pub fn new(severity: Severity, id: impl Into<String>, text: impl Into<String>) -> Self {
        Self { id: id.into(), severity, text: text.into(), hint: None }
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Plain numbers, and text.
    #[serde(rename = "count")]
    Count,
    /// Nanoseconds.
    #[serde(rename = "ns")]
    Nanoseconds,
    /// Bytes.
    #[serde(rename = "bytes")]
    Bytes,
    /// Events per second.
    #[serde(rename = "1/s")]
    PerSecond,
    /// Bytes per second.
    #[serde(rename = "bytes/s")]
    BytesPerSecond,
    /// A share, 1 being all.
    #[serde(rename = "ratio")]
    Ratio,
}

/// A parameter that cells have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameter {
    /// Its key in [`Cell::params`].
    pub name: Cow<'static, str>,
    /// Its name for people.
    pub label: Cow<'static, str>,
    /// What its number counts.
    pub unit: Unit,
}

impl Parameter {
    /// A parameter known at compile time.
    #[must_use]
    pub const fn new(name: &'static str, label: &'static str, unit: Unit) -> Self {
        Self { name: Cow::Borrowed(name), label: Cow::Borrowed(label), unit }
    }
}

/// The value of a parameter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// Yes or no.
    Flag(bool),
    /// A number in the parameter's unit.
    Number(u64),
    /// A word.
    Text(String),
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<ByteSize> for Value {
    fn from(size: ByteSize) -> Self {
        Self::Number(size.bytes())
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

/// Something that is measured in cells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measure {
    /// Its key in [`Cell::figures`].
    pub name: Cow<'static, str>,
    /// Its name for people.
    pub label: Cow<'static, str>,
    /// What its number counts.
    pub unit: Unit,
    /// Which way is up.
    pub better: Better,
}

impl Measure {
    /// A measure known at compile time.
    #[must_use]
    pub const fn new(name: &'static str, label: &'static str, unit: Unit, better: Better) -> Self {
        Self { name: Cow::Borrowed(name), label: Cow::Borrowed(label), unit, better }
    }
}

/// Which of two values of a measure one would rather have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// The larger.
    Higher,
    /// The smaller.
    Lower,
}

/// One combination of parameters, and what was measured under it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Cell {
    /// What it is called, unique in its run: `random read 8 KiB, queue depth 16`.
    pub name: String,
    /// The section of the report it belongs to: `Random I/O`.
    pub group: String,
    /// What it was measured under; keys are names of [`Run::parameters`].
    pub params: BTreeMap<String, Value>,
    /// What was measured; keys are names of [`Run::measures`].
    pub figures: BTreeMap<String, Figure>,
    /// How long operations took.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub latencies: Vec<Latency>,
    /// How it went over time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub series: Vec<Series>,
    /// How many operations failed.
    pub errors: u64,
    /// The first failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_error: Option<String>,
    /// Why these numbers are not a disk's, when they are not: reads of unwritten extents, for instance. Such a cell is
    /// shown with the reason, and neither drawn nor compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_disk: Option<String>,
    /// Whether it had settled when it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steadiness: Option<Steadiness>,
}

impl Cell {
    /// A cell without anything in it.
    pub fn new(group: impl Into<String>, name: impl Into<String>) -> Self {
        Self { group: group.into(), name: name.into(), ..Self::default() }
    }

    /// The same measured under `parameter` = `value`.
    #[must_use]
    pub fn with_param(mut self, parameter: &Parameter, value: impl Into<Value>) -> Self {
        self.params.insert(parameter.name.clone().into_owned(), value.into());
        self
    }

    /// The same with what `measure` came to in each round. Without rounds, or with a round in which it came to no
    /// finite number (a percentile of nothing), the cell has no such figure.
    #[must_use]
    pub fn with_figure(mut self, measure: &Measure, samples: Vec<f64>) -> Self {
        if let Some(value) = stats::median(&samples) {
            self.figures.insert(measure.name.clone().into_owned(), Figure { value, samples });
        }
        self
    }
}

/// What a measure came to, in the measure's unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The median of the rounds.
    pub value: f64,
    /// One value for each round, in the order in which they were run.
    pub samples: Vec<f64>,
}

/// How long the operations of a cell took, all rounds together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(into = "LatencyDocument", try_from = "LatencyDocument")]
pub struct Latency {
    /// What was timed: `service` (submission to completion), `response` (intended start to completion), `fdatasync`.
    pub name: String,
    /// The latencies.
    pub histogram: Histogram,
}

/// One measure over time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// The [`Measure`] it is of.
    pub measure: String,
    /// The round it was taken in, from 0.
    pub round: u32,
    /// How far apart the values are, in seconds.
    pub step_s: f64,
    /// The values, each over the step that ends there; null where nothing happened to measure.
    pub values: Vec<Option<f64>>,
}

/// Whether a cell had settled when it was measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Steadiness {
    /// Its end is like its beginning.
    Steady,
    /// It was still changing: its end was `change` times its beginning.
    Drifting {
        /// The ratio of the last third to the first.
        change: f64,
    },
    /// There are too few values to tell.
    TooShort,
}

/// Something worth drawing. Cells are divided into panels by the parameters in `panels`, and within one into lines by
/// those in `lines`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plot {
    /// Its title.
    pub title: String,
    /// What is drawn.
    #[serde(flatten)]
    pub kind: PlotKind,
    /// The [`Cell::group`] whose cells are drawn.
    pub group: String,
    /// One panel for each combination of these parameters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub panels: Vec<String>,
    /// One line for each combination of these parameters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lines: Vec<String>,
    /// Values to hold the lines against, such as a ceiling.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<Reference>,
}

/// What a plot draws.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum PlotKind {
    /// A measure against a parameter: lines where the parameter is a number, otherwise one row for each value.
    Figure {
        /// The [`Measure`].
        measure: String,
        /// The [`Parameter`] along the x axis.
        x: String,
    },
    /// The percentiles of latencies.
    Percentiles {
        /// The name of the [`Latency`].
        latency: String,
    },
    /// A measure over time.
    Course {
        /// The [`Measure`] of the [`Series`].
        measure: String,
    },
}

/// A value to hold a plot's lines against.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    /// What it is.
    pub label: String,
    /// Its value, in the unit of what is drawn.
    pub value: f64,
}

/// A [`Latency`] as it is written: the histogram says all, the rest is there to be read without decoding it.
#[derive(Serialize, Deserialize)]
struct LatencyDocument {
    name: String,
    #[serde(skip_deserializing)]
    count: u64,
    #[serde(skip_deserializing)]
    min_ns: u64,
    #[serde(skip_deserializing)]
    mean_ns: f64,
    #[serde(skip_deserializing)]
    percentiles_ns: BTreeMap<String, u64>,
    #[serde(skip_deserializing)]
    max_ns: u64,
    histogram: String,
}

impl From<Latency> for LatencyDocument {
    fn from(Latency { name, histogram }: Latency) -> Self {
        Self {
            name,
            count: histogram.count(),
            min_ns: histogram.min(),
            mean_ns: histogram.mean(),
            percentiles_ns: PERCENTILES.map(|p| (format!("p{p}"), histogram.percentile(p))).into(),
            max_ns: histogram.max(),
            histogram: histogram.encode(),
        }
    }
}

impl TryFrom<LatencyDocument> for Latency {
    type Error = blockdev::Error;

    fn try_from(document: LatencyDocument) -> Result<Self, Self::Error> {
        Ok(Self { name: document.name, histogram: Histogram::decode(&document.histogram)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::vocabulary as v;

    #[test]
    fn a_run_survives_json() {
        let mut histogram = Histogram::new();
        histogram.record(81_000);
        let mut run = Run::begin("disk", "/dev/loop7", Environment::of_this_machine(Vec::new()));
        run.parameters = vec![v::BLOCK_SIZE];
        run.measures = vec![v::IOPS];
        let mut cell = Cell::new("Random I/O", "random read 8 KiB")
            .with_param(&v::BLOCK_SIZE, ByteSize::kib(8))
            .with_figure(&v::IOPS, vec![10.0, 30.0, 20.0]);
        cell.latencies.push(Latency { name: "service".to_owned(), histogram });
        cell.steadiness = Some(Steadiness::Drifting { change: 0.5 });
        run.cells.push(cell);
        run.plots.push(Plot {
            title: "IOPS".to_owned(),
            kind: PlotKind::Figure { measure: "iops".to_owned(), x: "iodepth".to_owned() },
            group: "Random I/O".to_owned(),
            panels: Vec::new(),
            lines: vec!["bs".to_owned()],
            references: Vec::new(),
        });
        run.end(Duration::from_millis(1500), true);
        let json = serde_json::to_string(&run).unwrap();
        assert!(json.contains(r#""schema":"onedisk.bench.run/1""#), "{json}");
        assert!(json.contains(r#""p99.9":81023"#), "{json}");
        assert_eq!(serde_json::from_str::<Run>(&json).unwrap(), run);
        assert_eq!(run.cells[0].figures["iops"].value, 20.0);
    }

    #[test]
    fn a_figure_without_a_finite_number_in_every_round_is_none() {
        let cell = Cell::new("", "").with_figure(&v::P99, vec![1.0, f64::NAN]).with_figure(&v::IOPS, Vec::new());
        assert!(cell.figures.is_empty());
    }
}
