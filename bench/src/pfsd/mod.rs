//! What a `pfsd` does, with how many workers, for how many clients; and what the disk below it could do.
//!
//! An [agent] beside the pfsd starts it with each number of workers in turn and is its client; the experiment here tells it
//! what to do. Where nothing else is said, the disk that is served is an image of our own, with a volume, which goes in the
//! end. All clients read and write one file, which is written before anything is measured: reading what was never written
//! measures memory. The ceilings are measured on the very blocks that this file has, with nobody in between.
//!
//! Only one pfsd runs at a time, for an idle one may take a good part of a core. Every round visits every pfsd with every number
//! of workers, in an order of its own.

mod advice;
pub mod agent;
mod lines;
mod medium;
mod outcome;
mod plan;
mod session;
mod stage;
mod which;
pub mod work;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use blockdev::{ByteSize, Cancel, Error, ErrorKind, Result};
use fastrand::Rng;

use crate::disk::{self, Progress};
use crate::load;
use crate::report::{Environment, Finding, Run, Severity};
use outcome::{Outcome, Place};
use plan::Spec;
use stage::Stage;

pub use plan::{Common, Sweep, WORKERS};
pub use session::AGENT;
pub use which::Which;
pub use work::Rw;

/// About how long a pfsd takes to begin and to end.
const TURN: Duration = Duration::from_millis(1500);

/// What is measured, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which pfsd.
    pub pfsd: Which,
    /// Another one to compare it with.
    pub against: Option<Which>,
    /// Numbers of workers.
    pub workers: Vec<u32>,
    /// What clients do.
    pub sweep: Sweep,
    /// What all of that has in common.
    pub common: Common,
    /// How often everything is run.
    pub rounds: u32,
    /// How long each is watched while it has nothing to do; not at all if that is nothing.
    pub idle: Duration,
    /// Directories to make an image in, one after the other.
    pub scratch: Vec<PathBuf>,
    /// Of a container's pfsd: which disk, where that must be said.
    pub disk: Option<String>,
    /// Where the container is: a URL or context of Docker's.
    pub docker: Option<String>,
    /// This program, or one like it, to be an agent.
    pub program: PathBuf,
    /// The same for containers.
    pub container_program: PathBuf,
}

/// Measures. Once `cancel` is set, what was measured by then is returned, and [`Run::completed`] is false. All that was made is
/// gone when this returns.
///
/// A load that fails is reported in its cell; the others are run.
///
/// # Errors
/// When the options are not possible, a pfsd is missing, in use or does not start, or there is not enough space.
pub fn measure(options: &Options, progress: &mut dyn Progress, cancel: &Cancel) -> Result<Run> {
    let began = Instant::now();
    let specs = plan::cells(&options.sweep, &options.common)?;
    let workers = plan::check_workers(&options.workers)?;
    let pfsds = which::all(options)?;
    let subject = pfsds.iter().map(|pfsd| pfsd.label.as_str()).collect::<Vec<_>>().join(" against ");
    let mut run = Run::begin("pfsd", subject, Environment::of_this_machine(Vec::new()));
    let labels = pfsds.iter().map(|pfsd| pfsd.label.clone()).collect();
    let outcome = Outcome::new(specs.clone(), workers.clone(), labels);
    let media = stage::count(options);
    let mut tour = Tour {
        options,
        specs,
        workers,
        rng: Rng::with_seed(options.common.seed),
        outcome,
        steps: Steps::default(),
        progress,
        cancel,
    };
    tour.steps = tour.all_steps(pfsds.len(), media);
    for medium in 0..media {
        let mut stage = Stage::set(options, &pfsds, medium, &mut run, cancel)?;
        tour.outcome.media.push(stage.name.clone());
        let visited = tour.visit(medium, &mut stage);
        let struck = stage.strike();
        match visited {
            Err(error) if error.kind() == ErrorKind::Interrupted && cancel.is_cancelled() => break,
            visited => visited.and(struck)?,
        }
    }
    let Tour { outcome, .. } = tour;
    outcome.report(&mut run);
    run.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    run.end(began.elapsed(), !cancel.is_cancelled());
    Ok(run)
}

/// Goes from pfsd to pfsd.
struct Tour<'a> {
    options: &'a Options,
    specs: Vec<Spec>,
    workers: Vec<u32>,
    rng: Rng,
    outcome: Outcome,
    steps: Steps,
    progress: &'a mut dyn Progress,
    cancel: &'a Cancel,
}

/// How far it is.
#[derive(Debug, Default)]
struct Steps {
    done: usize,
    of: usize,
    left: Duration,
}

