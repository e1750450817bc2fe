//! What a load costs the processor.

use std::time::Duration;

use blockdev::{Context, Result};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

/// CPU time that this process spent in the measured window, over all of its threads: jobs, I/O threads and io_uring's
/// workers. What the kernel does elsewhere, such as in a loop device's own threads, is not in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cpu {
    /// In user space.
    pub user: Duration,
    /// In the kernel.
    pub system: Duration,
}

impl Cpu {
    pub(super) fn now() -> Result<Self> {
        let usage = getrusage(UsageWho::RUSAGE_SELF).context(|| "cannot ask for CPU time")?;
        let duration = |time: TimeVal| {
            Duration::new(time.tv_sec().unsigned_abs(), u32::try_from(time.tv_usec() * 1000).unwrap_or(0))
        };
        Ok(Self { user: duration(usage.user_time()), system: duration(usage.system_time()) })
    }

    pub(super) fn since(self, earlier: Self) -> Self {
        Self { user: self.user.saturating_sub(earlier.user), system: self.system.saturating_sub(earlier.system) }
    }

    /// Both together.
    #[must_use]
    pub fn total(self) -> Duration {
        self.user + self.system
    }
}
