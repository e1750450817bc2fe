//! The direntry: a name in a directory, or a further piece of one.

use std::fmt;

use super::super::bytes::{is_zero, put_u64};
use super::super::{Bda, Checksum, Damage, DirentryNo, InodeNo, Number};
use super::{Common, Links, ObjectBytes, PAYLOAD, put_links, seal, start};

/// Stands where there is no inode.
const NONE: u64 = u64::MAX;

/// A name in a directory, or 64 bytes more of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Direntry {
    /// Its number.
    pub number: DirentryNo,
    /// Whether it carries a checksum.
    pub checksum: Checksum,
    /// What it is used for.
    pub state: DirentryState,
}

/// What a direntry is used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DirentryState {
    /// Nothing.
    Free,
    /// A name, or the first 64 bytes of one.
    Head(Head),
    /// The next 64 bytes of a name. Direntry 0, the root directory's own, has this form too, with an empty name.
    Extension {
        /// This piece of the name; empty where the name before it is a multiple of 64 bytes.
        name: NamePiece,
        /// The direntry with the first piece of the name.
        head: DirentryNo,
        /// The one with the piece after this.
        extension: Option<DirentryNo>,
    },
}

/// A name in a directory, or the first 64 bytes of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Its neighbours in the directory's list.
    pub links: Links<DirentryNo>,
    /// The name, or the first 64 bytes of it.
    pub name: NamePiece,
    /// What is called so.
    pub inode: InodeNo,
    /// The directory in which it is called so.
    pub directory: InodeNo,
    /// The direntry with the next piece of the name. There is one whenever the name and a NUL after it need more than 64
    /// bytes.
    pub extension: Option<DirentryNo>,
}

/// 64 bytes of a name; it ends before the first NUL, if there is one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct NamePiece([u8; 64]);

impl NamePiece {
    /// Bytes that fit one piece.
    pub const SIZE: usize = 64;

    /// The piece that starts with `name`, of which at most 64 bytes are taken.
    #[must_use]
    pub fn new(name: &[u8]) -> Self {
        let mut piece = [0; Self::SIZE];
        let len = name.len().min(Self::SIZE);
        piece[..len].copy_from_slice(&name[..len]);
        Self(piece)
    }

    /// The bytes of the name in it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.0.split(|byte| *byte == 0).next().unwrap_or(&[])
    }

    /// Whether the name ends in this piece.
    #[must_use]
    pub fn is_last(&self) -> bool {
        self.0.contains(&0)
    }
}

impl fmt::Debug for NamePiece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(self.bytes()))
    }
}

impl Direntry {
    /// The direntry that lies `at` an address.
    ///
    /// # Errors
    /// When the bytes are no direntry.
    pub fn parse(bytes: &ObjectBytes, at: Bda) -> Result<Self, Damage> {
        let common = Common::<DirentryNo>::parse(bytes, at)?;
        let mut piece = [0; NamePiece::SIZE];
        piece.copy_from_slice(&bytes[PAYLOAD..PAYLOAD + NamePiece::SIZE]);
        let name = NamePiece(piece);
        let (inode, directory) = (common.u64(PAYLOAD + 64), common.u64(PAYLOAD + 72));
        let extension = common.link(PAYLOAD + 80, "de_extdeno")?;
        let used = |expected| {
            if common.used == expected {
                return Ok(());
            }
            let state = if expected { "it names something" } else { "it names nothing" };
            Err(common.damage("mo_used", format!("{}, but {state}", u8::from(common.used))))
        };
        let state = if directory != NONE {
            used(true)?;
            DirentryState::Head(Head {
                links: common.links()?,
                name,
                inode: common.reference(PAYLOAD + 64, "de_ino")?,
                directory: common.reference(PAYLOAD + 72, "de_dirino")?,
                extension,
            })
        } else if inode != NONE {
            used(true)?;
            common.no_links()?;
            DirentryState::Extension { name, head: common.reference(PAYLOAD + 64, "de_headdeno")?, extension }
        } else {
            used(false)?;
            common.no_links()?;
            if !is_zero(bytes, PAYLOAD..PAYLOAD + NamePiece::SIZE) {
                return Err(common.damage("de_name", format!("{name:?}, but it names nothing")));
            }
            if let Some(extension) = extension {
                return Err(common.damage("de_extdeno", format!("{extension}, but it names nothing")));
            }
            DirentryState::Free
        };
        Ok(Self { number: common.number, checksum: common.checksum, state })
    }

