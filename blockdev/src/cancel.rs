//! Being asked to stop: Ctrl-C, SIGTERM and SIGHUP set a flag that everything long looks at between two I/Os.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};

/// How long after the first signal a second one is taken for impatience. What ends a whole process group (`timeout`, a
/// service manager) often sends the same signal twice at once.
const PATIENCE: Duration = Duration::from_secs(1);

/// A flag that says "stop, and give back what you took". Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// A flag that only [`Cancel::cancel`] sets.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A flag that SIGINT, SIGTERM and SIGHUP set. Another signal a second later or more ends the process at once with
    /// status 130, for the case that giving back hangs.
    ///
    /// # Errors
    /// When a signal handler cannot be installed.
    pub fn on_signals() -> Result<Self> {
        let cancel = Self::new();
        let installed = Instant::now();
        let first = Arc::new(AtomicU64::new(u64::MAX));
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            let (flag, first) = (Arc::clone(&cancel.0), Arc::clone(&first));
            let handle = move || {
                let now = u64::try_from(installed.elapsed().as_millis()).unwrap_or(u64::MAX);
                let since = now.saturating_sub(first.fetch_min(now, Ordering::AcqRel));
                if flag.swap(true, Ordering::AcqRel) && u128::from(since) >= PATIENCE.as_millis() {
                    signal_hook::low_level::exit(130);
                }
            };
            // SAFETY: the handler only reads the clock, changes atomics and calls _exit, all safe in a signal handler.
            unsafe { signal_hook::low_level::register(signal, handle) }
                .context(|| format!("cannot handle signal {signal}"))?;
        }
        Ok(cancel)
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
