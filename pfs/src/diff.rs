//! How two volumes differ.

use std::collections::BTreeMap;
use std::fmt;

use blockdev::{Cancel, Result};
use serde::Serialize;

use crate::format::{
    Bda, BlktagNo, DirentryNo, Field, Inode, InodeNo, Number, Object, ObjectBytes, Value, header_fields, object_fields,
};
use crate::volume::{FileKind, Segment, Visit, Volume};

/// Bytes compared at once.
const BUFFER: usize = 1 << 20;

/// What to compare.
#[derive(Debug, Clone, Copy, Default)]
pub struct Diff {
    /// When files changed, too.
    pub times: bool,
    /// Every object, too: where names and blocks lie, not only what they are.
    pub objects: bool,
}

/// One thing in which two volumes differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The path, or the object.
    pub what: String,
    /// In what respect.
    pub field: &'static str,
    /// What the first volume has.
    pub a: String,
    /// What the second has.
    pub b: String,
}

fn difference(what: &str, field: &'static str, a: &dyn fmt::Display, b: &dyn fmt::Display) -> Difference {
    Difference { what: what.to_owned(), field, a: a.to_string(), b: b.to_string() }
}

impl Diff {
    /// Compares two volumes. The content of the file system's own two files is left out: it is what led to the rest.
    ///
    /// # Errors
    /// When one of them is damaged or cannot be read, or `cancel` says so.
    pub fn compare(self, a: &mut Volume, b: &mut Volume, cancel: &Cancel) -> Result<Vec<Difference>> {
        let mut found = Vec::new();
        let (left, mut right) = (tree(a)?, tree(b)?);
        for (path, visit) in &left {
            cancel.check("diff")?;
            let shown = String::from_utf8_lossy(path).into_owned();
            match right.remove(path) {
                None => found.push(difference(&shown, "exists", &"yes", &"no")),
                Some(other) => self.pair(&shown, (a, visit), (b, &other), cancel, &mut found)?,
            }
        }
        for path in right.keys() {
            found.push(difference(&String::from_utf8_lossy(path), "exists", &"no", &"yes"));
        }
        if self.objects {
            self.metadata(a, b, &mut found);
        }
        Ok(found)
    }

    /// Compares what two volumes have under one path.
    fn pair(
        self,
        path: &str,
        (a, left): (&mut Volume, &Visit),
        (b, right): (&mut Volume, &Visit),
        cancel: &Cancel,
        found: &mut Vec<Difference>,
    ) -> Result<()> {
        let (one, other) = (&left.stat, &right.stat);
        if one.kind != other.kind {
            let text = |kind| if kind == FileKind::File { "file" } else { "directory" };
            found.push(difference(path, "kind", &text(one.kind), &text(other.kind)));
            return Ok(());
        }
        if self.times {
            for (field, a, b) in [("mtime", one.mtime, other.mtime), ("ctime", one.ctime, other.ctime)] {
                if a != b {
                    found.push(difference(path, field, &a, &b));
                }
            }
        }
        if one.kind == FileKind::Directory {
            return Ok(());
        }
        if one.size != other.size {
            found.push(difference(path, "size", &one.size, &other.size));
        }
        if one.inode.is_internal() && other.inode.is_internal() {
            return Ok(());
        }
        if let Some((at, left, right)) = first_difference(a, &left.inode, b, &right.inode, cancel)? {
            let text = |byte: u8| format!("{byte:#04x} at {at}");
            found.push(difference(path, "content", &text(left), &text(right)));
        }
        Ok(())
    }

