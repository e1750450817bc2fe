//! The other end of an agent: orders go to it, answers come back, and what it holds goes with this.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use blockdev::{ByteSize, Cancel, Context, Error, ErrorKind, Result};
use nix::poll::PollTimeout;
use provision::runtime::docker::{Endpoint, Guest, Heard};

use super::agent::{Answer, Assignment, Disk, Loaded, Order, Said};
use super::lines::{Came, Lines};
use super::work::Work;

/// The command of `bench` that is an agent.
pub const AGENT: &str = "pfsd-agent";

/// How long an answer may take besides what it says itself: a pfsd that begins or ends, or stalls.
const PATIENCE: Duration = Duration::from_secs(90);

/// How long an agent may take to give back what it holds.
const ENDING: Duration = Duration::from_secs(60);

/// How long to listen before it is looked whether somebody asked to stop.
const GLANCE: Duration = Duration::from_millis(50);

/// A way to an agent.
trait Wire {
    /// Says a line to it.
    fn send(&mut self, line: &[u8]) -> Result<()>;
    /// Listens for a line, for no longer than `timeout`.
    fn receive(&mut self, timeout: Duration) -> Result<Came>;
    /// Does not wait for it in the end: it is lost.
    fn give_up(&mut self);
}

/// An agent at work. Dropped, it gives back what it holds, also in the midst of something: it hears that nobody is here any
/// more.
pub(super) struct Session(Box<dyn Wire>);

impl Session {
    /// An agent beside this process: `program` is a `bench`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(super) fn local(program: &Path, assignment: &Assignment) -> Result<Self> {
        Self::over(Box::new(Local::start(program)?), assignment)
    }

    /// An agent in a container, where `program`, a `bench`, is taken.
    ///
    /// # Errors
    /// When there is no such container or it does not run, or the program cannot run there.
    pub(super) fn in_container(
        endpoint: &Endpoint,
        container: &str,
        program: &Path,
        assignment: &Assignment,
        cancel: &Cancel,
    ) -> Result<Self> {
        let guest = Guest::enter(endpoint, container, program, &[AGENT], cancel)?;
        Self::over(Box::new(Remote { guest, heard: Vec::new() }), assignment)
    }

    fn over(wire: Box<dyn Wire>, assignment: &Assignment) -> Result<Self> {
        let mut session = Self(wire);
        session.send(assignment)?;
        Ok(session)
    }

    fn send(&mut self, what: &impl serde::Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(what)
            .map_err(|source| Error::new(ErrorKind::Io, "an order cannot be written as JSON").with_source(source))?;
        line.push(b'\n');
        self.0.send(&line)
    }

    /// Gives `order`, which takes about `length`, and waits for the answer; `elapsed` is told how long it has been at it.
    fn ask(
        &mut self,
        order: &Order,
        length: Duration,
        cancel: &Cancel,
        elapsed: &mut dyn FnMut(Duration),
    ) -> Result<Answer> {
        self.send(order)?;
        let started = Instant::now();
        loop {
            match self.0.receive(GLANCE)? {
                Came::Line(line) => {
                    let said: Said = serde_json::from_slice(&line).map_err(|source| {
                        Error::new(ErrorKind::Io, "what measures beside pfsd answers what cannot be")
                            .with_source(source)
                    })?;
                    return said.into_result();
                }
                Came::End => return Err(Error::new(ErrorKind::Io, "what measures beside pfsd has ended by itself")),
                Came::Nothing => cancel.check("bench pfsd")?,
            }
            if started.elapsed() > length + PATIENCE {
                self.0.give_up();
                let message = format!("what measures beside pfsd has not answered for {:.0?}", started.elapsed());
                return Err(Error::new(ErrorKind::Io, message));
            }
            elapsed(started.elapsed());
        }
    }

    /// Which disk it is.
    pub(super) fn look(&mut self, cancel: &Cancel) -> Result<Disk> {
        match self.ask(&Order::Look, Duration::ZERO, cancel, &mut |_| {})? {
            Answer::Looked(disk) => Ok(disk),
            other => Err(confused(&other)),
        }
    }

    /// Starts the pfsd with so many workers.
    pub(super) fn serve(&mut self, workers: u32, cancel: &Cancel) -> Result<()> {
        match self.ask(&Order::Serve { workers }, Duration::ZERO, cancel, &mut |_| {})? {
            Answer::Serving => Ok(()),
            other => Err(confused(&other)),
        }
    }

    /// Makes the file, and writes all of it.
    pub(super) fn prepare(&mut self, size: ByteSize, cancel: &Cancel, elapsed: &mut dyn FnMut(Duration)) -> Result<()> {
        // At no more than a few MB/s something is wrong.
        let length = Duration::from_secs(size.bytes() >> 22);
        match self.ask(&Order::Prepare { size }, length, cancel, elapsed)? {
            Answer::Prepared => Ok(()),
            other => Err(confused(&other)),
        }
    }

    /// What of a core the pfsd takes while it is asked nothing.
    pub(super) fn idle(&mut self, time: Duration, cancel: &Cancel, elapsed: &mut dyn FnMut(Duration)) -> Result<f64> {
        match self.ask(&Order::Idle(time), time, cancel, elapsed)? {
            Answer::Idle(share) => Ok(share),
            other => Err(confused(&other)),
        }
    }

    /// Runs a load.
    pub(super) fn load(&mut self, work: &Work, cancel: &Cancel, elapsed: &mut dyn FnMut(Duration)) -> Result<Loaded> {
        match self.ask(&Order::Load(work.clone()), work.warmup + work.runtime, cancel, elapsed)? {
            Answer::Loaded(loaded) => Ok(*loaded),
            other => Err(confused(&other)),
        }
    }

    /// Ends the pfsd. Says how much memory it had beyond what it shares.
    pub(super) fn rest(&mut self, cancel: &Cancel) -> Result<ByteSize> {
        match self.ask(&Order::Rest, Duration::ZERO, cancel, &mut |_| {})? {
            Answer::Rested(memory) => Ok(memory),
            other => Err(confused(&other)),
        }
    }

    /// Lets it give back all that it holds, also when somebody asked to stop.
    ///
    /// # Errors
    /// When something could not be given back.
    pub(super) fn finish(mut self) -> Result<()> {
        match self.ask(&Order::Finish, Duration::ZERO, &Cancel::new(), &mut |_| {})? {
            Answer::Finished => Ok(()),
            other => Err(confused(&other)),
        }
    }
}

