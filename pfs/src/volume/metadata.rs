//! The metadata of a volume in memory: its objects as they are once the journal is replayed.

use crate::format::{
    Bda, Blktag, BlktagNo, BlktagState, BlockIndex, CHUNK_SIZE, ChunkHeader, ChunkId, Content, Damage, Direntry,
    DirentryNo, DirentryState, Head, Hole, Inode, InodeNo, Kind, Number, OBJECT_SIZE, Object, ObjectBytes, SECTOR_SIZE,
    Version, check_object, is_used,
};

use super::name::Name;

/// The metadata of a volume in memory.
///
/// Objects are kept as the bytes that stand on the disk, so that one damaged object is in nobody's way who does not ask
/// for it.
#[derive(Debug, Clone)]
pub struct Metadata {
    chunks: Vec<Chunk>,
}

/// The metadata of one chunk.
#[derive(Debug, Clone)]
pub(super) struct Chunk {
    header: ChunkHeader,
    sets: [Box<[ObjectBytes]>; 3],
    replayed: [bool; 3],
}

impl Chunk {
    /// The chunk of `header`, whose sets of objects are still all zero.
    pub(super) fn new(header: ChunkHeader) -> Self {
        Self {
            header,
            sets: Kind::ALL.map(|kind| vec![[0; OBJECT_SIZE]; kind.per_chunk()].into_boxed_slice()),
            replayed: [false; 3],
        }
    }

    /// The bytes of all its sets, each with its address.
    pub(super) fn sets_mut(&mut self) -> impl Iterator<Item = (Bda, &mut [u8])> {
        let start = self.header.id.start();
        Kind::ALL
            .into_iter()
            .zip(&mut self.sets)
            .map(move |(kind, set)| (Bda::new(start.bytes() + kind.offset()), set.as_flattened_mut()))
    }

    /// Sees that it is as growing a volume leaves it: all its objects right, and all of them free but its first block, in
    /// which they are.
    pub(super) fn is_fresh(&self) -> Result<(), Damage> {
        fn each<N: Number>(
            chunk: &Chunk,
            parse: impl Fn(&ObjectBytes, Bda) -> Result<bool, Damage>,
        ) -> Result<(), Damage> {
            let numbers = (0..N::KIND.per_chunk()).filter_map(|index| N::new(chunk.header.id, index));
            for (number, bytes) in numbers.zip(&chunk.sets[N::KIND as usize - 1]) {
                check_object(bytes, number)?;
                let expected = N::KIND == Kind::Blktag && number.index() == 0;
                if parse(bytes, number.slot().start())? != expected {
                    let problem = format!("{}, but its chunk is new", u8::from(!expected));
                    return Err(damage(number, "mo_used", problem));
                }
            }
            Ok(())
        }
        each::<BlktagNo>(self, |bytes, at| Ok(matches!(Blktag::parse(bytes, at)?.state, BlktagState::Used { .. })))?;
        each::<DirentryNo>(self, |bytes, at| Ok(Direntry::parse(bytes, at)?.state != DirentryState::Free))?;
        each::<InodeNo>(self, |bytes, at| Ok(Inode::parse(bytes, at)?.is_used()))
    }
}

/// A block in the list of a file's blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedBlock {
    /// Which block of the volume.
    pub tag: BlktagNo,
    /// Which block of the file.
    pub index: BlockIndex,
    /// What of it was never written.
    pub hole: Hole,
}

impl Metadata {
    /// The metadata of these chunks, of which there is at least one.
    pub(super) fn new(chunks: Vec<Chunk>) -> Self {
        Self { chunks }
    }

    /// Takes in the chunks by which the volume was grown.
    pub(super) fn extend(&mut self, chunks: impl IntoIterator<Item = Chunk>) {
        self.chunks.extend(chunks);
        if let Some(count) = self.chunks.last().map(|last| last.header.chunks) {
            self.chunks.iter_mut().for_each(|chunk| chunk.header.chunks = count);
        }
    }

    /// The headers of its chunks, in order.
    pub fn headers(&self) -> impl ExactSizeIterator<Item = &ChunkHeader> {
        self.chunks.iter().map(|chunk| &chunk.header)
    }

