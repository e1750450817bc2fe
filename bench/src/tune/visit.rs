//! One visit of a setup: build it, fill the space that reads need, measure every workload, take it down.

use std::path::Path;
use std::time::{Duration, Instant};

use blockdev::extents::Summary;
use blockdev::image::Prealloc;
use blockdev::{ByteSize, Cancel, Error, ErrorKind, Result};

use super::built::Built;
use super::plan::Plan;
use super::setup::Setup;
use super::workload::{Layout, Part, Workload};
use crate::load::{self, Measured, Pattern, Work};

/// The unit and the depth in which space is filled.
const FILL_BLOCK: ByteSize = ByteSize::mib(1);
const FILL_DEPTH: u32 = 8;

/// What one workload came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Reads and writes per second.
    pub iops: f64,
    /// The latency half of them stayed below, in nanoseconds; not a number where there were none.
    pub p50_ns: f64,
    /// The latency 99 of 100 stayed below.
    pub p99_ns: f64,
    /// Processor time that each took of this process, in nanoseconds.
    pub cpu_per_op_ns: f64,
    /// Why this is not a disk's, where it is not.
    pub not_disk: Option<String>,
}

/// What a visit measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Visit {
    /// Of each of [`Workload::ALL`].
    pub readings: Vec<Reading>,
    /// What building, filling and taking down took.
    pub building: Duration,
    /// What the measurements took.
    pub measuring: Duration,
    /// What all of it took.
    pub elapsed: Duration,
}

/// Visits `setup` with an image at `path`.
///
/// # Errors
/// When it cannot be built or an I/O fails; of kind [`Interrupted`](ErrorKind::Interrupted) when `cancel` is set. Nothing
/// is left behind then.
pub fn visit(setup: &Setup, plan: &Plan, path: &Path, seed: u64, cancel: &Cancel) -> Result<Visit> {
    let begun = Instant::now();
    let layout = Layout::new(plan.image);
    let built = Built::new(setup, path, layout.size(), cancel)?;
    check_fresh(setup, &built.extents(layout.fresh())?)?;
    run(&built, &fill(layout, seed), cancel)?;
    built.settle()?;
    let settled = built.extents(layout.settled())?;
    let mut building = begun.elapsed();

    let (mut readings, mut measuring) = (Vec::new(), Duration::ZERO);
    for workload in Workload::ALL {
        let measured = run(&built, &workload.work(layout, plan.runtime, seed), cancel)?;
        measuring += measured.window;
        readings.push(Reading::of(&measured, why_not_disk(setup, workload, &settled)));
        built.settle()?;
    }
    let removing = Instant::now();
    built.remove()?;
    building += removing.elapsed();
    Ok(Visit { readings, building, measuring, elapsed: begun.elapsed() })
}

impl Reading {
    fn of(measured: &Measured, not_disk: Option<String>) -> Self {
        let mut latencies = measured.reads.service.clone();
        latencies.merge(&measured.writes.service);
        #[allow(clippy::cast_precision_loss, reason = "a latency is at most an hour")]
        let percentile = |p| if latencies.is_empty() { f64::NAN } else { latencies.percentile(p) as f64 };
        Self {
            iops: measured.iops(),
            p50_ns: percentile(50.0),
            p99_ns: percentile(99.0),
            cpu_per_op_ns: measured.cpu_per_io().map_or(f64::NAN, |cpu| cpu.as_secs_f64() * 1e9),
            not_disk,
        }
    }
}

fn run(built: &Built, work: &Work, cancel: &Cancel) -> Result<Measured> {
    let measured = load::run(work, || built.engine(work), cancel, |_| {})?;
    cancel.check("measuring a setup")?;
    Ok(measured)
}

/// Writes all of the half that is to be settled, through the setup, as a database that grew into it has.
fn fill(layout: Layout, seed: u64) -> Work {
    /// Longer than any; it is over when all is written.
    const ENOUGH: Duration = Duration::from_secs(24 * 3600);
    Work {
        once: true,
        warmup: Duration::ZERO,
        runtime: ENOUGH,
        seed,
        ..Work::new(Pattern::Write, FILL_BLOCK, FILL_DEPTH, layout.settled())
    }
}

