//! How one thread tells another that something it waits for has happened.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::error::{Context, Result};

/// What is in a letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Letter {
    /// Something about the disk has changed: look again.
    Look,
}

/// Letters for one port, and a counter that its thread can watch.
#[derive(Debug)]
pub(super) struct Mailbox {
    letters: Mutex<Vec<Letter>>,
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
        Ok(Self { letters: Mutex::default(), counter })
    }

    pub(super) fn send(&self, letter: Letter) {
        lock(&self.letters).push(letter);
        // It fails only when it would overflow, and then it is set.
        let _ = self.counter.write(1);
    }

    /// Appends what has come.
    pub(super) fn take(&self, letters: &mut Vec<Letter>) {
        // Not set is as good.
        let _ = self.counter.read();
        letters.append(&mut lock(&self.letters));
    }
}

impl AsFd for Mailbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.counter.as_fd()
    }
}
