//! Reading the volumes that the original made, and volumes that change while they are read.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;

use common::{rewind, write};

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use pfs::check::{Severity, check};
use pfs::diff::Diff;
use pfs::format::{
    Bda, BlktagNo, ChunkHeader, ChunkId, DirentryNo, InodeNo, JournalEntry, LEADER_AT, LEADER_SIZE, LeaderRecord,
    LogOffset, LogPosition, Lsn, Number, Object, SECTOR_SIZE,
};
use pfs::volume::{Device, FileKind, Load, Metadata, Volume, VolumePath};
use sha2::{Digest, Sha256};

/// A file larger than this is all hole in these volumes; its zeroes are not counted.
const HASHED_MAX: u64 = 1 << 30;

/// The checksums of all files, by their paths.
fn hashes(volume: &mut Volume) -> BTreeMap<Vec<u8>, String> {
    let mut way: Vec<Vec<u8>> = vec![Vec::new()];
    let mut files = Vec::new();
    for visit in volume.metadata().walk(InodeNo::ROOT).unwrap() {
        let visit = visit.unwrap();
        way.truncate(visit.depth + 1);
        let name = visit.entry.name.as_bytes();
        let path = if visit.depth == 0 { name.to_vec() } else { [&way[visit.depth], b"/".as_slice(), name].concat() };
        match visit.stat.kind {
            FileKind::Directory => way.push(path),
            FileKind::File => files.push((path, visit.stat.inode)),
        }
    }
    let mut buffer = vec![0; 4 << 20];
    let mut hashes = BTreeMap::new();
    for (path, inode) in files {
        let map = volume.metadata().file_map(inode).unwrap();
        if inode == InodeNo::JOURNAL || map.size > HASHED_MAX {
            continue;
        }
        let (mut hash, mut at) = (Sha256::new(), 0);
        while at < map.size {
            let got = volume.read(&map, at, &mut buffer).unwrap();
            hash.update(&buffer[..got]);
            at += got as u64;
        }
        let hash = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        hashes.insert(path, hash);
    }
    hashes
}

#[test]
fn every_file_has_the_content_that_the_original_reads() {
    for name in common::ALL {
        let text = String::from_utf8(common::recorded(name, "files.sha256").unwrap()).unwrap();
        let expected: BTreeMap<Vec<u8>, String> = text
            .lines()
            .map(|line| line.split_once("  ").unwrap())
            .map(|(hash, path)| (common::path(path), hash.to_owned()))
            .filter(|(path, _)| !(name == "full-10g" && path == b"n/f5"))
            .collect();
        let mut volume = Volume::open(&common::image(name)).unwrap();
        assert_eq!(hashes(&mut volume), expected, "{name}");
    }
}

#[test]
fn what_the_original_made_is_sound() {
    for name in common::ALL {
        let report = check(&mut Device::open(&common::image(name)).unwrap()).unwrap();
        assert!(report.complete, "{name}");
        // The daemon was killed while it removed a file.
        let notes = if name == "dirty-10g" { vec![(Severity::Note, "inode 35")] } else { Vec::new() };
        let found: Vec<_> =
            report.findings.iter().map(|finding| (finding.severity, finding.what.structure())).collect();
        assert_eq!(found, notes, "{name}");
    }
}