    /// The version of the format it is in.
    #[must_use]
    pub fn version(&self) -> Version {
        self.chunks.first().map_or(Version::NEWEST, |chunk| chunk.header.version)
    }

    /// The numbers of all objects of one kind, in order.
    pub fn numbers<N: Number>(&self) -> impl Iterator<Item = N> {
        self.headers().flat_map(|header| (0..N::KIND.per_chunk()).filter_map(|index| N::new(header.id, index)))
    }

    /// How many objects of one kind there are.
    #[must_use]
    pub fn count(&self, kind: Kind) -> u64 {
        (self.chunks.len() * kind.per_chunk()) as u64
    }

    /// The bytes of an object, right or wrong.
    ///
    /// # Errors
    /// When the volume has no such object.
    pub fn bytes<N: Number>(&self, number: N) -> Result<&ObjectBytes, Damage> {
        let chunk = self.chunks.get(number.chunk().index());
        chunk
            .map(|chunk| &chunk.sets[N::KIND as usize - 1][number.index()])
            .ok_or_else(|| damage(number, "mo_number", self.beyond(number)))
    }

    /// The bytes of all objects of one kind in one chunk.
    pub(super) fn set(&self, chunk: ChunkId, kind: Kind) -> &[ObjectBytes] {
        self.chunks.get(chunk.index()).map_or(&[], |chunk| &chunk.sets[kind as usize - 1])
    }

    /// The objects of the sector at an address, if that is one of objects.
    pub(super) fn sector(&self, at: Bda) -> Option<&[u8]> {
        let (chunk, within) = (at.bytes() / CHUNK_SIZE.bytes(), at.bytes() % CHUNK_SIZE.bytes());
        let chunk = self.chunks.get(usize::try_from(chunk).ok()?)?;
        chunk.sets.iter().zip(Kind::ALL).find_map(|(set, kind)| {
            let start = usize::try_from(within.checked_sub(kind.offset())?).ok()?;
            set.as_flattened().get(start..start + SECTOR_SIZE)
        })
    }

    /// Sees that there is such an object; if not, it is the `field` of `from` that is wrong.
    fn exists<N: Number, M: Number>(&self, number: N, from: M, field: &'static str) -> Result<(), Damage> {
        if number.chunk().index() < self.chunks.len() {
            return Ok(());
        }
        Err(damage(from, field, format!("{number}: {}", self.beyond(number))))
    }

    fn beyond(&self, number: impl Number) -> String {
        format!("that would be in chunk {}, but the volume has {}", number.chunk(), self.chunks.len())
    }

    /// A blktag.
    ///
    /// # Errors
    /// When the volume has no such blktag, or its bytes are none.
    pub fn blktag(&self, number: BlktagNo) -> Result<Blktag, Damage> {
        let blktag = Blktag::parse(self.bytes(number)?, number.slot().start())?;
        is_itself(number, blktag.number)?;
        Ok(blktag)
    }

    /// A direntry.
    ///
    /// # Errors
    /// When the volume has no such direntry, or its bytes are none.
    pub fn direntry(&self, number: DirentryNo) -> Result<Direntry, Damage> {
        let direntry = Direntry::parse(self.bytes(number)?, number.slot().start())?;
        is_itself(number, direntry.number)?;
        Ok(direntry)
    }

    /// An inode.
    ///
    /// # Errors
    /// When the volume has no such inode, or its bytes are none.
    pub fn inode(&self, number: InodeNo) -> Result<Inode, Damage> {
        let inode = Inode::parse(self.bytes(number)?, number.slot().start())?;
        is_itself(number, inode.number)?;
        Ok(inode)
    }

    /// Whether a journal entry's object is one of this volume's; the entry lies `at` an address.
    pub(super) fn expect(&self, object: &Object, at: Bda) -> Result<(), Damage> {
        let (chunk, chunks) = (object.chunk(), self.chunks.len());
        if chunk.index() < chunks {
            return Ok(());
        }
        let problem = format!("it is in chunk {chunk}, but the volume has {chunks}");
        Err(Damage::new("journal entry", at, "le_sector_bda", problem))
    }

    /// Replaces an object by a newer state of it.
    ///
    /// # Panics
    /// When it is not one of [this volume's](Metadata::expect).
    pub(super) fn put(&mut self, object: &Object) {
        let (chunk, set) = (&mut self.chunks[object.chunk().index()], object.kind() as usize - 1);
        chunk.sets[set][object.index()] = object.write();
        chunk.replayed[set] = true;
    }

