//! Images on real file systems: made whole or not at all.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

use blockdev::engine::{Choice, Kind};
use blockdev::image::{self, Checks, CreateOptions, Created, GrowOptions, Grown, Method, Prealloc, Verified};
use blockdev::stamp::{self, Stamp};
use blockdev::ui::{Progress, Silent};
use blockdev::{ByteOffset, ByteSize, Cancel, ErrorKind, Result, extents, loopdev, mark};
use proptest::prelude::*;
use tests::{Mounted, names_in};

const SIZE: ByteSize = ByteSize::mib(9);

struct Scratch(tempfile::TempDir);

impl Scratch {
    /// On a real disk: /tmp may be a tmpfs.
    fn new() -> Self {
        Self(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn names(&self) -> Vec<String> {
        names_in(self.0.path())
    }
}

fn create(path: &Path, options: &CreateOptions) -> Result<Created> {
    image::create(path, options, &mut Silent, &Cancel::new())
}

fn verify(path: &Path, checks: Checks) -> Result<Verified> {
    image::verify(path, &checks, Choice::Auto, &mut Silent, &Cancel::new())
}

const ZERO: Checks = Checks { zero: true, stamped: false, seed: None };

#[test]
fn a_created_image_is_whole_written_zero_and_marked() {
    for (choice, kind) in [(Choice::Uring, Kind::Uring), (Choice::Threads, Kind::Threads)] {
        let scratch = Scratch::new();
        let path = scratch.path("disk");
        let options = CreateOptions { engine: choice, ..CreateOptions::new(SIZE) };
        let created = create(&path, &options).unwrap();
        assert_eq!((created.allocation.engine, created.size), (Some(kind), SIZE));
        assert_eq!(created.allocation.extents, extents::summarize_path(&path).unwrap());
        assert!(created.allocation.cost.elapsed_s > 0.0 && created.allocation.price.is_none());
        assert_eq!(fs::metadata(&path).unwrap().len(), SIZE.bytes());
        assert!(mark::is_set(&path));
        let verified = verify(&path, ZERO).unwrap();
        verified.verdict().unwrap();
        assert_eq!(verified.zero.unwrap().blocks_not_zero, 0);
        assert_eq!(scratch.names(), ["disk"]);
        if created.allocation.extents.gap().is_none() {
            assert!(
                created.allocation.extents.is_all_written() && created.allocation.missing.is_empty(),
                "{created:?}"
            );
        }
    }
}

#[test]
fn reserved_and_sparse_are_for_comparison_and_say_what_they_cost() {
    let scratch = Scratch::new();
    for (prealloc, price) in [(Prealloc::Reserved, "converts an extent"), (Prealloc::Sparse, "no space is set aside")] {
        let path = scratch.path(&prealloc.to_string());
        let created = create(&path, &CreateOptions { prealloc, ..CreateOptions::new(SIZE) }).unwrap();
        assert_eq!((created.allocation.method, created.allocation.engine), (None, None));
        assert!(created.allocation.price.unwrap().contains(price));
        if created.allocation.extents.gap().is_none() {
            let expected = if prealloc == Prealloc::Reserved {
                created.allocation.extents.unwritten
            } else {
                created.allocation.extents.hole
            };
            assert_eq!(expected, SIZE);
            let error = verify(&path, Checks::default()).unwrap().verdict().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::VerifyFailed);
            assert!(error.to_string().contains("not every block is written (9 MiB "), "{error}");
        }
    }
}

#[test]
fn what_is_there_is_replaced_only_when_forced() {
    let scratch = Scratch::new();
    let path = scratch.path("disk");
    fs::write(&path, "precious").unwrap();
    let error = create(&path, &CreateOptions::new(SIZE)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert_eq!(error.to_string(), format!("{} exists (8 B)", path.display()));
    assert!(error.hint().unwrap().contains("--force"));
    assert_eq!(fs::read(&path).unwrap(), b"precious");

    let link = scratch.path("link");
    symlink(&path, &link).unwrap();
    create(&link, &CreateOptions { force: true, ..CreateOptions::new(SIZE) }).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), SIZE.bytes());
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(scratch.names(), ["disk", "link"]);
}

/// Sets the flag when a phase has come halfway.
struct CancelHalfway<'a> {
    cancel: &'a Cancel,
    phase: &'static str,
    left: u64,
}

