//! The lease: who writes a volume. It is onedisk's own; the original has none, and leaves these sectors as `mkfs` made them.

use super::bytes::{is_zero, put_u32, put_u64, u32_at, u64_at};
use super::checksum::checksum;
use super::{BLOCK_SIZE, Bda, Damage, LEADER_AT, SECTOR_SIZE};

/// Where the records lie: sectors 256 to 319 of `.pfs-paxos`. The first 256 are those that the original's leader record and
/// the areas of its 254 hosts would fill.
pub const LEASES_AT: Bda = Bda::new(LEADER_AT.bytes() + 256 * SECTOR_SIZE as u64);

/// How many records there is room for. One is enough for who writes; the others are for who would like to.
pub const LEASES: usize = 64;

const _: () = assert!(LEASES_AT.bytes() + (LEASES * SECTOR_SIZE) as u64 <= LEADER_AT.bytes() + BLOCK_SIZE.bytes());

const MAGIC: u64 = u64::from_le_bytes(*b"1DLEASE1");
const CHECKSUM_AT: usize = 256;
const END: usize = 260;

/// What a record is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    /// Somebody would like to write, and looks whether somebody else does.
    Claimed = 1,
    /// Somebody writes.
    Held = 2,
}

/// One record: somebody who writes the volume, or would like to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRecord {
    /// Whether they write already.
    pub state: LeaseState,
    /// Which host they are for the volume, 1 to 254; or 0.
    pub host: u32,
    /// Tells this lease from all others: random.
    pub id: [u8; 16],
    /// The boot of the machine that they are on, as in /proc/sys/kernel/random/boot_id.
    pub boot: [u8; 16],
    /// Their process: its id, the inode of the pid namespace in which it is that, and when it started, in clock ticks since
    /// that boot.
    pub process: ProcessId,
    /// The one after the largest generation that they found when they took the lease. Of two that are held, the one of the
    /// larger generation is.
    pub generation: u64,
    /// When they took it, in seconds since 1970 by their clock.
    pub since: u64,
    /// How often it was renewed.
    pub renewed: u64,
    /// When it was renewed last, in milliseconds since that boot, time asleep included.
    pub renewed_at: u64,
    /// How many milliseconds after it was renewed last it ends.
    pub expiry: u64,
    /// What their machine is called.
    pub machine: Label,
    /// What their program is called.
    pub program: Label,
}

/// A process of some machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessId {
    /// Its id.
    pub pid: u32,
    /// The inode of the pid namespace in which that is its id.
    pub namespace: u64,
    /// When it started, in clock ticks since its machine booted.
    pub started: u64,
}

/// Up to 64 bytes of a name, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label([u8; 64]);

impl Label {
    /// As much of `name` as there is room for.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let mut label = [0; 64];
        let len = name.floor_char_boundary(label.len());
        label[..len].copy_from_slice(&name.as_bytes()[..len]);
        Self(label)
    }
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.0.split(|byte| *byte == 0).next().unwrap_or(&[]);
        // It stands on a disk that anybody may have written.
        f.pad(&String::from_utf8_lossy(name).replace(char::is_control, "?"))
    }
}

impl LeaseRecord {
    /// The record in `slot`, or nothing where there is none.
    ///
    /// # Errors
    /// When the bytes are neither a record nor zeroes.
    pub fn parse(sector: &[u8; SECTOR_SIZE], slot: usize) -> Result<Option<Self>, Damage> {
        if is_zero(sector, 0..SECTOR_SIZE) {
            return Ok(None);
        }
        let at = Bda::new(LEASES_AT.bytes() + (slot * SECTOR_SIZE) as u64);
        let damage = |field, problem| Damage::new(format!("lease {slot}"), at, field, problem);
        if u64_at(sector, 0) != MAGIC {
            return Err(damage("magic", format!("{:#x} instead of {MAGIC:#x}", u64_at(sector, 0))));
        }
        let (stored, computed) = (u32_at(sector, CHECKSUM_AT), checksum(&sector[..CHECKSUM_AT]));
        if stored != computed {
            return Err(damage("checksum", format!("{stored:#010x} is stored, the bytes give {computed:#010x}")));
        }
        if !is_zero(sector, END..SECTOR_SIZE) {
            return Err(damage("reserved", "bytes are set where there should be none".to_owned()));
        }
        let state = match u32_at(sector, 8) {
            1 => LeaseState::Claimed,
            2 => LeaseState::Held,
            state => return Err(damage("state", format!("there is no state {state}"))),
        };
        Ok(Some(Self {
            state,
            host: u32_at(sector, 12),
            id: array(sector, 16),
            boot: array(sector, 32),
            process: ProcessId { pid: u32_at(sector, 48), namespace: u64_at(sector, 56), started: u64_at(sector, 64) },
            generation: u64_at(sector, 72),
            since: u64_at(sector, 80),
            renewed: u64_at(sector, 88),
            renewed_at: u64_at(sector, 96),
            expiry: u64_at(sector, 104),
            machine: Label(array(sector, 112)),
            program: Label(array(sector, 176)),
        }))
    }

