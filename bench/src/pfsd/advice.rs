//! How many workers to use: where more of them stop paying.
//!
//! Every load is measured with every number of workers in every round. How one number compares with another is the geometric
//! mean, over all loads, of the ratio of their medians, with its interval. The knee is where going on to any larger number is
//! no gain beyond noise, or one that is not worth the processor time that each worker takes when it is idle.

use crate::report::stats::{self, Estimate};
use crate::report::{Finding, Severity};

/// So much more is worth another worker.
const WORTH: f64 = 1.05;

/// One load, with each number of workers.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Load {
    /// What it is called.
    pub name: String,
    /// For each number of workers, in their order, what it came to in each round; more is better.
    pub rounds: Vec<Vec<f64>>,
}

/// What was measured with several numbers of workers.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Measured {
    /// The numbers, ascending.
    pub workers: Vec<u32>,
    /// Every load that was measured with all of them.
    pub loads: Vec<Load>,
    /// What of a core each number took when it had nothing to do.
    pub idle: Vec<Option<f64>>,
}

/// How many workers to use.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Advice {
    /// The number.
    pub workers: u32,
    /// What there is to say of it, the advice first.
    pub findings: Vec<Finding>,
}

impl Measured {
    /// What to use. Nothing where there is no choice or nothing was measured.
    pub(super) fn advice(&self) -> Option<Advice> {
        let (first, more) = self.workers.split_first()?;
        if more.is_empty() || self.loads.is_empty() {
            return None;
        }
        let all: Vec<&Load> = self.loads.iter().collect();
        let Some(knee) = self.knee(&all) else {
            return Some(self.without_confidence(*first));
        };
        let mut findings = vec![self.because(knee, &all)];
        findings.extend(self.noise(&all));
        findings.extend(self.exceptions(knee));
        Some(Advice { workers: self.workers[knee], findings })
    }

    /// How many times as good the number at `to` is as that at `from`, over `loads`. Nothing with fewer than two rounds.
    fn gain(&self, loads: &[&Load], from: usize, to: usize) -> Option<Estimate> {
        let pairs: Vec<(&[f64], &[f64])> = loads.iter().map(|load| (&*load.rounds[from], &*load.rounds[to])).collect();
        stats::mean_ratio_of_medians(&pairs)
    }

    /// The index of the number of workers beyond which nothing is gained.
    fn knee(&self, loads: &[&Load]) -> Option<usize> {
        let mut knee = 0;
        for more in 1..self.workers.len() {
            if pays(&self.gain(loads, knee, more)?) {
                knee = more;
            }
        }
        Some(knee)
    }

    /// The advice in words.
    fn because(&self, knee: usize, loads: &[&Load]) -> Finding {
        let over = match loads.len() {
            1 => "in the one load".to_owned(),
            count => format!("over all {count} loads"),
        };
        let mut reasons = Vec::new();
        if let Some(gain) = knee.checked_sub(1).and_then(|fewer| self.gain(loads, fewer, knee)) {
            let fewer = self.workers[knee - 1];
            reasons.push(format!("it does {} what -w {fewer} does {over}", times(&gain)));
        }
        let beyond: Vec<String> = (knee + 1..self.workers.len())
            .filter_map(|more| {
                Some(format!("-w {} does {}", self.workers[more], times(&self.gain(loads, knee, more)?)))
            })
            .collect();
        if !beyond.is_empty() {
            let over = if reasons.is_empty() { format!(" {over}") } else { String::new() };
            reasons.push(format!("more do no more that is worth it{over} ({})", beyond.join(", ")));
        }
        let idle = |index: usize| self.idle.get(index).copied().flatten();
        if let (Some(own), Some(most), true) = (idle(knee), idle(self.workers.len() - 1), knee + 1 < self.workers.len())
        {
            let workers = self.workers[self.workers.len() - 1];
            reasons.push(format!("idle it takes {} of a core, -w {workers} {}", percent(own), percent(most)));
        }
        let text = format!("Use -w {} here: {}.", self.workers[knee], reasons.join("; "));
        Finding::new(Severity::Note, "workers", text)
    }

    /// What to say when rounds are too few for any confidence.
    fn without_confidence(&self, fewest: u32) -> Advice {
        let score = |index: usize| -> f64 {
            let medians: Vec<f64> = self.loads.iter().filter_map(|load| stats::median(&load.rounds[index])).collect();
            stats::geometric_mean(&medians).unwrap_or(0.0)
        };
        let mut best = (fewest, score(0));
        for (index, workers) in self.workers.iter().enumerate().skip(1) {
            if score(index) > best.1 * WORTH {
                best = (*workers, score(index));
            }
        }
        let text = format!(
            "Use -w {} here, as far as a single round tells: what two rounds differ by is not known, so nobody knows what \
             the numbers of workers differ by.",
            best.0
        );
        let finding = Finding::new(Severity::Warning, "workers-unsure", text).with_hint("--rounds 5 tells more");
        Advice { workers: best.0, findings: vec![finding] }
    }

