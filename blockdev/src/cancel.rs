//! Being asked to stop: Ctrl-C, SIGTERM and SIGHUP set a flag that everything long looks at between two I/Os.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Context, Error, Result};

/// A flag that says "stop, and give back what you took". Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// A flag that only [`Cancel::cancel`] sets.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A flag that SIGINT, SIGTERM and SIGHUP set. A second signal of the same kind ends the process at once with
    /// status 130, for the case that giving back hangs.
    ///
    /// # Errors
    /// When a signal handler cannot be installed.
    pub fn on_signals() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            // The order matters: the first signal finds the flag unset, sets it, and so arms the shutdown for the second.
            signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&flag))
                .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&flag)))
                .context(|| format!("cannot handle signal {signal}"))?;
        }
        Ok(Self(flag))
    }

    /// Asks everything that holds this flag to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether somebody asked to stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// An error of kind [`Interrupted`](crate::ErrorKind::Interrupted) once somebody asked to stop.
    ///
    /// # Errors
    /// When cancelled; `what` says what was interrupted.
    pub fn check(&self, what: &str) -> Result<()> {
        if self.is_cancelled() { Err(Error::interrupted(format!("{what}: interrupted"))) } else { Ok(()) }
    }
}
