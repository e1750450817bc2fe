//! The fuzz targets' bodies on random bytes, as long as a test may take. `pfs/fuzz` looks for hours, and with a plan.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;

use common::asked::Asked;
use common::fuzz;
use proptest::prelude::*;

/// Bytes most of which are nothing, as in real structures.
fn sparse(len: usize) -> impl Strategy<Value = Vec<u8>> {
    let word = (0..len / 8, prop_oneof![4 => 0u64..16, 4 => 0u64..5000, 1 => Just(u64::MAX), 1 => any::<u64>()]);
    prop::collection::vec(word, 0..12).prop_map(move |words| {
        let mut bytes = vec![0; len];
        for (at, value) in words {
            bytes[at * 8..at * 8 + 8].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    })
}

proptest! {
    #[test]
    fn structures(bytes in sparse(264), noise in prop::collection::vec(any::<u8>(), 0..300)) {
        for data in [bytes, noise] {
            fuzz::header(&data);
            fuzz::object(&data);
            fuzz::journal(&data);
            fuzz::leader(&data);
        }
    }
}

/// A slot: mostly a request that there is, with fields of any size.
fn slot() -> impl Strategy<Value = Vec<u8>> {
    (0u8..7, 0i32..20, sparse(544), prop::collection::vec(any::<u8>(), 0..6000)).prop_map(
        |(region, number, mut records, text)| {
            records[4..8].copy_from_slice(&number.to_le_bytes());
            // The errno of the answer: none, so that what else it says is looked at.
            records[260..264].fill(0);
            [vec![region], records, text].concat()
        },
    )
}

#[test]
fn shared_memory() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let memory = fuzz::SharedMemory::new(directory.path());
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(sensible in slot(), noise in prop::collection::vec(any::<u8>(), 0..1000))| {
        memory.slot(&sensible);
        memory.slot(&noise);
        fuzz::handshake(&noise);
    });
}

#[test]
fn requests() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let asked = Asked::new(directory.path());
    let config = ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(data in prop::collection::vec(any::<u8>(), 0..240))| asked.ask(&data));
}

#[test]
fn volumes() {
    for name in ["tree-10g", "tree-10g-flushed"] {
        let (path, _directory) = common::copy(name);
        let victim = fuzz::Victim::new(&path);
        let config = ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() };
        proptest!(config, |(data in prop::collection::vec(any::<u8>(), 0..72))| victim.volume(&data));
    }
}
