//! The original and this, taking turns on one volume, where the original is installed. `ONEDISK_PFS_ROUNDS` says how often they
//! take turns.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]
#![allow(clippy::print_stdout, reason = "with --nocapture, what is printed is how much was done")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use blockdev::loopdev::{self, Attachment};
use common::daemon::{Daemon, Kind};
use common::model::{self, Model, Node, Work, Worker};
use common::script::pattern;
use nix::sys::signal::Signal;
use pfs::check::check;
use pfs::client::Client;
use pfs::growfs::{GrowfsOptions, growfs};
use pfs::proto::OpenFlags;
use pfs::volume::writer::{Options, Position, Writer};
use pfs::volume::{Device, Volume, VolumePath};

/// How often the two take turns.
fn rounds() -> usize {
    std::env::var("ONEDISK_PFS_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(3)
}

macro_rules! needs_original {
    () => {{
        tests::needs_root!();
        let Some(directory) = tests::original_pfs() else {
            tests::say_skipped("interop", "needs the original PolarFS: ONEDISK_PFS_ORIGINAL=DIR, with DIR/bin/pfs");
            return;
        };
        directory.join("bin/pfs")
    }};
}

/// The original, on the device that a volume is attached to.
struct Original {
    program: PathBuf,
    attachment: Attachment,
}

impl Original {
    fn disk(&self) -> String {
        self.attachment.device().path.file_name().unwrap().to_str().unwrap().to_owned()
    }

    fn run(&self, command: &[&str], path: &str, input: &[u8]) -> Vec<u8> {
        let mut child = Command::new(&self.program)
            .args(["-C", "disk", "-E", "0"])
            .args(command)
            .args(path.split('\0').map(|path| format!("/{}/{path}", self.disk())))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{command:?} {path}: {}: {said}", output.status);
        output.stdout
    }

    /// Does it, if the original has a command for it.
    fn perform(&self, model: &mut Model, work: &Work) -> bool {
        let mut after = model.clone();
        if after.apply(work).is_err() {
            return false;
        }
        let number = |number: u64| number.to_string();
        match work {
            Work::Create(path) => self.run(&["touch"], path, b""),
            Work::Mkdir(path) => self.run(&["mkdir"], path, b""),
            Work::Unlink(path) => self.run(&["rm"], path, b""),
            Work::Rmdir(path) => self.run(&["rmdir"], path, b""),
            Work::Rename(from, to) => self.run(&["rename"], &format!("{from}\0{to}"), b""),
            Work::Write(path, at, bytes) => self.write(path, *at, bytes),
            Work::Append(path, bytes) => {
                let Some(Node::File(file)) = model.0.get(path) else { return false };
                self.write(path, file.len() as u64, bytes)
            }
            Work::Truncate(path, size) => self.run(&["truncate", "-l", &number(*size)], path, b""),
            Work::Allocate(path, at, len, false) => {
                self.run(&["fallocate", "-o", &number(*at), "-l", &number(*len)], path, b"")
            }
            Work::Allocate(..) => return false,
            Work::Empty => {
                let output =
                    Command::new(&self.program).args(["-C", "disk", "flushlog", &self.disk()]).output().unwrap();
                assert!(output.status.success());
                output.stdout
            }
        };
        *model = after;
        true
    }

    fn write(&self, path: &str, at: u64, bytes: &[u8]) -> Vec<u8> {
        self.run(&["write", "-o", &at.to_string(), "-l", &bytes.len().to_string()], path, bytes)
    }

    /// Sees that the original finds in the volume what should be there.
    fn compare(&self, model: &Model) {
        let tree = self.run(&["tree"], "", b"");
        let last = String::from_utf8_lossy(&tree).lines().last().unwrap().to_owned();
        let files = model.0.values().filter(|node| **node != Node::Directory).count();
        // The file system's own two are files, too.
        assert_eq!(last, format!("{} directories, {} files", model.0.len() - files, files + 2));
        for (path, node) in &model.0 {
            let Node::File(bytes) = node else { continue };
            let found = if bytes.is_empty() { Vec::new() } else { self.run(&["read"], path, b"") };
            assert!(found == *bytes, "{path}: {} bytes, {} expected", found.len(), bytes.len());
        }
    }
}

#[test]
fn the_original_and_this_take_turns() {
    let program = needs_original!();
    for seed in 100..103 {
        let (image, _directory) = common::copy("fresh-10g");
        let attachment = loopdev::attach(&image, &loopdev::Options::default()).unwrap();
        let device = attachment.device().path.clone();
        let original = Original { program: program.clone(), attachment };
        let (mut model, mut worker) = (Model::default(), Worker::new(seed, 5 << 20));
        let (mut ours, mut theirs) = (0, 0);
        for round in 0..rounds() {
            let writer = Writer::open(&device, Options { keep_orphans: round % 2 == 0, ..Options::default() }).unwrap();
            let mut content = writer.content().unwrap();
            for _ in 0..100 {
                let work = worker.next(&model);
                let expected = model.apply(&work);
                let found = model::perform(&writer, &mut content, &work);
                assert_eq!(found.map_err(|error| error.errno().unwrap()), expected, "seed {seed}: {work:?}");
                ours += 1;
            }
            drop(content);
            writer.close().unwrap();
            original.compare(&model);
            for _ in 0..60 {
                let work = worker.next(&model);
                theirs += usize::from(original.perform(&mut model, &work));
            }
            let report = check(&mut Device::open(&device).unwrap()).unwrap();
            assert_eq!(report.findings, [], "seed {seed}, round {round}");
            let found = Model::read(&mut Volume::open(&device).unwrap()).unwrap();
            assert!(found == model, "seed {seed}, round {round}: {}", common::model::difference(&found, &model));
        }
        assert!(theirs * 3 > ours, "seed {seed}: the original did {theirs}, {ours} were done here");
        original.attachment.detach().unwrap();
    }
}

#[test]
fn an_original_that_appears_is_noticed() {
    let program = needs_original!();
    let (image, _directory) = common::copy("fresh-10g");
    let attachment = loopdev::attach(&image, &loopdev::Options::default()).unwrap();
    let device = attachment.device().path.clone();
    let original = Original { program, attachment };
    let writer = Writer::open(&device, Options::default()).unwrap();
    writer.mkdir(&VolumePath::new("/ours")).unwrap();
    original.run(&["mkdir"], "theirs", b"");
    let error = writer.mkdir(&VolumePath::new("/late")).unwrap_err();
    assert!(error.to_string().contains("somebody else writes"), "{error}");
    assert!(error.hint().unwrap().contains("pfsdaemon"));
    assert!(writer.close().is_err());
    let report = check(&mut Device::open(&device).unwrap()).unwrap();
    assert_eq!(report.findings, []);
    let found = Model::read(&mut Volume::open(&device).unwrap()).unwrap();
    assert_eq!(found.0.keys().collect::<Vec<_>>(), ["ours", "theirs"]);
    original.attachment.detach().unwrap();
}

#[test]
fn an_original_that_reads_follows_what_is_written() {
    let program = needs_original!();
    let (image, _directory) = common::copy("fresh-10g");
    let attachment = loopdev::attach(&image, &loopdev::Options::default()).unwrap();
    let device = attachment.device().path.clone();
    let original = Original { program, attachment };
    let writer = Writer::open(&device, Options::default()).unwrap();
    let file = writer.create(&VolumePath::new("/log"), true).unwrap();
    let mut tail = Command::new(&original.program)
        .args(["-C", "disk", "-E", "0", "tail", &format!("/{}/log", original.disk())])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    let (seen, done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (writer, seen, done) = (&writer, &seen, &done);
        let reader = scope.spawn(move || {
            let mut last: Option<u64> = None;
            for line in lines {
                let number = line.unwrap().parse().unwrap();
                assert!(last.is_none_or(|last| number == last + 1), "{number} after {last:?}");
                last = Some(number);
                seen.store(number, Ordering::Relaxed);
            }
        });
        // Others at work: transactions that share a write of the journal.
        for thread in 0..4 {
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let name = VolumePath::new(format!("/other{thread}"));
                    writer.create(&name, true).unwrap();
                    writer.unlink(&name).unwrap();
                }
            });
        }
        let mut content = writer.content().unwrap();
        let mut number = 0;
        // It follows from where the file ended when it came.
        while seen.load(Ordering::Relaxed) < 500 || seen.load(Ordering::Relaxed) < number {
            if tail.try_wait().unwrap().is_some() || reader.is_finished() {
                done.store(true, Ordering::Relaxed);
                panic!("the original died, or missed something");
            }
            if seen.load(Ordering::Relaxed) < 500 {
                number += 1;
                content.write(file, Position::End, format!("{number}\n").as_bytes()).unwrap();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        done.store(true, Ordering::Relaxed);
        tail.kill().unwrap();
        tail.wait().unwrap();
    });
    let statistics = writer.statistics();
    assert!(statistics.commits < statistics.transactions, "{statistics:?}");
    writer.close().unwrap();
    original.attachment.detach().unwrap();
}

