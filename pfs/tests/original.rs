//! Everything that the original says of its volumes, said by ours: the same bytes, the same exit codes.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

/// A command, what it printed and how it ended.
struct Recorded {
    command: String,
    output: Vec<u8>,
    code: i32,
}

fn recordings(text: &[u8]) -> Vec<Recorded> {
    let mut recordings: Vec<Recorded> = Vec::new();
    let mut fresh = false;
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        if let Some(command) = line.strip_prefix(b"# pfs ") {
            let command = String::from_utf8(command.trim_ascii_end().to_vec()).unwrap();
            recordings.push(Recorded { command, output: Vec::new(), code: 0 });
            fresh = true;
            continue;
        }
        let last = recordings.last_mut().unwrap();
        match line.strip_prefix(b"# rc=") {
            Some(code) if fresh => last.code = String::from_utf8_lossy(code).trim().parse().unwrap(),
            _ => last.output.extend(line),
        }
        fresh = false;
    }
    recordings
}

/// The words of a command line, of which some stand in single quotes.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (index, part) in line.split('\'').enumerate() {
        if index % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}

fn same(name: &str) {
    let disks = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    symlink(common::image(name), disks.path().join("PBD")).unwrap();
    let mut count = 0;
    for file in [
        "ls", "tree", "tree-v", "stat", "du", "info", "dumpfs", "dumpfs-m", "map", "usedinfo", "dumple-t", "dumple",
        "dumple-a",
    ] {
        let Some(text) = common::recorded(name, &format!("{file}.txt")) else { continue };
        for recorded in recordings(&text) {
            let found = run(&recorded.command, disks.path());
            let what = format!("{name}: {}", recorded.command);
            if found.stdout != recorded.output {
                let (found, expected) =
                    (String::from_utf8_lossy(&found.stdout), String::from_utf8_lossy(&recorded.output));
                let line = found.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
                panic!("{what}: {} bytes instead of {}; first other line: {line:?}", found.len(), expected.len());
            }
            assert_eq!(found.status.code(), Some(recorded.code), "{what}");
            count += 1;
        }
    }
    assert!(count > 20, "{name} has only {count} recordings");
}

fn run(command: &str, disks: &Path) -> std::process::Output {
    let mut words = words(command);
    // Disks are links to images in a directory of ours, not devices.
    let at = words.iter().position(|word| word == "-E").unwrap();
    words.splice(at..at, ["--devices".to_owned(), disks.to_str().unwrap().to_owned()]);
    Command::new(env!("CARGO_BIN_EXE_pfs")).args(words).env("TZ", "UTC").output().unwrap()
}

macro_rules! each {
    ($($test:ident $name:literal)*) => {
        $(#[test]
        fn $test() {
            same($name);
        })*

        #[test]
        fn none_is_left_out() {
            assert_eq!([$($name),*].len(), common::ALL.len());
        }
    };
}

each! {
    fresh_10g "fresh-10g"
    fresh_20g "fresh-20g-default"
    tree_10g "tree-10g"
    tree_flushed "tree-10g-flushed"
    dirty_10g "dirty-10g"
    wrap_10g "wrap-10g"
    grown_20g "grown-20g"
    full_10g "full-10g"
}
