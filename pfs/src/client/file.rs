//! Files, by what the client knows of them: pfsd keeps nothing open.

use std::io::SeekFrom;
use std::sync::atomic::{AtomicI64, Ordering};

use blockdev::{Error, Result};
use nix::errno::Errno;

use super::Client;
use super::call::Failure;
use crate::proto::request::FileId;
use crate::proto::response::{FileType, Reply, WireStat};
use crate::proto::{IO_MAX, OpenFlags, Request, Whence};

/// A file or directory that was opened.
///
/// There is nothing to close: pfsd has forgotten it already, and one that is removed is gone at once, for those who opened it
/// too.
#[derive(Debug)]
pub struct File {
    id: FileId,
    kind: FileType,
    flags: OpenFlags,
    path: Vec<u8>,
    /// Where [`read`](Client::read) and [`write`](Client::write) go on.
    offset: AtomicI64,
}

impl File {
    /// Its path as pfsd was told it.
    #[must_use]
    pub fn path(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.path)
    }

    /// By what pfsd knows it.
    #[must_use]
    pub fn id(&self) -> FileId {
        self.id
    }

    /// As what pfsd counts it, by its path.
    #[must_use]
    pub fn kind(&self) -> FileType {
        self.kind
    }

    /// Where [`read`](Client::read) and [`write`](Client::write) go on.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset.load(Ordering::Relaxed).cast_unsigned()
    }
}

/// An offset or length as it is sent.
fn signed(number: u64) -> Result<i64, Failure> {
    i64::try_from(number).map_err(|_| Failure::from(Errno::EINVAL))
}

/// That pfsd answered what belongs to another question.
const CONFUSED: Failure = Failure::Errno(libc::EPROTO);

impl Client {
    /// Opens a file, and makes or empties it if the flags say so. Whether it is to be read or written does not matter: all can
    /// be.
    ///
    /// # Errors
    /// ENOENT, EEXIST, EISDIR, ENOTDIR, ENAMETOOLONG; 1001 when there is no room for another file; ENODEV for another disk's.
    pub fn open(&self, path: impl AsRef<[u8]>, flags: OpenFlags, mode: u32) -> Result<File> {
        let path = path.as_ref();
        let failed = |failure: Failure| failure.error(self, format!("cannot open {}", String::from_utf8_lossy(path)));
        let full = self.full_path(path).map_err(failed)?;
        let request = Request::Open { path: full.clone(), flags, mode };
        let kind = FileType::of(&full);
        let opened = self.call(&request, kind, |_| {}, |_, reply| reply).map_err(failed)?;
        let Reply::Opened { file, kind } = opened else { return Err(failed(CONFUSED)) };
        Ok(File { id: file, kind, flags, path: full, offset: AtomicI64::new(0) })
    }

