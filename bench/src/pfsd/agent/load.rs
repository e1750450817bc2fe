//! A load: many clients at once, each a thread or a process, that begin together and are measured together.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use blockdev::{Context, Error, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};
use pfs::client::Client;
use serde::{Deserialize, Serialize};

use super::board::{self, Board};
use super::client::Worker;
use super::installation::Daemon;
use super::{Complaint, Kind, Loaded, process};
use crate::load::{Arrivals, Recorder, SPIN_NS, Sample, Window, gather, seed_of};
use crate::pfsd::lines::Lines;
use crate::pfsd::work::Work;

/// How long who watches listens before it looks at the clock and at who wants it to stop.
const WATCH: Duration = Duration::from_millis(20);

/// The longest sleep of a client, so that a request to stop is noticed.
const SLEEP: Duration = Duration::from_millis(100);

/// What a client brings home.
#[derive(Debug, Serialize, Deserialize)]
struct Returned {
    samples: Vec<Sample>,
    /// When it stopped, in nanoseconds since all began.
    ended: u64,
    /// In an open loop, how much was due and had not begun.
    waiting: u64,
}

/// A client's errand: what it brings home, or why not.
type Errand = std::result::Result<Returned, Complaint>;

/// What all clients have in common.
struct Job<'a> {
    client: &'a Client,
    directory: &'a str,
    work: &'a Work,
    window: Window,
    board: Board,
}

/// Runs `work` on `client`, whose files are below `directory`, until its time is up.
///
/// # Errors
/// When a client's operation fails, `daemon` ends, or nobody is there any more to send `orders`.
pub(super) fn run<F: AsFd>(
    client: &Client,
    directory: &str,
    work: &Work,
    daemon: &mut Daemon,
    orders: &mut Lines<F>,
) -> Result<Loaded> {
    let window = Window::new(work.warmup, work.runtime);
    let job = Job { client, directory, work, window, board: Board::new()? };
    let (mut homes, mut roads) = (Vec::new(), Vec::new());
    for _ in 0..work.clients {
        let (home, road) = io::pipe().context(|| "cannot make a pipe")?;
        homes.push(home);
        roads.push(road);
    }
    let mut watch = Watch { job: &job, daemon, orders, at_start: None, cpu: Duration::ZERO };
    let brought = if work.processes {
        let children = Children::start(&job, roads)?;
        let brought = watch.until_all_are_home(homes);
        children.wait()?;
        brought?
    } else {
        thread::scope(|scope| {
            for (index, road) in (0..work.clients).zip(roads) {
                let job = &job;
                let thread = thread::Builder::new().name(format!("client-{index}"));
                if let Err(source) = thread.spawn_scoped(scope, move || job.run(index, road)) {
                    job.board.stop();
                    return Err(Error::io(format!("cannot start the thread of client {index}"), source));
                }
            }
            watch.until_all_are_home(homes)
        })?
    };
    let cpu = watch.cpu;
    // That it is gone says more than that it does not answer.
    daemon.check()?;
    loaded(work, window, brought, cpu)
}

impl Job<'_> {
    /// A client, from its beginning to its end. What it brings home, or why not, goes down the road.
    fn run(&self, index: u32, mut road: PipeWriter) {
        let errand = self.client(index).map_err(|error| Complaint::new(&error));
        if errand.is_err() {
            self.board.stop();
        }
        // Where nobody is home any more, nothing is left to be done.
        let _ = serde_json::to_vec(&errand).map_err(io::Error::other).and_then(|bytes| road.write_all(&bytes));
    }

    fn client(&self, index: u32) -> Result<Returned> {
        let (work, board) = (self.work, &self.board);
        let mut worker = Worker::new(self.client, self.directory, work, index)?;
        if work.rate.is_some() {
            // By default the kernel may end a sleep 50 us late, to end several at once.
            prctl::set_timerslack(1).context(|| "cannot ask for precise timers")?;
        }
        let mut recorder = Recorder::new(self.window, work.rw.kinds().len(), work.rate.is_some());
        if !board.is_ready() {
            return Ok(Returned { samples: Vec::new(), ended: 0, waiting: 0 });
        }
        let outcome = match work.rate {
            None => closed(&mut worker, &mut recorder, board),
            Some(rate) => {
                let arrivals = Arrivals::new(rate / f64::from(work.clients), seed_of(!work.seed, index));
                open(&mut worker, &mut recorder, arrivals, board)
            }
        };
        worker.tidy();
        let (ended, waiting) = outcome?;
        Ok(Returned { samples: recorder.finish(ended), ended, waiting })
    }
}

