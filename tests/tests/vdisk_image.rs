//! `vdisk create`, `verify` and `grow`, as a user runs them, and as a machine that fails ends them.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use blockdev::{ByteSize, extents, image};
use serde_json::Value;

struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        Self(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn names(&self) -> Vec<String> {
        tests::names_in(self.0.path())
    }

    /// `vdisk COMMAND disk ARGUMENTS`, run in this directory.
    fn vdisk(&self, line: &str) -> Command {
        let mut command = tests::program("vdisk");
        command.args(line.split(' ')).current_dir(self.0.path());
        command
    }

    fn run(&self, line: &str) -> Output {
        self.vdisk(line).output().unwrap()
    }

    fn start(&self, line: &str) -> Child {
        self.vdisk(line).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn has_partial(&self) -> bool {
        self.names().iter().any(|name| name.ends_with(".partial"))
    }
}

fn stdout(out: &Output) -> &str {
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    std::str::from_utf8(&out.stdout).unwrap()
}

fn json(out: &Output) -> Value {
    serde_json::from_str(stdout(out)).unwrap()
}

#[test]
fn an_image_is_made_verified_and_grown() {
    let scratch = Scratch::new();
    let out = scratch.run("create disk --size 16M");
    let text = stdout(&out);
    assert!(text.starts_with("disk: 16 MiB, written in ") && text.contains("\n  extents: 16 MiB "), "{text}");
    assert!(out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));

    let out = scratch.run("verify disk --zero");
    let text = stdout(&out);
    assert!(text.starts_with("disk: 16 MiB, as it should be\n"), "{text}");
    assert!(text.contains("\n  content: zero in every byte\n  read in "), "{text}");

    let text = scratch.run("grow disk --size 20MiB");
    assert!(stdout(&text).starts_with("disk: 16 MiB grown to 20 MiB, written in "), "{text:?}");
    assert_eq!(stdout(&scratch.run("grow disk --size 20M")), "disk: 20 MiB, as before\n");

    OpenOptions::new().write(true).open(scratch.path("disk")).unwrap().write_all_at(b"x", 5000).unwrap();
    let out = scratch.run("verify disk --zero --output json");
    assert_eq!(out.status.code(), Some(5));
    assert_eq!(String::from_utf8_lossy(&out.stderr), "vdisk: disk: 1 blocks of 4 KiB are not zero (at offset 5000)\n");
    let found: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(found["zero"], serde_json::json!({"blocks_not_zero": 1, "first_offsets": [5000]}));
}

#[test]
fn the_report_of_a_creation_in_json() {
    let scratch = Scratch::new();
    let report = json(&scratch.run("create disk --size 16M --engine threads --output json"));
    assert_eq!(report["path"], "disk");
    assert_eq!(report["size"], 16 << 20);
    assert_eq!(report["prealloc"], "written");
    assert_eq!(report["engine"], "threads");
    assert!(report["cost"]["elapsed_s"].as_f64().unwrap() > 0.0);
    assert!(report["cost"]["cpu_s"].as_f64().unwrap() >= 0.0);
    assert!(report["cost"]["bytes_per_s"].as_u64().unwrap() > 0);
    let states = ["hole", "unwritten", "written", "shared", "delalloc", "unknown"];
    let sum: u64 = states.iter().map(|state| report["extents"][state].as_u64().unwrap()).sum();
    assert_eq!(sum, 16 << 20);

    for (prealloc, cost) in [("reserved", "converts an extent"), ("sparse", "no space is set aside")] {
        let text = scratch.run(&format!("create {prealloc} --size 16M --prealloc {prealloc}"));
        let text = stdout(&text);
        assert!(text.starts_with(&format!("{prealloc}: 16 MiB, {prealloc}\n")), "{text}");
        assert!(text.contains("\n  costs: ") && text.contains(cost), "{text}");
    }
}

