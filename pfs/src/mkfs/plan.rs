//! What a new volume consists of, before anything is written.

use std::num::NonZeroU32;

use blockdev::{ByteOffset, ByteRange, ByteSize, Error, ErrorKind, Result};

use super::chunk::Chunk;
use crate::format::{
    BLOCK_SIZE, BLOCKS_PER_CHUNK, Blktag, BlktagNo, BlktagState, BlockIndex, Checksum, ChunkHeader, ChunkId, Content,
    Directory, Direntry, DirentryNo, DirentryState, File, Head, Hole, Inode, InodeNo, LeaderRecord, Links, List,
    LogOffset, LogPosition, Lsn, NamePiece, Number, Object, Seconds, Stamp, Txid, Version,
};

/// How many hosts a leader record is made for: what its file has room for.
const HOSTS_MAX: u64 = 254;

/// The lower half of the leader record's version.
const LEADER_MINOR: u16 = 2;

/// What a new volume consists of.
pub(super) struct Plan {
    chunks: NonZeroU32,
    journal: u64,
    hosts: u64,
    /// The block of `.pfs-paxos`, and those of `.pfs-journal` in the order of the file.
    paxos_block: BlktagNo,
    journal_blocks: Vec<BlktagNo>,
}

impl Plan {
    /// A volume of `chunks`, with a journal of so many bytes, for so many hosts.
    ///
    /// # Errors
    /// [`NoSpace`](ErrorKind::NoSpace) when the journal does not fit.
    pub(super) fn new(chunks: NonZeroU32, journal: u64, hosts: u8) -> Result<Self> {
        let mut free = FreeBlocks::new(chunks);
        let wanted = journal.div_ceil(BLOCK_SIZE.bytes());
        let too_large = || {
            let room = ByteSize::new(FreeBlocks::new(chunks).count().saturating_sub(1) as u64 * BLOCK_SIZE.bytes());
            let journal = ByteSize::new(journal);
            Error::new(
                ErrorKind::NoSpace,
                format!("a journal of {journal} does not fit: the volume has room for {room}"),
            )
        };
        let paxos_block = free.next().ok_or_else(too_large)?;
        let journal_blocks = (0..wanted).map_while(|_| free.next()).collect::<Vec<_>>();
        if (journal_blocks.len() as u64) < wanted {
            return Err(too_large());
        }
        Ok(Self { chunks, journal, hosts: hosts.into(), paxos_block, journal_blocks })
    }

    /// The header of a chunk.
    pub(super) fn header(&self, id: ChunkId) -> ChunkHeader {
        header(id, self.chunks)
    }

    /// The metadata of every chunk, none with its header, made at a time.
    pub(super) fn chunks(&self, now: Stamp) -> impl Iterator<Item = Chunk> {
        let objects = self.objects(now);
        ChunkId::all(self.chunks.get()).map(move |id| {
            let mut chunk = Chunk::new(id);
            objects.iter().filter(|object| object.chunk() == id).for_each(|object| chunk.put(object));
            chunk
        })
    }

    /// The leader record: an empty journal.
    pub(super) fn leader(&self) -> LeaderRecord {
        let start = LogPosition { txid: Txid::ZERO, offset: LogOffset::ZERO };
        LeaderRecord {
            minor: LEADER_MINOR,
            hosts: self.hosts,
            hosts_max: HOSTS_MAX,
            tail: start,
            head: start,
            head_lsn: Lsn::ZERO,
            log_size: self.journal,
        }
    }

    /// What has to be zero besides the metadata: both files, the leader record's sector included.
    pub(super) fn zeroes(&self) -> impl Iterator<Item = ByteRange> {
        std::iter::once(&self.paxos_block)
            .chain(&self.journal_blocks)
            .map(|tag| ByteRange { start: ByteOffset::new(tag.block().start().bytes()), len: BLOCK_SIZE })
    }

    /// All objects that are used, but those of the blocks that hold metadata.
    fn objects(&self, now: Stamp) -> Vec<Object> {
        let seconds = Seconds(now.0 / 1_000_000);
        let mut objects = vec![
            root_entry(),
            entry(InodeNo::PAXOS, b".pfs-paxos", Links { next: own_entry(InodeNo::JOURNAL), prev: None }),
            entry(InodeNo::JOURNAL, b".pfs-journal", Links { next: None, prev: own_entry(InodeNo::PAXOS) }),
            root(now),
            file(InodeNo::PAXOS, &[self.paxos_block], BLOCK_SIZE.bytes(), seconds),
            file(InodeNo::JOURNAL, &self.journal_blocks, self.journal, seconds),
        ];
        objects.extend(blocks(InodeNo::PAXOS, &[self.paxos_block], BLOCK_SIZE.bytes()));
        objects.extend(blocks(InodeNo::JOURNAL, &self.journal_blocks, self.journal));
        objects
    }
}

/// The header of a chunk of a volume of `chunks`.
pub(crate) fn header(id: ChunkId, chunks: NonZeroU32) -> ChunkHeader {
    let version = if id == ChunkId::FIRST { Version::NEWEST } else { Version::OLDEST };
    ChunkHeader { id, version, chunks, checksum: Checksum::Present }
}

/// The direntry of a file of the file system's own. Inode and direntry have the same number.
fn own_entry(inode: InodeNo) -> Option<DirentryNo> {
    DirentryNo::from_raw(inode.raw())
}