/// Fresh space must be what the setup says, or what is measured there means nothing.
fn check_fresh(setup: &Setup, fresh: &Summary) -> Result<()> {
    let (state, bytes) = match setup.prealloc {
        Prealloc::Written => ("written", fresh.written),
        Prealloc::Reserved => ("unwritten", fresh.unwritten),
        Prealloc::Sparse => ("a hole", fresh.hole),
    };
    if fresh.gap().is_some() || bytes == fresh.size() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        format!("the file system does not keep a {} image so: not all of it is {state}, but {fresh}", setup.prealloc),
    ))
}

/// Why what `workload` measures on `setup` is not the disk; `settled` is the state of the blocks that were read.
fn why_not_disk(setup: &Setup, workload: Workload, settled: &Summary) -> Option<String> {
    let buffered = setup.device.as_ref().is_some_and(|device| !device.direct_io);
    if workload.part != Part::Reads {
        return (buffered && !workload.synced)
            .then(|| "writes that wait for no fdatasync end in the page cache of the loop device's file".to_owned());
    }
    (settled.not_on_disk() > ByteSize::ZERO)
        .then(|| format!("{} of what was read were never written to the disk", settled.not_on_disk()))
}

#[cfg(test)]
mod tests {
    use super::*;

    use blockdev::extents::Source;

    const SIZE: ByteSize = ByteSize::mib(32);

    /// A file system that says nothing of any block.
    fn nothing() -> Summary {
        let none = ByteSize::ZERO;
        Summary {
            source: Source::Fiemap,
            extents: 1,
            hole: none,
            unwritten: none,
            written: none,
            shared: none,
            delalloc: none,
            unknown: none,
        }
    }

    #[test]
    fn fresh_space_must_be_what_the_setup_says() {
        let written = Summary { written: SIZE, ..nothing() };
        let unwritten = Summary { unwritten: SIZE, ..nothing() };
        let hole = Summary { hole: SIZE, ..nothing() };
        for (prealloc, right) in
            [(Prealloc::Written, written), (Prealloc::Reserved, unwritten), (Prealloc::Sparse, hole)]
        {
            let setup = Setup { prealloc, ..Setup::file() };
            for found in [written, unwritten, hole] {
                assert_eq!(check_fresh(&setup, &found).is_ok(), found == right, "{prealloc} {found}");
            }
            // Who cannot be asked is believed.
            let silent = Summary { source: Source::SeekHole, unknown: SIZE, ..nothing() };
            assert!(check_fresh(&setup, &silent).is_ok());
        }
        let reserved = Setup { prealloc: Prealloc::Reserved, ..Setup::file() };
        let error = check_fresh(&reserved, &written).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(
            error.to_string(),
            "the file system does not keep a reserved image so: not all of it is unwritten, but 32 MiB written in 1 extent"
        );
    }

    #[test]
    fn what_is_not_the_disk_is_known() {
        let written = Summary { written: SIZE, ..nothing() };
        let partly = Summary { written: SIZE, unwritten: ByteSize::mib(1), ..nothing() };
        let direct = Setup::recommended("none");
        let mut buffered = direct.clone();
        buffered.device.as_mut().unwrap().direct_io = false;
        for workload in Workload::ALL {
            let reads = workload.part == Part::Reads;
            assert_eq!(why_not_disk(&direct, workload, &written), None);
            assert_eq!(why_not_disk(&direct, workload, &partly).is_some(), reads);
            assert_eq!(why_not_disk(&buffered, workload, &written).is_some(), !reads && !workload.synced);
        }
        let reads = Workload { part: Part::Reads, fresh: false, synced: false };
        assert_eq!(
            why_not_disk(&direct, reads, &partly).unwrap(),
            "1 MiB of what was read were never written to the disk"
        );
    }

    #[test]
    fn filling_covers_what_is_settled() {
        let layout = Layout::new(ByteSize::mib(64));
        let work = fill(layout, 1);
        work.check().unwrap();
        assert!(work.once && work.region == layout.settled());
    }
}