impl Progress for CancelHalfway<'_> {
    fn begin(&mut self, phase: &str, total_bytes: u64) {
        self.left = if phase == self.phase { total_bytes / 2 } else { u64::MAX };
    }
    fn advance(&mut self, bytes: u64) {
        self.left = self.left.saturating_sub(bytes);
        if self.left == 0 {
            self.cancel.cancel();
        }
    }
    fn end(&mut self) {}
}

#[test]
fn an_interrupted_creation_leaves_nothing() {
    let scratch = Scratch::new();
    let path = scratch.path("disk");
    for force in [false, true] {
        let cancel = Cancel::new();
        let mut progress = CancelHalfway { cancel: &cancel, phase: "writing", left: u64::MAX };
        let options = CreateOptions { force, ..CreateOptions::new(ByteSize::mib(200)) };
        let error = image::create(&path, &options, &mut progress, &cancel).unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string()),
            (ErrorKind::Interrupted, "writing zeroes: interrupted".to_owned())
        );
        let expected: &[&str] = if force { &["disk"] } else { &[] };
        assert_eq!(scratch.names(), expected);
        fs::write(&path, "precious").unwrap();
    }
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn what_cannot_be_an_image_is_refused_and_nothing_made() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("directory")).unwrap();
    symlink("nowhere", scratch.path("dangling")).unwrap();
    let force = CreateOptions { force: true, ..CreateOptions::new(SIZE) };
    for (name, kind, message) in [
        ("directory", ErrorKind::Refused, "directory is a directory: only a regular file can be replaced"),
        ("dangling", ErrorKind::Refused, "dangling is a link that leads to nothing"),
        ("missing/disk", ErrorKind::NotFound, "missing"),
        ("disk/", ErrorKind::InvalidInput, "disk/ is no name for a file"),
        ("..", ErrorKind::InvalidInput, ".. is no name for a file"),
    ] {
        let error = create(&scratch.path(name), &force).unwrap_err();
        assert_eq!(error.kind(), kind, "{error:?}");
        assert!(error.to_string().ends_with(message), "{error}");
    }
    let error = create(&scratch.path("missing/disk"), &force).unwrap_err();
    assert!(error.hint().unwrap().starts_with("make it first: mkdir -p "), "{error:?}");
    let error = create(Path::new("/dev/null"), &force).unwrap_err();
    assert_eq!(error.to_string(), "/dev/null is no regular file: only a regular file can be replaced");
    for bytes in [0, 4095, 5000] {
        let error = create(&scratch.path("disk"), &CreateOptions::new(ByteSize::new(bytes))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    assert_eq!(scratch.names(), ["dangling", "directory"]);
}

#[test]
fn too_little_space_is_seen_before_anything_is_made() {
    let scratch = Scratch::new();
    let error = create(&scratch.path("disk"), &CreateOptions::new(ByteSize::gib(1 << 20))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    let message = error.to_string();
    assert!(message.contains(": 1024 TiB and a margin of 1 GiB needed, ") && message.ends_with(" free"), "{message}");
    assert!(scratch.names().is_empty());
}

#[test]
fn a_size_beyond_the_file_system_is_refused() {
    let scratch = Scratch::new();
    let largest = ByteSize::new(i64::MAX as u64 / 4096 * 4096);
    let options = CreateOptions { prealloc: Prealloc::Sparse, ..CreateOptions::new(largest) };
    let error = create(&scratch.path("disk"), &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:?}");
    assert!(error.to_string().ends_with("its file system has no files so large"), "{error}");
    assert!(scratch.names().is_empty());
}

#[test]
fn leftovers_of_killed_runs_go_and_the_person_is_told() {
    let scratch = Scratch::new();
    let leftover = scratch.path(".old.onedisk-0123456789abcdef.partial");
    fs::write(&leftover, "half").unwrap();
    let created = create(&scratch.path("disk"), &CreateOptions::new(SIZE)).unwrap();
    let notice = format!("removed {}, which a run that was killed had left", leftover.display());
    assert!(created.allocation.notices.contains(&notice), "{:?}", created.allocation.notices);
    assert_eq!(scratch.names(), ["disk"]);
}

/// Takes all space that is left once a phase has begun, or has come halfway.
struct Hog {
    file: PathBuf,
    phase: &'static str,
    at_once: bool,
    armed: bool,
}

impl Hog {
    fn new(directory: &Path, phase: &'static str, at_once: bool) -> Self {
        Self { file: directory.join("hog"), phase, at_once, armed: false }
    }

    fn eat(&mut self) {
        self.armed = false;
        let mut file = File::create(&self.file).unwrap();
        while file.write_all(&[1; 65536]).is_ok() {}
        while file.write_all(&[1; 512]).is_ok() {}
        let _ = file.sync_all();
    }
}

impl Progress for Hog {
    fn begin(&mut self, phase: &str, _total_bytes: u64) {
        self.armed = phase == self.phase;
        if self.armed && self.at_once {
            self.eat();
        }
    }
    fn advance(&mut self, _bytes: u64) {
        if self.armed {
            self.eat();
        }
    }
    fn end(&mut self) {}
}

#[test]
fn a_file_system_that_runs_full_halfway_leaves_nothing() {
    tests::needs_root!();
    let scratch = Scratch::new();
    // Without extents there is no way to reserve, so it is the writes that fail.
    let options = ["-O", "^extent,^64bit,^has_journal", "-m", "0"];
    let disk = Mounted::ext4(128, &options, &scratch.path("ext4"), &scratch.path("mounted"));
    let path = disk.path().join("disk");
    let mut hog = Hog::new(disk.path(), "writing", false);
    let error = image::create(&path, &CreateOptions::new(ByteSize::mib(100)), &mut hog, &Cancel::new()).unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::NoSpace, Some(libc::ENOSPC)), "{error:?}");
    assert!(error.to_string().starts_with(&format!("{}: write of ", path.display())), "{error}");
    assert_eq!(names_in(disk.path()), ["hog", "lost+found"]);

    fs::remove_file(disk.path().join("hog")).unwrap();
    let created = create(&path, &CreateOptions::new(ByteSize::mib(100))).unwrap();
    assert!(created.allocation.extents.is_all_written() && created.allocation.missing.is_empty(), "{created:?}");
}

