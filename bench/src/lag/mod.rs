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

mod background;
mod clock;
mod delay;
mod dsn;
mod nodes;
mod outcome;
mod poller;
mod probe;
mod samples;
mod scratch;
mod session;
mod tally;
mod watcher;
mod writer;

use std::time::{Duration, Instant};

use blockdev::{Cancel, Error, Result};
use fastrand::Rng;
use tokio::runtime::Runtime;

use crate::disk::Progress;
use crate::report::{Environment, Finding, Run, Severity};
use background::Background;
use delay::Delayed;
use outcome::Outcome;
use scratch::Scratch;
use session::{Pace, Session};

pub use background::Load;
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

/// A heartbeat or a delay: the unit of PostgreSQL's own delay, and what a single transaction is waited for.
const TIMES: std::ops::RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(5);

/// How often it is measured with and without somebody who looks.
const OBSERVER_ROUNDS: u32 = 3;

/// What is asked of the readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// What an application sees while transactions come steadily, and what it sees of single ones after silence.
    BusyAndQuiet,
    /// The former alone.
    Busy,
    /// The latter alone.
    Quiet,
    /// What it costs that somebody looks.
    ObserverEffect,
    /// Whether a known delay of each reader is found again. Readers are told to wait so long
    /// (`recovery_min_apply_delay`), and get back what they had.
    Calibration(Duration),
}

/// What is measured, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// What is asked.
    pub question: Question,
    /// Transactions a second of the steady stream: each is measured.
    pub rates: Vec<f64>,
    /// How long each stream is measured.
    pub runtime: Duration,
    /// How long it goes on before that.
    pub warmup: Duration,
    /// How many connections it has.
    pub connections: usize,
    /// Kinds of load beside the steady stream, one after the other; without any, it is alone.
    pub loads: Vec<Load>,
    /// Transactions a second of the load.
    pub load_rate: f64,
    /// How many single transactions of each kind.
    pub singles: u32,
    /// Single transactions are measured once more, with a tiny update so often.
    pub heartbeat: Option<Duration>,
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
        for (what, rate) in self.rates.iter().map(|rate| ("a rate", rate)).chain([("a load", &self.load_rate)]) {
            let count = rate * (self.warmup + self.runtime).as_secs_f64();
            if !(1.0..=TRANSACTIONS_MAX).contains(&count) {
                return Err(Error::invalid(format!(
                    "{what} of {rate} a second makes {count:.1} transactions in {:?}: not 1 to {TRANSACTIONS_MAX}",
                    self.warmup + self.runtime
                ))
                .with_hint("another rate, or another --runtime"));
            }
        }
        let times = [self.heartbeat, if let Question::Calibration(delay) = self.question { Some(delay) } else { None }];
        if let Some(time) = times.into_iter().flatten().find(|time| !TIMES.contains(time)) {
            return Err(Error::invalid(format!("{time:?} is not in {:?} to {:?}", TIMES.start(), TIMES.end())));
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
        let loads: Vec<Option<Load>> =
            if self.loads.is_empty() { vec![None] } else { self.loads.iter().copied().map(Some).collect() };
        let streams =
            || self.rates.iter().flat_map(|rate| loads.iter().map(|load| Stream { rate: *rate, load: *load }));
        let mut steps = Vec::new();
        match self.question {
            Question::ObserverEffect => {
                for stream in streams() {
                    let both =
                        [Step::Observer { stream, looked_at: false }, Step::Observer { stream, looked_at: true }];
                    (0..OBSERVER_ROUNDS).for_each(|_| steps.extend(both));
                }
            }
            Question::Calibration(delay) => steps.extend(streams().map(|stream| Step::Calibration { stream, delay })),
            Question::BusyAndQuiet | Question::Busy | Question::Quiet => {
                if self.question != Question::Quiet {
                    steps.extend(streams().map(Step::Busy));
                }
                if self.question != Question::Busy {
                    for heartbeat in std::iter::once(None).chain(self.heartbeat.map(Some)) {
                        steps.extend(Probe::ALL.map(|probe| Step::Quiet { probe, heartbeat }));
                    }
                }
            }
        }
        steps
    }
}

/// A steady stream of updates, and the load beside it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Stream {
    rate: f64,
    load: Option<Load>,
}

impl std::fmt::Display for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} updates a second", self.rate)?;
        self.load.map_or(Ok(()), |load| write!(f, " under a load of {load}"))
    }
}

/// One measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    /// A steady stream.
    Busy(Stream),
    /// Single transactions, each after a silence.
    Quiet { probe: Probe, heartbeat: Option<Duration> },
    /// A steady stream at which somebody looks, or nobody.
    Observer { stream: Stream, looked_at: bool },
    /// A steady stream to readers that wait.
    Calibration { stream: Stream, delay: Duration },
}

impl Step {
    fn name(self) -> String {
        match self {
            Self::Busy(stream) => stream.to_string(),
            Self::Quiet { probe, heartbeat: None } => probe.description().to_owned(),
            Self::Quiet { probe, heartbeat: Some(every) } => {
                format!("{} with a heartbeat every {every:?}", probe.description())
            }
            Self::Observer { stream, looked_at: true } => format!("{stream}, looked at"),
            Self::Observer { stream, looked_at: false } => format!("{stream}, nobody looks"),
            Self::Calibration { stream, delay } => format!("{stream}, delayed by {delay:?}"),
        }
    }

