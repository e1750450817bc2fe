//! The inode: a file or directory.

use std::fmt;

use blockdev::ByteSize;
use serde::Serialize;

use super::super::bytes::{is_zero, put_u64};
use super::super::{Bda, BlktagNo, Checksum, Damage, DirentryNo, InodeNo, Number, OBJECT_SIZE};
use super::{Common, ObjectBytes, PAYLOAD, seal, start};

/// Stands where there is no direntry.
const NONE: u64 = u64::MAX;

/// A file or directory, or room for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// Its number.
    pub number: InodeNo,
    /// Whether it carries a checksum.
    pub checksum: Checksum,
    /// What it is.
    pub content: Content,
    /// The direntry that names it. A file that was removed, but whose blocks a crash kept from being freed, has none.
    pub name: Option<DirentryNo>,
    /// Last read: in practice 0, or a counter that makes two states of one second differ.
    pub atime: Seconds,
    /// Last changed: content, size or name.
    pub ctime: Seconds,
    /// Last change of content or size.
    pub mtime: Seconds,
    /// When it was made; tells it from what had this number before. Freeing does not clear it.
    pub btime: Stamp,
}

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Nothing: it is free.
    Free,
    /// A file.
    File(File),
    /// A directory.
    Directory(Directory),
}

/// The content of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its blocks, in the order in which it got them.
    pub list: List<BlktagNo>,
    /// How many blocks are in the list.
    pub blocks: u64,
    /// How long it is, at most 2^63 - 1 bytes.
    pub size: ByteSize,
}

/// The content of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// Its names, in the order in which they came.
    pub list: List<DirentryNo>,
    /// How many names are in the list; in the root directory, the file system's own two files do not count.
    pub entries: u64,
}

/// Both ends of a list whose elements link to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct List<N>(Option<(N, N)>);

impl<N: Number> List<N> {
    /// No elements.
    pub const EMPTY: Self = Self(None);

    /// The list from `head` to `tail`.
    #[must_use]
    pub fn new(head: N, tail: N) -> Self {
        Self(Some((head, tail)))
    }

    /// Its first element.
    #[must_use]
    pub fn head(self) -> Option<N> {
        self.0.map(|(head, _)| head)
    }

    /// Its last element.
    #[must_use]
    pub fn tail(self) -> Option<N> {
        self.0.map(|(_, tail)| tail)
    }
}

/// Seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
#[serde(transparent)]
pub struct Seconds(pub u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Microseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
#[serde(transparent)]
pub struct Stamp(pub u64);

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Inode {
    /// The inode that lies `at` an address.
    ///
    /// # Errors
    /// When the bytes are no inode.
    pub fn parse(bytes: &ObjectBytes, at: Bda) -> Result<Self, Damage> {
        let common = Common::<InodeNo>::parse(bytes, at)?;
        let kind = bytes[PAYLOAD];
        if common.used != (kind != 0) {
            return Err(common.damage("mo_used", format!("{}, but in_type is {kind}", u8::from(common.used))));
        }
        // Flags and private id: nothing sets them before version 3.
        if !is_zero(bytes, PAYLOAD + 1..PAYLOAD + 8) {
            return Err(common.damage("in_flags", "flags or a private id are set, which this version has not"));
        }
        let (links, blocks, size) = (common.u64(PAYLOAD + 16), common.u64(PAYLOAD + 24), common.u64(PAYLOAD + 32));
        let name = match (links, common.u64(PAYLOAD + 8)) {
            (0, NONE) => None,
            (1, raw) if raw != NONE => Some(common.reference(PAYLOAD + 8, "in_deno")?),
            (links, _) if links > 1 => return Err(common.damage("in_nlink", format!("{links} instead of 0 or 1"))),
            (links, raw) => {
                return Err(common.damage("in_nlink", format!("{links}, but in_deno is {}", raw.cast_signed())));
            }
        };
        let content = match kind {
            0 => {
                for (value, field) in [(links, "in_nlink"), (blocks, "in_nblock"), (size, "in_size")] {
                    if value != 0 {
                        return Err(common.damage(field, format!("{value}, but the inode is free")));
                    }
                }
                common.no_links()?;
                Content::Free
            }
            1 if size > i64::MAX as u64 => {
                return Err(common.damage("in_size", format!("{} bytes", size.cast_signed())));
            }
            1 => Content::File(File { list: ends(&common)?, blocks, size: ByteSize::new(size) }),
            2 if blocks != 0 => {
                return Err(common.damage("in_nblock", format!("{blocks}, but it is a directory, which has no blocks")));
            }
            2 if !size.is_multiple_of(OBJECT_SIZE as u64) => {
                return Err(common.damage("in_size", format!("{size}, but a name in a directory counts {OBJECT_SIZE}")));
            }
            2 => Content::Directory(Directory { list: ends(&common)?, entries: size / OBJECT_SIZE as u64 }),
            _ => return Err(common.damage("in_type", format!("there is no type {kind}"))),
        };
        common.nothing_in(PAYLOAD + 72..OBJECT_SIZE)?;
        Ok(Self {
            number: common.number,
            checksum: common.checksum,
            content,
            name,
            atime: Seconds(common.u64(PAYLOAD + 40)),
            ctime: Seconds(common.u64(PAYLOAD + 48)),
            mtime: Seconds(common.u64(PAYLOAD + 56)),
            btime: Stamp(common.u64(PAYLOAD + 64)),
        })
    }

    /// Its bytes.
    #[must_use]
    pub fn write(&self) -> ObjectBytes {
        let mut bytes = start(self.number, self.is_used());
        match &self.content {
            Content::Free => {}
            Content::File(file) => {
                put_ends(&mut bytes, file.list);
                bytes[PAYLOAD] = 1;
                put_u64(&mut bytes, PAYLOAD + 24, file.blocks);
                put_u64(&mut bytes, PAYLOAD + 32, file.size.bytes());
            }
            Content::Directory(directory) => {
                put_ends(&mut bytes, directory.list);
                bytes[PAYLOAD] = 2;
                put_u64(&mut bytes, PAYLOAD + 32, directory.entries * OBJECT_SIZE as u64);
            }
        }
        put_u64(&mut bytes, PAYLOAD + 8, self.name.map_or(NONE, Number::raw));
        put_u64(&mut bytes, PAYLOAD + 16, u64::from(self.name.is_some()));
        for (at, value) in [(40, self.atime.0), (48, self.ctime.0), (56, self.mtime.0), (64, self.btime.0)] {
            put_u64(&mut bytes, PAYLOAD + at, value);
        }
        seal(bytes, self.checksum)
    }

    /// Whether it is a file or directory.
    #[must_use]
    pub fn is_used(&self) -> bool {
        self.content != Content::Free
    }
}

fn ends<N: Number>(common: &Common<'_, InodeNo>) -> Result<List<N>, Damage> {
    match (common.link(16, "mo_head")?, common.link(24, "mo_tail")?) {
        (None, None) => Ok(List::EMPTY),
        (Some(head), Some(tail)) => Ok(List::new(head, tail)),
        (head, tail) => {
            let raw = |end: Option<N>| end.map_or(0, Number::raw);
            Err(common.damage("mo_tail", format!("{}, but mo_head is {}", raw(tail), raw(head))))
        }
    }
}

fn put_ends<N: Number>(bytes: &mut ObjectBytes, list: List<N>) {
    put_u64(bytes, 16, list.head().map_or(0, Number::raw));
    put_u64(bytes, 24, list.tail().map_or(0, Number::raw));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::tests::bytes;
    use proptest::prelude::*;

    fn free(number: u64) -> Inode {
        Inode {
            number: InodeNo::from_raw(number).unwrap(),
            checksum: Checksum::Present,
            content: Content::Free,
            name: None,
            atime: Seconds(0),
            ctime: Seconds(0),
            mtime: Seconds(0),
            btime: Stamp(0),
        }
    }

    fn file(number: u64, block: u64, size: u64) -> Inode {
        let block = BlktagNo::from_raw(block).unwrap();
        Inode {
            content: Content::File(File { list: List::new(block, block), blocks: 1, size: ByteSize::new(size) }),
            name: DirentryNo::from_raw(number),
            ..free(number)
        }
    }

    #[test]
    fn the_inodes_of_the_original() {
        let written = free(2047).write();
        assert_eq!(written[36..40], bytes("a7e093ac"));
        assert_eq!(written[48..56], [0xff; 8]);

        let file = Inode {
            ctime: Seconds(0x6b03_16e7),
            mtime: Seconds(0x6b03_16e7),
            btime: Stamp(0x6_60df_e191_c4f3),
            ..file(3, 131, 8192)
        };
        let expected = bytes(
            "0300000000000000 0000000000000000 8300000000000000 8300000000000000 0301000049d15dbf 0100000000000000
             0300000000000000 0100000000000000 0100000000000000 0020000000000000 0000000000000000 e716036b00000000
             e716036b00000000 f3c491e1df600600 0000000000000000 0000000000000000",
        );
        assert_eq!(file.write(), *expected);
        assert_eq!(Inode::parse(&file.write(), Bda::new(0)).unwrap(), file);
    }

    #[test]
    fn a_wrong_field_is_named() {
        let text = |inode: &Inode, at: usize, value: u64| {
            let mut bytes = inode.write();
            put_u64(&mut bytes, at, value);
            Inode::parse(&seal(bytes, Checksum::Present), Bda::new(0x9_1180)).unwrap_err().to_string()
        };
        let (free, file) = (free(3), file(3, 5, 100));
        let directory =
            Inode { content: Content::Directory(Directory { list: List::EMPTY, entries: 0 }), ..file.clone() };
        for (inode, at, value, problem) in [
            (&file, 40, 0, "mo_used: 1, but in_type is 0"),
            (&free, 40, 1, "mo_used: 0, but in_type is 1"),
            (&file, 40, 9, "in_type: there is no type 9"),
            (&file, 40, 0x101, "in_flags: flags or a private id are set, which this version has not"),
            (&file, 16, 2560, "mo_head: there can be no blktag 2560"),
            (&file, 16, 0, "mo_tail: 5, but mo_head is 0"),
            (&file, 48, u64::MAX, "in_nlink: 1, but in_deno is -1"),
            (&file, 48, u64::MAX - 1, "in_deno: there can be no direntry 18446744073709551614"),
            (&file, 56, 2, "in_nlink: 2 instead of 0 or 1"),
            (&file, 56, 0, "in_nlink: 0, but in_deno is 3"),
            (&file, 72, (-5i64).cast_unsigned(), "in_size: -5 bytes"),
            (&file, 112, 1, "mo_data: bytes are set where there should be none"),
            (&directory, 64, 1, "in_nblock: 1, but it is a directory, which has no blocks"),
            (&directory, 72, 100, "in_size: 100, but a name in a directory counts 128"),
            (&free, 72, 1, "in_size: 1, but the inode is free"),
            (&free, 24, 1, "mo_prev: 1 instead of 0: it is in no list"),
        ] {
            assert_eq!(text(inode, at, value), format!("inode 3 at 0x91180: {problem}"));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_parsed(
            number in 0u64..1 << 20, size in 0..=i64::MAX as u64, blocks: u64, times: [u64; 4], named: bool, kind in 0..3,
            head in 1u64..2560, absent: bool,
        ) {
            let mut inode = file(3, head, size);
            inode.number = InodeNo::from_raw(number).unwrap();
            match (&mut inode.content, kind) {
                (Content::File(file), 0) => file.blocks = blocks,
                (content, 1) => {
                    let head = DirentryNo::from_raw(head.min(2047)).unwrap();
                    *content = Content::Directory(Directory { list: List::new(head, head), entries: size / 128 });
                }
                (content, _) => *content = Content::Free,
            }
            if !named || !inode.is_used() {
                inode.name = None;
            }
            if absent {
                inode.checksum = Checksum::Absent;
            }
            [inode.atime.0, inode.ctime.0, inode.mtime.0, inode.btime.0] = times;
            prop_assert_eq!(Inode::parse(&inode.write(), Bda::new(0)).unwrap(), inode);
        }
    }
}
