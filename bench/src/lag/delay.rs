//! A delay that is known: what calibration adds to a reader's lag, to find it again.

use std::time::{Duration, Instant};

use blockdev::{Cancel, Error, ErrorKind, Result};
use tokio::runtime::Runtime;
use tokio_postgres::Client;

use super::clock::nanos;
use super::nodes::Endpoint;
use super::samples::Sample;
use super::tally::count;
use super::{PATIENCE, runtime};
use crate::report::{Finding, Severity};

/// A calibration finds its delay to within this.
const CALIBRATED_NS: f64 = 2e6;

/// A reader that waits before it replays a commit (`recovery_min_apply_delay`), until this is dropped.
///
/// PostgreSQL counts the delay from the time in the commit's record, which is taken after the transaction was sent and
/// before its record is flushed.
pub(super) struct Delayed {
    runtime: Runtime,
    client: Client,
    reader: Endpoint,
    restored: bool,
}

impl Delayed {
    /// Lets `reader` wait for `delay`.
    ///
    /// # Errors
    /// When we may not, or it has no such parameter.
    pub(super) fn new(reader: &Endpoint, delay: Duration, cancel: &Cancel) -> Result<Self> {
        let runtime = runtime()?;
        let client = runtime.block_on(reader.connect())?;
        // From here on it is restored, whatever happens.
        let delayed = Self { runtime, client, reader: reader.clone(), restored: false };
        delayed.set(&format!("SET recovery_min_apply_delay = '{}ms'", delay.as_millis()))?;
        delayed.wait_for(delay.as_millis(), cancel)?;
        Ok(delayed)
    }

    /// Lets the reader be as it was.
    ///
    /// # Errors
    /// When it is gone.
    pub(super) fn restore(mut self) -> Result<()> {
        self.reset()
    }

    fn reset(&mut self) -> Result<()> {
        self.restored = true;
        self.set("RESET recovery_min_apply_delay").map_err(|error| {
            error.with_hint(
                "ALTER SYSTEM RESET recovery_min_apply_delay and SELECT pg_reload_conf() there do what is left",
            )
        })
    }

    fn set(&self, change: &str) -> Result<()> {
        self.runtime.block_on(async {
            // Each by itself: ALTER SYSTEM takes no part in a transaction.
            let changed = self.client.batch_execute(&format!("ALTER SYSTEM {change}")).await;
            changed.map_err(|error| self.reader.failed("cannot change the delay of", error))?;
            let reloaded = self.client.batch_execute("SELECT pg_reload_conf()").await;
            reloaded.map_err(|error| self.reader.failed("cannot reload the configuration of", error))
        })
    }

    fn wait_for(&self, milliseconds: u128, cancel: &Cancel) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let asked = "SELECT setting FROM pg_settings WHERE name = 'recovery_min_apply_delay'";
            let row = self.runtime.block_on(self.client.query_one(asked, &[]));
            let row = row.map_err(|error| self.reader.failed("cannot ask for the delay of", error))?;
            if row.get::<_, &str>(0) == milliseconds.to_string() {
                return Ok(());
            }
            cancel.check("bench lag")?;
            if Instant::now() >= deadline {
                let text = format!("{} does not take recovery_min_apply_delay", self.reader.name);
                return Err(Error::new(ErrorKind::Unsupported, text)
                    .with_hint("is it set in its postgresql.conf or on its command line?"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Delayed {
    fn drop(&mut self) {
        if !self.restored {
            // On the way out with another error, which is the one to be told.
            let _ = self.reset();
        }
    }
}

/// What a calibration found of `delay`, and what that says. PostgreSQL counts the delay from a moment between the sending of
/// a transaction and the flush of its commit, so it is looked for from the sending. What PostgreSQL adds by itself is part of
/// what is found: it sleeps whole milliseconds, rounded up, and then has a commit to replay.
pub(super) fn calibration(samples: &[Sample], delay: Duration, reader: &str) -> (Option<f64>, Option<Finding>) {
    let mut found: Vec<u64> = samples.iter().filter_map(Sample::since_sent).collect();
    found.sort_unstable();
    let Some(median) = found.get(found.len() / 2).map(|ns| count(*ns)) else { return (None, None) };
    let off = median - count(nanos(delay));
    let text = format!(
        "A delay of {delay:?} on {reader} was found as {:.2} ms, {:+.2} ms off (median of {}).",
        median / 1e6,
        off / 1e6,
        found.len()
    );
    let finding = if off.abs() <= CALIBRATED_NS {
        Finding::new(Severity::Note, "calibrated", text)
    } else {
        Finding::new(Severity::Warning, "not-calibrated", text)
            .with_hint("the machine is busy, or the disk slow: try again")
    };
    (Some(median), Some(finding))
}

#[cfg(test)]
mod tests {
    use super::super::samples::{Fate, Written};
    use super::*;

    /// One that was acknowledged 1 µs after it was sent, and seen after `lag`, when the look before was 10 ns old.
    fn sample(lag: u64) -> Sample {
        let written = Written { intended: 0, sent: 0, acknowledged: Some(1000) };
        Sample { written, fate: Fate::Seen { missed: 1000 + lag - 10, seen: 1000 + lag } }
    }

    #[test]
    fn a_calibration_counts_from_the_sending() {
        let delay = Duration::from_millis(50);
        let (found, finding) = calibration(&[sample(51_000_000)], delay, "r");
        assert_eq!(found, Some(51_000_995.0));
        assert_eq!(finding.unwrap().text, "A delay of 50ms on r was found as 51.00 ms, +1.00 ms off (median of 1).");
        let (_, finding) = calibration(&[sample(53_000_000)], delay, "r");
        assert_eq!(finding.unwrap().id, "not-calibrated");
        assert_eq!(calibration(&[], delay, "r"), (None, None));
    }
}
