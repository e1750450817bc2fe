//! From a budget of time and space to sizes and runtimes.

use std::time::Duration;

use blockdev::{ByteSize, Error, Result};

use super::workload::{LAYOUT_UNIT, Workload};

/// Fewer rounds tell hardly anything from noise: with six, two setups that differ in every round differ with p = 0.002,
/// which ten comparisons at once still leave below 0.05.
pub const ROUNDS_MIN: u32 = 6;

/// More rounds than this make numbers sharper than they stay from one day to the next; longer measurements serve better.
pub const ROUNDS_MAX: u32 = 20;

/// The smallest image: every workload finds 512 fresh blocks.
pub const IMAGE_MIN: ByteSize = ByteSize::mib(64);

/// The shortest measurement of a workload: dozens of fdatasyncs on a good disk, a handful on a spinning one.
const CELL_MIN: Duration = Duration::from_millis(40);

/// The length of a measurement that rounds are added for, rather than more time in each.
const CELL_GOOD: Duration = Duration::from_millis(100);

/// How many measurements a visit makes.
const CELLS: usize = Workload::ALL.len();

/// The share of the time that is kept for the last comparison, of the best combination with the baseline.
const FINAL: f64 = 0.2;

/// What is left of a visit beyond the least it needs goes in this share into a larger image, the rest into measuring.
const INTO_IMAGE: f64 = 0.35;

/// How much time and space may be spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// The time for everything.
    pub time: Duration,
    /// The size of an image; there is only ever one at a time.
    pub space: ByteSize,
}

/// How fast this machine builds a setup, from a trial. The default is a machine that needs no time at all.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Pace {
    /// What building, settling and removing takes for each byte of the image.
    pub per_byte_s: f64,
    /// What a visit takes besides that and the measurements: attaching, detaching, starting and ending loads.
    pub overhead: Duration,
}

/// How the budget is spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// The size of every image.
    pub image: ByteSize,
    /// How long each workload is measured in each visit.
    pub runtime: Duration,
    /// How many times every setup is visited, if all goes as in the trial.
    pub rounds: u32,
    /// When the rounds should be over, so that time is left for the last comparison.
    pub rounds_end: Duration,
}