    /// A word of warning when no number of workers stands out.
    fn noise(&self, loads: &[&Load]) -> Option<Finding> {
        let count = self.workers.len();
        let gains: Vec<Estimate> = (0..count)
            .flat_map(|a| (a + 1..count).map(move |b| (a, b)))
            .filter_map(|(a, b)| self.gain(loads, a, b))
            .collect();
        let widest = gains.iter().map(|gain| (gain.high / gain.low).ln()).max_by(f64::total_cmp)?;
        gains.iter().all(|gain| gain.contains(1.0)).then(|| {
            let text = format!(
                "All numbers of workers are within noise of each other: their rounds differ by more than they do (intervals of \
                 up to a factor of {:.2}).",
                widest.exp()
            );
            Finding::new(Severity::Warning, "within-noise", text)
                .with_hint("more --rounds, a longer --runtime, and nothing else on this machine; or loads with more --clients")
        })
    }

    /// The loads that want another number of workers than all together.
    fn exceptions(&self, knee: usize) -> Option<Finding> {
        let own = |load: &Load| {
            let own = self.knee(&[load])?;
            (own != knee).then(|| format!("{}: -w {}", load.name, self.workers[own]))
        };
        let other: Vec<String> = self.loads.iter().filter_map(own).collect();
        (!other.is_empty() && self.loads.len() > 1).then(|| {
            let text = format!("By itself another number would be best for {}.", other.join("; "));
            Finding::new(Severity::Note, "workers-by-load", text)
        })
    }
}

/// Whether a gain is one, and worth it.
fn pays(gain: &Estimate) -> bool {
    gain.low > 1.0 && gain.value > WORTH
}

fn times(gain: &Estimate) -> String {
    format!("{:.2} times ({:.2} to {:.2} at 95 %)", gain.value, gain.low, gain.high)
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    /// Loads in which each number of workers does `speed` times as much as one, disturbed by `noise`.
    fn measured(speeds: &[&[f64]], rounds: usize, noise: f64) -> Measured {
        let mut rng = Rng::with_seed(5);
        let mut round = |speed: f64| 1000.0 * speed * (1.0 + noise * (rng.f64() - 0.5));
        let loads = speeds
            .iter()
            .enumerate()
            .map(|(index, speeds)| Load {
                name: format!("load {index}"),
                rounds: speeds.iter().map(|speed| (0..rounds).map(|_| round(*speed)).collect()).collect(),
            })
            .collect();
        let workers = [1, 2, 4, 8][..speeds[0].len()].to_vec();
        let idle = workers.iter().map(|workers| Some(f64::from(*workers) / 100.0)).collect();
        Measured { workers, loads, idle }
    }

    fn ids(advice: &Advice) -> Vec<&str> {
        advice.findings.iter().map(|finding| finding.id.as_str()).collect()
    }

    #[test]
    fn the_knee_is_where_more_workers_stop_paying() {
        let advice = measured(&[&[1.0, 1.8, 2.2, 2.2], &[1.0, 1.9, 2.3, 2.25]], 5, 0.04).advice().unwrap();
        assert_eq!((advice.workers, ids(&advice)), (4, vec!["workers"]));
        let text = &advice.findings[0].text;
        assert!(text.starts_with("Use -w 4 here: it does 1.2"), "{text}");
        assert!(text.contains("what -w 2 does over all 2 loads") && text.contains("-w 8 does 0.9"), "{text}");
        assert!(text.ends_with("idle it takes 4.0 % of a core, -w 8 8.0 %."), "{text}");
    }

    #[test]
    fn a_dip_before_the_gain_does_not_hide_it() {
        let advice = measured(&[&[1.0, 0.95, 1.6, 2.4]], 5, 0.02).advice().unwrap();
        assert_eq!(advice.workers, 8);
        assert!(advice.findings[0].text.contains("what -w 4 does in the one load."), "{advice:?}");
    }

    #[test]
    fn what_does_not_pay_is_not_used_however_sure_it_is() {
        let advice = measured(&[&[1.0, 1.03, 1.04, 1.04]], 7, 0.002).advice().unwrap();
        assert_eq!((advice.workers, ids(&advice)), (1, vec!["workers"]));
        assert!(advice.findings[0].text.contains("more do no more that is worth it in the one load"), "{advice:?}");
    }

    #[test]
    fn noise_is_called_noise() {
        let advice = measured(&[&[1.0, 1.0, 1.0, 1.0], &[1.0, 1.0, 1.0, 1.0]], 4, 0.6).advice().unwrap();
        assert_eq!(advice.workers, 1);
        assert!(ids(&advice).contains(&"within-noise"), "{advice:?}");
    }

    #[test]
    fn loads_that_want_another_number_are_named() {
        let advice = measured(&[&[1.0, 1.0, 1.0], &[1.0, 2.0, 2.0], &[1.0, 2.0, 2.0]], 5, 0.02).advice().unwrap();
        assert_eq!((advice.workers, ids(&advice)), (2, vec!["workers", "workers-by-load"]));
        assert_eq!(advice.findings[1].text, "By itself another number would be best for load 0: -w 1.");
    }

    #[test]
    fn a_single_round_is_no_confidence_and_a_single_number_no_choice() {
        let advice = measured(&[&[1.0, 1.5, 1.51]], 1, 0.0).advice().unwrap();
        assert_eq!((advice.workers, ids(&advice)), (2, vec!["workers-unsure"]));
        assert_eq!(measured(&[&[1.0]], 5, 0.0).advice(), None);
        let nothing = Measured { loads: Vec::new(), ..measured(&[&[1.0, 2.0]], 5, 0.0) };
        assert_eq!(nothing.advice(), None);
    }
}
