//! The leader record: which part of the journal counts. Writing it is what commits a transaction.

use super::bytes::{is_zero, put_u32, put_u64, u32_at, u64_at};
use super::checksum::checksum;
use super::{Damage, ENTRY_SIZE, LEADER_AT, LogOffset, Lsn, SECTOR_SIZE, Txid};

/// Bytes of a record; the rest of its sector is zero.
pub const LEADER_SIZE: usize = 264;

/// The bytes of a record.
pub type LeaderBytes = [u8; LEADER_SIZE];

const MAGIC: u32 = 0xBABA_BABA;
/// In place of the magic number: somebody declared the volume dead.
const CLEARED: u32 = 0x1128_2016;
/// The upper half of the version, which must be this.
const MAJOR: u32 = 1;

const UNUSED: std::ops::Range<usize> = 32..208;
const CHECKSUM_AT: usize = 256;

/// Between two transactions, or before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct LogPosition {
    /// The transaction before it.
    pub txid: Txid,
    /// Where in the journal file the one after it starts.
    pub offset: LogOffset,
}

/// Which part of the journal counts: the transactions after `tail`, up to `head`. What came before is in the metadata
/// sectors, what comes after never happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderRecord {
    /// The lower half of the record's version.
    pub minor: u16,
    /// How many hosts may share the volume: hosts have ids from 1 to this.
    pub hosts: u64,
    /// How many hosts the record was made for.
    pub hosts_max: u64,
    /// Before the oldest transaction in the journal.
    pub tail: LogPosition,
    /// After the newest.
    pub head: LogPosition,
    /// The newest entry.
    pub head_lsn: Lsn,
    /// Bytes in the journal, a multiple of 256.
    pub log_size: u64,
}

impl LeaderRecord {
    /// The record that stands at [`LEADER_AT`].
    ///
    /// # Errors
    /// When the bytes are no leader record, or one that no volume can have.
    pub fn parse(bytes: &LeaderBytes) -> Result<Self, Damage> {
        let damage = |field, problem| Damage::new("leader record", LEADER_AT, field, problem);
        let magic = u32_at(bytes, 0);
        if magic == CLEARED {
            return Err(damage("magic", "it was cleared: somebody declared this volume dead".to_owned()));
        }
        if magic != MAGIC {
            return Err(damage("magic", format!("{magic:#x} instead of {MAGIC:#x}")));
        }
        let version = u32_at(bytes, 4);
        if version >> 16 != MAJOR {
            return Err(damage("version", format!("{version:#x} instead of {:#x}", MAJOR << 16 | 2)));
        }
        if u32_at(bytes, 12) as usize != SECTOR_SIZE {
            return Err(damage("sector_size", format!("{} instead of {SECTOR_SIZE}", u32_at(bytes, 12))));
        }
        let (stored, computed) = (u32_at(bytes, CHECKSUM_AT), checksum(&bytes[..CHECKSUM_AT]));
        if stored != computed {
            return Err(damage("checksum", format!("{stored:#010x} is stored, the bytes give {computed:#010x}")));
        }
        if !is_zero(bytes, 8..12) || !is_zero(bytes, UNUSED) || !is_zero(bytes, CHECKSUM_AT + 4..LEADER_SIZE) {
            return Err(damage("unused", "bytes are set where there should be none".to_owned()));
        }
        let log_size = u64_at(bytes, 240);
        if log_size == 0 || !log_size.is_multiple_of(ENTRY_SIZE as u64) || log_size > i64::MAX as u64 {
            return Err(damage(
                "log_size",
                format!("{log_size} bytes, which is not a number of entries of {ENTRY_SIZE}"),
            ));
        }
        let txid = |at, field| Txid::new(u64_at(bytes, at)).ok_or_else(|| damage(field, "it is negative".to_owned()));
        let offset = |at, field| {
            let raw = u64_at(bytes, at);
            LogOffset::new(raw)
                .filter(|offset| offset.bytes() < log_size)
                .ok_or_else(|| damage(field, format!("no entry starts at {raw} of {log_size} bytes")))
        };
        let tail = LogPosition { txid: txid(208, "tail_txid")?, offset: offset(224, "tail_offset")? };
        let head = LogPosition { txid: txid(216, "head_txid")?, offset: offset(232, "head_offset")? };
        let head_lsn = Lsn::new(u64_at(bytes, 248)).ok_or_else(|| damage("head_lsn", "it is negative".to_owned()))?;
        #[allow(clippy::cast_possible_truncation, reason = "the lower half")]
        let record = Self {
            minor: version as u16,
            hosts: u64_at(bytes, 16),
            hosts_max: u64_at(bytes, 24),
            tail,
            head,
            head_lsn,
            log_size,
        };
        let Some(transactions) = head.txid.raw().checked_sub(tail.txid.raw()) else {
            return Err(damage("tail_txid", format!("{}, but head_txid is {}", tail.txid, head.txid)));
        };
        let entries = record.entries();
        if entries < transactions || (transactions == 0 && entries > 0) {
            return Err(damage("head_offset", format!("{entries} entries for {transactions} transactions")));
        }
        if head_lsn.raw() < entries {
            return Err(damage("head_lsn", format!("{head_lsn}, but the journal holds {entries} entries")));
        }
        Ok(record)
    }