/// A daemon on a volume of its own, if there can be one.
fn daemon(kind: Kind) -> Option<Daemon> {
    match kind.missing() {
        None => Some(Daemon::new(kind, 2)),
        Some(why) => {
            tests::say_skipped("interop", why);
            None
        }
    }
}

/// What a client asks a daemon for.
struct Served<'a> {
    daemon: &'a Daemon,
    client: Client,
}

impl<'a> Served<'a> {
    fn by(daemon: &'a Daemon) -> Self {
        Self { daemon, client: daemon.connect() }
    }

    fn open(&self, path: &str, flags: i32) -> pfs::client::File {
        self.client.open(self.daemon.path(path), OpenFlags(libc::O_RDWR | flags), 0o644).unwrap()
    }

    fn write(&self, path: &str, at: u64, bytes: &[u8]) {
        let file = self.open(path, 0);
        // No more goes into a request.
        for (piece, at) in bytes.chunks(4 << 20).zip((at..).step_by(4 << 20)) {
            assert_eq!(self.client.pwrite(&file, at, piece).unwrap(), piece.len(), "{path}");
        }
    }

    /// Does it, if it can be done and the original lives through it.
    fn perform(&self, model: &mut Model, work: &Work) -> bool {
        let mut after = model.clone();
        if after.apply(work).is_err() {
            return false;
        }
        let at = |path: &String| self.daemon.path(path);
        match work {
            Work::Create(path) => drop(self.open(path, libc::O_CREAT | libc::O_EXCL)),
            Work::Mkdir(path) => self.client.mkdir(at(path)).unwrap(),
            Work::Unlink(path) => self.client.unlink(at(path)).unwrap(),
            Work::Rmdir(path) => self.client.rmdir(at(path)).unwrap(),
            Work::Rename(from, to) => self.client.rename(at(from), at(to)).unwrap(),
            Work::Write(path, at, bytes) => self.write(path, *at, bytes),
            Work::Append(path, bytes) => {
                let Some(Node::File(file)) = model.0.get(path) else { return false };
                self.write(path, file.len() as u64, bytes);
            }
            Work::Truncate(path, size) => self.client.truncate(at(path), *size).unwrap(),
            Work::Allocate(path, at, len, false) => {
                self.client.fallocate(&self.open(path, 0), 0, *at, *len).unwrap();
            }
            Work::Allocate(..) | Work::Empty => return false,
        }
        *model = after;
        true
    }