impl Tour<'_> {
    /// How many steps there are, and how long they take.
    fn all_steps(&self, pfsds: usize, media: usize) -> Steps {
        let common = &self.options.common;
        let times = |count: usize, each: Duration| each * u32::try_from(count).unwrap_or(u32::MAX);
        let cell = common.warmup + common.runtime;
        let ceilings = self.specs.iter().filter(|spec| spec.work.rw.pattern().is_some()).count() * 2;
        let turns = self.workers.len() * pfsds;
        let loads = turns * self.specs.len();
        let rounds = self.options.rounds as usize * media;
        let round = times(ceilings + loads, cell) + times(turns, TURN + self.options.idle);
        Steps {
            done: 0,
            of: rounds * (ceilings + loads + turns) + media,
            left: times(rounds, round) + times(media, TURN),
        }
    }

    /// A step begins that takes about `length`.
    fn step(&mut self, name: &str, length: Duration) -> Result<()> {
        self.cancel.check("bench pfsd")?;
        self.steps.done += 1;
        // What could not be done elsewhere makes it shorter.
        self.progress.cell(self.steps.done.min(self.steps.of), self.steps.of, name, self.steps.left);
        self.steps.left = self.steps.left.saturating_sub(length);
        Ok(())
    }

    /// All rounds on one medium.
    fn visit(&mut self, medium: usize, stage: &mut Stage) -> Result<()> {
        self.step("writing the file", TURN)?;
        let progress = &mut *self.progress;
        stage.prepare(self.options.common.size, self.cancel, &mut |elapsed| progress.elapsed(elapsed))?;
        for round in 0..self.options.rounds {
            self.ceilings(round, medium, stage)?;
            let mut turns: Vec<Place> = Vec::new();
            for workers in self.workers.clone() {
                turns.extend((0..stage.sessions.len()).map(|pfsd| Place { medium, pfsd, workers }));
            }
            self.rng.shuffle(&mut turns);
            for place in turns {
                self.turn(round, place, stage)?;
            }
        }
        Ok(())
    }

    /// One pfsd with one number of workers.
    fn turn(&mut self, round: u32, place: Place, stage: &mut Stage) -> Result<()> {
        let title = format!("{} -w {}", self.outcome.pfsds[place.pfsd], place.workers);
        self.step(&format!("{title}: idle"), TURN + self.options.idle)?;
        let (cancel, session) = (self.cancel, &mut stage.sessions[place.pfsd]);
        session.serve(place.workers, cancel)?;
        let progress = &mut *self.progress;
        if self.options.idle > Duration::ZERO {
            let idle = session.idle(self.options.idle, cancel, &mut |elapsed| progress.elapsed(elapsed))?;
            self.outcome.add_idle(place, idle);
        }
        let mut runs = true;
        for index in 0..self.specs.len() {
            let Spec { name, work, .. } = self.specs[index].clone();
            self.step(&format!("{title}: {name}"), work.warmup + work.runtime)?;
            if self.outcome.has_failed(index, place.pfsd) {
                continue;
            }
            let session = &mut stage.sessions[place.pfsd];
            if !runs {
                session.serve(place.workers, cancel)?;
            }
            let progress = &mut *self.progress;
            let loaded = session.load(&work, cancel, &mut |elapsed| progress.elapsed(elapsed));
            runs = loaded.is_ok();
            let not_disk = stage.why_not_disk(&work)?;
            match loaded {
                Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
                loaded => {
                    let loaded = loaded.map_err(|error| disk::with_cause(&error));
                    self.outcome.add_load(round, index, place, loaded, not_disk.as_deref());
                }
            }
        }
        if runs {
            let memory = stage.sessions[place.pfsd].rest(cancel)?;
            self.outcome.add_memory(place, memory);
        }
        Ok(())
    }

    /// What the disk does by itself, where the file lies.
    fn ceilings(&mut self, round: u32, medium: usize, stage: &Stage) -> Result<()> {
        for index in 0..self.specs.len() {
            let work = self.specs[index].work.clone();
            for target in 0..2 {
                let Some(target) = stage.targets.get(target) else { continue };
                let Some(spec) = stage.ceiling(target, &work) else { continue };
                self.step(&format!("{}: {}", target.name(), spec.name), work.warmup + work.runtime)?;
                let progress = &mut *self.progress;
                let open = || target.engine(spec.engine, &spec.work);
                let measured = load::run(&spec.work, open, self.cancel, |elapsed| progress.elapsed(elapsed));
                self.cancel.check("bench pfsd")?;
                let not_disk = if stage.in_memory { None } else { target.why_not_disk(&spec.work)? };
                let measured = match measured {
                    Err(error) if error.kind() != ErrorKind::Io => return Err(error),
                    measured => measured.map_err(|error| disk::with_cause(&error)),
                };
                self.outcome.add_ceiling(round, (medium, index), target.name(), &spec, measured, not_disk);
            }
        }
        Ok(())
    }
}

/// Room that a volume must have for all that is written to it.
fn room(sweep: &Sweep, size: ByteSize) -> ByteSize {
    // What is appended to is emptied when it is as long as the file, and its blocks may be others then.
    if sweep.rw.contains(&Rw::Append) { size + size + size } else { size }
}

/// That there is something to say which is no figure.
fn note(id: &str, text: impl Into<String>) -> Finding {
    Finding::new(Severity::Note, id, text)
}

/// That something is needed of root.
fn needs_root(what: &str) -> Error {
    Error::new(ErrorKind::Permission, format!("{what} needs root")).with_hint("run it with sudo")
}
