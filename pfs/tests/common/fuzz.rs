//! What must hold of any bytes at all: the bodies of the fuzz targets in `pfs/fuzz`, which `tests/fuzz.rs` runs on random bytes.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]
#![allow(dead_code, reason = "each fuzz target takes what it needs")]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use pfs::check::check;
use pfs::format::{
    Bda, ChunkHeader, ChunkId, ENTRY_SIZE, InodeNo, JournalEntry, LEADER_AT, LEADER_SIZE, LeaderRecord, LeaseRecord,
    OBJECT_SIZE, Object, SECTOR_SIZE, checksum, entry_fields, header_fields, object_fields,
};
use pfs::proto::handshake::SYNC_SIZE;
use pfs::proto::response::{self, ENTRY_SIZE as DIRENT_SIZE, WireEntry};
use pfs::proto::{Ack, ChannelNo, Memory, MountRequest, Places, RegionNo, Request, SlotNo};
use pfs::volume::{Device, FileKind, Volume};

/// The first `N` bytes of the input, zeroes after its end.
fn array<const N: usize>(data: &[u8]) -> [u8; N] {
    let mut bytes = [0; N];
    let len = data.len().min(N);
    bytes[..len].copy_from_slice(&data[..len]);
    bytes
}

/// As they are, and with the right checksum at its place, over the first `covered` bytes.
fn with_checksum<const N: usize>(bytes: [u8; N], at: usize, covered: usize) -> [[u8; N]; 2] {
    let mut right = bytes;
    right[at..at + 4].fill(0);
    let sum = checksum(&right[..covered]).to_le_bytes();
    right[at..at + 4].copy_from_slice(&sum);
    [bytes, right]
}

/// A chunk header: a value that is written to the same bytes, or an error.
pub fn header(data: &[u8]) {
    let id = ChunkId::new(data.first().map_or(0, |byte| u32::from(*byte))).unwrap();
    for sector in with_checksum(array::<SECTOR_SIZE>(data.get(1..).unwrap_or_default()), 112, 120) {
        let _ = header_fields(&sector);
        if let Ok(header) = ChunkHeader::parse(&sector, id) {
            assert_eq!(header.write()[..120], sector[..120]);
        }
    }
}

/// An object: a value that is written to the same bytes, or an error.
pub fn object(data: &[u8]) {
    for bytes in with_checksum(array::<OBJECT_SIZE>(data), 36, OBJECT_SIZE) {
        let _ = object_fields(&bytes);
        if let Ok(object) = Object::parse(&bytes, Bda::new(0)) {
            assert_eq!(object.write(), bytes);
            let _ = (object.slot().start(), object.chunk(), object.index());
        }
    }
}

/// A journal entry: a value that is written to the same bytes, or an error.
pub fn journal(data: &[u8]) {
    let mut bytes = array::<ENTRY_SIZE>(data);
    // Only what is right within gets further than the object.
    let [_, image] = with_checksum(array::<OBJECT_SIZE>(&bytes), 36, OBJECT_SIZE);
    bytes[..OBJECT_SIZE].copy_from_slice(&image);
    for bytes in with_checksum(bytes, 156, ENTRY_SIZE) {
        let _ = entry_fields(&bytes);
        if let Ok(entry) = JournalEntry::parse(&bytes, Bda::new(0)) {
            assert_eq!(entry.write(), bytes);
        }
    }
}

/// A leader record, and a lease: a value that is written to the same bytes, or an error.
pub fn leader(data: &[u8]) {
    for bytes in with_checksum(array::<LEADER_SIZE>(data), 256, 256) {
        if let Ok(record) = LeaderRecord::parse(&bytes) {
            assert_eq!(record.write()[..LEADER_SIZE], bytes);
            assert!(record.entries() * ENTRY_SIZE as u64 <= record.log_size);
            assert!(record.tail_lsn() <= record.head_lsn);
        }
    }
    for sector in with_checksum(array::<SECTOR_SIZE>(data), 256, 256) {
        if let Ok(Some(record)) = LeaseRecord::parse(&sector, 0) {
            assert_eq!(LeaseRecord::parse(&record.write(), 0).unwrap(), Some(record));
        }
    }
}

