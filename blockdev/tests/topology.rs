//! What is known of real files and devices.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use blockdev::loopdev::{self, Options};
use blockdev::topology::{Kind, Topology, WriteCache, set_scheduler};
use blockdev::{ByteSize, ErrorKind};

/// A sparse file of 1 MiB with 4 KiB in it, in a directory that goes with it.
fn image() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("disk");
    fs::write(&path, [1; 4096]).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(1 << 20).unwrap();
    file.sync_all().unwrap();
    (dir, path)
}

#[test]
fn a_file_is_on_a_file_system() {
    let (_dir, path) = image();
    let found = Topology::of(&path).unwrap();
    assert_eq!((found.kind, found.size), (Kind::File, ByteSize::mib(1)));
    assert!(found.allocated.unwrap() < ByteSize::mib(1));
    let file_system = found.file_system.unwrap();
    assert!(path.canonicalize().unwrap().starts_with(&file_system.mount_point), "{file_system:?}");
    if let Some(device) = found.device {
        assert_eq!(fs::canonicalize(&device.path).unwrap(), fs::canonicalize(&file_system.source).unwrap());
        assert!(device.logical_block_size <= device.physical_block_size);
        assert!(found.direct_io.unwrap().offset_align >= device.logical_block_size);
    }
    assert_eq!((found.loop_devices, found.below), (vec![], None));
}

#[test]
fn a_file_in_memory_is_on_no_device() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("disk");
    fs::write(&path, "x").unwrap();
    let found = Topology::of(&path).unwrap();
    assert_eq!((&*found.file_system.unwrap().name, found.device, found.atomic_writes), ("tmpfs", None, None));
}

#[test]
fn a_loop_device_stands_on_its_file() {
    tests::needs_root!();
    let (_dir, path) = image();
    let options = Options { logical_block_size: ByteSize::kib(4), read_only: true, ..Options::default() };
    let attachment = loopdev::attach(&path, &options).unwrap();
    let found = Topology::of(&attachment.device().path).unwrap();
    assert_eq!((found.kind, found.size, found.allocated), (Kind::BlockDevice, ByteSize::mib(1), None));
    assert_eq!(found.direct_io.unwrap().offset_align, ByteSize::kib(4));
    assert_eq!(found.file_system, None);
    let device = found.device.unwrap();
    assert_eq!((&device.path, device.logical_block_size), (&attachment.device().path, ByteSize::kib(4)));
    assert!(device.read_only);
    assert!(device.scheduler.unwrap().available.contains(&"none".to_owned()));
    assert_eq!(device.loop_device.as_ref(), Some(attachment.device()));

    let below = found.below.unwrap();
    assert_eq!(below.path, path);
    assert_eq!(below.loop_devices, std::slice::from_ref(attachment.device()));
    assert!(below.file_system.is_some());

    let json = serde_json::to_value(Topology::of(&attachment.device().path).unwrap()).unwrap();
    assert_eq!(json["kind"], "block-device");
    assert_eq!(json["below"]["size"], 1 << 20);
    assert_eq!(json["device"]["loop"]["backing_file"], path.to_str().unwrap());

    // The file's name now is another file's.
    fs::remove_file(&path).unwrap();
    fs::write(&path, "another").unwrap();
    assert_eq!(Topology::of(&attachment.device().path).unwrap().below, None);
}

#[test]
fn a_flushing_file_makes_a_device_with_a_cache() {
    tests::needs_root!();
    let (_dir, path) = image();
    let attachment = loopdev::attach(&path, &Options::default()).unwrap();
    let device = Topology::of(&attachment.device().path).unwrap().device.unwrap();
    assert_eq!((device.write_cache, device.fua), (Some(WriteCache::WriteBack), Some(false)));
}

#[test]
fn a_scheduler_is_set_and_set_back() {
    tests::needs_root!();
    let (_dir, path) = image();
    let attachment = loopdev::attach(&path, &Options::default()).unwrap();
    let device = &attachment.device().path;
    let scheduler = || Topology::of(device).unwrap().device.unwrap().scheduler.unwrap();
    let first = scheduler();
    let other = first.available.iter().find(|name| **name != first.current).unwrap_or(&first.current);
    assert_eq!(set_scheduler(device, other).unwrap(), first.current);
    assert_eq!(scheduler().current, *other);
    assert_eq!(set_scheduler(device, &first.current).unwrap(), *other);
    assert_eq!(scheduler(), first);
    let error = set_scheduler(device, "elevator").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let what = format!("cannot set the I/O scheduler of {} to \"elevator\": it has ", device.display());
    assert!(error.to_string().starts_with(&what), "{error}");
}

#[test]
fn what_is_no_disk_is_refused() {
    for (path, kind, why) in [
        ("/dev/null", ErrorKind::InvalidInput, "/dev/null is neither a file nor a block device"),
        ("/", ErrorKind::InvalidInput, "/ is neither a file nor a block device"),
        ("/nowhere", ErrorKind::NotFound, "cannot look at /nowhere"),
    ] {
        let error = Topology::of(Path::new(path)).unwrap_err();
        assert_eq!((error.kind(), &*error.to_string()), (kind, why));
    }
}
