//! The agent's life: one order after the other.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use blockdev::{ByteSize, Error, ErrorKind, Result};
use fastrand::Rng;
use nix::poll::PollTimeout;
use pfs::client::{Client, ConnectOptions};
use pfs::proto::OpenFlags;

use super::installation::{Daemon, Installation};
use super::{Answer, Assignment, DATA, Order, Said, load, process};
use crate::pfsd::lines::{Came, Lines};

/// How long a client waits to be let in: a pfsd mounts the disk for its first.
const LET_IN: Duration = Duration::from_secs(30);

/// How long a client waits for a pfsd that is gone.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a pfsd that was just busy is left alone before it is called idle.
const SETTLE: Duration = Duration::from_millis(300);

/// Bytes that are written at once to a new file.
const PIECE: ByteSize = ByteSize::mib(4);

/// Takes orders from standard input and answers on standard output until there are no more. All that it holds is given back
/// before this returns.
///
/// # Errors
/// When it cannot hear or be heard; and when something could not be given back.
pub fn serve() -> Result<()> {
    let mut orders = Lines::new(io::stdin());
    let Came::Line(line) = orders.next(PollTimeout::NONE)? else { return Ok(()) };
    let assignment: Assignment = parse(&line)?;
    if assignment.unlink {
        // It runs on without its file. That it stays behind is no reason not to measure.
        let _ = std::env::current_exe().and_then(std::fs::remove_file);
    }
    let mut agent = Agent::new(assignment);
    loop {
        let Came::Line(line) = orders.next(PollTimeout::NONE)? else { break };
        let order: Order = parse(&line)?;
        let finished = order == Order::Finish;
        let said = Said::new(agent.obey(order, &mut orders));
        let bytes = serde_json::to_vec(&said).map_err(io::Error::other);
        let told = bytes.and_then(|bytes| {
            let mut out = io::stdout().lock();
            out.write_all(&bytes).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush())
        });
        // Where nobody listens any more, the orders end, too.
        if finished || told.is_err() {
            break;
        }
    }
    agent.finish()
}

fn parse<T: for<'de> serde::Deserialize<'de>>(line: &[u8]) -> Result<T> {
    serde_json::from_slice(line).map_err(|source| {
        Error::invalid("this is for `bench pfsd` alone: it speaks to its agents in JSON").with_source(source)
    })
}

/// What an agent holds.
struct Agent {
    assignment: Assignment,
    // Ended in this order.
    serving: Option<Serving>,
    installation: Option<Installation>,
    /// Whether its directory is in the volume.
    has_directory: bool,
}

/// A pfsd that runs, and the connection to it.
struct Serving {
    client: Client,
    daemon: Daemon,
}

impl Agent {
    fn new(assignment: Assignment) -> Self {
        Self { assignment, serving: None, installation: None, has_directory: false }
    }

    fn obey<F: AsFd>(&mut self, order: Order, orders: &mut Lines<F>) -> Result<Answer> {
        match order {
            Order::Look => Ok(Answer::Looked(self.installation()?.disk())),
            Order::Serve { workers } => self.start(workers).map(|()| Answer::Serving),
            Order::Prepare { size } => self.prepare(size, orders).map(|()| Answer::Prepared),
            Order::Idle(time) => self.idle(time, orders).map(Answer::Idle),
            Order::Load(work) => {
                let directory = self.directory()?;
                let Serving { client, daemon } = self.serving()?;
                load::run(client, &directory, &work, daemon, orders).map(|loaded| Answer::Loaded(Box::new(loaded)))
            }
            Order::Rest => self.rest().map(Answer::Rested),
            Order::Finish => self.finish().map(|()| Answer::Finished),
        }
    }

    fn installation(&mut self) -> Result<&mut Installation> {
        if self.installation.is_none() {
            self.installation = Some(Installation::of(&self.assignment.service)?);
        }
        self.installation.as_mut().ok_or_else(nothing)
    }

    fn serving(&mut self) -> Result<&mut Serving> {
        self.serving.as_mut().ok_or_else(nothing)
    }

    /// Its directory in the volume.
    fn directory(&mut self) -> Result<String> {
        let name = self.assignment.directory.clone();
        Ok(format!("/{}/{name}", self.installation()?.disk))
    }

    fn start(&mut self, workers: u32) -> Result<()> {
        self.leave()?;
        let installation = self.installation()?;
        let mut daemon = installation.start(workers)?;
        let options = ConnectOptions {
            places: installation.places.clone(),
            timeout: LET_IN,
            patience: PATIENCE,
            ..ConnectOptions::default()
        };
        let client = match Client::connect(&installation.disk, &options) {
            Ok(client) => client,
            Err(error) => {
                daemon.check()?;
                return Err(error);
            }
        };
        self.serving = Some(Serving { client, daemon });
        Ok(())
    }

