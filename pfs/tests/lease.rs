//! One writer: however many try, wherever they are, whatever becomes of them.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use blockdev::ui::Silent;
use blockdev::{ByteSize, Cancel, Error, ErrorKind};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pfs::check::check;
use pfs::format::{LEASES, LEASES_AT, Label, LeaseRecord, LeaseState, ProcessId, SECTOR_SIZE};
use pfs::mkfs::{MkfsOptions, mkfs};
use pfs::volume::{Device, Holder, Lease, LeaseOptions};

/// Names the volume to the other process of a test, and how long its lease lasts.
const VOLUME: &str = "LEASE_VOLUME";
const EXPIRY: &str = "LEASE_EXPIRY_MS";

struct Disk {
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = directory.path().join("disk.img");
        File::create(&path).unwrap().set_len(10 << 30).unwrap();
        let options = MkfsOptions { journal: Some(ByteSize::mib(1)), ..MkfsOptions::default() };
        mkfs(&path, &options, &mut Silent, &Cancel::new()).unwrap();
        Self { path, _directory: directory }
    }

    fn take(&self, options: &LeaseOptions) -> Result<Lease, Error> {
        Lease::take(&self.path, options, &Cancel::new())
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; LEASES * SECTOR_SIZE];
        File::open(&self.path).unwrap().read_exact_at(&mut bytes, LEASES_AT.bytes()).unwrap();
        bytes
    }

    fn records(&self) -> Vec<LeaseRecord> {
        let bytes = self.bytes();
        let (sectors, _) = bytes.as_chunks::<SECTOR_SIZE>();
        sectors.iter().enumerate().filter_map(|(slot, sector)| LeaseRecord::parse(sector, slot).unwrap()).collect()
    }

    fn put(&self, slot: u64, record: &LeaseRecord) {
        let file = OpenOptions::new().write(true).open(&self.path).unwrap();
        file.write_all_at(&record.write(), LEASES_AT.bytes() + slot * SECTOR_SIZE as u64).unwrap();
        // Leases are read past the page cache.
        file.sync_data().unwrap();
    }

    fn holder(&self) -> Option<Holder> {
        Holder::find(&mut Device::open(&self.path).unwrap()).unwrap()
    }
}

fn lasting(expiry: Duration) -> LeaseOptions {
    LeaseOptions { expiry, ..LeaseOptions::default() }
}

fn refused(outcome: Result<Lease, Error>) -> String {
    let error = outcome.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    error.to_string()
}

/// Another process that holds the lease.
struct Other {
    child: Child,
    output: BufReader<ChildStdout>,
}

/// Starts a program as if on another machine: one of another name, which was booted another time.
const ELSEWHERE: &str =
    "mount --bind \"$BOOT_ID\" /proc/sys/kernel/random/boot_id && hostname elsewhere && exec \"$0\" \"$@\"";

impl Other {
    fn holding(path: &Path, expiry: Duration) -> Self {
        Self::started(Command::new(std::env::current_exe().unwrap()), path, expiry)
    }

    /// One on another machine, which `boot_id` stands for.
    fn elsewhere(path: &Path, expiry: Duration, boot_id: &Path) -> Self {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--uts", "sh", "-c", ELSEWHERE]).arg(std::env::current_exe().unwrap());
        command.env("BOOT_ID", boot_id);
        Self::started(command, path, expiry)
    }

    fn started(mut command: Command, path: &Path, expiry: Duration) -> Self {
        let mut child = command
            .args(["--exact", "the_other_process", "--ignored", "--nocapture"])
            .env(VOLUME, path)
            .env(EXPIRY, expiry.as_millis().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut other = Self { child, output };
        other.says("holds it");
        other
    }

    /// Waits for a line that begins so, and returns the rest of it.
    fn says(&mut self, start: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "the other process ended before it said {start:?}");
            // The test runner's own words stand before the first.
            if let Some(at) = line.find(start) {
                return line[at + start.len()..].trim_end().to_owned();
            }
        }
    }

    fn send(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "it is what the tests here start as another process"]
