//! Writing volumes: the same work as the original's leads to the same objects, transaction by transaction.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;

use common::script;
use common::{clean, transactions};
use pfs::format::{Direntry, DirentryState, NamePiece, Object};
use pfs::volume::writer::{Options, Writer};

/// Plays the script of a volume on what it was before, and compares what that does with what the original did. The first
/// thing that the script does is to make something called `first`.
fn same_transactions(name: &str, first: &str) {
    let script = String::from_utf8(common::recorded(name, "script.fx").unwrap()).unwrap();
    let expected = transactions(&common::image(name));
    let makes = |transaction: &Vec<Object>| match &transaction[0] {
        Object::Direntry(Direntry { state: DirentryState::Head(head), .. }) => {
            head.name == NamePiece::new(first.as_bytes())
        }
        _ => false,
    };
    let began = expected.iter().position(makes).unwrap();
    let (image, _directory) = common::copy(name);
    common::rewind(&image, began as u64);
    let writer = Writer::open(&image, Options { keep_orphans: true, ..Options::default() }).unwrap();
    let mut content = writer.content().unwrap();
    for line in script.lines() {
        // What the original could not do is not done either.
        let _ = script::play(&writer, &mut content, line);
    }
    drop(content);
    writer.close().unwrap();
    clean(&image);
    let found = transactions(&image);
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert!(found == expected, "{name}: transaction {}: {found:#?} instead of {expected:#?}", index + 1);
    }
    assert_eq!(found.len(), expected.len());
}

#[test]
fn the_same_work_is_the_same_transactions() {
    same_transactions("tree-10g", "deep");
}

#[test]
fn the_same_work_on_two_chunks_is_the_same_transactions() {
    same_transactions("grown-20g", "after");
}