impl Plan {
    /// The plan for measuring `setups` setups within `budget`, of whose time `spent` is gone already.
    ///
    /// # Errors
    /// When the budget is too small for anything that can be relied on; the hint says how much is enough.
    pub fn new(budget: &Budget, spent: Duration, pace: &Pace, setups: usize) -> Result<Self> {
        if budget.space < IMAGE_MIN {
            return Err(Error::invalid(format!("an image of {} is too small to measure on", budget.space))
                .with_hint(format!("give --space {IMAGE_MIN} or more")));
        }
        let setups = count(setups);
        let building = |image| pace.per_byte_s * bytes(image);
        let fixed = pace.overhead.as_secs_f64() + building(IMAGE_MIN);
        let [visit_min, visit_good] = [CELL_MIN, CELL_GOOD].map(|cell| fixed + cell.as_secs_f64() * count(CELLS));

        let time = budget.time.saturating_sub(spent).as_secs_f64() * (1.0 - FINAL);
        let least = visit_min * setups * f64::from(ROUNDS_MIN);
        if time < least {
            let needed = Duration::from_secs_f64((spent.as_secs_f64() + least / (1.0 - FINAL)).ceil());
            return Err(Error::invalid(format!(
                "{ROUNDS_MIN} rounds of {setups} setups take at least {} here, and the time given is {}",
                humantime::format_duration(needed),
                humantime::format_duration(budget.time)
            ))
            .with_hint("give more --time, or --vary fewer choices"));
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to a handful")]
        let rounds = ((time / (setups * visit_good)) as u32).clamp(ROUNDS_MIN, ROUNDS_MAX);
        let visit = time / (setups * f64::from(rounds));

        let into_image = (visit - visit_min).max(0.0) * INTO_IMAGE;
        let image = image_size(bytes(IMAGE_MIN) + into_image / pace.per_byte_s, budget.space);
        let cell = (visit - pace.overhead.as_secs_f64() - building(image)) / count(CELLS);
        Ok(Self {
            image,
            runtime: Duration::from_secs_f64(cell).max(CELL_MIN),
            rounds,
            rounds_end: spent + Duration::from_secs_f64(time),
        })
    }

    /// The plan of a trial: the smallest image, the shortest measurements.
    #[must_use]
    pub fn trial() -> Self {
        Self { image: IMAGE_MIN, runtime: CELL_MIN, rounds: 1, rounds_end: Duration::MAX }
    }
}

/// The largest image of no more than `bytes` and `space` that can be laid out, [`IMAGE_MIN`] at least.
fn image_size(bytes: f64, space: ByteSize) -> ByteSize {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and is then cut to `space`")]
    let largest = (bytes as u64).clamp(IMAGE_MIN.bytes(), space.bytes());
    ByteSize::new(largest - largest % LAYOUT_UNIT.bytes())
}

#[allow(clippy::cast_precision_loss, reason = "a size in an estimate")]
fn bytes(size: ByteSize) -> f64 {
    size.bytes() as f64
}

#[allow(clippy::cast_precision_loss, reason = "a handful")]
fn count(things: usize) -> f64 {
    things as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PACE: Pace = Pace { per_byte_s: 2e-9, overhead: Duration::from_millis(200) };

    fn budget(time_s: u64, space: ByteSize) -> Budget {
        Budget { time: Duration::from_secs(time_s), space }
    }

    #[test]
    fn two_minutes_are_enough_for_eleven_setups() {
        let plan = Plan::new(&budget(120, ByteSize::gib(4)), Duration::ZERO, &PACE, 11).unwrap();
        assert!(plan.rounds >= ROUNDS_MIN && plan.image > IMAGE_MIN && plan.runtime > CELL_MIN, "{plan:?}");
    }

    #[test]
    fn what_is_not_enough_says_what_is() {
        let error = Plan::new(&budget(30, ByteSize::gib(4)), Duration::ZERO, &PACE, 11).unwrap_err();
        assert_eq!(error.to_string(), "6 rounds of 11 setups take at least 58s here, and the time given is 30s");
        assert_eq!(error.hint(), Some("give more --time, or --vary fewer choices"));
        assert!(Plan::new(&budget(58, ByteSize::gib(4)), Duration::ZERO, &PACE, 11).is_ok());
        let error = Plan::new(&budget(600, ByteSize::mib(63)), Duration::ZERO, &PACE, 11).unwrap_err();
        assert_eq!(error.to_string(), "an image of 63 MiB is too small to measure on");
        assert_eq!(error.hint(), Some("give --space 64 MiB or more"));
    }

    #[test]
    fn no_pace_at_all_is_the_least_that_any_machine_needs() {
        let no_pace = Pace::default();
        assert!(Plan::new(&budget(29, ByteSize::gib(4)), Duration::ZERO, &no_pace, 11).is_err());
        let plan = Plan::new(&budget(30, ByteSize::gib(4)), Duration::ZERO, &no_pace, 11).unwrap();
        assert_eq!(plan.image, ByteSize::gib(4));
    }

    proptest! {
        #[test]
        fn a_plan_keeps_to_its_budget(
            time_s in 1u64..20_000,
            space_mib in 64u64..100_000,
            per_byte_ns in 0.01f64..100.0,
            overhead_ms in 0u64..2000,
            setups in 2usize..15,
            spent_s in 0u64..20,
        ) {
            let spent = Duration::from_secs(spent_s);
            let budget = budget(time_s, ByteSize::mib(space_mib));
            let pace = Pace { per_byte_s: per_byte_ns * 1e-9, overhead: Duration::from_millis(overhead_ms) };
            let Ok(plan) = Plan::new(&budget, spent, &pace, setups) else { return Ok(()) };
            prop_assert!(plan.image >= IMAGE_MIN && plan.image <= budget.space);
            prop_assert!(plan.image.is_multiple_of(LAYOUT_UNIT));
            prop_assert!((ROUNDS_MIN..=ROUNDS_MAX).contains(&plan.rounds));
            prop_assert!(plan.runtime >= CELL_MIN);
            let visit = plan.runtime.as_secs_f64() * count(CELLS) + pace.overhead.as_secs_f64() + pace.per_byte_s * bytes(plan.image);
            let rounds = visit * count(setups) * f64::from(plan.rounds);
            prop_assert!(rounds <= (plan.rounds_end - spent).as_secs_f64() * 1.001);
            prop_assert!(plan.rounds_end < budget.time);
        }

        #[test]
        fn the_time_that_an_error_asks_for_is_enough(setups in 2usize..15, overhead_ms in 0u64..2000, spent_s in 0u64..20) {
            let spent = Duration::from_secs(spent_s);
            let pace = Pace { per_byte_s: 1e-9, overhead: Duration::from_millis(overhead_ms) };
            let error = Plan::new(&budget(1, ByteSize::gib(1)), spent, &pace, setups).unwrap_err().to_string();
            let needed = error.split("at least ").nth(1).unwrap().split(" here").next().unwrap();
            let enough = Budget { time: humantime::parse_duration(needed).unwrap(), space: ByteSize::gib(1) };
            prop_assert!(Plan::new(&enough, spent, &pace, setups).is_ok());
        }
    }
}
