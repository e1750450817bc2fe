//! What the clients of a pfsd do, and for how long.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use blockdev::{ByteRange, ByteSize, Error, Result};
use pfs::proto::IO_MAX;
use serde::{Deserialize, Serialize};

use crate::load::{self, Pattern, RATE_MAX, RUNTIME_MIN};

/// Most clients at once: every channel of a pfsd has room for a request of each of so many.
pub const CLIENTS_MAX: u32 = 256;

/// The largest block: what one request can carry.
pub const BLOCK_MAX: ByteSize = ByteSize::new(IO_MAX as u64);

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rw {
    /// Sequential reads: each client has a part of the file for itself.
    Read,
    /// Sequential writes.
    Write,
    /// Random reads, of the whole file.
    RandRead,
    /// Random writes.
    RandWrite,
    /// Random reads and writes, mixed.
    RandRw,
    /// Writes at the end of a file of each client's own, which grows.
    Append,
    /// Names: each client makes a file, looks at it, gives it another name and removes it.
    Meta,
}

impl Rw {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Read, Self::Write, Self::RandRead, Self::RandWrite, Self::RandRw, Self::Append, Self::Meta];

    /// Its name: what [`FromStr`] takes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::Meta => "meta",
            other => other.pattern().map_or("", Pattern::name),
        }
    }

    /// The access pattern of a disk that is the same; appends and names have none.
    #[must_use]
    pub fn pattern(self) -> Option<Pattern> {
        Some(match self {
            Self::Read => Pattern::Read,
            Self::Write => Pattern::Write,
            Self::RandRead => Pattern::RandRead,
            Self::RandWrite => Pattern::RandWrite,
            Self::RandRw => Pattern::RandRw,
            Self::Append | Self::Meta => return None,
        })
    }

    /// The kinds of operation it consists of, in the order of [`Loaded::kinds`](super::agent::Loaded::kinds).
    #[must_use]
    pub fn kinds(self) -> &'static [&'static str] {
        match self {
            // In the order of `load::Kind`.
            Self::Read | Self::Write | Self::RandRead | Self::RandWrite | Self::RandRw => &["read", "write"],
            Self::Append => &["append"],
            Self::Meta => &["create", "stat", "rename", "unlink"],
        }
    }

    /// The block where nothing is said: a database's page, or what one request can carry at most.
    #[must_use]
    pub fn default_block(self) -> ByteSize {
        match self {
            Self::Read | Self::Write => BLOCK_MAX,
            Self::RandRead | Self::RandWrite | Self::RandRw | Self::Append => ByteSize::kib(8),
            Self::Meta => ByteSize::ZERO,
        }
    }
}

impl FromStr for Rw {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|rw| rw.name() == text).ok_or_else(|| {
            Error::invalid(format!("{text:?} is no access pattern"))
                .with_hint("read, write, randread, randwrite, randrw, append or meta")
        })
    }
}

impl fmt::Display for Rw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One load on a pfsd.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// What is done.
    pub rw: Rw,
    /// How many of 100 operations of [`Rw::RandRw`] are reads.
    pub read_percent: u8,
    /// Bytes in each operation; none where only names are changed.
    pub block: ByteSize,
    /// How large the file is that all read and write, and how large the files together may grow that are appended to.
    pub size: ByteSize,
    /// How many clients there are, each of which does one thing at a time.
    pub clients: u32,
    /// Whether each is a process, as those of a database are, or a thread.
    pub processes: bool,
    /// An open loop: so many operations a second start, over all clients, as a Poisson process.
    pub rate: Option<f64>,
    /// Of all that is random.
    pub seed: u64,
    /// How long it runs before anything is measured.
    pub warmup: Duration,
    /// How long is measured.
    pub runtime: Duration,
}

impl Work {
    /// The same as a load on a disk, in `region` of it and with as many operations in flight, where there is such a thing.
    #[must_use]
    pub fn on_disk(&self, region: ByteRange) -> Option<load::Work> {
        let work = load::Work::new(self.rw.pattern()?, self.block, self.clients, region);
        Some(load::Work {
            read_percent: self.read_percent,
            rate: self.rate,
            seed: self.seed,
            warmup: self.warmup,
            runtime: self.runtime,
            ..work
        })
    }