/// A page of a client's file, its own or the daemon's: whatever it says is a value, and is written so that it says the same.
pub fn handshake(data: &[u8]) {
    let page = array::<SYNC_SIZE>(data);
    // Text that is no UTF-8, and one that has no end, is written otherwise, and once only.
    let request = MountRequest::parse(&page);
    let again = MountRequest::parse(&request.write());
    assert_eq!(MountRequest::parse(&again.write()), again);
    assert_eq!((again.flags, again.host, again.epoch), (request.flags, request.host, request.epoch));
    let ack = Ack::parse(&page);
    let again = Ack::parse(&ack.write());
    assert_eq!((again.error, again.connection, again.mount), (ack.error, ack.connection, ack.mount));
}

/// Shared memory into which anybody writes anything.
pub struct SharedMemory(Memory);

impl SharedMemory {
    /// Makes it in a directory, in which nothing is left.
    pub fn new(directory: &Path) -> Self {
        let places = Places { shm: directory.to_owned(), ..Places::default() };
        let (memory, _) = Memory::serve(&places, "fuzz").unwrap();
        for region in RegionNo::all() {
            std::fs::remove_file(places.region("fuzz", region)).unwrap();
        }
        Self(memory)
    }

    /// A slot of any bytes: a request, and an answer to it, or none; and a request is put so that it is got back.
    ///
    /// The first byte says in which region, the next 256 are the request's, 288 the answer's, the rest is in the buffer, its
    /// first half at the start and the other where a rename has its second path.
    pub fn slot(&self, data: &[u8]) {
        let (region, data) = data.split_first().unwrap_or((&0, &[]));
        let region = RegionNo::all().nth(usize::from(*region) % 7).unwrap();
        let channel = self.0.channel(ChannelNo::of(region, 0));
        let [slot, other] = [0, 1].map(|slot| channel.slot(SlotNo::new(slot).unwrap()));
        slot.put_request(&array(data));
        slot.put_response(&array(data.get(256..).unwrap_or_default()));
        let text = data.get(544..).unwrap_or_default();
        let text = &text[..text.len().min(4096)];
        let (first, second) = text.split_at(text.len() / 2);
        slot.copy_to_buffer(0, first);
        if region.unit() >= 8192 {
            slot.copy_to_buffer(4096, second);
        }
        let (header, request) = Request::get(slot);
        let Ok(request) = request else { return };
        assert!(request.buffer_size() <= region.unit(), "{request:?}");
        assert!(!request.name().is_empty());
        request.put(header, other);
        assert_eq!(Request::get(other), (header, Ok(request.clone())));
        if let Ok(reply) = response::get(&request, slot) {
            response::put(request.number(), &Ok(reply.clone()), other);
            assert_eq!(response::get(&request, other), Ok(reply));
        }
        let mut entry = [0; DIRENT_SIZE];
        slot.copy_from_buffer(0, &mut entry);
        let entry = WireEntry::parse(&entry);
        assert_eq!(WireEntry::parse(&entry.write()), entry);
    }
}

/// A volume that is damaged and mended again.
pub struct Victim {
    path: PathBuf,
    file: File,
}

/// What stood where something was damaged; it is put back in the end, also where the test fails.
struct Undo<'a> {
    file: &'a File,
    parts: Vec<(u64, Vec<u8>)>,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        for (at, bytes) in self.parts.iter().rev() {
            self.file.write_all_at(bytes, *at).unwrap();
        }
    }
}

/// One damage: 12 bytes of the input.
const DAMAGE: usize = 12;

/// Most damages at once.
const DAMAGES: usize = 32;

