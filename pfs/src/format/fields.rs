//! The fields of a structure one by one, as they stand on the disk, right or wrong: for dumps, and for comparing.
//!
//! They are called what the original calls them.

use serde::{Serialize, Serializer};

use super::bytes::{i32_at, u32_at, u64_at};
use super::checksum::checksum_around;
use super::header::set_at;
use super::{EntryBytes, Kind, OBJECT_SIZE, ObjectBytes, SECTOR_SIZE};

/// What stands in a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A number.
    Number(u64),
    /// A number that may be negative.
    Signed(i64),
    /// A number that people read in base 16.
    Hex(u64),
    /// A name, or a piece of one.
    Name(Vec<u8>),
    /// A word for it.
    Word(&'static str),
}

/// One field of a structure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// What the original calls it.
    pub name: &'static str,
    /// How deep it stands in what stands in what: an object's payload is one deeper than its beginning.
    pub depth: usize,
    /// What stands there.
    pub value: Value,
}

impl Value {
    /// As the original prints it. A name is any bytes.
    #[must_use]
    pub fn text(&self) -> Vec<u8> {
        match self {
            Self::Number(number) => number.to_string().into_bytes(),
            Self::Signed(number) => number.to_string().into_bytes(),
            // As printf's %#lx, which leaves zero bare.
            Self::Hex(0) => b"0".to_vec(),
            Self::Hex(number) => format!("{number:#x}").into_bytes(),
            Self::Name(name) => name.clone(),
            Self::Word(word) => word.as_bytes().to_vec(),
        }
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Number(number) | Self::Hex(number) => serializer.serialize_u64(*number),
            Self::Signed(number) => serializer.serialize_i64(*number),
            Self::Name(name) => serializer.serialize_str(&String::from_utf8_lossy(name)),
            Self::Word(word) => serializer.serialize_str(word),
        }
    }
}

/// Gathers fields of one depth.
struct Fields {
    fields: Vec<Field>,
    depth: usize,
}

impl Fields {
    fn add(&mut self, name: &'static str, value: Value) {
        self.fields.push(Field { name, depth: self.depth, value });
    }

    fn number(&mut self, name: &'static str, number: impl Into<u64>) {
        self.add(name, Value::Number(number.into()));
    }
}

/// The fields of the chunk header in a sector.
#[must_use]
pub fn header_fields(sector: &[u8; SECTOR_SIZE]) -> Vec<Field> {
    let mut fields = Fields { fields: Vec::new(), depth: 0 };
    fields.add("ck_magic", Value::Hex(u64_at(sector, 0)));
    fields.number("ck_chunksize", u64_at(sector, 8));
    fields.number("ck_blksize", u64_at(sector, 16));
    fields.number("ck_sectsize", u64_at(sector, 24));
    fields.number("ck_number", u64_at(sector, 32));
    fields.number("ck_nchunk", u32_at(sector, 40));
    fields.number("ck_checksum", u32_at(sector, 112));
    for (name, kind) in [
        ("ck_physet[MT_BLKTAG].ms_nsect", Kind::Blktag),
        ("ck_physet[MT_DIRENTRY].ms_nsect", Kind::Direntry),
        ("ck_physet[MT_INODE].ms_nsect", Kind::Inode),
    ] {
        fields.number(name, u32_at(sector, set_at(kind) + 8));
    }
    for (name, kind) in [
        ("ck_physet[MT_BLKTAG].ms_sectbda", Kind::Blktag),
        ("ck_physet[MT_DIRENTRY].ms_sectbda", Kind::Direntry),
        ("ck_physet[MT_INODE].ms_sectbda", Kind::Inode),
    ] {
        fields.add(name, Value::Hex(u64_at(sector, set_at(kind))));
    }
    fields.fields
}

