//! What one worker has under way on the volume: requests that were taken and are not answered.
//!
//! Nothing here waits. Reading and writing are in flight with the device, from and to the client's own buffer; changes of
//! names and sizes wait for the journal, many for one write of it; on a replica, everything first waits for a look at what the
//! primary wrote. Whatever is done is answered, in whatever order that happens.

use std::ptr::NonNull;
use std::time::{Duration, Instant};

use blockdev::engine::Lent;
use blockdev::{Error, Result};
use nix::errno::Errno;

use crate::format::{DirentryNo, InodeNo, Number, Stamp};
use crate::proto::request::BadRequest;
use crate::proto::response::{Answer, ENTRIES_MAX, ENTRY_SIZE, WireEntry};
use crate::proto::{FileId, FileType, OpenFlags, Reply, Request, WireStat};
use crate::volume::writer::{Allocate, Content, Finished, Fresh, Handle, Pending, Position, Writer};
use crate::volume::{Entry, FileKind, Stat, VolumePath};

use super::errno::errno;
use super::log::Log;
use super::mount::{MOUNT, Mount};
use super::slots::{Slots, Taken};
use super::statistics::Counters;

/// Requests that one worker has under way at most: as many I/Os as it keeps in flight.
pub(super) const TASKS_MAX: usize = 64;

/// The end of files' offsets and lengths, as a client may give them.
fn unsigned(number: i64) -> Result<u64> {
    u64::try_from(number).map_err(|_| Error::io(format!("{number} is below zero"), Errno::EINVAL))
}

/// Everything that is the same for all sessions of a worker.
#[derive(Debug, Clone, Copy)]
pub(super) struct Surroundings<'a> {
    pub(super) disk: &'a str,
    pub(super) slots: &'a Slots,
    pub(super) counters: &'a Counters,
    pub(super) log: &'a Log,
}

impl Surroundings<'_> {
    fn answer(self, taken: Taken, number: i32, started: Instant, answer: &Answer) {
        self.counters.count(number, started.elapsed(), answer.is_err());
        self.slots.answer(taken, number, answer);
    }

    /// Answers what is no request, as well as that can be answered.
    fn refuse(self, taken: Taken, started: Instant, why: BadRequest) {
        let (number, errno) = match why {
            BadRequest::Unknown(number) => (number, libc::EINVAL),
            BadRequest::Buffer(number) => (number, libc::EFAULT),
        };
        self.log.client(&format!("a client asks what cannot be asked: {why:?}"));
        self.answer(taken, number, started, &Err(errno));
    }
}

/// What a worker has under way.
#[derive(Debug)]
pub(super) struct Session<'a> {
    mount: &'a Mount,
    around: Surroundings<'a>,
    content: Content<'a>,
    /// By tag.
    tasks: Vec<Option<Task<'a>>>,
    count: usize,
    /// How many of them wait for something else than the device.
    changing: usize,
    finished: Vec<Finished>,
}

/// A request that is not answered yet.
#[derive(Debug)]
struct Task<'a> {
    taken: Taken,
    number: i32,
    started: Instant,
    doing: Doing<'a>,
}

#[derive(Debug)]
enum Doing<'a> {
    /// In flight with the device.
    Reading { inode: i64 },
    /// In flight with the device.
    Writing { file: Handle, len: u64 },
    /// The journal does not have it yet.
    Making { pending: Pending<'a, Handle>, then: Then },
    /// The journal does not have it yet.
    Changing { pending: Pending<'a, ()>, reply: Reply },
    /// Somebody looks what the primary wrote.
    Refreshing { since: Fresh, request: Request },
}

/// What to do with what was made.
#[derive(Debug, Clone, Copy)]
enum Then {
    Nothing,
    /// Say which file it is; empty it before, perhaps.
    Open {
        kind: FileType,
        truncate: bool,
    },
}

/// How far a request is.
#[derive(Debug)]
enum Step<'a> {
    Answered(Answer),
    Doing(Doing<'a>),
}

impl Step<'_> {
    fn done(reply: Reply) -> Self {
        Self::Answered(Ok(reply))
    }
}

impl<'a> Session<'a> {
    /// Nothing is under way.
    ///
    /// # Errors
    /// When this thread cannot have its own way to the device.
    pub(super) fn new(mount: &'a Mount, around: Surroundings<'a>) -> Result<Self> {
        let content = match mount {
            Mount::Writer(writer) => writer.content()?,
            Mount::Reader(reader) => reader.content()?,
        };
        let tasks = (0..TASKS_MAX).map(|_| None).collect();
        Ok(Self { mount, around, content, tasks, count: 0, changing: 0, finished: Vec::new() })
    }

