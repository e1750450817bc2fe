//! One measurement: a writer and its readers' pollers, each a thread with a runtime of its own, on one clock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use blockdev::{Cancel, Context, Error, ErrorKind, Result};

use super::PATIENCE;
use super::background::{self, Background, Went};
use super::clock::{Clock, nanos};
use super::nodes::Nodes;
use super::poller::{self, Looks};
use super::probe::Probe;
use super::samples::{Sample, join};
use super::watcher::{self, Heard};
use super::writer::{self, Wrote};

/// How often the watching thread looks whether somebody asked to stop.
const WATCH: Duration = Duration::from_millis(50);

/// When the writer writes.
#[derive(Debug, Clone)]
pub(super) enum Pace {
    /// When each transaction's time has come, whether or not the one before is done: an open loop.
    Open {
        /// When they are due, in nanoseconds from the beginning.
        due: Vec<u64>,
        /// How many connections share them.
        connections: usize,
        /// How long it goes on.
        length: Duration,
    },
    /// One after the other: each when all readers have seen the one before, and a silence has passed.
    AfterSilence {
        /// How long each silence is.
        silences: Vec<Duration>,
    },
}

impl Pace {
    /// How many slots the transactions have.
    pub(super) fn slots(&self) -> usize {
        match self {
            Self::Open { connections, .. } => *connections,
            Self::AfterSilence { .. } => 1,
        }
    }
}

/// What is measured.
#[derive(Debug, Clone)]
pub(super) struct Session {
    /// Which transactions.
    pub(super) probe: Probe,
    /// When.
    pub(super) pace: Pace,
    /// What else goes on on the writer.
    pub(super) background: Option<Background>,
    /// Whether anybody looks at the readers.
    pub(super) looked_at: bool,
    /// How long a poller rests between two looks.
    pub(super) pause: Duration,
    /// Numbers of transactions begin after this one, so that nobody takes an older session's for one of this.
    pub(super) base: i64,
}

/// What the threads of a session share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) session: Session,
    pub(super) clock: Clock,
    /// Set when somebody asks to stop, and when there is no sense in going on.
    pub(super) stop: Cancel,
    /// Set when all that could be seen was seen.
    pub(super) over: Cancel,
    /// Once everything is written: the last number of each slot whose commit was acknowledged.
    pub(super) goal: OnceLock<Goal>,
    /// How far each reader has come in slot 0.
    pub(super) seen: Vec<AtomicU64>,
}

/// What pollers wait for at the end.
#[derive(Debug)]
pub(super) struct Goal {
    pub(super) numbers: Vec<u64>,
    /// When they stop waiting.
    pub(super) deadline: u64,
}

impl Shared {
    /// Whether everything is written that is measured, or nobody wants more.
    pub(super) fn is_written(&self) -> bool {
        self.goal.get().is_some() || self.stop.is_cancelled()
    }

    /// Whether every reader has seen `number` in slot 0.
    pub(super) fn all_have_seen(&self, number: u64) -> bool {
        self.seen.iter().all(|seen| seen.load(Ordering::Acquire) >= number)
    }
}

/// Ends everything that runs when it is dropped, for the way out with an error.
struct EndsAll<'a>(&'a Shared);

impl Drop for EndsAll<'_> {
    fn drop(&mut self) {
        self.0.stop.cancel();
        self.0.over.cancel();
    }
}

/// What a session found.
#[derive(Debug)]
pub(super) struct Observed {
    /// What was written.
    pub(super) wrote: Wrote,
    /// For each reader what it saw, and what became of each transaction there.
    pub(super) readers: Vec<(Looks, Vec<Sample>)>,
    /// What replication said of itself meanwhile.
    pub(super) heard: Heard,
    /// How that went what else went on.
    pub(super) background: Went,
}

impl Observed {
    /// Why it ended before its time, unless somebody asked for that.
    pub(super) fn broken(&self) -> Option<&Error> {
        let lost = || self.readers.iter().find_map(|(looks, _)| looks.error.as_ref());
        let writer = || self.wrote.error.as_ref().or(self.background.error.as_ref());
        self.heard.failover.as_ref().or_else(writer).or_else(lost)
    }
}

