//! Objects: the 128 bytes in which the file system keeps a block's, a name's or a file's state.
//!
//! The first 40 bytes are alike in all: number, version (0), two links, kind, whether it is used, checksum.

mod blktag;
mod direntry;
mod inode;

use super::bytes::{is_zero, put_u32, put_u64, u32_at, u64_at};
use super::checksum::checksum_around;
use super::{Bda, Checksum, ChunkId, Damage, Kind, Number, OBJECT_SIZE, Slot};

pub use blktag::{Blktag, BlktagState, DiscardState, Hole};
pub use direntry::{Direntry, DirentryState, Head, NamePiece};
pub use inode::{Content, Directory, File, Inode, List, Seconds, Stamp};

/// The bytes of an object.
pub type ObjectBytes = [u8; OBJECT_SIZE];

const CHECKSUM_AT: usize = 36;

/// Where what differs between the kinds starts.
const PAYLOAD: usize = 40;

/// The neighbours of an object in the list of its file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Links<N> {
    /// The one after it.
    pub next: Option<N>,
    /// The one before it.
    pub prev: Option<N>,
}

impl<N> Default for Links<N> {
    fn default() -> Self {
        Self { next: None, prev: None }
    }
}

/// An object of any kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// A block's.
    Blktag(Blktag),
    /// A name's.
    Direntry(Direntry),
    /// A file's or directory's.
    Inode(Inode),
}

impl Object {
    /// The object that lies `at` an address, of the kind that it says it is.
    ///
    /// # Errors
    /// When the bytes are no object.
    pub fn parse(bytes: &ObjectBytes, at: Bda) -> Result<Self, Damage> {
        match Kind::from_raw(bytes[32]) {
            Some(Kind::Blktag) => Blktag::parse(bytes, at).map(Self::Blktag),
            Some(Kind::Direntry) => Direntry::parse(bytes, at).map(Self::Direntry),
            Some(Kind::Inode) => Inode::parse(bytes, at).map(Self::Inode),
            None => Err(Damage::new("object", at, "mo_type", format!("there is no type {}", bytes[32]))),
        }
    }

    /// Its bytes.
    #[must_use]
    pub fn write(&self) -> ObjectBytes {
        match self {
            Self::Blktag(blktag) => blktag.write(),
            Self::Direntry(direntry) => direntry.write(),
            Self::Inode(inode) => inode.write(),
        }
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Blktag(_) => Kind::Blktag,
            Self::Direntry(_) => Kind::Direntry,
            Self::Inode(_) => Kind::Inode,
        }
    }

    /// Its number among those of its kind.
    #[must_use]
    pub fn raw_number(&self) -> u64 {
        match self {
            Self::Blktag(blktag) => blktag.number.raw(),
            Self::Direntry(direntry) => direntry.number.raw(),
            Self::Inode(inode) => inode.number.raw(),
        }
    }

    /// Where it lies.
    #[must_use]
    pub fn slot(&self) -> Slot {
        match self {
            Self::Blktag(blktag) => blktag.number.slot(),
            Self::Direntry(direntry) => direntry.number.slot(),
            Self::Inode(inode) => inode.number.slot(),
        }
    }

    /// The chunk it lies in.
    #[must_use]
    pub fn chunk(&self) -> ChunkId {
        match self {
            Self::Blktag(blktag) => blktag.number.chunk(),
            Self::Direntry(direntry) => direntry.number.chunk(),
            Self::Inode(inode) => inode.number.chunk(),
        }
    }

    /// Which of its kind it is in its chunk.
    #[must_use]
    pub fn index(&self) -> usize {
        match self {
            Self::Blktag(blktag) => blktag.number.index(),
            Self::Direntry(direntry) => direntry.number.index(),
            Self::Inode(inode) => inode.number.index(),
        }
    }
}

impl From<Blktag> for Object {
    fn from(blktag: Blktag) -> Self {
        Self::Blktag(blktag)
    }
}

impl From<Direntry> for Object {
    fn from(direntry: Direntry) -> Self {
        Self::Direntry(direntry)
    }
}

impl From<Inode> for Object {
    fn from(inode: Inode) -> Self {
        Self::Inode(inode)
    }
}

