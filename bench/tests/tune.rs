//! `bench tune` on real files and loop devices: whatever happens, nothing is left behind.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use bench::report::Run;
use blockdev::loopdev;
use blockdev::topology::Device;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const NOBODY: u32 = 65534;

/// One at a time: loop devices and their schedulers belong to the whole machine.
static ALONE: Mutex<()> = Mutex::new(());

/// A directory to tune in, with something in it that is somebody else's.
struct Place {
    dir: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Place {
    fn new() -> Self {
        Self::at(Path::new(env!("CARGO_TARGET_TMPDIR")))
    }

    fn at(parent: &Path) -> Self {
        let dir = tempfile::tempdir_in(parent).unwrap();
        fs::write(dir.path().join("theirs"), "x").unwrap();
        Self { dir, _alone: ALONE.lock().unwrap_or_else(PoisonError::into_inner) }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn tune(&self, options: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
        command.arg("tune").arg(self.path()).args(options).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The loop devices on images in this place.
    fn devices(&self) -> Vec<PathBuf> {
        let here = |device: &loopdev::LoopDevice| device.backing_file.starts_with(self.path());
        loopdev::list().into_iter().filter(here).map(|device| device.path).collect()
    }

    /// Waits until a device here has another scheduler than it had before, and returns it with that.
    fn wait_for_change(&self, child: &mut Child, before: &[(PathBuf, String)]) -> (PathBuf, String) {
        loop {
            assert!(child.try_wait().unwrap().is_none(), "it ended before it changed a scheduler");
            for device in self.devices() {
                if let Some(current) = scheduler(&device)
                    && let Some((_, was)) = before.iter().find(|(path, _)| *path == device)
                    && current != *was
                {
                    return (device, was.clone());
                }
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn is_as_before(&self) {
        assert_eq!(self.devices(), [] as [PathBuf; 0]);
        assert_eq!(self.names(), ["theirs"]);
    }
}

fn scheduler(device: &Path) -> Option<String> {
    Some(Device::at(device).ok()?.scheduler?.current)
}

/// The scheduler of every loop device.
fn schedulers() -> Vec<(PathBuf, String)> {
    let nodes = fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let loops = nodes.filter(|name| name.starts_with("loop")).map(|name| Path::new("/dev").join(name));
    loops.filter_map(|path| scheduler(&path).map(|scheduler| (path, scheduler))).collect()
}

fn finish(child: Child) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn run(command: &mut Command) -> (Option<i32>, String, String) {
    finish(command.spawn().unwrap())
}

/// Runs `bench tune` with half a minute, or with more where this machine is too slow for that at the moment.
fn run_in_time(tune: impl Fn(&str) -> Command) -> (Option<i32>, String, String) {
    let (code, out, err) = run(&mut tune("30s"));
    if code == Some(2) && err.contains("take at least") { run(&mut tune("90s")) } else { (code, out, err) }
}

#[test]
fn setups_are_ranked_and_the_commands_are_printed() {
    tests::needs_root!();
    let place = Place::new();
    let saved = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (json, html) = (saved.path().join("run.json"), saved.path().join("run.html"));
    let (code, out, err) = run_in_time(|time| {
        let mut command = place.tune(&["--vary", "block-size", "--space", "64M", "--time", time]);
        command.arg("--save").arg(&json).arg("--report").arg(&html);
        command
    });
    assert_eq!(code, Some(0), "{err}");
    place.is_as_before();
    assert!(out.contains("vdisk create ") && out.contains(" && vdisk attach "), "{out}");
    assert!(out.contains("Ranking"), "{out}");
    assert!(fs::read_to_string(html).unwrap().contains("<svg"));
    let run = Run::load(&json).unwrap();
    assert!(run.completed && run.experiment == "tune");
    let ranked = |name: &str| run.cells.iter().any(|cell| cell.group == "Ranking" && cell.name == name);
    assert!(ranked("baseline") && ranked("4096-byte blocks") && ranked("raw file"));
    // Every block that was read had been written.
    assert!(run.cells.iter().all(|cell| cell.not_disk.is_none()));
    assert!(run.cells.iter().filter(|cell| cell.group != "Ranking").all(|cell| cell.figures["iops"].value > 0.0));
}

#[test]
fn interrupted_it_gives_everything_back() {
    tests::needs_root!();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let place = Place::new();
        let before = schedulers();
        let mut child = place.tune(&["--time", "10m", "--space", "64M", "--vary", "scheduler"]).spawn().unwrap();
        let (device, was) = place.wait_for_change(&mut child, &before);
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        let (code, out, err) = finish(child);
        assert_eq!((code, &*out), (Some(130), ""), "{err}");
        assert!(err.contains("interrupted"), "{err}");
        place.is_as_before();
        assert_eq!(scheduler(&device), Some(was));
    }
}

#[test]
fn a_failure_in_the_middle_gives_everything_back() {
    tests::needs_root!();
    let place = Place::new();
    let before = schedulers();
    let mut child = place.tune(&["--time", "10m", "--space", "64M", "--vary", "scheduler"]).spawn().unwrap();
    let (device, was) = place.wait_for_change(&mut child, &before);
    let scratch = place.names().into_iter().find(|name| name.starts_with(".bench-tune-")).unwrap();
    // Somebody cleans up too eagerly.
    fs::remove_dir_all(place.path().join(scratch)).unwrap();
    let (code, out, err) = finish(child);
    assert_eq!((code, &*out), (Some(1), ""), "{err}");
    place.is_as_before();
    assert_eq!(scheduler(&device), Some(was));
}

#[test]
fn what_a_kill_leaves_the_next_run_removes() {
    let place = Place::new();
    let mut child = place.tune(&["--time", "10m", "--space", "64M", "--vary", "engine"]).spawn().unwrap();
    while place.names().len() < 2 || !place.names().iter().any(|name| place.path().join(name).join("image").exists()) {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(place.names().len(), 2);
    let (code, _, err) = run(&mut place.tune(&["--time", "1s"]));
    assert_eq!(code, Some(2), "{err}");
    assert_eq!(place.names(), ["theirs"]);
}

#[test]
fn without_root_files_are_measured_and_the_rest_is_named() {
    // Where everybody may go, and on a disk.
    let place = Place::at(Path::new("/var/tmp"));
    let program = tempfile::tempdir_in("/var/tmp").unwrap();
    let copy = program.path().join("bench");
    fs::copy(env!("CARGO_BIN_EXE_bench"), &copy).unwrap();
    fs::set_permissions(program.path(), Permissions::from_mode(0o755)).unwrap();
    let (code, out, err) = run_in_time(|time| {
        let mut command = Command::new(&copy);
        command.arg("tune").arg(place.path()).args(["--vary", "engine", "--space", "64M", "--output", "json"]);
        command.args(["--time", time]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if tests::is_root() {
            chown(place.path(), Some(NOBODY), Some(NOBODY)).unwrap();
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    });
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(place.names(), ["theirs"]);
    let run = Run::parse(out.as_bytes(), "its output").unwrap();
    let left_out = run.findings.iter().find(|finding| finding.id == "left-out").unwrap();
    assert!(left_out.text.contains("everything about the loop device"), "{}", left_out.text);
    let hint = run.findings[0].hint.as_ref().unwrap();
    assert!(hint.starts_with("vdisk create ") && !hint.contains("attach"), "{hint}");
    assert!(run.cells.iter().any(|cell| cell.name == "threads"));
}

#[test]
fn what_cannot_be_says_why_and_makes_nothing() {
    let place = Place::new();
    for (options, code, why) in [
        (&["--time", "5s"][..], 2, "and the time given is 5s"),
        (&["--space", "1M"], 2, "an image of 1 MiB is too small to measure on"),
        (&["--vary", "colour"], 2, "\"colour\" is no choice that can be varied"),
        (&["--time", "soon"], 2, "\"soon\" is no time"),
    ] {
        let (found, out, err) = run(&mut place.tune(options));
        assert_eq!((found, &*out), (Some(code), ""), "{err}");
        assert!(err.contains(why), "{err}");
        place.is_as_before();
    }
    let (code, _, err) = run(Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["tune", "/dev/shm"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped()));
    assert_eq!(code, Some(6), "{err}");
    assert!(err.contains("/dev/shm is in memory (tmpfs)"), "{err}");
}