#[test]
fn every_structure_is_written_as_it_was_read() {
    fn objects<N: Number>(name: &str, volume: &Volume) {
        for number in volume.metadata().numbers::<N>() {
            let bytes = volume.metadata().bytes(number).unwrap();
            let object = Object::parse(bytes, number.slot().start()).unwrap();
            assert_eq!(object.write(), *bytes, "{name}: {} {number}", N::KIND);
        }
    }
    for name in common::ALL {
        let path = common::image(name);
        let mut sector = [0; SECTOR_SIZE];
        let file = File::open(&path).unwrap();
        for how in [Load { replay: false, verify: true }, Load::default()] {
            let volume = Volume::load(Device::open(&path).unwrap(), how).unwrap();
            objects::<BlktagNo>(name, &volume);
            objects::<DirentryNo>(name, &volume);
            objects::<InodeNo>(name, &volume);
            for header in volume.metadata().headers() {
                file.read_exact_at(&mut sector, header.id.start().bytes()).unwrap();
                assert_eq!(header.write(), sector, "{name}: header of chunk {}", header.id);
            }
            file.read_exact_at(&mut sector, LEADER_AT.bytes()).unwrap();
            assert_eq!(volume.leader().write(), sector, "{name}: leader record");
        }
        let mut volume = Volume::open(&path).unwrap();
        let (journal, leader) = (volume.journal().clone(), volume.leader().clone());
        let mut count = 0;
        journal
            .visit(volume.device_mut(), leader.tail.offset, leader.entries(), |bytes, at| {
                assert_eq!(JournalEntry::parse(bytes, at).unwrap().write(), *bytes, "{name}: entry at {at}");
                count += 1;
                Ok(())
            })
            .unwrap();
        assert_eq!(count, leader.entries(), "{name}");
    }
}

#[test]
fn paths_lead_where_they_should() {
    let volume = Volume::open(&common::image("tree-10g")).unwrap();
    let lookup = |path: &str| volume.metadata().lookup(&VolumePath::new(path)).map(|inode| inode.number.raw());
    let errno = |path: &str| lookup(path).unwrap_err().errno();
    assert_eq!(lookup("/").unwrap(), 0);
    assert_eq!(lookup("").unwrap(), 0);
    assert_eq!(lookup("/..").unwrap(), 0);
    let s1 = lookup("/sizes/s1").unwrap();
    for path in ["sizes/s1", "//sizes///s1", "/sizes/../sizes/./s1", "/cli/p/q/../../../sizes/s1"] {
        assert_eq!(lookup(path).unwrap(), s1, "{path}");
    }
    assert_eq!(lookup("/sizes/").unwrap(), lookup("/sizes").unwrap());
    assert_eq!(errno("/nothere"), Some(libc::ENOENT));
    assert_eq!(errno("/nothere/x"), Some(libc::ENOENT));
    assert_eq!(errno("/sizes/s1/x"), Some(libc::ENOTDIR));
    assert_eq!(errno("/sizes/s1/."), Some(libc::ENOTDIR));
    assert_eq!(errno("/sizes/s1/"), Some(libc::ENOTDIR));
    assert_eq!(errno(&format!("/{}", "x".repeat(256))), Some(libc::ENAMETOOLONG));
    assert_eq!(errno(&"/x".repeat(2048)), Some(libc::ENAMETOOLONG));
    assert_eq!(volume.metadata().file_map(InodeNo::ROOT).unwrap_err().errno(), Some(libc::EISDIR));
    assert_eq!(volume.metadata().entries(InodeNo::PAXOS).unwrap_err().errno(), Some(libc::ENOTDIR));
    assert_eq!(volume.metadata().stat(InodeNo::from_raw(2047).unwrap()).unwrap_err().errno(), Some(libc::ENOENT));
}

#[test]
fn any_part_of_a_file_is_read() {
    let mut volume = Volume::open(&common::image("tree-10g")).unwrap();
    for path in ["/sizes/hole9m", "/sizes/unaligned", "/sizes/shrunk-ext-big", "/sizes/s4194305", "/cli/written"] {
        let inode = volume.metadata().lookup(&VolumePath::new(path)).unwrap().number;
        let map = volume.metadata().file_map(inode).unwrap();
        let mut whole = vec![0xff; usize::try_from(map.size).unwrap() + 10];
        assert_eq!(volume.read(&map, 0, &mut whole).unwrap() as u64, map.size);
        let len = whole.len() - 10;
        for (at, count) in
            [(0, 1), (1, 5000), (4095, 2), (len - 1, 1), (len - 1, 100), (len / 2, len), (len, 1), (len + 7, 9)]
        {
            let mut part = vec![0xff; count];
            let got = volume.read(&map, at as u64, &mut part).unwrap();
            let expected = &whole[at.min(len)..(at + count).min(len).max(at.min(len))];
            assert_eq!(part[..got], *expected, "{path}: {count} bytes at {at}");
        }
    }
}

