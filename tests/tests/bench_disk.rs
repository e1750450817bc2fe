//! `bench disk`, as a user runs it.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use bench::report::Run;
use serde_json::Value;

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A file of 4 MiB that is all written and all zero.
fn written(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    let mut file = File::create(&path).unwrap();
    file.write_all(&vec![0; 4 << 20]).unwrap();
    file.sync_all().unwrap();
    path
}

fn bench_disk(directory: &Path) -> Command {
    let mut command = tests::program("bench");
    command.arg("disk").current_dir(directory);
    command
}

fn run(directory: &Path, arguments: &[&str]) -> Output {
    bench_disk(directory).args(arguments).output().unwrap()
}

/// Runs it, and reads its JSON.
fn measured(directory: &Path, arguments: &[&str]) -> Run {
    let out = run(directory, &[arguments, &["--output", "json"]].concat());
    assert!(out.status.success(), "{}", stderr(&out));
    Run::parse(&out.stdout, "standard output").unwrap()
}

fn stderr(out: &Output) -> &str {
    std::str::from_utf8(&out.stderr).unwrap()
}

const SHORT: [&str; 4] = ["--runtime", "200ms", "--warmup", "50ms"];

#[test]
fn lists_are_swept_and_the_run_is_saved_as_it_is_printed() {
    let dir = scratch();
    written(dir.path(), "disk");
    let sweep = ["disk", "--rw", "randread,randwrite", "--bs", "4k,8k", "--iodepth", "1,4", "--rounds", "2"];
    let run = measured(dir.path(), &[&sweep[..], &SHORT, &["--save", "run.json", "--report", "page.html"]].concat());
    assert_eq!(run.cells.len(), 8);
    assert!(run.completed);
    for cell in &run.cells {
        assert_eq!(cell.figures["iops"].samples.len(), 2, "{}", cell.name);
        assert!(cell.figures["iops"].value > 0.0 && cell.figures["cpu_per_op"].value > 0.0);
        assert_eq!(cell.latencies[0].name, "service");
        assert_eq!(cell.errors, 0);
    }
    assert_eq!(Run::load(&dir.path().join("run.json")).unwrap(), run);
    assert!(fs::read_to_string(dir.path().join("page.html")).unwrap().contains("randread"));
}

#[test]
fn the_same_as_text() {
    let dir = scratch();
    written(dir.path(), "disk");
    let out =
        run(dir.path(), &[&["disk", "--rw", "randwrite", "--fdatasync", "1", "--iodepth", "1"][..], &SHORT].concat());
    assert!(out.status.success(), "{}", stderr(&out));
    let text = std::str::from_utf8(&out.stdout).unwrap();
    for expected in ["Durable writes", "fdatasync p50", "CPU per I/O", "8 KiB"] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
}

#[test]
fn an_open_loop_reports_response_times() {
    let dir = scratch();
    written(dir.path(), "disk");
    let run = measured(dir.path(), &[&["disk", "--rate", "500", "--iodepth", "8"][..], &SHORT].concat());
    let names: Vec<&str> = run.cells[0].latencies.iter().map(|latency| latency.name.as_str()).collect();
    assert_eq!(names, ["service", "response"]);
    assert_eq!(run.cells[0].group, "Open loop");
}

#[test]
fn reads_of_holes_are_not_reported_as_reads_of_a_disk() {
    let dir = scratch();
    File::create(dir.path().join("sparse")).unwrap().set_len(4 << 20).unwrap();
    let run = measured(dir.path(), &[&["sparse", "--rw", "randread"][..], &SHORT].concat());
    let why = run.cells[0].not_disk.as_ref().unwrap();
    assert_eq!(why, "4 MiB of the 4 MiB read have no written blocks: no disk is asked for them");
    assert!(run.findings.iter().any(|finding| finding.id == "not-disk"));

    written(dir.path(), "written");
    let run = measured(dir.path(), &[&["written", "--rw", "randread", "--buffered"][..], &SHORT].concat());
    assert!(run.cells[0].not_disk.as_ref().unwrap().starts_with("the page cache answers"));
    let run = measured(dir.path(), &[&["written", "--rw", "randread"][..], &SHORT].concat());
    assert_eq!(run.cells[0].not_disk, None);
}

