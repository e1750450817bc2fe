//! One clock for all threads of a measurement, and sleeping precisely on it.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use blockdev::{Context, Error, Result};
use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Nanoseconds of the monotonic clock since a measurement began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock(Instant);

impl Clock {
    /// A clock that begins now.
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    /// What it is now.
    pub(super) fn now(self) -> u64 {
        nanos(self.0.elapsed())
    }
}

/// A duration in nanoseconds; 584 years are enough.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A timer that wakes a task within microseconds: that of the runtime counts in milliseconds.
#[derive(Debug)]
pub(super) struct Timer(AsyncFd<Descriptor>);

/// A timerfd as the runtime wants it.
#[derive(Debug)]
struct Descriptor(TimerFd);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Timer {
    /// A timer of the runtime that this is called in.
    pub(super) fn new() -> Result<Self> {
        let failed = || "cannot make a timer";
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).context(failed)?;
        // SAFETY: the descriptor is open, and nobody replaces or closes it while it is owned by the `AsyncFd`.
        let registered = unsafe { AsyncFd::register_with_interest(Descriptor(timer), Interest::READABLE) };
        registered.map(Self).map_err(|error| Error::io(failed(), error))
    }

    /// Waits for `span`.
    pub(super) async fn sleep(&self, span: Duration) -> Result<()> {
        // A timer of no time never ends.
        if span.is_zero() {
            return Ok(());
        }
        let failed = || "cannot wait for a timer";
        let timer = &self.0.get_ref().0;
        timer.set(Expiration::OneShot(TimeSpec::from_duration(span)), TimerSetTimeFlags::empty()).context(failed)?;
        loop {
            let mut ready = self.0.readable().await.map_err(|source| Error::io(failed(), source))?;
            match timer.wait() {
                Err(Errno::EAGAIN) => ready.clear_ready(),
                outcome => {
                    ready.clear_ready();
                    return outcome.context(failed);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_is_never_too_short_and_comes_again() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(async {
            let timer = Timer::new().unwrap();
            for span in [Duration::ZERO, Duration::from_micros(300), Duration::from_millis(2)] {
                let clock = Clock::start();
                timer.sleep(span).await.unwrap();
                assert!(clock.now() >= nanos(span));
            }
        });
    }
}
