//! What a process of the database and `pfsd` say to each other, as bytes: in shared memory, and in a small file that a
//! client makes to be let in. Both sides stand on this; nothing here waits, and nothing here decides.
//!
//! A client puts a *request* into a *slot* of shared memory, `pfsd` answers there, and the client takes the answer. Slots
//! lie in *channels*, channels in seven *regions*, by the size of the buffer that each slot has. There is no doorbell:
//! `pfsd` looks for what is there; a semaphore in the slot wakes the client.
//!
//! - [`places`]: where the files are; [`handshake`]: how a client is let in;
//! - [`geometry`]: where in shared memory what lies; [`memory`]: the memory itself;
//! - [`slot`]: who may do what to a slot when;
//! - [`request`] and [`response`]: what is said.
//!
//! Whatever the other side wrote is read once and copied before it is looked at, and believed no more than a disk is.
//!
//! The facts are those of PolarFS for PolarDB, release `pfsd4pg-release-1.2.42-20220419`, on x86-64 with glibc, taken from
//! its headers and from the traffic of its own programs.

pub mod geometry;
pub mod handshake;
pub mod memory;
pub mod places;
mod record;
pub mod request;
pub mod response;
pub mod semaphore;
mod shared;
pub mod slot;

use std::fmt;

use serde::{Serialize, Serializer};

pub use geometry::{ChannelNo, RegionNo, SlotNo};
pub use handshake::{Ack, MountRequest};
pub use memory::{Channel, Memory, Region, Slot};
pub use places::Places;
pub use request::{FileId, Header, OpenFlags, Request, Whence};
pub use response::{FileType, Reply, WireStat};
pub use slot::{Owner, SlotState, SlotWord};

/// The version of all this, in the client's file and in the header of each region.
pub const VERSION: u32 = 2;

/// The only kind of storage that there is here; the original has others, for which it was not published.
pub const CLUSTER: &str = "disk";

/// Most bytes in the name of a disk or cluster, without the NUL that ends it.
pub const DISK_NAME_MAX: usize = 63;

/// Most bytes that one request can read or write.
pub const IO_MAX: usize = 4 << 20;

/// Which connection of a daemon: 1 to 15. Even ones are databases', odd ones tools'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ConnectionId(u8);

impl ConnectionId {
    /// The largest.
    pub const MAX: u8 = 15;

    /// Connection `id`, if there can be one.
    #[must_use]
    pub const fn new(id: i32) -> Option<Self> {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in range, as was just seen")]
        if id >= 1 && id <= Self::MAX as i32 { Some(Self(id as u8)) } else { None }
    }

    /// All that tools can have, or all that databases can, the lowest first.
    pub fn all(tools: bool) -> impl Iterator<Item = Self> {
        (1..=Self::MAX).filter(move |id| (id % 2 == 1) == tools).map(Self)
    }

    /// Whether it is a tool's. Those may be in another pid namespace: nobody asks whether their process lives.
    #[must_use]
    pub const fn is_tool(self) -> bool {
        self.0 % 2 == 1
    }

    /// Its number.
    #[must_use]
    pub const fn raw(self) -> u8 {
        self.0
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which mount of a daemon a request is for. A daemon that was started anew has another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MountId(pub i32);

/// How often a client asked to mount: an answer of the same epoch is the answer to this.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MountEpoch(pub u32);

/// How often a daemon took the shared memory over, times two. What was asked of an earlier one carries a smaller epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShmEpoch(pub u32);

/// How a client mounts.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct MountFlags(u32);

impl MountFlags {
    /// Read.
    pub const READ: Self = Self(0x1);
    /// Write.
    pub const WRITE: Self = Self(0x2);
    /// Take the journal into account; everybody does.
    pub const LOG: Self = Self(0x10);
    /// The daemon mounts, and not the process itself. It adds this.
    pub const PFSD: Self = Self(0x100);
    /// A tool mounts, and not a database.
    pub const TOOL: Self = Self(0x1000);
    /// A database that is promoted. Has no effect in the original.
    pub const FORCE: Self = Self(0x20_0000);
    /// What a replica mounts with.
    pub const READ_ONLY: Self = Self(0x11);
    /// What a primary mounts with.
    pub const READ_WRITE: Self = Self(0x13);

    /// The flags that are set in `bits`, whatever they mean.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// As they stand in the file.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether all of `other` are set.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// With those of `other`.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Without those of `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl fmt::Debug for MountFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Serialize for MountFlags {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.0)
    }
}