#[test]
fn a_loop_device_through_the_page_cache_is_not_reported_as_a_disk() {
    tests::needs_root!();
    let dir = scratch();
    let image = written(dir.path(), "image");
    let out = tests::program("vdisk").args(["attach", "--buffered"]).arg(&image).output().unwrap();
    let device = std::str::from_utf8(&out.stdout).unwrap().trim_end().to_owned();
    let run = run(dir.path(), &[&[&device, "--rw", "randread", "--output", "json"][..], &SHORT].concat());
    let detached = tests::program("vdisk").arg("detach").arg(&image).output().unwrap();
    assert!(run.status.success() && detached.status.success(), "{} {}", stderr(&run), stderr(&detached));
    let run = Run::parse(&run.stdout, "out").unwrap();
    let why = run.cells[0].not_disk.as_ref().unwrap();
    assert_eq!(
        *why,
        format!("{device} reads and writes its file through the page cache, which answers instead of the disk")
    );
}

#[test]
fn bad_input_is_refused_before_anything_is_touched() {
    let dir = scratch();
    let disk = written(dir.path(), "disk");
    File::create(dir.path().join("empty")).unwrap();
    for (arguments, code, why) in [
        (&["missing"][..], 1, "cannot open missing to measure it"),
        (&["empty"], 2, "empty is empty: there is nothing to measure"),
        (&["."], 2, ". is neither a file nor a block device"),
        (&["disk", "--rw", "randomly"], 2, "\"randomly\" is no access pattern"),
        (&["disk", "--bs", "1000"], 2, "a block of 1000 B is no multiple of"),
        (&["disk", "--bs", "0"], 2, "a block of 0 B is not in"),
        (&["disk", "--iodepth", "0"], 2, "an I/O depth of 0 is not in 1 to 4096"),
        (&["disk", "--iodepth", "5000"], 2, "an I/O depth of 5000 is not in 1 to 4096"),
        (&["disk", "--jobs", "0"], 2, "0 jobs are not in 1 to 256"),
        (&["disk", "--rate", "0"], 2, "a rate of 0 I/O per second is not above 0"),
        (&["disk", "--size", "8M"], 2, "8 MiB from offset 0 B are beyond the end of disk, which is 4 MiB"),
        (&["disk", "--offset", "4M"], 2, "an offset of 4 MiB is beyond the end of disk, which is 4 MiB"),
        (&["disk", "--size", "12k", "--bs", "8k"], 2, "is not made of whole blocks of 8 KiB"),
        (&["disk", "--fdatasync", "1"], 2, "randread writes nothing that an fdatasync could follow"),
        (&["disk", "--rwmixread", "101", "--rw", "randrw"], 2, "101 % reads are more than all"),
        (&["disk", "--runtime", "soon"], 2, "\"soon\" is no time"),
        (&["disk", "--runtime", "0"], 2, "a runtime of 0ns is below 10ms"),
        (&["disk", "--rounds", "0"], 2, "0 is not in 1..=1000"),
        (&["disk", "--engine", "libaio"], 2, "\"libaio\" is no engine"),
        (&["disk", "--verify", "--bs", "4k,8k"], 2, "--verify takes one value of --bs, not 2"),
        (&["disk", "--rate", "10", "--against", "fio"], 2, "fio cannot measure response times"),
        (&["--scratch", "nowhere"], 1, "cannot make the scratch directory nowhere/onedisk-scratch-"),
        (&["--scratch-size", "1000"], 2, "an image cannot be 1000 bytes"),
        (&["--scratch-size", "100T"], 4, ""),
    ] {
        let out = run(dir.path(), arguments);
        assert_eq!(out.status.code(), Some(code), "{arguments:?}: {}", stderr(&out));
        assert!(stderr(&out).contains(why), "{arguments:?}: {}", stderr(&out));
        assert!(out.stdout.is_empty(), "{arguments:?}");
    }
    assert!(fs::read(disk).unwrap().iter().all(|byte| *byte == 0));
    assert_eq!(tests::names_in(dir.path()), ["disk", "empty"]);
}

