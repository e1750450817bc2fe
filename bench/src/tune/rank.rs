//! Which setup is faster, by how much, and which differences are noise.
//!
//! Every setup is compared with the baseline. By how much: the median over the rounds of the ratio within each round.
//! Whether at all: the rank-sum test over the rounds, after the drift of the machine, as the *other* setups felt it in the
//! same round, was taken out. Many comparisons are made at once, so p-values are adjusted (Benjamini and Hochberg): of
//! the differences that are called so, 5 % at most are noise, and where there is no difference at all, one is called in
//! 5 % of runs at most.

use super::workload::{Part, Workload};
use crate::report::stats::{self, CONFIDENCE, Estimate};

/// How many workloads there are.
const WORKLOADS: usize = Workload::ALL.len();

/// What a setup came to: for each of [`Workload::ALL`] the operations per second in every round, or nothing where they
/// are not those of a disk.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rates(pub [Option<Vec<f64>>; WORKLOADS]);

impl Rates {
    /// The rates in `workload`, where all can be compared. A round that was too short for a single operation cannot.
    fn of(&self, workload: usize) -> Option<&[f64]> {
        self.0[workload].as_deref().filter(|rates| rates.iter().all(|rate| *rate > 0.0))
    }
}

/// How a setup differs from the baseline, in one workload or over all.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// How many times as fast it was in each round.
    pub ratios: Vec<f64>,
    /// How many times as fast it is: their median.
    pub ratio: Estimate,
    /// How likely such a difference would be by chance, adjusted for how many were looked at.
    pub p: f64,
}

/// What to make of a [`Difference`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is faster than the baseline.
    Faster,
    /// It is slower.
    Slower,
    /// The rounds do not tell.
    Noise,
}

impl Difference {
    /// Whether it is one.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        if self.p > 1.0 - CONFIDENCE || self.ratio.contains(1.0) {
            Verdict::Noise
        } else if self.ratio.value > 1.0 {
            Verdict::Faster
        } else {
            Verdict::Slower
        }
    }
}

/// How a setup compares with the baseline. Nothing where there is nothing to compare: fewer than two rounds, or numbers
/// that are not a disk's.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Comparison {
    /// In the whole mix: each [`Part`] counts a third, each of its workloads the same within it.
    pub overall: Option<Difference>,
    /// In each of [`Workload::ALL`].
    pub workloads: [Option<Difference>; WORKLOADS],
}

/// Compares all `setups` with that at `baseline`, which itself has an empty comparison.
#[must_use]
pub fn compare(setups: &[Rates], baseline: usize) -> Vec<Comparison> {
    let others = || (0..setups.len()).filter(|setup| *setup != baseline);
    let mut comparisons = vec![Comparison::default(); setups.len()];
    for setup in others() {
        let pair = Pair::new(setups, setup, baseline);
        comparisons[setup] = Comparison {
            overall: pair.difference(&pair.mix()),
            workloads: std::array::from_fn(|workload| pair.difference(&[(workload, 1.0)])),
        };
    }
    adjust(comparisons.iter_mut().filter_map(|comparison| comparison.overall.as_mut()).collect());
    adjust(comparisons.iter_mut().flat_map(|comparison| comparison.workloads.iter_mut().flatten()).collect());
    comparisons
}

/// A setup, the baseline, and all others, which tell how the machine drifted.
struct Pair<'a> {
    setup: &'a Rates,
    baseline: &'a Rates,
    others: Vec<&'a Rates>,
}

impl<'a> Pair<'a> {
    fn new(setups: &'a [Rates], setup: usize, baseline: usize) -> Self {
        let others = setups.iter().enumerate().filter(|(index, _)| ![setup, baseline].contains(index));
        Self { setup: &setups[setup], baseline: &setups[baseline], others: others.map(|(_, rates)| rates).collect() }
    }