    /// How many requests are under way.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Begins with a request. There must be [room](TASKS_MAX) for it.
    pub(super) fn begin(&mut self, taken: Taken) {
        let started = Instant::now();
        let (header, request) = self.around.slots.request(&taken);
        let request = match request {
            Ok(request) => request,
            Err(why) => return self.around.refuse(taken, started, why),
        };
        let number = request.number();
        let Some(tag) = self.tasks.iter().position(Option::is_none) else {
            // Whoever calls this sees that there is room.
            return self.around.answer(taken, number, started, &Err(libc::EAGAIN));
        };
        let step = if header.mount == MOUNT || matches!(request, Request::Growfs { .. }) {
            self.start(tag, &taken, request)
        } else {
            Err(Error::io("a mount that there is not", Errno::ENODEV))
        };
        self.settle(tag, Task { taken, number, started, doing: Doing::Reading { inode: 0 } }, step);
    }

    /// Takes over how far a task came.
    fn settle(&mut self, tag: usize, task: Task<'a>, step: Result<Step<'a>>) {
        match step {
            Ok(Step::Doing(doing)) => {
                self.count += 1;
                self.changing += usize::from(!matches!(doing, Doing::Reading { .. } | Doing::Writing { .. }));
                self.tasks[tag] = Some(Task { doing, ..task });
            }
            Ok(Step::Answered(answer)) => self.around.answer(task.taken, task.number, task.started, &answer),
            Err(error) => {
                self.around.log.failed(task.number, &error);
                self.around.answer(task.taken, task.number, task.started, &Err(errno(&error)));
            }
        }
    }

    /// Goes on with everything that can go on, and answers what is done. Where nothing can, waits for no longer than `wait`.
    /// Returns whether anything was answered.
    ///
    /// # Errors
    /// When the device cannot be reached any more at all.
    pub(super) fn turn(&mut self, wait: Duration) -> Result<bool> {
        let before = self.count;
        let wait_for_device = if self.content.awaits_device() { wait } else { Duration::ZERO };
        let mut finished = std::mem::take(&mut self.finished);
        let mut went_on = self.content.turn(wait_for_device, &mut finished)?;
        for Finished { tag, result } in finished.drain(..) {
            #[allow(clippy::cast_possible_truncation, reason = "tags are indices")]
            self.landed(tag as usize, result);
        }
        self.finished = finished;
        went_on |= self.changing > 0 && self.change();
        if !went_on && !wait.is_zero() && self.count > 0 && !self.content.awaits_device() {
            match self.mount {
                Mount::Writer(writer) => writer.await_journal(wait),
                Mount::Reader(_) => std::thread::sleep(wait),
            }
        }
        Ok(self.count < before)
    }

    /// Answers what was in flight.
    fn landed(&mut self, tag: usize, result: Result<u64>) {
        let Some(task) = self.tasks.get_mut(tag).and_then(Option::take) else { return };
        self.count -= 1;
        let step = result.and_then(|answer| {
            Ok(Step::done(match (&task.doing, self.mount) {
                (Doing::Writing { file, len }, Mount::Writer(writer)) => {
                    let inode = file.inode.raw().cast_signed();
                    Reply::Written { inode, len: *len, size: writer.size(*file)? }
                }
                (Doing::Reading { inode }, _) => Reply::Read { inode: *inode, len: answer },
                _ => return Err(Error::io("an I/O that was not asked for", Errno::EIO)),
            }))
        });
        self.settle(tag, task, step);
    }

    /// Goes on with what waits for the journal, or for others. Returns whether anything did.
    fn change(&mut self) -> bool {
        let mut went_on = false;
        for tag in 0..self.tasks.len() {
            let Some(mut task) = self.tasks[tag].take() else { continue };
            let step = match &mut task.doing {
                Doing::Reading { .. } | Doing::Writing { .. } => None,
                Doing::Making { pending, then } => match (pending.poll(), *then) {
                    (Ok(None), _) => None,
                    (Ok(Some(_)), Then::Nothing) => Some(Ok(Step::done(Reply::Done))),
                    (Ok(Some(handle)), Then::Open { kind, truncate }) => Some(self.opened(handle, kind, truncate)),
                    (Err(error), _) => Some(Err(error)),
                },
                Doing::Changing { pending, reply } => match pending.poll() {
                    Ok(None) => None,
                    Ok(Some(())) => Some(Ok(Step::done(reply.clone()))),
                    Err(error) => Some(Err(error)),
                },
                Doing::Refreshing { since, request } => match self.content.is_fresh(*since) {
                    Ok(false) => None,
                    Ok(true) => {
                        let request = request.clone();
                        Some(self.read(tag, &task.taken, request))
                    }
                    Err(error) => Some(Err(error)),
                },
            };
            let Some(step) = step else {
                self.tasks[tag] = Some(task);
                continue;
            };
            went_on = true;
            self.count -= 1;
            self.changing -= 1;
            self.settle(tag, task, step);
        }
        went_on
    }

