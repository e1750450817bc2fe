//! `vdisk info`, as a user runs it.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::collections::HashMap;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use blockdev::loopdev;
use serde_json::Value;

/// 1 MiB of which the first 64 KiB are written, in a directory that goes with it.
fn image() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("disk");
    let file = File::create(&path).unwrap();
    file.write_all_at(&[0; 64 << 10], 0).unwrap();
    file.set_len(1 << 20).unwrap();
    file.sync_all().unwrap();
    (dir, path)
}

fn info(path: &Path, more: &[&str]) -> Output {
    tests::program("vdisk").arg("info").arg(path).args(more).output().unwrap()
}

fn stdout(out: &Output) -> &str {
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    std::str::from_utf8(&out.stdout).unwrap()
}

/// The facts of one block of lines.
fn facts(text: &str) -> HashMap<&str, &str> {
    text.lines().map(|line| line.split_once("  ").unwrap()).map(|(name, value)| (name, value.trim_start())).collect()
}

#[test]
fn a_file() {
    let (_dir, path) = image();
    let out = info(&path, &[]);
    let facts = facts(stdout(&out));
    assert_eq!(facts["file"], path.to_str().unwrap());
    assert_eq!(facts["size"], "1 MiB (1048576 bytes)");
    assert_eq!((facts["holds"], facts["made by"]), ("nothing known", "other"));
    assert!(facts["extents"].contains("960 KiB hole"), "{}", facts["extents"]);
    assert!(!facts.contains_key("in use") && !facts.contains_key("attached to"));

    let out = info(&path, &["--output", "json"]);
    let json: Value = serde_json::from_str(stdout(&out)).unwrap();
    assert_eq!((&json["kind"], &json["size"]), (&"file".into(), &(1 << 20).into()));
    // A file system may reserve more than was written.
    assert!((64 << 10..1 << 20).contains(&json["allocated"].as_u64().unwrap()));
    assert_eq!(json["extents"]["hole"], 960 << 10);
    assert_eq!(json["contents"], serde_json::json!({ "signatures": [], "uses": [] }));
}

#[test]
fn a_loop_device_and_its_file() {
    tests::needs_root!();
    let (_dir, path) = image();
    blockdev::mark::set(&File::options().write(true).open(&path).unwrap()).unwrap();
    let attachment = loopdev::attach(&path, &loopdev::Options::default()).unwrap();
    let device = attachment.device().path.clone();
    assert!(Command::new("mkfs.ext4").args(["-q", "-O", "^has_journal"]).arg(&device).status().unwrap().success());
    let out = info(&device, &[]);
    let (of_device, of_file) = stdout(&out).split_once("\n\n").unwrap();
    let (of_device, of_file) = (facts(of_device), facts(of_file));
    assert_eq!(of_device["device"], device.to_str().unwrap());
    assert_eq!(of_device["attached to"], path.to_str().unwrap());
    assert_eq!(of_device["holds"], "ext4 file system");
    assert_eq!(of_device["blocks"].split(',').next(), Some("512 bytes logical"));
    assert!(of_device["in use"].ends_with(&format!("(pid {})", std::process::id())), "{}", of_device["in use"]);
    assert_eq!((of_file["file"], of_file["made by"]), (path.to_str().unwrap(), "onedisk"));
    assert!(of_file["loop device"].starts_with(device.to_str().unwrap()));
}

#[test]
fn what_may_not_be_read_is_left_out() {
    tests::needs_root!();
    // Where everybody may go, unlike perhaps the directory of this repository.
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let (program, disk) = (dir.path().join("vdisk"), dir.path().join("disk"));
    fs::copy(tests::program("vdisk").get_program(), &program).unwrap();
    fs::write(&disk, [0; 4096]).unwrap();
    fs::set_permissions(&disk, Permissions::from_mode(0o600)).unwrap();
    let out = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .args([&program, Path::new("info"), &disk])
        .output()
        .unwrap();
    let facts = facts(stdout(&out));
    assert_eq!(facts["size"], "4 KiB (4096 bytes)");
    assert!(!facts.contains_key("extents") && !facts.contains_key("holds"));
    let said = String::from_utf8_lossy(&out.stderr);
    let line = |what: &str| format!("not all is shown: cannot {what}: permission denied\n");
    assert!(said.contains(&line(&format!("read {} to see what it holds", disk.display()))), "{said}");
}

#[test]
fn what_is_no_disk() {
    for (path, code, why) in [
        ("/dev/null", 2, "vdisk: /dev/null is neither a file nor a block device\n"),
        ("/nowhere", 1, "vdisk: cannot look at /nowhere\n  because: No such file or directory (os error 2)\n"),
    ] {
        let out = info(Path::new(path), &[]);
        assert_eq!(out.status.code(), Some(code));
        assert_eq!(String::from_utf8_lossy(&out.stderr), why);
    }
}
