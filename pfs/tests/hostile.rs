//! Damaged volumes: what the original aborts on, hangs on, crashes on or takes in silence, and what ours says.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;

use std::process::Command;

use common::image::{BLKTAG, DIRENTRY, INODE, Image, JOURNAL, Shows, text, used};
use pfs::check::{Report, check};
use pfs::format::{ENTRY_SIZE, InodeNo, LEADER_AT, Number, OBJECT_SIZE};
use pfs::volume::{Device, Volume};

/// Most bytes of a file that are read.
const READ_MAX: u64 = 6_000_000;

/// The bytes of a number.
fn n(number: u64) -> [u8; 8] {
    number.to_le_bytes()
}

/// The bytes of a number.
fn half(number: i32) -> [u8; 4] {
    number.to_le_bytes()
}

fn name(text: &[u8]) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[..text.len()].copy_from_slice(text);
    bytes
}

/// What it is called, what does it, where it shows, and what is said of it.
type Case = (&'static str, fn(&mut Image), Shows, &'static str);

use Shows::{Checking, Opening, Using};

const FRESH: [Case; 13] = [
    ("chunk_magic", |i| i.header(0, &n(0x1122_3344_5566_7788)), Opening, "holds no PolarFS volume"),
    (
        "chunk_checksum",
        |i| i.patch::<120>(0, &[(112, &half(0x5EAD_BEEF))], None),
        Opening,
        "ck_checksum: 0x5eadbeef is stored",
    ),
    (
        "chunk_checksum_zero",
        |i| i.patch::<120>(0, &[(112, &[0; 4])], None),
        Checking,
        "header of chunk 0 at 0x0: ck_checksum: it has none",
    ),
    ("chunk_version_3", |i| i.header(0, &n(0x50_4653_4348 + 3)), Opening, "holds a volume of version 3"),
    ("chunk_version_64", |i| i.header(0, &n(0x50_4653_4348 + 64)), Opening, "holds no PolarFS volume"),
    ("nchunk_0", |i| i.header(40, &half(0)), Opening, "ck_nchunk: 0 chunks"),
    ("nchunk_2_of_1", |i| i.header(40, &half(2)), Opening, "ck_nchunk: 2 chunks, which are 20 GiB"),
    ("nchunk_huge", |i| i.header(40, &half(-1)), Opening, "ck_nchunk: 4294967295 chunks"),
    ("metaset_nsect_huge", |i| i.header(64 + 8, &half(i32::MAX)), Opening, "ms_nsect: 2147483647 instead of 80"),
    (
        "metaset_bda_huge",
        |i| i.header(96, &n(0x7ff_ffff_ffff_f000)),
        Opening,
        "ms_sectbda: 0x7fffffffffff000 instead of 0x91000",
    ),
    ("metaset_objsize_0", |i| i.header(96 + 12, &half(0)), Opening, "ms_objsize: 0 instead of 128"),
    (
        "journal_inode_gone",
        |i| i.object(INODE, 2, &[(40, &[0]), (16, &n(0)), (24, &n(0))]),
        Opening,
        "inode 2 at 0x91100: mo_used: 1, but in_type is 0",
    ),
    (
        "paxos_inode_empty",
        |i| i.object(INODE, 1, &[(16, &n(0)), (24, &n(0)), (64, &n(0)), (72, &n(0))]),
        Opening,
        "inode 1 at 0x91080: mo_head: it should hold the leader record",
    ),
];