fn assert_same_objects(one: &Metadata, other: &Metadata) {
    fn of<N: Number>(one: &Metadata, other: &Metadata) {
        for number in other.numbers::<N>() {
            assert_eq!(one.bytes(number).unwrap(), other.bytes(number).unwrap(), "{} {number}", N::KIND);
        }
    }
    of::<BlktagNo>(one, other);
    of::<DirentryNo>(one, other);
    of::<InodeNo>(one, other);
}

#[test]
fn a_reader_follows_the_journal() {
    for name in ["tree-10g", "wrap-10g"] {
        let (path, _directory) = common::copy(name);
        let latest = rewind(&path, 0);
        let mut reader = Volume::open(&path).unwrap();
        assert!(!reader.refresh().unwrap());
        let transactions = latest.head.txid.raw() - latest.tail.txid.raw();
        for upto in (0..=transactions).step_by(97).chain([transactions]).skip(1) {
            write(&path, LEADER_AT, &latest.write());
            rewind(&path, upto);
            assert!(reader.refresh().unwrap(), "{name}: {upto}");
            assert!(!reader.refresh().unwrap());
            assert_same_objects(reader.metadata(), Volume::open(&path).unwrap().metadata());
        }
        assert_eq!(*reader.leader(), latest);
        assert_same_objects(reader.metadata(), Volume::open(&common::image(name)).unwrap().metadata());
    }
}

#[test]
fn a_reader_that_fell_behind_reads_everything_anew() {
    let (path, _directory) = common::copy("tree-10g");
    rewind(&path, 10);
    let mut reader = Volume::open(&path).unwrap();
    // What trimming does: all metadata sectors, then the leader record, whose tail is now beyond what the reader knows.
    let flushed = common::image("tree-10g-flushed");
    write(&path, Bda::new(0), &sectors(&flushed));
    write(&path, LEADER_AT, &Volume::open(&flushed).unwrap().leader().write());
    assert!(reader.refresh().unwrap());
    assert_same_objects(reader.metadata(), Volume::open(&common::image("tree-10g")).unwrap().metadata());
}

#[test]
fn a_volume_is_opened_while_somebody_writes_it() {
    let (path, _directory) = common::copy("tree-10g");
    let latest = Volume::open(&path).unwrap().leader().clone();
    let fresh = sectors(&path);
    let flushed = sectors(&common::image("tree-10g-flushed"));
    let trimmed = LeaderRecord { tail: latest.head, ..latest.clone() };
    // The states through which the writer goes, and what each of them is.
    let states: Vec<(LeaderRecord, Metadata)> = [0, 300, 600, 956]
        .into_iter()
        .map(|transactions| {
            write(&path, LEADER_AT, &latest.write());
            rewind(&path, transactions);
            let volume = Volume::open(&path).unwrap();
            (volume.leader().clone(), volume.metadata().clone())
        })
        .collect();
    for _ in 0..4 {
        write(&path, LEADER_AT, &states[0].0.write());
        write(&path, Bda::new(0), &fresh);
        let (done, opened) = (AtomicBool::new(false), AtomicU32::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Whoever writes waits for whoever reads, which is done when the writer is.
                let _last = OnDrop(|| opened.store(u32::MAX, Ordering::Relaxed));
                while !done.load(Ordering::Relaxed) {
                    let volume = Volume::open(&path).unwrap();
                    let (_, expected) = states.iter().find(|(leader, _)| leader.head == volume.leader().head).unwrap();
                    assert_same_objects(volume.metadata(), expected);
                    opened.fetch_add(1, Ordering::Relaxed);
                }
            });
            let seen = |count: u32| {
                while opened.load(Ordering::Relaxed) < count {
                    std::thread::yield_now();
                }
            };
            for (count, (leader, _)) in (1..).zip(&states) {
                write(&path, LEADER_AT, &leader.write());
                seen(count);
            }
            // Trimming: sector by sector, then the record that says so.
            for (at, sector) in (0..).step_by(SECTOR_SIZE).zip(flushed.chunks(SECTOR_SIZE)) {
                write(&path, Bda::new(at), sector);
            }
            write(&path, LEADER_AT, &trimmed.write());
            done.store(true, Ordering::Relaxed);
        });
        assert_same_objects(Volume::open(&path).unwrap().metadata(), &states.last().unwrap().1);
    }
}

