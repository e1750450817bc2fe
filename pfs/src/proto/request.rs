//! What a client asks.

use super::memory::{REQUEST, RequestBytes, Slot};
use super::record::{Record, RecordMut};
use super::{DISK_NAME_MAX, IO_MAX, MountId};

/// Bytes in the buffer for a path, the NUL that ends it included.
pub const PATH_SIZE: usize = 4096;

/// Bytes in the buffer for entries of a directory.
pub const ENTRIES_SIZE: usize = 20_480;

/// The offset with which a client asks to write at the end of the file.
const AT_END: i64 = -2;

/// A file or directory as a client knows it: nobody keeps it open for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId {
    /// Its inode.
    pub inode: i64,
    /// When it was made, which tells it from what has the inode later.
    pub btime: u64,
}

/// How to open: what open(2) is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFlags(pub i32);

impl OpenFlags {
    /// Whether to make it where it is missing.
    #[must_use]
    pub const fn create(self) -> bool {
        self.0 & libc::O_CREAT != 0
    }

    /// Whether to fail where it exists.
    #[must_use]
    pub const fn exclusive(self) -> bool {
        self.0 & libc::O_EXCL != 0
    }

    /// Whether to empty it.
    #[must_use]
    pub const fn truncate(self) -> bool {
        self.0 & libc::O_TRUNC != 0
    }

    /// Whether all writes go to the end.
    #[must_use]
    pub const fn append(self) -> bool {
        self.0 & libc::O_APPEND != 0
    }
}

/// From where to seek. A daemon is asked only where it knows better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whence(pub i32);

/// A path: whatever stands before the NUL, a slash and the disk's name first.
pub type PathBytes = Vec<u8>;

/// What is asked. Offsets and lengths are bytes, as the client gave them: nothing was checked yet.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are the arguments of the system calls of these names")]
pub enum Request {
    /// Which file a path leads to.
    Open { path: PathBytes, flags: OpenFlags, mode: u32 },
    /// Fill the buffer.
    Read { file: FileId, offset: i64, len: u64 },
    /// Write what is in the buffer. Where no offset is given, at the end.
    Write { file: FileId, offset: Option<i64>, len: u64, flags: OpenFlags },
    /// Make a file so long.
    Ftruncate { file: FileId, len: i64 },
    /// Make a file so long.
    Truncate { path: PathBytes, len: i64 },
    /// Remove a file.
    Unlink { path: PathBytes },
    /// What is known of a file.
    Fstat { file: FileId },
    /// What is known of a file or directory.
    Stat { path: PathBytes },
    /// Give a file its blocks.
    Fallocate { file: FileId, offset: i64, len: i64, mode: i32 },
    /// Whether a path leads to a directory.
    Chdir { path: PathBytes },
    /// Make a directory.
    Mkdir { path: PathBytes, mode: u32 },
    /// Remove a directory.
    Rmdir { path: PathBytes },
    /// Which directory a path leads to.
    Opendir { path: PathBytes },
    /// The entries of a directory, from the `index`-th on, which was in direntry `entry` when it was asked last.
    Readdir { directory: i64, entry: i64, index: u64 },
    /// Whether a path leads to something.
    Access { path: PathBytes, mode: i32 },
    /// Call it otherwise.
    Rename { from: PathBytes, to: PathBytes },
    /// Where a file ends.
    Lseek { file: FileId, offset: i64, whence: Whence },
    /// The disk has grown.
    Growfs { disk: String },
}

/// What stands in every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Which mount it is for.
    pub mount: MountId,
    /// What kind of file the client takes it for; for statistics.
    pub file_type: i32,
}

// The numbers of requests.
const OPEN: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 3;
const FTRUNCATE: i32 = 4;
const TRUNCATE: i32 = 5;
const UNLINK: i32 = 6;
const FSTAT: i32 = 7;
const STAT: i32 = 8;
const FALLOCATE: i32 = 9;
const CHDIR: i32 = 10;
const MKDIR: i32 = 11;
const RMDIR: i32 = 12;
const OPENDIR: i32 = 13;
const READDIR: i32 = 14;
const ACCESS: i32 = 15;
const RENAME: i32 = 16;
const LSEEK: i32 = 17;
const GROWFS: i32 = 18;

