//! What a writer knows of its volume: the metadata with everything that was done, and what makes them quick to use.

use std::collections::HashMap;

use blockdev::{Error, Result};
use nix::errno::Errno;

use crate::format::{
    BlktagNo, BlktagState, Content, Damage, DirentryNo, DirentryState, Head, Inode, InodeNo, NAME_MAX, Number, Object,
};

use super::super::data::{FileMap, MappedBlock};
use super::super::metadata::{Chunk, Metadata};
use super::super::name::{Name, VolumePath};
use super::super::tree::{FileKind, Stat};
use super::Handle;
use super::allocator::Allocator;
use super::transaction::Transaction;

/// The metadata of a volume that is being written.
#[derive(Debug)]
pub(in crate::volume) struct State {
    metadata: Metadata,
    allocator: Allocator,
    /// What is called how in each directory.
    names: HashMap<InodeNo, HashMap<Name, DirentryNo>>,
    /// Which block is where, of files that were asked for.
    maps: HashMap<InodeNo, FileMap>,
}

/// Where a path leads.
#[derive(Debug, Clone)]
pub(in crate::volume) struct Place {
    /// In which directory its last name is.
    pub(in crate::volume) directory: InodeNo,
    /// Its last name; none if it leads to the root.
    pub(in crate::volume) name: Option<Name>,
    /// What is called so.
    pub(in crate::volume) found: Option<Inode>,
}

impl State {
    /// What is known of a volume whose metadata are these.
    ///
    /// # Errors
    /// When they are damaged anywhere on the way from the root.
    pub(in crate::volume) fn new(metadata: Metadata) -> Result<Self> {
        let allocator = Allocator::new(&metadata)?;
        let mut names: HashMap<InodeNo, HashMap<Name, DirentryNo>> = HashMap::new();
        let mut open = vec![InodeNo::ROOT];
        while let Some(directory) = open.pop() {
            for entry in metadata.entries(directory)? {
                let inode = metadata.named(entry.number, entry.inode)?;
                if matches!(inode.content, Content::Directory(_)) {
                    open.push(inode.number);
                }
                names.entry(directory).or_default().insert(entry.name, entry.number);
            }
        }
        Ok(Self { metadata, allocator, names, maps: HashMap::new() })
    }

    pub(in crate::volume) fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Takes in the chunks by which the volume was grown.
    ///
    /// # Errors
    /// When they are damaged.
    pub(super) fn extend(&mut self, chunks: Vec<Chunk>) -> Result<(), Damage> {
        self.metadata.extend(chunks);
        self.allocator.extend(&self.metadata)
    }

