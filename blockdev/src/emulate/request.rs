//! The words of the served disk: what can be asked of it, and what comes back.

use nix::errno::Errno;

use crate::engine::Lent;
use crate::units::{ByteOffset, ByteRange, ByteSize};

/// Something asked of the disk. Offsets and lengths are whole sectors inside the disk, or the answer is `EINVAL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Fill memory from the disk.
    Read {
        /// Where on the disk.
        offset: ByteOffset,
        /// Where to, and how much.
        memory: Lent,
    },
    /// Write memory to the disk.
    Write {
        /// Where on the disk.
        offset: ByteOffset,
        /// Where from, and how much.
        memory: Lent,
        /// Whether the answer waits until it is durable: forced unit access.
        fua: bool,
    },
    /// Make durable whatever was answered before this was asked.
    Flush,
    /// Say that a range is no longer needed. It may read as anything afterwards; here, as zeroes where that costs nothing.
    Trim {
        /// Which.
        range: ByteRange,
        /// Whether the answer waits until it is durable.
        fua: bool,
    },
    /// Make a range read as zeroes.
    WriteZeroes {
        /// Which.
        range: ByteRange,
        /// Whether its blocks stay, or become, allocated and written, rather than a hole.
        allocate: bool,
        /// Whether the answer waits until it is durable.
        fua: bool,
    },
}

impl Request {
    /// What it does.
    #[must_use]
    pub fn operation(&self) -> Operation {
        match self {
            Self::Read { .. } => Operation::Read,
            Self::Write { .. } => Operation::Write,
            Self::Flush => Operation::Flush,
            Self::Trim { .. } => Operation::Trim,
            Self::WriteZeroes { .. } => Operation::WriteZeroes,
        }
    }

    /// Which bytes of the disk it is about; none for a flush. Nothing where they end beyond 64 bits.
    #[must_use]
    pub fn range(&self) -> Option<ByteRange> {
        match *self {
            Self::Read { offset, memory } | Self::Write { offset, memory, .. } => {
                ByteRange::new(offset, ByteSize::new(u64::from(memory.len()))).ok()
            }
            Self::Trim { range, .. } | Self::WriteZeroes { range, .. } => Some(range),
            Self::Flush => Some(ByteRange::from_start(ByteSize::ZERO)),
        }
    }

    /// Whether its answer waits until what it did is durable.
    #[must_use]
    pub fn fua(&self) -> bool {
        match self {
            Self::Write { fua, .. } | Self::Trim { fua, .. } | Self::WriteZeroes { fua, .. } => *fua,
            Self::Read { .. } | Self::Flush => false,
        }
    }
}

/// The sorts of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// [`Request::Read`].
    Read,
    /// [`Request::Write`].
    Write,
    /// [`Request::Flush`].
    Flush,
    /// [`Request::Trim`].
    Trim,
    /// [`Request::WriteZeroes`].
    WriteZeroes,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Read, Self::Write, Self::Flush, Self::Trim, Self::WriteZeroes];

    /// Its name, as in JSON and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Trim => "trim",
            Self::WriteZeroes => "write-zeroes",
        }
    }

    /// Whether it may change what is on the disk.
    #[must_use]
    pub fn changes(self) -> bool {
        matches!(self, Self::Write | Self::Trim | Self::WriteZeroes)
    }
}

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// What the request was submitted with.
    pub tag: u64,
    /// Whether it was done.
    pub outcome: Outcome,
}

/// What came of a request; an error is what a block device would say.
pub type Outcome = std::result::Result<(), Errno>;
