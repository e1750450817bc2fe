//! Disk images: made whole or not at all, and proven to be what they are said to be.
//!
//! An image is *written* by default: every block has been written once, so that reads and writes are those of the disk,
//! and nothing a database believes durable hangs on a change of metadata still in a journal. [`create()`] fills it,
//! [`grow()`] makes it larger in place, [`verify()`] looks at what became of it.

mod access;
mod allocate;
mod create;
mod fill;
mod grow;
mod partial;
mod read;
mod space;
mod verify;

use std::fmt;
use std::time::Instant;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::TimeValLike;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::units::ByteSize;

pub use allocate::Allocation;
pub use create::{CreateOptions, Created, create};
pub use fill::Method;
pub use grow::{GrowOptions, Grown, grow, unfinished_grow};
pub use verify::{Checks, Verified, ZeroCheck, verify};

/// The size of an image is a multiple of this: the largest logical block that a loop device gives it.
pub const SIZE_UNIT: ByteSize = ByteSize::kib(4);

/// How the space of an image is set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Prealloc {
    /// Every block is written once: what is measured later is the disk.
    #[default]
    Written,
    /// Space is set aside, and nothing written.
    Reserved,
    /// Nothing at all but a size.
    Sparse,
}

impl Prealloc {
    /// What an image in this state costs later, if anything.
    #[must_use]
    pub fn cost(self) -> Option<&'static str> {
        match self {
            Self::Written => None,
            Self::Reserved => Some(
                "until a block is written its reads come from nowhere, not from the disk, and its first write converts \
                 an extent as well: about half the random writes per second, and a third with fsync",
            ),
            Self::Sparse => Some(
                "no space is set aside, so any later write may fail for want of it; until a block is written its reads \
                 come from nowhere, and its first write allocates, in whatever order blocks happen to be written",
            ),
        }
    }
}

impl fmt::Display for Prealloc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Written => "written",
            Self::Reserved => "reserved",
            Self::Sparse => "sparse",
        })
    }
}

/// Refuses what cannot be the size of an image, on any file system.
fn check_size(size: ByteSize) -> Result<()> {
    let bad = |why: &str| Err(Error::invalid(format!("an image cannot be {} bytes: {why}", size.bytes())));
    if size == ByteSize::ZERO {
        return bad("that is nothing");
    }
    if !size.is_multiple_of(SIZE_UNIT) {
        return bad(&format!("it must be a multiple of {SIZE_UNIT}, the largest block of a loop device"));
    }
    if i64::try_from(size.bytes()).is_err() {
        return bad("no file can be so large");
    }
    // The kernel would not only refuse to go beyond this, but end the process with SIGXFSZ.
    let limit = getrlimit(Resource::RLIMIT_FSIZE).map_or(u64::MAX, |(soft, _)| soft);
    if size.bytes() > limit {
        return Err(Error::invalid(format!(
            "an image cannot be {size}: this process may not make files of more than {}",
            ByteSize::new(limit)
        ))
        .with_hint("raise the limit: ulimit -f unlimited"));
    }
    Ok(())
}

/// What something took: wall time, and the CPU time of this process.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cost {
    /// Wall time in seconds.
    pub elapsed_s: f64,
    /// CPU seconds of this process, user and system.
    pub cpu_s: f64,
    /// Bytes per second of wall time.
    pub bytes_per_s: u64,
}

impl fmt::Display for Cost {
    /// `in 11.20 s (1.79 GiB/s, 3 % of one core)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = ByteSize::new(self.bytes_per_s);
        let core = if self.elapsed_s > 0.0 { 100.0 * self.cpu_s / self.elapsed_s } else { 0.0 };
        f.pad(&format!("in {:.2} s ({rate}/s, {core:.0} % of one core)", self.elapsed_s))
    }
}

/// Started before something, asked after it what it took.
#[derive(Debug)]
struct Meter {
    start: Instant,
    cpu_s: f64,
}

impl Meter {
    fn start() -> Self {
        Self { start: Instant::now(), cpu_s: cpu_seconds() }
    }

    fn cost(&self, bytes: ByteSize) -> Cost {
        let elapsed_s = self.start.elapsed().as_secs_f64();
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate, for people"
        )]
        let bytes_per_s = if elapsed_s > 0.0 { (bytes.bytes() as f64 / elapsed_s) as u64 } else { 0 };
        Cost { elapsed_s, cpu_s: cpu_seconds() - self.cpu_s, bytes_per_s }
    }
}

fn cpu_seconds() -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "microseconds of CPU time fit")]
    getrusage(UsageWho::RUSAGE_SELF).map_or(0.0, |usage| {
        (usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64 / 1e6
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn impossible_sizes_are_refused_with_the_reason() {
        for (bytes, why) in [
            (0, "an image cannot be 0 bytes: that is nothing"),
            (4095, "it must be a multiple of 4 KiB, the largest block of a loop device"),
            (u64::MAX - 4095, "no file can be so large"),
        ] {
            let error = check_size(ByteSize::new(bytes)).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
            assert_eq!(error.kind(), crate::ErrorKind::InvalidInput);
        }
    }

    proptest! {
        #[test]
        fn a_size_is_a_multiple_of_4096_that_a_file_can_have(bytes: u64) {
            let possible = bytes > 0 && bytes.is_multiple_of(4096) && i64::try_from(bytes).is_ok();
            prop_assert_eq!(check_size(ByteSize::new(bytes)).is_ok(), possible);
            let rounded = (bytes >> 20) * 4096;
            prop_assert_eq!(check_size(ByteSize::new(rounded)).is_ok(), rounded > 0);
        }
    }
}
