//! The mark on files that onedisk made.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs::{self, File};

use blockdev::mark;

#[test]
fn a_marked_file_is_known_after_a_rename_and_its_neighbour_is_not() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (ours, renamed, other) = (dir.path().join("ours"), dir.path().join("renamed"), dir.path().join("other"));
    mark::set(&File::create(&ours).unwrap()).unwrap();
    File::create(&other).unwrap();
    assert!(mark::is_set(&ours));
    fs::rename(&ours, &renamed).unwrap();
    assert!(mark::is_set(&renamed));
    assert!(!mark::is_set(&ours), "nothing is there any more");
    assert!(!mark::is_set(&other));
}
