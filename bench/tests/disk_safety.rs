//! What somebody may want to keep is not written over.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bench::disk::{Caching, Target, may_overwrite};
use blockdev::loopdev::{self, Options};
use blockdev::{ErrorKind, mark};

const SIZE: u64 = 16 << 20;

/// One test at a time: a process that another test starts has, until it is another program, all files of this one open.
static ALONE: Mutex<()> = Mutex::new(());

struct Scratch(tempfile::TempDir, #[expect(dead_code, reason = "held, not looked at")] MutexGuard<'static, ()>);

impl Scratch {
    fn new() -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        Self(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap(), alone)
    }

    /// An empty disk, and its content from `offset` on.
    fn disk(&self, name: &str, offset: u64, content: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        let file = File::create_new(&path).unwrap();
        file.set_len(SIZE).unwrap();
        file.write_all_at(content, offset).unwrap();
        path
    }
}

fn refusal(path: &Path, destroy: bool) -> Option<String> {
    let target = Target::open(path, Caching::Auto).unwrap();
    let error = may_overwrite(&target, destroy).err()?;
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.hint().is_some());
    Some(error.to_string().replace(&path.display().to_string(), "DISK"))
}

fn make_ext4(path: &Path) {
    let status = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(path).status().unwrap();
    assert!(status.success());
}

#[test]
fn nothing_and_zeroes_may_be_overwritten() {
    let scratch = Scratch::new();
    assert_eq!(refusal(&scratch.disk("sparse", 0, &[]), false), None);
    assert_eq!(refusal(&scratch.disk("zeroes", 1 << 20, &vec![0; 3 << 20]), false), None);
}

#[test]
fn a_file_system_is_named() {
    let scratch = Scratch::new();
    let disk = scratch.disk("ext4", 0, &[]);
    make_ext4(&disk);
    assert_eq!(refusal(&disk, false).unwrap(), "DISK holds: ext4 file system");
    assert_eq!(refusal(&disk, true), None);
}

#[test]
fn polarfs_of_any_version_is_named() {
    let scratch = Scratch::new();
    for version in [0, 2, 63] {
        let magic = (0x50_4653_4348u64 + version).to_le_bytes();
        let disk = scratch.disk(&format!("v{version}"), 0, &magic);
        assert_eq!(refusal(&disk, false).unwrap(), "DISK holds: PolarFS volume");
    }
}

#[test]
fn unknown_data_are_found_wherever_they_are_unless_onedisk_made_the_file() {
    let scratch = Scratch::new();
    for offset in [0, 5_000_000, SIZE - 1] {
        let disk = scratch.disk(&offset.to_string(), offset, &[1]);
        assert_eq!(
            refusal(&disk, false).unwrap(),
            format!(
                "DISK was not made by onedisk and holds data, the first at offset {offset}: writing would destroy them"
            )
        );
        assert_eq!(refusal(&disk, true), None);
        mark::set(&File::options().write(true).open(&disk).unwrap()).unwrap();
        assert_eq!(refusal(&disk, false), None);
    }
}

#[test]
fn what_another_process_has_open_is_in_use() {
    let scratch = Scratch::new();
    let disk = scratch.disk("open", 0, &[]);
    let mut holder = Command::new("sleep").arg("60").stdin(File::open(&disk).unwrap()).spawn().unwrap();
    let refused = refusal(&disk, false);
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(refused.unwrap(), format!("DISK is open in sleep (pid {})", holder.id()));
}

#[test]
fn an_attached_image_is_written_through_its_device_alone() {
    tests::needs_root!();
    let scratch = Scratch::new();
    let image = scratch.disk("image", 0, &[]);
    let attachment = loopdev::attach(&image, &Options { direct_io: false, ..Options::default() }).unwrap();
    let device = attachment.device().path.clone();
    for destroy in [false, true] {
        let refused = refusal(&image, destroy).unwrap();
        assert!(refused.starts_with(&format!("DISK is attached as {}: ", device.display())), "{refused}");
    }
    assert_eq!(refusal(&device, false), None);

    make_ext4(&device);
    assert_eq!(refusal(&device, false).unwrap(), "DISK holds: ext4 file system");
    let mount = scratch.0.path().join("mount");
    fs::create_dir(&mount).unwrap();
    assert!(Command::new("mount").arg(&device).arg(&mount).status().unwrap().success());
    let refused = refusal(&device, false).unwrap();
    assert!(Command::new("umount").arg(&mount).status().unwrap().success());
    assert!(refused.contains("ext4 file system; is mounted on "), "{refused}");
    attachment.detach().unwrap();
}

#[test]
fn a_device_on_an_image_that_onedisk_made_may_be_overwritten() {
    tests::needs_root!();
    let scratch = Scratch::new();
    let image = scratch.disk("image", 0, b"left by an earlier benchmark");
    mark::set(&File::options().write(true).open(&image).unwrap()).unwrap();
    let attachment = loopdev::attach(&image, &Options { direct_io: false, ..Options::default() }).unwrap();
    assert_eq!(refusal(&attachment.device().path, false), None);
    attachment.detach().unwrap();
}