/// Checks the checksum of the object that should be `number`, and nothing else.
///
/// # Errors
/// When it is wrong.
pub fn check_object<N: Number>(bytes: &ObjectBytes, number: N) -> Result<Checksum, Damage> {
    Checksum::check(u32_at(bytes, CHECKSUM_AT), checksum_around(bytes, CHECKSUM_AT))
        .map_err(|problem| Damage::new(format!("{} {number}", N::KIND), number.slot().start(), "mo_checksum", problem))
}

/// Whether an object says of itself that it is used.
#[must_use]
pub fn is_used(bytes: &ObjectBytes) -> bool {
    bytes[33] != 0
}

/// What all objects begin with, checked as far as it can be without knowing the kind.
struct Common<'a, N> {
    bytes: &'a ObjectBytes,
    at: Bda,
    number: N,
    used: bool,
    checksum: Checksum,
}

impl<'a, N: Number> Common<'a, N> {
    fn parse(bytes: &'a ObjectBytes, at: Bda) -> Result<Self, Damage> {
        let raw = u64_at(bytes, 0);
        let damage = |field, problem| Damage::new(format!("{} {raw}", N::KIND), at, field, problem);
        let checksum = Checksum::check(u32_at(bytes, CHECKSUM_AT), checksum_around(bytes, CHECKSUM_AT))
            .map_err(|problem| damage("mo_checksum", problem))?;
        if bytes[32] != N::KIND as u8 {
            return Err(damage("mo_type", format!("{} instead of {} ({})", bytes[32], N::KIND as u8, N::KIND)));
        }
        let number = N::from_raw(raw)
            .ok_or_else(|| damage("mo_number", format!("there can be no {} of this number", N::KIND)))?;
        if u64_at(bytes, 8) != 0 {
            return Err(damage("mo_version", format!("{} instead of 0", u64_at(bytes, 8))));
        }
        if bytes[33] > 1 {
            return Err(damage("mo_used", format!("{} is neither 0 nor 1", bytes[33])));
        }
        if !is_zero(bytes, 34..36) {
            return Err(damage("mo_padding", "bytes are set where there should be none".to_owned()));
        }
        Ok(Self { bytes, at, number, used: bytes[33] == 1, checksum })
    }

    fn damage(&self, field: &'static str, problem: impl Into<String>) -> Damage {
        Damage::new(format!("{} {}", N::KIND, self.number), self.at, field, problem)
    }

    fn u64(&self, at: usize) -> u64 {
        u64_at(self.bytes, at)
    }

    /// The number of another object; 0 is none.
    fn link<M: Number>(&self, at: usize, field: &'static str) -> Result<Option<M>, Damage> {
        match self.u64(at) {
            0 => Ok(None),
            _ => self.reference(at, field).map(Some),
        }
    }

    /// The number of another object, which may be 0.
    fn reference<M: Number>(&self, at: usize, field: &'static str) -> Result<M, Damage> {
        let raw = self.u64(at);
        M::from_raw(raw).ok_or_else(|| self.damage(field, format!("there can be no {} {raw}", M::KIND)))
    }

    fn links<M: Number>(&self) -> Result<Links<M>, Damage> {
        Ok(Links { next: self.link(16, "mo_next")?, prev: self.link(24, "mo_prev")? })
    }

    fn no_links(&self) -> Result<(), Damage> {
        for (at, field) in [(16, "mo_next"), (24, "mo_prev")] {
            if self.u64(at) != 0 {
                return Err(self.damage(field, format!("{} instead of 0: it is in no list", self.u64(at))));
            }
        }
        Ok(())
    }

    fn nothing_in(&self, range: std::ops::Range<usize>) -> Result<(), Damage> {
        if is_zero(self.bytes, range) {
            return Ok(());
        }
        Err(self.damage("mo_data", "bytes are set where there should be none"))
    }
}

/// An object about to be written: everything before its payload but the checksum.
fn start(number: impl Number, used: bool) -> ObjectBytes {
    fn of<N: Number>(number: N, used: bool) -> ObjectBytes {
        let mut bytes = [0; OBJECT_SIZE];
        put_u64(&mut bytes, 0, number.raw());
        bytes[32] = N::KIND as u8;
        bytes[33] = u8::from(used);
        bytes
    }
    of(number, used)
}

