//! The journal entry: one object as a transaction left it.

use super::bytes::{is_zero, put_u32, put_u64, u32_at, u64_at};
use super::checksum::checksum_around;
use super::object::Object;
use super::{Bda, Checksum, Damage, Kind, Lsn, OBJECT_SIZE, ObjectBytes, Slot, Txid};

/// Bytes in an entry. The journal is a file of them, written round and round; an entry never crosses its end.
pub const ENTRY_SIZE: usize = 256;

/// The bytes of an entry.
pub type EntryBytes = [u8; ENTRY_SIZE];

const CHECKSUM_AT: usize = 156;

/// One object as a transaction left it. A transaction is one or more entries that follow each other, one for each object
/// that it changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalEntry {
    /// Its number, one more than that of the entry before it.
    pub lsn: Lsn,
    /// The transaction that it belongs to.
    pub txid: Txid,
    /// Whether it is the last entry of its transaction.
    pub last: bool,
    /// The object after the transaction.
    pub object: Object,
    /// Whether it carries a checksum. The object has its own.
    pub checksum: Checksum,
}

impl JournalEntry {
    /// The entry that lies `at` an address.
    ///
    /// # Errors
    /// When the bytes are no entry, or its object is none.
    pub fn parse(bytes: &EntryBytes, at: Bda) -> Result<Self, Damage> {
        let (raw_lsn, raw_txid) = (u64_at(bytes, 128), u64_at(bytes, 144));
        let damage = |field, problem| {
            Damage::new(
                format!("journal entry {} of transaction {}", raw_lsn.cast_signed(), raw_txid.cast_signed()),
                at,
                field,
                problem,
            )
        };
        let checksum = Checksum::check(u32_at(bytes, CHECKSUM_AT), checksum_around(bytes, CHECKSUM_AT))
            .map_err(|problem| damage("le_checksum", problem))?;
        let lsn = Lsn::new(raw_lsn).ok_or_else(|| damage("le_lsn", "it is negative".to_owned()))?;
        let txid = Txid::new(raw_txid).ok_or_else(|| damage("le_txid", "it is negative".to_owned()))?;
        let more = u32_at(bytes, 160);
        if more > 1 {
            return Err(damage("le_more", format!("{more} is neither 0 nor 1")));
        }
        if !is_zero(bytes, 164..ENTRY_SIZE) {
            return Err(damage("reserved", "bytes are set where there should be none".to_owned()));
        }
        let mut image: ObjectBytes = [0; OBJECT_SIZE];
        image.copy_from_slice(&bytes[..OBJECT_SIZE]);
        let object = Object::parse(&image, at).map_err(|inner| {
            damage("le_obj_val", format!("{}: {}: {}", inner.structure(), inner.field(), inner.problem()))
        })?;
        let slot = object.slot();
        let found = Slot { sector: Bda::new(u64_at(bytes, 136)), index: u32_at(bytes, 152) };
        let of = || format!("{} {}", object.kind(), object.raw_number());
        if found.sector != slot.sector {
            return Err(damage(
                "le_sector_bda",
                format!("{} instead of {}, where {} lies", found.sector, slot.sector, of()),
            ));
        }
        if found.index != slot.index {
            return Err(damage("le_obj_idx", format!("{} instead of {}, which {} is", found.index, slot.index, of())));
        }
        Ok(Self { lsn, txid, last: more == 0, object, checksum })
    }

    /// Its bytes.
    #[must_use]
    pub fn write(&self) -> EntryBytes {
        let mut bytes = [0; ENTRY_SIZE];
        bytes[..OBJECT_SIZE].copy_from_slice(&self.object.write());
        let slot = self.object.slot();
        put_u64(&mut bytes, 128, self.lsn.raw());
        put_u64(&mut bytes, 136, slot.sector.bytes());
        put_u64(&mut bytes, 144, self.txid.raw());
        put_u32(&mut bytes, 152, slot.index);
        put_u32(&mut bytes, 160, u32::from(!self.last));
        let checksum = checksum_around(&bytes, CHECKSUM_AT);
        put_u32(&mut bytes, CHECKSUM_AT, self.checksum.store(checksum));
        bytes
    }
}

/// What an entry says that it is of, right or wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntrySubject {
    /// The transaction.
    pub txid: u64,
    /// The kind of its object, if there is such a kind.
    pub kind: Option<Kind>,
    /// The number of its object.
    pub number: u64,
}