fn root_entry() -> Object {
    // The root lies in no directory; an extension of an empty name is how that looks.
    let state = DirentryState::Extension { name: NamePiece::new(b""), head: DirentryNo::ROOT, extension: None };
    Object::Direntry(Direntry { number: DirentryNo::ROOT, checksum: Checksum::Present, state })
}

fn entry(inode: InodeNo, name: &[u8], links: Links<DirentryNo>) -> Object {
    let number = own_entry(inode).unwrap_or(DirentryNo::ROOT);
    let name = NamePiece::new(name);
    let state = DirentryState::Head(Head { links, name, inode, directory: InodeNo::ROOT, extension: None });
    Object::Direntry(Direntry { number, checksum: Checksum::Present, state })
}

fn root(now: Stamp) -> Object {
    let list = match (own_entry(InodeNo::PAXOS), own_entry(InodeNo::JOURNAL)) {
        (Some(first), Some(last)) => List::new(first, last),
        _ => List::EMPTY,
    };
    let content = Content::Directory(Directory { list, entries: 0 });
    inode(InodeNo::ROOT, content, Seconds(0), now)
}

/// A file of the file system's own. Its birth is not told.
fn file(number: InodeNo, blocks: &[BlktagNo], size: u64, changed: Seconds) -> Object {
    let list = match blocks {
        [first, .., last] => List::new(*first, *last),
        [only] => List::new(*only, *only),
        [] => List::EMPTY,
    };
    let content = Content::File(File { list, blocks: blocks.len() as u64, size: ByteSize::new(size) });
    inode(number, content, changed, Stamp(0))
}

fn inode(number: InodeNo, content: Content, changed: Seconds, btime: Stamp) -> Object {
    Object::Inode(Inode {
        number,
        checksum: Checksum::Present,
        content,
        name: own_entry(number),
        atime: Seconds(0),
        ctime: changed,
        mtime: changed,
        btime,
    })
}

/// The blktags of a file that was written from its start to `size`.
fn blocks(owner: InodeNo, tags: &[BlktagNo], size: u64) -> impl Iterator<Item = Object> {
    tags.iter().enumerate().map(move |(at, tag)| {
        let index = BlockIndex::of(at as u64 * BLOCK_SIZE.bytes()).0;
        let links = Links { next: tags.get(at + 1).copied(), prev: at.checked_sub(1).map(|before| tags[before]) };
        #[allow(clippy::cast_possible_truncation, reason = "at most a block")]
        let written = (size - index.offset()).min(BLOCK_SIZE.bytes()) as u32;
        let state = BlktagState::Used { links, owner, index, hole: Hole::From(written) };
        Object::Blktag(Blktag { number: *tag, checksum: Checksum::Present, state })
    })
}

/// The blocks of a volume in which nothing is used, in the order in which files get them: from the chunk with the most free
/// ones, on a tie from the first of those.
struct FreeBlocks {
    /// The first free block of each chunk.
    next: Vec<usize>,
}

impl FreeBlocks {
    fn new(chunks: NonZeroU32) -> Self {
        // Block 0 of each chunk holds its metadata.
        Self { next: ChunkId::all(chunks.get()).map(|_| 1).collect() }
    }
}

impl Iterator for FreeBlocks {
    type Item = BlktagNo;

    fn next(&mut self) -> Option<BlktagNo> {
        let (id, next) = ChunkId::all(u32::MAX).zip(&mut self.next).min_by_key(|(_, next)| **next)?;
        let tag = BlktagNo::new(id, *next)?;
        *next += 1;
        Some(tag)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.next.iter().map(|next| BLOCKS_PER_CHUNK - next).sum();
        (left, Some(left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(count: u32) -> NonZeroU32 {
        NonZeroU32::new(count).unwrap()
    }

    #[test]
    fn files_get_blocks_from_the_emptiest_chunk() {
        let first = |count, blocks| FreeBlocks::new(chunks(count)).take(blocks).map(Number::raw).collect::<Vec<_>>();
        assert_eq!(first(1, 3), [1, 2, 3]);
        // As the original's journal lies: after the leader record's block, chunk 1 goes first.
        assert_eq!(first(2, 5), [1, 0x1001, 2, 0x1002, 3]);
        assert_eq!(first(3, 6), [1, 0x1001, 0x2001, 2, 0x1002, 0x2002]);
        assert_eq!(FreeBlocks::new(chunks(2)).count(), 2 * 2559);
    }

    #[test]
    fn a_journal_that_does_not_fit_is_refused() {
        assert!(Plan::new(chunks(1), 2558 << 22, 1).is_ok());
        let Err(error) = Plan::new(chunks(1), (2558 << 22) + 512, 1) else { panic!("it fits") };
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert_eq!(error.to_string(), "a journal of 9.99 GiB does not fit: the volume has room for 9.99 GiB");
    }

    #[test]
    fn a_last_block_may_be_written_in_part() {
        let plan = Plan::new(chunks(1), (1 << 22) + 512, 30).unwrap();
        let holes: Vec<_> = plan
            .objects(Stamp(0))
            .into_iter()
            .filter_map(|object| match object {
                Object::Blktag(Blktag { state: BlktagState::Used { hole, .. }, .. }) => Some(hole),
                _ => None,
            })
            .collect();
        assert_eq!(holes, [Hole::From(1 << 22), Hole::From(1 << 22), Hole::From(512)]);
    }
}
