//! The sectors in which leases lie.

use std::path::Path;

use blockdev::Result;
use blockdev::engine::{Choice, Completion, Config, Engine, Op, Span, Target};

use crate::format::{LEASES, LEASES_AT, LeaseRecord, SECTOR_SIZE};
use crate::mkfs::disk::{Sharing, open_for_writing};
use crate::volume::{Device, Part};

/// All records, by slot. Bytes that are none are nobody's.
pub(super) type Records = Vec<Option<LeaseRecord>>;

/// The sectors in which leases lie, for reading and writing.
#[derive(Debug)]
pub(super) struct Slots {
    engine: Engine,
}

impl Slots {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = open_for_writing(path, Sharing::Shared)?;
        let engine =
            Engine::open(Choice::Auto, &Config::new(1, 1, LEASES * SECTOR_SIZE), vec![Target::new(file, path)])?;
        Ok(Self { engine })
    }

    pub(super) fn read(&mut self) -> Result<Records> {
        #[allow(clippy::cast_possible_truncation, reason = "256 KiB")]
        let span = Span::whole(0, (LEASES * SECTOR_SIZE) as u32);
        self.carry_out(Op::Read { file: 0, offset: LEASES_AT.bytes(), span })?;
        Ok(records(self.engine.buffer(0)))
    }

    /// Puts a record into a slot, or clears it.
    pub(super) fn write(&mut self, slot: usize, record: Option<&LeaseRecord>) -> Result<()> {
        let sector = record.map_or([0; SECTOR_SIZE], LeaseRecord::write);
        self.engine.buffer_mut(0)[..SECTOR_SIZE].copy_from_slice(&sector);
        #[allow(clippy::cast_possible_truncation, reason = "4096")]
        let span = Span::whole(0, SECTOR_SIZE as u32);
        self.carry_out(Op::Write { file: 0, offset: LEASES_AT.bytes() + (slot * SECTOR_SIZE) as u64, span })
    }

    fn carry_out(&mut self, op: Op) -> Result<()> {
        let mut done: Vec<Completion> = Vec::with_capacity(1);
        self.engine.submit(0, op)?;
        self.engine.drain(&mut done)?;
        done.into_iter().try_for_each(|completion| completion.result)
    }
}

/// All records of a volume that is open for reading.
pub(super) fn read(device: &mut Device) -> Result<Records> {
    let mut bytes = vec![0; LEASES * SECTOR_SIZE];
    device.read_parts([Part { at: LEASES_AT, into: &mut bytes }])?;
    Ok(records(&bytes))
}

fn records(bytes: &[u8]) -> Records {
    let (sectors, _) = bytes.as_chunks::<SECTOR_SIZE>();
    sectors
        .iter()
        .take(LEASES)
        .enumerate()
        .map(|(slot, sector)| LeaseRecord::parse(sector, slot).ok().flatten())
        .collect()
}
