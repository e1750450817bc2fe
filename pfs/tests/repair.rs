//! What is mended without guessing, and what is left alone.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use blockdev::{Cancel, ErrorKind};
use common::image::{INODE, Image};
use pfs::check::{Repaired, check, repair};
use pfs::diff::Diff;
use pfs::format::{ChunkId, OBJECT_SIZE};
use pfs::volume::{Device, Lease, LeaseOptions, Volume};

const CHUNK: u64 = 10 << 30;

fn mend(path: &Path) -> Repaired {
    repair(path, &LeaseOptions::default(), &Cancel::new()).unwrap()
}

fn findings(path: &Path) -> Vec<String> {
    let report = check(&mut Device::open(path).unwrap()).unwrap();
    report.findings.iter().map(|finding| finding.what.to_string()).collect()
}

fn same_content(one: &Path, other: &Path) {
    let open = |path: &Path| Volume::open(path).unwrap();
    let found = Diff { times: true, objects: false }.compare(&mut open(one), &mut open(other), &Cancel::new()).unwrap();
    assert_eq!(found, []);
}

fn bytes(path: &Path) -> Vec<u8> {
    let mut bytes = vec![0; 10 << 20];
    File::open(path).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn headers_are_written_anew() {
    let (path, _directory) = common::copy("grown-20g");
    let sector = |at| {
        let mut sector = [0; 4096];
        File::open(&path).unwrap().read_exact_at(&mut sector, at).unwrap();
        sector
    };
    let original = sector(CHUNK);
    // Damaged; and as growing that was interrupted leaves it.
    for (at, byte) in [(CHUNK + 8, 1), (CHUNK + 40, 3)] {
        OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[byte], at).unwrap();
        assert!(!findings(&path).is_empty());
        let expected = Repaired { headers: vec![ChunkId::new(1).unwrap()], ..Repaired::default() };
        assert_eq!(mend(&path), expected);
        assert_eq!(sector(CHUNK), original);
        assert_eq!(findings(&path), [""; 0]);
    }
    assert_eq!(mend(&path), Repaired::default());
}

#[test]
fn what_was_removed_is_freed() {
    let (path, _directory) = common::copy("dirty-10g");
    let [orphan] = &findings(&path)[..] else { panic!("one finding") };
    assert!(orphan.contains("in_nlink: 0: it was removed"), "{orphan}");
    let output = Command::new(env!("CARGO_BIN_EXE_pfs")).args(["check", "--repair"]).arg(&path).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.starts_with("mended: inode ") && said.ends_with(", which was removed, is freed\n"), "{said}");
    assert_eq!(findings(&path), [""; 0]);
    same_content(&path, &common::image("dirty-10g"));
}

#[test]
fn sectors_are_mended_from_the_journal() {
    let mut image = Image::of("tree-10g");
    // An object that the journal has: that of a file which was made since.
    let inode = image.inode("sizes/s1");
    image.patch::<OBJECT_SIZE>(INODE + inode * OBJECT_SIZE as u64, &[(80, &[1])], None);
    assert!(findings(&image.path)[0].contains("the journal holds a good copy"));
    assert_eq!(mend(&image.path), Repaired { rewritten: 1, ..Repaired::default() });
    assert_eq!(findings(&image.path), [""; 0]);
    same_content(&image.path, &common::image("tree-10g"));
}

/// A file whose list of blocks is not as long as it says.
fn wrong_count(image: &mut Image) {
    let inode = image.inode("sizes/s4194305");
    image.object(INODE, inode, &[(64, &77u64.to_le_bytes())]);
}

#[test]
fn what_would_have_to_be_guessed_is_left_alone() {
    for (name, damage) in [
        ("tree-10g-flushed", wrong_count as fn(&mut Image)),
        ("tree-10g", |image: &mut Image| image.entry(1000, 128, &5000u64.to_le_bytes())),
    ] {
        let mut image = Image::of(name);
        damage(&mut image);
        let (before, found) = (bytes(&image.path), findings(&image.path));
        assert_eq!(mend(&image.path), Repaired { damage_left: true, ..Repaired::default() });
        assert!(bytes(&image.path) == before, "{name}");
        assert_eq!(findings(&image.path), found);
        let output =
            Command::new(env!("CARGO_BIN_EXE_pfs")).args(["check", "--repair"]).arg(&image.path).output().unwrap();
        assert_eq!(output.status.code(), Some(5));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.starts_with("what is left cannot be mended without guessing\n"), "{said}");
    }
}

#[test]
fn a_volume_that_is_written_is_not_repaired() {
    let (path, _directory) = common::copy("dirty-10g");
    let lease = Lease::take(&path, &LeaseOptions::default(), &Cancel::new()).unwrap();
    let before = findings(&path);
    let error = repair(&path, &LeaseOptions::default(), &Cancel::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert_eq!(findings(&path), before);
    drop(lease);
    assert_eq!(mend(&path).freed.len(), 1);
    assert_eq!(mend(&path), Repaired::default());
}
