//! A volume, read while others write it.
//!
//! [`Volume::open`] takes no lock and writes nothing: it reads the metadata sectors of all chunks, replays the journal
//! over them, and from then on [follows](Volume::refresh) the writer through the journal. What the metadata say is in
//! [`Metadata`], which does no I/O. A [`Follower`] does that in the background; a [`Writer`] changes the volume.
//!
//! Nothing that stands on the disk is trusted: a link is followed only as far as what it leads to leads back, a list only
//! as far as it may be long, so every walk ends, in an error where the volume is damaged.

mod data;
mod device;
mod exclusive;
mod follower;
pub(crate) mod hostlock;
mod journal;
mod lease;
pub(crate) mod load;
mod metadata;
mod name;
mod reader;
mod tree;
pub mod writer;

use std::path::Path;

use blockdev::Result;

use crate::format::{LeaderRecord, Object};

pub(crate) use data::twice;
pub use data::{FileMap, MappedBlock, Segment};
pub(crate) use device::takes_writes;
pub use device::{Device, Part, Source, Witness, device_of};
pub use exclusive::Exclusive;
pub use follower::{Follower, LOOK_INTERVAL};
pub use hostlock::{HostLock, Region};
pub use journal::Journal;
pub use lease::{Holder, Lease, LeaseOptions};
pub use load::Load;
pub(crate) use metadata::damage;
pub use metadata::{ListedBlock, Metadata};
pub use name::{Name, NameError, VolumePath};
pub use reader::{CatchUp, Reader};
pub use tree::{Entry, FileKind, Stat, Visit, Walk};
pub use writer::Writer;

/// What a look at the leader record found.
enum Change {
    /// Nothing.
    Nothing,
    /// Transactions, which left these objects so, in this order.
    Objects(Vec<Object>),
    /// So much that everything was read anew.
    All,
}

/// A volume open for reading.
#[derive(Debug)]
pub struct Volume {
    device: Device,
    metadata: Metadata,
    journal: Journal,
    leader: LeaderRecord,
}

impl Volume {
    /// Opens the volume on a file or device.
    ///
    /// # Errors
    /// When it cannot be read, holds no volume, or one that is damaged or of a version not known here.
    pub fn open(path: &Path) -> Result<Self> {
        Self::load(Device::open(path)?, Load::default())
    }

    /// Opens the volume on `device` in another way than [`Volume::open`].
    ///
    /// # Errors
    /// As [`Volume::open`].
    pub fn load(mut device: Device, how: Load) -> Result<Self> {
        let loaded = load::load(&mut device, how)?;
        Ok(Self { device, metadata: loaded.metadata, journal: loaded.journal, leader: loaded.leader })
    }

    /// Catches up with whoever writes the volume. Returns whether anything changed.
    ///
    /// When nothing did, this costs one read of a sector. A reader that fell behind what the journal still holds reads
    /// everything anew.
    ///
    /// # Errors
    /// When the device cannot be read or the volume is damaged; what was known before stays as it was.
    pub fn refresh(&mut self) -> Result<bool> {
        Ok(!matches!(self.follow()?, Change::Nothing))
    }

    /// As [`refresh`](Self::refresh), and sees also that the volume was [grown](crate::growfs), which its journal does not
    /// say: whatever is in the new chunks is found without this, but not how much there is room for.
    ///
    /// # Errors
    /// As [`refresh`](Self::refresh).
    pub fn regrow(&mut self) -> Result<bool> {
        Ok(!matches!(self.follow_growth()?, Change::Nothing))
    }

    /// As [`regrow`](Self::regrow), and says what changed.
    fn follow_growth(&mut self) -> Result<Change> {
        let first = load::read_first_header(&mut self.device)?;
        if first.chunks.get() as usize == self.metadata.headers().len() { self.follow() } else { self.reload() }
    }

    /// As [`refresh`](Self::refresh), and says what changed.
    fn follow(&mut self) -> Result<Change> {
        let latest = load::read_leader(&mut self.device);
        if latest.as_ref().is_ok_and(|latest| *latest == self.leader) {
            return Ok(Change::Nothing);
        }
        if let Ok(changed) = latest.and_then(|latest| self.catch_up(latest)) {
            return Ok(Change::Objects(changed));
        }
        // Trimmed meanwhile, overwritten meanwhile, grown meanwhile, or damaged: loading finds out.
        self.reload()
    }

    fn reload(&mut self) -> Result<Change> {
        let loaded = load::load(&mut self.device, Load::default())?;
        (self.metadata, self.journal, self.leader) = (loaded.metadata, loaded.journal, loaded.leader);
        Ok(Change::All)
    }

    /// Applies the transactions between what is known and `latest`, all or none. Returns the objects that they changed.
    fn catch_up(&mut self, latest: LeaderRecord) -> Result<Vec<Object>> {
        let mut changed = Vec::new();
        let from = (self.leader.head, self.leader.head_lsn);
        self.journal.scan(&mut self.device, from, &latest, |entry, at| {
            self.metadata.expect(&entry.object, at)?;
            changed.push(entry.object.clone());
            Ok(())
        })?;
        for object in &changed {
            self.metadata.put(object);
        }
        self.leader = latest;
        Ok(changed)
    }

    /// What the metadata say.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The leader record that the metadata are of.
    #[must_use]
    pub fn leader(&self) -> &LeaderRecord {
        &self.leader
    }

    /// Where the journal lies.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The device that it is on.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The device, to read from it what is not in a file.
    pub fn device_mut(&mut self) -> &mut Device {
        &mut self.device
    }

    /// Fills `into` from byte `offset` of a file on. Returns how many bytes there were: fewer than asked for only at the end
    /// of the file. What was never written reads as zeroes.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub fn read(&mut self, file: &FileMap, offset: u64, into: &mut [u8]) -> Result<usize> {
        data::read(&mut self.device, file, offset, into)
    }
}
