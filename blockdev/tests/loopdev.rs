//! Real loop devices.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use blockdev::loopdev::{self, LoopDevice};
use blockdev::{ByteOffset, ByteSize};

/// A sparse file, in a directory that goes with it.
struct Image {
    path: PathBuf,
    dir: tempfile::TempDir,
}

impl Image {
    fn new(size: ByteSize) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = dir.path().join("disk");
        File::create(&path).unwrap().set_len(size.bytes()).unwrap();
        Self { path, dir }
    }

    fn users(&self) -> Vec<LoopDevice> {
        loopdev::users_of(&File::open(&self.path).unwrap()).unwrap()
    }
}

/// A device that another program attached, given back at the end of the test.
struct Foreign(PathBuf);

impl Foreign {
    fn attach(file: &Path, options: &[&str]) -> Self {
        let out = Command::new("losetup").args(["--find", "--show"]).args(options).arg(file).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        Self(PathBuf::from(String::from_utf8(out.stdout).unwrap().trim()))
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn a_device_that_another_program_attached_is_described() {
    tests::needs_root!();
    let image = Image::new(ByteSize::mib(8));
    assert_eq!(image.users(), []);
    let options = ["--offset", "4096", "--sizelimit", "1048576", "--read-only", "--sector-size", "4096"];
    let foreign = Foreign::attach(&image.path, &options);
    let [device] = &image.users()[..] else { panic!("one device uses the file") };
    assert_eq!(device.path, foreign.0);
    assert_eq!(device.backing_file, image.path);
    assert_eq!(device.offset, ByteOffset::new(4096));
    assert_eq!(device.size_limit, Some(ByteSize::mib(1)));
    assert_eq!(device.size, ByteSize::mib(1));
    assert_eq!(device.logical_block_size, ByteSize::kib(4));
    assert!(device.read_only && !device.direct_io && !device.autoclear && !device.deleted);
    assert!(loopdev::list().contains(device));
}

#[test]
fn a_file_in_use_is_found_under_any_name() {
    tests::needs_root!();
    let image = Image::new(ByteSize::mib(1));
    let foreign = Foreign::attach(&image.path, &["--direct-io=on"]);
    let renamed = image.dir.path().join("renamed (deleted)");
    fs::rename(&image.path, &renamed).unwrap();
    let link = image.dir.path().join("link");
    fs::hard_link(&renamed, &link).unwrap();
    let open = File::open(&link).unwrap();
    let [device] = &loopdev::users_of(&open).unwrap()[..] else { panic!("found through a link") };
    assert_eq!((&device.path, &device.backing_file), (&foreign.0, &renamed));
    assert!(device.direct_io && !device.deleted);

    fs::write(&image.path, "another file under the old name").unwrap();
    assert_eq!(image.users(), []);

    fs::remove_file(&renamed).unwrap();
    fs::remove_file(&link).unwrap();
    let [device] = &loopdev::users_of(&open).unwrap()[..] else { panic!("found without any name") };
    assert_eq!((&device.path, &device.backing_file), (&foreign.0, &renamed));
    assert!(device.deleted);
}

#[test]
fn a_device_on_a_device_is_found_through_any_node() {
    tests::needs_root!();
    let image = Image::new(ByteSize::mib(1));
    let lower = Foreign::attach(&image.path, &[]);
    let upper = Foreign::attach(&lower.0, &[]);
    let node = image.dir.path().join("node");
    let number = nix::sys::stat::stat(&lower.0).unwrap().st_rdev;
    nix::sys::stat::mknod(&node, nix::sys::stat::SFlag::S_IFBLK, nix::sys::stat::Mode::S_IRUSR, number).unwrap();
    let users = loopdev::users_of(&File::open(&node).unwrap()).unwrap();
    assert_eq!(users.iter().map(|device| &device.path).collect::<Vec<_>>(), [&upper.0]);
}