    /// Whether the journal held an object of this kind and chunk. The original then looks for a free one from the first on.
    #[must_use]
    pub fn is_replayed(&self, chunk: ChunkId, kind: Kind) -> bool {
        self.chunks.get(chunk.index()).is_some_and(|chunk| chunk.replayed[kind as usize - 1])
    }

    /// The objects of one kind that say of themselves that they are used, in one chunk and in order.
    pub fn used<N: Number>(&self, chunk: ChunkId) -> impl Iterator<Item = N> {
        let objects = self.chunks.get(chunk.index()).map_or(&[][..], |chunk| &chunk.sets[N::KIND as usize - 1]);
        let used = objects.iter().enumerate().filter(|(_, bytes)| is_used(bytes));
        used.filter_map(move |(index, _)| N::new(chunk, index))
    }

    /// Checks the checksum of every object.
    ///
    /// # Errors
    /// The first that is wrong.
    pub fn verify(&self) -> Result<(), Damage> {
        fn of<N: Number>(metadata: &Metadata) -> Result<(), Damage> {
            metadata.numbers::<N>().try_for_each(|number| check_object(metadata.bytes(number)?, number).map(|_| ()))
        }
        of::<BlktagNo>(self)?;
        of::<DirentryNo>(self)?;
        of::<InodeNo>(self)
    }

    /// Visits the blocks of a file in the order in which it got them. A list is followed as long as every element names the
    /// one before it, so it ends.
    ///
    /// # Errors
    /// The first thing wrong with the list; what was visited before is right.
    pub fn visit_blocks(
        &self,
        inode: &Inode,
        mut visit: impl FnMut(ListedBlock) -> Result<(), Damage>,
    ) -> Result<(), Damage> {
        let Content::File(file) = &inode.content else { return Ok(()) };
        let (mut next, mut prev, mut count) = (file.list.head(), None, 0);
        while let Some(tag) = next {
            self.in_list(tag, prev, inode.number)?;
            let blktag = self.blktag(tag)?;
            let BlktagState::Used { links, owner, index, hole } = blktag.state else {
                let problem = format!("0, but it is in the list of inode {}", inode.number);
                return Err(damage(tag, "mo_used", problem));
            };
            if owner != inode.number {
                let problem = format!("{owner}, but it is in the list of inode {}", inode.number);
                return Err(damage(tag, "bt_ino", problem));
            }
            leads_back(tag, links.prev, prev)?;
            visit(ListedBlock { tag, index, hole })?;
            (prev, next, count) = (Some(tag), links.next, count + 1);
        }
        ends(inode.number, file.list.tail(), prev)?;
        if count != file.blocks {
            return Err(damage(inode.number, "in_nblock", format!("{}, but the list has {count}", file.blocks)));
        }
        Ok(())
    }

    /// Visits the names in a directory in their order. A list is followed as long as every element names the one before it,
    /// so it ends.
    ///
    /// # Errors
    /// The first thing wrong with the list; what was visited before is right.
    pub fn visit_names(
        &self,
        inode: &Inode,
        mut visit: impl FnMut(DirentryNo, &Head) -> Result<(), Damage>,
    ) -> Result<(), Damage> {
        let Content::Directory(directory) = &inode.content else { return Ok(()) };
        let (mut next, mut prev, mut count) = (directory.list.head(), None, 0);
        while let Some(number) = next {
            self.in_list(number, prev, inode.number)?;
            let direntry = self.direntry(number)?;
            let DirentryState::Head(head) = &direntry.state else {
                let problem = format!("it is in the list of directory {}, but names nothing in it", inode.number);
                return Err(damage(number, "de_dirino", problem));
            };
            if head.directory != inode.number {
                let problem = format!("{}, but it is in the list of directory {}", head.directory, inode.number);
                return Err(damage(number, "de_dirino", problem));
            }
            leads_back(number, head.links.prev, prev)?;
            visit(number, head)?;
            (prev, next, count) = (Some(number), head.links.next, count + 1);
        }
        ends(inode.number, directory.list.tail(), prev)?;
        // The root directory does not count the file system's own two files.
        let own = if inode.number == InodeNo::ROOT { 2 } else { 0 };
        if directory.entries.checked_add(own) != Some(count) {
            let problem =
                format!("that of {} names, but the list has {}", directory.entries, count.saturating_sub(own));
            return Err(damage(inode.number, "in_size", problem));
        }
        Ok(())
    }

