//! One data model for every experiment, and its renderings.
//!
//! An experiment fills a [`Run`]: [`Cell`]s, each of which is one combination of parameters with what was measured
//! under it, [`Finding`]s in words, and [`Plot`]s that say which figure to draw against which parameter. The renderers
//! know only that model, so a new experiment needs none of its own.

mod compare;
mod environment;
mod file;
mod format;
mod histogram;
mod html;
mod join;
mod model;
mod section;
pub mod stats;
mod table;
pub mod vocabulary;

pub use compare::{CellChange, Comparison, Difference, MeasureChange, Side, Verdict};
pub use file::FileKind;
pub use histogram::{Histogram, PERCENTILES};
pub use model::{
    Better, Cell, Cpu, Environment, Figure, Finding, Highlight, Latency, Measure, Parameter, Plot, PlotKind, Reference,
    Run, SCHEMA_VERSION, Schema, Series, Severity, Steadiness, Target, Tool, Unit, Value,
};