fn confused(answer: &Answer) -> Error {
    Error::new(ErrorKind::Io, format!("what measures beside pfsd gave the answer to another order: {answer:?}"))
}

/// An agent that is a child of this process.
struct Local {
    child: Child,
    input: Option<ChildStdin>,
    lines: Lines<ChildStdout>,
    program: PathBuf,
}

impl Local {
    fn start(program: &Path) -> Result<Self> {
        let what = || format!("cannot run {} {AGENT}", program.display());
        let mut command = Command::new(program);
        command.arg(AGENT).stdin(Stdio::piped()).stdout(Stdio::piped());
        // Out of reach of the terminal's Ctrl-C: it ends when we say so, or are gone.
        let mut child = command.process_group(0).spawn().context(what)?;
        let input = child.stdin.take();
        let Some(output) = child.stdout.take() else { unreachable!("it is piped") };
        Ok(Self { child, input, lines: Lines::new(output), program: program.to_owned() })
    }
}

impl Wire for Local {
    fn send(&mut self, line: &[u8]) -> Result<()> {
        let Some(input) = &mut self.input else { unreachable!("it is closed only when this is dropped") };
        input.write_all(line).context(|| format!("cannot speak to {} {AGENT}", self.program.display()))
    }

    fn receive(&mut self, timeout: Duration) -> Result<Came> {
        self.lines.next(PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX))
    }

    fn give_up(&mut self) {
        // Its pfsd goes with it.
        let _ = self.child.kill();
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        drop(self.input.take());
        let started = Instant::now();
        // It ends a pfsd first.
        while started.elapsed() < ENDING && self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            thread::sleep(Duration::from_millis(1));
        }
        // Of no effect when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An agent in a container.
struct Remote {
    guest: Guest,
    heard: Vec<u8>,
}

impl Wire for Remote {
    fn send(&mut self, line: &[u8]) -> Result<()> {
        self.guest.send(line)
    }

    fn receive(&mut self, timeout: Duration) -> Result<Came> {
        loop {
            if let Some(end) = self.heard.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.heard.drain(..=end).collect();
                line.pop();
                return Ok(Came::Line(line));
            }
            match self.guest.receive(timeout)? {
                Heard::Bytes(bytes) => self.heard.extend_from_slice(&bytes),
                Heard::Nothing => return Ok(Came::Nothing),
                Heard::End if self.guest.complaints().is_empty() => return Ok(Came::End),
                Heard::End => {
                    let complaints = self.guest.complaints();
                    return Err(Error::new(
                        ErrorKind::Io,
                        format!("what measures beside pfsd has ended: {complaints}"),
                    ));
                }
            }
        }
    }

    fn give_up(&mut self) {
        self.guest.give_up();
    }
}
