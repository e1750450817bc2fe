//! Images on real file systems: made whole or not at all.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs;
use std::path::{Path, PathBuf};

use blockdev::engine::{Choice, Kind};
use blockdev::image::{self, Checks, CreateOptions, Created, Prealloc, Verified};
use blockdev::ui::{Progress, Silent};
use blockdev::{ByteSize, Cancel, ErrorKind, Result, extents, mark};

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

fn names_in(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
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
        assert_eq!((created.engine, created.size), (Some(kind), SIZE));
        assert_eq!(created.extents, extents::summarize_path(&path).unwrap());
        assert!(created.cost.elapsed_s > 0.0 && created.price.is_none());
        assert_eq!(fs::metadata(&path).unwrap().len(), SIZE.bytes());
        assert!(mark::is_set(&path));
        let verified = verify(&path, ZERO).unwrap();
        verified.verdict().unwrap();
        assert_eq!(verified.zero.unwrap().blocks_not_zero, 0);
        assert_eq!(scratch.names(), ["disk"]);
        if created.extents.gap().is_none() {
            assert!(created.extents.is_all_written() && created.missing.is_empty(), "{created:?}");
        }
    }
}

#[test]
fn reserved_and_sparse_are_for_comparison_and_say_what_they_cost() {
    let scratch = Scratch::new();
    for (prealloc, price) in [(Prealloc::Reserved, "converts an extent"), (Prealloc::Sparse, "no space is set aside")] {
        let path = scratch.path(&prealloc.to_string());
        let created = create(&path, &CreateOptions { prealloc, ..CreateOptions::new(SIZE) }).unwrap();
        assert_eq!((created.method, created.engine), (None, None));
        assert!(created.price.unwrap().contains(price));
        if created.extents.gap().is_none() {
            let expected =
                if prealloc == Prealloc::Reserved { created.extents.unwritten } else { created.extents.hole };
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
    std::os::unix::fs::symlink(&path, &link).unwrap();
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
