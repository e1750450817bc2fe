//! Is this difference noise?
//!
//! A measure has one sample for each round, and rounds are few: five, not five thousand. So nothing here assumes a
//! distribution. Intervals are percentile bootstraps of the median; whether two sets of rounds differ at all is asked of
//! the exact rank-sum test, which cannot be fooled by one wild round and says honestly when rounds are too few to tell.
//! Everything is deterministic: the same samples give the same numbers on every run.

use serde::{Deserialize, Serialize};

use super::model::Steadiness;

/// How sure an interval is, and how rarely a test may call noise a difference.
pub const CONFIDENCE: f64 = 0.95;

/// How often a bootstrap draws; its interval's ends settle to a few percent of its width.
const RESAMPLES: usize = 2000;

/// Beyond so many samples together the rank-sum test takes the normal approximation, which is then as good as exact.
const EXACT_SAMPLES_MAX: usize = 60;

/// A value and where it may really be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The best guess.
    pub value: f64,
    /// The lower end of its confidence interval.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

impl Estimate {
    /// Whether `value` lies in the interval.
    #[must_use]
    pub fn contains(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}

/// The median; nothing for no samples, or when one of them is not finite.
#[must_use]
pub fn median(samples: &[f64]) -> Option<f64> {
    if samples.is_empty() || samples.iter().any(|sample| !sample.is_finite()) {
        return None;
    }
    Some(median_of(&mut samples.to_vec()))
}

/// The median of finite samples, of which there is at least one.
fn median_of(samples: &mut [f64]) -> f64 {
    samples.sort_unstable_by(f64::total_cmp);
    let middle = samples.len() / 2;
    if samples.len() % 2 == 1 { samples[middle] } else { f64::midpoint(samples[middle - 1], samples[middle]) }
}

/// The geometric mean; nothing for no ratios, or when one is not finite and positive.
#[must_use]
pub fn geometric_mean(ratios: &[f64]) -> Option<f64> {
    if ratios.is_empty() || ratios.iter().any(|ratio| !ratio.is_finite() || *ratio <= 0.0) {
        return None;
    }
    Some((ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / count(ratios.len())).exp())
}

/// The median of `samples` and its interval; nothing for fewer than two samples, whose spread nobody knows.
#[must_use]
pub fn median_estimate(samples: &[f64]) -> Option<Estimate> {
    let value = median(samples).filter(|_| samples.len() > 1)?;
    let mut drawn = Vec::new();
    Some(bootstrap(value, |rng| {
        draw(rng, samples, &mut drawn);
        median_of(&mut drawn)
    }))
}

/// How many times the median of `b` is that of `a`, with its interval, the two having been measured apart. Nothing
/// when either has fewer than two samples, or one that is not positive.
#[must_use]
pub fn ratio_of_medians(a: &[f64], b: &[f64]) -> Option<Estimate> {
    mean_ratio_of_medians(&[(a, b)])
}

/// The geometric mean of the [`ratio_of_medians`] of many pairs, with its interval. Nothing without pairs, or when one
/// of them has no ratio.
#[must_use]
pub fn mean_ratio_of_medians(pairs: &[(&[f64], &[f64])]) -> Option<Estimate> {
    let usable =
        |samples: &[f64]| samples.len() > 1 && samples.iter().all(|sample| sample.is_finite() && *sample > 0.0);
    if pairs.is_empty() || !pairs.iter().all(|(a, b)| usable(a) && usable(b)) {
        return None;
    }
    let mut drawn = Vec::new();
    let mut log_ratio = |median: &mut dyn FnMut(&[f64], &mut Vec<f64>) -> f64| {
        let sum: f64 = pairs.iter().map(|(a, b)| (median(b, &mut drawn) / median(a, &mut drawn)).ln()).sum();
        (sum / count(pairs.len())).exp()
    };
    let value = log_ratio(&mut |samples, drawn| {
        drawn.clear();
        drawn.extend_from_slice(samples);
        median_of(drawn)
    });
    Some(bootstrap(value, |rng| {
        log_ratio(&mut |samples, drawn| {
            draw(rng, samples, drawn);
            median_of(drawn)
        })
    }))
}

/// How likely samples that differ as much as `a` and `b` are, were there no difference: the two-sided p of the rank-sum
/// test of Mann, Whitney and Wilcoxon, exact (ties included) up to 60 samples. 1 when either is empty.
#[must_use]
pub fn rank_sum_p(a: &[f64], b: &[f64]) -> f64 {
    let all: Vec<f64> = a.iter().chain(b).copied().collect();
    if a.is_empty() || b.is_empty() || all.iter().any(|sample| sample.is_nan()) {
        return 1.0;
    }
    // Twice the rank, so that the mean rank of a tie is whole.
    let ranks: Vec<usize> = all
        .iter()
        .map(|x| all.iter().filter(|y| *y < x).count() * 2 + all.iter().filter(|y| *y == x).count() + 1)
        .collect();
    let observed: usize = ranks[..a.len()].iter().sum();
    if all.len() <= EXACT_SAMPLES_MAX {
        exact_rank_sum_p(&ranks, a.len(), observed)
    } else {
        approximate_rank_sum_p(&ranks, a.len(), observed)
    }
}

/// The smallest p that [`rank_sum_p`] can give for so many samples: if it is above what one asks for, more rounds are
/// needed before anything can be said.
#[must_use]
pub fn smallest_rank_sum_p(a: usize, b: usize) -> f64 {
    let few = a.min(b);
    let arrangements: f64 = (1..=few).map(|i| count(a + b - few + i) / count(i)).product();
    (2.0 / arrangements).min(1.0)
}

/// Of all ways to choose `chosen` of `ranks`, the share whose sum is at least as far from the mean as `observed`.
fn exact_rank_sum_p(ranks: &[usize], chosen: usize, observed: usize) -> f64 {
    let total: usize = ranks.iter().sum();
    // ways[k][s]: how many choices of k ranks sum to s. Counts below 2^60 lose nothing that matters in an f64.
    let mut ways = vec![vec![0.0_f64; total + 1]; chosen + 1];
    ways[0][0] = 1.0;
    for (seen, rank) in ranks.iter().enumerate() {
        for k in (1..=chosen.min(seen + 1)).rev() {
            for sum in (*rank..=total).rev() {
                ways[k][sum] += ways[k - 1][sum - rank];
            }
        }
    }
    // Distances from the mean, times the number of ranks to stay whole.
    let distance = |sum: usize| (sum * ranks.len()).abs_diff(total * chosen);
    let far: f64 =
        ways[chosen].iter().enumerate().filter(|(sum, _)| distance(*sum) >= distance(observed)).map(|(_, n)| n).sum();
    far / ways[chosen].iter().sum::<f64>()
}

/// The same for many ranks: the sum is then all but normally distributed.
fn approximate_rank_sum_p(ranks: &[usize], chosen: usize, observed: usize) -> f64 {
    let n = count(ranks.len());
    let mean = ranks.iter().map(|rank| count(*rank)).sum::<f64>() / n;
    let variance = ranks.iter().map(|rank| (count(*rank) - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let spread = (count(chosen) * (n - count(chosen)) / n * variance).sqrt();
    if spread == 0.0 {
        return 1.0;
    }
    let distance = (count(observed) - count(chosen) * mean).abs() / spread;
    2.0 * upper_tail(distance)
}

/// The share of a standard normal distribution beyond `z` >= 0, to 1e-7 (Abramowitz and Stegun 26.2.17).
fn upper_tail(z: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * z);
    let polynomial =
        t * (0.319_381_530 + t * (-0.356_563_782 + t * (1.781_477_937 + t * (-1.821_255_978 + t * 1.330_274_429))));
    (-z * z / 2.0).exp() / std::f64::consts::TAU.sqrt() * polynomial
}

/// Whether values over time had settled: compares the last third with the first. A change counts when it is more than
/// a tenth and more than chance.
#[must_use]
pub fn steadiness(values: &[f64]) -> Steadiness {
    let third = values.len() / 3;
    let (first, last) = (&values[..third], &values[values.len() - third..]);
    if smallest_rank_sum_p(third, third) > 1.0 - CONFIDENCE {
        return Steadiness::TooShort;
    }
    match (median(first), median(last)) {
        (Some(before), Some(after)) if before > 0.0 => {
            let change = after / before;
            let moved = !(0.9..=1.1).contains(&change) && rank_sum_p(first, last) < 1.0 - CONFIDENCE;
            if moved { Steadiness::Drifting { change } } else { Steadiness::Steady }
        }
        _ => Steadiness::TooShort,
    }
}

/// The interval of a statistic that `resample` computes from one draw.
fn bootstrap(value: f64, mut resample: impl FnMut(&mut fastrand::Rng) -> f64) -> Estimate {
    let mut rng = fastrand::Rng::with_seed(0x6f6e_6564_6973_6b21);
    let mut drawn: Vec<f64> = (0..RESAMPLES).map(|_| resample(&mut rng)).collect();
    drawn.sort_unstable_by(f64::total_cmp);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive index")]
    let tail = (count(RESAMPLES) * (1.0 - CONFIDENCE) / 2.0) as usize;
    // The median of all samples may lie beyond the draws' percentiles where samples are few and uneven.
    Estimate { value, low: drawn[tail].min(value), high: drawn[RESAMPLES - 1 - tail].max(value) }
}

/// Fills `drawn` with as many samples as there are, drawn with replacement.
fn draw(rng: &mut fastrand::Rng, samples: &[f64], drawn: &mut Vec<f64>) {
    drawn.clear();
    drawn.extend((0..samples.len()).map(|_| samples[rng.usize(..samples.len())]));
}

#[allow(clippy::cast_precision_loss, reason = "numbers of samples and sums of their ranks are far below 2^52")]
fn count(n: usize) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn close(a: f64, b: f64, within: f64) {
        assert!((a - b).abs() <= within, "{a} is not {b}");
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[1.0, f64::NAN]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn geometric_means() {
        close(geometric_mean(&[0.5, 2.0]).unwrap(), 1.0, 1e-12);
        close(geometric_mean(&[1.0, 10.0, 100.0]).unwrap(), 10.0, 1e-9);
        for nothing in [&[][..], &[1.0, 0.0], &[1.0, -1.0], &[f64::INFINITY]] {
            assert_eq!(geometric_mean(nothing), None);
        }
    }

    /// Values of SciPy 1.17: `mannwhitneyu(a, b, method="exact")`, and with ties `permutation_test` of its statistic.
    #[test]
    fn rank_sum_test_against_known_values() {
        let a = [0.80, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91, 1.64, 0.73, 1.46];
        close(rank_sum_p(&a, &[1.15, 0.88, 0.90, 0.74, 1.21]), 0.254_412_254_412_254_4, 1e-12);
        let a = [3.0, 1.0, 4.0, 1.5, 9.0, 2.6, 5.3, 5.8, 9.7, 9.3, 2.3, 8.4];
        let b = [6.2, 6.4, 3.3, 8.32, 7.9, 5.02, 8.8, 4.1, 9.71];
        close(rank_sum_p(&a, &b), 0.277_317_728_710_917_6, 1e-12);
        close(rank_sum_p(&[1.0, 2.0, 2.0, 3.0, 5.0], &[2.0, 4.0, 5.0, 6.0, 6.0]), 0.119_047_619_047_619_04, 1e-12);
        close(rank_sum_p(&[1.0, 1.0, 1.0], &[1.0, 1.0]), 1.0, 1e-12);
        close(rank_sum_p(&[], &[1.0]), 1.0, 0.0);
    }

    #[test]
    fn the_approximation_continues_the_exact_test() {
        let mut rng = fastrand::Rng::with_seed(1);
        for shift in [0.0, 0.2, 0.4] {
            let a: Vec<f64> = (0..30).map(|_| rng.f64()).collect();
            let b: Vec<f64> = (0..30).map(|_| rng.f64() + shift).collect();
            let exact = rank_sum_p(&a, &b);
            let doubled: Vec<f64> = a.iter().chain(&b).copied().collect();
            let ranks: Vec<usize> = doubled.iter().map(|x| doubled.iter().filter(|y| *y <= x).count() * 2).collect();
            close(approximate_rank_sum_p(&ranks, 30, ranks[..30].iter().sum()), exact, 0.01);
        }
        // SciPy 1.17: mannwhitneyu(range(1, 41), range(11, 51), method="asymptotic", use_continuity=False)
        let from = |start: u32| (start..start + 40).map(f64::from).collect::<Vec<_>>();
        close(rank_sum_p(&from(1), &from(11)), 0.000_755_869_436_8, 1e-6);
        close(upper_tail(1.959_964), 0.025, 1e-6);
        close(upper_tail(0.0), 0.5, 1e-6);
    }

    #[test]
    fn the_smallest_p_says_how_many_rounds_it_takes() {
        close(smallest_rank_sum_p(3, 3), 0.1, 1e-12);
        close(smallest_rank_sum_p(3, 5), 2.0 / 56.0, 1e-12);
        close(smallest_rank_sum_p(0, 5), 1.0, 0.0);
        close(smallest_rank_sum_p(5, 5), rank_sum_p(&[1., 2., 3., 4., 5.], &[6., 7., 8., 9., 10.]), 1e-12);
    }

    #[test]
    fn an_interval_needs_two_samples() {
        assert_eq!(median_estimate(&[1.0]), None);
        assert_eq!(ratio_of_medians(&[1.0], &[1.0, 2.0]), None);
        assert_eq!(ratio_of_medians(&[1.0, 0.0], &[1.0, 2.0]), None);
        assert_eq!(mean_ratio_of_medians(&[]), None);
    }

    /// The true median of these samples is known, so it is known how often the interval holds it.
    #[test]
    fn intervals_hold_the_truth_about_as_often_as_they_claim() {
        let mut rng = fastrand::Rng::with_seed(7);
        let held = (0..200)
            .filter(|_| {
                let samples: Vec<f64> = (0..21).map(|_| rng.f64().powi(2)).collect();
                median_estimate(&samples).unwrap().contains(0.25)
            })
            .count();
        assert!((180..=199).contains(&held), "{held} of 200");
    }

    #[test]
    fn noise_is_seldom_called_a_difference() {
        let mut rng = fastrand::Rng::with_seed(3);
        let called = (0..1000)
            .filter(|_| {
                let mut five = || (0..5).map(|_| rng.f64()).collect::<Vec<_>>();
                rank_sum_p(&five(), &five()) < 0.05
            })
            .count();
        assert!(called <= 60, "{called} of 1000");
    }

    #[test]
    fn steady_drifting_and_too_short() {
        let values = |f: fn(f64) -> f64| (0..30).map(|i| f(f64::from(i))).collect::<Vec<_>>();
        assert_eq!(steadiness(&values(|i| 100.0 + (i * 2.4).sin())), Steadiness::Steady);
        assert_eq!(steadiness(&values(|i| 100.0 + i / 10.0)), Steadiness::Steady);
        assert!(matches!(steadiness(&values(|i| 300.0 - 8.0 * i)), Steadiness::Drifting { change } if change < 0.5));
        assert_eq!(steadiness(&[1.0; 11]), Steadiness::TooShort);
        assert_eq!(steadiness(&[0.0; 30]), Steadiness::TooShort);
    }

    fn positive() -> impl Strategy<Value = Vec<f64>> {
        prop::collection::vec(0.001f64..1e9, 2..12)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn an_interval_holds_its_value_and_stays_within_the_samples(samples in positive()) {
            let estimate = median_estimate(&samples).unwrap();
            prop_assert!(estimate.contains(estimate.value));
            prop_assert!(samples.iter().any(|s| *s <= estimate.low) && samples.iter().any(|s| *s >= estimate.high));
            prop_assert_eq!(Some(estimate), median_estimate(&samples));
        }

        #[test]
        fn a_ratio_turned_round_is_its_inverse(a in positive(), b in positive()) {
            let (forth, back) = (ratio_of_medians(&a, &b).unwrap(), ratio_of_medians(&b, &a).unwrap());
            prop_assert!((forth.value * back.value - 1.0).abs() < 1e-9);
            prop_assert!((rank_sum_p(&a, &b) - rank_sum_p(&b, &a)).abs() < 1e-12);
        }

        #[test]
        fn a_p_is_a_probability(a in prop::collection::vec(0u8..4, 0..9), b in prop::collection::vec(0u8..4, 0..9)) {
            let floats = |list: &[u8]| list.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
            let p = rank_sum_p(&floats(&a), &floats(&b));
            prop_assert!(p > 0.0 && p <= 1.0 + 1e-12);
        }

        #[test]
        fn a_mean_of_ratios_is_geometric(pairs in prop::collection::vec((positive(), positive()), 1..5)) {
            let pairs: Vec<_> = pairs.iter().map(|(a, b)| (a.as_slice(), b.as_slice())).collect();
            let product: f64 = pairs.iter().map(|(a, b)| median(b).unwrap() / median(a).unwrap()).product();
            let mean = mean_ratio_of_medians(&pairs).unwrap();
            prop_assert!((mean.value / product.powf(1.0 / count(pairs.len())) - 1.0).abs() < 1e-9);
            prop_assert!(mean.contains(mean.value));
        }
    }
}
