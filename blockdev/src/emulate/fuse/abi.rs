//! The words that the kernel and a FUSE server exchange: linux/fuse.h of protocol 7.31, which every later kernel speaks too.
//!
//! Only what a directory of files of fixed size needs. All numbers are in the machine's own byte order.

use nix::errno::Errno;

/// The number of the directory, as the kernel has it.
pub(super) const ROOT: u64 = 1;

/// What starts every request: the header, and the arguments of a read or write (`fuse_in_header`, `fuse_read_in`,
/// `fuse_write_in`). A write's data follows.
pub(super) const HEAD: usize = HEADER + 40;
/// The header alone.
pub(super) const HEADER: usize = 40;
/// What starts every reply (`fuse_out_header`).
pub(super) const OUT_HEADER: usize = 16;

/// What is asked (`enum fuse_opcode`).
pub(super) mod opcode {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const SETATTR: u32 = 4;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const FSYNC: u32 = 20;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const OPENDIR: u32 = 27;
    pub(crate) const READDIR: u32 = 28;
    pub(crate) const RELEASEDIR: u32 = 29;
    pub(crate) const FSYNCDIR: u32 = 30;
    pub(crate) const BATCH_FORGET: u32 = 42;
    pub(crate) const FALLOCATE: u32 = 43;
}

/// How a file was opened (`FOPEN_DIRECT_IO`): what is read and written comes here as it is, past the page cache.
pub(super) const FOPEN_DIRECT_IO: u32 = 1;
/// Writes come here while others are on their way (`FOPEN_PARALLEL_DIRECT_WRITES`).
pub(super) const FOPEN_PARALLEL_DIRECT_WRITES: u32 = 1 << 6;

/// The protocol that is spoken here.
pub(super) const MAJOR: u32 = 7;
pub(super) const MINOR: u32 = 31;

/// What a file system is to be like (`FUSE_*` flags of `fuse_init_out`): many reads of a file at once, and many of direct I/O;
/// writes of more than a page; lookups at once in a directory; as many pages in a request as it says itself.
const WANTED: u32 = 1 | 1 << 15 | 1 << 5 | 1 << 18 | 1 << 22;

/// Which attribute is to be set (`FATTR_*`): owner, mode, size.
pub(super) const SET_MODE: u32 = 1;
pub(super) const SET_OWNER: u32 = 2 | 4;
pub(super) const SET_SIZE: u32 = 8;

nix::ioctl_read!(
    /// Makes a device of its own of one that was just opened, for the same file system (`FUSE_DEV_IOC_CLONE`).
    clone_device,
    229,
    0,
    u32
);

/// What a file system and the kernel agree on (`fuse_init_out`): `pages` is how many of them a request holds at the most, and
/// `in_flight` how many requests there are at once that nobody waits for himself.
pub(super) fn init_reply(arguments: &[u8], max_write: u32, pages: u16, in_flight: u16) -> Result<Vec<u8>, Errno> {
    let mut fields = Fields(arguments);
    let (major, minor, readahead, offered) = (fields.u32(), fields.u32(), fields.u32(), fields.u32());
    // A reply as long as this one is of 7.23 and later; and without as many pages as are asked for writes would be cut anywhere.
    if major != MAJOR || minor < MINOR || offered & WANTED != WANTED {
        return Err(Errno::EPROTO);
    }
    let out = Out::default().u32(MAJOR).u32(MINOR).u32(readahead).u32(WANTED);
    let out = out.bytes(&in_flight.to_ne_bytes()).bytes(&in_flight.to_ne_bytes());
    // Times are exact to a nanosecond.
    let out = out.u32(max_write).u32(1).bytes(&pages.to_ne_bytes()).bytes(&[0; 2]);
    Ok((0..8).fold(out, |out, _| out.u32(0)).0)
}

/// What starts a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// How long all of it is.
    pub(super) len: u32,
    pub(super) opcode: u32,
    /// What the reply is recognised by.
    pub(super) unique: u64,
    /// What it is about.
    pub(super) node: u64,
}

impl Header {
    pub(super) fn parse(head: &[u8; HEAD]) -> Self {
        let mut fields = Fields(head);
        Self { len: fields.u32(), opcode: fields.u32(), unique: fields.u64(), node: fields.u64() }
    }
}

/// The arguments of a read or a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Transfer {
    pub(super) offset: u64,
    pub(super) size: u32,
    /// The flags of the open file.
    pub(super) flags: i32,
}

impl Transfer {
    pub(super) fn parse(arguments: &[u8]) -> Self {
        let mut fields = Fields(arguments);
        let _handle = fields.u64();
        let (offset, size) = (fields.u64(), fields.u32());
        let (_kind, _lock_owner) = (fields.u32(), fields.u64());
        Self { offset, size, flags: fields.u32().cast_signed() }
    }
}

