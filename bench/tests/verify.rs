//! Faults that a disk might have, injected between writing and reading back, and seen for what they are.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bench::disk::verify::{Plan, Verified, Verifier};
use blockdev::engine::{Choice, Config, Engine, Target};
use blockdev::stamp::{self, Stamp};
use blockdev::ui::Silent;
use blockdev::{ByteOffset, ByteRange, ByteSize, Cancel, ErrorKind};

const BLOCK: u64 = 8192;
const BLOCKS: u64 = 64;

struct Disk {
    path: PathBuf,
    dir: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = dir.path().join("disk");
        File::create(&path).unwrap().set_len(BLOCK * BLOCKS).unwrap();
        Self { path, dir }
    }

    fn file(&self) -> File {
        open(&self.path)
    }
}

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

fn plan() -> Plan {
    Plan {
        region: ByteRange::from_start(ByteSize::new(BLOCK * BLOCKS)),
        block: ByteSize::new(BLOCK),
        read_percent: 30,
        seed: 42,
        runtime: Duration::from_millis(200),
    }
}

/// Writes to `writer`, lets `tamper` do its worst, and reads back through `reader`, if that is another.
fn verify(writer: &Path, reader: Option<&Path>, tamper: impl FnOnce()) -> Verified {
    let targets = std::iter::once(writer).chain(reader).map(|path| Target::new(open(path), path)).collect();
    let engine = Engine::open(Choice::Auto, &Config::new(8, 8, BLOCK as usize), targets).unwrap();
    let mut verifier = Verifier::new(plan(), engine).unwrap();
    verifier.churn(&Cancel::new(), |_| {}).unwrap();
    tamper();
    verifier.read_back(&Cancel::new(), &mut Silent).unwrap();
    verifier.finish()
}

fn read(file: &File, block: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK as usize];
    file.read_exact_at(&mut bytes, block * BLOCK).unwrap();
    bytes
}

fn only(verified: &Verified, name: &str, block: u64) {
    assert_eq!(verified.counts.iter().map(|(name, count)| (*name, *count)).collect::<Vec<_>>(), [(name, 1)]);
    let at = verified.faults[0].at().bytes();
    assert!((block * BLOCK..(block + 1) * BLOCK).contains(&at), "{:?}", verified.faults[0]);
    let finding = &verified.findings()[0];
    assert_eq!(finding.id, format!("verify-{name}"));
    assert!(finding.text.contains(&format!("{name} at offset {at}")), "{}", finding.text);
}

#[test]
fn a_sound_disk_has_no_faults() {
    let disk = Disk::new();
    let verified = verify(&disk.path, Some(&disk.path), || {});
    assert_eq!(verified.fault_count(), 0, "{:?}", verified.faults);
    assert!(verified.writes > BLOCKS && verified.checks > verified.blocks);
    assert_eq!(verified.blocks, BLOCKS);
    assert_eq!(verified.findings()[0].id, "verify-clean");
}

#[test]
fn a_write_that_never_arrived_is_lost() {
    let disk = Disk::new();
    let verified = verify(&disk.path, None, || disk.file().write_all_at(&[0; BLOCK as usize], 5 * BLOCK).unwrap());
    only(&verified, "lost", 5);
    assert!(verified.faults[0].to_string().ends_with("the disk holds zeroes"));
}

#[test]
fn an_older_write_in_its_place_is_lost_too() {
    let disk = Disk::new();
    let verified = verify(&disk.path, None, || {
        let mut older = vec![0; BLOCK as usize];
        stamp::write(&mut older, Stamp { seed: 42, offset: ByteOffset::new(9 * BLOCK), generation: 1 });
        disk.file().write_all_at(&older, 9 * BLOCK).unwrap();
    });
    only(&verified, "lost", 9);
    assert!(verified.faults[0].to_string().ends_with("the disk holds generation 1"));
}

#[test]
fn half_of_an_older_write_is_torn() {
    let disk = Disk::new();
    let verified = verify(&disk.path, None, || {
        let mut older = vec![0; BLOCK as usize];
        stamp::write(&mut older, Stamp { seed: 42, offset: ByteOffset::new(7 * BLOCK), generation: 1 });
        disk.file().write_all_at(&older[4096..], 7 * BLOCK + 4096).unwrap();
    });
    only(&verified, "torn", 7);
    assert_eq!(verified.faults[0].at().bytes(), 7 * BLOCK + 4096);
}