/// Does one thing after the other until the window is over. Returns when that was, and that nothing waited.
fn closed(worker: &mut Worker<'_>, recorder: &mut Recorder, board: &Board) -> Result<(u64, u64)> {
    loop {
        worker.prepare()?;
        let started = board.now()?;
        let kind = worker.step()?;
        let ended = board.now()?;
        if !recorder.tick(ended) || board.is_stopped() {
            return Ok((ended, 0));
        }
        recorder.service(kind, ended - started);
    }
}

/// Does the next thing when it is due, or as soon after as the one before is done. Returns when it stopped, and how much was
/// due by then and had not ended.
fn open(worker: &mut Worker<'_>, recorder: &mut Recorder, mut arrivals: Arrivals, board: &Board) -> Result<(u64, u64)> {
    // What the last operation was: who still waits is counted as one of its kind.
    let mut last = 0;
    let mut now = board.now()?;
    while now < recorder.end() && !board.is_stopped() {
        let due = arrivals.next();
        if due > now {
            let left = due.min(recorder.end()) - now;
            if left > SPIN_NS {
                thread::sleep(Duration::from_nanos(left - SPIN_NS).min(SLEEP));
            }
            now = board.now()?;
            continue;
        }
        worker.prepare()?;
        let started = board.now()?;
        last = worker.step()?;
        now = board.now()?;
        // What ends after the window has waited until its end, and is counted below.
        if recorder.tick(now) {
            recorder.service(last, now - started);
            recorder.response(last, now - due);
            arrivals.advance();
        }
    }
    let at = now.min(recorder.end());
    recorder.tick(at.saturating_sub(1));
    let mut waiting = 0;
    while arrivals.next() < at {
        recorder.response(last, at - arrivals.next());
        arrivals.advance();
        waiting += 1;
    }
    Ok((at, waiting))
}

/// Who watches the clients while they are out.
struct Watch<'a, F> {
    job: &'a Job<'a>,
    daemon: &'a mut Daemon,
    orders: &'a mut Lines<F>,
    /// What processor time the daemon had taken when the window began, and what it took in the window.
    at_start: Option<Duration>,
    cpu: Duration,
}

