//! Requests and responses as the original's client and daemon left them in shared memory: release
//! `pfsd4pg-release-1.2.42-20220419`, connection 2, process 26376.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs;
use std::path::PathBuf;

use pfs::proto::geometry::{PAGE, REQUEST_SIZE, REQUESTS_AT, RESPONSE_SIZE, RESPONSES_AT};
use pfs::proto::request::{self, FileId};
use pfs::proto::response::{self, Answer, FileType, Reply, WireEntry, WireStat};
use pfs::proto::{
    ChannelNo, Header, Memory, MountId, OpenFlags, Owner, Places, RegionNo, Request, ShmEpoch, Slot, SlotState, Whence,
    slot,
};

const OWNER: Owner = Owner { connection: 2, pid: 26_376 };

/// The file of the trace.
const FILE: FileId = FileId { inode: 0x804, btime: 0x0006_60df_eac5_a406 };

/// Shared memory in which nothing was asked yet.
struct Trace {
    directory: tempfile::TempDir,
    memory: Memory,
}

/// The records of a slot after a request, as they stand in the region's file, and the first bytes of its buffer.
struct Records {
    request: Vec<u8>,
    response: Vec<u8>,
    buffer: Vec<u8>,
}

impl Trace {
    fn new() -> Self {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let places = Places { shm: directory.path().to_owned(), ..Places::default() };
        let (memory, _) = Memory::serve(&places, "loop1").unwrap();
        Self { directory, memory }
    }

    fn file(&self, region: RegionNo) -> PathBuf {
        self.directory.path().join(format!("shm_pfsd-loop1_{:02}", region.index()))
    }

    /// A request goes all its way, in the first slot of a channel of the region that is the smallest that is large enough.
    fn run(&self, request: &Request, kind: i32, data: &[u8], answer: &Answer, entries: &[WireEntry]) -> Records {
        let region = RegionNo::for_bytes(request.buffer_size()).next().unwrap();
        let channel = self.memory.channel(ChannelNo::of(region, 22));
        let number = channel.number();
        let claimed = slot::claim(channel.bitmap(), number.slots(), |slot| channel.slot(slot).word(), OWNER).unwrap();
        let slot = channel.slot(claimed);
        slot.set_epoch(channel.epoch());
        slot.semaphore().init();
        request.put(Header { mount: MountId(0), file_type: kind }, slot);
        slot.copy_to_buffer(0, data);
        assert!(slot::post(slot.word(), OWNER));

        let taken = slot::take(slot.word(), slot.state()).unwrap();
        assert_eq!(slot.epoch(), ShmEpoch(0));
        let (header, asked) = Request::get(slot);
        assert_eq!((header, asked.as_ref()), (Header { mount: MountId(0), file_type: kind }, Ok(request)));
        for (index, entry) in entries.iter().enumerate() {
            slot.copy_to_buffer(index * response::ENTRY_SIZE, &entry.write());
        }
        response::put(request.number(), answer, slot);
        assert!(slot::finish(slot.word(), taken));
        slot.semaphore().post();

        assert!(slot::is_answered(slot.word(), OWNER));
        assert!(slot.semaphore().wait(std::time::Duration::ZERO));
        assert_eq!(response::get(request, slot), *answer);
        assert!(slot::release(slot.word(), channel.bitmap(), claimed, OWNER));
        assert_eq!(slot.state().state(), Some(SlotState::Free));
        self.records(slot)
    }

    fn records(&self, slot: Slot<'_>) -> Records {
        let number = slot.channel().number();
        let region = fs::read(self.file(number.region())).unwrap();
        assert!(number.start() >= PAGE);
        let at = |start: usize, size: usize| region[number.start() + start..][..size].to_vec();
        Records {
            request: at(REQUESTS_AT + slot.number().index() * REQUEST_SIZE, REQUEST_SIZE),
            response: at(RESPONSES_AT + slot.number().index() * RESPONSE_SIZE, RESPONSE_SIZE),
            buffer: at(pfs::proto::geometry::BUFFERS_AT, 8192),
        }
    }
}

impl Records {
    /// Sees that the records are these bytes and zeroes. A line is a record, an offset and what stands there: `R` the request,
    /// `S` the response.
    fn are(&self, lines: &str) {
        let (mut request, mut response) = (vec![0; REQUEST_SIZE], vec![0; RESPONSE_SIZE]);
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (place, bytes) = line.split_once(':').unwrap();
            let (record, at) = place.split_once(' ').unwrap();
            let record = if record == "R" { &mut request } else { &mut response };
            let at = usize::from_str_radix(at, 16).unwrap();
            for (index, byte) in bytes.split_whitespace().enumerate() {
                record[at + index] = u8::from_str_radix(byte, 16).unwrap();
            }
        }
        assert_eq!(dump(&self.request), dump(&request), "request");
        assert_eq!(dump(&self.response), dump(&response), "response");
    }
}