    /// Sees that the daemon serves what should be there, to the last byte.
    fn compare(&self, model: &Model) {
        for (path, node) in &model.0 {
            let stat = self.client.stat(self.daemon.path(path)).unwrap();
            let Node::File(bytes) = node else {
                let names = self.client.readdir(self.daemon.path(path)).unwrap().len();
                let below =
                    model.0.keys().filter(|other| other.rsplit_once('/').is_some_and(|(parent, _)| parent == path));
                assert_eq!(names, below.count(), "{path}");
                continue;
            };
            assert_eq!(stat.size, bytes.len() as i64, "{path}");
            let (file, mut found) = (self.open(path, 0), vec![0; bytes.len()]);
            for (piece, at) in found.chunks_mut(4 << 20).zip((0..).step_by(4 << 20)) {
                assert_eq!(self.client.pread(&file, at, piece).unwrap(), piece.len(), "{path}");
            }
            assert!(found == *bytes, "{path}");
        }
    }
}

/// Lets a daemon and a writer of this process take turns on one volume.
fn turns(kind: Kind) {
    let Some(mut daemon) = daemon(kind) else { return };
    daemon.stop(Signal::SIGINT);
    let device = daemon.device().to_owned();
    let (mut model, mut worker) = (Model::default(), Worker::new(7, 5 << 20));
    let (mut ours, mut theirs) = (0, 0);
    let mut reader = Volume::open(&device).unwrap();
    for round in 0..rounds() {
        let writer = Writer::open(&device, Options::default()).unwrap();
        let mut content = writer.content().unwrap();
        for _ in 0..200 {
            let work = worker.next(&model);
            let expected = model.apply(&work);
            let found = model::perform(&writer, &mut content, &work);
            assert_eq!(found.map_err(|error| error.errno().unwrap()), expected, "round {round}: {work:?}");
            ours += 1;
        }
        drop(content);
        writer.close().unwrap();
        daemon.start();
        let served = Served::by(&daemon);
        served.compare(&model);
        for step in 0..300 {
            let work = worker.next(&model);
            theirs += usize::from(served.perform(&mut model, &work));
            // Whoever reads follows the daemon through its journal.
            if step % 50 == 0 {
                reader.refresh().unwrap();
                let found = Model::read(&mut reader).unwrap();
                assert!(found == model, "round {round}: {}", common::model::difference(&found, &model));
            }
        }
        served.client.umount().unwrap();
        daemon.stop(Signal::SIGINT);
        let report = check(&mut Device::open(&device).unwrap()).unwrap();
        assert_eq!(report.findings, [], "round {round}");
        let found = Model::read(&mut Volume::open(&device).unwrap()).unwrap();
        assert!(found == model, "round {round}: {}", common::model::difference(&found, &model));
    }
    assert!(theirs * 2 > ours, "the daemon did {theirs}, {ours} were done here");
    println!("{ours} were done here, {theirs} by {kind}");
}