/// What a request is called, by its number.
pub const NAMES: [&str; 19] = [
    "other",
    "open",
    "read",
    "write",
    "ftruncate",
    "truncate",
    "unlink",
    "fstat",
    "stat",
    "fallocate",
    "chdir",
    "mkdir",
    "rmdir",
    "opendir",
    "readdir",
    "access",
    "rename",
    "lseek",
    "growfs",
];

/// Why a request is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadRequest {
    /// There is none of this number.
    Unknown(i32),
    /// Its buffer is too small for what is asked, or a path in it does not end.
    Buffer(i32),
}

impl Request {
    /// Its number.
    #[must_use]
    pub fn number(&self) -> i32 {
        match self {
            Self::Open { .. } => OPEN,
            Self::Read { .. } => READ,
            Self::Write { .. } => WRITE,
            Self::Ftruncate { .. } => FTRUNCATE,
            Self::Truncate { .. } => TRUNCATE,
            Self::Unlink { .. } => UNLINK,
            Self::Fstat { .. } => FSTAT,
            Self::Stat { .. } => STAT,
            Self::Fallocate { .. } => FALLOCATE,
            Self::Chdir { .. } => CHDIR,
            Self::Mkdir { .. } => MKDIR,
            Self::Rmdir { .. } => RMDIR,
            Self::Opendir { .. } => OPENDIR,
            Self::Readdir { .. } => READDIR,
            Self::Access { .. } => ACCESS,
            Self::Rename { .. } => RENAME,
            Self::Lseek { .. } => LSEEK,
            Self::Growfs { .. } => GROWFS,
        }
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &'static str {
        NAMES[usize::try_from(self.number()).unwrap_or(0)]
    }

    /// How large its slot's buffer must be, in bytes: for what it carries, or for the answer.
    #[must_use]
    pub fn buffer_size(&self) -> usize {
        match self {
            Self::Read { len, .. } | Self::Write { len, .. } => usize::try_from(*len).unwrap_or(usize::MAX),
            Self::Readdir { .. } => ENTRIES_SIZE,
            Self::Rename { .. } => 2 * PATH_SIZE,
            Self::Ftruncate { .. }
            | Self::Fstat { .. }
            | Self::Fallocate { .. }
            | Self::Lseek { .. }
            | Self::Growfs { .. } => 0,
            _ => PATH_SIZE,
        }
    }