    /// Makes the file. Everything in it is noise: a device that compresses, or knows zeroes when it sees them, is not asked
    /// for its best case.
    fn prepare<F: AsFd>(&mut self, size: ByteSize, orders: &mut Lines<F>) -> Result<()> {
        let directory = self.directory()?;
        self.serving()?.client.mkdir(&directory)?;
        self.has_directory = true;
        let Serving { client, daemon } = self.serving()?;
        let flags = OpenFlags(libc::O_RDWR | libc::O_CREAT | libc::O_EXCL);
        let file = client.open(format!("{directory}/{DATA}"), flags, 0o644)?;
        let mut noise = vec![0; PIECE.to_usize()?];
        let mut rng = Rng::with_seed(size.bytes());
        let mut at = 0;
        while at < size.bytes() {
            rng.fill(&mut noise);
            let len = usize::try_from(size.bytes() - at).unwrap_or(usize::MAX).min(noise.len());
            let written = client.pwrite(&file, at, &noise[..len]);
            if written.is_err() {
                daemon.check()?;
            }
            at += written? as u64;
            if orders.has_ended()? {
                return Err(Error::interrupted("writing the file: nobody is there any more"));
            }
        }
        Ok(())
    }

    /// How much of a core the pfsd takes while it has nothing to do.
    fn idle<F: AsFd>(&mut self, time: Duration, orders: &mut Lines<F>) -> Result<f64> {
        let Serving { daemon, .. } = self.serving()?;
        rest_for(SETTLE, orders)?;
        let (before, started) = (process::cpu_time(daemon.pid()?)?, Instant::now());
        rest_for(time, orders)?;
        let cpu = process::cpu_time(daemon.pid()?)?.saturating_sub(before);
        daemon.check()?;
        Ok(cpu.as_secs_f64() / started.elapsed().as_secs_f64())
    }

    fn rest(&mut self) -> Result<ByteSize> {
        let daemon = &mut self.serving()?.daemon;
        daemon.check()?;
        let memory = process::memory(daemon.pid()?)?;
        self.leave()?;
        Ok(memory)
    }

    /// Leaves the pfsd and ends it, unless it has ended by itself, which was told then.
    fn leave(&mut self) -> Result<()> {
        let Some(Serving { client, mut daemon }) = self.serving.take() else { return Ok(()) };
        if daemon.check().is_err() {
            return Ok(());
        }
        client.umount()?;
        daemon.end()
    }

    /// Gives everything back. What cannot be is no reason to keep the rest; the first that could not is said.
    fn finish(&mut self) -> Result<()> {
        let tidied = if self.assignment.tidy && self.has_directory { self.tidy() } else { Ok(()) };
        self.has_directory = false;
        let left = self.leave();
        let given_back = self.installation.as_mut().map_or(Ok(()), Installation::give_back);
        self.installation = None;
        tidied.and(left).and(given_back)
    }

    /// Removes its directory from the volume, and what is in it.
    fn tidy(&mut self) -> Result<()> {
        let directory = self.directory()?;
        if self.serving.as_mut().is_none_or(|serving| serving.daemon.check().is_err()) {
            self.start(1)?;
        }
        let client = &self.serving()?.client;
        let left = |error: Error| {
            error.with_hint(format!("{directory} is left in the volume, and can go: pfs rm -r {directory}"))
        };
        remove(client, &directory).map_err(left)
    }
}

/// Removes a directory and what is in it, of which nothing is a directory of directories.
fn remove(client: &Client, directory: &str) -> Result<()> {
    for entry in client.readdir(directory)? {
        let path = format!("{directory}/{}", String::from_utf8_lossy(&entry.name));
        if entry.is_directory { remove(client, &path)? } else { client.unlink(&path)? }
    }
    client.rmdir(directory)
}

/// Waits, unless nobody is there any more.
fn rest_for<F: AsFd>(time: Duration, orders: &mut Lines<F>) -> Result<()> {
    const LOOK: Duration = Duration::from_millis(50);
    let started = Instant::now();
    while let Some(left) = time.checked_sub(started.elapsed()) {
        if orders.has_ended()? {
            return Err(Error::interrupted("watching an idle pfsd: nobody is there any more"));
        }
        thread::sleep(left.min(LOOK));
    }
    Ok(())
}

/// An order that came too early.
fn nothing() -> Error {
    Error::new(ErrorKind::InvalidInput, "there is no pfsd yet to do this with")
}