#[test]
fn space_that_goes_before_it_is_reserved_leaves_nothing() {
    tests::needs_root!();
    let scratch = Scratch::new();
    let disk = Mounted::new(&["-t", "tmpfs", "-o", "size=32M", "tmpfs"], &scratch.path("mounted"));
    let path = disk.path().join("disk");
    let mut hog = Hog::new(disk.path(), "reserving", true);
    let error = image::create(&path, &CreateOptions::new(ByteSize::mib(20)), &mut hog, &Cancel::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert_eq!(error.to_string(), format!("cannot reserve 20 MiB for {}", path.display()));
    assert_eq!(names_in(disk.path()), ["hog"]);
}

#[test]
fn where_a_guarantee_cannot_be_given_the_image_says_so() {
    tests::needs_root!();
    let scratch = Scratch::new();
    let has = |missing: &[String], what: &str| missing.iter().any(|missing| missing.contains(what));

    let tmpfs = Mounted::new(&["-t", "tmpfs", "tmpfs"], &scratch.path("tmpfs"));
    let ramfs = Mounted::new(&["-t", "ramfs", "ramfs"], &scratch.path("ramfs"));
    let [upper, work] = ["upper", "work"].map(|name| tmpfs.path().join(name));
    fs::create_dir_all(&upper).unwrap();
    fs::create_dir_all(&work).unwrap();
    fs::create_dir_all(scratch.path("lower")).unwrap();
    let layers =
        format!("lowerdir={},upperdir={},workdir={}", scratch.path("lower").display(), upper.display(), work.display());
    let overlay = Mounted::new(&["-t", "overlay", "-o", &layers, "overlay"], &scratch.path("overlay"));

    for (disk, has_direct, has_free_space) in [(&tmpfs, true, true), (&overlay, true, true), (&ramfs, false, false)] {
        let path = disk.path().join("disk");
        let created = create(&path, &CreateOptions::new(SIZE)).unwrap();
        assert!(has(&created.allocation.missing, "the file system has no FIEMAP"), "{created:?}");
        assert_eq!(has(&created.allocation.missing, "no direct I/O"), !has_direct, "{created:?}");
        assert_eq!(has(&created.allocation.missing, "does not tell how much space"), !has_free_space, "{created:?}");
        let expected = if has_direct { Method::DirectWrites } else { Method::CachedWrites };
        assert_eq!(created.allocation.method, Some(expected));
        let verified = verify(&path, ZERO).unwrap();
        verified.verdict().unwrap();
        assert!(has(&verified.missing, "no FIEMAP"));
        let grown = grow(&path, SIZE + SIZE).unwrap();
        assert_eq!((grown.size, grown.allocation.extents.size()), (SIZE + SIZE, SIZE));
        verify(&path, ZERO).unwrap().verdict().unwrap();
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_file_that_a_loop_device_uses_is_never_replaced() {
    tests::needs_root!();
    let scratch = Scratch::new();
    let (path, link) = (scratch.path("disk"), scratch.path("link"));
    create(&path, &CreateOptions::new(SIZE)).unwrap();
    symlink(&path, &link).unwrap();
    let attached = loopdev::attach(&path, &loopdev::Options::default()).unwrap();
    for name in [&path, &link] {
        let error = create(name, &CreateOptions { force: true, ..CreateOptions::new(SIZE) }).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        let device = attached.device().path.display();
        assert_eq!(error.to_string(), format!("{} is attached to {device}: it is never replaced", path.display()));
    }
    assert_eq!(scratch.names(), ["disk", "link"]);
}

#[test]
fn what_is_not_zero_is_found_and_named() {
    let scratch = Scratch::new();
    let path = scratch.path("disk");
    create(&path, &CreateOptions::new(SIZE)).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let places = [0, 4097, 1_048_575, SIZE.bytes() - 1];
    for place in places {
        file.write_all_at(&[7], place).unwrap();
    }
    file.sync_all().unwrap();
    for engine in [Choice::Uring, Choice::Threads] {
        let verified = image::verify(&path, &ZERO, engine, &mut Silent, &Cancel::new()).unwrap();
        let zero = verified.zero.as_ref().unwrap();
        assert_eq!((zero.blocks_not_zero, &*zero.first_offsets), (4, &places.map(ByteOffset::new)[..]));
        let error = verified.verdict().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::VerifyFailed);
        let text = "4 blocks of 4 KiB are not zero (at offset 0, 4097, 1048575, 9437183)";
        assert_eq!(error.to_string(), format!("{}: {text}", path.display()));
    }
}

#[test]
fn a_file_of_any_size_is_verified_to_its_last_byte() {
    let scratch = Scratch::new();
    let path = scratch.path("odd");
    fs::write(&path, vec![0; 1_048_576 + 4096 + 77]).unwrap();
    verify(&path, ZERO).unwrap().verdict().unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[1], 1_048_576 + 4096 + 76).unwrap();
    let zero = verify(&path, ZERO).unwrap().zero.unwrap();
    assert_eq!(zero.first_offsets, [ByteOffset::new(1_048_576 + 4096 + 76)]);

    let error = verify(&path, Checks { stamped: true, ..Checks::default() }).unwrap_err();
    assert!(error.to_string().ends_with("no whole number of 512-byte sectors: it cannot be stamped"), "{error}");
    for (path, message) in
        [("/dev/null", "/dev/null is neither a file nor a block device"), ("/nowhere", "cannot open /nowhere")]
    {
        assert_eq!(verify(Path::new(path), ZERO).unwrap_err().to_string(), message);
    }
}

#[test]
fn stamps_are_verified_and_faults_named() {
    let scratch = Scratch::new();
    let path = scratch.path("disk");
    create(&path, &CreateOptions::new(SIZE)).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let mut block = vec![0; 8192];
    for number in 0..100 {
        let offset = ByteOffset::new(number * 8192);
        stamp::write(&mut block, Stamp { seed: 5, offset, generation: 1 + number % 3 });
        file.write_all_at(&block, offset.bytes()).unwrap();
    }
    let checks = Checks { stamped: true, seed: Some(5), zero: false };
    let verified = verify(&path, checks).unwrap();
    verified.verdict().unwrap();
    assert_eq!(verified.stamps.unwrap().stamped, ByteSize::new(100 * 8192));

    file.write_all_at(&block, 200 * 8192).unwrap();
    stamp::write(&mut block, Stamp { seed: 5, offset: ByteOffset::ZERO, generation: 9 });
    file.write_all_at(&block[..4096], 0).unwrap();
    file.write_all_at(&[1], 8192 + 100).unwrap();
    let error = verify(&path, checks).unwrap().verdict().unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{}: 1 torn, 16 misdirected, 1 corrupt sectors (first: torn at offset 4096: the block is of two writes, which \
             meet there; corrupt at offset 8192: no sector that was ever written there; misdirected at offset 1638400: it \
             was written to offset 811008)",
            path.display()
        )
    );
}

