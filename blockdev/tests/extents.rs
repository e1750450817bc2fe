//! Extents of real files, against what was done to them.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use blockdev::extents::{self, Extents, Source, State, Summary};
use blockdev::{ByteOffset, ByteRange, ByteSize, ErrorKind};
use proptest::prelude::*;

const BLOCK: u64 = 64 << 10;

struct Scratch {
    file: File,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Scratch {
    fn below(parent: &Path) -> Self {
        let dir = tempfile::tempdir_in(parent).unwrap();
        let path = dir.path().join("disk");
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        Self { file, path, _dir: dir }
    }

    fn new() -> Self {
        Self::below(Path::new(env!("CARGO_TARGET_TMPDIR")))
    }

    /// Brings each block of 64 KiB into its state.
    fn lay(&self, blocks: &[State]) {
        self.file.set_len(blocks.len() as u64 * BLOCK).unwrap();
        for (index, state) in (0u64..).zip(blocks) {
            let offset = index * BLOCK;
            match state {
                State::Hole => {}
                State::Unwritten => {
                    let (offset, len) = (i64::try_from(offset).unwrap(), i64::try_from(BLOCK).unwrap());
                    // SAFETY: takes no pointer.
                    assert_eq!(unsafe { libc::fallocate(self.file.as_raw_fd(), 0, offset, len) }, 0);
                }
                State::Written => {
                    self.file.write_all_at(&vec![1; usize::try_from(BLOCK).unwrap()], offset).unwrap();
                    // Not left to delayed allocation, which would lay neighbours in one go.
                    self.file.sync_data().unwrap();
                }
                _ => unreachable!("not made here"),
            }
        }
    }

    fn summary(&self) -> Summary {
        extents::summarize(&self.file, &self.path).unwrap()
    }

    fn has_fiemap(&self) -> bool {
        self.summary().source == Source::Fiemap
    }

    /// A scratch file where FIEMAP works, or nothing, loudly.
    fn with_fiemap(test: &str) -> Option<Self> {
        let scratch = Self::new();
        if !scratch.has_fiemap() {
            tests::skip(test, "the file system below target/ has no FIEMAP");
            return None;
        }
        Some(scratch)
    }
}

fn size_of(blocks: &[State], state: State) -> ByteSize {
    ByteSize::new(blocks.iter().filter(|block| **block == state).count() as u64 * BLOCK)
}

#[test]
fn an_empty_file_has_no_extents() {
    let summary = Scratch::new().summary();
    assert_eq!((summary.size(), summary.extents), (ByteSize::ZERO, 0));
    assert!(summary.is_all_written());
    assert_eq!(summary.to_string(), "nothing in 0 extents");
}

#[test]
fn states_are_told_apart() {
    let Some(disk) = Scratch::with_fiemap("states_are_told_apart") else { return };
    disk.lay(&[State::Written, State::Unwritten, State::Hole, State::Written]);
    let summary = disk.summary();
    assert_eq!(summary.written, ByteSize::kib(128));
    assert_eq!(summary.unwritten, ByteSize::kib(64));
    assert_eq!(summary.hole, ByteSize::kib(64));
    assert_eq!(summary.not_on_disk(), ByteSize::kib(128));
    assert_eq!(summary.extents, 3);
    assert!(!summary.is_all_written());
    assert_eq!(summary.gap(), None);
    assert_eq!(summary.to_string(), "64 KiB hole, 64 KiB unwritten, 128 KiB written in 3 extents");

    let middle = ByteRange::new(ByteOffset::new(BLOCK / 2), ByteSize::new(2 * BLOCK)).unwrap();
    let found: Vec<(u64, u64, State)> = Extents::of(&disk.file, &disk.path, middle)
        .unwrap()
        .map(|extent| extent.unwrap())
        .map(|extent| (extent.range.start.bytes(), extent.range.len.bytes(), extent.state))
        .collect();
    let half = BLOCK / 2;
    assert_eq!(found, [(half, half, State::Written), (BLOCK, BLOCK, State::Unwritten), (2 * BLOCK, half, State::Hole)]);
}

#[test]
fn more_extents_than_fit_one_answer() {
    let Some(disk) = Scratch::with_fiemap("more_extents_than_fit_one_answer") else { return };
    // 4 KiB of data every 8 KiB: 700 extents, three answers.
    disk.file.set_len(700 * 8192).unwrap();
    for index in 0..700 {
        disk.file.write_all_at(&[1; 4096], index * 8192).unwrap();
    }
    let summary = disk.summary();
    assert_eq!(summary.extents, 700);
    assert_eq!((summary.written, summary.hole), (ByteSize::new(700 * 4096), ByteSize::new(700 * 4096)));
}

#[test]
fn data_still_in_memory_is_written_out_first() {
    let Some(disk) = Scratch::with_fiemap("data_still_in_memory_is_written_out_first") else { return };
    disk.file.write_all_at(&[1; 1 << 20], 0).unwrap();
    assert_eq!(disk.summary().delalloc, ByteSize::ZERO);
    assert!(disk.summary().is_all_written());
}

#[test]
fn without_fiemap_holes_are_known_and_the_rest_is_not() {
    // /dev/shm is a tmpfs wherever there is one.
    let disk = Scratch::below(Path::new("/dev/shm"));
    assert!(!disk.has_fiemap(), "tmpfs has no FIEMAP");
    disk.lay(&[State::Written, State::Hole, State::Hole, State::Written, State::Hole]);
    let summary = disk.summary();
    assert_eq!((summary.unknown, summary.hole), (ByteSize::kib(128), ByteSize::kib(192)));
    assert!(!summary.is_all_written());
    assert!(summary.gap().unwrap().contains("no FIEMAP"));
}

#[test]
fn only_regular_files_have_extents() {
    let null = Path::new("/dev/null");
    let error = extents::summarize_path(null).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert_eq!(error.to_string(), "/dev/null is no regular file: only regular files have extents");
    let error = extents::summarize_path(Path::new("/nowhere")).unwrap_err();
    assert_eq!((error.kind(), error.to_string()), (ErrorKind::NotFound, "cannot open /nowhere".to_owned()));
}

#[test]
fn a_summary_survives_json() {
    let disk = Scratch::new();
    disk.lay(&[State::Written, State::Hole]);
    let summary = disk.summary();
    let json = serde_json::to_string(&summary).unwrap();
    assert!(json.contains("\"hole\":65536"), "{json}");
    assert_eq!(serde_json::from_str::<Summary>(&json).unwrap(), summary);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn extents_cover_the_file_and_agree_with_what_was_done(
        blocks in prop::collection::vec(prop::sample::select(vec![State::Hole, State::Unwritten, State::Written]), 0..24),
        in_memory: bool,
    ) {
        let disk = if in_memory { Scratch::below(Path::new("/dev/shm")) } else { Scratch::new() };
        let fiemap = disk.has_fiemap();
        disk.lay(&blocks);
        let summary = disk.summary();
        prop_assert_eq!(summary.size().bytes(), blocks.len() as u64 * BLOCK);
        if fiemap {
            for state in [State::Hole, State::Unwritten, State::Written] {
                let bytes = summary.states().into_iter().find(|(of, _)| *of == state).unwrap().1;
                prop_assert_eq!(bytes, size_of(&blocks, state), "{}", state);
            }
        } else {
            prop_assert!(summary.unknown >= size_of(&blocks, State::Written));
            prop_assert!(summary.hole >= size_of(&blocks, State::Hole));
        }
        let whole = ByteRange::from_start(summary.size());
        let mut next = ByteOffset::ZERO;
        for extent in Extents::of(&disk.file, &disk.path, whole).unwrap() {
            let extent = extent.unwrap();
            prop_assert_eq!(extent.range.start, next);
            prop_assert!(!extent.range.is_empty());
            next = extent.range.end();
        }
        prop_assert_eq!(next, whole.end());
    }
}
