//! A transaction in the making: what an operation changes, before anything of it is to be seen.

use std::collections::HashMap;

use blockdev::{Error, ErrorKind, Result};
use nix::errno::Errno;

use crate::format::{
    Blktag, BlktagNo, BlktagState, Damage, Direntry, DirentryNo, DirentryState, Inode, InodeNo, Kind, Links, List,
    Number, Object,
};

use super::super::metadata::{Metadata, damage};
use super::allocator::Allocator;

/// The original's own errno for a volume without a free inode or direntry.
pub const TOO_MANY_FILES: i32 = 1001;

/// The objects that an operation changes.
///
/// They stand in the order in which the operation first [touched](Self::touch) them, which is their order in the journal.
/// Dropped without [`finish`](Self::finish), a transaction never was.
pub(super) struct Transaction<'a> {
    metadata: &'a Metadata,
    allocator: &'a mut Allocator,
    objects: Vec<Object>,
    places: HashMap<(Kind, u64), usize>,
}

impl<'a> Transaction<'a> {
    pub(super) fn new(metadata: &'a Metadata, allocator: &'a mut Allocator) -> Self {
        Self { metadata, allocator, objects: Vec::new(), places: HashMap::new() }
    }

    /// How many objects it changes.
    pub(super) fn len(&self) -> usize {
        self.objects.len()
    }

    /// What it changes.
    pub(super) fn finish(mut self) -> Vec<Object> {
        std::mem::take(&mut self.objects)
    }

    /// An object as it is by now, without looking further than its own bytes.
    pub(super) fn get<T: Changeable>(&self, number: T::Number) -> Result<T, Damage> {
        let place = self.places.get(&(T::Number::KIND, number.raw()));
        match place.and_then(|place| T::of(&self.objects[*place])) {
            Some(object) => Ok(object.clone()),
            None => T::read(self.metadata, number),
        }
    }

    /// Gives an object its new state.
    pub(super) fn put<T: Changeable>(&mut self, object: T) {
        let object = object.into();
        let key = (object.kind(), object.raw_number());
        match self.places.get(&key) {
            Some(place) => self.objects[*place] = object,
            None => {
                self.places.insert(key, self.objects.len());
                self.objects.push(object);
            }
        }
    }

    /// Gives an object its place among those that change.
    pub(super) fn touch<T: Changeable>(&mut self, number: T::Number) -> Result<T, Damage> {
        let object: T = self.get(number)?;
        self.put(object.clone());
        Ok(object)
    }

    /// [Touches](Self::touch) a free object, which is not free from now on.
    ///
    /// # Errors
    /// When there is none: ENOSPC for a block, the original's own 1001 for the others.
    pub(super) fn take<T: Changeable>(&mut self) -> Result<T> {
        let number = self.allocator.take().ok_or_else(|| match T::Number::KIND {
            Kind::Blktag => Error::io("no block of the volume is free", Errno::ENOSPC),
            kind => {
                Error::io(format!("no {kind} of the volume is free"), std::io::Error::from_raw_os_error(TOO_MANY_FILES))
                    .with_kind(ErrorKind::NoSpace)
            }
        })?;
        Ok(self.touch(number)?)
    }

    /// Says that an object is free from now on.
    pub(super) fn give<N: Number>(&mut self, number: N) {
        self.allocator.give(number);
    }

    /// Appends an element to the list of a file or directory.
    pub(super) fn append<T: Element>(&mut self, list: &mut List<T::Number>, element: &mut T) -> Result<(), Damage> {
        let number = element.number();
        let head = match list.tail() {
            None => number,
            Some(tail) => {
                let mut last: T = self.touch(tail)?;
                last.links()?.next = Some(number);
                self.put(last);
                element.links()?.prev = Some(tail);
                list.head().unwrap_or(tail)
            }
        };
        *list = List::new(head, number);
        Ok(())
    }

    /// Takes an element out of the list of a file or directory.
    pub(super) fn unlink<T: Element>(&mut self, list: &mut List<T::Number>, element: &mut T) -> Result<(), Damage> {
        let Links { next, prev } = std::mem::take(element.links()?);
        if let Some(prev) = prev {
            let mut before: T = self.touch(prev)?;
            before.links()?.next = next;
            self.put(before);
        }
        if let Some(next) = next {
            let mut after: T = self.touch(next)?;
            after.links()?.prev = prev;
            self.put(after);
        }
        let head = if prev.is_none() { next } else { list.head() };
        let tail = if next.is_none() { prev } else { list.tail() };
        *list = match (head, tail) {
            (Some(head), Some(tail)) => List::new(head, tail),
            _ => List::EMPTY,
        };
        Ok(())
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        // As the original, from the last that was touched on.
        for object in self.objects.drain(..).rev() {
            match object {
                Object::Blktag(blktag) => self.allocator.restore(blktag.number, self.metadata),
                Object::Direntry(direntry) => self.allocator.restore(direntry.number, self.metadata),
                Object::Inode(inode) => self.allocator.restore(inode.number, self.metadata),
            }
        }
    }
}

/// An object that a transaction can change.
pub(super) trait Changeable: Into<Object> + Clone {
    type Number: Number;

    fn read(metadata: &Metadata, number: Self::Number) -> Result<Self, Damage>;
    fn of(object: &Object) -> Option<&Self>;
}

/// An object in the list of a file or directory.
pub(super) trait Element: Changeable {
    fn number(&self) -> Self::Number;

    /// Its neighbours.
    ///
    /// # Errors
    /// When it is of those that are in no list.
    fn links(&mut self) -> Result<&mut Links<Self::Number>, Damage>;
}

impl Changeable for Blktag {
    type Number = BlktagNo;

    fn read(metadata: &Metadata, number: BlktagNo) -> Result<Self, Damage> {
        metadata.blktag(number)
    }

    fn of(object: &Object) -> Option<&Self> {
        if let Object::Blktag(blktag) = object { Some(blktag) } else { None }
    }
}

impl Element for Blktag {
    fn number(&self) -> BlktagNo {
        self.number
    }

    fn links(&mut self) -> Result<&mut Links<BlktagNo>, Damage> {
        match &mut self.state {
            BlktagState::Used { links, .. } => Ok(links),
            BlktagState::Free { .. } => Err(damage(self.number, "mo_used", "0, but it is in a file's list")),
        }
    }
}

impl Changeable for Direntry {
    type Number = DirentryNo;

    fn read(metadata: &Metadata, number: DirentryNo) -> Result<Self, Damage> {
        metadata.direntry(number)
    }

    fn of(object: &Object) -> Option<&Self> {
        if let Object::Direntry(direntry) = object { Some(direntry) } else { None }
    }
}

impl Element for Direntry {
    fn number(&self) -> DirentryNo {
        self.number
    }

    fn links(&mut self) -> Result<&mut Links<DirentryNo>, Damage> {
        match &mut self.state {
            DirentryState::Head(head) => Ok(&mut head.links),
            _ => Err(damage(self.number, "de_dirino", "it is in a directory's list, but names nothing in it")),
        }
    }
}

impl Changeable for Inode {
    type Number = InodeNo;

    fn read(metadata: &Metadata, number: InodeNo) -> Result<Self, Damage> {
        metadata.inode(number)
    }

    fn of(object: &Object) -> Option<&Self> {
        if let Object::Inode(inode) = object { Some(inode) } else { None }
    }
}
