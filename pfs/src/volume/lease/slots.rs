//! The sectors in which leases lie.

use std::path::Path;

use blockdev::Result;
use blockdev::engine::Choice;
use blockdev::ui::needs_root;

use crate::format::{Bda, LEASES, LEASES_AT, LeaseRecord, SECTOR_SIZE};
use crate::volume::{Device, Source};

/// All records, by slot. Bytes that are none are nobody's.
pub(super) type Records = Vec<Option<LeaseRecord>>;

/// The sectors in which leases lie, for reading and writing.
#[derive(Debug)]
pub(super) struct Slots {
    device: Device,
}

impl Slots {
    pub(super) fn open(path: &Path) -> Result<Self> {
        needs_root(Device::open_writable(path, Choice::Auto)).map(|device| Self { device })
    }

    pub(super) fn read(&mut self) -> Result<Records> {
        read(&mut self.device)
    }

    /// Puts a record into a slot, or clears it.
    pub(super) fn write(&mut self, slot: usize, record: Option<&LeaseRecord>) -> Result<()> {
        let sector = record.map_or([0; SECTOR_SIZE], LeaseRecord::write);
        let at = Bda::new(LEASES_AT.bytes() + (slot * SECTOR_SIZE) as u64);
        self.device.write_parts([Source { at, from: &sector }])
    }
}

/// All records of a volume.
pub(super) fn read(device: &mut Device) -> Result<Records> {
    let mut bytes = vec![0; LEASES * SECTOR_SIZE];
    device.read(LEASES_AT, &mut bytes)?;
    let (sectors, _) = bytes.as_chunks::<SECTOR_SIZE>();
    Ok(sectors.iter().enumerate().map(|(slot, sector)| LeaseRecord::parse(sector, slot).ok().flatten()).collect())
}