impl<F: AsFd> Watch<'_, F> {
    /// Lets all begin once they are ready, and takes what they bring. Nobody is out any more when this returns, or will be
    /// soon: when something fails, they are told to stop.
    fn until_all_are_home(&mut self, homes: Vec<PipeReader>) -> Result<Vec<Errand>> {
        let outcome = self.take_all(homes);
        if outcome.is_err() {
            self.job.board.stop();
        }
        outcome
    }

    fn take_all(&mut self, homes: Vec<PipeReader>) -> Result<Vec<Errand>> {
        let what = || "cannot take what a client brings home";
        let mut brought: Vec<Vec<u8>> = homes.iter().map(|_| Vec::new()).collect();
        let mut out: Vec<(usize, PipeReader)> = homes.into_iter().enumerate().collect();
        let mut begun = false;
        while !out.is_empty() {
            let timeout = self.look(&mut begun)?;
            let mut polled: Vec<PollFd> =
                out.iter().map(|(_, home)| PollFd::new(home.as_fd(), PollFlags::POLLIN)).collect();
            let outcome = poll(&mut polled, timeout);
            let there: Vec<bool> = polled.iter().map(|home| home.any() == Some(true)).collect();
            match outcome {
                Err(nix::errno::Errno::EINTR) => continue,
                outcome => outcome.context(what)?,
            };
            let mut there = there.into_iter();
            let mut chunk = [0; 65536];
            let mut failed = None;
            out.retain_mut(|(index, home)| {
                if there.next() != Some(true) {
                    return true;
                }
                match home.read(&mut chunk) {
                    Ok(0) => false,
                    Ok(got) => {
                        brought[*index].extend_from_slice(&chunk[..got]);
                        true
                    }
                    Err(error) => {
                        failed = Some(error);
                        false
                    }
                }
            });
            failed.map_or(Ok(()), Err).context(what)?;
        }
        let errand = |bytes: Vec<u8>| {
            serde_json::from_slice(&bytes).map_err(|source| {
                Error::new(blockdev::ErrorKind::Io, "a client ended without bringing anything home").with_source(source)
            })
        };
        brought.into_iter().map(errand).collect()
    }

    /// Looks at who is ready, at the clock, at the daemon and at who wants it to stop. Returns when to look again.
    fn look(&mut self, begun: &mut bool) -> Result<PollTimeout> {
        let (board, window) = (&self.job.board, self.job.window);
        if self.orders.has_ended()? {
            return Err(Error::interrupted("the load: nobody is there any more"));
        }
        if !*begun {
            if board.ready() < self.job.work.clients {
                // Who failed to be ready is home already, and all others come.
                return Ok(if board.is_stopped() { PollTimeout::from(1u8) } else { short() });
            }
            board.begin()?;
            *begun = true;
        }
        let now = board.now()?;
        let cpu = || self.daemon.pid().and_then(process::cpu_time);
        if now >= window.start && self.at_start.is_none() {
            self.at_start = Some(cpu().unwrap_or_default());
        }
        if now < window.end
            && let Some(at_start) = self.at_start
        {
            // The last look before the end of the window is what counts if the daemon ends.
            self.cpu = cpu().unwrap_or(at_start).saturating_sub(at_start);
        }
        let next = if now < window.start { window.start } else { window.end.max(now) };
        let left = Duration::from_nanos(next - now).min(WATCH);
        Ok(PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX).max(PollTimeout::from(1u8)))
    }
}

/// The shortest time to wait.
fn short() -> PollTimeout {
    thread::sleep(board::LOOK);
    PollTimeout::ZERO
}

/// Clients that are processes.
struct Children(Vec<Pid>);

impl Children {
    /// Starts them. This process must have no other threads.
    fn start(job: &Job<'_>, roads: Vec<PipeWriter>) -> Result<Self> {
        let mut children = Self(Vec::new());
        for (index, road) in (0..job.work.clients).zip(roads) {
            // SAFETY: this process has one thread, so the child finds no lock held by another.
            match unsafe { fork() }.context(|| format!("cannot make the process of client {index}")) {
                Ok(ForkResult::Parent { child }) => children.0.push(child),
                Ok(ForkResult::Child) => {
                    // Whatever happens to the parent, it does not stay.
                    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
                    job.run(index, road);
                    // SAFETY: ends the process. What the parent has and the child inherited is not given back twice.
                    unsafe { libc::_exit(0) }
                }
                Err(error) => {
                    job.board.stop();
                    children.wait()?;
                    return Err(error);
                }
            }
        }
        Ok(children)
    }

    /// Waits until all have ended.
    fn wait(self) -> Result<()> {
        for child in self.0 {
            waitpid(child, None).context(|| "cannot wait for a client")?;
        }
        Ok(())
    }
}

/// Puts together what the clients brought home.
fn loaded(work: &Work, window: Window, brought: Vec<Errand>, cpu: Duration) -> Result<Loaded> {
    let returned: Vec<Returned> =
        brought.into_iter().map(|errand| errand.map_err(Complaint::into_error)).collect::<Result<_>>()?;
    let ended = returned.iter().map(|client| client.ended).max().unwrap_or(0);
    let length = ended.min(window.end).saturating_sub(window.start);
    let waiting = returned.iter().map(|client| client.waiting).sum();
    let samples: Vec<Vec<Sample>> = returned.into_iter().map(|client| client.samples).collect();
    let names = work.rw.kinds();
    let (tallies, intervals) = gather(window, length, names.len(), &samples, |_| true);
    let kind = |(name, tally): (&&str, _)| Kind { name: (*name).to_owned(), tally };
    let kinds = names.iter().zip(tallies).map(kind).collect();
    Ok(Loaded { window: Duration::from_nanos(length), kinds, intervals, waiting, cpu })
}
