//! A volume of the original to damage, and to use.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::error::Error as _;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use pfs::format::{ENTRY_SIZE, InodeNo, LEADER_AT, Number, OBJECT_SIZE, checksum};
use pfs::volume::{FileKind, Volume, VolumePath};

pub const BLKTAG: u64 = 0x1000;
pub const DIRENTRY: u64 = 0x5_1000;
pub const INODE: u64 = 0x9_1000;

/// Where the journal of these volumes starts; its blocks follow each other.
pub const JOURNAL: u64 = 8 << 20;

/// A volume of the original that is damaged, looked at and mended again.
pub struct Image {
    pub path: PathBuf,
    file: File,
    undo: Vec<(u64, Vec<u8>)>,
    _directory: tempfile::TempDir,
}

impl Image {
    pub fn of(name: &str) -> Self {
        let (path, directory) = super::copy(name);
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        Self { path, file, undo: Vec::new(), _directory: directory }
    }

    pub fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    pub fn write(&mut self, at: u64, bytes: &[u8]) {
        let mut old = vec![0; bytes.len()];
        self.file.read_exact_at(&mut old, at).unwrap();
        self.undo.push((at, old));
        self.file.write_all_at(bytes, at).unwrap();
    }

    pub fn mend(&mut self) {
        while let Some((at, bytes)) = self.undo.pop() {
            self.file.write_all_at(&bytes, at).unwrap();
        }
    }

    /// Overwrites parts of a structure of `N` bytes and puts the right checksum where it belongs, unless told not to.
    pub fn patch<const N: usize>(&mut self, at: u64, parts: &[(usize, &[u8])], checksum_at: Option<usize>) {
        let mut bytes: [u8; N] = self.read(at);
        for (offset, part) in parts {
            bytes[*offset..offset + part.len()].copy_from_slice(part);
        }
        if let Some(place) = checksum_at {
            bytes[place..place + 4].fill(0);
            let sum = checksum(&bytes).to_le_bytes();
            bytes[place..place + 4].copy_from_slice(&sum);
        }
        self.write(at, &bytes);
    }

    pub fn header(&mut self, at: usize, part: &[u8]) {
        self.patch::<120>(0, &[(at, part)], Some(112));
    }

    pub fn object(&mut self, set: u64, number: u64, parts: &[(usize, &[u8])]) {
        self.patch::<OBJECT_SIZE>(set + number * OBJECT_SIZE as u64, parts, Some(36));
    }

    pub fn leader(&mut self, at: usize, part: &[u8]) {
        let mut bytes: [u8; 260] = self.read(LEADER_AT.bytes());
        bytes[at..at + part.len()].copy_from_slice(part);
        let sum = checksum(&bytes[..256]).to_le_bytes();
        bytes[256..].copy_from_slice(&sum);
        self.write(LEADER_AT.bytes(), &bytes);
    }

    pub fn entry(&mut self, index: u64, at: usize, part: &[u8]) {
        self.patch::<ENTRY_SIZE>(JOURNAL + index * ENTRY_SIZE as u64, &[(at, part)], Some(156));
    }

    /// An entry whose object is damaged, but has a right checksum.
    pub fn entry_object(&mut self, index: u64, at: usize, part: &[u8]) {
        let place = JOURNAL + index * ENTRY_SIZE as u64;
        self.patch::<OBJECT_SIZE>(place, &[(at, part)], Some(36));
        self.patch::<ENTRY_SIZE>(place, &[], Some(156));
    }

    /// The inode and direntry of a path.
    pub fn find(&self, path: &str) -> (u64, u64) {
        let inode = Volume::open(&self.path).unwrap().metadata().lookup(&VolumePath::new(path)).unwrap();
        (inode.number.raw(), inode.name.unwrap().raw())
    }

    pub fn inode(&self, path: &str) -> u64 {
        self.find(path).0
    }

    pub fn direntry(&self, path: &str) -> u64 {
        self.find(path).1
    }

    /// Both ends of an inode's list.
    pub fn ends(&self, path: &str) -> (u64, u64) {
        let bytes: [u8; 16] = self.read(INODE + self.inode(path) * OBJECT_SIZE as u64 + 16);
        let (ends, _) = bytes.as_chunks::<8>();
        (u64::from_le_bytes(ends[0]), u64::from_le_bytes(ends[1]))
    }
}

/// Where the damage shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shows {
    /// The volume is not opened.
    Opening,
    /// What is damaged cannot be used; the rest can.
    Using,
    /// Everything can be used: this is as it may be. Only a check remarks it.
    Checking,
}

/// All that an error says.
pub fn text(error: &blockdev::Error) -> String {
    let source = error.source().map(|source| format!(": {source}")).unwrap_or_default();
    format!("{error}{source}")
}

/// Uses everything in a volume, but reads no more than so much of each file. Returns where it first went wrong, and how.
pub fn used(image: &Image, read_max: u64) -> (Shows, String) {
    let mut volume = match Volume::open(&image.path) {
        Ok(volume) => volume,
        Err(error) => return (Shows::Opening, text(&error)),
    };
    match use_all(&mut volume, read_max) {
        Ok(()) => (Shows::Checking, String::new()),
        Err(error) => (Shows::Using, text(&error)),
    }
}

fn use_all(volume: &mut Volume, read_max: u64) -> blockdev::Result<()> {
    let visits = volume.metadata().walk(InodeNo::ROOT)?.collect::<blockdev::Result<Vec<_>>>()?;
    #[allow(clippy::cast_possible_truncation, reason = "at most 1 MiB")]
    let mut buffer = vec![0; read_max.min(1 << 20) as usize];
    for visit in visits {
        volume.metadata().disk_usage(&visit.inode)?;
        if visit.stat.kind == FileKind::Directory {
            continue;
        }
        let map = volume.metadata().file_map(visit.stat.inode)?;
        let mut at = 0;
        while at < map.size.min(read_max) {
            at += volume.read(&map, at, &mut buffer)? as u64;
        }
        if read_max > 0 {
            // The end of a file may be far away.
            volume.read(&map, map.size.saturating_sub(100), &mut buffer)?;
        }
    }
    Ok(())
}