    /// Starts what is asked.
    fn start(&mut self, tag: usize, taken: &Taken, request: Request) -> Result<Step<'a>> {
        match self.mount {
            Mount::Writer(writer) => self.write(writer, tag, taken, request),
            Mount::Reader(_) if is_reading(&request) => {
                Ok(Step::Doing(Doing::Refreshing { since: self.content.refresh(), request }))
            }
            Mount::Reader(reader) => match request {
                Request::Growfs { .. } => {
                    // What is asked next looks at the new chunks, if not this already.
                    let _ = reader.regrow();
                    Ok(Step::done(Reply::Done))
                }
                _ => Err(Error::io("the volume is mounted for reading only", Errno::EROFS)),
            },
        }
    }

    /// What changes something; and what does not, as all else.
    fn write(&mut self, writer: &'a Writer, tag: usize, taken: &Taken, request: Request) -> Result<Step<'a>> {
        let changing = |pending, reply| Ok(Step::Doing(Doing::Changing { pending, reply }));
        match request {
            Request::Open { path, flags, .. } if flags.create() || flags.truncate() => self.open(writer, &path, flags),
            Request::Write { file, offset, len, .. } => {
                let handle = handle(file)?;
                let position = match offset {
                    Some(offset) => Position::At(unsigned(offset)?),
                    None => Position::End,
                };
                let Some(memory) = self.buffer(taken, len) else {
                    let size = writer.size(handle)?;
                    return Ok(Step::done(Reply::Written { inode: file.inode, len: 0, size }));
                };
                self.content.start_write(tag as u64, handle, position, memory);
                Ok(Step::Doing(Doing::Writing { file: handle, len }))
            }
            Request::Ftruncate { file, len } => {
                changing(writer.begin_truncate(handle(file)?, unsigned(len)?)?, Reply::Done)
            }
            Request::Truncate { path, len } => {
                let file = writer.lookup(&self.path(&path)?)?;
                changing(writer.begin_truncate(file, unsigned(len)?)?, Reply::Done)
            }
            Request::Unlink { path } => changing(writer.begin_unlink(&self.path(&path)?)?, Reply::Done),
            Request::Fallocate { file, offset, len, mode } => {
                let how = Allocate {
                    keep_size: mode & libc::FALLOC_FL_KEEP_SIZE != 0,
                    show_stale: mode & FALLOC_FL_NO_HIDE_STALE != 0,
                };
                let pending = writer.begin_allocate(handle(file)?, unsigned(offset)?, unsigned(len)?, how)?;
                changing(pending, Reply::Allocated { inode: file.inode })
            }
            Request::Mkdir { path, .. } => {
                let pending = writer.begin_mkdir(&self.path(&path)?)?;
                Ok(Step::Doing(Doing::Making { pending, then: Then::Nothing }))
            }
            Request::Rmdir { path } => changing(writer.begin_rmdir(&self.path(&path)?)?, Reply::Done),
            Request::Rename { from, to } => {
                changing(writer.begin_rename(&self.path(&from)?, &self.path(&to)?)?, Reply::Done)
            }
            Request::Growfs { .. } => {
                writer.regrow()?;
                Ok(Step::done(Reply::Done))
            }
            request => self.read(tag, taken, request),
        }
    }

    fn open(&mut self, writer: &'a Writer, path: &[u8], flags: OpenFlags) -> Result<Step<'a>> {
        let (kind, path) = (FileType::of(path), self.path(path)?);
        if !flags.create() {
            let handle = writer.lookup(&path)?;
            return self.opened(handle, kind, true);
        }
        let pending = writer.begin_create(&path, flags.exclusive())?;
        let then = Then::Open { kind, truncate: flags.truncate() };
        Ok(Step::Doing(Doing::Making { pending, then }))
    }

    /// What path led to is there; perhaps it is to be emptied.
    fn opened(&mut self, handle: Handle, kind: FileType, truncate: bool) -> Result<Step<'a>> {
        let file = FileId { inode: handle.inode.raw().cast_signed(), btime: handle.btime.0 };
        let reply = Reply::Opened { file, kind };
        match self.mount {
            Mount::Writer(writer) if truncate => {
                if writer.stat(handle)?.kind == FileKind::Directory {
                    return Err(Error::io("cannot empty a directory", Errno::EISDIR));
                }
                let pending = writer.begin_truncate(handle, 0)?;
                Ok(Step::Doing(Doing::Changing { pending, reply }))
            }
            _ => Ok(Step::done(reply)),
        }
    }

    /// What changes nothing.
    fn read(&mut self, tag: usize, taken: &Taken, request: Request) -> Result<Step<'a>> {
        let looks = Looks(self.mount);
        Ok(Step::done(match request {
            Request::Open { path, flags, .. } => {
                let found = looks.lookup(&self.path(&path)?);
                let missing = found.as_ref().is_err_and(|error| error.errno() == Some(libc::ENOENT));
                if (missing && flags.create()) || (found.is_ok() && flags.truncate()) {
                    return Err(Error::io("the volume is mounted for reading only", Errno::EROFS));
                }
                if found.is_ok() && flags.create() && flags.exclusive() {
                    return Err(Error::io("it exists", Errno::EEXIST));
                }
                return self.opened(found?, FileType::of(&path), false);
            }
            Request::Read { file, offset, len } => {
                let (handle, offset) = (handle(file)?, unsigned(offset)?);
                let Some(memory) = self.buffer(taken, len) else {
                    looks.stat(handle)?;
                    return Ok(Step::done(Reply::Read { inode: file.inode, len: 0 }));
                };
                self.content.start_read(tag as u64, handle, offset, memory);
                return Ok(Step::Doing(Doing::Reading { inode: file.inode }));
            }
            Request::Fstat { file } => Reply::Stat(wire(&looks.stat(handle(file)?)?)),
            Request::Stat { path } => Reply::Stat(wire(&looks.stat(looks.lookup(&self.path(&path)?)?)?)),
            Request::Access { path, mode } => {
                // What is not there may not be used, says the original.
                let missing = if mode == libc::F_OK { Errno::ENOENT } else { Errno::EACCES };
                looks.lookup(&self.path(&path)?).map_err(|error| match error.errno() {
                    Some(libc::ENOENT | libc::ENOTDIR) => Error::io("there is no such file", missing),
                    _ => error,
                })?;
                Reply::Done
            }
            Request::Chdir { path } => {
                looks.directory(&self.path(&path)?)?;
                Reply::Done
            }
            Request::Opendir { path } => {
                let directory = looks.directory(&self.path(&path)?)?;
                let entries = looks.entries(directory.inode)?;
                let first = entries.first().map_or(0, |entry| entry.number.raw().cast_signed());
                Reply::Directory { inode: directory.inode.raw().cast_signed(), first }
            }
            Request::Readdir { directory, entry, index } => self.list(looks, taken, directory, entry, index)?,
            Request::Lseek { file, offset, whence } => {
                if whence.0 != libc::SEEK_END {
                    return Err(Error::io("only the end is asked for here", Errno::EINVAL));
                }
                let size = looks.stat(handle(file)?)?.size;
                let end = i64::try_from(size).ok().and_then(|size| size.checked_add(offset));
                let end = end.ok_or_else(|| Error::io("beyond what can be said", Errno::EOVERFLOW))?;
                unsigned(end)?;
                Reply::End(end)
            }
            _ => return Err(Error::io("the volume is mounted for reading only", Errno::EROFS)),
        }))
    }

    /// Puts names of a directory into the client's buffer, from direntry `entry` on, which was the `index`-th; should it not be
    /// there any more, from the `index`-th on.
    fn list(&self, looks: Looks<'_>, taken: &Taken, directory: i64, entry: i64, index: u64) -> Result<Reply> {
        let entries = looks.entries(inode(directory)?)?;
        let wanted = u64::try_from(entry).ok().and_then(DirentryNo::from_raw);
        let by_number = entries.iter().position(|entry| Some(entry.number) == wanted);
        let by_index = || usize::try_from(index).unwrap_or(usize::MAX).min(entries.len());
        let from = by_number.unwrap_or_else(by_index);
        let slot = self.around.slots.of(taken);
        let mut bytes = 0;
        for entry in entries[from..].iter().take(ENTRIES_MAX) {
            let is_directory = looks.is_directory(entry)?;
            let name = entry.name.as_bytes().to_vec();
            slot.copy_to_buffer(bytes, &WireEntry { inode: entry.inode.raw(), is_directory, name }.write());
            bytes += ENTRY_SIZE;
        }
        let count = bytes / ENTRY_SIZE;
        let next = entries.get(from + count).map_or(0, |entry| entry.number.raw().cast_signed());
        Ok(Reply::Entries { next, index: index.saturating_add(count as u64), bytes: bytes as u64 })
    }

    /// The path in the volume, of one that begins with the disk's name.
    fn path(&self, path: &[u8]) -> Result<VolumePath> {
        let rest = path.strip_prefix(b"/").and_then(|path| path.strip_prefix(self.around.disk.as_bytes()));
        match rest {
            Some([]) => Ok(VolumePath::new("/")),
            Some(rest @ [b'/', ..]) => Ok(VolumePath::new(rest)),
            _ => {
                let path = String::from_utf8_lossy(path);
                Err(Error::io(format!("{path:?} is not on disk {}", self.around.disk), Errno::ENODEV))
            }
        }
    }

    /// The client's own buffer, for the device to read or write.
    fn buffer(&self, taken: &Taken, len: u64) -> Option<Lent> {
        // The request was refused if its buffer were smaller.
        let len = u32::try_from(len).ok().filter(|len| *len > 0)?;
        let start: NonNull<u8> = self.around.slots.of(taken).buffer();
        // SAFETY: the shared memory is mapped for as long as the daemon lives, which is longer than any session, and no
        // reference points into it. Other processes may write it meanwhile, as the device may: the bytes are no one's but the
        // client's, and are never looked at here.
        Some(unsafe { Lent::new(start, len) })
    }
}

