//! Copying into a volume, from the host or from a volume.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use blockdev::ui::Progress;
use blockdev::{Cancel, Context, Error, Result};
use nix::errno::Errno;

use super::pipe::BUFFER;
use super::target::{Open, Sink, Target, is_internal};
use super::{Copied, CopiedFile, Copy};
use crate::volume::{FileKind, FileMap, Volume, VolumePath};

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
        target: Target<'_>,
        to: &VolumePath,
        progress: &mut dyn Progress,
        cancel: &Cancel,
    ) -> Result<Copied> {
        let (kind, size) = source.look(b"")?;
        if kind == FileKind::Directory && !self.recursive {
            return Err(Error::io("it is a directory", Errno::EISDIR).with_hint("`cp -r` copies directories"));
        }
        let to = match target.found(to)?.map(|stat| stat.kind) {
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
        let existing = items.iter().map(|item| self.may_make_in(target, item)).collect::<Result<Vec<bool>>>()?;
        progress.begin("copy", items.iter().filter(|item| item.kind == FileKind::File).map(|item| item.size).sum());
        let mut feed = Feed { target, sink: target.sink()?, progress, cancel };
        let copied = feed.all(&mut source, items, &existing)?;
        feed.progress.end();
        Ok(copied)
    }

    /// Sees that nothing is in the way, before anything is made. Returns whether it exists.
    fn may_make_in(self, target: Target<'_>, item: &Item) -> Result<bool> {
        let to = item.to.display();
        let found = target.found(&item.to)?;
        if item.kind == FileKind::File && found.as_ref().is_some_and(is_internal) {
            return Err(Error::refused(format!("{to} is the file system's own")));
        }
        match (item.kind, found.map(|stat| stat.kind)) {
            (_, None) => Ok(false),
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

    /// Fills a buffer from a byte on. Returns how much: less than all of it only at the end.
    fn read(&mut self, reader: &mut Reader, offset: u64, into: &mut [u8]) -> Result<usize> {
        match (self, reader) {
            (_, Reader::Host(file, path)) => fill(file, into).context(|| format!("cannot read {}", path.display())),
            (Self::Volume(volume, _), Reader::Volume(map)) => volume.read(map, offset, into),
            (Self::Host(_), Reader::Volume(_)) => unreachable!("a reader is its source's"),
        }
    }
}

enum Reader {
    Host(File, PathBuf),
    Volume(FileMap),
}

/// Makes files and directories, and writes what is in the files.
struct Feed<'a> {
    target: Target<'a>,
    sink: Sink<'a>,
    progress: &'a mut dyn Progress,
    cancel: &'a Cancel,
}

impl Feed<'_> {
    /// Copies everything. If that fails, new files that are not whole are removed.
    fn all(&mut self, source: &mut Source<'_>, items: Vec<Item>, existing: &[bool]) -> Result<Copied> {
        let outcome = self.each(source, items, existing);
        // What was started comes to its end, whatever became of the rest. Where something of it could not be written, the rest
        // only noticed that.
        let written = self.sink.finish();
        self.progress.advance(self.sink.written());
        let copied = written.and(outcome);
        if copied.is_err() {
            self.sink.remove_lost();
        }
        copied
    }

    fn each(&mut self, source: &mut Source<'_>, items: Vec<Item>, existing: &[bool]) -> Result<Copied> {
        let mut copied = Copied::default();
        for (item, exists) in items.into_iter().zip(existing) {
            if item.kind == FileKind::File {
                copied.bytes += self.file(source, &item, *exists)?;
                let to = PathBuf::from(OsString::from_vec(item.to.as_bytes().to_vec()));
                copied.files.push(CopiedFile { from: item.below, to });
                continue;
            }
            if !exists {
                self.target.mkdir(&item.to)?;
            }
            copied.directories += 1;
        }
        Ok(copied)
    }

    fn file(&mut self, source: &mut Source<'_>, item: &Item, exists: bool) -> Result<u64> {
        let mut reader = source.open(&item.below)?;
        let file = self.sink.open(&item.to, exists, item.size)?;
        self.content(source, &mut reader, &file).inspect_err(|_| self.sink.lose(&file))
    }

    /// Starts writing all that is in a file. Returns how many bytes that is.
    fn content(&mut self, source: &mut Source<'_>, reader: &mut Reader, file: &Open) -> Result<u64> {
        let mut offset = 0;
        loop {
            self.cancel.check("copy")?;
            let count = self.sink.write(file, offset, |into| source.read(reader, offset, into))?;
            self.progress.advance(self.sink.written());
            offset += count;
            if count < BUFFER {
                return Ok(offset);
            }
        }
    }
}

/// Reads until a buffer is full or the file ends.
fn fill(file: &mut File, into: &mut [u8]) -> io::Result<usize> {
    let mut count = 0;
    while count < into.len() {
        match file.read(&mut into[count..]) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
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