const FLUSHED: [Case; 29] = [
    (
        "inode_checksum",
        |i| i.patch::<OBJECT_SIZE>(INODE + i.inode("sizes/s1") * 128, &[(36, &half(0x1234_5678))], None),
        Opening,
        "inode 353 at 0x9c080: mo_checksum: 0x12345678 is stored",
    ),
    (
        "inode_checksum_zero",
        |i| i.patch::<OBJECT_SIZE>(INODE + i.inode("sizes/s1") * 128, &[(36, &[0; 4]), (80, &n(0))], None),
        Checking,
        "inode 353 at 0x9c080: mo_checksum: it has none",
    ),
    (
        "free_inode_checksum",
        |i| i.patch::<OBJECT_SIZE>(INODE + 2047 * 128, &[(80, &n(1))], None),
        Opening,
        "inode 2047 at 0xd0f80: mo_checksum",
    ),
    (
        "object_type_wrong",
        |i| i.object(INODE, i.inode("sizes/s1"), &[(32, &[2])]),
        Using,
        "inode 353 at 0x9c080: mo_type: 2 instead of 3",
    ),
    (
        "object_number_wrong",
        |i| i.object(INODE, i.inode("sizes/s1"), &[(0, &n(5))]),
        Using,
        "inode 353 at 0x9c080: mo_number: 5 instead of 353",
    ),
    (
        "inode_type_9",
        |i| i.object(INODE, i.inode("sizes/s1"), &[(40, &[9])]),
        Using,
        "inode 353 at 0x9c080: in_type: there is no type 9",
    ),
    (
        "inode_head_range",
        |i| i.object(INODE, i.inode("sizes/s4194305"), &[(16, &n(0x7fff_ffff))]),
        Using,
        "mo_head: there can be no blktag 2147483647",
    ),
    (
        "dir_head_range",
        |i| i.object(INODE, i.inode("sizes"), &[(16, &n(0xfff))]),
        Using,
        "inode 351 at 0x9bf80: mo_head: 4095: that would be in chunk 1",
    ),
    (
        "inode_size_negative",
        |i| i.object(INODE, i.inode("sizes/s4194305"), &[(72, &n((-5i64).cast_unsigned()))]),
        Using,
        "in_size: -5 bytes",
    ),
    (
        "inode_size_huge",
        |i| i.object(INODE, i.inode("sizes/s4194305"), &[(72, &n(1 << 62))]),
        Checking,
        "in_size: 4194304 TiB, more than the whole volume",
    ),
    (
        "inode_nblock_wrong",
        |i| i.object(INODE, i.inode("sizes/s4194305"), &[(64, &n(77))]),
        Using,
        "in_nblock: 77, but the list has 2",
    ),
    (
        "blktag_cycle",
        |i| {
            let (head, tail) = i.ends("sizes/s4194305");
            i.object(BLKTAG, tail, &[(16, &n(head))]);
        },
        Using,
        "blktag 68 at 0x3200: mo_prev: 0 instead of 69",
    ),
    (
        "blktag_cross",
        |i| {
            let (head, _) = i.ends("sizes/s2");
            i.object(INODE, i.inode("sizes/s1"), &[(16, &n(head)), (24, &n(head))]);
        },
        Using,
        "blktag 56 at 0x2c00: bt_ino: 354, but it is in the list of inode 353",
    ),
    (
        "blktag_unused",
        |i| i.object(BLKTAG, i.ends("sizes/s1").0, &[(33, &[0])]),
        Using,
        "blktag 55 at 0x2b80: bt_holelen: a hole of 4194303 bytes from 1, but the block is free",
    ),
    (
        "blktag_blkid_huge",
        |i| i.object(BLKTAG, i.ends("sizes/s1").0, &[(48, &n(1 << 50))]),
        Using,
        "bt_blkid: no file has a block 1125899906842624",
    ),
    (
        "blktag_holeoff_big",
        |i| i.object(BLKTAG, i.ends("sizes/s4096").0, &[(64, &half(-(4 << 20))), (68, &half(8 << 20))]),
        Using,
        "a hole of -4194304 bytes from 8388608",
    ),
    (
        "blktag_hole_overflow",
        |i| i.object(BLKTAG, i.ends("sizes/s4096").0, &[(64, &half(i32::MAX)), (68, &half(-4096))]),
        Using,
        "a hole of 2147483647 bytes from -4096",
    ),
    (
        "direntry_cycle",
        |i| {
            let (head, tail) = i.ends("sizes");
            i.object(DIRENTRY, tail, &[(16, &n(head))]);
        },
        Using,
        "direntry 372 at 0x5ca00: mo_prev: 0 instead of 398",
    ),
    (
        "direntry_self_next",
        |i| {
            let (head, _) = i.ends("sizes");
            i.object(DIRENTRY, head, &[(16, &n(head))]);
        },
        Using,
        "direntry 372 at 0x5ca00: mo_prev: 0 instead of 372",
    ),
    (
        "direntry_ino_range",
        |i| i.object(DIRENTRY, i.direntry("sizes/s1"), &[(104, &n(0x7f_ffff))]),
        Using,
        "direntry 373 at 0x5ca80: de_ino: 8388607: that would be in chunk 4095",
    ),
    (
        "direntry_ino_free",
        |i| i.object(DIRENTRY, i.direntry("sizes/s1"), &[(104, &n(2047))]),
        Using,
        "inode 2047 at 0xd0f80: in_type: 0, but direntry 373 names it",
    ),
    (
        "direntry_name_unterminated",
        |i| i.object(DIRENTRY, i.direntry("sizes/s1"), &[(40, &[b'A'; 64])]),
        Using,
        "direntry 373 at 0x5ca80: de_extdeno: 0, but the name has no end",
    ),
    (
        "direntry_name_empty",
        |i| i.object(DIRENTRY, i.direntry("sizes/s1"), &[(40, &[0; 64])]),
        Using,
        "direntry 373 at 0x5ca80: de_name: \"\": it is empty",
    ),
    (
        "direntry_name_slash",
        |i| i.object(DIRENTRY, i.direntry("sizes/s1"), &[(40, &name(b"../../etc/x"))]),
        Using,
        "de_name: \"../../etc/x\": it contains a slash",
    ),
    (
        "direntry_ext_cycle",
        |i| {
            let number = i.direntry("sizes/s1");
            i.object(DIRENTRY, number, &[(40, &[b'B'; 64]), (120, &n(number))]);
        },
        Using,
        "direntry 373 at 0x5ca80: de_headdeno: it is no piece of a name",
    ),
    (
        "dir_self_parent",
        |i| {
            let (inode, direntry) = i.find("sizes");
            i.object(DIRENTRY, direntry, &[(112, &n(inode))]);
        },
        Using,
        "direntry 371 at 0x5c980: de_dirino: 351, but it is in the list of directory 0",
    ),
    (
        "dir_loop",
        |i| i.object(DIRENTRY, i.direntry("deep/level2/level3"), &[(104, &n(i.inode("deep")))]),
        Using,
        "inode 12 at 0x91600: in_deno: 12, but direntry 412 names it",
    ),
    // Beyond what the original was shown.
    (
        "direntry_twice_the_same_name",
        |i| i.object(DIRENTRY, i.direntry("sizes/s1"), &[(40, &name(b"s2"))]),
        Checking,
        "de_name: \"s2\" is also that of direntry 373 in directory 351",
    ),
    (
        "directories_in_each_other",
        directories_in_each_other,
        Checking,
        "inode 13 at 0x91680: in_deno: 13, but it is below itself, and no path leads there",
    ),
];

