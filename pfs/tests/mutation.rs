//! Volumes damaged at random: whatever the bytes, reading ends, in a value or an error; and what a check finds sound can
//! all be read.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;

use std::cell::RefCell;

use common::image::{BLKTAG, DIRENTRY, INODE, Image, JOURNAL, Shows, used};
use pfs::check::check;
use pfs::format::{ENTRY_SIZE, OBJECT_SIZE};
use pfs::volume::{Device, Volume};
use proptest::prelude::*;

/// A change of some bytes.
#[derive(Debug, Clone)]
enum Change {
    /// One word of an object, with its checksum put right or not.
    Object { set: u64, number: u64, word: usize, value: u64, right: bool },
    /// One object in place of another of its kind.
    Move { set: u64, from: u64, to: u64, right: bool },
    /// One word of the leader record.
    Leader { word: usize, value: u64 },
    /// One word of an entry of the journal.
    Entry { index: u64, word: usize, value: u64, right: bool },
    /// Any byte of the metadata.
    Byte { at: u64, value: u8 },
}

/// Numbers that mean something: counts, objects, offsets, and what is beside them.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0u64..8,
        8 => 0u64..450,
        2 => Just(u64::MAX),
        1 => prop::sample::select(vec![1 << 12, 1 << 22, 1 << 40, 1 << 62, 1 << 63, 2560, 4095, 4194304]),
        1 => any::<u64>(),
    ]
}

fn change(entries: u64) -> impl Strategy<Value = Change> {
    let set = prop::sample::select(vec![BLKTAG, DIRENTRY, INODE]);
    // The first few hundred of each kind are used.
    let number = prop_oneof![9 => 0u64..450, 1 => 0u64..2048];
    let right = prop::bool::weighted(0.9);
    prop_oneof![
        10 => (set.clone(), number.clone(), 0usize..16, value(), right)
            .prop_map(|(set, number, word, value, right)| Change::Object { set, number, word, value, right }),
        2 => (set, number.clone(), number, right).prop_map(|(set, from, to, right)| Change::Move { set, from, to, right }),
        1 => (0usize..32, value()).prop_map(|(word, value)| Change::Leader { word, value }),
        entries.min(1) as u32 => (0..entries.max(1), 0usize..32, value(), right)
            .prop_map(|(index, word, value, right)| Change::Entry { index, word, value, right }),
        1 => (0u64..0xd_1000, any::<u8>()).prop_map(|(at, value)| Change::Byte { at, value }),
    ]
}

fn apply(image: &mut Image, change: &Change) {
    let place = |set: u64, number: u64| set + number * OBJECT_SIZE as u64;
    match *change {
        Change::Object { set, number, word, value, right } => {
            let part = (word * 8, value.to_le_bytes());
            image.patch::<OBJECT_SIZE>(place(set, number), &[(part.0, &part.1)], right.then_some(36));
        }
        Change::Move { set, from, to, right } => {
            let bytes: [u8; OBJECT_SIZE] = image.read(place(set, from));
            // With the number of the place where it goes.
            let number = to.to_le_bytes();
            image.patch::<OBJECT_SIZE>(place(set, to), &[(0, &bytes), (0, &number)], right.then_some(36));
        }
        Change::Leader { word, value } => image.leader(word * 8, &value.to_le_bytes()),
        Change::Entry { index, word, value, right } => {
            let at = JOURNAL + index * ENTRY_SIZE as u64;
            if word < OBJECT_SIZE / 8 {
                image.patch::<OBJECT_SIZE>(at, &[(word * 8, &value.to_le_bytes())], Some(36));
            } else {
                image.patch::<ENTRY_SIZE>(at, &[(word * 8, &value.to_le_bytes())], None);
            }
            image.patch::<ENTRY_SIZE>(at, &[], right.then_some(156));
        }
        Change::Byte { at, value } => image.write(at, &[value]),
    }
}

fn survives(base: &str, entries: u64) {
    let image = RefCell::new(Image::of(base));
    let changes = prop::collection::vec(change(entries), 1..4);
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(changes in changes)| {
        let mut image = image.borrow_mut();
        // What is done is undone even where the test fails: the next, simpler case starts anew.
        image.mend();
        for change in &changes {
            apply(&mut image, change);
        }
        let (shows, problem) = used(&image, 0);
        match check(&mut Device::open(&image.path).unwrap()) {
            Ok(report) => {
                let sound = report.complete && report.damages() == 0;
                prop_assert!(!sound || shows == Shows::Checking, "found sound, but: {problem}");
                prop_assert!(report.complete || shows == Shows::Opening, "cannot be checked, but opened: {:?}", report.findings);
            }
            Err(error) => prop_assert_eq!(shows, Shows::Opening, "not checked: {}", error),
        }
        if let Ok(mut volume) = Volume::open(&image.path) {
            prop_assert!(!volume.refresh().unwrap());
        }
    });
}

#[test]
fn a_volume_whose_sectors_are_damaged() {
    survives("tree-10g-flushed", 0);
}

#[test]
fn a_volume_whose_journal_is_damaged() {
    survives("tree-10g", 3113);
}
