//! Load on real files, through both engines.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use bench::load::{self, Measured, Pattern, Work};
use blockdev::engine::{Choice, Config, Engine, Target};
use blockdev::{ByteRange, ByteSize, Cancel, Error, Result};

const SIZE: u64 = 1 << 20;

struct Disk {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = dir.path().join("disk");
        File::create(&path).unwrap().set_len(SIZE).unwrap();
        Self { path, _dir: dir }
    }

    fn engine(&self, choice: Choice, work: &Work) -> Result<Engine> {
        let file = OpenOptions::new().read(true).write(true).open(&self.path).unwrap();
        let config = Config::new(work.depth, work.depth, work.block.to_usize()?);
        Engine::open(choice, &config, vec![Target::new(file, &self.path)])
    }

    fn run(&self, choice: Choice, work: &Work) -> Measured {
        load::run(work, || self.engine(choice, work), &Cancel::new(), |_| {}).unwrap()
    }
}

fn work(pattern: Pattern) -> Work {
    Work {
        warmup: Duration::from_millis(50),
        runtime: Duration::from_millis(400),
        ..Work::new(pattern, ByteSize::kib(8), 4, ByteRange::from_start(ByteSize::new(SIZE)))
    }
}

#[test]
fn every_pattern_runs_on_every_engine() {
    for choice in [Choice::Uring, Choice::UringSqpoll, Choice::Threads] {
        for pattern in Pattern::ALL {
            let measured = Disk::new().run(choice, &Work { jobs: 2, ..work(pattern) });
            assert_eq!(measured.reads.ios() > 0, pattern.reads(), "{pattern} on {choice}");
            assert_eq!(measured.writes.ios() > 0, pattern.writes(), "{pattern} on {choice}");
            assert_eq!(measured.syncs.ios(), 0);
            assert_eq!(measured.engine.to_string(), choice.to_string());
            assert_eq!(measured.window, Duration::from_millis(400));
            assert!(!measured.interrupted);
            assert_eq!(measured.intervals.len(), 4);
            assert_eq!(measured.intervals.iter().map(|interval| interval.ios).sum::<u64>(), measured.ios());
            assert!(measured.reads.response.is_empty() && measured.writes.response.is_empty());
        }
    }
}

#[test]
fn writes_are_not_zeroes_and_stay_in_their_region() {
    let disk = Disk::new();
    let region = ByteRange { start: blockdev::ByteOffset::new(SIZE / 4), len: ByteSize::new(SIZE / 2) };
    disk.run(Choice::Auto, &Work { region, ..work(Pattern::RandWrite) });
    let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
    File::open(&disk.path).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    let quarter = bytes.len() / 4;
    assert!(bytes[..quarter].iter().chain(&bytes[3 * quarter..]).all(|byte| *byte == 0));
    // Random bytes are zero one time in 256, and nearly every block of this small region has been written.
    let zeroes = bytes[quarter..3 * quarter].iter().filter(|byte| **byte == 0).count();
    assert!(zeroes < quarter, "{zeroes} of {} bytes are zero", 2 * quarter);
}

#[test]
fn an_open_loop_keeps_its_rate_and_counts_from_the_intended_start() {
    let work = Work { rate: Some(1000.0), jobs: 2, runtime: Duration::from_secs(1), ..work(Pattern::RandRw) };
    let measured = Disk::new().run(Choice::Auto, &work);
    // The standard deviation of 1000 arrivals is 32; what waits at the end is not in it.
    let arrived = measured.ios() + measured.waiting;
    assert!((800..1200).contains(&arrived), "{arrived}");
    let responses = measured.reads.response.count() + measured.writes.response.count();
    assert!(responses >= arrived && responses <= arrived + 8, "{responses} of {arrived}");
    assert!(measured.reads.response.max() >= measured.reads.service.min());
}

#[test]
fn fdatasyncs_are_counted_apart() {
    let measured = Disk::new().run(Choice::Auto, &Work { fdatasync: 2, depth: 1, ..work(Pattern::RandWrite) });
    assert!(measured.syncs.ios() > 0);
    assert!(measured.writes.ios().abs_diff(2 * measured.syncs.ios()) <= 3);
    assert_eq!(measured.ios(), measured.writes.ios());
}

#[test]
fn when_every_block_was_touched_it_is_over() {
    let disk = Disk::new();
    for pattern in Pattern::ALL {
        let work =
            Work { once: true, jobs: 2, runtime: Duration::from_secs(3600), warmup: Duration::ZERO, ..work(pattern) };
        let measured = disk.run(Choice::Auto, &work);
        assert_eq!(measured.ios(), SIZE / 8192, "{pattern}");
        assert!(!measured.interrupted && measured.window < Duration::from_secs(3600));
    }
}

#[test]
fn one_engine_that_does_not_open_ends_all_jobs() {
    let disk = Disk::new();
    let work = Work { jobs: 4, ..work(Pattern::Read) };
    let opened = std::sync::atomic::AtomicU32::new(0);
    let open = || {
        if opened.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 2 {
            Err(Error::invalid("this one does not open"))
        } else {
            disk.engine(Choice::Auto, &work)
        }
    };
    let error = load::run(&work, open, &Cancel::new(), |_| {}).unwrap_err();
    assert_eq!(error.to_string(), "this one does not open");
}

#[test]
fn a_failed_operation_names_the_block() {
    let disk = Disk::new();
    let work = Work { region: ByteRange::from_start(ByteSize::new(2 * SIZE)), ..work(Pattern::Read) };
    let error = load::run(&work, || disk.engine(Choice::Auto, &work), &Cancel::new(), |_| {}).unwrap_err();
    assert!(error.to_string().contains("read of 8192 bytes at offset"), "{error}");
}

#[test]
fn stopping_keeps_what_was_measured() {
    let disk = Disk::new();
    let work = Work { runtime: Duration::from_secs(3600), ..work(Pattern::RandRead) };
    let cancel = Cancel::new();
    let measured = load::run(
        &work,
        || disk.engine(Choice::Auto, &work),
        &cancel,
        |elapsed| {
            if elapsed > Duration::from_millis(400) {
                cancel.cancel();
            }
        },
    )
    .unwrap();
    assert!(measured.interrupted);
    assert!(measured.ios() > 0);
    assert!(measured.window >= Duration::from_millis(300) && measured.window < Duration::from_secs(3600));
}