#[test]
fn a_device_has_content_but_no_extents() {
    tests::needs_root!();
    let scratch = Scratch::new();
    let path = scratch.path("disk");
    create(&path, &CreateOptions::new(SIZE)).unwrap();
    let attached = loopdev::attach(&path, &loopdev::Options::default()).unwrap();
    let device = &attached.device().path;
    let verified = verify(device, ZERO).unwrap();
    verified.verdict().unwrap();
    assert_eq!((verified.size, verified.extents), (SIZE, None));
    let error = verify(device, Checks::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert_eq!(error.to_string(), format!("{} is a device and has no extents to look at", device.display()));
}

fn grow(path: &Path, size: ByteSize) -> Result<Grown> {
    let options = GrowOptions { size, prealloc: Prealloc::Written, engine: Choice::Auto };
    image::grow(path, &options, &mut Silent, &Cancel::new())
}

#[test]
fn an_image_grows_where_it_is_and_its_device_sees_it() {
    tests::needs_root!();
    let scratch = Scratch::new();
    let path = scratch.path("disk");
    create(&path, &CreateOptions::new(SIZE)).unwrap();
    let attached = loopdev::attach(&path, &loopdev::Options::default()).unwrap();
    let device = File::options().write(true).open(&attached.device().path).unwrap();
    device.write_all_at(b"data", 4096).unwrap();
    device.sync_all().unwrap();
    let larger = ByteSize::mib(20);
    let grown = grow(&path, larger).unwrap();
    assert_eq!((grown.size_before, grown.size, grown.allocation.extents.size()), (SIZE, larger, larger - SIZE));
    assert_eq!(grown.devices.len(), 1);
    assert_eq!((&grown.devices[0].path, grown.devices[0].size), (&attached.device().path, larger));
    let file = File::open(&path).unwrap();
    assert_eq!(image::unfinished_grow(&file).unwrap(), None);
    if grown.allocation.extents.gap().is_none() {
        assert!(extents::summarize(&file, &path).unwrap().is_all_written());
    }
    let zero = verify(&path, ZERO).unwrap().zero.unwrap();
    assert_eq!(zero.first_offsets, [ByteOffset::new(4096)]);

    // Once more is no harm, and lets a device see a size that it missed.
    let again = grow(&path, larger).unwrap();
    assert_eq!((again.size_before, again.size, again.allocation.method), (larger, larger, None));
    let error = grow(&path, SIZE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert_eq!(error.to_string(), format!("{} cannot shrink to 9 MiB: it has 20 MiB", path.display()));
}

#[test]
fn what_cannot_grow_is_refused() {
    let scratch = Scratch::new();
    let path = scratch.path("disk");
    create(&path, &CreateOptions::new(SIZE)).unwrap();
    for (path, size, kind, message) in [
        (scratch.0.path(), SIZE, ErrorKind::InvalidInput, "is no regular file: it cannot grow"),
        (Path::new("/dev/null"), SIZE, ErrorKind::InvalidInput, "is no regular file: it cannot grow"),
        (Path::new("/nowhere"), SIZE, ErrorKind::NotFound, "cannot open /nowhere to grow it"),
        (&path, ByteSize::new(10_000_001), ErrorKind::InvalidInput, "must be a multiple of 4 KiB"),
        (&path, ByteSize::gib(1 << 20), ErrorKind::NoSpace, " and a margin of 1 GiB needed, "),
    ] {
        let error = grow(path, size).unwrap_err();
        assert_eq!(error.kind(), kind, "{error:?}");
        assert!(error.to_string().contains(message), "{error}");
    }
    assert_eq!(fs::metadata(&path).unwrap().len(), SIZE.bytes());
}

#[test]
fn an_interrupted_grow_leaves_the_image_as_it_was() {
    let scratch = Scratch::new();
    let path = scratch.path("disk");
    create(&path, &CreateOptions::new(SIZE)).unwrap();
    let before = extents::summarize_path(&path).unwrap();
    let cancel = Cancel::new();
    let mut progress = CancelHalfway { cancel: &cancel, phase: "writing", left: u64::MAX };
    let options = GrowOptions { size: ByteSize::mib(200), prealloc: Prealloc::Written, engine: Choice::Auto };
    let error = image::grow(&path, &options, &mut progress, &cancel).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    assert_eq!(extents::summarize_path(&path).unwrap(), before);
    assert_eq!(image::unfinished_grow(&File::open(&path).unwrap()).unwrap(), None);
    verify(&path, ZERO).unwrap().verdict().unwrap();
}

/// Brings the image into the state that a kill during a grow to `size` leaves: marked, large, and not all written.
fn kill_while_growing(path: &Path, before: ByteSize, size: ByteSize) -> bool {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(size.bytes()).unwrap();
    let value = before.bytes().to_string();
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    let name = c"user.onedisk.growing";
    // SAFETY: both strings end in a NUL, the value is as long as said.
    unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) == 0 }
}