    /// How much of the file for all, or of its own, a client has for itself: whole blocks.
    #[must_use]
    pub fn share(&self) -> ByteSize {
        let blocks = self.size.bytes() / self.block.bytes().max(1) / u64::from(self.clients.max(1));
        ByteSize::new(blocks * self.block.bytes())
    }

    /// Whether it can be run at all.
    ///
    /// # Errors
    /// Says which number is out of range.
    pub fn check(&self) -> Result<()> {
        if self.clients == 0 || self.clients > CLIENTS_MAX {
            return Err(Error::invalid(format!("{} clients are not in 1 to {CLIENTS_MAX}", self.clients)));
        }
        if self.rw != Rw::Meta {
            let unit = ByteSize::new(512);
            if self.block == ByteSize::ZERO || self.block > BLOCK_MAX || !self.block.is_multiple_of(unit) {
                return Err(Error::invalid(format!(
                    "a block of {} is not in 512 B to {BLOCK_MAX}, in multiples of 512 B",
                    self.block
                )));
            }
            if self.share() == ByteSize::ZERO {
                return Err(Error::invalid(format!(
                    "a file of {} has no room for a block of {} of each of {} clients",
                    self.size, self.block, self.clients
                )));
            }
        }
        if self.read_percent > 100 {
            return Err(Error::invalid(format!("{} % reads are more than all", self.read_percent)));
        }
        if let Some(rate) = self.rate
            && !(rate > 0.0 && rate <= RATE_MAX)
        {
            return Err(Error::invalid(format!(
                "a rate of {rate} operations per second is not above 0 and at most {RATE_MAX}"
            )));
        }
        if self.runtime < RUNTIME_MIN {
            return Err(Error::invalid(format!("a runtime of {:?} is below {RUNTIME_MIN:?}", self.runtime)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work() -> Work {
        Work {
            rw: Rw::RandRead,
            read_percent: 50,
            block: ByteSize::kib(8),
            size: ByteSize::mib(1),
            clients: 16,
            processes: false,
            rate: None,
            seed: 1,
            warmup: Duration::ZERO,
            runtime: Duration::from_secs(1),
        }
    }

    #[test]
    fn names_are_parsed_and_shown() {
        for rw in Rw::ALL {
            assert_eq!(rw.to_string().parse::<Rw>().unwrap(), rw);
        }
        assert_eq!("trim".parse::<Rw>().unwrap_err().to_string(), "\"trim\" is no access pattern");
    }

    #[test]
    fn bad_input_says_which_number_and_why() {
        work().check().unwrap();
        Work { rw: Rw::Meta, block: ByteSize::ZERO, ..work() }.check().unwrap();
        for (work, why) in [
            (Work { clients: 0, ..work() }, "0 clients are not in 1 to 256"),
            (Work { clients: 257, ..work() }, "257 clients are not in 1 to 256"),
            (
                Work { block: ByteSize::mib(8), ..work() },
                "a block of 8 MiB is not in 512 B to 4 MiB, in multiples of 512 B",
            ),
            (
                Work { block: ByteSize::new(1000), ..work() },
                "a block of 1000 B is not in 512 B to 4 MiB, in multiples of 512 B",
            ),
            (
                Work { block: ByteSize::kib(128), ..work() },
                "a file of 1 MiB has no room for a block of 128 KiB of each of 16 clients",
            ),
            (Work { read_percent: 101, ..work() }, "101 % reads are more than all"),
            (
                Work { rate: Some(-1.0), ..work() },
                "a rate of -1 operations per second is not above 0 and at most 100000000",
            ),
            (Work { runtime: Duration::ZERO, ..work() }, "a runtime of 0ns is below 10ms"),
        ] {
            assert_eq!(work.check().unwrap_err().to_string(), why);
        }
    }

    #[test]
    fn the_same_load_on_a_disk_has_as_many_operations_in_flight() {
        let region = ByteRange::from_start(ByteSize::mib(1));
        let disk = work().on_disk(region).unwrap();
        disk.check().unwrap();
        assert_eq!((disk.depth, disk.jobs, disk.pattern), (16, 1, Pattern::RandRead));
        assert_eq!(Work { rw: Rw::Append, ..work() }.on_disk(region), None);
        assert_eq!(work().share(), ByteSize::kib(64));
    }
}
