//! Which setup of a disk serves a shared-disk database best on this machine.
//!
//! A setup is a choice of pre-allocation, direct I/O, block size and scheduler of the loop device, and engine. Measuring
//! every combination would take hours and drown in comparisons, so the setups are a baseline and what differs from
//! it in one choice each, with the raw image file as the ceiling. Each is built, measured under the parts of a
//! database's load and removed, in rounds: every round visits every setup, in an order shuffled anew, so that
//! what changes on the machine meanwhile changes for all. What turns out to be faster, beyond noise and without
//! a risk to the data, is combined; the combination then meets the baseline in rounds of its own, because the best of
//! many measurements looks better than it is, and because two gains need not add up.

mod built;
mod command;
mod outcome;
mod plan;
mod rank;
mod scratch;
mod setup;
mod visit;
mod workload;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use blockdev::engine::{Choice, uring_works};
use blockdev::image::{self, CreateOptions};
use blockdev::loopdev::{self, Attachment};
use blockdev::topology::Device;
use blockdev::ui::Silent;
use blockdev::{ByteSize, Cancel, Error, ErrorKind, Result};
use nix::sys::statvfs::statvfs;

use crate::disk::Progress;
use crate::report::Run;
use outcome::{Duel, Outcome};
use plan::{IMAGE_MIN, Pace, Plan, ROUNDS_MAX, ROUNDS_MIN};
use scratch::Scratch;
use setup::{NO_SCHEDULER, Setup};
use visit::{Visit, visit};

pub use plan::Budget;
pub use setup::Factor;

/// Space that is left free beside the image.
const MARGIN: ByteSize = ByteSize::mib(64);

/// What to tune, and at what cost.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where images would be kept.
    pub dir: PathBuf,
    /// How much time and space it may take.
    pub budget: Budget,
    /// The choices to vary; others stay as the baseline has them.
    pub vary: Vec<Factor>,
    /// Of the order in which setups are visited, and of what the loads do.
    pub seed: u64,
}

/// Something that could not be measured here.
#[derive(Debug, Clone, PartialEq, Eq)]
struct LeftOut {
    what: String,
    why: String,
}

/// Builds, measures and removes setups, and says which is best.
///
/// Once `cancel` is set, what whole rounds measured by then is returned, and [`Run::completed`] is false.
///
/// # Errors
/// When the budget is too small, the place is not on a disk or has not enough space, an I/O fails, or `cancel` was set
/// before the first round was over. Nothing is left behind in any case.
pub fn tune(options: &Options, progress: &mut dyn Progress, cancel: &Cancel) -> Result<Run> {
    let begun = Instant::now();
    let scratch = Scratch::new(&options.dir)?;
    let image = scratch.image();
    let (baseline, schedulers, mut left_out) = look_around(&image, cancel)?;
    let mut setups = baseline.one_change_each(&schedulers);
    setups.retain(|setup| {
        let mut changes = setup.changes_from(&baseline).into_iter();
        changes.all(|change| change == Factor::Device || options.vary.contains(&change))
    });
    Plan::new(&options.budget, begun.elapsed(), &Pace::default(), setups.len())?;
    check_space(&options.dir, IMAGE_MIN)?;

    let budget = options.budget.time;
    let rng = fastrand::Rng::with_seed(options.seed);
    let mut tour = Tour { image, plan: Plan::trial(), begun, budget, rng, progress, cancel };
    let pace = tour.try_out(&mut setups, &mut left_out)?;
    tour.plan = Plan::new(&options.budget, begun.elapsed(), &pace, setups.len())?;
    check_space(&options.dir, tour.plan.image)?;

    let mut outcome = Outcome::new(options, &tour.plan, setups, left_out);
    outcome.compare(tour.rounds(&outcome.setups, tour.plan.rounds_end)?);
    if let Some(best) = outcome.best().filter(|_| !cancel.is_cancelled()) {
        let pair = [outcome.setups[0].clone(), best];
        match tour.rounds(&pair, budget) {
            Ok(rounds) => outcome.duel = Some(Duel::new(pair, &rounds)),
            // What was measured before is worth telling.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    drop(scratch);
    Ok(outcome.into_run(begun.elapsed(), !cancel.is_cancelled()))
}

/// Goes from setup to setup.
struct Tour<'a> {
    image: PathBuf,
    plan: Plan,
    begun: Instant,
    budget: Duration,
    rng: fastrand::Rng,
    progress: &'a mut dyn Progress,
    cancel: &'a Cancel,
}

impl Tour<'_> {
    /// Visits every setup once, in small, and drops those that cannot be had here. Says how fast that went.
    fn try_out(&mut self, setups: &mut Vec<Setup>, left_out: &mut Vec<LeftOut>) -> Result<Pace> {
        let baseline = setups[0].clone();
        let count = setups.len();
        let (mut building, mut overhead) = (Duration::ZERO, Duration::ZERO);
        let mut kept = Vec::new();
        for (index, setup) in setups.drain(..).enumerate() {
            let name = setup.name(&baseline);
            let left = self.budget.saturating_sub(self.begun.elapsed());
            self.progress.cell(index + 1, count, &format!("trying {name}"), left);
            match visit(&setup, &self.plan, &self.image, index as u64, self.cancel) {
                Ok(visit) => {
                    building += visit.building;
                    overhead += visit.elapsed.saturating_sub(visit.building + visit.measuring);
                    kept.push(setup);
                }
                Err(error) if error.kind() == ErrorKind::Unsupported && setup != baseline => {
                    left_out.push(LeftOut { what: name, why: error.to_string() });
                }
                Err(error) => return Err(error),
            }
        }
        *setups = kept;
        let visits = u32::try_from(setups.len()).unwrap_or(u32::MAX);
        #[allow(clippy::cast_precision_loss, reason = "an estimate")]
        let per_byte_s = (building / visits).as_secs_f64() / IMAGE_MIN.bytes() as f64;
        Ok(Pace { per_byte_s, overhead: overhead / visits })
    }

    /// Visits all `setups` in rounds that are over by `end`, or by the end of the budget as long as they are too few.
    /// When interrupted, the rounds that were whole by then are returned.
    fn rounds(&mut self, setups: &[Setup], end: Duration) -> Result<Vec<Vec<Visit>>> {
        let mut rounds = Vec::new();
        let mut longest = Duration::ZERO;
        while rounds.len() < ROUNDS_MAX as usize {
            let end = if rounds.len() < ROUNDS_MIN as usize { self.budget } else { end };
            if !rounds.is_empty() && self.begun.elapsed() + longest > end {
                break;
            }
            let begun = Instant::now();
            match self.round(setups, rounds.len() + 1, end) {
                Ok(visits) => rounds.push(visits),
                Err(error) if error.kind() == ErrorKind::Interrupted && !rounds.is_empty() => break,
                Err(error) => return Err(error),
            }
            longest = longest.max(begun.elapsed());
        }
        Ok(rounds)
    }

    /// Visits all `setups` in an order of its own, and returns what was measured in the order of `setups`.
    fn round(&mut self, setups: &[Setup], number: usize, end: Duration) -> Result<Vec<Visit>> {
        let mut order: Vec<usize> = (0..setups.len()).collect();
        self.rng.shuffle(&mut order);
        // The same offsets for all in a round, so that luck in them is shared.
        let seed = self.rng.u64(..);
        let mut visits = Vec::new();
        for (index, setup) in order.into_iter().enumerate() {
            let name = format!("round {number}: {}", setups[setup].name(&setups[0]));
            self.progress.cell(index + 1, setups.len(), &name, end.saturating_sub(self.begun.elapsed()));
            visits.push((setup, visit(&setups[setup], &self.plan, &self.image, seed, self.cancel)?));
        }
        visits.sort_by_key(|(setup, _)| *setup);
        Ok(visits.into_iter().map(|(_, visit)| visit).collect())
    }
}

