//! Copying into a volume, from the host or from a volume.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use blockdev::ui::Progress;
use blockdev::{Cancel, Context, Error, ErrorKind, Result};
use nix::errno::Errno;

use super::{Copied, CopiedFile, Copy};
use crate::volume::writer::{Handle, Position, Writer};
use crate::volume::{FileKind, FileMap, Volume, VolumePath};

/// Bytes written at once: so many that the journal costs little beside them.
const BUFFER: usize = 16 << 20;

/// How many such buffers: one is filled while another is written.
const BUFFERS: usize = 2;

/// What is copied.
#[derive(Debug)]
pub enum Source<'a> {
    /// A file or directory of the host.
    Host(&'a Path),
    /// A file or directory of a volume.
    Volume(&'a mut Volume, &'a VolumePath),
}

/// One thing to be made in the volume.
struct Item {
    kind: FileKind,
    size: u64,
    /// Its path below what is copied: empty, or beginning with a slash.
    below: Vec<u8>,
    to: VolumePath,
}

impl Copy {
    /// Copies a file or directory into a volume: to `to`, or into it, as `name`, where that is a directory.
    ///
    /// # Errors
    /// When something exists and may not be replaced, the source cannot be read, the volume is full or cannot be written, or
    /// `cancel` says so. What was copied before stays; a new file that is not whole is removed.
    pub fn into_volume(
        self,
        mut source: Source<'_>,
        name: &[u8],
        writer: &Writer,
        to: &VolumePath,
        progress: &mut dyn Progress,
        cancel: &Cancel,
    ) -> Result<Copied> {
        let (kind, size) = source.look(b"")?;
        if kind == FileKind::Directory && !self.recursive {
            return Err(Error::io("it is a directory", Errno::EISDIR).with_hint("`cp -r` copies directories"));
        }
        let to = match found(writer, to)? {
            Some(FileKind::Directory) => joined(to, name),
            _ => to.clone(),
        };
        let mut items = vec![Item { kind, size, below: Vec::new(), to: to.clone() }];
        if kind == FileKind::Directory {
            items.extend(source.below(self.skip_hidden)?.into_iter().map(|(kind, size, below)| {
                let to = VolumePath::new([to.as_bytes(), &below].concat());
                Item { kind, size, below, to }
            }));
        }
        let existing = items.iter().map(|item| self.may_make_in(writer, item)).collect::<Result<Vec<bool>>>()?;
        progress.begin("copy", items.iter().filter(|item| item.kind == FileKind::File).map(|item| item.size).sum());
        let copied = thread::scope(|scope| {
            let (full, jobs) = sync_channel(BUFFERS - 1);
            let (used, empty) = channel();
            let writing = scope.spawn(move || write_all(writer, &jobs, &used));
            let mut feed = Feed { writer, full, empty, buffers: BUFFERS, made: Vec::new(), progress, cancel };
            let outcome = feed.all(&mut source, items, existing);
            let made = feed.end();
            let written = writing.join().map_err(|_| Error::new(ErrorKind::Io, "the thread that writes panicked"))?;
            match (written, outcome) {
                (Ok(()), Ok(copied)) => Ok(copied),
                // Where writing failed, whoever fed it only noticed that it ended.
                (Err((error, file)), _) => {
                    let first = made.iter().position(|(handle, _)| *handle == file).unwrap_or(made.len());
                    made[first..].iter().for_each(|(_, path)| remove(writer, path));
                    Err(error)
                }
                (Ok(()), Err(error)) => {
                    made.last().into_iter().for_each(|(_, path)| remove(writer, path));
                    Err(error)
                }
            }
        })?;
        progress.end();
        Ok(copied)
    }

    /// Sees that nothing is in the way, before anything is made. Returns whether it exists.
    fn may_make_in(self, writer: &Writer, item: &Item) -> Result<bool> {
        let to = item.to.display();
        match (item.kind, found(writer, &item.to)?) {
            (_, None) => Ok(false),
            (FileKind::File, Some(FileKind::File)) if writer.lookup(&item.to)?.inode.is_internal() => {
                Err(Error::refused(format!("{to} is the file system's own")))
            }
            (FileKind::Directory, Some(FileKind::Directory)) => Ok(true),
            (FileKind::File, Some(FileKind::File)) if self.force || self.recursive => Ok(true),
            (FileKind::File, Some(FileKind::File)) => {
                Err(Error::refused(format!("{to} exists")).with_hint("`cp -f` replaces files that exist"))
            }
            (FileKind::File, Some(FileKind::Directory)) => Err(Error::refused(format!("{to} exists, and is no file"))),
            (FileKind::Directory, Some(FileKind::File)) => {
                Err(Error::refused(format!("{to} exists, and is no directory")))
            }
        }
    }
}