/// Does something at last, also where a test fails.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// The header and the metadata sectors of a volume's first chunk.
fn sectors(path: &Path) -> Vec<u8> {
    let mut sectors = vec![0; 0xd_1000];
    File::open(path).unwrap().read_exact_at(&mut sectors, 0).unwrap();
    sectors
}

#[test]
fn what_a_reader_knows_survives_damage() {
    let (path, _directory) = common::copy("tree-10g");
    let latest = rewind(&path, 500);
    let mut reader = Volume::open(&path).unwrap();
    let before = Volume::open(&path).unwrap();
    let mut broken = latest.write();
    broken[300] = 1;
    broken[257] ^= 1;
    write(&path, LEADER_AT, &broken);
    let error = reader.refresh().unwrap_err();
    assert_eq!(error.to_string(), "the volume is damaged");
    assert_same_objects(reader.metadata(), before.metadata());
    // The middle of a transaction is no state.
    let middle = LeaderRecord {
        head: LogPosition { offset: LogOffset::new(latest.head.offset.bytes() - 256).unwrap(), ..latest.head },
        head_lsn: Lsn::new(latest.head_lsn.raw() - 1).unwrap(),
        ..latest.clone()
    };
    write(&path, LEADER_AT, &middle.write());
    reader.refresh().unwrap_err();
    assert_same_objects(reader.metadata(), before.metadata());
    write(&path, LEADER_AT, &latest.write());
    assert!(reader.refresh().unwrap());
    assert_same_objects(reader.metadata(), Volume::open(&common::image("tree-10g")).unwrap().metadata());
}

#[test]
fn a_journal_does_not_end_amid_a_transaction() {
    let (path, _directory) = common::copy("tree-10g");
    rewind(&path, 1);
    let leader = Volume::open(&path).unwrap().leader().clone();
    assert_eq!(leader.entries(), 4);
    let middle = LeaderRecord {
        head: LogPosition { offset: LogOffset::new(3 * 256).unwrap(), ..leader.head },
        head_lsn: Lsn::new(leader.head_lsn.raw() - 1).unwrap(),
        ..leader
    };
    write(&path, LEADER_AT, &middle.write());
    let error = Volume::open(&path).unwrap_err();
    let why = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(why, "leader record at 0x400000: head_offset: 768, in the midst of transaction 1");
}

#[test]
fn the_same_tree_is_the_same_wherever_it_lies() {
    let cancel = blockdev::Cancel::new();
    let open = |name: &str| Volume::open(&common::image(name)).unwrap();
    let (mut one, mut other) = (open("tree-10g"), open("tree-10g-flushed"));
    let diff = Diff { times: true, objects: false };
    assert_eq!(diff.compare(&mut one, &mut other, &cancel).unwrap(), []);
    let found = Diff { times: true, objects: true }.compare(&mut one, &mut other, &cancel).unwrap();
    let found: Vec<String> = found.into_iter().map(|found| format!("{} {}", found.what, found.field)).collect();
    assert_eq!(found, ["leader record tail_txid", "leader record tail_offset"]);
}

