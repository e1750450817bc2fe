//! The names that experiments share: parameters as fio calls them, and what is measured.

use super::{Better, Measure, Parameter, Unit};

/// What is done: `read`, `write`, `randread`, `randwrite`, `randrw`.
pub const RW: Parameter = Parameter::new("rw", "pattern", Unit::Count);
/// Bytes per I/O.
pub const BLOCK_SIZE: Parameter = Parameter::new("bs", "block size", Unit::Bytes);
/// I/Os in flight per job.
pub const QUEUE_DEPTH: Parameter = Parameter::new("iodepth", "queue depth", Unit::Count);
/// Jobs that run side by side.
pub const JOBS: Parameter = Parameter::new("jobs", "jobs", Unit::Count);
/// How I/O is submitted: `uring`, `threads`.
pub const ENGINE: Parameter = Parameter::new("engine", "engine", Unit::Count);
/// What is read and written: a path.
pub const TARGET: Parameter = Parameter::new("target", "target", Unit::Count);
/// Arrivals per second of an open loop.
pub const RATE: Parameter = Parameter::new("rate", "arrivals", Unit::PerSecond);
/// Writes between two fdatasyncs.
pub const FDATASYNC: Parameter = Parameter::new("fdatasync", "writes per fdatasync", Unit::Count);
/// The program that made the load: this one, or a rival.
pub const PROGRAM: Parameter = Parameter::new("program", "program", Unit::Count);

/// Operations done per second.
pub const IOPS: Measure = Measure::new("iops", "IOPS", Unit::PerSecond, Better::Higher);
/// Bytes moved per second.
pub const BANDWIDTH: Measure = Measure::new("bandwidth", "bandwidth", Unit::BytesPerSecond, Better::Higher);
/// The latency half of all operations stay below.
pub const P50: Measure = Measure::new("p50", "p50", Unit::Nanoseconds, Better::Lower);
/// The latency 99 of 100 operations stay below.
pub const P99: Measure = Measure::new("p99", "p99", Unit::Nanoseconds, Better::Lower);
/// The latency 999 of 1000 operations stay below.
pub const P999: Measure = Measure::new("p99.9", "p99.9", Unit::Nanoseconds, Better::Lower);
/// The latency half of all fdatasyncs stay below.
pub const SYNC_P50: Measure = Measure::new("fdatasync_p50", "fdatasync p50", Unit::Nanoseconds, Better::Lower);
/// Processor time, user and system, that one operation takes.
pub const CPU_PER_OP: Measure = Measure::new("cpu_per_op", "CPU per I/O", Unit::Nanoseconds, Better::Lower);
/// IOPS over those of a rival program under the same load.
pub const IOPS_RATIO: Measure = Measure::new("iops_ratio", "IOPS ratio", Unit::Ratio, Better::Higher);
/// CPU per I/O over that of a rival program under the same load.
pub const CPU_RATIO: Measure = Measure::new("cpu_ratio", "CPU ratio", Unit::Ratio, Better::Lower);