    /// Compares headers and objects.
    fn metadata(self, a: &Volume, b: &Volume, found: &mut Vec<Difference>) {
        let (headers, others) = (a.metadata().headers(), b.metadata().headers());
        if headers.len() != others.len() {
            found.push(difference("volume", "chunks", &headers.len(), &others.len()));
        }
        for (one, other) in headers.zip(others) {
            let (left, right) = (header_fields(&one.write()), header_fields(&other.write()));
            fields(&format!("header of chunk {}", one.id), &left, &right, found);
        }
        let (one, other) = (a.leader(), b.leader());
        for (field, a, b) in [
            ("tail_txid", one.tail.txid.raw(), other.tail.txid.raw()),
            ("tail_offset", one.tail.offset.bytes(), other.tail.offset.bytes()),
            ("head_txid", one.head.txid.raw(), other.head.txid.raw()),
            ("head_offset", one.head.offset.bytes(), other.head.offset.bytes()),
            ("head_lsn", one.head_lsn.raw(), other.head_lsn.raw()),
            ("log_size", one.log_size, other.log_size),
            ("num_hosts", one.hosts, other.hosts),
            ("max_hosts", one.hosts_max, other.hosts_max),
        ] {
            if a != b {
                found.push(difference("leader record", field, &a, &b));
            }
        }
        self.objects::<BlktagNo>(a, b, found);
        self.objects::<DirentryNo>(a, b, found);
        self.objects::<InodeNo>(a, b, found);
    }

    fn objects<N: Number>(self, a: &Volume, b: &Volume, found: &mut Vec<Difference>) {
        for number in a.metadata().numbers::<N>() {
            let (Ok(left), Ok(right)) = (a.metadata().bytes(number), b.metadata().bytes(number)) else { continue };
            if left != right {
                let what = format!("{} {number}", N::KIND);
                fields(&what, &self.object(left), &self.object(right), found);
            }
        }
    }

    /// The fields of an object that count. Without the times, neither does the checksum.
    fn object(self, bytes: &ObjectBytes) -> Vec<Field> {
        let mut fields = object_fields(bytes);
        fields.retain(|field| match field.name {
            "in_atime" | "in_ctime" | "in_mtime" => self.times,
            name => name != "mo_checksum",
        });
        if self.times
            && let Ok(Object::Inode(inode)) = Object::parse(bytes, Bda::new(0))
        {
            fields.push(Field { name: "in_btime", depth: 1, value: Value::Number(inode.btime.0) });
        }
        fields
    }
}

fn fields(what: &str, left: &[Field], right: &[Field], found: &mut Vec<Difference>) {
    let text = |field: &Field| String::from_utf8_lossy(&field.value.text()).into_owned();
    for (one, other) in left.iter().zip(right) {
        if one != other {
            found.push(difference(what, one.name, &text(one), &text(other)));
        }
    }
}

/// Everything in a volume, by its path.
fn tree(volume: &Volume) -> Result<BTreeMap<Vec<u8>, Visit>> {
    let mut tree = BTreeMap::new();
    let mut way: Vec<Vec<u8>> = vec![Vec::new()];
    for visit in volume.metadata().walk(InodeNo::ROOT)? {
        let visit = visit?;
        way.truncate(visit.depth + 1);
        let mut path = way[visit.depth].clone();
        path.push(b'/');
        path.extend_from_slice(visit.entry.name.as_bytes());
        if visit.stat.kind == FileKind::Directory {
            way.push(path.clone());
        }
        tree.insert(path, visit);
    }
    Ok(tree)
}

/// The first byte in which two files differ, as far as both reach.
fn first_difference(
    a: &mut Volume,
    left: &Inode,
    b: &mut Volume,
    right: &Inode,
    cancel: &Cancel,
) -> Result<Option<(u64, u8, u8)>> {
    let (one, other) = (a.metadata().file_map(left.number)?, b.metadata().file_map(right.number)?);
    let (mut buffer, mut second) = (vec![0; BUFFER], vec![0; BUFFER]);
    let (mut at, end) = (0, one.size.min(other.size));
    while at < end {
        cancel.check("diff")?;
        // Two holes are alike without looking.
        if let (Some(Segment::Zero { len }), Some(Segment::Zero { len: also })) =
            (one.segments(at, u64::MAX).next(), other.segments(at, u64::MAX).next())
        {
            at += len.min(also);
            continue;
        }
        #[allow(clippy::cast_possible_truncation, reason = "no longer than the buffers")]
        let len = (end - at).min(BUFFER as u64) as usize;
        a.read(&one, at, &mut buffer[..len])?;
        b.read(&other, at, &mut second[..len])?;
        if let Some(place) = buffer[..len].iter().zip(&second[..len]).position(|(left, right)| left != right) {
            return Ok(Some((at + place as u64, buffer[place], second[place])));
        }
        at += len as u64;
    }
    Ok(None)
}