    /// The sector that it fills.
    #[must_use]
    pub fn write(&self) -> [u8; SECTOR_SIZE] {
        let mut sector = [0; SECTOR_SIZE];
        put_u64(&mut sector, 0, MAGIC);
        put_u32(&mut sector, 8, self.state as u32);
        put_u32(&mut sector, 12, self.host);
        sector[16..32].copy_from_slice(&self.id);
        sector[32..48].copy_from_slice(&self.boot);
        put_u32(&mut sector, 48, self.process.pid);
        for (at, number) in [
            (56, self.process.namespace),
            (64, self.process.started),
            (72, self.generation),
            (80, self.since),
            (88, self.renewed),
            (96, self.renewed_at),
            (104, self.expiry),
        ] {
            put_u64(&mut sector, at, number);
        }
        sector[112..176].copy_from_slice(&self.machine.0);
        sector[176..240].copy_from_slice(&self.program.0);
        let checksum = checksum(&sector[..CHECKSUM_AT]);
        put_u32(&mut sector, CHECKSUM_AT, checksum);
        sector
    }
}

fn array<const N: usize>(sector: &[u8; SECTOR_SIZE], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&sector[at..at + N]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record() -> LeaseRecord {
        LeaseRecord {
            state: LeaseState::Held,
            host: 30,
            id: [7; 16],
            boot: [9; 16],
            process: ProcessId { pid: 4321, namespace: 0xf000_0000, started: 123_456 },
            generation: 3,
            since: 1_795_368_391,
            renewed: 17,
            renewed_at: 1_234_567,
            expiry: 10_000,
            machine: Label::new("laptop"),
            program: Label::new("pfsd"),
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        assert_eq!(LeaseRecord::parse(&record().write(), 5).unwrap(), Some(record()));
        assert_eq!(LeaseRecord::parse(&[0; SECTOR_SIZE], 5).unwrap(), None);
        assert_eq!(record().machine.to_string(), "laptop");
        assert_eq!(Label::new(&"ä".repeat(40)).to_string(), "ä".repeat(32));
        assert_eq!(Label::new("a\nb\x1b[31m").to_string(), "a?b?[31m");
    }

    #[test]
    fn a_wrong_field_is_named() {
        let text = |at: usize, value: u8, right: bool| {
            let mut sector = record().write();
            sector[at] = value;
            if right {
                let checksum = checksum(&sector[..CHECKSUM_AT]);
                put_u32(&mut sector, CHECKSUM_AT, checksum);
            }
            LeaseRecord::parse(&sector, 2).unwrap_err().to_string()
        };
        assert_eq!(text(0, 0x32, true), "lease 2 at 0x502000: magic: 0x31455341454c4432 instead of 0x31455341454c4431");
        assert_eq!(text(8, 3, true), "lease 2 at 0x502000: state: there is no state 3");
        assert_eq!(text(300, 1, true), "lease 2 at 0x502000: reserved: bytes are set where there should be none");
        assert!(text(48, 1, false).starts_with("lease 2 at 0x502000: checksum: 0x"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_record_or_an_error(changes in prop::collection::vec((0..END, any::<u8>()), 0..4)) {
            let mut sector = record().write();
            for (at, byte) in changes {
                sector[at] = byte;
            }
            let _ = LeaseRecord::parse(&sector, 0).map(|record| record.map(|record| record.machine.to_string()));
        }
    }
}