/// `FALLOC_FL_NO_HIDE_STALE` of linux/falloc.h.
const FALLOC_FL_NO_HIDE_STALE: i32 = 4;

/// Whether a request changes nothing, so that a replica carries it out.
fn is_reading(request: &Request) -> bool {
    matches!(
        request,
        Request::Open { .. }
            | Request::Read { .. }
            | Request::Fstat { .. }
            | Request::Stat { .. }
            | Request::Access { .. }
            | Request::Chdir { .. }
            | Request::Opendir { .. }
            | Request::Readdir { .. }
            | Request::Lseek { .. }
    )
}

fn inode(number: i64) -> Result<InodeNo> {
    let known = u64::try_from(number).ok().and_then(InodeNo::from_raw);
    known.ok_or_else(|| Error::io(format!("there can be no inode {number}"), Errno::ENOENT))
}

fn handle(file: FileId) -> Result<Handle> {
    Ok(Handle { inode: inode(file.inode)?, btime: Stamp(file.btime) })
}

fn wire(stat: &Stat) -> WireStat {
    let seconds = |time: u64| i64::try_from(time).unwrap_or(i64::MAX);
    WireStat {
        inode: stat.inode.raw(),
        links: stat.links,
        mode: if stat.kind == FileKind::Directory { libc::S_IFDIR | 0o777 } else { libc::S_IFREG | 0o777 },
        size: i64::try_from(stat.size).unwrap_or(i64::MAX),
        blocks: i64::try_from(stat.blocks).unwrap_or(i64::MAX),
        times: [seconds(stat.atime.0), seconds(stat.mtime.0), seconds(stat.ctime.0)],
    }
}

