//! Replication lag: how long after a commit on the writer does each reader see it?
//!
//! A writer commits transactions that carry numbers, and one poller for each reader looks for these numbers on a connection
//! of its own. All of it happens in this process, on one monotonic clock. A sample is an interval: the transaction became
//! visible after a look was sent that missed it, and before the answer of the first look that saw it had come; the
//! histograms count to the latter, and the report says how long a look takes and how far two of them are apart.
//!
//! *Busy* and *quiet* are different questions. A steady stream of transactions (an open loop, which starts each when its
//! time has come) wakes a reader that would otherwise sleep; so single transactions of each kind are timed, too, each after
//! a silence.

mod clock;
mod dsn;
mod nodes;
mod outcome;
mod poller;
mod probe;
mod samples;
mod scratch;
mod session;
mod watcher;
mod writer;

use std::time::{Duration, Instant};

use blockdev::{Cancel, Error, Result};
use fastrand::Rng;
use tokio::runtime::Runtime;

use crate::disk::Progress;
use crate::report::{Environment, Finding, Run, Severity};
use outcome::Outcome;
use scratch::Scratch;
use session::{Pace, Session};

pub use nodes::Nodes;
pub use probe::Probe;

/// How long something that should come at once may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The most connections that write at once.
pub const CONNECTIONS_MAX: usize = 256;

/// The most transactions of one measurement: what is noted of each takes some 50 bytes for each reader.
const TRANSACTIONS_MAX: f64 = 5e6;

/// The shortest runtime that says anything.
const RUNTIME_MIN: Duration = Duration::from_millis(100);

/// What is measured, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Whether a steady stream of transactions is measured.
    pub busy: bool,
    /// Whether single transactions after silence are.
    pub quiet: bool,
    /// Transactions a second of the steady stream: each is measured.
    pub rates: Vec<f64>,
    /// How long each stream is measured.
    pub runtime: Duration,
    /// How long it goes on before that.
    pub warmup: Duration,
    /// How many connections it has.
    pub connections: usize,
    /// How many single transactions of each kind.
    pub singles: u32,
    /// How long it is silent before each: this, and up to half as much again.
    pub silence: Duration,
    /// How long a poller rests between two looks.
    pub pause: Duration,
    /// Of all that is random.
    pub seed: u64,
}

impl Options {
    /// Whether it can be measured at all.
    ///
    /// # Errors
    /// Says which number is out of range.
    pub fn check(&self) -> Result<()> {
        if self.rates.is_empty() {
            return Err(Error::invalid("there is no rate to measure at"));
        }
        if self.runtime < RUNTIME_MIN {
            return Err(Error::invalid(format!("a runtime of {:?} is below {RUNTIME_MIN:?}", self.runtime)));
        }
        for rate in &self.rates {
            let count = rate * (self.warmup + self.runtime).as_secs_f64();
            if !(1.0..=TRANSACTIONS_MAX).contains(&count) {
                return Err(Error::invalid(format!(
                    "a rate of {rate} a second makes {count:.1} transactions in {:?}: not 1 to {TRANSACTIONS_MAX}",
                    self.warmup + self.runtime
                ))
                .with_hint("another --rate, or another --runtime"));
            }
        }
        if !(1..=CONNECTIONS_MAX).contains(&self.connections) {
            return Err(Error::invalid(format!("{} connections are not in 1 to {CONNECTIONS_MAX}", self.connections)));
        }
        if self.singles == 0 {
            return Err(Error::invalid("no single transaction says nothing"));
        }
        Ok(())
    }

    /// What is measured, one thing after the other.
    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.busy {
            steps.extend(self.rates.iter().map(|rate| Step::Busy { rate: *rate }));
        }
        if self.quiet {
            steps.extend(Probe::ALL.map(|probe| Step::Quiet { probe }));
        }
        steps
    }
}

/// One measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    /// A steady stream of updates.
    Busy { rate: f64 },
    /// Single transactions, each after a silence.
    Quiet { probe: Probe },
}

impl Step {
    fn name(self) -> String {
        match self {
            Self::Busy { rate } => format!("{rate} updates a second"),
            Self::Quiet { probe } => probe.description().to_owned(),
        }
    }

    /// How long it takes, where nothing lags.
    fn length(self, options: &Options) -> Duration {
        match self {
            Self::Busy { .. } => options.warmup + options.runtime,
            Self::Quiet { .. } => options.silence.mul_f64(1.25) * options.singles,
        }
    }

