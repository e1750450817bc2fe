//! Changes of names: what creating, removing and renaming do to the objects.

use std::time::{Duration, SystemTime};

use blockdev::Result;

use crate::format::{
    Content, Damage, Directory, Direntry, DirentryNo, DirentryState, File, Head, Inode, InodeNo, Links, List,
    NamePiece, Seconds, Stamp,
};

use super::super::metadata::damage;
use super::super::name::Name;
use super::super::tree::FileKind;
use super::transaction::Transaction;

/// The time, as inodes record it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now(Duration);

impl Now {
    pub(super) fn get() -> Self {
        Self(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
    }

    pub(super) fn seconds(self) -> Seconds {
        Seconds(self.0.as_secs())
    }

    fn stamp(self) -> Stamp {
        Stamp(u64::try_from(self.0.as_micros()).unwrap_or(u64::MAX))
    }
}

/// What of a name goes on in a further piece: whatever, with the NUL after it, is beyond one.
fn rest(name: &[u8]) -> Option<&[u8]> {
    name.get(NamePiece::SIZE..)
}

impl Transaction<'_> {
    /// Makes something called `name` in a directory.
    ///
    /// # Errors
    /// When no inode or direntry is free, or something is damaged.
    pub(super) fn create(&mut self, directory: InodeNo, name: &Name, kind: FileKind, now: Now) -> Result<Inode> {
        let mut entry: Direntry = self.take()?;
        let mut inode: Inode = self.take()?;
        let (mut parent, mut listing) = self.directory(directory)?;
        let extension = self.name_on(None, entry.number, rest(name.as_bytes()))?;
        entry.state = DirentryState::Head(Head {
            links: Links::default(),
            name: NamePiece::new(name.as_bytes()),
            inode: inode.number,
            directory,
            extension,
        });
        self.append(&mut listing.list, &mut entry)?;
        listing.entries += 1;
        (parent.mtime, parent.ctime) = (now.seconds(), now.seconds());
        parent.content = Content::Directory(listing);
        inode.content = match kind {
            FileKind::File => Content::File(File { list: List::EMPTY, blocks: 0, size: blockdev::ByteSize::ZERO }),
            FileKind::Directory => Content::Directory(Directory { list: List::EMPTY, entries: 0 }),
        };
        inode.name = Some(entry.number);
        inode.atime = Seconds(0);
        (inode.ctime, inode.mtime, inode.btime) = (now.seconds(), now.seconds(), now.stamp());
        self.put(parent);
        self.put(entry);
        self.put(inode.clone());
        Ok(inode)
    }

    /// Takes the name of a file or directory away. What is in it stays its own.
    pub(super) fn remove(&mut self, mut inode: Inode) -> Result<()> {
        let (mut entry, head) = self.name_of(&inode)?;
        self.put(inode.clone());
        let (mut parent, mut listing) = self.directory(head.directory)?;
        self.unlink(&mut listing.list, &mut entry)?;
        listing.entries = listing.entries.saturating_sub(1);
        parent.content = Content::Directory(listing);
        self.name_on(head.extension, entry.number, None)?;
        entry.state = DirentryState::Free;
        self.give(entry.number);
        inode.name = None;
        self.put(parent);
        self.put(entry);
        self.put(inode);
        Ok(())
    }

    /// Calls a file or directory `name` in directory `to`, in place of `replaced` if there is something of that name.
    ///
    /// # Errors
    /// When the name needs more direntries than are free, or something is damaged.
    pub(super) fn rename(
        &mut self,
        inode: InodeNo,
        to: InodeNo,
        name: &Name,
        replaced: Option<Inode>,
        now: Now,
    ) -> Result<()> {
        if let Some(replaced) = replaced {
            self.remove(replaced)?;
        }
        let mut moved: Inode = self.get(inode)?;
        let from = match moved.name.map(|name| self.get::<Direntry>(name)).transpose()?.map(|entry| entry.state) {
            Some(DirentryState::Head(head)) => head.directory,
            _ => return Err(damage(inode, "in_deno", "it is called nothing").into()),
        };
        self.touch::<Inode>(from)?;
        self.touch::<Inode>(to)?;
        let (mut entry, head) = self.name_of(&moved)?;
        self.put(moved.clone());

        let (mut parent, mut listing) = self.directory(from)?;
        self.unlink(&mut listing.list, &mut entry)?;
        listing.entries = listing.entries.saturating_sub(1);
        parent.content = Content::Directory(listing);
        parent.mtime = now.seconds();
        self.put(parent);

        let extension = self.name_on(head.extension, entry.number, rest(name.as_bytes()))?;
        let (mut parent, mut listing) = self.directory(to)?;
        let name = NamePiece::new(name.as_bytes());
        entry.state = DirentryState::Head(Head { links: Links::default(), name, directory: to, extension, ..head });
        self.append(&mut listing.list, &mut entry)?;
        listing.entries += 1;
        parent.content = Content::Directory(listing);
        parent.mtime = now.seconds();
        moved.ctime = now.seconds();
        self.put(parent);
        self.put(entry);
        self.put(moved);
        Ok(())
    }

    /// A directory, touched.
    fn directory(&mut self, number: InodeNo) -> Result<(Inode, Directory), Damage> {
        let inode: Inode = self.touch(number)?;
        match &inode.content {
            Content::Directory(directory) => Ok((inode.clone(), directory.clone())),
            _ => Err(damage(number, "in_type", "it should be a directory")),
        }
    }

    /// The direntry that names an inode, touched.
    fn name_of(&mut self, inode: &Inode) -> Result<(Direntry, Head), Damage> {
        let Some(name) = inode.name else { return Err(damage(inode.number, "in_deno", "it is called nothing")) };
        let entry: Direntry = self.touch(name)?;
        match &entry.state {
            DirentryState::Head(head) if head.inode == inode.number => Ok((entry.clone(), head.clone())),
            _ => Err(damage(inode.number, "in_deno", format!("{name}, which does not name it"))),
        }
    }

    /// Lets the name in direntry `head` go on with `name`: in the direntries from `current` on, which it had, in more of
    /// them, or fewer. Returns in which it goes on.
    fn name_on(
        &mut self,
        current: Option<DirentryNo>,
        head: DirentryNo,
        name: Option<&[u8]>,
    ) -> Result<Option<DirentryNo>> {
        let (mut entry, more) = match (current, name) {
            (None, None) => return Ok(None),
            (None, Some(_)) => (self.take::<Direntry>()?, None),
            (Some(current), _) => {
                let entry: Direntry = self.touch(current)?;
                match entry.state {
                    DirentryState::Extension { head: of, extension, .. } if of == head => (entry, extension),
                    _ => {
                        let problem = format!("it is no piece of direntry {head}, which goes on there");
                        return Err(damage(current, "de_headdeno", problem).into());
                    }
                }
            }
        };
        let number = entry.number;
        let extension = self.name_on(more, head, name.and_then(rest))?;
        entry.state = match name {
            Some(name) => DirentryState::Extension { name: NamePiece::new(name), head, extension },
            None => DirentryState::Free,
        };
        self.put(entry);
        if name.is_none() {
            self.give(number);
        }
        Ok(name.map(|_| number))
    }
}