    /// The sector that it fills.
    #[must_use]
    pub fn write(&self) -> [u8; SECTOR_SIZE] {
        let mut sector = [0; SECTOR_SIZE];
        put_u32(&mut sector, 0, MAGIC);
        put_u32(&mut sector, 4, MAJOR << 16 | u32::from(self.minor));
        #[allow(clippy::cast_possible_truncation, reason = "4096")]
        put_u32(&mut sector, 12, SECTOR_SIZE as u32);
        for (at, number) in [
            (16, self.hosts),
            (24, self.hosts_max),
            (208, self.tail.txid.raw()),
            (216, self.head.txid.raw()),
            (224, self.tail.offset.bytes()),
            (232, self.head.offset.bytes()),
            (240, self.log_size),
            (248, self.head_lsn.raw()),
        ] {
            put_u64(&mut sector, at, number);
        }
        let checksum = checksum(&sector[..CHECKSUM_AT]);
        put_u32(&mut sector, CHECKSUM_AT, checksum);
        sector
    }

    /// How many entries the journal holds between tail and head. A journal is never full, so equal offsets mean none.
    #[must_use]
    pub fn entries(&self) -> u64 {
        let (tail, head) = (self.tail.offset.bytes(), self.head.offset.bytes());
        let bytes = if head >= tail { head - tail } else { head + self.log_size - tail };
        bytes / ENTRY_SIZE as u64
    }