    /// The measurement with this `index`.
    fn session(self, options: &Options, index: usize) -> Session {
        let seed = options.seed.wrapping_add(index as u64);
        let (probe, pace) = match self {
            Self::Busy { rate } => {
                let length = options.warmup + options.runtime;
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be in range")]
                let count = (rate * length.as_secs_f64()).round() as usize;
                let due = writer::arrivals(count, length, seed);
                (Probe::Update, Pace::Open { due, connections: options.connections, length })
            }
            Self::Quiet { probe } => {
                let mut rng = Rng::with_seed(seed);
                let silences = (0..options.singles).map(|_| options.silence.mul_f64(1.0 + rng.f64() / 2.0)).collect();
                (probe, Pace::AfterSilence { silences })
            }
        };
        // Far more than any session has.
        let base = i64::try_from(index + 1).unwrap_or(i64::MAX >> 40) << 32;
        Session { probe, pace, pause: options.pause, base }
    }
}

/// Measures the lag of the readers among `nodes`. Once `cancel` is set, or a server is lost, what was measured by then is
/// returned, and [`Run::completed`] is false. A schema of its own on the writer is removed at the end.
///
/// # Errors
/// When the options are not [possible](Options::check), a server does not answer, is not what it should be, or does not
/// follow.
pub fn measure(nodes: &Nodes, options: &Options, progress: &mut dyn Progress, cancel: &Cancel) -> Result<Run> {
    options.check()?;
    let began = Instant::now();
    let about = runtime()?.block_on(nodes.check())?;
    let mut run = Run::begin("lag", &nodes.subject, Environment::of_this_machine(nodes.targets(&about)));
    let delayed = nodes.readers.iter().zip(&about[1..]).filter(|(_, about)| about.delay_ms > 0);
    run.findings.extend(delayed.map(|(reader, about)| {
        Finding::new(
            Severity::Warning,
            "delayed-on-purpose",
            format!(
                "{} waits {} ms before it replays a commit: recovery_min_apply_delay says so.",
                reader.name, about.delay_ms
            ),
        )
    }));
    let scratch = Scratch::make(nodes, options.connections, cancel)?;
    let steps = options.steps();
    let mut left: Duration = steps.iter().map(|step| step.length(options)).sum();
    let mut outcome = Outcome::new(nodes, options);
    let mut broken = false;
    for (index, step) in steps.iter().enumerate() {
        if cancel.is_cancelled() || broken {
            break;
        }
        progress.cell(index + 1, steps.len(), &step.name(), left);
        left = left.saturating_sub(step.length(options));
        let observed = session::run(nodes, step.session(options, index), cancel, |elapsed| progress.elapsed(elapsed))?;
        broken = observed.broken().is_some();
        outcome.add(*step, &observed);
    }
    outcome.finish(&mut run);
    if let Err(error) = scratch.remove() {
        let text = format!("{error}. {}", error.hint().unwrap_or_default());
        run.findings.push(Finding::new(Severity::Error, "schema-left", text.trim()));
    }
    run.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    run.end(began.elapsed(), !broken && !cancel.is_cancelled());
    Ok(run)
}

/// A runtime for one thread: what waits for a server in it never waits for another thread.
fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::io("cannot make a runtime", source))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options {
            busy: true,
            quiet: true,
            rates: vec![100.0],
            runtime: Duration::from_secs(10),
            warmup: Duration::from_secs(1),
            connections: 16,
            singles: 10,
            silence: Duration::from_millis(200),
            pause: Duration::ZERO,
            seed: 1,
        }
    }

    #[test]
    fn bad_input_says_which_number_and_why() {
        options().check().unwrap();
        for (options, why) in [
            (Options { rates: Vec::new(), ..options() }, "there is no rate to measure at"),
            (Options { runtime: Duration::ZERO, ..options() }, "a runtime of 0ns is below 100ms"),
            (
                Options { rates: vec![100.0, 0.0], ..options() },
                "a rate of 0 a second makes 0.0 transactions in 11s: not 1 to 5000000",
            ),
            (
                Options { rates: vec![1e9], ..options() },
                "a rate of 1000000000 a second makes 11000000000.0 transactions in 11s: not 1 to 5000000",
            ),
            (
                Options { rates: vec![f64::NAN], ..options() },
                "a rate of NaN a second makes NaN transactions in 11s: not 1 to 5000000",
            ),
            (Options { connections: 0, ..options() }, "0 connections are not in 1 to 256"),
            (Options { singles: 0, ..options() }, "no single transaction says nothing"),
        ] {
            assert_eq!(options.check().unwrap_err().to_string(), why);
        }
    }

    #[test]
    fn numbers_of_one_session_are_above_all_of_the_one_before() {
        let steps = options().steps();
        assert_eq!(steps.len(), 1 + Probe::ALL.len());
        let sessions: Vec<Session> =
            steps.iter().enumerate().map(|(index, step)| step.session(&options(), index)).collect();
        assert!(sessions.windows(2).all(|pair| pair[1].base - pair[0].base > 5_000_000));
        let Pace::Open { due, .. } = &sessions[0].pace else { panic!("the first is an open loop") };
        assert_eq!(due.len(), 1100);
        let Pace::AfterSilence { silences } = &sessions[1].pace else { panic!("the others come after silence") };
        assert!(silences.iter().all(|silence| (200..=300).contains(&silence.as_millis())));
    }
}
