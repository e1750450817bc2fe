//! What commands look at that only look: a volume on its disk, or through the pfsd that serves it.

use std::rc::Rc;

use blockdev::{Error, Result};
use pfs::client::{self, Named, Served};
use pfs::format::InodeNo;
use pfs::volume::{FileMap, Stat, Volume, VolumePath};

/// A volume to be looked at.
pub(crate) enum Reading {
    Disk(Box<Volume>),
    Pfsd(Box<Served>),
}

/// A file whose content is to be read, as long as it was when it was looked at.
pub(crate) enum Opened {
    Disk(InodeNo, FileMap),
    Pfsd(Rc<client::File>, u64),
}

impl Opened {
    /// How many bytes it has.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Disk(_, map) => map.size,
            Self::Pfsd(_, size) => *size,
        }
    }
}

impl Reading {
    /// What a path leads to.
    pub(crate) fn stat(&self, path: &VolumePath) -> Result<Stat> {
        match self {
            Self::Disk(volume) => volume.metadata().stat(volume.metadata().lookup(path)?.number),
            Self::Pfsd(served) => served.stat(path),
        }
    }

    /// What is in a directory.
    pub(crate) fn entries(&self, directory: &VolumePath) -> Result<Vec<Named>> {
        let volume = match self {
            Self::Disk(volume) => volume.metadata(),
            Self::Pfsd(served) => return served.entries(directory),
        };
        let entries = volume.entries(volume.lookup(directory)?.number)?.into_iter();
        let named = entries.map(|entry| {
            let inode = volume.named(entry.number, entry.inode).map_err(Error::from)?;
            Ok(Named { depth: 0, name: entry.name, stat: volume.stat(inode.number)? })
        });
        named.collect()
    }

    /// Everything below a directory, each directory before what is in it.
    pub(crate) fn walk(&self, directory: &VolumePath) -> Result<Vec<Named>> {
        match self {
            Self::Disk(volume) => {
                let start = volume.metadata().lookup(directory)?.number;
                let visits = volume.metadata().walk(start)?;
                visits
                    .map(|visit| visit.map(|it| Named { depth: it.depth, name: it.entry.name, stat: it.stat }))
                    .collect()
            }
            Self::Pfsd(served) => served.walk(directory),
        }
    }

    /// Opens a file.
    pub(crate) fn open(&self, path: &VolumePath) -> Result<Opened> {
        match self {
            Self::Disk(volume) => {
                let inode = volume.metadata().lookup(path)?.number;
                Ok(Opened::Disk(inode, volume.metadata().file_map(inode)?))
            }
            Self::Pfsd(served) => {
                let file = served.open(path)?;
                let stat = served.fstat(&file, path)?;
                if stat.kind == pfs::volume::FileKind::Directory {
                    let message = format!("{:?} is a directory", path.display());
                    return Err(Error::io(message, nix::errno::Errno::EISDIR));
                }
                Ok(Opened::Pfsd(Rc::new(file), stat.size))
            }
        }
    }

    /// Looks at a file again. Nothing where nothing has changed.
    ///
    /// # Errors
    /// ENOENT when it was removed.
    pub(crate) fn look_again(&mut self, path: &VolumePath, file: &Opened) -> Result<Option<Opened>> {
        match (self, file) {
            (Self::Disk(volume), Opened::Disk(inode, before)) => {
                if !volume.refresh()? {
                    return Ok(None);
                }
                let map = volume.metadata().file_map(*inode)?;
                if map.btime != before.btime {
                    let message = format!("{:?} was removed", path.display());
                    return Err(Error::io(message, nix::errno::Errno::ENOENT));
                }
                Ok(Some(Opened::Disk(*inode, map)))
            }
            (Self::Pfsd(served), Opened::Pfsd(file, before)) => {
                let size = served.fstat(file, path)?.size;
                Ok((size != *before).then(|| Opened::Pfsd(Rc::clone(file), size)))
            }
            _ => unreachable!("a file is its volume's"),
        }
    }

    /// Fills a buffer from a byte of a file on. Returns how much: less than all of it only at the end.
    pub(crate) fn read(&mut self, file: &Opened, at: u64, into: &mut [u8]) -> Result<usize> {
        match (self, file) {
            (Self::Disk(volume), Opened::Disk(_, map)) => volume.read(map, at, into),
            (Self::Pfsd(served), Opened::Pfsd(file, _)) => served.read(file, at, into),
            _ => unreachable!("a file is its volume's"),
        }
    }
}