    /// The workloads that can be compared, each with its weight in the mix.
    fn mix(&self) -> Vec<(usize, f64)> {
        let comparable = |part| {
            (0..WORKLOADS).filter(move |workload| {
                Workload::ALL[*workload].part == part
                    && self.setup.of(*workload).is_some()
                    && self.baseline.of(*workload).is_some()
            })
        };
        let parts = Part::ALL.into_iter().filter(|part| comparable(*part).count() > 0);
        let part_weight = 1.0 / count(parts.clone().count());
        parts
            .flat_map(|part| {
                comparable(part).map(move |workload| (workload, part_weight / count(comparable(part).count())))
            })
            .collect()
    }

    /// The difference in `workloads`, each with its weight; its p is not adjusted yet.
    fn difference(&self, workloads: &[(usize, f64)]) -> Option<Difference> {
        let (setup, baseline) = self.logs(workloads)?;
        let ratios: Vec<f64> = setup.iter().zip(&baseline).map(|(own, base)| (own - base).exp()).collect();
        let ratio = stats::median_estimate(&ratios)?;
        Some(Difference { ratios, ratio, p: stats::rank_sum_p(&setup, &baseline) })
    }

    /// The logarithms of the weighted geometric means of `workloads`, of the setup and of the baseline, without the drift.
    fn logs(&self, workloads: &[(usize, f64)]) -> Option<(Vec<f64>, Vec<f64>)> {
        let (mut setup, mut baseline) = (Vec::new(), Vec::new());
        for (workload, weight) in workloads {
            let drift = self.drift(*workload);
            for (sum, rates) in [(&mut setup, self.setup), (&mut baseline, self.baseline)] {
                let rates = rates.of(*workload)?;
                sum.resize(rates.len(), 0.0);
                for (round, (sum, rate)) in sum.iter_mut().zip(rates).enumerate() {
                    *sum += weight * (rate.ln() - drift.get(round).copied().unwrap_or(0.0));
                }
            }
        }
        Some((setup, baseline))
    }

    /// By how much each round was faster than usual in `workload`, as a logarithm, as the others felt it.
    fn drift(&self, workload: usize) -> Vec<f64> {
        let felt: Vec<Vec<f64>> = self
            .others
            .iter()
            .filter_map(|rates| {
                let logs: Vec<f64> = rates.of(workload)?.iter().map(|rate| rate.ln()).collect();
                let usual = stats::median(&logs)?;
                Some(logs.into_iter().map(|log| log - usual).collect())
            })
            .collect();
        let rounds = felt.iter().map(Vec::len).min().unwrap_or(0);
        (0..rounds)
            .filter_map(|round| stats::median(&felt.iter().map(|rounds| rounds[round]).collect::<Vec<_>>()))
            .collect()
    }
}

/// Benjamini and Hochberg's adjustment of the p-values of all `differences` that are looked at together.
fn adjust(mut differences: Vec<&mut Difference>) {
    differences.sort_by(|a, b| b.p.total_cmp(&a.p));
    let total = differences.len();
    let mut least: f64 = 1.0;
    for (index, difference) in differences.into_iter().enumerate() {
        least = least.min(difference.p * count(total) / count(total - index));
        difference.p = least;
    }
}