    /// The entry before the oldest that the journal holds.
    #[must_use]
    pub fn tail_lsn(&self) -> Lsn {
        Lsn::new(self.head_lsn.raw().saturating_sub(self.entries())).unwrap_or(Lsn::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::tests::bytes;
    use proptest::prelude::*;

    fn position(txid: u64, offset: u64) -> LogPosition {
        LogPosition { txid: Txid::new(txid).unwrap(), offset: LogOffset::new(offset).unwrap() }
    }

    /// After `pfs mkfs`.
    fn fresh() -> LeaderRecord {
        LeaderRecord {
            minor: 2,
            hosts: 30,
            hosts_max: 254,
            tail: position(0, 0),
            head: position(0, 0),
            head_lsn: Lsn::ZERO,
            log_size: 1 << 30,
        }
    }

    fn parse(sector: &[u8; SECTOR_SIZE]) -> Result<LeaderRecord, Damage> {
        let mut bytes = [0; LEADER_SIZE];
        bytes.copy_from_slice(&sector[..LEADER_SIZE]);
        LeaderRecord::parse(&bytes)
    }

    #[test]
    fn the_records_of_the_original() {
        let sector = fresh().write();
        assert_eq!(sector[..32], bytes("babababa 02000100 00000000 00100000 1e00000000000000 fe00000000000000"));
        assert_eq!(sector[CHECKSUM_AT..CHECKSUM_AT + 4], bytes("f540f67f"));
        assert_eq!(parse(&sector).unwrap(), fresh());

        let later = LeaderRecord {
            tail: position(0x1a, 0x5400),
            head: position(0x1d, 0x5c00),
            head_lsn: Lsn::new(0x5c).unwrap(),
            ..fresh()
        };
        let sector = later.write();
        assert_eq!(
            sector[208..260],
            bytes(
                "1a00000000000000 1d00000000000000 0054000000000000 005c000000000000 0000004000000000 5c00000000000000
                 be98433a"
            )
        );
        assert_eq!(parse(&sector).unwrap(), later);
        assert_eq!((later.entries(), later.tail_lsn().raw()), (8, 0x54));
    }

    #[test]
    fn a_journal_goes_round() {
        let record = LeaderRecord {
            tail: position(3892, 1_046_528),
            head: position(4836, 613_888),
            head_lsn: Lsn::new(14686).unwrap(),
            log_size: 1 << 20,
            ..fresh()
        };
        assert_eq!(record.entries(), 2406);
        assert_eq!(parse(&record.write()).unwrap(), record);
    }

    #[test]
    fn a_wrong_field_is_named() {
        let text = |at: usize, value: u64| {
            let mut sector =
                LeaderRecord { head: position(5, 2560), head_lsn: Lsn::new(10).unwrap(), ..fresh() }.write();
            put_u64(&mut sector, at, value);
            let checksum = checksum(&sector[..CHECKSUM_AT]);
            put_u32(&mut sector, CHECKSUM_AT, checksum);
            parse(&sector).unwrap_err().to_string()
        };
        for (at, value, problem) in [
            (0, 0, "magic: 0x0 instead of 0xbabababa"),
            (0, u64::from(CLEARED), "magic: it was cleared: somebody declared this volume dead"),
            (0, 2 << 48 | u64::from(MAGIC), "version: 0x20000 instead of 0x10002"),
            (8, 512 << 32, "sector_size: 512 instead of 4096"),
            (32, 1, "unused: bytes are set where there should be none"),
            (208, 9, "tail_txid: 9, but head_txid is 5"),
            (216, u64::MAX, "head_txid: it is negative"),
            (216, 0, "head_offset: 10 entries for 0 transactions"),
            (216, 11, "head_offset: 10 entries for 11 transactions"),
            (232, 100, "head_offset: no entry starts at 100 of 1073741824 bytes"),
            (232, 1 << 30, "head_offset: no entry starts at 1073741824 of 1073741824 bytes"),
            (240, 0, "log_size: 0 bytes, which is not a number of entries of 256"),
            (240, 1000, "log_size: 1000 bytes, which is not a number of entries of 256"),
            (248, 9, "head_lsn: 9, but the journal holds 10 entries"),
        ] {
            assert_eq!(text(at, value), format!("leader record at 0x400000: {problem}"));
        }
        let mut sector = fresh().write();
        sector[250] = 1;
        assert_eq!(parse(&sector).unwrap_err().field(), "checksum");
    }

    proptest! {
        #[test]
        fn what_is_written_is_parsed(
            hosts: u64, minor: u16, tail in 0u64..4096, entries in 0u64..4096, transactions in 0u64..4096, before in 0u64..1 << 50,
        ) {
            let transactions = transactions.min(entries).max(u64::from(entries > 0));
            let record = LeaderRecord {
                minor,
                hosts,
                hosts_max: !hosts,
                tail: position(before, tail * 256),
                head: position(before + transactions, (tail + entries) % 4096 * 256),
                head_lsn: Lsn::new(before + entries).unwrap(),
                log_size: 1 << 20,
            };
            prop_assert_eq!(record.entries(), entries % 4096);
            prop_assert_eq!(parse(&record.write()).unwrap(), record);
        }

        #[test]
        fn any_bytes_are_a_record_or_an_error(changes in prop::collection::vec((0..LEADER_SIZE, any::<u8>()), 0..4), fix: bool) {
            let mut sector = LeaderRecord { head: position(5, 2560), head_lsn: Lsn::new(10).unwrap(), ..fresh() }.write();
            for (at, byte) in changes {
                sector[at] = byte;
            }
            if fix {
                let checksum = checksum(&sector[..CHECKSUM_AT]);
                put_u32(&mut sector, CHECKSUM_AT, checksum);
            }
            if let Ok(record) = parse(&sector) {
                prop_assert_eq!(record.write(), sector);
            }
        }
    }
}
