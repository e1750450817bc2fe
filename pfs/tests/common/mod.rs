//! The volumes that the original made, and what it says of them.
#![allow(dead_code, reason = "each test takes what it needs")]

pub mod asked;
pub mod daemon;
pub mod forked;
pub mod fuzz;
pub mod image;
pub mod large;
pub mod model;
pub mod raw;
pub mod script;

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use pfs::check::check;
use pfs::format::{
    Bda, Inode, JournalEntry, LEADER_AT, LeaderRecord, LogOffset, LogPosition, Lsn, Object, Seconds, Stamp, Txid,
};
use pfs::volume::{Device, Load, Volume};

/// All of them.
pub const ALL: [&str; 8] = [
    "fresh-10g",
    "fresh-20g-default",
    "tree-10g",
    "tree-10g-flushed",
    "dirty-10g",
    "wrap-10g",
    "grown-20g",
    "full-10g",
];

fn stored() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// The image of a volume, to be read only. It is unpacked once, sparse, and stays beside all else that was built.
#[must_use]
pub fn image(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("fixtures");
    fs::create_dir_all(&directory).unwrap();
    let packed = stored().join(format!("{name}.img.tar.zst"));
    // The length tells it from what an older version of it unpacked to.
    let path = directory.join(format!("{name}-{}.img", fs::metadata(&packed).unwrap().len()));
    if !path.exists() {
        // Several tests may do this at once: each unpacks its own, and the last to rename wins.
        let own = tempfile::tempdir_in(&directory).unwrap();
        unpack(&packed, own.path());
        fs::rename(own.path().join(format!("{name}.img")), &path).unwrap();
    }
    path
}

/// The image of a volume, to be written to; it goes with the directory.
#[must_use]
pub fn copy(name: &str) -> (PathBuf, tempfile::TempDir) {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    unpack(&stored().join(format!("{name}.img.tar.zst")), directory.path());
    (directory.path().join(format!("{name}.img")), directory)
}

fn unpack(packed: &Path, into: &Path) {
    let packed = File::open(packed).unwrap();
    let plain = ruzstd::decoding::StreamingDecoder::new(packed).unwrap();
    tar::Archive::new(plain).unpack(into).unwrap();
}

/// A recorded file, unpacked.
#[must_use]
pub fn recorded(name: &str, file: &str) -> Option<Vec<u8>> {
    let path = stored().join(name).join(file);
    if path.exists() {
        return Some(fs::read(path).unwrap());
    }
    let packed = File::open(stored().join(name).join(format!("{file}.zst"))).ok()?;
    let mut bytes = Vec::new();
    ruzstd::decoding::StreamingDecoder::new(packed).unwrap().read_to_end(&mut bytes).unwrap();
    Some(bytes)
}

/// What the original printed, and how it ended, command by command: of files whose outputs end with `# rc N`.
#[must_use]
pub fn transcript(file: &str) -> Vec<(String, String, i32)> {
    let text = fs::read_to_string(stored().join(file)).unwrap();
    let mut all: Vec<(String, String, i32)> = Vec::new();
    for line in text.split_inclusive('\n') {
        if let Some(code) = line.strip_prefix("# rc ") {
            all.last_mut().unwrap().2 = code.trim().parse().unwrap();
        } else if let Some(command) = line.strip_prefix("# ") {
            all.push((command.trim().to_owned(), String::new(), -1));
        } else {
            all.last_mut().unwrap().1.push_str(line);
        }
    }
    all
}

/// Decodes a path of `files.sha256`.
#[must_use]
pub fn path(encoded: &str) -> Vec<u8> {
    let (mut bytes, mut decoded) = (encoded.bytes(), Vec::new());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            byte => byte,
        });
    }
    decoded
}

/// Lets a volume's journal end after its first `transactions`, as it once did. Returns the leader record that it had.
pub fn rewind(path: &Path, transactions: u64) -> LeaderRecord {
    let mut volume = Volume::load(Device::open(path).unwrap(), Load { replay: false, verify: true }).unwrap();
    let (journal, leader) = (volume.journal().clone(), volume.leader().clone());
    let mut entries = 0;
    journal
        .visit(volume.device_mut(), leader.tail.offset, leader.entries(), |bytes, at| {
            let entry = JournalEntry::parse(bytes, at)?;
            entries += u64::from(entry.txid.raw() <= leader.tail.txid.raw() + transactions);
            Ok(())
        })
        .unwrap();
    let head = LogPosition {
        txid: Txid::new(leader.tail.txid.raw() + transactions).unwrap(),
        offset: LogOffset::new((leader.tail.offset.bytes() + entries * 256) % leader.log_size).unwrap(),
    };
    let head_lsn = Lsn::new(leader.tail_lsn().raw() + entries).unwrap();
    write(path, LEADER_AT, &LeaderRecord { head, head_lsn, ..leader.clone() }.write());
    leader
}

pub fn write(path: &Path, at: Bda, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, at.bytes()).unwrap();
    // Volumes are read past the page cache.
    file.sync_data().unwrap();
}

/// The transactions in a volume's journal. The times of inodes are left out.
#[must_use]
pub fn transactions(path: &Path) -> Vec<Vec<Object>> {
    let mut volume = Volume::load(Device::open(path).unwrap(), Load { replay: false, verify: true }).unwrap();
    let (journal, leader) = (volume.journal().clone(), volume.leader().clone());
    let mut transactions = vec![Vec::new()];
    journal
        .visit(volume.device_mut(), leader.tail.offset, leader.entries(), |bytes, at| {
            let entry = JournalEntry::parse(bytes, at)?;
            transactions.last_mut().unwrap().push(timeless(entry.object));
            if entry.last {
                transactions.push(Vec::new());
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(transactions.pop(), Some(Vec::new()));
    transactions
}

fn timeless(object: Object) -> Object {
    match object {
        Object::Inode(inode) => {
            Object::Inode(Inode { atime: Seconds(0), ctime: Seconds(0), mtime: Seconds(0), btime: Stamp(0), ..inode })
        }
        object => object,
    }
}

/// Sees that nothing is wrong with a volume.
pub fn clean(path: &Path) {
    let report = check(&mut Device::open(path).unwrap()).unwrap();
    assert_eq!(report.findings, [], "{}", path.display());
    assert!(report.complete);
}
