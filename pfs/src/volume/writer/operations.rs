//! What can be done to a volume's names and to files as a whole.

use std::time::Duration;

use blockdev::{Error, Result};
use nix::errno::Errno;

use crate::format::{BLOCK_SIZE, BlockIndex, Content, Hole, Inode, InodeNo, List};

use super::super::data::FileMap;
use super::super::metadata::Metadata;
use super::super::name::VolumePath;
use super::super::tree::{Entry, FileKind, Stat};
use super::log::{Statistics, Ticket};
use super::names::Now;
use super::pending::Pending;
use super::state::{Place, State, kind_of};
use super::{Allocate, Handle, Writer};

/// Bytes in a block.
const BLOCK: u64 = BLOCK_SIZE.bytes();

/// An error of something that was to be done with a path.
fn failed(what: &str, path: &VolumePath, errno: Errno, why: &str) -> Error {
    Error::io(format!("cannot {what} {:?}: {why}", path.display()), errno)
}

/// Sees that a path is to be taken for what it leads to: a file's does not end in a slash.
fn expect(what: &str, path: &VolumePath, found: &Inode, kind: FileKind) -> Result<()> {
    match (kind, kind_of(found)) {
        (FileKind::File, Some(FileKind::Directory)) => Err(failed(what, path, Errno::EISDIR, "it is a directory")),
        (FileKind::Directory, Some(FileKind::File)) => Err(failed(what, path, Errno::ENOTDIR, "it is no directory")),
        _ => Ok(()),
    }
}

impl Writer {
    /// What a path leads to.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR, ENAMETOOLONG; or damage on the way.
    pub fn lookup(&self, path: &VolumePath) -> Result<Handle> {
        let Place { found, .. } = self.lock().state.resolve(path)?;
        let found = found.ok_or_else(|| failed("find", path, Errno::ENOENT, "there is nothing of that name"))?;
        if path.names_directory() {
            expect("find", path, &found, FileKind::Directory)?;
        }
        Ok(Handle::of(&found))
    }

    /// What stat says of a file or directory.
    ///
    /// # Errors
    /// ENOENT once it was removed.
    pub fn stat(&self, handle: Handle) -> Result<Stat> {
        let inode = self.lock().state.inode(handle)?;
        Stat::of(&inode).ok_or_else(|| Error::io(format!("inode {} is free", handle.inode), Errno::ENOENT))
    }

    /// The names in a directory, in their order.
    ///
    /// # Errors
    /// ENOENT once it was removed, ENOTDIR when it is a file; or damage.
    pub fn entries(&self, directory: Handle) -> Result<Vec<Entry>> {
        let shared = self.lock();
        shared.state.inode(directory)?;
        shared.state.metadata().entries(directory.inode)
    }

    /// Which block of a file is where at this moment.
    ///
    /// # Errors
    /// ENOENT once it was removed, EISDIR when it is a directory; or damage.
    pub fn file_map(&self, file: Handle) -> Result<FileMap> {
        Ok(self.lock().state.map(file)?.clone())
    }

    /// How long a file is at this moment, in bytes.
    ///
    /// # Errors
    /// As [`file_map`](Self::file_map).
    pub fn size(&self, file: Handle) -> Result<u64> {
        Ok(self.lock().state.map(file)?.size)
    }

    /// Waits until the journal has something more, or the time is up. Returns at once if it has everything.
    pub fn await_journal(&self, timeout: Duration) {
        self.log.wait_for_any(timeout);
    }

    /// Looks at all metadata as they are at this moment. Nothing else happens meanwhile.
    pub fn with_metadata<T>(&self, look: impl FnOnce(&Metadata) -> T) -> T {
        look(self.lock().state.metadata())
    }

    /// What was written so far.
    pub fn statistics(&self) -> Statistics {
        self.log.statistics()
    }