#[test]
fn a_write_to_the_wrong_place_is_misdirected() {
    let disk = Disk::new();
    let verified = verify(&disk.path, None, || {
        let file = disk.file();
        file.write_all_at(&read(&file, 3), 11 * BLOCK).unwrap();
    });
    only(&verified, "misdirected", 11);
    assert!(verified.faults[0].to_string().ends_with(&format!("written to offset {}", 3 * BLOCK)));
}

#[test]
fn a_flipped_bit_is_corrupt() {
    let disk = Disk::new();
    let verified = verify(&disk.path, None, || {
        let file = disk.file();
        let mut bytes = read(&file, 13);
        bytes[5000] ^= 1;
        file.write_all_at(&bytes, 13 * BLOCK).unwrap();
    });
    only(&verified, "corrupt", 13);
}

#[test]
fn a_reader_that_sees_the_past_is_stale() {
    let disk = Disk::new();
    // The reader's disk is the writer's, but for one block of the past.
    let past = disk.dir.path().join("past");
    fs::write(&past, vec![0; (BLOCK * BLOCKS) as usize]).unwrap();
    let mut plan = plan();
    // While writing, the copy would be behind everywhere.
    plan.read_percent = 0;
    let targets = [&disk.path, &past].map(|path| Target::new(open(path), path)).into();
    let engine = Engine::open(Choice::Auto, &Config::new(8, 8, BLOCK as usize), targets).unwrap();
    let mut verifier = Verifier::new(plan, engine).unwrap();
    verifier.churn(&Cancel::new(), |_| {}).unwrap();
    let mut copy = fs::read(&disk.path).unwrap();
    copy[(17 * BLOCK) as usize..][..BLOCK as usize].fill(0);
    open(&past).write_all_at(&copy, 0).unwrap();
    verifier.read_back(&Cancel::new(), &mut Silent).unwrap();
    only(&verifier.finish(), "stale", 17);
}

#[test]
fn with_a_reader_what_is_nowhere_is_lost() {
    let disk = Disk::new();
    let verified =
        verify(&disk.path, Some(&disk.path), || disk.file().write_all_at(&[0; BLOCK as usize], 5 * BLOCK).unwrap());
    only(&verified, "lost", 5);
}

#[test]
fn a_disk_of_fewer_blocks_than_the_queue_is_deep() {
    let disk = Disk::new();
    let engine =
        Engine::open(Choice::Auto, &Config::new(8, 8, BLOCK as usize), vec![Target::new(disk.file(), &disk.path)])
            .unwrap();
    let region = ByteRange::new(ByteOffset::new(BLOCK), ByteSize::new(BLOCK)).unwrap();
    let mut verifier = Verifier::new(Plan { region, ..plan() }, engine).unwrap();
    verifier.churn(&Cancel::new(), |_| {}).unwrap();
    verifier.read_back(&Cancel::new(), &mut Silent).unwrap();
    let verified = verifier.finish();
    assert_eq!((verified.blocks, verified.fault_count()), (1, 0));
    assert!(read(&disk.file(), 0).iter().all(|byte| *byte == 0), "outside the region nothing is written");
}

#[test]
fn stopping_is_said_and_what_is_no_plan_is_refused() {
    let disk = Disk::new();
    let engine = || {
        Engine::open(Choice::Auto, &Config::new(8, 8, BLOCK as usize), vec![Target::new(disk.file(), &disk.path)])
            .unwrap()
    };
    let cancel = Cancel::new();
    cancel.cancel();
    let mut verifier = Verifier::new(plan(), engine()).unwrap();
    verifier.churn(&cancel, |_| {}).unwrap();
    verifier.read_back(&cancel, &mut Silent).unwrap();
    let verified = verifier.finish();
    assert!(verified.interrupted);
    assert_eq!(verified.findings()[0].id, "verify-interrupted");

    for plan in [
        Plan { block: ByteSize::new(1000), ..plan() },
        Plan { block: ByteSize::ZERO, ..plan() },
        Plan { region: ByteRange::from_start(ByteSize::new(BLOCK + 512)), ..plan() },
        Plan { region: ByteRange::from_start(ByteSize::ZERO), ..plan() },
    ] {
        assert_eq!(Verifier::new(plan, engine()).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}
