//! What a daemon answers.

use super::memory::{RESPONSE, ResponseBytes, Slot};
use super::record::{Record, RecordMut};
use super::request::{ENTRIES_SIZE, FileId, Request};

/// Bytes of a name in a directory's entries: glibc's `struct dirent`.
pub const ENTRY_SIZE: usize = 280;

/// Most entries in one answer.
pub const ENTRIES_MAX: usize = ENTRIES_SIZE / ENTRY_SIZE;

/// The number of a response is that of its request and this.
const RESPONSE_OFFSET: i32 = 1000;

/// What kind of file a path names, by how PolarDB lays out its directory. For statistics: clients say it again in each
/// request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileType(pub i32);

impl FileType {
    /// None of those that are told apart.
    pub const OTHER: Self = Self(13);

    /// What a path from the root of the volume names.
    #[must_use]
    pub fn of(path: &[u8]) -> Self {
        let has = |part: &[u8]| path.windows(part.len()).any(|window| window == part);
        let kinds: [(&[u8], i32); 6] = [
            (b"/data/global/", 3),
            (b"/data/pg_wal/", 8),
            (b"/data/pg_xact/", 7),
            (b"/data/pg_logindex/", 9),
            (b"/data/polar_fullpage/", 10),
            (b"/data/base/", 4),
        ];
        let kind = kinds.iter().find(|(part, _)| has(part)).map(|(_, kind)| *kind);
        match kind {
            Some(4) if path.ends_with(b"_vm") => Self(5),
            Some(4) if path.ends_with(b"_fsm") => Self(6),
            Some(kind) => Self(kind),
            None => Self::OTHER,
        }
    }
}

/// What stat says, as it is sent: glibc's `struct stat`, 144 bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WireStat {
    /// The inode.
    pub inode: u64,
    /// Names.
    pub links: u64,
    /// Type and permissions: 0100777 or 040777.
    pub mode: u32,
    /// Bytes.
    pub size: i64,
    /// Units of 512 bytes.
    pub blocks: i64,
    /// Last read, change of content, change of anything; seconds since 1970.
    pub times: [i64; 3],
}

/// Bytes in a block, as stat says it.
const BLOCK_SIZE: i64 = 4 << 20;

impl WireStat {
    fn put(&self, record: &mut RecordMut<'_>, at: usize) {
        record.put_u64(at, 0);
        record.put_u64(at + 8, self.inode);
        record.put_u64(at + 16, self.links);
        record.put_u32(at + 24, self.mode);
        record.put_i64(at + 48, self.size);
        record.put_i64(at + 56, BLOCK_SIZE);
        record.put_i64(at + 64, self.blocks);
        for (index, time) in self.times.iter().enumerate() {
            record.put_i64(at + 72 + 16 * index, *time);
        }
    }

    fn get(record: Record<'_>, at: usize) -> Self {
        Self {
            inode: record.u64(at + 8),
            links: record.u64(at + 16),
            mode: record.u32(at + 24),
            size: record.i64(at + 48),
            blocks: record.i64(at + 64),
            times: std::array::from_fn(|index| record.i64(at + 72 + 16 * index)),
        }
    }
}

/// What was asked for, when that went well.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variants say what their fields are")]
pub enum Reply {
    /// It is done.
    Done,
    /// What a path led to.
    Opened { file: FileId, kind: FileType },
    /// How many bytes were there to be read.
    Read { inode: i64, len: u64 },
    /// How many bytes were written, and how long the file is now.
    Written { inode: i64, len: u64, size: u64 },
    /// The file has its blocks.
    Allocated { inode: i64 },
    /// What is known of it.
    Stat(WireStat),
    /// A directory, and the direntry of its first entry; 0 where it is empty.
    Directory { inode: i64, first: i64 },
    /// So many bytes of entries are in the buffer; the next is in direntry `next`, the `index`-th. There is none when that is 0.
    Entries { next: i64, index: u64, bytes: u64 },
    /// Where the file ends.
    End(i64),
}

/// An answer: what came of it, or an errno.
pub type Answer = Result<Reply, i32>;

