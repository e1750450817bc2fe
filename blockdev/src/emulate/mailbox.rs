//! How one thread tells another that something it waits for has happened.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::request::Outcome;
use crate::error::{Context, Result};

/// What is in a letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Letter {
    /// Job `job` has been done elsewhere.
    Done {
        /// Its number at the port.
        job: u32,
        /// What came of it.
        outcome: Outcome,
    },
    /// What job `job` waited for is there: it may go on.
    GoOn {
        /// Its number at the port.
        job: u32,
    },
    /// Something about the disk has changed: look again.
    Look,
}

/// Letters for one port, and a counter that its thread can watch.
#[derive(Debug)]
pub(super) struct Mailbox {
    letters: Mutex<Vec<Letter>>,
    full: AtomicBool,
    counter: EventFd,
}

/// No code panics while holding one of our locks; should it ever, the data is still whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mailbox {
    pub(super) fn new() -> Result<Self> {
        let counter = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .context(|| "cannot make an event counter")?;
        Ok(Self { letters: Mutex::default(), full: AtomicBool::new(false), counter })
    }

    pub(super) fn send(&self, letter: Letter) {
        let mut letters = lock(&self.letters);
        letters.push(letter);
        if !self.full.swap(true, Ordering::AcqRel) {
            // It fails only when it would overflow, and then it is set.
            let _ = self.counter.write(1);
        }
    }

    /// Whether something has come.
    pub(super) fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    /// Appends what has come.
    pub(super) fn take(&self, letters: &mut Vec<Letter>) {
        let mut waiting = lock(&self.letters);
        // Not set is as good.
        let _ = self.counter.read();
        self.full.store(false, Ordering::Release);
        letters.append(&mut waiting);
    }
}

impl AsFd for Mailbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.counter.as_fd()
    }
}