#[test]
fn every_difference_is_found() {
    let cancel = blockdev::Cancel::new();
    let (path, _directory) = common::copy("tree-10g-flushed");
    let mut original = Volume::open(&common::image("tree-10g-flushed")).unwrap();
    let inode = original.metadata().lookup(&VolumePath::new("/sizes/s4194305")).unwrap();
    let map = original.metadata().file_map(inode.number).unwrap();
    let last = map.blocks().last().unwrap().1.tag.block().start();
    let mut byte = [0];
    original.device_mut().read(last, &mut byte).unwrap();
    let mut changed = [0; SECTOR_SIZE];
    changed[0] = !byte[0];
    write(&path, last, &changed);
    let found = Diff::default().compare(&mut original, &mut Volume::open(&path).unwrap(), &cancel).unwrap();
    let text: Vec<_> =
        found.iter().map(|found| (found.what.as_str(), found.field, found.a.as_str(), found.b.as_str())).collect();
    let (a, b) = (format!("{:#04x} at 4194304", byte[0]), format!("{:#04x} at 4194304", !byte[0]));
    assert_eq!(text, [("/sizes/s4194305", "content", a.as_str(), b.as_str())]);

    let mut fresh = Volume::open(&common::image("fresh-10g")).unwrap();
    let found = Diff::default().compare(&mut fresh, &mut original, &cancel).unwrap();
    assert!(
        found.iter().any(|found| (found.what.as_str(), found.field, found.b.as_str()) == ("/sizes", "exists", "yes"))
    );
    assert!(found.iter().any(|found| found.what == "/.pfs-journal" && found.field == "size"));
    cancel.cancel();
    let error = Diff::default().compare(&mut fresh, &mut original, &cancel).unwrap_err();
    assert_eq!(error.kind(), blockdev::ErrorKind::Interrupted);
}

#[test]
fn what_is_no_volume_says_so() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = directory.path().join("image");
    let open = |size: u64| {
        File::create(&path).unwrap().set_len(size).unwrap();
        Volume::open(&path).unwrap_err()
    };
    let shown = path.display();
    assert_eq!(open(0).to_string(), format!("{shown} has 0 B, too little for a volume, which has 10 GiB or more"));
    assert_eq!(
        open(9 << 30).to_string(),
        format!("{shown} has 9 GiB, too little for a volume, which has 10 GiB or more")
    );
    let error = open(10 << 30);
    assert_eq!(error.to_string(), format!("{shown} holds no PolarFS volume"));
    assert_eq!(error.kind(), blockdev::ErrorKind::InvalidInput);

    let (path, _directory) = common::copy("grown-20g");
    OpenOptions::new().write(true).open(&path).unwrap().set_len(15 << 30).unwrap();
    let error = Volume::open(&path).unwrap_err();
    assert_eq!(error.kind(), blockdev::ErrorKind::VerifyFailed);
    let why = std::error::Error::source(&error).unwrap().to_string();
    assert!(why.contains("ck_nchunk: 2 chunks, which are 20 GiB, but") && why.ends_with("has 15 GiB"), "{why}");
}

#[test]
fn a_header_of_another_version_is_refused() {
    let (path, _directory) = common::copy("fresh-10g");
    let mut sector = [0; SECTOR_SIZE];
    File::open(&path).unwrap().read_exact_at(&mut sector, 0).unwrap();
    sector[0] += 1;
    // Without a checksum, so that only the version is wrong.
    sector[112..116].fill(0);
    write(&path, Bda::new(0), &sector);
    assert!(ChunkHeader::parse(&sector, ChunkId::FIRST).is_ok());
    let error = Volume::open(&path).unwrap_err();
    assert_eq!(error.kind(), blockdev::ErrorKind::Unsupported);
    assert!(error.to_string().ends_with("holds a volume of version 3; known here are those up to 2"), "{error}");
    const { assert!(LEADER_SIZE < SECTOR_SIZE) };
}