#[allow(clippy::cast_precision_loss, reason = "a handful")]
fn count(things: usize) -> f64 {
    things as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;
    use proptest::prelude::*;

    const SETUPS: usize = 11;

    /// A machine that drifts by half from round to round and is disturbed by a tenth at random, on which setup `i` is
    /// `speed(i, workload)` times as fast as the baseline.
    fn measured(rng: &mut Rng, rounds: usize, speed: impl Fn(usize, Workload) -> f64) -> Vec<Rates> {
        let drift: Vec<f64> = (0..rounds).map(|_| rng.f64() * 0.5).collect();
        let mut setup = |setup: usize| {
            Rates(Workload::ALL.map(|workload| {
                let noise = drift.iter().map(|drift| drift + 0.1 * normal(rng));
                Some(noise.map(|noise| 1000.0 * speed(setup, workload) * noise.exp()).collect())
            }))
        };
        (0..SETUPS).map(&mut setup).collect()
    }

    fn normal(rng: &mut Rng) -> f64 {
        (0..12).map(|_| rng.f64()).sum::<f64>() - 6.0
    }

    fn verdict(difference: Option<&Difference>) -> Verdict {
        difference.unwrap().verdict()
    }

    #[test]
    fn a_planted_fifth_is_found_and_the_rest_is_noise() {
        let mut rng = Rng::with_seed(1);
        let (mut found, mut missed, mut called) = (0, 0, 0);
        for _ in 0..6 {
            let setups = measured(&mut rng, 8, |setup, _| if setup == 3 { 1.2 } else { 1.0 });
            for (setup, comparison) in compare(&setups, 0).into_iter().enumerate().skip(1) {
                match (setup, verdict(comparison.overall.as_ref())) {
                    (3, Verdict::Faster) => found += 1,
                    (3, _) => missed += 1,
                    (_, Verdict::Noise) => {}
                    _ => called += 1,
                }
            }
        }
        assert_eq!((found, missed), (6, 0));
        assert!(called <= 1, "{called} of 54");
    }

    /// Where there is no difference at all, a run that calls one is a false alarm, whichever of the ten it is.
    #[test]
    fn runs_without_any_difference_seldom_call_one() {
        for (rounds, seed) in [(6, 2), (8, 3)] {
            let mut rng = Rng::with_seed(seed);
            let alarms = (0..200).filter(|_| raises_alarm(&measured(&mut rng, rounds, |_, _| 1.0))).count();
            // 5 % of 200 are 10; three standard deviations more are 19.
            assert!(alarms <= 19, "{alarms} of 200 with {rounds} rounds");
        }
    }

    /// Whether a difference is called, judged by p alone: intervals only make it rarer, and take longer than all the rest.
    fn raises_alarm(setups: &[Rates]) -> bool {
        let difference = |setup| {
            let pair = Pair::new(setups, setup, 0);
            let (own, base) = pair.logs(&pair.mix()).unwrap();
            Difference { p: stats::rank_sum_p(&own, &base), ..difference_with(2.0, 0.0) }
        };
        let mut differences: Vec<Difference> = (1..SETUPS).map(difference).collect();
        adjust(differences.iter_mut().collect());
        differences.iter().any(|difference| difference.verdict() != Verdict::Noise)
    }

    /// Nobody doubts that it is `ratio`.
    fn difference_with(ratio: f64, p: f64) -> Difference {
        Difference { ratios: Vec::new(), ratio: Estimate { value: ratio, low: ratio, high: ratio }, p }
    }

    #[test]
    fn the_interval_holds_the_truth_about_as_often_as_it_claims() {
        let mut rng = Rng::with_seed(4);
        let held = (0..150)
            .filter(|_| {
                let setups = measured(&mut rng, 7, |setup, _| if setup == 1 { 1.2 } else { 1.0 });
                let pair = Pair::new(&setups[..2], 1, 0);
                pair.difference(&[(0, 1.0)]).unwrap().ratio.contains(1.2)
            })
            .count();
        assert!((130..=150).contains(&held), "{held} of 150");
    }

    #[test]
    fn a_difference_in_one_workload_is_found_in_that_one() {
        let mut rng = Rng::with_seed(5);
        let slow_fresh_sync = |setup, workload: Workload| {
            if setup == 2 && workload.fresh && workload.synced { 0.3 } else { 1.0 }
        };
        let setups = measured(&mut rng, 8, slow_fresh_sync);
        let comparison = &compare(&setups, 0)[2];
        for (workload, difference) in Workload::ALL.into_iter().zip(&comparison.workloads) {
            let expected = if workload.fresh && workload.synced { Verdict::Slower } else { Verdict::Noise };
            assert_eq!(verdict(difference.as_ref()), expected, "{}", workload.name());
        }
    }

    #[test]
    fn drift_that_all_felt_does_not_hide_a_difference() {
        let mut rng = Rng::with_seed(6);
        let mut setups = measured(&mut rng, 8, |setup, _| if setup == 1 { 1.25 } else { 1.0 });
        for rates in setups.iter_mut().flat_map(|rates| rates.0.iter_mut().flatten()) {
            // Each round half as fast as the one before.
            rates.iter_mut().zip(0..).for_each(|(rate, round)| *rate *= 0.5_f64.powi(round));
        }
        assert_eq!(verdict(compare(&setups, 0)[1].overall.as_ref()), Verdict::Faster);
    }

    #[test]
    fn what_is_no_disk_number_is_not_compared() {
        let mut rng = Rng::with_seed(7);
        let mut setups = measured(&mut rng, 8, |_, _| 1.0);
        // A thousand times as fast, because it never was on the disk.
        let memory = |rates: &mut Rates, workload: usize| rates.0[workload] = None;
        memory(&mut setups[1], 0);
        setups[1].0[1].as_mut().unwrap()[3] = 0.0;
        let comparison = &compare(&setups, 0)[1];
        assert_eq!((&comparison.workloads[0], &comparison.workloads[1]), (&None, &None));
        assert_eq!(verdict(comparison.overall.as_ref()), Verdict::Noise);
        setups[1] = Rates::default();
        assert_eq!(compare(&setups, 0)[1], Comparison::default());
    }

    #[test]
    fn the_parts_of_the_mix_count_the_same() {
        let mut rng = Rng::with_seed(8);
        let twice_as_fast_reads = |setup, workload: Workload| match workload.part {
            Part::Reads if setup == 1 => 8.0,
            _ => 1.0,
        };
        let setups = measured(&mut rng, 20, twice_as_fast_reads);
        let ratio = compare(&setups, 0)[1].overall.as_ref().unwrap().ratio.value;
        assert!((ratio - 2.0).abs() < 0.2, "{ratio}");
    }

    #[test]
    fn too_few_rounds_tell_nothing() {
        let mut rng = Rng::with_seed(9);
        for rounds in 0..5 {
            let setups = measured(&mut rng, rounds, |setup, _| if setup == 1 { 3.0 } else { 1.0 });
            for comparison in compare(&setups, 0) {
                assert!(comparison.overall.is_none_or(|difference| difference.verdict() == Verdict::Noise), "{rounds}");
            }
        }
    }

    #[test]
    fn equal_numbers_are_noise() {
        let same = Rates(std::array::from_fn(|_| Some(vec![100.0; 8])));
        let comparisons = compare(&[same.clone(), same.clone(), same], 1);
        assert_eq!(comparisons[1], Comparison::default());
        for comparison in [&comparisons[0], &comparisons[2]] {
            let difference = comparison.overall.as_ref().unwrap();
            assert_eq!((difference.ratio.value, difference.p), (1.0, 1.0));
            assert_eq!(difference.verdict(), Verdict::Noise);
        }
    }

    /// Worked through by hand: 5 values, the third of which is lowered by the fourth.
    #[test]
    fn adjusted_p_values() {
        let mut differences = [0.01, 0.2, 0.04, 0.041, 0.9].map(|p| difference_with(1.0, p));
        adjust(differences.iter_mut().collect());
        let expected = [0.05, 0.25, 0.041 * 5.0 / 3.0, 0.041 * 5.0 / 3.0, 0.9];
        for (difference, expected) in differences.iter().zip(expected) {
            assert!((difference.p - expected).abs() < 1e-12, "{} {expected}", difference.p);
        }
    }

    proptest! {
        #[test]
        fn adjusting_keeps_the_order_and_never_lowers(mut ps in prop::collection::vec(0.0f64..=1.0, 1..40)) {
            ps.sort_by(f64::total_cmp);
            let mut differences: Vec<Difference> = ps.iter().map(|p| difference_with(1.0, *p)).collect();
            adjust(differences.iter_mut().collect());
            prop_assert!(differences.is_sorted_by_key(|difference| difference.p));
            prop_assert!(differences.iter().zip(&ps).all(|(difference, p)| difference.p >= *p * 0.999_999 && difference.p <= 1.0));
        }
    }
}