/// What is not zero, by lines.
fn dump(bytes: &[u8]) -> Vec<String> {
    let lines = bytes.chunks(16).enumerate().filter(|(_, line)| line.iter().any(|byte| *byte != 0));
    lines.map(|(index, line)| format!("{:03x}: {line:02x?}", index * 16)).collect()
}

fn path(name: &str) -> Vec<u8> {
    name.as_bytes().to_vec()
}

#[test]
fn mkdir() {
    let request = Request::Mkdir { path: path("/loop1/cdir"), mode: 0 };
    let records = Trace::new().run(&request, 0, b"", &Ok(Reply::Done), &[]);
    records.are(
        "R 040: 02 00 00 00 08 67 00 00
         R 080: 00 00 00 00 0b 00 00 00
         S 008: 80 00 00 00
         S 020: f3 03 00 00 00 00 00 00",
    );
    assert_eq!(records.buffer[..13], *b"/loop1/cdir\0\0");
}

#[test]
fn open() {
    let request = Request::Open { path: path("/loop1/file"), flags: OpenFlags(0x42), mode: 0o644 };
    let answer = Ok(Reply::Opened { file: FILE, kind: FileType::OTHER });
    Trace::new().run(&request, 0, b"", &answer, &[]).are(
        "R 040: 02 00 00 00 08 67 00 00
         R 080: 00 00 00 00 01 00 00 00
         R 140: 42 00 00 00 a4 01 00 00
         S 008: 80 00 00 00
         S 020: e9 03 00 00 00 00 00 00 06 a4 c5 ea df 60 06 00
         S 030: 0d 00 00 00
         S 0a0: 04 08 00 00 00 00 00 00",
    );
}

#[test]
fn open_of_what_is_missing() {
    let request = Request::Open { path: path("/loop1/none"), flags: OpenFlags(2), mode: 0 };
    Trace::new().run(&request, 0, b"", &Err(libc::ENOENT), &[]).are(
        "R 040: 02 00 00 00 08 67 00 00
         R 080: 00 00 00 00 01 00 00 00
         R 140: 02 00 00 00
         S 008: 80 00 00 00
         S 020: e9 03 00 00 02 00 00 00
         S 0a0: ff ff ff ff ff ff ff ff",
    );
}

#[test]
fn fallocate() {
    let request = Request::Fallocate { file: FILE, offset: 0, len: 65536, mode: 0 };
    Trace::new().run(&request, 13, b"", &Ok(Reply::Allocated { inode: FILE.inode }), &[]).are(
        "R 040: 02 00 00 00 08 67 00 00
         R 080: 00 00 00 00 09 00 00 00 06 a4 c5 ea df 60 06 00
         R 090: 0d
         R 140: 04 08 00 00 00 00 00 00 00 00 00 00 00 00 00 00
         R 150: 00 00 01 00 00 00 00 00 00 00 00 00
         S 008: 80 00 00 00
         S 020: f1 03 00 00 00 00 00 00
         S 0a0: 04 08 00 00 00 00 00 00 00 00 00 00",
    );
}

#[test]
fn pwrite() {
    let request = Request::Write { file: FILE, offset: Some(16384), len: 8192, flags: OpenFlags(0x42) };
    let answer = Ok(Reply::Written { inode: FILE.inode, len: 8192, size: 65536 });
    let records = Trace::new().run(&request, 13, &[7; 8192], &answer, &[]);
    records.are(
        "R 040: 02 00 00 00 08 67 00 00
         R 080: 00 00 00 00 03 00 00 00 06 a4 c5 ea df 60 06 00
         R 090: 0d
         R 140: 04 08 00 00 00 00 00 00 00 40 00 00 00 00 00 00
         R 150: 00 20 00 00 00 00 00 00 42 00 00 00
         S 008: 80 00 00 00
         S 020: eb 03 00 00 00 00 00 00
         S 0a0: 04 08 00 00 00 00 00 00 00 20 00 00 00 00 00 00
         S 0b0: 00 00 01 00 00 00 00 00",
    );
    assert_eq!(records.buffer, [7; 8192]);
}

/// Not of that trace, where there was none: by the numbers that the original's sources have for it.
#[test]
fn a_write_at_the_end() {
    let request = Request::Write { file: FILE, offset: None, len: 1, flags: OpenFlags(libc::O_APPEND) };
    let records = Trace::new().run(&request, 13, b"x", &Err(libc::ESTALE), &[]);
    records.are(
        "R 040: 02 00 00 00 08 67 00 00
         R 080: 00 00 00 00 03 00 00 00 06 a4 c5 ea df 60 06 00
         R 090: 0d
         R 140: 04 08 00 00 00 00 00 00 fe ff ff ff ff ff ff ff
         R 150: 01 00 00 00 00 00 00 00 00 04 00 00
         S 008: 80 00 00 00
         S 020: eb 03 00 00 74 00 00 00
         S 0a8: ff ff ff ff ff ff ff ff",
    );
}