#[allow(clippy::print_stdout, reason = "to whoever started it")]
fn the_other_process() {
    let path = std::env::var_os(VOLUME).unwrap();
    let expiry = Duration::from_millis(std::env::var(EXPIRY).unwrap().parse().unwrap());
    let lease = Lease::take(path.as_ref(), &lasting(expiry), &Cancel::new()).unwrap();
    println!("holds it");
    let error = loop {
        if let Err(error) = lease.check() {
            break error;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    println!("stops: {error}");
}

#[test]
fn there_is_one_holder_and_it_leaves_nothing_behind() {
    let disk = Disk::new();
    let lease = disk.take(&LeaseOptions { host: 12, ..LeaseOptions::default() }).unwrap();
    assert!(lease.is_held());
    let said = refused(disk.take(&LeaseOptions::default()));
    let (pid, holder) = (std::process::id(), disk.holder().unwrap());
    assert!(said.starts_with(&format!("{} is being written by {holder}", disk.path.display())), "{said}");
    assert_eq!((holder.pid, holder.host), (pid, 12));
    assert!(said.contains(&format!("(pid {pid} on ")), "{said}");
    lease.check().unwrap();
    assert_eq!(disk.records().len(), 1, "who was refused left nothing");
    let error = mkfs(&disk.path, &MkfsOptions::default(), &mut Silent, &Cancel::new()).unwrap_err();
    let said = format!("{} holds a PolarFS volume, which is being written by {holder}", disk.path.display());
    assert_eq!((error.kind(), error.to_string()), (ErrorKind::Refused, said));
    drop(lease);
    assert!(disk.bytes().iter().all(|byte| *byte == 0));
    assert_eq!(disk.holder(), None);
    drop(disk.take(&LeaseOptions::default()).unwrap());
    assert!(check(&mut Device::open(&disk.path).unwrap()).unwrap().findings.is_empty());
}

#[test]
fn one_that_was_killed_is_noticed_at_once() {
    let disk = Disk::new();
    // So long that it can only be the process that is missed.
    let mut other = Other::holding(&disk.path, Duration::from_secs(60));
    let said = refused(disk.take(&LeaseOptions::default()));
    assert!(said.contains(&format!("(pid {} on ", other.child.id())), "{said}");
    other.send(Signal::SIGKILL);
    other.child.wait().unwrap();
    assert_eq!(disk.records().len(), 1);
    assert_eq!(disk.holder(), None);
    let lease = disk.take(&LeaseOptions::default()).unwrap();
    assert_eq!(disk.records().len(), 1, "what the dead left is cleared");
    assert_eq!(disk.holder().unwrap().pid, std::process::id());
    drop(lease);
}

#[test]
fn one_that_was_stopped_loses_it_and_is_told() {
    let disk = Disk::new();
    let mut other = Other::holding(&disk.path, Duration::from_secs(1));
    other.send(Signal::SIGSTOP);
    let lease = loop {
        match disk.take(&LeaseOptions::default()) {
            Ok(lease) => break lease,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Refused, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    other.send(Signal::SIGCONT);
    let said = other.says("stops: ");
    let expected = format!("lost the lease on {}: {} took it", disk.path.display(), disk.holder().unwrap());
    assert_eq!(said, expected);
    lease.check().unwrap();
}

#[test]
fn one_that_was_stopped_goes_on_where_nobody_took_it() {
    let disk = Disk::new();
    let other = Other::holding(&disk.path, Duration::from_secs(1));
    let renewed = || disk.records()[0].renewed;
    other.send(Signal::SIGSTOP);
    let before = renewed();
    while disk.holder().is_some() {
        std::thread::sleep(Duration::from_millis(20));
    }
    other.send(Signal::SIGCONT);
    while renewed() < before + 3 {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(disk.holder().unwrap().pid, other.child.id());
}

#[test]
fn force_takes_it_and_the_other_is_told() {
    let disk = Disk::new();
    let mut other = Other::holding(&disk.path, Duration::from_secs(2));
    let lease = disk.take(&LeaseOptions { force: true, ..LeaseOptions::default() }).unwrap();
    let said = other.says("stops: ");
    assert!(said.contains(&format!("(pid {} on ", std::process::id())), "{said}");
    lease.check().unwrap();
    assert_eq!(disk.records().len(), 1);
}

/// A holder on a machine that is not this one.
fn elsewhere(expiry: Duration) -> LeaseRecord {
    LeaseRecord {
        state: LeaseState::Held,
        host: 3,
        id: [1; 16],
        boot: [2; 16],
        process: ProcessId { pid: std::process::id(), namespace: 1, started: 1 },
        generation: 40,
        since: 1_795_368_391,
        renewed: 1,
        renewed_at: u64::MAX,
        expiry: expiry.as_millis() as u64,
        machine: Label::new("elsewhere"),
        program: Label::new("pfsd"),
    }
}

#[test]
fn a_machine_that_stopped_is_watched_until_its_time_is_over() {
    let disk = Disk::new();
    disk.put(5, &elsewhere(Duration::from_millis(500)));
    assert_eq!(disk.holder().unwrap().machine, "elsewhere", "from here nobody can tell");
    let cancel = Cancel::new();
    cancel.cancel();
    let error = Lease::take(&disk.path, &LeaseOptions::default(), &cancel).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    let lease = disk.take(&LeaseOptions::default()).unwrap();
    let [record] = &disk.records()[..] else { panic!("one record") };
    assert_eq!((record.generation, record.process.pid), (41, std::process::id()));
    drop(lease);
}

#[test]
fn a_machine_that_lives_keeps_it() {
    let disk = Disk::new();
    let alive = AtomicBool::new(true);
    let mut record = elsewhere(Duration::from_secs(60));
    disk.put(5, &record);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while alive.load(Ordering::Relaxed) {
                record.renewed += 1;
                disk.put(5, &record);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let said = refused(disk.take(&LeaseOptions::default()));
        alive.store(false, Ordering::Relaxed);
        assert!(said.contains(&format!("pfsd (pid {} on elsewhere) since ", std::process::id())), "{said}");
    });
    let force = LeaseOptions { force: true, ..LeaseOptions::default() };
    drop(disk.take(&force).unwrap());
    assert!(disk.records().is_empty());
}

#[test]
fn two_machines_keep_each_other_out() {
    tests::needs_root!();
    let disk = Disk::new();
    let boot_id = disk.path.with_file_name("boot_id");
    std::fs::write(&boot_id, "5b2f9a3c-0d51-4a8e-9d0c-1f6a2b3c4d5e\n").unwrap();
    let mut other = Other::elsewhere(&disk.path, Duration::from_secs(1), &boot_id);
    let said = refused(disk.take(&LeaseOptions::default()));
    assert!(said.contains(&format!("(pid {} on elsewhere) since ", other.child.id())), "{said}");
    // That it is dead cannot be seen from here, only that it does not renew the lease any more.
    other.send(Signal::SIGKILL);
    other.child.wait().unwrap();
    assert_eq!(disk.holder().unwrap().machine, "elsewhere");
    let lease = disk.take(&lasting(Duration::from_secs(60))).unwrap();
    // Nor can the other machine see more of us.
    let refused = Command::new("unshare")
        .args(["--mount", "--uts", "sh", "-c", ELSEWHERE, env!("CARGO_BIN_EXE_pfs"), "mkdir"])
        .arg(format!("{}:/a", disk.path.display()))
        .env("BOOT_ID", &boot_id)
        .output()
        .unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && said.contains("is being written by"), "{said}");
    assert!(said.contains(&format!("(pid {} on ", std::process::id())), "{said}");
    lease.check().unwrap();
}

#[test]
fn what_lies_in_a_slot_and_is_no_record_is_in_nobodys_way() {
    let disk = Disk::new();
    let file = OpenOptions::new().write(true).open(&disk.path).unwrap();
    file.write_all_at(&vec![0xAB; LEASES * SECTOR_SIZE], LEASES_AT.bytes()).unwrap();
    file.sync_data().unwrap();
    assert_eq!(disk.holder(), None);
    let lease = disk.take(&LeaseOptions::default()).unwrap();
    lease.check().unwrap();
    assert_eq!(disk.holder().unwrap().pid, std::process::id());
}

#[test]
fn of_many_who_try_at_once_one_succeeds() {
    let disk = Disk::new();
    let (inside, taken) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut mine = 0;
                while mine < 5 {
                    let Ok(lease) = disk.take(&LeaseOptions::default()) else { continue };
                    assert!(!inside.swap(true, Ordering::SeqCst), "two hold it");
                    lease.check().unwrap();
                    assert!(inside.swap(false, Ordering::SeqCst));
                    mine += 1;
                    taken.fetch_add(1, Ordering::Relaxed);
                    drop(lease);
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
        }
    });
    assert_eq!(taken.into_inner(), 40);
    assert!(disk.bytes().iter().all(|byte| *byte == 0));
}