#[test]
fn a_killed_grow_is_recognised_and_finished_without_harm_to_what_is_there() {
    let scratch = Scratch::new();
    let path = scratch.path("disk");
    create(&path, &CreateOptions::new(SIZE)).unwrap();
    let larger = ByteSize::mib(32);
    if !kill_while_growing(&path, SIZE, larger) {
        return tests::skip("a killed grow", "the file system below target/ has no extended attributes");
    }
    // Somebody used the space before it was finished.
    let place = ByteSize::mib(16).bytes();
    OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[7; 4096], place).unwrap();

    let error = verify(&path, Checks::default()).unwrap().verdict().unwrap_err();
    assert!(error.to_string().contains("growing it from 9 MiB is not finished"), "{error}");
    let error = loopdev::attach(&path, &loopdev::Options::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(
        error.hint().unwrap().ends_with(&format!("vdisk grow {} --size {}", path.display(), larger.bytes())),
        "{error:?}"
    );
    let error = grow(&path, ByteSize::mib(20)).unwrap_err();
    assert!(error.to_string().ends_with("it has 32 MiB, and a grow to that size is to be finished first"), "{error}");

    let grown = grow(&path, larger + SIZE).unwrap();
    assert_eq!((grown.size_before, grown.size), (SIZE, larger + SIZE));
    assert_eq!(grown.allocation.notices[0], "finished what an earlier run had begun, when the image had 9 MiB");
    let verified = verify(&path, ZERO).unwrap();
    assert_eq!(verified.zero.unwrap().first_offsets, [ByteOffset::new(place)]);
    assert_eq!(verified.unfinished_grow_from, None);
    if grown.allocation.extents.gap().is_none() {
        assert!(grown.allocation.extents.is_all_written());
    }
}

