//! What commands change: a volume on its disk, of which they are the only writer then, or through the pfsd that is that.

use blockdev::Result;
use pfs::client::{self, Named, Served};
use pfs::copy::Target;
use pfs::volume::writer::{Allocate, Content, Handle, Position, Writer};
use pfs::volume::{Stat, VolumePath};

/// A volume to be changed.
pub(crate) enum Changing {
    Disk(Box<Writer>),
    Pfsd(Box<Served>),
}

/// A file that is being written.
pub(crate) enum Pouring<'a> {
    Disk(Box<Content<'a>>, Handle),
    Pfsd(&'a Served, client::File),
}

impl Pouring<'_> {
    /// Writes bytes from a byte of the file on.
    pub(crate) fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Disk(content, file) => content.write(*file, Position::At(at), bytes).map(drop),
            Self::Pfsd(served, file) => served.write(file, at, bytes),
        }
    }
}

impl Changing {
    /// Gives it back.
    pub(crate) fn close(self) -> Result<()> {
        match self {
            Self::Disk(writer) => writer.close(),
            Self::Pfsd(served) => served.close(),
        }
    }

    /// The same, to copy into.
    pub(crate) fn target(&self) -> Target<'_> {
        match self {
            Self::Disk(writer) => Target::Disk(writer),
            Self::Pfsd(served) => Target::Pfsd(served),
        }
    }

    /// What a path leads to.
    pub(crate) fn stat(&self, path: &VolumePath) -> Result<Stat> {
        match self {
            Self::Disk(writer) => writer.stat(writer.lookup(path)?),
            Self::Pfsd(served) => served.stat(path),
        }
    }

    /// What is in a directory.
    pub(crate) fn entries(&self, directory: &VolumePath) -> Result<Vec<Named>> {
        match self {
            Self::Disk(writer) => {
                let start = writer.lookup(directory)?.inode;
                writer.with_metadata(|metadata| {
                    let entries = metadata.entries(start)?.into_iter();
                    let named = |entry: pfs::volume::Entry| {
                        Ok(Named { depth: 0, stat: metadata.stat(entry.inode)?, name: entry.name })
                    };
                    entries.map(named).collect()
                })
            }
            Self::Pfsd(served) => served.entries(directory),
        }
    }

    /// Everything below a directory, each directory before what is in it.
    pub(crate) fn walk(&self, directory: &VolumePath) -> Result<Vec<Named>> {
        match self {
            Self::Disk(writer) => {
                let start = writer.lookup(directory)?.inode;
                writer.with_metadata(|metadata| {
                    let visits = metadata.walk(start)?;
                    visits
                        .map(|visit| visit.map(|it| Named { depth: it.depth, name: it.entry.name, stat: it.stat }))
                        .collect()
                })
            }
            Self::Pfsd(served) => served.walk(directory),
        }
    }

    /// Makes a file, unless there is one already.
    pub(crate) fn create(&self, path: &VolumePath) -> Result<()> {
        match self {
            Self::Disk(writer) => writer.create(path, false).map(drop),
            Self::Pfsd(served) => served.create(path, false).map(drop),
        }
    }

    /// Makes a directory.
    pub(crate) fn mkdir(&self, path: &VolumePath) -> Result<()> {
        match self {
            Self::Disk(writer) => writer.mkdir(path).map(drop),
            Self::Pfsd(served) => served.mkdir(path),
        }
    }

    /// Removes an empty directory.
    pub(crate) fn rmdir(&self, path: &VolumePath) -> Result<()> {
        match self {
            Self::Disk(writer) => writer.rmdir(path),
            Self::Pfsd(served) => served.rmdir(path),
        }
    }

    /// Removes a file.
    pub(crate) fn unlink(&self, path: &VolumePath) -> Result<()> {
        match self {
            Self::Disk(writer) => writer.unlink(path),
            Self::Pfsd(served) => served.unlink(path),
        }
    }

    /// Calls a file or directory otherwise.
    pub(crate) fn rename(&self, from: &VolumePath, to: &VolumePath) -> Result<()> {
        match self {
            Self::Disk(writer) => writer.rename(from, to),
            Self::Pfsd(served) => served.rename(from, to),
        }
    }

    /// Makes a file so many bytes long.
    pub(crate) fn truncate(&self, path: &VolumePath, size: u64) -> Result<()> {
        match self {
            Self::Disk(writer) => writer.truncate(writer.lookup(path)?, size),
            Self::Pfsd(served) => served.client().ftruncate(&served.open(path)?, size),
        }
    }

    /// Gives a file its blocks for a range of its bytes.
    pub(crate) fn allocate(&self, path: &VolumePath, offset: u64, len: u64) -> Result<()> {
        match self {
            Self::Disk(writer) => writer.allocate(writer.lookup(path)?, offset, len, Allocate::default()),
            Self::Pfsd(served) => served.client().fallocate(&served.open(path)?, 0, offset, len),
        }
    }

    /// Opens a file that there is, to write into it.
    pub(crate) fn pour(&self, path: &VolumePath) -> Result<Pouring<'_>> {
        match self {
            Self::Disk(writer) => Ok(Pouring::Disk(Box::new(writer.content()?), writer.lookup(path)?)),
            Self::Pfsd(served) => Ok(Pouring::Pfsd(served, served.open(path)?)),
        }
    }
}