    fn stream(self) -> Option<Stream> {
        match self {
            Self::Busy(stream) | Self::Observer { stream, .. } | Self::Calibration { stream, .. } => Some(stream),
            Self::Quiet { .. } => None,
        }
    }

    /// How long it takes, where nothing lags.
    fn length(self, options: &Options) -> Duration {
        match self.stream() {
            Some(_) => options.warmup + options.runtime,
            None => options.silence.mul_f64(1.25) * options.singles,
        }
    }

    /// The measurement with this `index`.
    fn session(self, options: &Options, index: usize) -> Session {
        let seed = options.seed.wrapping_add(index as u64);
        let length = options.warmup + options.runtime;
        let connections = options.connections;
        let due = |rate: f64, seed| writer::arrivals(rate, &[options.warmup, options.runtime], seed);
        let (probe, pace, background) = match self {
            Self::Quiet { probe, heartbeat } => {
                let mut rng = Rng::with_seed(seed);
                let silences = (0..options.singles).map(|_| options.silence.mul_f64(1.0 + rng.f64() / 2.0)).collect();
                (probe, Pace::AfterSilence { silences }, heartbeat.map(Background::Heartbeat))
            }
            Self::Busy(stream) | Self::Observer { stream, .. } | Self::Calibration { stream, .. } => {
                let background = stream.load.map(|load| Background::Load {
                    load,
                    // Independent of the stream's.
                    due: due(options.load_rate, !seed),
                    connections,
                });
                (Probe::Update, Pace::Open { due: due(stream.rate, seed), connections, length }, background)
            }
        };
        // Far more than any session has.
        let base = i64::try_from(index + 1).unwrap_or(i64::MAX >> 40) << 32;
        let looked_at = !matches!(self, Self::Observer { looked_at: false, .. });
        Session { probe, pace, background, looked_at, pause: options.pause, base }
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
    if about[0].has_heartbeat {
        run.findings.push(
            Finding::new(
                Severity::Warning,
                "kept-heartbeat",
                format!(
                    "{} has a heartbeat: no silence here is what an application without one would see.",
                    nodes.writer.name
                ),
            )
            .with_hint("`provision up --heartbeat off` stops it"),
        );
    }
    let scratch = Scratch::make(nodes, options.connections, cancel)?;
    let delayed = delay(nodes, &about[1..], options, cancel)?;
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
    let mut left_behind = |id: &str, outcome: Result<()>| {
        if let Err(error) = outcome {
            let text = format!("{error}. {}", error.hint().unwrap_or_default());
            run.findings.push(Finding::new(Severity::Error, id, text.trim()));
        }
    };
    delayed.into_iter().for_each(|delayed| left_behind("delay-left", delayed.restore()));
    left_behind("schema-left", scratch.remove());
    run.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    run.end(began.elapsed(), !broken && !cancel.is_cancelled());
    Ok(run)
}

/// For a calibration, the readers made to wait.
fn delay(nodes: &Nodes, about: &[nodes::About], options: &Options, cancel: &Cancel) -> Result<Vec<Delayed>> {
    let Question::Calibration(delay) = options.question else { return Ok(Vec::new()) };
    for (reader, about) in nodes.readers.iter().zip(about) {
        if about.delay_ms > 0 {
            return Err(Error::refused(format!(
                "{} waits {} ms already before it replays a commit",
                reader.name, about.delay_ms
            ))
            .with_hint("a calibration sets recovery_min_apply_delay itself: take it out of the configuration first"));
        }
    }
    nodes.readers.iter().map(|reader| Delayed::new(reader, delay, cancel)).collect()
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
            question: Question::BusyAndQuiet,
            rates: vec![100.0],
            runtime: Duration::from_secs(10),
            warmup: Duration::from_secs(1),
            connections: 16,
            loads: Vec::new(),
            load_rate: 1000.0,
            singles: 10,
            heartbeat: None,
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
            (
                Options { load_rate: 0.0, ..options() },
                "a load of 0 a second makes 0.0 transactions in 11s: not 1 to 5000000",
            ),
            (Options { heartbeat: Some(Duration::ZERO), ..options() }, "0ns is not in 1ms to 5s"),
            (
                Options { question: Question::Calibration(Duration::from_secs(6)), ..options() },
                "6s is not in 1ms to 5s",
            ),
            (Options { singles: 0, ..options() }, "no single transaction says nothing"),
        ] {
            assert_eq!(options.check().unwrap_err().to_string(), why);
        }
    }

    #[test]
    fn every_question_has_its_steps() {
        let names = |options: Options| options.steps().into_iter().map(Step::name).collect::<Vec<_>>();
        let options = Options { rates: vec![10.0, 20.0], loads: vec![Load::Insert], ..options() };
        let busy = ["10 updates a second under a load of insert", "20 updates a second under a load of insert"];
        assert_eq!(names(Options { question: Question::Busy, ..options.clone() }), busy);
        let heartbeat = Some(Duration::from_millis(10));
        let quiet = names(Options { question: Question::Quiet, heartbeat, ..options.clone() });
        assert_eq!((quiet.len(), quiet[2].as_str()), (8, "bulk insert, 500 rows"));
        assert_eq!(quiet[6], "bulk insert, 500 rows with a heartbeat every 10ms");
        let observer = Options { question: Question::ObserverEffect, rates: vec![5.0], loads: Vec::new(), ..options };
        assert_eq!(names(observer)[..2], ["5 updates a second, nobody looks", "5 updates a second, looked at"]);
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