    /// Starts a transaction, which sees what was done before it.
    pub(super) fn begin(&mut self) -> Transaction<'_> {
        Transaction::new(&self.metadata, &mut self.allocator)
    }

    /// Starts a transaction on a file.
    ///
    /// # Errors
    /// As [`map`](Self::map).
    pub(super) fn begin_on(&mut self, file: Handle) -> Result<(Transaction<'_>, &FileMap)> {
        self.map(file)?;
        let map = &self.maps[&file.inode];
        Ok((Transaction::new(&self.metadata, &mut self.allocator), map))
    }

    /// Says whether a free block must not be used, because the device is being told that it is free.
    pub(super) fn withhold(&mut self, block: BlktagNo, withheld: bool) {
        self.allocator.withhold(block, withheld);
    }

    /// Takes over what a transaction changed.
    pub(in crate::volume) fn apply(&mut self, objects: &[Object]) {
        for object in objects {
            if let Some((head, name)) = self.name_in(object)
                && let Some(names) = self.names.get_mut(&head.directory)
            {
                names.remove(&name);
            }
        }
        for object in objects {
            self.metadata.put(object);
            self.apply_to_maps(object);
        }
        for object in objects {
            if let Some((head, name)) = self.name_in(object)
                && let Some(number) = DirentryNo::from_raw(object.raw_number())
            {
                self.names.entry(head.directory).or_default().insert(name, number);
            }
            if let Object::Inode(inode) = object
                && !inode.is_used()
            {
                self.names.remove(&inode.number);
            }
        }
    }

    /// The name that the direntry of this number is, as the metadata have it, if it is one.
    fn name_in(&self, object: &Object) -> Option<(Head, Name)> {
        let Object::Direntry(direntry) = object else { return None };
        let DirentryState::Head(head) = self.metadata.direntry(direntry.number).ok()?.state else { return None };
        let name = self.metadata.name(direntry.number, &head, |_| ()).ok()?;
        Some((head, name))
    }

    fn apply_to_maps(&mut self, object: &Object) {
        match object {
            Object::Blktag(blktag) => match &blktag.state {
                BlktagState::Used { owner, index, hole, .. } => {
                    if let Some(map) = self.maps.get_mut(owner) {
                        map.set(*index, MappedBlock { tag: blktag.number, hole: *hole });
                    }
                }
                BlktagState::Free { last_owner, last_index, .. } => {
                    if let Some(map) = self.maps.get_mut(last_owner) {
                        map.unset(*last_index, blktag.number);
                    }
                }
            },
            Object::Inode(inode) => match &inode.content {
                Content::File(file) => {
                    if let Some(map) = self.maps.get_mut(&inode.number) {
                        map.size = file.size.bytes();
                    }
                }
                _ => {
                    self.maps.remove(&inode.number);
                }
            },
            Object::Direntry(_) => {}
        }
    }

    /// What a handle stands for.
    ///
    /// # Errors
    /// ENOENT once it was removed.
    pub(in crate::volume) fn inode(&self, handle: Handle) -> Result<Inode> {
        let inode = self.metadata.inode(handle.inode)?;
        if !inode.is_used() || inode.btime != handle.btime || inode.name.is_none() {
            return Err(Error::io(format!("what inode {} was is removed", handle.inode), Errno::ENOENT));
        }
        Ok(inode)
    }

    /// Which block of a file is where.
    ///
    /// # Errors
    /// ENOENT once it was removed, EISDIR for a directory; or damage.
    pub(in crate::volume) fn map(&mut self, file: Handle) -> Result<&FileMap> {
        self.inode(file)?;
        match self.maps.entry(file.inode) {
            std::collections::hash_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            std::collections::hash_map::Entry::Vacant(entry) => Ok(entry.insert(self.metadata.file_map(file.inode)?)),
        }
    }

    /// What is called so in a directory.
    ///
    /// # Errors
    /// Damage.
    pub(super) fn find(&self, directory: InodeNo, name: &Name) -> Result<Option<Inode>> {
        let Some(number) = self.names.get(&directory).and_then(|names| names.get(name)) else { return Ok(None) };
        let DirentryState::Head(head) = self.metadata.direntry(*number)?.state else { return Ok(None) };
        Ok(Some(self.metadata.named(*number, head.inode)?))
    }

    /// Where a path leads. Nothing need be there, as long as all directories on the way are.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR, ENAMETOOLONG; or damage on the way.
    pub(in crate::volume) fn resolve(&self, path: &VolumePath) -> Result<Place> {
        let failed = |errno, why: &str| Err(Error::io(format!("cannot find {:?}: {why}", path.display()), errno));
        if path.is_too_long() {
            return failed(Errno::ENAMETOOLONG, "the path is too long");
        }
        let root = self.metadata.inode(InodeNo::ROOT)?;
        let mut way = vec![(None, root)];
        let mut missing: Option<Name> = None;
        for component in path.components() {
            if let Some(missing) = missing {
                return failed(Errno::ENOENT, &format!("there is no {missing:?}"));
            }
            if component.len() > NAME_MAX {
                return failed(Errno::ENAMETOOLONG, "a name in it is too long");
            }
            let Some((_, here)) = way.last() else { unreachable!("the root stays") };
            if !matches!(here.content, Content::Directory(_)) {
                return failed(Errno::ENOTDIR, "it goes on beyond a file");
            }
            match component {
                b"." => {}
                b".." => way.truncate(way.len().saturating_sub(1).max(1)),
                _ => {
                    let name = match Name::new(component) {
                        Ok(name) => name,
                        Err(why) => return failed(why.errno(), &format!("of a name in it, {why}")),
                    };
                    match self.find(here.number, &name)? {
                        Some(inode) => way.push((Some(name), inode)),
                        None => missing = Some(name),
                    }
                }
            }
        }
        let Some((name, last)) = way.pop() else { unreachable!("the root stays") };
        if let Some(missing) = missing {
            return Ok(Place { directory: last.number, name: Some(missing), found: None });
        }
        let directory = way.last().map_or(InodeNo::ROOT, |(_, inode)| inode.number);
        Ok(Place { directory, name, found: Some(last) })
    }

    /// Whether directory `inner` is `outer` or below it.
    ///
    /// # Errors
    /// Damage on the way up.
    pub(super) fn is_below(&self, inner: InodeNo, outer: InodeNo) -> Result<bool> {
        let mut at = inner;
        // As many steps as there can be directories: a ring would be damage.
        for _ in 0..self.metadata.count(crate::format::Kind::Inode) {
            if at == outer {
                return Ok(true);
            }
            if at == InodeNo::ROOT {
                return Ok(false);
            }
            let Some(name) = self.metadata.inode(at)?.name else { return Ok(false) };
            let DirentryState::Head(head) = self.metadata.direntry(name)?.state else { return Ok(false) };
            at = head.directory;
        }
        Ok(true)
    }

    /// Inodes that have no name any more: removed, but a crash kept them from being freed.
    pub(super) fn orphans(&self) -> Vec<InodeNo> {
        let all = self.metadata.numbers::<InodeNo>();
        all.filter(|number| self.metadata.inode(*number).is_ok_and(|inode| inode.is_used() && inode.name.is_none()))
            .collect()
    }
}

/// What an inode is.
pub(super) fn kind_of(inode: &Inode) -> Option<FileKind> {
    Stat::of(inode).map(|stat| stat.kind)
}