    /// Puts it into a slot: its record, and what it carries in the buffer but data to be written.
    pub fn put(&self, header: Header, slot: Slot<'_>) {
        let mut bytes: RequestBytes = [0; REQUEST.end - REQUEST.start];
        let mut record = RecordMut::new(&mut bytes, REQUEST.start);
        record.put_i32(128, header.mount.0);
        record.put_i32(132, self.number());
        record.put_i32(144, header.file_type);
        let path = |from: usize, path: &[u8]| {
            let mut padded = [0; PATH_SIZE];
            let len = path.len().min(PATH_SIZE - 1);
            padded[..len].copy_from_slice(&path[..len]);
            slot.copy_to_buffer(from, &padded);
        };
        let put_file = |record: &mut RecordMut<'_>, file: &FileId| {
            record.put_u64(136, file.btime);
            record.put_i64(320, file.inode);
        };
        match self {
            Self::Open { path: name, flags, mode } => {
                record.put_i32(320, flags.0);
                record.put_u32(324, *mode);
                path(0, name);
            }
            Self::Read { file, offset, len } => {
                put_file(&mut record, file);
                record.put_u64(328, *len);
                record.put_i64(336, *offset);
            }
            Self::Write { file, offset, len, flags } => {
                put_file(&mut record, file);
                record.put_i64(328, offset.unwrap_or(AT_END));
                record.put_u64(336, *len);
                record.put_i32(344, flags.0);
            }
            Self::Ftruncate { file, len } => {
                put_file(&mut record, file);
                record.put_i64(328, *len);
            }
            Self::Truncate { path: name, len } => {
                record.put_i64(320, *len);
                path(0, name);
            }
            Self::Fstat { file } => put_file(&mut record, file),
            Self::Fallocate { file, offset, len, mode } => {
                put_file(&mut record, file);
                record.put_i64(328, *offset);
                record.put_i64(336, *len);
                record.put_i32(344, *mode);
            }
            Self::Mkdir { path: name, mode } => {
                record.put_u32(320, *mode);
                path(0, name);
            }
            Self::Readdir { directory, entry, index } => {
                record.put_i64(320, *directory);
                record.put_i64(328, *entry);
                record.put_u64(336, *index);
            }
            Self::Access { path: name, mode } => {
                record.put_i32(320, *mode);
                path(0, name);
            }
            Self::Rename { from, to } => {
                path(0, from);
                path(PATH_SIZE, to);
            }
            Self::Lseek { file, offset, whence } => {
                put_file(&mut record, file);
                record.put_i64(328, *offset);
                record.put_i32(336, whence.0);
            }
            Self::Growfs { disk } => record.put_text(320, DISK_NAME_MAX + 1, disk),
            Self::Unlink { path: name }
            | Self::Stat { path: name }
            | Self::Chdir { path: name }
            | Self::Rmdir { path: name }
            | Self::Opendir { path: name } => path(0, name),
        }
        slot.put_request(&bytes);
    }

    /// Reads what is in a slot, whatever that is. All of it is copied first, so that nothing changes while it is looked at.
    ///
    /// # Errors
    /// When it is no request.
    pub fn get(slot: Slot<'_>) -> (Header, Result<Self, BadRequest>) {
        let bytes = slot.request();
        let record = Record::new(&bytes, REQUEST.start);
        let header = Header { mount: MountId(record.i32(128)), file_type: record.i32(144) };
        (header, Self::parse(record, slot))
    }

    fn parse(record: Record<'_>, slot: Slot<'_>) -> Result<Self, BadRequest> {
        let number = record.i32(132);
        let unit = slot.channel().number().region().unit();
        let path = |from: usize| {
            let mut bytes = vec![0; PATH_SIZE];
            if from + PATH_SIZE > unit {
                return Err(BadRequest::Buffer(number));
            }
            slot.copy_from_buffer(from, &mut bytes);
            let end = bytes.iter().position(|byte| *byte == 0).ok_or(BadRequest::Buffer(number))?;
            bytes.truncate(end);
            Ok(bytes)
        };
        let file = || FileId { inode: record.i64(320), btime: record.u64(136) };
        let request = match number {
            OPEN => Self::Open { path: path(0)?, flags: OpenFlags(record.i32(320)), mode: record.u32(324) },
            READ => Self::Read { file: file(), len: record.u64(328), offset: record.i64(336) },
            WRITE => {
                let (offset, flags) = (record.i64(328), OpenFlags(record.i32(344)));
                let offset = (offset != AT_END).then_some(offset);
                Self::Write { file: file(), offset, len: record.u64(336), flags }
            }
            FTRUNCATE => Self::Ftruncate { file: file(), len: record.i64(328) },
            TRUNCATE => Self::Truncate { path: path(0)?, len: record.i64(320) },
            UNLINK => Self::Unlink { path: path(0)? },
            FSTAT => Self::Fstat { file: file() },
            STAT => Self::Stat { path: path(0)? },
            FALLOCATE => {
                let (offset, len) = (record.i64(328), record.i64(336));
                Self::Fallocate { file: file(), offset, len, mode: record.i32(344) }
            }
            CHDIR => Self::Chdir { path: path(0)? },
            MKDIR => Self::Mkdir { path: path(0)?, mode: record.u32(320) },
            RMDIR => Self::Rmdir { path: path(0)? },
            OPENDIR => Self::Opendir { path: path(0)? },
            READDIR => Self::Readdir { directory: record.i64(320), entry: record.i64(328), index: record.u64(336) },
            ACCESS => Self::Access { path: path(0)?, mode: record.i32(320) },
            RENAME => Self::Rename { from: path(0)?, to: path(PATH_SIZE)? },
            LSEEK => Self::Lseek { file: file(), offset: record.i64(328), whence: Whence(record.i32(336)) },
            GROWFS => Self::Growfs { disk: record.text(320, DISK_NAME_MAX + 1) },
            number => return Err(BadRequest::Unknown(number)),
        };
        if request.buffer_size() > unit || request.buffer_size() > IO_MAX {
            return Err(BadRequest::Buffer(number));
        }
        Ok(request)
    }
}