const TREE: [Case; 18] = [
    (
        "leader_checksum",
        |i| i.patch::<264>(LEADER_AT.bytes(), &[(232, &n(256))], None),
        Opening,
        "leader record at 0x400000: checksum: 0x",
    ),
    (
        "leader_magic_cleared",
        |i| i.leader(0, &half(0x1128_2016)),
        Opening,
        "leader record at 0x400000: magic: it was cleared",
    ),
    (
        "leader_head_beyond",
        |i| i.leader(232, &n((16 << 20) + 256)),
        Opening,
        "head_offset: no entry starts at 16777472",
    ),
    ("leader_head_unaligned", |i| i.leader(232, &n(796_928 - 100)), Opening, "head_offset: no entry starts at 796828"),
    ("leader_tail_gt_head_tx", |i| i.leader(208, &n(5000)), Opening, "tail_txid: 5000, but head_txid is 956"),
    (
        "leader_logsize_1g",
        |i| i.leader(240, &n(1 << 30)),
        Opening,
        "log_size: 1073741824 bytes, but the journal file has 16777216",
    ),
    ("leader_logsize_0", |i| i.leader(240, &n(0)), Opening, "log_size: 0 bytes"),
    ("leader_head_txid_plus5", |i| i.leader(216, &n(961)), Opening, "head_txid: 961, but the journal ends with 956"),
    (
        "journal_lsn_gap",
        |i| i.entry(1000, 128, &n(5000)),
        Opening,
        "journal entry 5000 of transaction 281 at 0x83e800: le_lsn: 1001 should be here",
    ),
    ("journal_txid_gap", |i| i.entry(1000, 144, &n(900)), Opening, "le_txid: transaction 281 should be here"),
    (
        "journal_checksum",
        |i| i.patch::<ENTRY_SIZE>(JOURNAL + 1000 * 256, &[(170, &[1])], None),
        Opening,
        "journal entry 1001 of transaction 281 at 0x83e800: le_checksum: 0x",
    ),
    (
        "journal_bda_outside",
        |i| i.entry(1000, 136, &n(0x20_0000)),
        Opening,
        "le_sector_bda: 0x200000 instead of 0x57000",
    ),
    (
        "journal_bda_unaligned",
        |i| i.entry(1000, 136, &n(0x9_1010)),
        Opening,
        "le_sector_bda: 0x91010 instead of 0x57000",
    ),
    (
        "journal_bda_huge",
        |i| i.entry(1000, 136, &n(1 << 60)),
        Opening,
        "le_sector_bda: 0x1000000000000000 instead of 0x57000",
    ),
    ("journal_idx_40", |i| i.entry(1000, 152, &half(40)), Opening, "le_obj_idx: 40 instead of 30"),
    ("journal_object_type", |i| i.entry_object(1000, 32, &[1]), Opening, "le_obj_val: blktag 222: bt_ino"),
    (
        "journal_object_number",
        |i| i.entry_object(1000, 0, &n(1999)),
        Opening,
        "le_sector_bda: 0x57000 instead of 0x8f000, where direntry 1999 lies",
    ),
    (
        "journal_more_forever",
        |i| (3108..3113).for_each(|k| i.entry(k, 160, &half(1))),
        Opening,
        "le_txid: transaction 954 should be here",
    ),
];