#[test]
fn pread() {
    let request = Request::Read { file: FILE, offset: 16384, len: 8192 };
    Trace::new().run(&request, 13, b"", &Ok(Reply::Read { inode: FILE.inode, len: 8192 }), &[]).are(
        "R 040: 02 00 00 00 08 67 00 00
         R 080: 00 00 00 00 02 00 00 00 06 a4 c5 ea df 60 06 00
         R 090: 0d
         R 140: 04 08 00 00 00 00 00 00 00 20 00 00 00 00 00 00
         R 150: 00 40 00 00 00 00 00 00
         S 008: 80 00 00 00
         S 020: ea 03 00 00 00 00 00 00
         S 0a0: 04 08 00 00 00 00 00 00 00 20 00 00 00 00 00 00",
    );
}

#[test]
fn stat() {
    let stat = WireStat {
        inode: 0x804,
        links: 1,
        mode: 0o100_777,
        size: 65536,
        blocks: 8192,
        times: [0, 0x6912_3456, 0x6912_3457],
    };
    let records = Trace::new().run(&Request::Stat { path: path("/loop1/file") }, 0, b"", &Ok(Reply::Stat(stat)), &[]);
    records.are(
        "R 040: 02 00 00 00 08 67 00 00
         R 080: 00 00 00 00 08 00 00 00
         S 008: 80 00 00 00
         S 020: f0 03 00 00 00 00 00 00
         S 0a8: 04 08
         S 0b0: 01
         S 0b8: ff 81
         S 0d0: 00 00 01
         S 0d8: 00 00 40
         S 0e0: 00 20
         S 0f8: 56 34 12 69
         S 108: 57 34 12 69
         S 130: 00",
    );
    assert_eq!(records.buffer[..12], *b"/loop1/file\0");
}

#[test]
fn lseek() {
    let request = Request::Lseek { file: FILE, offset: 0, whence: Whence(libc::SEEK_END) };
    Trace::new().run(&request, 13, b"", &Ok(Reply::End(65536)), &[]).are(
        "R 040: 02 00 00 00 08 67 00 00
         R 080: 00 00 00 00 11 00 00 00 06 a4 c5 ea df 60 06 00
         R 090: 0d
         R 140: 04 08 00 00 00 00 00 00
         R 150: 02
         S 008: 80 00 00 00
         S 020: f9 03
         S 0a0: 00 00 01 00",
    );
}

#[test]
fn ftruncate() {
    Trace::new().run(&Request::Ftruncate { file: FILE, len: 5000 }, 13, b"", &Ok(Reply::Done), &[]).are(
        "R 040: 02 00 00 00 08 67 00 00
         R 080: 00 00 00 00 04 00 00 00 06 a4 c5 ea df 60 06 00
         R 090: 0d
         R 140: 04 08 00 00 00 00 00 00 88 13
         S 008: 80 00 00 00
         S 020: ec 03",
    );
}

#[test]
fn rename() {
    let request = Request::Rename { from: path("/loop1/file"), to: path("/loop1/file2") };
    let records = Trace::new().run(&request, 0, b"", &Ok(Reply::Done), &[]);
    records.are(
        "R 040: 02 00 00 00 08 67 00 00
         R 080: 00 00 00 00 10 00 00 00
         S 008: 80 00 00 00
         S 020: f8 03",
    );
    assert_eq!(records.buffer[..12], *b"/loop1/file\0");
    assert_eq!(records.buffer[4096..4109], *b"/loop1/file2\0");
}

#[test]
fn opendir() {
    let request = Request::Opendir { path: path("/loop1/cdir") };
    Trace::new().run(&request, 0, b"", &Ok(Reply::Directory { inode: 4, first: 6 }), &[]).are(
        "R 040: 02 00 00 00 08 67 00 00
         R 080: 00 00 00 00 0d 00 00 00
         S 008: 80 00 00 00
         S 020: f5 03
         S 0a8: 04
         S 0b0: 06",
    );
}

#[test]
fn readdir() {
    let request = Request::Readdir { directory: 4, entry: 6, index: 0 };
    assert_eq!(request.buffer_size(), request::ENTRIES_SIZE);
    let entry = WireEntry { inode: 0x804, is_directory: false, name: b"file2".to_vec() };
    let answer = Ok(Reply::Entries { next: 0, index: 1, bytes: 280 });
    let records = Trace::new().run(&request, 0, b"", &answer, std::slice::from_ref(&entry));
    records.are(
        "R 040: 02 00 00 00 08 67 00 00
         R 080: 00 00 00 00 0e 00 00 00
         R 140: 04 00 00 00 00 00 00 00 06
         S 008: 80 00 00 00
         S 020: f6 03
         S 0b0: 01
         S 0b8: 18 01",
    );
    let bytes: &[u8; 280] = records.buffer.first_chunk().unwrap();
    assert_eq!(bytes[..8], [4, 8, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[0x12], 1);
    assert_eq!(bytes[0x13..0x19], *b"file2\0");
    assert_eq!(WireEntry::parse(bytes), entry);
}