    /// Sees that the next element of a list is there at all.
    fn in_list<N: Number>(&self, next: N, prev: Option<N>, inode: InodeNo) -> Result<(), Damage> {
        match prev {
            None => self.exists(next, inode, "mo_head"),
            Some(prev) => self.exists(next, prev, "mo_next"),
        }
    }

    /// The whole name that begins in direntry `number`, visiting the direntries with the rest of it.
    ///
    /// # Errors
    /// When the pieces do not fit together, or nothing can be called so.
    pub fn name(&self, number: DirentryNo, head: &Head, mut visit: impl FnMut(DirentryNo)) -> Result<Name, Damage> {
        let mut bytes = head.name.bytes().to_vec();
        let (mut last, mut piece, mut extension) = (number, head.name, head.extension);
        // Four pieces are 256 bytes, the NUL among them.
        for left in (0..4).rev() {
            let Some(next) = extension else { break };
            if piece.is_last() {
                return Err(damage(last, "de_extdeno", format!("{next}, but the name ends before")));
            }
            if left == 0 {
                return Err(damage(last, "de_extdeno", format!("{next}, but a name has no more than four pieces")));
            }
            self.exists(next, last, "de_extdeno")?;
            let direntry = self.direntry(next)?;
            let DirentryState::Extension { name, head: of, extension: more } = direntry.state else {
                return Err(damage(
                    next,
                    "de_headdeno",
                    format!("it is no piece of a name, but direntry {last} goes on there"),
                ));
            };
            if of != number {
                return Err(damage(next, "de_headdeno", format!("{of}, but it is a piece of direntry {number}")));
            }
            visit(next);
            bytes.extend_from_slice(name.bytes());
            (last, piece, extension) = (next, name, more);
        }
        if !piece.is_last() {
            return Err(damage(last, "de_extdeno", "0, but the name has no end"));
        }
        Name::new(&bytes)
            .map_err(|why| damage(number, "de_name", format!("{:?}: {why}", String::from_utf8_lossy(&bytes))))
    }

    /// What direntry `number` names, which must name it back.
    ///
    /// # Errors
    /// When it does not, or is free.
    pub fn named(&self, number: DirentryNo, inode: InodeNo) -> Result<Inode, Damage> {
        self.exists(inode, number, "de_ino")?;
        let inode = self.inode(inode)?;
        if !inode.is_used() {
            return Err(damage(inode.number, "in_type", format!("0, but direntry {number} names it")));
        }
        if inode.name != Some(number) {
            let found = inode.name.map_or("none".to_owned(), |found| found.to_string());
            return Err(damage(inode.number, "in_deno", format!("{found}, but direntry {number} names it")));
        }
        Ok(inode)
    }
}

/// Damage of an object.
pub(crate) fn damage<N: Number>(number: N, field: &'static str, problem: impl Into<String>) -> Damage {
    Damage::new(format!("{} {number}", N::KIND), number.slot().start(), field, problem)
}

fn is_itself<N: Number>(expected: N, found: N) -> Result<(), Damage> {
    if expected == found {
        return Ok(());
    }
    Err(damage(expected, "mo_number", format!("{found} instead of {expected}")))
}

fn leads_back<N: Number>(number: N, found: Option<N>, expected: Option<N>) -> Result<(), Damage> {
    if found == expected {
        return Ok(());
    }
    let text = |link: Option<N>| link.map_or(0, Number::raw);
    Err(damage(number, "mo_prev", format!("{} instead of {}, which is before it", text(found), text(expected))))
}

fn ends<N: Number>(inode: InodeNo, tail: Option<N>, last: Option<N>) -> Result<(), Damage> {
    if tail == last {
        return Ok(());
    }
    let text = |link: Option<N>| link.map_or(0, Number::raw);
    Err(damage(inode, "mo_tail", format!("{}, but the list ends in {}", text(tail), text(last))))
}