/// level2, all that is in deep, goes into level3, which is in level2: a loop that no path leads to.
fn directories_in_each_other(i: &mut Image) {
    let (deep, three) = (i.inode("deep"), i.inode("deep/level2/level3"));
    let entry = i.direntry("deep/level2");
    assert_eq!(i.ends("deep"), (entry, entry));
    let (_, last) = i.ends("deep/level2/level3");
    let size = u64::from_le_bytes(i.read(INODE + three * 128 + 72));
    i.object(INODE, deep, &[(16, &n(0)), (24, &n(0)), (72, &n(0))]);
    i.object(DIRENTRY, last, &[(16, &n(entry))]);
    i.object(DIRENTRY, entry, &[(24, &n(last)), (112, &n(three))]);
    i.object(INODE, three, &[(24, &n(entry)), (72, &n(size + 128))]);
}

fn said(report: &Report, what: &str) -> bool {
    report.findings.iter().any(|finding| finding.what.to_string().contains(what))
}

fn every(base: &str, cases: &[Case]) {
    let mut image = Image::of(base);
    assert_eq!(used(&image, READ_MAX), (Checking, String::new()));
    for (case, damage, shows, what) in cases {
        damage(&mut image);
        let (found, problem) = used(&image, READ_MAX);
        assert_eq!(found, *shows, "{case}: {problem}");
        assert!(*shows == Checking || problem.contains(what), "{case}: {problem}");
        match check(&mut Device::open(&image.path).unwrap()) {
            Ok(report) => assert!(said(&report, what), "{case}: {:#?}", report.findings),
            Err(error) => assert!(*shows == Opening && text(&error).contains(what), "{case}: {error}"),
        }
        for args in [["tree", ":/"], ["du", ":/"], ["dumpfs", ""], ["dumple", ""], ["info", ""], ["check", ""]] {
            let place = format!("{}{}", image.path.display(), args[1]);
            let output = Command::new(env!("CARGO_BIN_EXE_pfs")).args([args[0], &place]).output().unwrap();
            let says = String::from_utf8_lossy(&output.stderr);
            assert!(matches!(output.status.code(), Some(0 | 2 | 5 | 6)), "{case}: {args:?}: {says}");
            assert!(!says.contains("panicked"), "{case}: {args:?}: {says}");
        }
        image.mend();
    }
    assert_eq!(used(&image, READ_MAX), (Checking, String::new()), "the last case was not mended");
}

#[test]
fn headers_and_reserved_files() {
    every("fresh-10g", &FRESH);
}

#[test]
fn objects() {
    every("tree-10g-flushed", &FLUSHED);
}

#[test]
fn leader_record_and_journal() {
    every("tree-10g", &TREE);
}

#[test]
fn a_walk_in_a_loop_ends() {
    let mut image = Image::of("tree-10g-flushed");
    let two = InodeNo::from_raw(image.inode("deep/level2")).unwrap();
    directories_in_each_other(&mut image);
    let volume = Volume::open(&image.path).unwrap();
    let last = volume.metadata().walk(two).unwrap().last().unwrap().unwrap_err();
    assert!(text(&last).contains("inode 13 at 0x91680: in_deno: the directory is below itself"), "{}", text(&last));
}