fn put_links<N: Number>(bytes: &mut ObjectBytes, links: Links<N>) {
    put_u64(bytes, 16, links.next.map_or(0, Number::raw));
    put_u64(bytes, 24, links.prev.map_or(0, Number::raw));
}

/// Puts the checksum onto an object that is complete otherwise.
fn seal(mut bytes: ObjectBytes, checksum: Checksum) -> ObjectBytes {
    let computed = checksum_around(&bytes, CHECKSUM_AT);
    put_u32(&mut bytes, CHECKSUM_AT, checksum.store(computed));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bytes that are nearly an object: some fields small numbers, the rest nothing, the checksum mostly right.
    fn near_object() -> impl Strategy<Value = ObjectBytes> {
        let number = prop_oneof![Just(0), 0u64..5000, Just(u64::MAX), Just(1 << 22), any::<u64>()];
        let fields = prop::collection::vec((prop::sample::select((0..16).collect::<Vec<usize>>()), number), 0..8);
        (fields, 0u8..5, 0u8..3, 0u8..12).prop_map(|(fields, kind, used, right)| {
            let mut bytes = [0; OBJECT_SIZE];
            for (word, value) in fields {
                put_u64(&mut bytes, word * 8, value);
            }
            bytes[32..36].fill(0);
            (bytes[32], bytes[33]) = (kind, used);
            if right > 0 { seal(bytes, Checksum::Present) } else { bytes }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn any_bytes_are_an_object_or_an_error(bytes in near_object()) {
            let parsed = [
                Object::parse(&bytes, Bda::new(0x9_1000)),
                Blktag::parse(&bytes, Bda::new(0)).map(Object::Blktag),
                Direntry::parse(&bytes, Bda::new(0)).map(Object::Direntry),
                Inode::parse(&bytes, Bda::new(0)).map(Object::Inode),
            ];
            for object in parsed.into_iter().flatten() {
                prop_assert_eq!(object.write(), bytes);
                prop_assert_eq!(Object::parse(&object.write(), Bda::new(0)).unwrap(), object);
            }
        }

        #[test]
        fn noise_is_no_object(noise in prop::array::uniform32(any::<u32>())) {
            let mut bytes = [0; OBJECT_SIZE];
            for (at, word) in noise.into_iter().enumerate() {
                put_u32(&mut bytes, at * 4, word);
            }
            prop_assert!(Object::parse(&bytes, Bda::new(0)).is_err());
        }
    }

    #[test]
    fn a_wrong_field_is_named() {
        let text = |bytes: &ObjectBytes| Inode::parse(bytes, Bda::new(0x9_c080)).unwrap_err().to_string();
        let mut bytes = start(super::super::InodeNo::from_raw(353).unwrap(), false);
        put_u64(&mut bytes, 48, u64::MAX);
        let with = |at: usize, byte: u8| {
            let mut bytes = bytes;
            bytes[at] = byte;
            seal(bytes, Checksum::Present)
        };
        assert!(Inode::parse(&with(32, 3), Bda::new(0)).is_ok());
        assert_eq!(text(&with(32, 2)), "inode 353 at 0x9c080: mo_type: 2 instead of 3 (inode)");
        assert_eq!(text(&with(33, 2)), "inode 353 at 0x9c080: mo_used: 2 is neither 0 nor 1");
        assert_eq!(text(&with(8, 1)), "inode 353 at 0x9c080: mo_version: 1 instead of 0");
        assert_eq!(text(&with(35, 1)), "inode 353 at 0x9c080: mo_padding: bytes are set where there should be none");
        assert_eq!(
            text(&with(6, 1)),
            "inode 281474976711009 at 0x9c080: mo_number: there can be no inode of this number"
        );
        let mut broken = with(32, 3);
        broken[100] = 1;
        assert!(text(&broken).starts_with("inode 353 at 0x9c080: mo_checksum: 0x"));
        let none = Object::parse(&[0; OBJECT_SIZE], Bda::new(16)).unwrap_err();
        assert_eq!(none.to_string(), "object at 0x10: mo_type: there is no type 0");
    }
}