#[test]
fn what_is_not_ours_is_not_written_without_being_told() {
    let dir = scratch();
    let disk = written(dir.path(), "disk");
    File::options().write(true).open(&disk).unwrap().write_all_at(b"precious", 1 << 20).unwrap();
    let out = run(dir.path(), &["disk", "--rw", "randwrite"]);
    assert_eq!(out.status.code(), Some(3), "{}", stderr(&out));
    assert!(stderr(&out).contains("disk was not made by onedisk and holds data, the first at offset 1048576"));
    assert!(stderr(&out).contains("--destroy overwrites it all the same"));
    let out = run(dir.path(), &[&["disk", "--rw", "randwrite", "--destroy"][..], &SHORT].concat());
    assert!(out.status.success(), "{}", stderr(&out));
}

#[test]
fn a_sound_disk_verifies_and_a_reader_of_the_past_does_not() {
    let dir = scratch();
    written(dir.path(), "disk");
    written(dir.path(), "past");
    let run_verify = |more: &[&str]| {
        run(
            dir.path(),
            &[&["disk", "--verify", "--destroy", "--runtime", "200ms", "--output", "json"][..], more].concat(),
        )
    };
    let out = run_verify(&[]);
    assert!(out.status.success(), "{}", stderr(&out));
    assert_eq!(Run::parse(&out.stdout, "out").unwrap().findings[0].id, "verify-clean");

    let out = run_verify(&["--reader", "disk"]);
    assert!(out.status.success(), "{}", stderr(&out));

    let out = run_verify(&["--reader", "past"]);
    assert_eq!(out.status.code(), Some(5), "{}", stderr(&out));
    assert_eq!(Run::parse(&out.stdout, "out").unwrap().findings[0].id, "verify-stale");
    assert!(stderr(&out).contains("checks on disk found a fault"));
}

#[test]
fn fio_runs_the_same_load_and_a_missing_one_is_said() {
    let dir = scratch();
    written(dir.path(), "disk");
    let against = ["disk", "--rw", "randread", "--against", "fio", "--output", "json"];
    let out = bench_disk(dir.path()).args(against).args(SHORT).env("PATH", dir.path()).output().unwrap();
    assert_eq!(out.status.code(), Some(1), "{}", stderr(&out));
    assert!(stderr(&out).contains("cannot run fio") && stderr(&out).contains("apt install fio"), "{}", stderr(&out));

    if Command::new("fio").arg("--version").output().is_err() {
        return tests::skip("fio_runs_the_same_load", "fio is not installed");
    }
    let run = measured(dir.path(), &[&["disk", "--rw", "randread", "--against", "fio"][..], &SHORT].concat());
    assert_eq!(run.cells.len(), 2);
    assert!(run.cells[0].figures["iops_ratio"].value > 0.0);
    assert!(run.findings.iter().any(|finding| finding.id == "against-fio"));
}

#[test]
fn one_comparison_that_fails_leaves_the_others() {
    let dir = scratch();
    written(dir.path(), "disk");
    let Ok(path) = Command::new("sh").args(["-c", "command -v fio"]).output() else { panic!("there is a shell") };
    let real = std::str::from_utf8(&path.stdout).unwrap().trim_end();
    if real.is_empty() {
        return tests::skip("one_comparison_that_fails_leaves_the_others", "fio is not installed");
    }
    let fio = dir.path().join("fio");
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *--bs=8192*) echo the disk is tired >&2; exit 1;; esac\nexec {real} \"$@\"\n"
    );
    fs::write(&fio, script).unwrap();
    fs::set_permissions(&fio, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let arguments = ["disk", "--rw", "randread", "--bs", "4k,8k", "--against", "fio", "--output", "json"];
    let out = bench_disk(dir.path()).args(arguments).args(SHORT).env("PATH", path).output().unwrap();
    assert_eq!(out.status.code(), Some(1), "{}", stderr(&out));
    assert!(stderr(&out).contains("1 of 4 cells failed"), "{}", stderr(&out));
    let run = Run::parse(&out.stdout, "out").unwrap();
    let ratios: Vec<bool> = run.cells.iter().map(|cell| cell.figures.contains_key("iops_ratio")).collect();
    assert_eq!(ratios, [true, false, false, false]);
    assert!(run.cells[2].figures["iops"].value > 0.0, "ours is there all the same");
    let finding = run.findings.iter().find(|finding| finding.id == "rival-failed").unwrap();
    assert!(finding.text.contains("not compared: fio failed on ") && finding.text.contains("the disk is tired"));
}

