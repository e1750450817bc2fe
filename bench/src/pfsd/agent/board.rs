//! A few words that the clients of a load and who watches them share, whether those are threads or processes.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use blockdev::{Context, Result};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use nix::time::{ClockId, clock_gettime};

use crate::load::nanos;

/// How often it is looked at while nothing happens.
pub(super) const LOOK: Duration = Duration::from_micros(50);

/// Memory of this process and of the children that it has from then on.
#[derive(Debug)]
pub(super) struct Board(NonNull<Words>);

#[derive(Debug)]
#[repr(C)]
struct Words {
    /// How many clients are ready to begin.
    ready: AtomicU32,
    /// Whether all are to stop.
    stop: AtomicBool,
    /// When all began; 0 as long as they have not.
    epoch: AtomicU64,
}

// SAFETY: what is shared are atomics.
unsafe impl Send for Board {}
// SAFETY: as above.
unsafe impl Sync for Board {}

impl Board {
    /// An empty one.
    ///
    /// # Errors
    /// When there is no memory.
    pub(super) fn new() -> Result<Self> {
        let length = std::num::NonZero::new(size_of::<Words>()).expect("it has fields"); // as one sees
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: new memory, of nobody else.
        let memory = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_SHARED) };
        Ok(Self(memory.context(|| "cannot share memory with clients")?.cast()))
    }

    fn words(&self) -> &Words {
        // SAFETY: mapped for as long as `self` lives; zeroes are valid words, and a page is aligned for them.
        unsafe { self.0.as_ref() }
    }

    /// A client: it is ready. Waits until all begin; false when they will not.
    pub(super) fn is_ready(&self) -> bool {
        let words = self.words();
        words.ready.fetch_add(1, Ordering::AcqRel);
        while words.epoch.load(Ordering::Acquire) == 0 {
            if self.is_stopped() {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        true
    }

    /// How many are ready.
    pub(super) fn ready(&self) -> u32 {
        self.words().ready.load(Ordering::Acquire)
    }

    /// Lets all begin now.
    ///
    /// # Errors
    /// When the clock cannot be read.
    pub(super) fn begin(&self) -> Result<()> {
        self.words().epoch.store(clock()?.max(1), Ordering::Release);
        Ok(())
    }

    /// Nanoseconds since all began; 0 as long as they have not.
    ///
    /// # Errors
    /// When the clock cannot be read.
    #[inline]
    pub(super) fn now(&self) -> Result<u64> {
        let epoch = self.words().epoch.load(Ordering::Relaxed);
        if epoch == 0 { Ok(0) } else { Ok(clock()?.saturating_sub(epoch)) }
    }

    /// Asks all to stop.
    pub(super) fn stop(&self) {
        self.words().stop.store(true, Ordering::Release);
    }

    /// Whether all are to stop.
    #[inline]
    pub(super) fn is_stopped(&self) -> bool {
        self.words().stop.load(Ordering::Relaxed)
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, and nobody borrows it any more. That memory is left over at worst harms nobody.
        let _ = unsafe { munmap(self.0.cast(), size_of::<Words>()) };
    }
}

/// The clock that all processes share, in nanoseconds.
fn clock() -> Result<u64> {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(|time| nanos(time.into())).context(|| "cannot read the clock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_begin_together_and_stop_together() {
        let board = Board::new().unwrap();
        assert_eq!(board.now().unwrap(), 0);
        std::thread::scope(|scope| {
            let clients = [0; 3].map(|_| scope.spawn(|| board.is_ready()));
            while board.ready() < 3 {
                std::thread::yield_now();
            }
            assert!(clients.iter().all(|client| !client.is_finished()));
            board.begin().unwrap();
            assert!(clients.into_iter().all(|client| client.join().unwrap()));
        });
        assert!(board.now().unwrap() > 0 && !board.is_stopped());
        let other = Board::new().unwrap();
        other.stop();
        assert!(!other.is_ready());
    }
}
