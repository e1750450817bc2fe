//! Names and what they name: lookup, directories, whole trees.

use blockdev::{ByteSize, Error, Result};
use nix::errno::Errno;
use serde::Serialize;

use crate::format::{BLOCK_SIZE, Content, DirentryNo, Inode, InodeNo, Kind, OBJECT_SIZE, Seconds, Stamp};

use super::metadata::{Metadata, damage};
use super::name::{Name, VolumePath};

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The direntry in which it begins.
    pub number: DirentryNo,
    /// The name.
    pub name: Name,
    /// What is called so.
    pub inode: InodeNo,
}

/// File or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// A file.
    File,
    /// A directory.
    Directory,
}

/// What stat says of a file or directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stat {
    /// Its number.
    pub inode: InodeNo,
    /// What it is.
    pub kind: FileKind,
    /// Bytes in a file; 128 for each name in a directory, in the root without the file system's own two.
    pub size: u64,
    /// Space that its blocks take, in units of 512 bytes.
    pub blocks: u64,
    /// How many names it has: 1, or 0 once it was removed.
    pub links: u64,
    /// Last read, in practice 0; seconds since 1970.
    pub atime: Seconds,
    /// Last change of content; seconds since 1970.
    pub mtime: Seconds,
    /// Last change of content or name; seconds since 1970.
    pub ctime: Seconds,
    /// When it was made; microseconds since 1970.
    pub btime: Stamp,
}

impl Stat {
    /// What an inode says of itself, unless it is free.
    #[must_use]
    pub fn of(inode: &Inode) -> Option<Self> {
        let (kind, size, blocks) = match &inode.content {
            Content::Free => return None,
            Content::File(file) => (FileKind::File, file.size.bytes(), file.blocks),
            Content::Directory(directory) => {
                (FileKind::Directory, directory.entries.saturating_mul(OBJECT_SIZE as u64), 0)
            }
        };
        Some(Self {
            inode: inode.number,
            kind,
            size,
            blocks: blocks.saturating_mul(BLOCK_SIZE.bytes() / 512),
            links: u64::from(inode.name.is_some()),
            atime: inode.atime,
            mtime: inode.mtime,
            ctime: inode.ctime,
            btime: inode.btime,
        })
    }
}

impl Metadata {
    /// The inode that a path leads to.
    ///
    /// # Errors
    /// ENOENT when there is none, ENOTDIR when the path goes on beyond a file, ENAMETOOLONG when it or a name in it is too
    /// long; or damage on the way.
    pub fn lookup(&self, path: &VolumePath) -> Result<Inode> {
        let failed = |errno, why: &str| Error::io(format!("cannot find {:?}: {why}", path.display()), errno);
        if path.is_too_long() {
            return Err(failed(Errno::ENAMETOOLONG, "the path is too long"));
        }
        // `..` leads back along the names that led here.
        let mut way = vec![self.inode(InodeNo::ROOT)?];
        let here = |way: &[Inode]| way.last().map_or(InodeNo::ROOT, |inode| inode.number);
        for component in path.components() {
            if !matches!(way.last().map(|inode| &inode.content), Some(Content::Directory(_))) {
                return Err(failed(Errno::ENOTDIR, "it goes on beyond a file"));
            }
            match component {
                b"." => {}
                b".." => way.truncate(way.len().saturating_sub(1).max(1)),
                _ => {
                    let name = Name::new(component).map_err(|why| failed(why.errno(), "a name in it is too long"))?;
                    let Some(entry) = self.entries(here(&way))?.into_iter().find(|entry| entry.name == name) else {
                        return Err(failed(Errno::ENOENT, &format!("there is no {name:?}")));
                    };
                    way.push(self.named(entry.number, entry.inode)?);
                }
            }
        }
        let found = way.pop().ok_or_else(|| failed(Errno::ENOENT, "it leads nowhere"))?;
        if path.names_directory() && !matches!(found.content, Content::Directory(_)) {
            return Err(failed(Errno::ENOTDIR, "it ends in a slash, but is a file"));
        }
        Ok(found)
    }