/// The baseline for this machine, the schedulers that a loop device may have, and what cannot be measured at all.
fn look_around(image: &Path, cancel: &Cancel) -> Result<(Setup, Vec<String>, Vec<LeftOut>)> {
    let mut left_out = Vec::new();
    let engine = match uring_works() {
        Ok(()) => Choice::Uring,
        Err(why) => {
            left_out.push(LeftOut { what: "io_uring".to_owned(), why: why.to_string() });
            Choice::Threads
        }
    };
    let (mut baseline, schedulers) = match attach_something(image, cancel) {
        Ok(attachment) => {
            let device = Device::at(&attachment.device().path)?;
            match device.scheduler {
                Some(found) => (Setup::recommended(&found.current), found.available),
                None => (Setup::recommended(NO_SCHEDULER), Vec::new()),
            }
        }
        Err(error) if matches!(error.kind(), ErrorKind::Permission | ErrorKind::Unsupported) => {
            let why = match error.hint() {
                Some(hint) => format!("{error} ({hint})"),
                None => error.to_string(),
            };
            left_out.push(LeftOut {
                what: "everything about the loop device (direct I/O, block size, scheduler)".to_owned(),
                why,
            });
            (Setup::file(), Vec::new())
        }
        Err(error) => return Err(error),
    };
    baseline.engine = engine;
    Ok((baseline, schedulers, left_out))
}

/// Attaches a small file, to see what loop devices are like here.
fn attach_something(image: &Path, cancel: &Cancel) -> Result<Attachment> {
    let probe = image.with_file_name("probe");
    image::create(&probe, &CreateOptions::new(ByteSize::mib(1)), &mut Silent, cancel)?;
    loopdev::attach(&probe, &loopdev::Options::default())
}

/// Whether an image of `size` fits into `dir`.
fn check_space(dir: &Path, size: ByteSize) -> Result<()> {
    let what = |errno| Error::io(format!("cannot see how much space is free in {}", dir.display()), errno);
    let there = statvfs(dir).map_err(what)?;
    let free = ByteSize::new(there.blocks_available() * there.fragment_size());
    let needed = size + MARGIN;
    if free >= needed {
        return Ok(());
    }
    let error =
        Error::new(ErrorKind::NoSpace, format!("not enough space in {}: {needed} needed, {free} free", dir.display()));
    let fits = free.saturating_sub(MARGIN);
    Err(if fits >= IMAGE_MIN { error.with_hint(format!("give --space {}M", fits.bytes() >> 20)) } else { error })
}
