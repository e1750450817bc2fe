//! The first sectors of a new chunk, as bytes.

use crate::format::{
    Blktag, BlktagNo, BlktagState, BlockIndex, Checksum, ChunkHeader, ChunkId, Content, Direntry, DirentryNo,
    DirentryState, DiscardState, Hole, Inode, InodeNo, Kind, Links, Number, OBJECT_SIZE, Object, SECTOR_SIZE, Seconds,
    Stamp,
};

/// Bytes from the start of a chunk to the end of its metadata.
#[allow(clippy::cast_possible_truncation, reason = "less than 1 MiB")]
pub(crate) const SIZE: usize = Kind::Inode.offset() as usize + Kind::Inode.sectors() * SECTOR_SIZE;

/// The metadata of a chunk about to be written: its header's sector, and all its objects.
pub(crate) struct Chunk {
    pub(crate) id: ChunkId,
    bytes: Vec<u8>,
}

impl Chunk {
    /// A chunk without a header, in which only the block is used that all this lies in.
    pub(crate) fn new(id: ChunkId) -> Self {
        let mut chunk = Self { id, bytes: vec![0; SIZE] };
        chunk.free(|number: BlktagNo| {
            let state = if number.index() == 0 {
                let (links, index) = (Links::default(), BlockIndex::of(0).0);
                BlktagState::Used { links, owner: InodeNo::ROOT, index, hole: Hole::Unrecorded }
            } else {
                let (last_owner, last_index) = (InodeNo::ROOT, BlockIndex::of(0).0);
                BlktagState::Free { last_owner, last_index, discard: DiscardState::Done, discards: 0 }
            };
            Object::Blktag(Blktag { number, checksum: Checksum::Present, state })
        });
        chunk.free(|number: DirentryNo| {
            Object::Direntry(Direntry { number, checksum: Checksum::Present, state: DirentryState::Free })
        });
        chunk.free(|number: InodeNo| {
            Object::Inode(Inode {
                number,
                checksum: Checksum::Present,
                content: Content::Free,
                name: None,
                atime: Seconds(0),
                ctime: Seconds(0),
                mtime: Seconds(0),
                btime: Stamp(0),
            })
        });
        chunk
    }

    /// Puts down every object of a kind.
    fn free<N: Number>(&mut self, object: fn(N) -> Object) {
        let id = self.id;
        for number in (0..N::KIND.per_chunk()).filter_map(|index| N::new(id, index)) {
            self.put(&object(number));
        }
    }

    /// Replaces an object, which is one of this chunk.
    pub(crate) fn put(&mut self, object: &Object) {
        #[allow(clippy::cast_possible_truncation, reason = "less than `SIZE`")]
        let at = (object.slot().start().bytes() - self.id.start().bytes()) as usize;
        self.bytes[at..at + OBJECT_SIZE].copy_from_slice(&object.write());
    }

    /// Gives it its header.
    pub(crate) fn set_header(&mut self, header: &ChunkHeader) {
        self.bytes[..SECTOR_SIZE].copy_from_slice(&header.write());
    }

    /// From the start of the chunk on.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