#[test]
fn every_refusal_has_its_exit_code_and_its_reason() {
    let scratch = Scratch::new();
    fs::write(scratch.path("there"), "precious").unwrap();
    for (line, code, reason) in [
        ("create disk --size 0", 2, "an image cannot be 0 bytes: that is nothing"),
        ("create disk --size -5G", 2, "\"-5G\" is not a size: it is negative"),
        ("create disk --size 20Q", 2, "\"Q\" is no unit of bytes"),
        ("create disk --size 5000", 2, "it must be a multiple of 4 KiB"),
        ("create disk --size 9223372036854775808", 2, "no file can be so large"),
        ("create disk --size 4E", 2, "is no unit"),
        ("create disk --size 1048576T", 4, "1048576 TiB and a margin of 1 GiB needed"),
        ("create disk --size 7000000T --prealloc sparse", 2, "its file system has no files so large"),
        ("create disk --size 4K --engine dd", 2, "\"dd\" is no engine"),
        ("create no/disk --size 4K", 1, "hint: make it first: mkdir -p no"),
        ("create there --size 4K", 3, "hint: --force replaces it"),
        ("create . --size 4K --force", 2, ". is no name for a file"),
        ("create /dev/null --size 4K --force", 3, "only a regular file can be replaced"),
        ("grow there --size 8191", 2, "it must be a multiple of 4 KiB"),
        ("grow disk --size 4K", 1, "cannot open disk to grow it"),
        ("verify disk", 1, "cannot open disk"),
        ("verify there --zero --stamped", 2, "cannot be used with"),
        ("verify there --seed 5", 2, "--stamped"),
        ("verify /dev/null --zero", 2, "is neither a file nor a block device"),
    ] {
        let out = scratch.run(line);
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{line}: {stderr}");
        assert!(stderr.contains(reason), "{line}: {stderr}");
        assert!(out.stdout.is_empty());
    }
    assert_eq!(scratch.names(), ["there"]);
    assert_eq!(fs::read(scratch.path("there")).unwrap(), b"precious");

    let mut limited = Command::new("sh");
    let program = tests::program("vdisk").get_program().to_owned();
    limited
        .args(["-c", "ulimit -f 2048; exec \"$0\" create disk --size 4M"])
        .arg(program)
        .current_dir(scratch.0.path());
    let out = limited.output().unwrap();
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("ulimit -f unlimited"), "{out:?}");
    assert_eq!(scratch.names(), ["there"]);
}

/// Waits until `done`, or until the child has ended.
fn wait_until(child: &mut Child, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() && child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(1));
    }
}

fn signal(child: &Child, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, signal).unwrap();
}

