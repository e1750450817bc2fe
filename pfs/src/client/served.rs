//! A volume through the pfsd that serves it, in the words in which [`Volume`](crate::volume::Volume) and
//! [`Writer`](crate::volume::Writer) speak of one on its disk.

use blockdev::{Error, ErrorKind, Result};
use nix::errno::Errno;

use super::{Client, ConnectOptions, File};
use crate::format::{InodeNo, Number, Seconds, Stamp};
use crate::proto::response::WireStat;
use crate::proto::{IO_MAX, OpenFlags};
use crate::volume::{FileKind, Name, Stat, VolumePath};

/// A volume that a pfsd serves.
#[derive(Debug)]
pub struct Served(Client);

/// What has a name in a directory.
#[derive(Debug, Clone)]
pub struct Named {
    /// How deep it is: 0 in the directory that was asked for.
    pub depth: usize,
    /// Its name.
    pub name: Name,
    /// What it is.
    pub stat: Stat,
}

impl Served {
    /// Connects to the pfsd of a disk.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect(disk: &str, options: &ConnectOptions) -> Result<Self> {
        Client::connect(disk, options).map(Self)
    }

    /// Leaves.
    ///
    /// # Errors
    /// As [`Client::umount`].
    pub fn close(self) -> Result<()> {
        self.0.umount()
    }

    /// The connection.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.0
    }

    /// A path as pfsd is told it.
    fn path(&self, path: &VolumePath) -> Vec<u8> {
        [b"/", self.0.disk().as_bytes(), b"/", path.as_bytes().strip_prefix(b"/").unwrap_or(path.as_bytes())].concat()
    }

    fn bad(path: &VolumePath) -> Error {
        let message = format!("pfsd says what cannot be of {:?}", path.display());
        Error::io(message, Errno::EPROTO).with_kind(ErrorKind::VerifyFailed)
    }

    /// Opens a file or directory that there is.
    ///
    /// # Errors
    /// As [`Client::open`].
    pub fn open(&self, path: &VolumePath) -> Result<File> {
        self.0.open(self.path(path), OpenFlags(libc::O_RDWR), 0)
    }

    /// What a file or directory is.
    ///
    /// # Errors
    /// As [`Client::open`].
    pub fn stat(&self, path: &VolumePath) -> Result<Stat> {
        self.fstat(&self.open(path)?, path)
    }

    /// What a file is that was opened by this path.
    ///
    /// # Errors
    /// As [`Client::fstat`].
    pub fn fstat(&self, file: &File, path: &VolumePath) -> Result<Stat> {
        stat(&self.0.fstat(file)?, file.id().btime).ok_or_else(|| Self::bad(path))
    }

    /// What is in a directory, in the order in which it stands there.
    ///
    /// # Errors
    /// As [`Client::opendir`].
    pub fn entries(&self, directory: &VolumePath) -> Result<Vec<Named>> {
        self.entries_at(directory, 0)
    }

    fn entries_at(&self, directory: &VolumePath, depth: usize) -> Result<Vec<Named>> {
        let mut entries = Vec::new();
        for entry in self.0.opendir(self.path(directory))? {
            let name = Name::new(&entry?.name).map_err(|_| Self::bad(directory))?;
            match self.stat(&directory.join(&name)) {
                Ok(stat) => entries.push(Named { depth, name, stat }),
                // It was removed meanwhile.
                Err(error) if error.errno() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(entries)
    }

    /// Everything below a directory, each directory before what is in it.
    ///
    /// # Errors
    /// As [`Client::opendir`].
    pub fn walk(&self, directory: &VolumePath) -> Result<Vec<Named>> {
        let mut all = Vec::new();
        // What is left to be looked at of each directory on the way.
        let mut open = vec![(directory.clone(), self.entries(directory)?.into_iter())];
        while let Some((path, entries)) = open.last_mut() {
            let Some(entry) = entries.next() else {
                open.pop();
                continue;
            };
            if entry.stat.kind == FileKind::Directory {
                let path = path.join(&entry.name);
                match self.entries_at(&path, entry.depth + 1) {
                    Ok(entries) => open.push((path, entries.into_iter())),
                    Err(error) if error.errno() == Some(libc::ENOENT) => continue,
                    Err(error) => return Err(error),
                }
            }
            all.push(entry);
        }
        Ok(all)
    }

    /// Makes a file. Where there is one already that is opened, unless it has to be `new`.
    ///
    /// # Errors
    /// As [`Client::open`].
    pub fn create(&self, path: &VolumePath, new: bool) -> Result<File> {
        let flags = libc::O_CREAT | libc::O_RDWR | if new { libc::O_EXCL } else { 0 };
        self.0.open(self.path(path), OpenFlags(flags), 0o644)
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// As [`Client::mkdir`].
    pub fn mkdir(&self, path: &VolumePath) -> Result<()> {
        self.0.mkdir(self.path(path))
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// As [`Client::rmdir`].
    pub fn rmdir(&self, path: &VolumePath) -> Result<()> {
        self.0.rmdir(self.path(path))
    }

    /// Removes a file.
    ///
    /// # Errors
    /// As [`Client::unlink`].
    pub fn unlink(&self, path: &VolumePath) -> Result<()> {
        self.0.unlink(self.path(path))
    }

    /// Calls a file or directory otherwise.
    ///
    /// # Errors
    /// As [`Client::rename`].
    pub fn rename(&self, from: &VolumePath, to: &VolumePath) -> Result<()> {
        self.0.rename(self.path(from), self.path(to))
    }

    /// Fills a buffer from a byte of a file on. Returns how much: less than all of it only at the end.
    ///
    /// # Errors
    /// As [`Client::pread`].
    pub fn read(&self, file: &File, offset: u64, into: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < into.len() {
            match self.0.pread(file, offset + done as u64, &mut into[done..])? {
                0 => break,
                count => done += count,
            }
        }
        Ok(done)
    }

    /// Writes bytes of any number.
    ///
    /// # Errors
    /// As [`Client::pwrite`].
    pub fn write(&self, file: &File, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let piece = &bytes[done..bytes.len().min(done + IO_MAX)];
            match self.0.pwrite(file, offset + done as u64, piece)? {
                0 => return Err(Error::io(format!("pfsd writes nothing of {}", file.path()), Errno::EPROTO)),
                count => done += count,
            }
        }
        Ok(())
    }
}

/// What pfsd says a file or directory is, if that can be.
fn stat(wire: &WireStat, btime: u64) -> Option<Stat> {
    let kind = match wire.mode & libc::S_IFMT {
        libc::S_IFREG => FileKind::File,
        libc::S_IFDIR => FileKind::Directory,
        _ => return None,
    };
    let [atime, mtime, ctime] = wire.times.map(|time| Seconds(u64::try_from(time).unwrap_or(0)));
    let size = u64::try_from(wire.size).ok()?;
    let blocks = u64::try_from(wire.blocks).ok()?;
    let inode = InodeNo::from_raw(wire.inode)?;
    Some(Stat { inode, kind, size, blocks, links: wire.links, atime, mtime, ctime, btime: Stamp(btime) })
}