/// The fields of a journal entry, those of its object last and one deeper.
#[must_use]
pub fn entry_fields(bytes: &EntryBytes) -> Vec<Field> {
    let mut fields = Fields { fields: Vec::new(), depth: 0 };
    fields.add("le_txid", Value::Signed(u64_at(bytes, 144).cast_signed()));
    fields.add("le_lsn", Value::Signed(u64_at(bytes, 128).cast_signed()));
    fields.number("le_sector_bda", u64_at(bytes, 136));
    fields.number("le_obj_idx", u32_at(bytes, 152));
    fields.number("le_checksum", u32_at(bytes, 156));
    if u32_at(bytes, 156) != checksum_around(bytes, 156) {
        fields.add("(le_checksum_isvalid)", Value::Word("false"));
    }
    fields.add("le_more", Value::Signed(i32_at(bytes, 160).into()));
    let mut image: ObjectBytes = [0; OBJECT_SIZE];
    image.copy_from_slice(&bytes[..OBJECT_SIZE]);
    let object = object_fields(&image).into_iter().map(|field| Field { depth: field.depth + 1, ..field });
    fields.fields.extend(object);
    fields.fields
}

/// The fields of an object, its payload one deeper than what all objects begin with.
#[must_use]
pub fn object_fields(bytes: &ObjectBytes) -> Vec<Field> {
    let kind = Kind::from_raw(bytes[32]);
    let mut fields = Fields { fields: Vec::new(), depth: 0 };
    fields.add(
        "mo_type",
        match kind {
            Some(Kind::Blktag) => Value::Word("blktag"),
            Some(Kind::Direntry) => Value::Word("direntry"),
            Some(Kind::Inode) => Value::Word("inode"),
            None => Value::Number(bytes[32].into()),
        },
    );
    fields.number("mo_number", u64_at(bytes, 0));
    fields.number("mo_checksum", u32_at(bytes, 36));
    fields.number("mo_used", bytes[33]);
    fields.number("mo_version", u64_at(bytes, 8));
    let (first, second) = if kind == Some(Kind::Inode) { ("mo_head", "mo_tail") } else { ("mo_next", "mo_prev") };
    if kind.is_some() {
        fields.number(first, u64_at(bytes, 16));
        fields.number(second, u64_at(bytes, 24));
    }
    fields.depth = 1;
    match kind {
        None => {}
        Some(Kind::Blktag) => {
            fields.number("bt_ino", u64_at(bytes, 40));
            fields.number("bt_blkid", u64_at(bytes, 48));
            fields.number("bt_dstatus", u32_at(bytes, 56));
            fields.number("bt_ndiscard", u32_at(bytes, 60));
            fields.add("bt_holelen", Value::Signed(i32_at(bytes, 64).into()));
            fields.add("bt_holeoff", Value::Signed(i32_at(bytes, 68).into()));
        }
        Some(Kind::Direntry) => {
            let piece = &bytes[40..104];
            fields.add("de_name", Value::Name(piece.split(|byte| *byte == 0).next().unwrap_or(&[]).to_vec()));
            let (inode, directory) = (u64_at(bytes, 104), u64_at(bytes, 112));
            if directory == u64::MAX && inode != u64::MAX {
                fields.number("de_headdeno", inode);
            } else {
                fields.add("de_dirino", Value::Signed(directory.cast_signed()));
                fields.add("de_ino", Value::Signed(inode.cast_signed()));
            }
            fields.number("de_extdeno", u64_at(bytes, 120));
        }
        Some(Kind::Inode) => {
            fields.number("in_type", bytes[40]);
            fields.number("in_deno", u64_at(bytes, 48));
            fields.number("in_flags", bytes[41]);
            fields.number("in_pvtid", u32_at(bytes, 44));
            fields.number("in_nlink", u64_at(bytes, 56));
            fields.number("in_nblock", u64_at(bytes, 64));
            fields.number("in_size", u64_at(bytes, 72));
            fields.number("in_atime", u64_at(bytes, 80));
            fields.number("in_ctime", u64_at(bytes, 88));
            fields.number("in_mtime", u64_at(bytes, 96));
        }
    }
    fields.fields
}