#[test]
fn a_signal_ends_it_with_130_and_leaves_nothing() {
    use nix::sys::signal::Signal::{SIGHUP, SIGINT, SIGTERM};
    let scratch = Scratch::new();
    for kind in [SIGINT, SIGTERM, SIGHUP] {
        let mut child = scratch.start("create disk --size 1G");
        wait_until(&mut child, || scratch.has_partial());
        signal(&child, kind);
        // What ends a whole group of processes sends it twice: that is no impatience.
        signal(&child, kind);
        assert_eq!(child.wait().unwrap().code(), Some(130), "{kind}");
        assert_eq!(scratch.names(), [""; 0], "{kind}");
    }
    stdout(&scratch.run("create disk --size 16M"));
    let before = extents::summarize_path(&scratch.path("disk")).unwrap();
    let mut child = scratch.start("grow disk --size 1G");
    wait_until(&mut child, || fs::metadata(scratch.path("disk")).unwrap().len() > 16 << 20);
    signal(&child, SIGINT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(extents::summarize_path(&scratch.path("disk")).unwrap(), before);
    stdout(&scratch.run("verify disk --zero"));
}

#[test]
fn two_that_make_the_same_image_do_not_get_into_each_others_way() {
    let scratch = Scratch::new();
    let mut first = scratch.start("create disk --size 1G");
    wait_until(&mut first, || scratch.has_partial());
    let second = scratch.run("create disk --size 4M");
    assert_eq!(second.status.code(), Some(3), "{second:?}");
    assert!(String::from_utf8_lossy(&second.stderr).contains("another run is making "), "{second:?}");
    // Another image in the same directory is nobody's business.
    stdout(&scratch.run("create other --size 4M"));
    assert!(first.wait().unwrap().success());
    assert_eq!(scratch.names(), ["disk", "other"]);
}

/// Ends a run of vdisk without any warning after `delay`, unless it is over by then.
fn kill_after(mut child: Child, delay: Duration) {
    thread::sleep(delay);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Delays spread evenly over `whole` and a little beyond, in no order: the same in every run of the test.
fn delays(whole: Duration) -> impl Iterator<Item = Duration> {
    (0u32..).map(move |index| whole.mul_f64(1.3 * f64::from(index * 37 % 100) / 100.0))
}

/// How long a run takes that nobody ends.
fn how_long(mut command: Command) -> Duration {
    // The command is there, and so is built: only the run counts.
    let start = Instant::now();
    stdout(&command.output().unwrap());
    start.elapsed()
}

const KILLS: u32 = 100;
/// After so many kills every phase has been hit, or something is wrong.
const KILLS_MAX: u32 = 500;

/// The states that a kill during a creation left behind.
#[derive(Debug, Default)]
struct Left {
    nothing: u32,
    unwritten: u32,
    written: u32,
    finished: u32,
}

impl Left {
    fn all_phases_seen(&self) -> bool {
        // `written`, the time from the last write to the rename, may be too short to be hit.
        self.nothing > 0 && self.unwritten > 0 && self.finished > 0
    }
}

#[test]
fn a_creation_killed_at_any_point_leaves_nothing_that_looks_whole() {
    let scratch = Scratch::new();
    let path = scratch.path("disk");
    let size = ByteSize::mib(64);
    let whole = how_long(scratch.vdisk("create disk --size 64M"));
    let has_fiemap = extents::summarize_path(&path).unwrap().gap().is_none();
    fs::remove_file(&path).unwrap();
    let mut left = Left::default();
    for (kill, delay) in (0..KILLS_MAX).zip(delays(whole)) {
        if kill >= KILLS && left.all_phases_seen() {
            break;
        }
        kill_after(scratch.start("create disk --size 64M"), delay);
        let names = scratch.names();
        let (images, partials): (Vec<&String>, Vec<&String>) = names.iter().partition(|name| *name == "disk");
        assert!(images.len() + partials.len() <= 1, "{names:?}");
        assert!(partials.iter().all(|name| name.starts_with(".disk.onedisk-")), "{names:?}");
        if !images.is_empty() {
            // It has its name, so it is whole.
            let found = extents::summarize_path(&path).unwrap();
            assert_eq!(found.size(), size);
            assert!(found.is_all_written() || !has_fiemap, "{found}");
            assert!(blockdev::mark::is_set(&path));
            stdout(&scratch.run("verify disk --zero"));
            fs::remove_file(&path).unwrap();
            left.finished += 1;
        } else if let [partial] = partials[..] {
            // It stays, and the next run has to clear it away.
            let found = extents::summarize_path(&scratch.path(partial)).unwrap();
            if found.is_all_written() && found.size() == size { left.written += 1 } else { left.unwritten += 1 }
        } else {
            left.nothing += 1;
        }
    }
    assert!(left.all_phases_seen(), "{left:?}");
    stdout(&scratch.run("create disk --size 64M"));
    assert_eq!(scratch.names(), ["disk"]);
}

#[test]
fn a_grow_killed_at_any_point_is_undone_or_known_and_finished() {
    let scratch = Scratch::new();
    let path = scratch.path("disk");
    let (small, large) = (ByteSize::mib(8), ByteSize::mib(72));
    let data: Vec<u8> = (0..small.bytes()).map(|at| u8::try_from(at % 253).unwrap()).collect();
    let (mut untouched, mut unfinished, mut finished) = (0, 0, 0);
    let prepare = || {
        let _ = fs::remove_file(&path);
        fs::write(&path, &data).unwrap();
    };
    prepare();
    let whole = how_long(scratch.vdisk("grow disk --size 72M"));
    let has_fiemap = extents::summarize_path(&path).unwrap().gap().is_none();
    for (kill, delay) in (0..KILLS_MAX).zip(delays(whole)) {
        if kill >= KILLS / 2 && untouched > 0 && unfinished > 0 && finished > 0 {
            break;
        }
        prepare();
        kill_after(scratch.start("grow disk --size 72M"), delay);
        let file = File::open(&path).unwrap();
        let size = ByteSize::new(file.metadata().unwrap().len());
        match image::unfinished_grow(&file).unwrap() {
            Some(before) => {
                assert_eq!(before, small);
                let out = scratch.run("verify disk");
                assert_eq!(out.status.code(), Some(5));
                assert!(String::from_utf8_lossy(&out.stderr).contains("growing it from 8 MiB is not finished"));
                unfinished += 1;
            }
            None if size == small => untouched += 1,
            None => {
                assert_eq!(size, large);
                assert!(extents::summarize_path(&path).unwrap().is_all_written() || !has_fiemap);
                finished += 1;
            }
        }
        let mut found = vec![0; data.len()];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == data, "what was there is as it was");
        if kill % 10 == 0 {
            stdout(&scratch.run("grow disk --size 72M"));
            assert_whole(&path, &data, large, has_fiemap);
        }
    }
    assert!(untouched > 0 && unfinished > 0 && finished > 0, "{untouched} {unfinished} {finished}");
    stdout(&scratch.run("grow disk --size 72M"));
    assert_whole(&path, &data, large, has_fiemap);
}

fn assert_whole(path: &Path, data: &[u8], size: ByteSize, has_fiemap: bool) {
    let bytes = fs::read(path).unwrap();
    assert_eq!(bytes.len() as u64, size.bytes());
    assert!(&bytes[..data.len()] == data && blockdev::zero::is_zero(&bytes[data.len()..]));
    assert_eq!(image::unfinished_grow(&File::open(path).unwrap()).unwrap(), None);
    assert!(extents::summarize_path(path).unwrap().is_all_written() || !has_fiemap);
}