impl Victim {
    /// The image at `path`, which is to be damaged.
    pub fn new(path: &Path) -> Self {
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        Self { path: path.to_owned(), file }
    }

    /// Damages the volume as the input says, does everything that can be done with it, and mends it.
    pub fn volume(&self, data: &[u8]) {
        let mut undo = Undo { file: &self.file, parts: Vec::new() };
        for damage in data.chunks_exact(DAMAGE).take(DAMAGES) {
            self.damage(damage.try_into().unwrap(), &mut undo);
        }
        self.use_all();
    }

    /// Two bytes say where, one which word, one how, the rest what.
    fn damage(&self, damage: [u8; DAMAGE], undo: &mut Undo<'_>) {
        let [low, high, word, how, value @ ..] = damage;
        let place = u64::from(u16::from_le_bytes([low, high]));
        let (word, right) = (usize::from(word), how & 0x10 != 0);
        match how & 7 {
            // The sets lie behind one another: 80, 64 and 64 sectors of 32 objects.
            0..=3 => {
                let at = 0x1000 + place % (208 * 32) * OBJECT_SIZE as u64;
                self.patch::<OBJECT_SIZE>(at, word % 16 * 8, &value, right.then_some((36, OBJECT_SIZE)), undo);
            }
            4 => self.patch::<LEADER_SIZE>(LEADER_AT.bytes(), word % 32 * 8, &value, right.then_some((256, 256)), undo),
            5 => self.patch::<SECTOR_SIZE>(0, word % 15 * 8, &value, right.then_some((112, 120)), undo),
            how => {
                // The journal's first block follows that of the leader record.
                let at = 2 * LEADER_AT.bytes() + place % 4096 * ENTRY_SIZE as u64;
                if how == 6 {
                    self.patch::<OBJECT_SIZE>(at, word % 16 * 8, &value, Some((36, OBJECT_SIZE)), undo);
                    self.patch::<ENTRY_SIZE>(at, 164, &[], right.then_some((156, ENTRY_SIZE)), undo);
                } else {
                    let word = (16 + word % 16) * 8;
                    self.patch::<ENTRY_SIZE>(at, word, &value, right.then_some((156, ENTRY_SIZE)), undo);
                }
            }
        }
    }

    fn patch<const N: usize>(
        &self,
        at: u64,
        offset: usize,
        value: &[u8],
        right: Option<(usize, usize)>,
        undo: &mut Undo<'_>,
    ) {
        let mut bytes = [0; N];
        self.file.read_exact_at(&mut bytes, at).unwrap();
        undo.parts.push((at, bytes.to_vec()));
        bytes[offset..offset + value.len()].copy_from_slice(value);
        if let Some((place, covered)) = right {
            [_, bytes] = with_checksum(bytes, place, covered);
        }
        self.file.write_all_at(&bytes, at).unwrap();
    }

    /// Whatever the bytes, all of this ends, in a value or an error; and what a check finds sound can all be read.
    fn use_all(&self) {
        let report = check(&mut Device::open(&self.path).unwrap());
        let sound = report.is_ok_and(|report| report.complete && report.damages() == 0);
        let used = Volume::open(&self.path).and_then(|mut volume| read_all(&mut volume));
        if let (true, Err(error)) = (sound, used) {
            panic!("found sound, but: {error}: {:?}", std::error::Error::source(&error));
        }
    }
}

fn read_all(volume: &mut Volume) -> blockdev::Result<()> {
    let visits = volume.metadata().walk(InodeNo::ROOT)?.collect::<blockdev::Result<Vec<_>>>()?;
    let mut buffer = vec![0; 8192];
    for visit in visits {
        volume.metadata().disk_usage(&visit.inode)?;
        if visit.stat.kind == FileKind::File {
            let map = volume.metadata().file_map(visit.stat.inode)?;
            volume.read(&map, map.size.saturating_sub(100), &mut buffer)?;
        }
    }
    volume.refresh().map(|_| ())
}