/// Questions that a mount answers, whether it is written or not.
#[derive(Debug, Clone, Copy)]
struct Looks<'a>(&'a Mount);

impl Looks<'_> {
    fn lookup(self, path: &VolumePath) -> Result<Handle> {
        match self.0 {
            Mount::Writer(writer) => writer.lookup(path),
            Mount::Reader(reader) => reader.lookup(path),
        }
    }

    fn stat(self, file: Handle) -> Result<Stat> {
        match self.0 {
            Mount::Writer(writer) => writer.stat(file),
            Mount::Reader(reader) => reader.stat(file),
        }
    }

    /// The directory that a path leads to.
    fn directory(self, path: &VolumePath) -> Result<Handle> {
        let found = self.lookup(path)?;
        match self.stat(found)?.kind {
            FileKind::Directory => Ok(found),
            FileKind::File => Err(Error::io(format!("{:?} is no directory", path.display()), Errno::ENOTDIR)),
        }
    }

    fn entries(self, directory: InodeNo) -> Result<Vec<Entry>> {
        match self.0 {
            Mount::Writer(writer) => writer.with_metadata(|metadata| metadata.entries(directory)),
            Mount::Reader(reader) => reader.with_metadata(|metadata| metadata.entries(directory)),
        }
    }

    fn is_directory(self, entry: &Entry) -> Result<bool> {
        let stat = match self.0 {
            Mount::Writer(writer) => writer.with_metadata(|metadata| metadata.stat(entry.inode)),
            Mount::Reader(reader) => reader.with_metadata(|metadata| metadata.stat(entry.inode)),
        };
        Ok(stat?.kind == FileKind::Directory)
    }
}