#[test]
fn what_could_not_be_kept_is_said_before_anything_is_written() {
    let dir = scratch();
    let disk = written(dir.path(), "disk");
    fs::write(dir.path().join("thesis.html"), "my thesis").unwrap();
    for (option, file, code, why) in [
        ("--save", "nowhere/run.json", 1, "cannot write nowhere/run.json"),
        ("--save", ".", 3, "cannot write a run to .: it is not a regular file"),
        ("--report", "thesis.html", 3, "thesis.html exists and is not a report of bench"),
    ] {
        let out = run(dir.path(), &[&["disk", "--rw", "randwrite", option, file][..], &SHORT].concat());
        assert_eq!(out.status.code(), Some(code), "{}", stderr(&out));
        assert!(stderr(&out).contains(why) && out.stdout.is_empty(), "{}", stderr(&out));
    }
    assert!(fs::read(disk).unwrap().iter().all(|byte| *byte == 0));
    assert_eq!(tests::names_in(dir.path()), ["disk", "thesis.html"]);
}

/// Waits until something of ours is in `directory` that a killed run would leave.
fn wait_for_scratch(directory: &Path) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let made = || fs::read_dir(directory).unwrap().flatten().any(|entry| entry.path().join("image").exists());
    while !made() {
        assert!(Instant::now() < deadline, "no image appeared");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn start(directory: &Path, arguments: &[&str]) -> Child {
    let mut command = bench_disk(directory);
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn signal(child: &Child, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

fn attached_below(directory: &Path) -> bool {
    let out = tests::program("vdisk").args(["list", "--output", "json"]).output().unwrap();
    let devices: Value = serde_json::from_slice(&out.stdout).unwrap();
    let below =
        |device: &Value| device["backing_file"].as_str().is_some_and(|file| Path::new(file).starts_with(directory));
    devices.as_array().unwrap().iter().any(below)
}

#[test]
fn without_a_target_it_makes_one_and_removes_it() {
    let dir = scratch();
    let arguments = ["--quick", "--scratch-size", "32M", "--runtime", "200ms", "--warmup", "0"];
    let run = measured(dir.path(), &arguments);
    let groups: std::collections::BTreeSet<&str> = run.cells.iter().map(|cell| cell.group.as_str()).collect();
    assert_eq!(
        groups.into_iter().collect::<Vec<_>>(),
        ["Durable writes", "Random I/O", "Sequential I/O", "Unwritten extents"]
    );
    assert!(run.findings.iter().any(|finding| finding.id.starts_with("flush-")), "{:?}", run.findings);
    if tests::is_root() {
        assert_eq!(run.subject, "image file, loop device");
    } else {
        assert!(run.findings.iter().any(|finding| finding.id == "no-loop-device"));
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    assert!(!attached_below(dir.path()));
}

#[test]
fn ctrl_c_keeps_what_was_measured_and_removes_the_rest() {
    let dir = scratch();
    let child =
        start(dir.path(), &["--scratch-size", "32M", "--rw", "randread", "--runtime", "60s", "--output", "json"]);
    wait_for_scratch(dir.path());
    std::thread::sleep(Duration::from_secs(3));
    signal(&child, nix::sys::signal::Signal::SIGINT);
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(130), "{}", stderr(&out));
    let run = Run::parse(&out.stdout, "out").unwrap();
    assert!(!run.completed);
    assert!(run.cells[0].figures["iops"].value > 0.0);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    assert!(!attached_below(dir.path()));
}

#[test]
fn what_a_killed_run_left_goes_with_the_next() {
    let dir = scratch();
    let mut child = start(dir.path(), &["--scratch-size", "32M", "--rw", "randread", "--runtime", "60s"]);
    wait_for_scratch(dir.path());
    std::thread::sleep(Duration::from_secs(1));
    signal(&child, nix::sys::signal::Signal::SIGKILL);
    child.wait().unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    let arguments = ["--scratch-size", "32M", "--rw", "randread", "--runtime", "50ms", "--warmup", "0"];
    let run = measured(dir.path(), &arguments);
    assert!(run.findings.iter().any(|finding| finding.id == "leftover"), "{:?}", run.findings);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