impl Source<'_> {
    /// Whether it is a file or a directory.
    ///
    /// # Errors
    /// When there is no such thing, or it is neither.
    pub fn kind(&self) -> Result<FileKind> {
        self.look(b"").map(|(kind, _)| kind)
    }

    /// What it is at a path below it, and how many bytes long.
    fn look(&self, below: &[u8]) -> Result<(FileKind, u64)> {
        match self {
            Self::Host(path) => {
                let path = host_path(path, below);
                let metadata = fs::metadata(&path).context(|| format!("cannot find {}", path.display()))?;
                if metadata.is_dir() {
                    Ok((FileKind::Directory, 0))
                } else if metadata.is_file() {
                    Ok((FileKind::File, metadata.len()))
                } else {
                    Err(Error::invalid(format!("{} is neither a file nor a directory", path.display())))
                }
            }
            Self::Volume(volume, path) => {
                let path = VolumePath::new([path.as_bytes(), below].concat());
                let metadata = volume.metadata();
                let stat = metadata.stat(metadata.lookup(&path)?.number)?;
                Ok((stat.kind, stat.size))
            }
        }
    }

    /// Everything below a directory, directories before what is in them.
    fn below(&self, skip_hidden: bool) -> Result<Vec<(FileKind, u64, Vec<u8>)>> {
        let mut all = Vec::new();
        let mut open = vec![Vec::new()];
        while let Some(directory) = open.pop() {
            let mut inner = Vec::new();
            for name in self.names(&directory)? {
                if skip_hidden && name.starts_with(b".") {
                    continue;
                }
                let below = [&directory, b"/".as_slice(), &name].concat();
                let (kind, size) = self.look(&below)?;
                if kind == FileKind::Directory {
                    inner.push(below.clone());
                }
                all.push((kind, size, below));
            }
            open.extend(inner.into_iter().rev());
        }
        Ok(all)
    }

    /// The names in a directory, without the file system's own.
    fn names(&self, directory: &[u8]) -> Result<Vec<Vec<u8>>> {
        match self {
            Self::Host(path) => {
                let path = host_path(path, directory);
                let what = || format!("cannot list {}", path.display());
                let entries = fs::read_dir(&path).context(what)?;
                let mut names: Vec<Vec<u8>> = entries
                    .map(|entry| entry.map(|entry| entry.file_name().into_vec()).context(what))
                    .collect::<Result<_>>()?;
                names.sort_unstable();
                Ok(names)
            }
            Self::Volume(volume, path) => {
                let metadata = volume.metadata();
                let inode = metadata.lookup(&VolumePath::new([path.as_bytes(), directory].concat()))?.number;
                let entries = metadata.entries(inode)?.into_iter();
                let others = entries.filter(|entry| !entry.inode.is_internal());
                Ok(others.map(|entry| entry.name.as_bytes().to_vec()).collect())
            }
        }
    }

    fn open(&self, below: &[u8]) -> Result<Reader> {
        match self {
            Self::Host(path) => {
                let path = host_path(path, below);
                let file = File::open(&path).context(|| format!("cannot open {}", path.display()))?;
                Ok(Reader::Host(file, path))
            }
            Self::Volume(volume, path) => {
                let inode = volume.metadata().lookup(&VolumePath::new([path.as_bytes(), below].concat()))?.number;
                volume.metadata().file_map(inode).map(Reader::Volume)
            }
        }
    }

    /// Fills a buffer from a byte on, as far as there are bytes.
    fn read(&mut self, reader: &mut Reader, offset: u64, into: &mut Vec<u8>) -> Result<()> {
        match (self, reader) {
            (_, Reader::Host(file, path)) => {
                into.clear();
                let count = file.by_ref().take(BUFFER as u64).read_to_end(into);
                count.map(drop).context(|| format!("cannot read {}", path.display()))
            }
            (Self::Volume(volume, _), Reader::Volume(map)) => {
                into.resize(BUFFER, 0);
                let count = volume.read(map, offset, into)?;
                into.truncate(count);
                Ok(())
            }
            (Self::Host(_), Reader::Volume(_)) => unreachable!("a reader is its source's"),
        }
    }
}