/// What an entry says that it is of, right or wrong.
#[must_use]
pub fn entry_subject(bytes: &EntryBytes) -> EntrySubject {
    EntrySubject { txid: u64_at(bytes, 144), kind: Kind::from_raw(bytes[32]), number: u64_at(bytes, 0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::tests::bytes;
    use crate::format::{Direntry, DirentryNo, DirentryState, Head, InodeNo, Links, NamePiece, Number};
    use proptest::prelude::*;

    /// The first entry of a volume of two chunks: `pfs mkdir /loop1/d`.
    fn mkdir() -> JournalEntry {
        let number = |raw| DirentryNo::from_raw(raw).unwrap();
        JournalEntry {
            lsn: Lsn::new(1).unwrap(),
            txid: Txid::new(1).unwrap(),
            last: false,
            object: Object::Direntry(Direntry {
                number: number(0x800),
                checksum: Checksum::Present,
                state: DirentryState::Head(Head {
                    links: Links { next: None, prev: Some(number(2)) },
                    name: NamePiece::new(b"d"),
                    inode: InodeNo::from_raw(0x800).unwrap(),
                    directory: InodeNo::ROOT,
                    extension: None,
                }),
            }),
            checksum: Checksum::Present,
        }
    }

    #[test]
    fn the_first_entry_of_the_original() {
        let written = mkdir().write();
        assert_eq!(
            written[..48],
            bytes(
                "0008000000000000 0000000000000000 0000000000000000 0200000000000000 020100001d77dedf 6400000000000000"
            )
        );
        assert_eq!(
            written[0x68..0xa8],
            bytes(
                "0008000000000000 0000000000000000 0000000000000000 0100000000000000 0010058002000000 0100000000000000
                 00000000d08c59f0 0100000000000000"
            )
        );
        assert_eq!(JournalEntry::parse(&written, Bda::new(0)).unwrap(), mkdir());
    }

    #[test]
    fn a_wrong_field_is_named() {
        let text = |at: usize, value: u64| {
            let mut bytes = mkdir().write();
            put_u64(&mut bytes, at, value);
            put_u32(&mut bytes, CHECKSUM_AT, 0);
            JournalEntry::parse(&bytes, Bda::new(0x80_0000)).unwrap_err().to_string()
        };
        let entry = "journal entry 1 of transaction 1 at 0x800000: ";
        for (at, value, problem) in [
            (136, 0x20_0000, "le_sector_bda: 0x200000 instead of 0x280051000, where direntry 2048 lies"),
            (136, 1 << 60, "le_sector_bda: 0x1000000000000000 instead of 0x280051000, where direntry 2048 lies"),
            (152, 40, "le_obj_idx: 40 instead of 0, which direntry 2048 is"),
            (160, 2, "le_more: 2 is neither 0 nor 1"),
            (168, 1, "reserved: bytes are set where there should be none"),
            (32, 9, "le_obj_val: object: mo_type: there is no type 9"),
        ] {
            assert_eq!(text(at, value), format!("{entry}{problem}"));
        }
        assert_eq!(text(128, u64::MAX), "journal entry -1 of transaction 1 at 0x800000: le_lsn: it is negative");
        assert_eq!(text(144, u64::MAX), "journal entry 1 of transaction -1 at 0x800000: le_txid: it is negative");
        let mut broken = mkdir().write();
        broken[170] = 1;
        let damage = JournalEntry::parse(&broken, Bda::new(0)).unwrap_err();
        assert_eq!(damage.field(), "le_checksum");
    }

    proptest! {
        #[test]
        fn what_is_written_is_parsed(lsn in 0..=i64::MAX as u64, txid in 0..=i64::MAX as u64, last: bool, absent: bool) {
            let entry = JournalEntry {
                lsn: Lsn::new(lsn).unwrap(),
                txid: Txid::new(txid).unwrap(),
                last,
                checksum: if absent { Checksum::Absent } else { Checksum::Present },
                ..mkdir()
            };
            prop_assert_eq!(JournalEntry::parse(&entry.write(), Bda::new(0)).unwrap(), entry);
        }

        #[test]
        fn any_bytes_are_an_entry_or_an_error(changes in prop::collection::vec((0..ENTRY_SIZE, any::<u8>()), 0..4)) {
            let mut bytes = mkdir().write();
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            // Without checksums, the fields have to speak for themselves.
            bytes[36..40].fill(0);
            bytes[CHECKSUM_AT..CHECKSUM_AT + 4].fill(0);
            if let Ok(entry) = JournalEntry::parse(&bytes, Bda::new(0)) {
                prop_assert_eq!(entry.write(), bytes);
            }
        }
    }
}