    /// Opens a file for writing, makes it where it is missing, and empties it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn create(&self, path: impl AsRef<[u8]>) -> Result<File> {
        self.open(path, OpenFlags(libc::O_CREAT | libc::O_TRUNC | libc::O_WRONLY), 0o644)
    }

    /// Reads bytes at an offset: as many as there are, at most 4 MiB. Returns how many; none at the end of the file or beyond.
    ///
    /// # Errors
    /// ENOENT when it was removed; EIO; when the pfsd is gone.
    pub fn pread(&self, file: &File, offset: u64, into: &mut [u8]) -> Result<usize> {
        let asked = into.len().min(IO_MAX);
        let into = &mut into[..asked];
        let mut read = || {
            let request = Request::Read { file: file.id, offset: signed(offset)?, len: asked as u64 };
            let drain = |slot: crate::proto::Slot<'_>, reply| {
                let Reply::Read { len, .. } = reply else { return Err(CONFUSED) };
                // No more than was asked for, as was looked at when the answer was parsed.
                let len = usize::try_from(len).unwrap_or(usize::MAX).min(asked);
                slot.copy_from_buffer(0, &mut into[..len]);
                Ok(len)
            };
            self.call(&request, file.kind, |_| {}, drain)?
        };
        read()
            .map_err(|failure| failure.error(self, format!("cannot read {asked} bytes of {} at {offset}", file.path())))
    }

    /// Writes bytes at an offset, or at the end of what was opened with `O_APPEND`. Returns how many: all.
    ///
    /// # Errors
    /// EFBIG for more than 4 MiB; ENOENT when the file was removed; ENOSPC, EROFS, EIO; when the pfsd is gone. What goes to
    /// the end of the file fails with ESTALE where pfsd was started anew meanwhile, since it may be there already.
    pub fn pwrite(&self, file: &File, offset: u64, bytes: &[u8]) -> Result<usize> {
        let offset = if file.flags.append() { None } else { Some(offset) };
        self.write_at(file, offset, bytes).map(|(len, _)| len)
    }

    /// Writes bytes at the end of the file. Returns where that was.
    ///
    /// The original's pfsd ends over this, as it was built with a newer compiler than its authors'.
    ///
    /// # Errors
    /// As [`pwrite`](Self::pwrite).
    pub fn append(&self, file: &File, bytes: &[u8]) -> Result<u64> {
        let (len, size) = self.write_at(file, None, bytes)?;
        Ok(size.saturating_sub(len as u64))
    }

    /// Writes, and returns how many bytes and how long the file is then.
    fn write_at(&self, file: &File, offset: Option<u64>, bytes: &[u8]) -> Result<(usize, u64)> {
        let len = bytes.len();
        let write = || {
            if len > IO_MAX {
                return Err(Errno::EFBIG.into());
            }
            let flags = if offset.is_none() { OpenFlags(file.flags.0 | libc::O_APPEND) } else { file.flags };
            let offset = offset.map(signed).transpose()?;
            let request = Request::Write { file: file.id, offset, len: len as u64, flags };
            let fill = |slot: crate::proto::Slot<'_>| slot.copy_to_buffer(0, bytes);
            match self.call(&request, file.kind, fill, |_, reply| reply)? {
                Reply::Written { len: written, size, .. } => {
                    let written = usize::try_from(written).ok().filter(|written| *written <= len).ok_or(CONFUSED)?;
                    Ok((written, size))
                }
                _ => Err(CONFUSED),
            }
        };
        if len == 0 {
            return Ok((0, 0));
        }
        let place = offset.map_or_else(|| "its end".to_owned(), |offset| offset.to_string());
        write().map_err(|failure| {
            let error = failure.error(self, format!("cannot write {len} bytes of {} at {place}", file.path()));
            if failure == Failure::from(Errno::EFBIG) { error.with_hint("4 MiB at a time are possible") } else { error }
        })
    }

    /// Reads where the last read or write ended.
    ///
    /// # Errors
    /// As [`pread`](Self::pread).
    pub fn read(&self, file: &File, into: &mut [u8]) -> Result<usize> {
        let len = self.pread(file, file.offset(), into)?;
        file.advance(len);
        Ok(len)
    }

    /// Writes where the last read or write ended, or at the end of what was opened with `O_APPEND`.
    ///
    /// # Errors
    /// As [`pwrite`](Self::pwrite).
    pub fn write(&self, file: &File, bytes: &[u8]) -> Result<usize> {
        if !file.flags.append() {
            let len = self.pwrite(file, file.offset(), bytes)?;
            file.advance(len);
            return Ok(len);
        }
        let (len, size) = self.write_at(file, None, bytes)?;
        if len > 0 {
            file.offset.store(size.cast_signed(), Ordering::Relaxed);
        }
        Ok(len)
    }

    /// Says where to read or write next. pfsd is asked only where the end of the file is. Returns the offset.
    ///
    /// # Errors
    /// EINVAL for a place before the file, EOVERFLOW for one beyond the largest offset.
    pub fn lseek(&self, file: &File, to: SeekFrom) -> Result<u64> {
        let seek = || match to {
            SeekFrom::Start(offset) => signed(offset),
            SeekFrom::Current(by) => file.offset.load(Ordering::Relaxed).checked_add(by).ok_or(Errno::EOVERFLOW.into()),
            SeekFrom::End(by) => {
                let request = Request::Lseek { file: file.id, offset: by, whence: Whence(libc::SEEK_END) };
                match self.call(&request, file.kind, |_| {}, |_, reply| reply)? {
                    Reply::End(end) => Ok(end),
                    _ => Err(CONFUSED),
                }
            }
        };
        let found = seek().and_then(|offset| if offset < 0 { Err(Errno::EINVAL.into()) } else { Ok(offset) });
        let offset =
            found.map_err(|failure| failure.error(self, format!("cannot seek to {to:?} in {}", file.path())))?;
        file.offset.store(offset, Ordering::Relaxed);
        Ok(offset.cast_unsigned())
    }

    /// Makes a file so many bytes long.
    ///
    /// # Errors
    /// ENOENT when it was removed; ENOSPC, EROFS, EIO; when the pfsd is gone.
    pub fn ftruncate(&self, file: &File, len: u64) -> Result<()> {
        let truncate = || self.done(&Request::Ftruncate { file: file.id, len: signed(len)? }, file.kind);
        truncate().map_err(|failure| failure.error(self, format!("cannot make {} {len} bytes long", file.path())))
    }

    /// What is known of a file.
    ///
    /// # Errors
    /// ENOENT when it was removed; when the pfsd is gone.
    pub fn fstat(&self, file: &File) -> Result<WireStat> {
        let stat = self.call(&Request::Fstat { file: file.id }, file.kind, |_| {}, |_, reply| reply);
        let failed = |failure: Failure| failure.error(self, format!("cannot stat {}", file.path()));
        match stat.map_err(failed)? {
            Reply::Stat(stat) => Ok(stat),
            _ => Err(failed(CONFUSED)),
        }
    }

    /// Gives a file its blocks, whole ones, for a range of its bytes. `mode` is fallocate(2)'s; the original's pfsd takes no
    /// notice of it and always makes the file longer.
    ///
    /// # Errors
    /// EINVAL for no bytes; ENOSPC, EROFS; ENOENT when it was removed; when the pfsd is gone.
    pub fn fallocate(&self, file: &File, mode: i32, offset: u64, len: u64) -> Result<()> {
        let allocate = || {
            if len == 0 {
                return Err(Errno::EINVAL.into());
            }
            let request = Request::Fallocate { file: file.id, offset: signed(offset)?, len: signed(len)?, mode };
            match self.call(&request, file.kind, |_| {}, |_, reply| reply)? {
                Reply::Allocated { .. } => Ok(()),
                _ => Err(CONFUSED),
            }
        };
        let failed = |failure: Failure| -> Error {
            failure.error(self, format!("cannot give {} its blocks for {len} bytes at {offset}", file.path()))
        };
        allocate().map_err(failed)
    }

    /// Asks for what has no answer but that it is done.
    pub(super) fn done(&self, request: &Request, kind: FileType) -> Result<(), Failure> {
        match self.call(request, kind, |_| {}, |_, reply| reply)? {
            Reply::Done => Ok(()),
            _ => Err(CONFUSED),
        }
    }
}

impl File {
    fn advance(&self, by: usize) {
        self.offset.fetch_add(i64::try_from(by).unwrap_or(0), Ordering::Relaxed);
    }
}