    /// Its bytes.
    #[must_use]
    pub fn write(&self) -> ObjectBytes {
        let mut bytes = start(self.number, self.is_used());
        let (name, inode, directory, extension) = match &self.state {
            DirentryState::Free => (NamePiece::new(b""), NONE, NONE, None),
            DirentryState::Head(head) => {
                put_links(&mut bytes, head.links);
                (head.name, head.inode.raw(), head.directory.raw(), head.extension)
            }
            DirentryState::Extension { name, head, extension } => (*name, head.raw(), NONE, *extension),
        };
        bytes[PAYLOAD..PAYLOAD + NamePiece::SIZE].copy_from_slice(&name.0);
        put_u64(&mut bytes, PAYLOAD + 64, inode);
        put_u64(&mut bytes, PAYLOAD + 72, directory);
        put_u64(&mut bytes, PAYLOAD + 80, extension.map_or(0, Number::raw));
        seal(bytes, self.checksum)
    }

    /// Whether it is a name or a piece of one.
    #[must_use]
    pub fn is_used(&self) -> bool {
        self.state != DirentryState::Free
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::tests::bytes;
    use proptest::prelude::*;

    fn head(number: u64, name: &[u8], inode: u64, next: u64, prev: u64) -> Direntry {
        Direntry {
            number: DirentryNo::from_raw(number).unwrap(),
            checksum: Checksum::Present,
            state: DirentryState::Head(Head {
                links: Links {
                    next: DirentryNo::from_raw(next).filter(|next| next.raw() != 0),
                    prev: DirentryNo::from_raw(prev).filter(|prev| prev.raw() != 0),
                },
                name: NamePiece::new(name),
                inode: InodeNo::from_raw(inode).unwrap(),
                directory: InodeNo::ROOT,
                extension: None,
            }),
        }
    }

    /// The three that every volume has, with the checksums that the original gives them.
    #[test]
    fn the_direntries_of_the_original() {
        let root = Direntry {
            state: DirentryState::Extension { name: NamePiece::new(b""), head: DirentryNo::ROOT, extension: None },
            ..head(0, b"", 0, 0, 0)
        };
        for (direntry, checksum) in [
            (root, "19716470"),
            (head(1, b".pfs-paxos", 1, 2, 0), "a6e8485e"),
            (head(2, b".pfs-journal", 2, 0, 1), "208e0108"),
        ] {
            let written = direntry.write();
            assert_eq!(written[36..40], bytes(checksum), "{}", direntry.number);
            assert_eq!(Direntry::parse(&written, Bda::new(0)).unwrap(), direntry);
        }
    }

    #[test]
    fn a_piece_ends_at_its_nul_or_not_at_all() {
        assert_eq!(NamePiece::new(b"d").bytes(), b"d");
        assert!(NamePiece::new(&[b'x'; 63]).is_last());
        assert!(!NamePiece::new(&[b'x'; 64]).is_last());
        assert_eq!(NamePiece::new(&[b'x'; 65]).bytes(), [b'x'; 64]);
    }

    #[test]
    fn a_wrong_field_is_named() {
        let text = |direntry: &Direntry, at: usize, byte: u8| {
            let mut bytes = direntry.write();
            bytes[at] = byte;
            Direntry::parse(&seal(bytes, Checksum::Present), Bda::new(0x5_1080)).unwrap_err().to_string()
        };
        let used = head(1, b"d", 5, 2, 0);
        let free = Direntry { state: DirentryState::Free, ..used.clone() };
        for (direntry, at, byte, problem) in [
            (&used, 33, 0, "mo_used: 0, but it names something"),
            (&used, 110, 0x80, "de_ino: there can be no inode 36028797018963973"),
            (&free, 33, 1, "mo_used: 1, but it names nothing"),
            (&free, 40, b'x', "de_name: \"x\", but it names nothing"),
            (&free, 120, 3, "de_extdeno: 3, but it names nothing"),
            (&free, 16, 3, "mo_next: 3 instead of 0: it is in no list"),
        ] {
            assert_eq!(text(direntry, at, byte), format!("direntry 1 at 0x51080: {problem}"));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_parsed(
            number in 0u64..2048, name in prop::collection::vec(1u8.., 0..70), inode in 0u64..1 << 20, next in 0u64..9000,
            extension in 0u64..5, absent: bool, state in 0..3,
        ) {
            let mut direntry = head(number, &name, inode, next, 0);
            let extension = DirentryNo::from_raw(extension).filter(|extension| extension.raw() != 0);
            match (&mut direntry.state, state) {
                (DirentryState::Head(head), 0) => head.extension = extension,
                (state, 1) => {
                    *state = DirentryState::Extension {
                        name: NamePiece::new(&name), head: DirentryNo::from_raw(7).unwrap(), extension,
                    };
                }
                (state, _) => *state = DirentryState::Free,
            }
            if absent {
                direntry.checksum = Checksum::Absent;
            }
            prop_assert_eq!(Direntry::parse(&direntry.write(), Bda::new(0)).unwrap(), direntry);
        }
    }
}