enum Reader {
    Host(File, PathBuf),
    Volume(FileMap),
}

/// Bytes for a place in a file.
struct Job {
    file: Handle,
    offset: u64,
    bytes: Vec<u8>,
}

/// Writes what comes, and gives the buffers back. With an error comes the file that could not be written.
fn write_all(writer: &Writer, jobs: &Receiver<Job>, used: &Sender<Vec<u8>>) -> Result<(), (Error, Handle)> {
    let mut content = None;
    for job in jobs {
        let failed = |error| (error, job.file);
        let content = match &mut content {
            Some(content) => content,
            none => none.insert(writer.content().map_err(failed)?),
        };
        content.write(job.file, Position::At(job.offset), &job.bytes).map_err(failed)?;
        // Whoever feeds may have ended.
        let _ = used.send(job.bytes);
    }
    Ok(())
}

/// Makes files and directories, and hands their bytes to the thread that writes them.
struct Feed<'a> {
    writer: &'a Writer,
    full: SyncSender<Job>,
    empty: Receiver<Vec<u8>>,
    /// How many buffers may still be made.
    buffers: usize,
    /// The files that were not there before. The last may not be whole.
    made: Vec<(Handle, VolumePath)>,
    progress: &'a mut dyn Progress,
    cancel: &'a Cancel,
}

impl Feed<'_> {
    /// Copies everything.
    fn all(&mut self, source: &mut Source<'_>, items: Vec<Item>, existing: Vec<bool>) -> Result<Copied> {
        let mut copied = Copied::default();
        for (item, exists) in items.into_iter().zip(existing) {
            if item.kind == FileKind::File {
                copied.bytes += self.file(source, &item, exists)?;
                let to = PathBuf::from(OsString::from_vec(item.to.as_bytes().to_vec()));
                copied.files.push(CopiedFile { from: item.below, to });
                continue;
            }
            if !exists {
                self.writer.mkdir(&item.to)?;
            }
            copied.directories += 1;
        }
        Ok(copied)
    }

    fn file(&mut self, source: &mut Source<'_>, item: &Item, exists: bool) -> Result<u64> {
        let mut reader = source.open(&item.below)?;
        let file = self.writer.create(&item.to, !exists)?;
        if exists {
            self.writer.truncate(file, 0)?;
        } else {
            self.made.push((file, item.to.clone()));
        }
        let mut offset = 0;
        loop {
            self.cancel.check("copy")?;
            let mut bytes = self.buffer()?;
            source.read(&mut reader, offset, &mut bytes)?;
            let count = bytes.len() as u64;
            if count == 0 {
                self.buffers += 1;
                return Ok(offset);
            }
            self.full.send(Job { file, offset, bytes }).map_err(|_| gone())?;
            self.progress.advance(count);
            offset += count;
        }
    }

    /// Lets the thread that writes end once all is written.
    fn end(self) -> Vec<(Handle, VolumePath)> {
        self.made
    }

    /// A buffer to fill.
    fn buffer(&mut self) -> Result<Vec<u8>> {
        if let Some(left) = self.buffers.checked_sub(1) {
            self.buffers = left;
            return Ok(Vec::with_capacity(BUFFER));
        }
        self.empty.recv().map_err(|_| gone())
    }
}

/// The thread that writes ended before its time; its own error says why.
fn gone() -> Error {
    Error::new(ErrorKind::Io, "the thread that writes ended")
}

/// Removes a file that is not whole.
fn remove(writer: &Writer, path: &VolumePath) {
    // The error that led here is the one to tell.
    let _ = writer.unlink(path);
}

/// What a path leads to, if anything.
fn found(writer: &Writer, path: &VolumePath) -> Result<Option<FileKind>> {
    match writer.lookup(path).and_then(|handle| writer.stat(handle)) {
        Ok(stat) => Ok(Some(stat.kind)),
        Err(error) if error.errno() == Some(Errno::ENOENT as i32) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A name below a path. The original puts a slash between, whatever stands there already.
fn joined(path: &VolumePath, name: &[u8]) -> VolumePath {
    VolumePath::new([path.as_bytes(), b"/", name].concat())
}

fn host_path(path: &Path, below: &[u8]) -> PathBuf {
    match below.strip_prefix(b"/") {
        Some(below) => path.join(OsStr::from_bytes(below)),
        None => path.to_owned(),
    }
}