/// The arguments of fallocate(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fallocate {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) mode: i32,
}

impl Fallocate {
    pub(super) fn parse(arguments: &[u8]) -> Self {
        let mut fields = Fields(arguments);
        let _handle = fields.u64();
        Self { offset: fields.u64(), len: fields.u64(), mode: fields.u32().cast_signed() }
    }
}

/// The arguments of a change of attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SetAttr {
    /// Which are to be set.
    pub(super) valid: u32,
    pub(super) size: u64,
}

impl SetAttr {
    pub(super) fn parse(arguments: &[u8]) -> Self {
        let mut fields = Fields(arguments);
        let (valid, _padding, _handle) = (fields.u32(), fields.u32(), fields.u64());
        Self { valid, size: fields.u64() }
    }
}

/// With which flags a file is opened (`fuse_open_in`).
pub(super) fn open_flags(arguments: &[u8]) -> i32 {
    Fields(arguments).u32().cast_signed()
}

/// Numbers one after the other. What is not there is 0: the kernel sends what it says it sends.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&mut self) -> u32 {
        self.take().map_or(0, u32::from_ne_bytes)
    }

    fn u64(&mut self) -> u64 {
        self.take().map_or(0, u64::from_ne_bytes)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }
}

/// A reply, or a part of one, that is being written.
#[derive(Debug, Default)]
pub(super) struct Out(pub(super) Vec<u8>);

impl Out {
    pub(super) fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub(super) fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// Adds a name in a directory (`fuse_dirent`): `next` is where the one after it starts.
    pub(super) fn entry(self, node: u64, next: u64, kind: u8, name: &[u8]) -> Self {
        // Names are short.
        let len = u32::try_from(name.len()).unwrap_or(0);
        let mut out = self.u64(node).u64(next).u32(len).u32(u32::from(kind)).bytes(name);
        out.0.resize(out.0.len().next_multiple_of(8), 0);
        out
    }
}

/// The first bytes of the reply to `unique`, which `len` more bytes follow.
pub(super) fn reply_header(unique: u64, len: usize, outcome: Result<(), Errno>) -> [u8; OUT_HEADER] {
    // Replies are far shorter than 4 GiB.
    let len = u32::try_from(OUT_HEADER + len).unwrap_or(u32::MAX);
    let error = outcome.map_or_else(|errno| -(errno as i32), |()| 0);
    let mut header = [0; OUT_HEADER];
    header[..4].copy_from_slice(&len.to_ne_bytes());
    header[4..8].copy_from_slice(&error.to_ne_bytes());
    header[8..].copy_from_slice(&unique.to_ne_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_write_as_the_kernel_sends_it() {
        let head = Out::default().u32(80 + 512).u32(opcode::WRITE).u64(7).u64(2).u64(0).u64(0);
        let head = head.u64(9).u64(4096).u32(512).u32(0).u64(0).u32(libc::O_DSYNC.cast_unsigned()).u32(0).0;
        let head: [u8; HEAD] = head.try_into().unwrap();
        assert_eq!(Header::parse(&head), Header { len: 592, opcode: opcode::WRITE, unique: 7, node: 2 });
        let write = Transfer { offset: 4096, size: 512, flags: libc::O_DSYNC };
        assert_eq!(Transfer::parse(&head[HEADER..]), write);
    }

    #[test]
    fn an_agreement_as_the_kernel_takes_it() {
        let offer = |minor, flags| Out::default().u32(MAJOR).u32(minor).u32(131_072).u32(flags).0;
        let reply = init_reply(&offer(45, u32::MAX), 1 << 19, 256, 99).unwrap();
        assert_eq!(reply.len(), 64);
        assert_eq!(reply[12..16], WANTED.to_ne_bytes());
        assert_eq!((&reply[16..18], &reply[20..24]), (&99u16.to_ne_bytes()[..], &(1u32 << 19).to_ne_bytes()[..]));
        assert_eq!(reply[28..30], 256u16.to_ne_bytes());
        for offer in [offer(30, u32::MAX), offer(45, 0), Vec::new()] {
            assert_eq!(init_reply(&offer, 1 << 19, 256, 99), Err(Errno::EPROTO));
        }
    }

    #[test]
    fn an_error_as_the_kernel_takes_it() {
        let reply = reply_header(7, 0, Err(Errno::EIO));
        assert_eq!(reply[..4], 16u32.to_ne_bytes());
        assert_eq!(reply[4..8], (-5i32).to_ne_bytes());
        assert_eq!(reply[8..], 7u64.to_ne_bytes());
    }

    proptest! {
        #[test]
        fn any_arguments_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            Transfer::parse(&bytes);
            Fallocate::parse(&bytes);
            SetAttr::parse(&bytes);
        }
    }
}
