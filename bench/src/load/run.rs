//! A run: its jobs, each a thread with its own engine, started together and stopped together.

use std::convert::Infallible;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{PoisonError, RwLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use blockdev::engine::{self, Engine};
use blockdev::{Cancel, Context, Error, Result};
use fastrand::Rng;

use super::offsets::{Kind, Ops, seed_of};
use super::open::{Arrivals, Ended};
use super::queue::EngineQueue;
use super::recorder::{Recorder, Sample, Window, gather, nanos};
use super::{Cpu, Measured, Tally, Work, closed, open};

/// How often the watching thread looks whether somebody asked to stop.
const WATCH: Duration = Duration::from_millis(50);

/// What a job brings home.
#[derive(Debug)]
struct Returned {
    samples: Vec<Sample>,
    ended: Ended,
    engine: engine::Kind,
    notices: Vec<String>,
}

/// Runs `work` until its time is up, every block was touched that is to be [touched once](Work::once), or `cancel` is set,
/// which is no error: what was measured by then is returned.
///
/// `open` makes the engine of a job, on that job's thread: with [`Work::depth`] as its queue depth and as many buffers of
/// a block each, over one target. `elapsed` is told now and then how long it has been running, warm-up included.
///
/// # Errors
/// When the work is not [possible](Work::check), an engine cannot be opened, or an operation fails.
pub fn run(
    work: &Work,
    open: impl Fn() -> Result<Engine> + Sync,
    cancel: &Cancel,
    mut elapsed: impl FnMut(Duration),
) -> Result<Measured> {
    work.check()?;
    let window = Window::new(work.warmup, work.runtime);
    let stop = Cancel::new();
    // Held until every job has its engine; it then says when the run began, or that it never will.
    let start: RwLock<Option<Instant>> = RwLock::new(None);
    let (ready, readiness) = mpsc::channel();
    // Each job holds an end of this until it is over.
    let (running, over) = mpsc::channel::<Infallible>();
    thread::scope(|scope| {
        let mut epoch = start.write().unwrap_or_else(PoisonError::into_inner);
        let mut jobs = Vec::new();
        for index in 0..work.jobs {
            let (ready, running, start, open, stop) = (ready.clone(), running.clone(), &start, &open, &stop);
            let body = move || {
                let _running = running;
                let outcome = job(work, index, window, open, ready, start, stop);
                if outcome.is_err() {
                    stop.cancel();
                }
                outcome
            };
            let job = thread::Builder::new().name(format!("job-{index}")).spawn_scoped(scope, body);
            jobs.push(job.map_err(|source| Error::io(format!("cannot start the thread of job {index}"), source))?);
        }
        drop((ready, running));
        let all_ready = readiness.iter().count() == jobs.len();
        *epoch = all_ready.then(Instant::now);
        let began = *epoch;
        drop(epoch);
        let cpu = began.map_or(Ok(Cpu::default()), |began| watch(began, window, &over, &stop, cancel, &mut elapsed))?;
        let returned = jobs
            .into_iter()
            .map(|job| job.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect::<Result<Vec<_>>>()?;
        Ok(measured(window, returned, cpu, cancel.is_cancelled()))
    })
}

/// One job, on its thread.
fn job(
    work: &Work,
    index: u32,
    window: Window,
    open: &(impl Fn() -> Result<Engine> + Sync),
    ready: mpsc::Sender<()>,
    start: &RwLock<Option<Instant>>,
    stop: &Cancel,
) -> Result<Returned> {
    let mut engine = open()?;
    let mut content = Rng::with_seed(seed_of(work.seed, index));
    if work.pattern.writes() {
        for buffer in 0..work.depth {
            content.fill(engine.buffer_mut(buffer));
        }
    }
    if work.rate.is_some() {
        // By default the kernel may end a sleep 50 us late, to end several at once.
        nix::sys::prctl::set_timerslack(1).context(|| "cannot ask for precise timers")?;
    }
    let (kind, notices) = (engine.kind(), engine.notices().to_vec());
    let ops = Ops::new(work, index);
    let mut recorder = Recorder::new(window, Kind::COUNT, work.rate.is_some());
    // Nobody listens any more when another job could not be started.
    let _ = ready.send(());
    drop(ready);
    let epoch = *start.read().unwrap_or_else(PoisonError::into_inner);
    let ended = match epoch {
        None => Ended { at: 0, waiting: 0 },
        Some(epoch) => {
            let mut queue = EngineQueue::new(engine, epoch, work.block_len());
            match work.rate {
                None => closed::run(&mut queue, work, ops, &mut recorder, stop)?,
                Some(rate) => {
                    let arrivals = Arrivals::new(rate / f64::from(work.jobs), seed_of(!work.seed, index));
                    open::run(&mut queue, work, ops, arrivals, &mut recorder, stop)?
                }
            }
        }
    };
    Ok(Returned { samples: recorder.finish(ended.at), ended, engine: kind, notices })
}

/// Watches the jobs until they or the window are over, or somebody asks to stop; returns the CPU time spent in the window.
fn watch(
    began: Instant,
    window: Window,
    over: &mpsc::Receiver<Infallible>,
    stop: &Cancel,
    cancel: &Cancel,
    elapsed: &mut impl FnMut(Duration),
) -> Result<Cpu> {
    let mut at_start = None;
    let mut jobs_run = true;
    loop {
        let now = nanos(began.elapsed());
        if at_start.is_none() && now >= window.start {
            at_start = Some(Cpu::now()?);
        }
        if cancel.is_cancelled() {
            stop.cancel();
        }
        if now >= window.end || stop.is_cancelled() || !jobs_run {
            return Ok(match at_start {
                Some(at_start) => Cpu::now()?.since(at_start),
                None => Cpu::default(),
            });
        }
        elapsed(Duration::from_nanos(now));
        let next = if at_start.is_none() { window.start } else { window.end };
        let look = over.recv_timeout(WATCH.min(Duration::from_nanos(next - now)));
        jobs_run = look == Err(RecvTimeoutError::Timeout);
    }
}

/// Puts together what the jobs brought home.
fn measured(window: Window, returned: Vec<Returned>, cpu: Cpu, cancelled: bool) -> Measured {
    let ended = returned.iter().map(|job| job.ended.at).max().unwrap_or(0);
    let length = ended.min(window.end).saturating_sub(window.start);
    let waiting = returned.iter().map(|job| job.ended.waiting).sum();
    let engines = returned.first().map(|job| (job.engine, job.notices.clone()));
    let (engine, notices) = engines.expect("Work::check refuses a work without jobs");
    let samples: Vec<_> = returned.into_iter().map(|job| job.samples).collect();
    let is_io = |kind| kind != Kind::Sync as usize;
    let (tallies, intervals) = gather(window, length, Kind::COUNT, &samples, is_io);
    let [reads, writes, syncs] =
        <[Tally; Kind::COUNT]>::try_from(tallies).unwrap_or_else(|_| unreachable!("one for each kind"));
    Measured {
        window: Duration::from_nanos(length),
        interrupted: cancelled && ended < window.end,
        reads,
        writes,
        syncs,
        intervals,
        cpu,
        waiting,
        engine,
        notices,
    }
}
