//! The names that experiments share: parameters as fio calls them, and what is measured.

use super::{Better, Measure, Parameter, Unit, Value};

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
/// Which replica looked.
pub const READER: Parameter = Parameter::new("reader", "reader", Unit::Count);
/// Which kind of transaction was written.
pub const TRANSACTION: Parameter = Parameter::new("transaction", "transaction", Unit::Count);
/// Which load there was beside what is measured.
pub const LOAD: Parameter = Parameter::new("load", "load", Unit::Count);
/// How often a tiny update kept readers awake.
pub const HEARTBEAT: Parameter = Parameter::new("heartbeat", "heartbeat", Unit::Count);
/// How long a replica waits on purpose before it replays a commit.
pub const DELAY: Parameter = Parameter::new("delay", "delay", Unit::Nanoseconds);
/// Whether anybody looked at the replicas.
pub const LOOKED_AT: Parameter = Parameter::new("looked_at", "looked at", Unit::Count);
/// Which pfsd served.
pub const PFSD: Parameter = Parameter::new("pfsd", "pfsd", Unit::Count);
/// What the disk that was served was on: a file system.
pub const MEDIUM: Parameter = Parameter::new("medium", "medium", Unit::Count);
/// How many workers it had.
pub const WORKERS: Parameter = Parameter::new("workers", "workers", Unit::Count);
/// How many clients it had, each of which does one thing at a time.
pub const CLIENTS: Parameter = Parameter::new("clients", "clients", Unit::Count);

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
/// The longest latency.
pub const MAX: Measure = Measure::new("max", "max", Unit::Nanoseconds, Better::Lower);
/// The time from the intended beginning of a transaction to its being seen that half of all stay below.
pub const INTENDED_P50: Measure = Measure::new("intended_p50", "from due p50", Unit::Nanoseconds, Better::Lower);
/// The time from the intended beginning of a transaction to its being seen that 99 of 100 stay below.
pub const INTENDED_P99: Measure = Measure::new("intended_p99", "from due p99", Unit::Nanoseconds, Better::Lower);
/// The time of a commit, from its sending to its acknowledgement, that half of all stay below.
pub const COMMIT_P50: Measure = Measure::new("commit_p50", "commit p50", Unit::Nanoseconds, Better::Lower);
/// The time of a commit, from its sending to its acknowledgement, that 99 of 100 stay below.
pub const COMMIT_P99: Measure = Measure::new("commit_p99", "commit p99", Unit::Nanoseconds, Better::Lower);
/// What a calibration found of a delay: from the sending of a transaction to the middle of the two looks between which it
/// became visible, in the median.
pub const FOUND: Measure = Measure::new("found", "found", Unit::Nanoseconds, Better::Lower);
/// The time of a look at a reader that half of all stay below: no lag below it can be told.
pub const POLL_P50: Measure = Measure::new("poll_p50", "poll p50", Unit::Nanoseconds, Better::Lower);
/// How far apart the two looks are between which something became visible, in the median.
pub const RESOLUTION: Measure = Measure::new("resolution", "known to", Unit::Nanoseconds, Better::Lower);
/// The share of samples of which only an upper bound is known, as the first look saw them.
pub const CENSORED: Measure = Measure::new("censored", "censored", Unit::Ratio, Better::Lower);
/// Transactions that were sent and never acknowledged.
pub const LOST: Measure = Measure::new("lost", "lost", Unit::Count, Better::Lower);
/// Transactions that were acknowledged and never seen.
pub const TIMED_OUT: Measure = Measure::new("timed_out", "timed out", Unit::Count, Better::Lower);
/// How many transactions an open loop sent in a second.
pub const SENT_RATE: Measure = Measure::new("sent_rate", "sent", Unit::PerSecond, Better::Higher);
/// The share of what an open loop had to send that it sent.
pub const RATE_KEPT: Measure = Measure::new("rate_kept", "rate kept", Unit::Ratio, Better::Higher);
/// The share of what a load had to send that it sent.
pub const LOAD_KEPT: Measure = Measure::new("load_kept", "load kept", Unit::Ratio, Better::Higher);
/// What `pg_stat_replication` calls `write_lag`, in the mean.
pub const WRITE_LAG: Measure = Measure::new("write_lag", "write lag", Unit::Nanoseconds, Better::Lower);
/// What `pg_stat_replication` calls `flush_lag`, in the mean.
pub const FLUSH_LAG: Measure = Measure::new("flush_lag", "flush lag", Unit::Nanoseconds, Better::Lower);
/// What `pg_stat_replication` calls `replay_lag`, in the mean.
pub const REPLAY_LAG: Measure = Measure::new("replay_lag", "replay lag", Unit::Nanoseconds, Better::Lower);
/// Bytes of WAL that a reader has not replayed, in the mean.
pub const BEHIND: Measure = Measure::new("behind", "not replayed", Unit::Bytes, Better::Lower);
/// Bytes of WAL that a reader has received and not replayed, in the mean.
pub const RECEIVED: Measure = Measure::new("received", "received of it", Unit::Bytes, Better::Lower);
/// Bytes of WAL that a PolarDB reader has yet to replay in the background, in the mean.
pub const BACKGROUND: Measure = Measure::new("background", "left to background", Unit::Bytes, Better::Lower);
/// The latency half of all fdatasyncs stay below.
pub const SYNC_P50: Measure = Measure::new("fdatasync_p50", "fdatasync p50", Unit::Nanoseconds, Better::Lower);
/// Processor time, user and system, that one operation takes.
pub const CPU_PER_OP: Measure = Measure::new("cpu_per_op", "CPU per I/O", Unit::Nanoseconds, Better::Lower);
/// IOPS over those of a rival program under the same load.
pub const IOPS_RATIO: Measure = Measure::new("iops_ratio", "IOPS ratio", Unit::Ratio, Better::Higher);
/// CPU per I/O over that of a rival program under the same load.
pub const CPU_RATIO: Measure = Measure::new("cpu_ratio", "CPU ratio", Unit::Ratio, Better::Lower);
/// The median latency over that of a rival program under the same load.
pub const P50_RATIO: Measure = Measure::new("p50_ratio", "p50 ratio", Unit::Ratio, Better::Lower);
/// The 99th percentile over that of a rival program under the same load.
pub const P99_RATIO: Measure = Measure::new("p99_ratio", "p99 ratio", Unit::Ratio, Better::Lower);
/// IOPS over those of the disk below, with as many operations in flight.
pub const OF_DISK: Measure = Measure::new("of_disk", "of the disk", Unit::Ratio, Better::Higher);
/// Files made per second.
pub const CREATES: Measure = Measure::new("creates", "creates", Unit::PerSecond, Better::Higher);
/// Processor time, user and system, that one operation takes of a pfsd.
pub const PFSD_CPU: Measure = Measure::new("pfsd_cpu_per_op", "pfsd CPU per op", Unit::Nanoseconds, Better::Lower);
/// What of a core a program takes while it has nothing to do.
pub const IDLE_CPU: Measure = Measure::new("idle_cpu", "of a core, idle", Unit::Ratio, Better::Lower);
/// The same over that of a rival program.
pub const IDLE_RATIO: Measure = Measure::new("idle_ratio", "idle ratio", Unit::Ratio, Better::Lower);
/// Memory of a program, beyond what it shares on purpose.
pub const MEMORY: Measure = Measure::new("memory", "memory of its own", Unit::Bytes, Better::Lower);
/// The same over that of a rival program.
pub const MEMORY_RATIO: Measure = Measure::new("memory_ratio", "memory ratio", Unit::Ratio, Better::Lower);

/// The value of [`RATE`] for so many a second.
#[must_use]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be in 0..=RATE_MAX")]
pub fn rate(rate: f64) -> Value {
    Value::Number(rate.round() as u64)
}
