//! The semaphore of glibc that a client sleeps on. It is only a sleep aid: that the answer is there, the slot's word says.
//!
//! On x86-64 it is, since glibc 2.21, a word whose low half is the value and whose high half counts those who wait, and after
//! it whether it is for one process only. Posting adds one and wakes one who waits on the low half.

use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Bytes that it takes.
pub const SIZE: usize = 32;

/// What glibc sets where several processes share it.
const SHARED: i32 = 128;

/// A semaphore in shared memory.
#[derive(Debug)]
#[repr(C, align(8))]
pub struct Semaphore {
    state: AtomicU64,
    private: AtomicI32,
    _unused: [AtomicU32; 5],
}

const _: () = assert!(size_of::<Semaphore>() == SIZE);

impl Semaphore {
    /// Makes it new, with value 0. For whoever has the slot, and nobody waits on it.
    pub fn init(&self) {
        self.private.store(SHARED, Ordering::Relaxed);
        self.state.store(0, Ordering::Release);
    }

    /// Its value.
    fn low(&self) -> *mut u32 {
        // Little-endian: the low half comes first.
        self.state.as_ptr().cast()
    }

    /// Adds one, and wakes one who waits.
    pub fn post(&self) {
        if self.state.fetch_add(1, Ordering::Release) >> 32 > 0 {
            // SAFETY: the word is mapped as long as `self` is borrowed; waking reads nothing of it.
            unsafe { libc::syscall(libc::SYS_futex, self.low(), libc::FUTEX_WAKE, 1) };
        }
    }

    /// Takes one, waiting for no longer than `timeout` until there is one, or somebody woke it for another reason. Returns
    /// whether it took one.
    pub fn wait(&self, timeout: Duration) -> bool {
        if self.try_take() {
            return true;
        }
        self.state.fetch_add(1 << 32, Ordering::AcqRel);
        let timeout = libc::timespec {
            tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        // SAFETY: the word is mapped as long as `self` is borrowed, and so is the time for the call. Where the value is no
        // longer 0, the kernel returns at once.
        unsafe { libc::syscall(libc::SYS_futex, self.low(), libc::FUTEX_WAIT, 0, &raw const timeout) };
        let taken = self.try_take();
        self.state.fetch_sub(1 << 32, Ordering::AcqRel);
        taken
    }

    fn try_take(&self) -> bool {
        let take = |state: u64| (state.cast_truncated() > 0).then(|| state - 1);
        self.state.fetch_update(Ordering::AcqRel, Ordering::Relaxed, take).is_ok()
    }
}

trait Truncate {
    fn cast_truncated(self) -> u32;
}

impl Truncate for u64 {
    #[allow(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
    fn cast_truncated(self) -> u32 {
        self as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn semaphore() -> Box<Semaphore> {
        let semaphore = Box::new(Semaphore {
            state: AtomicU64::new(77),
            private: AtomicI32::new(0),
            _unused: std::array::from_fn(|_| AtomicU32::new(0)),
        });
        semaphore.init();
        semaphore
    }

    #[test]
    fn one_is_taken_for_each_that_was_posted() {
        let semaphore = semaphore();
        assert!(!semaphore.wait(Duration::from_millis(1)));
        semaphore.post();
        semaphore.post();
        assert!(semaphore.wait(Duration::ZERO));
        assert!(semaphore.wait(Duration::ZERO));
        assert!(!semaphore.wait(Duration::ZERO));
        assert_eq!(semaphore.state.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn glibc_and_this_wake_each_other() {
        let semaphore = semaphore();
        let glibc = (&raw const *semaphore).cast_mut().cast::<libc::sem_t>();
        // SAFETY: it is laid out as glibc's.
        assert_eq!(unsafe { libc::sem_post(glibc) }, 0);
        assert!(semaphore.wait(Duration::ZERO));
        let woken = std::thread::scope(|scope| {
            let address = glibc as usize;
            // SAFETY: as above.
            let waiter = scope.spawn(move || unsafe { libc::sem_wait(address as *mut libc::sem_t) });
            let started = Instant::now();
            while semaphore.state.load(Ordering::Relaxed) >> 32 == 0 && started.elapsed() < Duration::from_secs(10) {
                std::thread::yield_now();
            }
            semaphore.post();
            waiter.join().unwrap()
        });
        assert_eq!(woken, 0);
    }
}