    /// Opens a file, which is made if there is none of that name; or, if it is to be `new`, makes it.
    ///
    /// # Errors
    /// EEXIST, EISDIR, ENOENT, ENOTDIR, ENAMETOOLONG; no space for one more (1001); or damage.
    pub fn create(&self, path: &VolumePath, new: bool) -> Result<Handle> {
        self.begin_create(path, new)?.wait()
    }

    /// As [`create`](Self::create), without waiting.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn begin_create(&self, path: &VolumePath, new: bool) -> Result<Pending<'_, Handle>> {
        if path.names_directory() {
            return Err(failed("create", path, Errno::EISDIR, "a path that ends in a slash is no file's"));
        }
        self.make("create", path, FileKind::File, new)
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// EEXIST, ENOENT, ENOTDIR, ENAMETOOLONG; no space for one more (1001); or damage.
    pub fn mkdir(&self, path: &VolumePath) -> Result<Handle> {
        self.begin_mkdir(path)?.wait()
    }

    /// As [`mkdir`](Self::mkdir), without waiting.
    ///
    /// # Errors
    /// As [`mkdir`](Self::mkdir).
    pub fn begin_mkdir(&self, path: &VolumePath) -> Result<Pending<'_, Handle>> {
        self.make("make directory", path, FileKind::Directory, true)
    }

    fn make(&self, what: &str, path: &VolumePath, kind: FileKind, new: bool) -> Result<Pending<'_, Handle>> {
        let mut shared = self.lock();
        let place = shared.state.resolve(path)?;
        if let Some(found) = place.found {
            if new {
                return Err(failed(what, path, Errno::EEXIST, "it exists"));
            }
            expect(what, path, &found, kind)?;
            // Whoever made it may still wait for the journal, which this need not: so did those who found it before.
            return Ok(Pending::counting(self, Handle::of(&found), Ticket::default()));
        }
        let Some(name) = place.name else { return Err(failed(what, path, Errno::EINVAL, "it has no name")) };
        let (inode, ticket) = self
            .transact(&mut shared.state, |transaction| transaction.create(place.directory, &name, kind, Now::get()))?;
        Ok(Pending::counting(self, Handle::of(&inode), ticket))
    }

    /// Removes a file. Handles on it are of no use afterwards.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR, EISDIR, EPERM for the file system's own files; or damage.
    pub fn unlink(&self, path: &VolumePath) -> Result<()> {
        self.begin_unlink(path)?.wait()
    }

    /// As [`unlink`](Self::unlink), without waiting.
    ///
    /// # Errors
    /// As [`unlink`](Self::unlink).
    pub fn begin_unlink(&self, path: &VolumePath) -> Result<Pending<'_, ()>> {
        if path.names_directory() {
            return Err(failed("remove", path, Errno::EISDIR, "a path that ends in a slash is no file's"));
        }
        self.remove("remove", path, FileKind::File)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR, ENOTEMPTY, EINVAL for the root; or damage.
    pub fn rmdir(&self, path: &VolumePath) -> Result<()> {
        self.begin_rmdir(path)?.wait()
    }

    /// As [`rmdir`](Self::rmdir), without waiting.
    ///
    /// # Errors
    /// As [`rmdir`](Self::rmdir).
    pub fn begin_rmdir(&self, path: &VolumePath) -> Result<Pending<'_, ()>> {
        self.remove("remove directory", path, FileKind::Directory)
    }

    fn remove(&self, what: &str, path: &VolumePath, kind: FileKind) -> Result<Pending<'_, ()>> {
        let mut shared = self.lock();
        let place = shared.state.resolve(path)?;
        let found = place.found.ok_or_else(|| failed(what, path, Errno::ENOENT, "there is nothing of that name"))?;
        expect(what, path, &found, kind)?;
        removable(what, path, &found)?;
        empty(what, path, &found)?;
        let inode = found.number;
        let ((), ticket) = self.transact(&mut shared.state, |transaction| transaction.remove(found))?;
        Ok(Pending::freeing(self, (), inode, ticket))
    }

    /// Calls something otherwise, or puts it elsewhere. What has the new name already is replaced.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR, EISDIR, ENOTEMPTY, ENAMETOOLONG; EINVAL for a directory into itself, EBUSY for the root; no space for
    /// a longer name (1001); or damage.
    pub fn rename(&self, from: &VolumePath, to: &VolumePath) -> Result<()> {
        self.begin_rename(from, to)?.wait()
    }

    /// As [`rename`](Self::rename), without waiting.
    ///
    /// # Errors
    /// As [`rename`](Self::rename).
    pub fn begin_rename(&self, from: &VolumePath, to: &VolumePath) -> Result<Pending<'_, ()>> {
        let what = "rename";
        let mut shared = self.lock();
        let place = shared.state.resolve(from)?;
        let moved = place.found.ok_or_else(|| failed(what, from, Errno::ENOENT, "there is nothing of that name"))?;
        if from.names_directory() {
            expect(what, from, &moved, FileKind::Directory)?;
        }
        if moved.number == InodeNo::ROOT {
            return Err(failed(what, from, Errno::EBUSY, "it is the root"));
        }
        removable(what, from, &moved)?;
        let target = shared.state.resolve(to)?;
        if let Some(replaced) = &target.found {
            if let Some(kind) = kind_of(&moved) {
                expect("replace", to, replaced, kind)?;
            }
            if replaced.number == InodeNo::ROOT {
                return Err(failed("replace", to, Errno::EBUSY, "it is the root"));
            }
            if replaced.number == moved.number {
                return Ok(Pending::counting(self, (), Ticket::default()));
            }
            removable("replace", to, replaced)?;
        }
        if matches!(moved.content, Content::Directory(_)) && shared.state.is_below(target.directory, moved.number)? {
            return Err(failed(what, from, Errno::EINVAL, "it would be below itself"));
        }
        if let Some(replaced) = &target.found {
            empty("replace", to, replaced)?;
        }
        let Some(name) = target.name else { return Err(failed(what, from, Errno::EINVAL, "it would have no name")) };
        let replaced = target.found.as_ref().map(|inode| inode.number);
        let ((), ticket) = self.transact(&mut shared.state, |transaction| {
            transaction.rename(moved.number, target.directory, &name, target.found, Now::get())
        })?;
        Ok(match replaced {
            Some(inode) => Pending::freeing(self, (), inode, ticket),
            None => Pending::counting(self, (), ticket),
        })
    }

    /// Hands in the transactions that free an inode and its blocks.
    pub(super) fn free_alone(&self, inode: InodeNo) -> Result<Ticket> {
        let mut shared = self.lock();
        let state = &mut shared.state;
        loop {
            let content = state.metadata().inode(inode)?.content;
            let Content::File(file) = content else { break };
            if file.size.bytes() == 0 && file.list == List::EMPTY {
                break;
            }
            let map = state.metadata().file_map(inode)?;
            self.transact(state, |transaction| Ok(transaction.truncate(&map, 0, Now::get())?))?;
        }
        let ((), ticket) = self.transact(state, |transaction| Ok(transaction.release(inode)?))?;
        Ok(ticket)
    }

    /// Frees what was removed before a crash, but not freed.
    pub(super) fn reclaim_orphans(&self) -> Result<()> {
        let orphans = self.lock().state.orphans();
        let mut last = Ticket::default();
        for orphan in orphans {
            last = self.free_alone(orphan)?;
        }
        self.log.wait(last)
    }

    /// Makes a file so long. What it is longer reads as zeroes.
    ///
    /// # Errors
    /// ENOENT once it was removed, EISDIR for a directory, EFBIG for more than 2^63 - 1 bytes; or damage.
    pub fn truncate(&self, file: Handle, size: u64) -> Result<()> {
        self.begin_truncate(file, size)?.wait()
    }

    /// As [`truncate`](Self::truncate), without waiting.
    ///
    /// # Errors
    /// EFBIG for more than 2^63 - 1 bytes; all other errors come later.
    pub fn begin_truncate(&self, file: Handle, size: u64) -> Result<Pending<'_, ()>> {
        if i64::try_from(size).is_err() {
            return Err(Error::io(format!("cannot make a file {size} bytes long"), Errno::EFBIG));
        }
        Ok(Pending::truncating(self, (), file, size))
    }

    /// Hands in the transactions that make a file so long.
    pub(super) fn truncate_alone(&self, file: Handle, size: u64) -> Result<Ticket> {
        let mut last = Ticket::default();
        loop {
            let mut shared = self.lock();
            let (now, ticket) = self.transact_on(&mut shared.state, file, |transaction, map| {
                Ok(transaction.truncate(map, size, Now::get())?)
            })?;
            last = last.max(ticket);
            if now == size {
                return Ok(last);
            }
        }
    }

    /// Gives a file all its blocks for a range of bytes, which need not be inside it.
    ///
    /// # Errors
    /// ENOSPC, and nothing is changed; ENOENT once it was removed, EISDIR for a directory, EINVAL for no bytes, EFBIG for more
    /// than 2^63 - 1; or damage.
    pub fn allocate(&self, file: Handle, offset: u64, len: u64, how: Allocate) -> Result<()> {
        self.begin_allocate(file, offset, len, how)?.wait()
    }

    /// As [`allocate`](Self::allocate), without waiting.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate).
    pub fn begin_allocate(&self, file: Handle, offset: u64, len: u64, how: Allocate) -> Result<Pending<'_, ()>> {
        let what = || format!("cannot allocate {len} bytes from {offset}");
        if len == 0 {
            return Err(Error::io(what(), Errno::EINVAL));
        }
        let end = offset.checked_add(len).filter(|end| i64::try_from(*end).is_ok());
        let end = end.ok_or_else(|| Error::io(what(), Errno::EFBIG))?;
        let mut shared = self.lock();
        let ticket = self.allocate_locked(&mut shared.state, file, offset..end, how)?;
        Ok(Pending::counting(self, (), ticket))
    }

    pub(super) fn allocate_locked(
        &self,
        state: &mut State,
        file: Handle,
        range: std::ops::Range<u64>,
        how: Allocate,
    ) -> Result<Ticket> {
        #[allow(clippy::cast_possible_truncation, reason = "4 MiB")]
        let hole = if how.show_stale { Hole::From(BLOCK as u32) } else { Hole::WHOLE };
        let blocks = BlockIndex::of(range.start).0.raw()..=BlockIndex::of(range.end - 1).0.raw();
        let ((), ticket) = self.transact_on(state, file, |transaction, map| {
            transaction.allocate(map, blocks, hole)?;
            if !how.keep_size && range.end > map.size {
                transaction.resize(map.inode, range.end, Now::get())?;
            }
            Ok(())
        })?;
        Ok(ticket)
    }

    /// Brings everything from the journal into the metadata sectors. Who reads the volume and lags behind must read all of
    /// it anew; the original's readers die of that.
    ///
    /// # Errors
    /// When something cannot be written.
    pub fn empty_journal(&self) -> Result<()> {
        self.log.empty()
    }

    /// Writes all there is to write and gives the volume back.
    ///
    /// # Errors
    /// When something cannot be written.
    pub fn close(mut self) -> Result<()> {
        self.log.close()
    }
}

fn removable(what: &str, path: &VolumePath, found: &Inode) -> Result<()> {
    match found.number {
        InodeNo::ROOT => Err(failed(what, path, Errno::EINVAL, "it is the root")),
        number if number.is_internal() => Err(failed(what, path, Errno::EPERM, "it is the file system's own")),
        _ => Ok(()),
    }
}

fn empty(what: &str, path: &VolumePath, found: &Inode) -> Result<()> {
    match &found.content {
        Content::Directory(directory) if directory.list != List::EMPTY => {
            Err(failed(what, path, Errno::ENOTEMPTY, "there is something in it"))
        }
        _ => Ok(()),
    }
}