#[test]
fn a_device_that_shows_an_unfinished_part_keeps_it_from_being_finished() {
    tests::needs_root!();
    let scratch = Scratch::new();
    let path = scratch.path("disk");
    create(&path, &CreateOptions::new(SIZE)).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(ByteSize::mib(16).bytes()).unwrap();
    let attached = loopdev::attach(&path, &loopdev::Options::default()).unwrap();
    assert!(kill_while_growing(&path, SIZE, ByteSize::mib(32)));
    let error = grow(&path, ByteSize::mib(32)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    let device = attached.device().path.display().to_string();
    assert!(error.to_string().ends_with(&format!("{device} shows the unfinished part")), "{error}");
}

#[test]
fn only_one_works_on_an_image_at_a_time() {
    let scratch = Scratch::new();
    let path = scratch.path("disk");
    create(&path, &CreateOptions::new(SIZE)).unwrap();
    let file = File::open(&path).unwrap();
    let _lock = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive).unwrap();
    let error = grow(&path, SIZE + SIZE).unwrap_err();
    assert_eq!(error.to_string(), format!("another program holds a lock on {}", path.display()));
    assert_eq!(fs::metadata(&path).unwrap().len(), SIZE.bytes());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn growing_keeps_every_byte_and_adds_zeroes(old in 0usize..3_000_000, more in 1u64..1000, threads: bool) {
        let scratch = Scratch::new();
        let path = scratch.path("disk");
        // A file of any size, not only one that onedisk made.
        let mut expected: Vec<u8> = (0..old).map(|at| u8::try_from(at % 251).unwrap() + 1).collect();
        fs::write(&path, &expected).unwrap();
        let size = ByteSize::new((old as u64).next_multiple_of(4096) + (more - 1) * 4096);
        prop_assume!(size > ByteSize::ZERO);
        let engine = if threads { Choice::Threads } else { Choice::Uring };
        let options = GrowOptions { size, prealloc: Prealloc::Written, engine };
        let grown = image::grow(&path, &options, &mut Silent, &Cancel::new()).unwrap();
        expected.resize(size.to_usize().unwrap(), 0);
        prop_assert!(fs::read(&path).unwrap() == expected);
        prop_assert_eq!(grown.size_before.bytes(), old as u64);
        prop_assert!(grown.allocation.extents.gap().is_some() || grown.allocation.extents.is_all_written());
    }
}
