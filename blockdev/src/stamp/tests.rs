//! Each fault is injected and must be named.

use proptest::prelude::*;

use super::*;

const BLOCK: usize = 8192;
const SEED: u64 = 42;

fn stamped(offset: u64, generation: u64) -> Vec<u8> {
    stamped_by(SEED, offset, generation)
}

fn stamped_by(seed: u64, offset: u64, generation: u64) -> Vec<u8> {
    let mut block = vec![0xee; BLOCK];
    write(&mut block, Stamp { seed, offset: ByteOffset::new(offset), generation });
    block
}

fn expected(offset: u64, acknowledged: u64, newest: u64) -> Expected {
    Expected { seed: SEED, offset: ByteOffset::new(offset), acknowledged, newest }
}

fn exactly(offset: u64, generation: u64) -> Expected {
    expected(offset, generation, generation)
}

fn at(offset: u64) -> ByteOffset {
    ByteOffset::new(offset)
}

#[test]
fn the_layout_is_what_it_was() {
    // A disk stamped by one version is checked by the next: these bytes may only change together with the magic.
    let mut sector = [0; SECTOR];
    write(&mut sector, Stamp { seed: 0x0102_0304_0506_0708, offset: at(0x1000), generation: 3 });
    assert_eq!(&sector[..4], b"1DST");
    assert_eq!(sector[4..8], crc32c::crc32c(&sector[8..]).to_le_bytes());
    assert_eq!(sector[8..16], [8, 7, 6, 5, 4, 3, 2, 1]);
    assert_eq!(sector[16..24], [0, 0x10, 0, 0, 0, 0, 0, 0]);
    assert_eq!(sector[24..32], [3, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(sector[32..40], [0, 0, 0, 0, 1, 0, 0, 0]);
    // The noise, by its checksum.
    assert_eq!(u32::from_le_bytes(sector[4..8].try_into().unwrap()), 0x76a009d4);
}

#[test]
fn what_is_expected_is_in_order() {
    let block = stamped(8192, 5);
    for (acknowledged, newest) in [(5, 5), (5, 6), (4, 5), (0, 9)] {
        assert_eq!(check(&block, &expected(8192, acknowledged, newest)), Ok(()));
    }
    assert_eq!(check(&block, &Expected::from(Stamp { seed: SEED, offset: at(8192), generation: 5 })), Ok(()));
}

#[test]
fn where_nothing_was_acknowledged_the_past_is_in_order() {
    for past in [vec![0; BLOCK], stamped_by(7, 0, 3), stamped_by(7, 1 << 30, 3)] {
        assert_eq!(check(&past, &expected(0, 0, 0)), Ok(()));
        assert_eq!(check(&past, &expected(0, 0, 1)), Ok(()));
    }
    let mut patchwork = stamped_by(7, 0, 3);
    patchwork[1024..2048].fill(0);
    assert_eq!(check(&patchwork, &expected(0, 0, 1)), Ok(()));
}

#[test]
fn a_lost_write_is_named() {
    let lost = |block: &[u8]| check(block, &exactly(0, 5)).unwrap_err();
    let fault = lost(&vec![0; BLOCK]);
    assert_eq!(fault, Fault::Lost { at: at(0), found: Before::Zeroes, acknowledged: 5 });
    assert_eq!(fault.to_string(), "lost at offset 0: generation 5 was acknowledged, the disk holds zeroes");
    assert_eq!(lost(&stamped(0, 4)), Fault::Lost { at: at(0), found: Before::Generation(4), acknowledged: 5 });
    let fault = lost(&stamped_by(7, 0, 9));
    assert_eq!(fault, Fault::Lost { at: at(0), found: Before::OtherRun(7), acknowledged: 5 });
    assert!(fault.to_string().ends_with("the disk holds what a run with seed 7 wrote"));
}

#[test]
fn a_stale_read_is_named_once_the_disk_is_known_to_hold_the_write() {
    let fault = check(&stamped(0, 4), &exactly(0, 5)).unwrap_err().though_on_disk();
    assert_eq!(fault.name(), "stale");
    assert_eq!(fault.to_string(), "stale at offset 0: the disk holds generation 5, the read returned generation 4");
    let torn = Fault::Torn { at: at(512) };
    assert_eq!(torn.though_on_disk(), torn);
}

#[test]
fn a_torn_write_is_named_with_the_place_of_the_tear() {
    for old in [stamped(8192, 4), stamped_by(7, 8192, 1), vec![0; BLOCK]] {
        for tear in (SECTOR..BLOCK).step_by(SECTOR) {
            let mut block = stamped(8192, 5);
            block[tear..].copy_from_slice(&old[tear..]);
            let fault = check(&block, &exactly(8192, 5)).unwrap_err();
            assert_eq!(fault, Fault::Torn { at: at(8192 + tear as u64) });
            // The other way round: the end arrived, the start did not.
            let mut block = old.clone();
            block[tear..].copy_from_slice(&stamped(8192, 5)[tear..]);
            assert_eq!(check(&block, &exactly(8192, 5)).unwrap_err().name(), "torn");
        }
    }
    assert_eq!(
        Fault::Torn { at: at(512) }.to_string(),
        "torn at offset 512: the block is of two writes, which meet there"
    );
}

#[test]
fn a_block_torn_in_an_unacknowledged_write_is_still_torn() {
    let mut block = stamped(0, 5);
    block[4096..].copy_from_slice(&stamped(0, 6)[4096..]);
    assert_eq!(check(&block, &expected(0, 5, 6)), Err(Fault::Torn { at: at(4096) }));
}

#[test]
fn a_misdirected_write_is_named_with_where_it_belongs() {
    let fault = check(&stamped(65536, 5), &exactly(8192, 5)).unwrap_err();
    assert_eq!(fault, Fault::Misdirected { at: at(8192), belongs: at(65536) });
    assert_eq!(fault.to_string(), "misdirected at offset 8192: it was written to offset 65536");
    // Only its second half went astray, onto a good block.
    let mut block = stamped(8192, 5);
    block[4096..].copy_from_slice(&stamped(65536, 6)[4096..]);
    let fault = check(&block, &expected(8192, 5, 6)).unwrap_err();
    assert_eq!(fault, Fault::Misdirected { at: at(8192 + 4096), belongs: at(65536 + 4096) });
}

#[test]
fn a_corrupt_block_is_named() {
    let good = stamped(0, 5);
    for byte in (0..BLOCK).step_by(37) {
        for bit in [1, 0x80] {
            let mut block = good.clone();
            block[byte] ^= bit;
            let fault = check(&block, &exactly(0, 5)).unwrap_err();
            assert_eq!(fault, Fault::Corrupt { at: at((byte / SECTOR * SECTOR) as u64) }, "byte {byte}");
        }
    }
    assert_eq!(check(&vec![7; BLOCK], &exactly(0, 5)), Err(Fault::Corrupt { at: at(0) }));
    // A generation that nobody has written yet.
    assert_eq!(check(&stamped(0, 6), &exactly(0, 5)), Err(Fault::Corrupt { at: at(0) }));
    assert_eq!(
        Fault::Corrupt { at: at(512) }.to_string(),
        "corrupt at offset 512: no sector that was ever written there"
    );
}

/// A disk of four blocks, all of generation 2.
fn disk() -> Vec<u8> {
    (0..4).flat_map(|block| stamped(block * BLOCK as u64, 2)).collect()
}

fn scanned(seed: Option<u64>, disk: &[u8]) -> Tally {
    let mut scan = Scan::new(seed, ByteOffset::ZERO);
    // In pieces that end inside blocks.
    for piece in disk.chunks(3 * SECTOR) {
        scan.push(piece);
    }
    scan.finish()
}

#[test]
fn a_scan_of_a_good_disk_finds_nothing() {
    let mut disk = disk();
    disk[BLOCK..2 * BLOCK].fill(0);
    disk[2 * BLOCK..3 * BLOCK].copy_from_slice(&stamped_by(7, 2 * BLOCK as u64, 9));
    let block = crate::ByteSize::new(BLOCK as u64);
    for (seed, stamped, other_runs) in [(Some(SEED), 2, 1), (None, 3, 0), (Some(1), 0, 3)] {
        let tally = scanned(seed, &disk);
        assert_eq!(tally.faults(), 0, "{tally:?}");
        assert_eq!(tally.stamped.bytes(), stamped * block.bytes());
        assert_eq!((tally.zeroes, tally.other_runs.bytes()), (block, other_runs * block.bytes()));
    }
}

#[test]
fn a_scan_names_what_it_can_tell() {
    let tear = BLOCK + 3 * SECTOR;
    for (old, certain) in
        [(stamped(BLOCK as u64, 1), true), (vec![0; BLOCK], true), (stamped_by(7, BLOCK as u64, 1), false)]
    {
        let mut torn = disk();
        torn[tear..2 * BLOCK].copy_from_slice(&old[3 * SECTOR..]);
        let tally = scanned(Some(SEED), &torn);
        assert_eq!((tally.torn, tally.faults()), (1, 1));
        assert_eq!(tally.first_faults, [Fault::Torn { at: at(tear as u64) }]);
        // Without the seed, an older run may as well be a newer one that wrote smaller blocks.
        assert_eq!(scanned(None, &torn).torn, u64::from(certain));
        torn.copy_within(tear - SECTOR..tear, tear);
        assert_eq!(scanned(None, &torn).misdirected, 1);
    }
    let mut corrupt = disk();
    corrupt[BLOCK] ^= 1;
    corrupt[BLOCK + SECTOR + 100] ^= 1;
    let tally = scanned(None, &corrupt);
    assert_eq!((tally.corrupt, tally.faults()), (2, 2));
    assert_eq!(tally.first_faults[1], Fault::Corrupt { at: at((BLOCK + SECTOR) as u64) });
}

#[test]
fn a_scan_counts_all_faults_and_keeps_a_few() {
    let tally = scanned(None, &vec![1; 100 * SECTOR]);
    assert_eq!((tally.corrupt, tally.first_faults.len()), (100, 16));
    let json = serde_json::to_string(&tally).unwrap();
    assert!(json.contains(r#"{"fault":"corrupt","at":0}"#), "{json}");
    assert_eq!(serde_json::from_str::<Tally>(&json).unwrap(), tally);
}

proptest! {
    #[test]
    fn what_is_written_checks_out_and_anything_else_does_not(
        seed: u64,
        offset in 0u64..1 << 50,
        generation in 1u64..,
        sectors in 1usize..40,
        flip in any::<prop::sample::Index>(),
        bit in 0u32..8,
    ) {
        let offset = ByteOffset::new(offset / 512 * 512);
        let mut block = vec![0; sectors * SECTOR];
        let stamp = Stamp { seed, offset, generation };
        write(&mut block, stamp);
        prop_assert_eq!(check(&block, &stamp.into()), Ok(()));
        let flip = flip.index(block.len());
        block[flip] ^= 1 << bit;
        prop_assert_eq!(check(&block, &stamp.into()).unwrap_err().name(), "corrupt");
    }

    #[test]
    fn any_bytes_are_checked_without_harm(sectors in prop::collection::vec((any::<[u8; 40]>(), any::<bool>()), 1..8)) {
        let mut block = Vec::new();
        for (head, valid) in sectors {
            let mut sector = [0; SECTOR];
            sector[..40].copy_from_slice(&head);
            sector[..4].copy_from_slice(&MAGIC);
            if valid {
                let crc = crc32c::crc32c(&sector[8..]);
                sector[4..8].copy_from_slice(&crc.to_le_bytes());
            }
            block.extend(sector);
        }
        let _ = check(&block, &exactly(0, 1));
        let mut scan = Scan::new(None, ByteOffset::ZERO);
        scan.push(&block);
        prop_assert!(scan.finish().faults() <= 2 * block.len() as u64 / 512);
    }
}