#[test]
fn the_daemon_of_the_original_and_this_take_turns() {
    turns(Kind::Original);
}

#[test]
fn our_daemon_and_this_take_turns() {
    turns(Kind::Ours);
}

/// Lets a volume grow under a daemon, and another under a writer of this process, and compares what both make of the room.
fn grows_alike(kind: Kind) {
    let Some(daemon) = daemon(kind) else { return };
    let device = daemon.device().to_owned();
    let (image, _directory) = common::copy("fresh-10g");
    let writer = Writer::open(&image, Options::default()).unwrap();
    let mut content = writer.content().unwrap();
    let served = Served::by(&daemon);
    // Nothing is freed: that the daemon would discard in its own time.
    let mut work = |from: usize, to: usize| {
        for number in from..to {
            let name = format!("{}{number}", "n".repeat(number % 90));
            let bytes = pattern(number as u64, 0, 5000 * (number % 7));
            served.open(&name, libc::O_CREAT | libc::O_EXCL);
            served.write(&name, 100, &bytes);
            let file = writer.create(&VolumePath::new(name.as_str()), true).unwrap();
            if !bytes.is_empty() {
                content.write(file, Position::At(100), &bytes).unwrap();
            }
        }
    };
    work(0, 50);
    daemon.grow(20 << 30);
    growfs(&device, &GrowfsOptions::default()).unwrap();
    served.client.growfs().unwrap();
    std::fs::OpenOptions::new().write(true).open(&image).unwrap().set_len(20 << 30).unwrap();
    growfs(&image, &GrowfsOptions::default()).unwrap();
    assert!(writer.regrow().unwrap());
    work(50, 150);
    drop(content);
    writer.close().unwrap();
    served.client.umount().unwrap();
    let (ours, theirs) = (common::transactions(&image), common::transactions(&device));
    assert_eq!(ours.len(), theirs.len());
    for (number, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        assert!(ours == theirs, "transaction {}: {ours:#?} instead of {theirs:#?}", number + 1);
    }
    for volume in [&image, &device] {
        let report = check(&mut Device::open(volume).unwrap()).unwrap();
        assert!(report.findings.is_empty() && report.chunks == 2, "{:?}", report.findings);
    }
}

#[test]
fn a_volume_that_grows_is_used_as_the_original_uses_it() {
    grows_alike(Kind::Original);
}

#[test]
fn a_volume_that_grows_under_our_daemon_is_used_so_too() {
    grows_alike(Kind::Ours);
}