/// Puts an answer to request number `number` into a slot's record.
pub fn put(number: i32, answer: &Answer, slot: Slot<'_>) {
    let mut bytes: ResponseBytes = [0; RESPONSE.end - RESPONSE.start];
    let mut record = RecordMut::new(&mut bytes, RESPONSE.start);
    record.put_i32(32, number.wrapping_add(RESPONSE_OFFSET));
    record.put_i32(36, answer.as_ref().err().copied().unwrap_or(0));
    match answer {
        Ok(Reply::Done) => {}
        Ok(Reply::Opened { file, kind }) => {
            record.put_u64(40, file.btime);
            record.put_i32(48, kind.0);
            record.put_i64(160, file.inode);
        }
        Ok(Reply::Read { inode, len }) => {
            record.put_i64(160, *inode);
            record.put_u64(168, *len);
        }
        Ok(Reply::Written { inode, len, size }) => {
            record.put_i64(160, *inode);
            record.put_u64(168, *len);
            record.put_u64(176, *size);
        }
        Ok(Reply::Allocated { inode }) => record.put_i64(160, *inode),
        Ok(Reply::Stat(stat)) => stat.put(&mut record, 160),
        Ok(Reply::Directory { inode, first }) => {
            record.put_i64(168, *inode);
            record.put_i64(176, *first);
        }
        Ok(Reply::Entries { next, index, bytes }) => {
            record.put_i32(160, i32::from(*bytes == 0));
            record.put_i64(168, *next);
            record.put_u64(176, *index);
            record.put_u64(184, *bytes);
        }
        Ok(Reply::End(end)) => record.put_i64(160, *end),
        // Where a result stands it is -1: 64 bits of it where the answer is an inode, a length or an offset.
        Err(_) => match number {
            1 | 17 => record.put_i64(160, -1),
            2 | 3 => record.put_i64(168, -1),
            7 | 8 => record.put_i32(304, -1),
            9 => record.put_i32(168, -1),
            _ => record.put_i32(160, -1),
        },
    }
    slot.put_response(&bytes);
}

/// Reads the answer to `request` in a slot. What a daemon says that cannot be comes back as EPROTO.
pub fn get(request: &Request, slot: Slot<'_>) -> Answer {
    let bytes = slot.response();
    let record = Record::new(&bytes, RESPONSE.start);
    let error = record.i32(36);
    if error != 0 {
        // FALLOCATE of the original's may have a negative one.
        return Err(error.saturating_abs());
    }
    let failed = |result: i64| if result < 0 { Err(libc::EIO) } else { Ok(()) };
    match request {
        Request::Open { .. } => {
            failed(record.i64(160))?;
            let file = FileId { inode: record.i64(160), btime: record.u64(40) };
            Ok(Reply::Opened { file, kind: FileType(record.i32(48)) })
        }
        Request::Read { len: asked, .. } => {
            let len = record.i64(168);
            // This it says of an offset or inode below zero.
            let len = u64::try_from(len).map_err(|_| libc::EINVAL)?;
            if len > *asked { Err(libc::EPROTO) } else { Ok(Reply::Read { inode: record.i64(160), len }) }
        }
        Request::Write { .. } => {
            failed(record.i64(168))?;
            Ok(Reply::Written { inode: record.i64(160), len: record.u64(168), size: record.u64(176) })
        }
        Request::Fstat { .. } | Request::Stat { .. } => {
            failed(record.i32(304).into())?;
            Ok(Reply::Stat(WireStat::get(record, 160)))
        }
        Request::Fallocate { .. } => {
            failed(record.i32(168).into())?;
            Ok(Reply::Allocated { inode: record.i64(160) })
        }
        Request::Opendir { .. } => {
            failed(record.i32(160).into())?;
            Ok(Reply::Directory { inode: record.i64(168), first: record.i64(176) })
        }
        Request::Readdir { .. } => {
            failed(record.i32(160).into())?;
            let bytes = record.u64(184);
            if bytes > ENTRIES_SIZE as u64 {
                return Err(libc::EPROTO);
            }
            Ok(Reply::Entries { next: record.i64(168), index: record.u64(176), bytes })
        }
        Request::Lseek { .. } => {
            failed(record.i64(160))?;
            Ok(Reply::End(record.i64(160)))
        }
        Request::Ftruncate { .. }
        | Request::Truncate { .. }
        | Request::Unlink { .. }
        | Request::Chdir { .. }
        | Request::Mkdir { .. }
        | Request::Rmdir { .. }
        | Request::Access { .. }
        | Request::Rename { .. }
        | Request::Growfs { .. } => {
            failed(record.i32(160).into())?;
            Ok(Reply::Done)
        }
    }
}

/// A name in a directory, as it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireEntry {
    /// What is called so.
    pub inode: u64,
    /// Whether that is a directory. The original says 1 for a file and 2 for a directory, which is not what dirent.h says.
    pub is_directory: bool,
    /// At most 255 bytes.
    pub name: Vec<u8>,
}

impl WireEntry {
    /// As it stands in the buffer.
    #[must_use]
    pub fn write(&self) -> [u8; ENTRY_SIZE] {
        let mut bytes = [0; ENTRY_SIZE];
        bytes[..8].copy_from_slice(&self.inode.to_le_bytes());
        bytes[18] = if self.is_directory { 2 } else { 1 };
        let len = self.name.len().min(255);
        bytes[19..19 + len].copy_from_slice(&self.name[..len]);
        bytes
    }

    /// What stands in the buffer.
    #[must_use]
    pub fn parse(bytes: &[u8; ENTRY_SIZE]) -> Self {
        let mut inode = [0; 8];
        inode.copy_from_slice(&bytes[..8]);
        let name = &bytes[19..19 + 256];
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(255);
        Self { inode: u64::from_le_bytes(inode), is_directory: bytes[18] == 2, name: name[..end].to_vec() }
    }
}