/// Runs `session` on `nodes` until its time is up, `cancel` is set or a server is lost, which are no errors: what was
/// measured by then is returned. `elapsed` is told now and then how long it has been running.
///
/// # Errors
/// When a server cannot be connected to at the beginning.
pub(super) fn run(
    nodes: &Nodes,
    session: Session,
    cancel: &Cancel,
    mut elapsed: impl FnMut(Duration),
) -> Result<Observed> {
    let slots = session.pace.slots();
    let shared = Arc::new(Shared {
        session,
        clock: Clock::start(),
        stop: Cancel::new(),
        over: Cancel::new(),
        goal: OnceLock::new(),
        seen: nodes.readers.iter().map(|_| AtomicU64::new(0)).collect(),
    });
    thread::scope(|scope| {
        let _ends = EndsAll(&shared);
        let (ready, readiness) = mpsc::channel();
        let mut pollers = Vec::new();
        let looked_at = if shared.session.looked_at { nodes.readers.as_slice() } else { &[] };
        for (index, reader) in looked_at.iter().enumerate() {
            let (ready, shared) = (ready.clone(), Arc::clone(&shared));
            let body = move || poller::run(reader, index, &shared, ready);
            pollers.push(spawn(scope, "poller", body)?);
        }
        drop(ready);
        let for_watcher = Arc::clone(&shared);
        let watcher = spawn(scope, "watcher", move || watcher::run(nodes, &for_watcher))?;
        let for_background = Arc::clone(&shared);
        let background = spawn(scope, "background", move || background::run(&nodes.writer, &for_background))?;
        // Each says so once it looks; who cannot connect hangs up.
        let all_ready = readiness.iter().count() == pollers.len();
        let wrote = if all_ready {
            let (over, is_over) = mpsc::channel::<()>();
            let for_writer = Arc::clone(&shared);
            let writer = spawn(scope, "writer", move || {
                let _over = over;
                writer::run(&nodes.writer, &for_writer)
            })?;
            while is_over.recv_timeout(WATCH) == Err(RecvTimeoutError::Timeout) {
                elapsed(Duration::from_nanos(shared.clock.now()));
                if cancel.is_cancelled() {
                    shared.stop.cancel();
                }
            }
            let wrote = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            if let Ok(wrote) = &wrote {
                let deadline = shared.clock.now() + nanos(PATIENCE);
                let _ = shared.goal.set(Goal { numbers: wrote.acknowledged(slots), deadline });
            }
            wrote
        } else {
            Err(Error::new(ErrorKind::Io, "a poller could not begin"))
        };
        if wrote.is_err() {
            shared.stop.cancel();
        }
        while pollers.iter().any(|poller| !poller.is_finished()) {
            if cancel.is_cancelled() {
                shared.stop.cancel();
            }
            thread::sleep(Duration::from_millis(2));
        }
        shared.over.cancel();
        let background = background.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let heard = watcher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let looks = pollers
            .into_iter()
            .map(|poller| poller.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect::<Result<Vec<Looks>>>()?;
        let (wrote, background) = (wrote?, background?);
        let readers = looks
            .into_iter()
            .map(|looks| {
                let samples = join(&wrote.slots, &looks.sightings, looks.until);
                (looks, samples)
            })
            .collect();
        Ok(Observed { wrote, readers, heard, background })
    })
}

fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    name: &str,
    body: impl FnOnce() -> Result<T> + Send + 'scope,
) -> Result<thread::ScopedJoinHandle<'scope, Result<T>>> {
    let precise = || {
        // By default the kernel may end a sleep 50 us late, to end several at once.
        nix::sys::prctl::set_timerslack(1).context(|| "cannot ask for precise timers")?;
        body()
    };
    thread::Builder::new()
        .name(name.to_owned())
        .spawn_scoped(scope, precise)
        .map_err(|source| Error::io(format!("cannot start the thread of a {name}"), source))
}

/// Waits for `answer` of a server, but not for ever: no longer than [`PATIENCE`], nor when everything is to stop.
///
/// # Errors
/// Why there is no answer: what [`Silence`] says, or the server's error.
pub(super) async fn patiently<T>(
    answer: impl Future<Output = std::result::Result<T, tokio_postgres::Error>>,
    stop: &Cancel,
) -> std::result::Result<T, Silence> {
    let mut answer = std::pin::pin!(answer);
    let turns = PATIENCE.as_millis() / WATCH.as_millis();
    for _ in 0..turns {
        match tokio::time::timeout(WATCH, answer.as_mut()).await {
            Ok(answered) => return answered.map_err(Silence::Failed),
            Err(_) if stop.is_cancelled() => return Err(Silence::Stopped),
            Err(_) => {}
        }
    }
    Err(Silence::Hung)
}

/// Why a server did not answer.
#[derive(Debug)]
pub(super) enum Silence {
    /// It said why, or hung up.
    Failed(tokio_postgres::Error),
    /// It says nothing.
    Hung,
    /// Nobody waits any more.
    Stopped,
}

impl Silence {
    /// As the error that `what` ended in; none when nobody waits any more.
    pub(super) fn into_error(self, endpoint: &super::nodes::Endpoint, what: &str) -> Option<Error> {
        match self {
            Self::Failed(error) => Some(endpoint.failed(what, error)),
            Self::Hung => Some(Error::new(
                ErrorKind::Io,
                format!("{what} {}: no answer for {} s", endpoint.name, PATIENCE.as_secs()),
            )),
            Self::Stopped => None,
        }
    }
}