    /// What stat says of an inode.
    ///
    /// # Errors
    /// When the inode is free (ENOENT) or damaged.
    pub fn stat(&self, number: InodeNo) -> Result<Stat> {
        Stat::of(&self.inode(number)?).ok_or_else(|| Error::io(format!("inode {number} is free"), Errno::ENOENT))
    }

    /// The names in a directory, in their order.
    ///
    /// # Errors
    /// When the inode is no directory (ENOTDIR), or its list or a name in it is damaged.
    pub fn entries(&self, number: InodeNo) -> Result<Vec<Entry>> {
        let inode = self.inode(number)?;
        if !matches!(inode.content, Content::Directory(_)) {
            return Err(Error::io(format!("inode {number} is no directory"), Errno::ENOTDIR));
        }
        let mut entries = Vec::new();
        self.visit_names(&inode, |number, head| {
            let name = self.name(number, head, |_| ())?;
            entries.push(Entry { number, name, inode: head.inode });
            Ok(())
        })?;
        Ok(entries)
    }

    /// Walks the tree below a directory: every directory before what is in it.
    ///
    /// # Errors
    /// When the inode is no directory, or its list is damaged.
    pub fn walk(&self, number: InodeNo) -> Result<Walk<'_>> {
        let open = vec![self.entries(number)?.into_iter()];
        Ok(Walk { metadata: self, start: number, open, left: self.count(Kind::Direntry) })
    }

    /// How much of the disk an inode takes, as the original's `du` counts it: whole blocks, but of a file with a single one
    /// only what was written, in units of 128 KiB.
    ///
    /// # Errors
    /// When the file's blocks are damaged.
    pub fn disk_usage(&self, inode: &Inode) -> Result<ByteSize> {
        const UNIT: u64 = 128 << 10;
        let Content::File(file) = &inode.content else { return Ok(ByteSize::ZERO) };
        if !self.version().has_holes() || file.blocks > 1 {
            return Ok(ByteSize::new(file.blocks.saturating_mul(BLOCK_SIZE.bytes())));
        }
        let mut written = 0;
        let end = file.size.bytes().div_ceil(BLOCK_SIZE.bytes());
        self.visit_blocks(inode, |block| {
            if block.index.raw() < end {
                written += u64::from(block.hole.written());
            }
            Ok(())
        })?;
        Ok(ByteSize::new(written.next_multiple_of(UNIT)))
    }
}

/// A walk through a tree.
#[derive(Debug)]
pub struct Walk<'a> {
    metadata: &'a Metadata,
    start: InodeNo,
    open: Vec<std::vec::IntoIter<Entry>>,
    /// How many names there can still be. Everything has one name, which it names back, so that only a directory to which
    /// no path leads can be below itself.
    left: u64,
}

/// A step of a walk.
#[derive(Debug, Clone)]
pub struct Visit {
    /// How deep it is: 0 in the directory where the walk began.
    pub depth: usize,
    /// Its name.
    pub entry: Entry,
    /// What it is.
    pub stat: Stat,
    /// All that its inode says.
    pub inode: Inode,
}

impl Walk<'_> {
    fn step(&mut self, depth: usize, entry: Entry) -> Result<Visit> {
        let Some(left) = self.left.checked_sub(1) else {
            self.open.clear();
            return Err(damage(self.start, "in_deno", "the directory is below itself").into());
        };
        self.left = left;
        let inode = self.metadata.named(entry.number, entry.inode)?;
        let stat = self.metadata.stat(inode.number)?;
        if stat.kind == FileKind::Directory {
            self.open.push(self.metadata.entries(inode.number)?.into_iter());
        }
        Ok(Visit { depth, entry, stat, inode })
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<Visit>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let depth = self.open.len().checked_sub(1)?;
            match self.open[depth].next() {
                Some(entry) => return Some(self.step(depth, entry)),
                None => self.open.pop(),
            };
        }
    }
}
