//! Latency: how long the disk takes at the least.
//!
//! The time counts from when the request is taken into service (after it waited for the rate and the queue depth), and what
//! the image takes is in it: a request that took less is answered when its time has come. A write lands at the beginning of
//! that time.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::spec::{self, Spec};
use crate::emulate::request::Operation;
use crate::error::{Error, Result};

/// How long something takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Distribution {
    /// Always as long.
    Fixed(Duration),
    /// Anything between two durations, each as likely.
    Uniform(Duration, Duration),
    /// Around a mean, with a standard deviation; never less than nothing.
    Normal(Duration, Duration),
    /// Around a median, with a long tail: 99 of 100 take no longer than the second.
    LogNormal(Duration, Duration),
    /// As was measured.
    Histogram(Histogram),
}

/// Latencies as they were measured: how long what share of operations took at most.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<(f64, u64)>", into = "Vec<(f64, u64)>")]
pub struct Histogram(Vec<(f64, u64)>);

impl Histogram {
    /// Of shares (0 to 1) and nanoseconds; both rise.
    ///
    /// # Errors
    /// When they do not, or there is none.
    pub fn new(points: Vec<(f64, u64)>) -> Result<Self> {
        let rises = points.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
        let shares = points.iter().all(|(share, _)| (0.0..=1.0).contains(share));
        if points.is_empty() || !rises || !shares {
            return Err(Error::invalid(
                "a histogram is a list of pairs, a share (0 to 1) and nanoseconds, both rising",
            ));
        }
        Ok(Self(points))
    }

    /// The shares and nanoseconds.
    #[must_use]
    pub fn points(&self) -> &[(f64, u64)] {
        &self.0
    }

    /// How long the operation takes that has `share` of all before it.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "nanoseconds"
    )]
    fn at(&self, share: f64) -> Duration {
        let next = self.0.partition_point(|(limit, _)| *limit < share);
        let ns = match (next.checked_sub(1).and_then(|before| self.0.get(before)), self.0.get(next)) {
            (Some((low, from)), Some((high, to))) => {
                *from as f64 + (share - low) / (high - low) * (to.saturating_sub(*from)) as f64
            }
            (None, Some((_, ns))) | (Some((_, ns)), None) => *ns as f64,
            (None, None) => 0.0,
        };
        Duration::from_nanos(ns as u64)
    }
}

impl TryFrom<Vec<(f64, u64)>> for Histogram {
    type Error = Error;

    fn try_from(points: Vec<(f64, u64)>) -> Result<Self> {
        Self::new(points)
    }
}

impl From<Histogram> for Vec<(f64, u64)> {
    fn from(histogram: Histogram) -> Self {
        histogram.0
    }
}

/// How many standard deviations of a normal distribution 99 of 100 lie below.
const Z99: f64 = 2.326_347_874;

impl Distribution {
    /// One duration of it.
    pub(in super::super) fn sample(&self, rng: &mut fastrand::Rng) -> Duration {
        match self {
            Self::Fixed(duration) => *duration,
            Self::Uniform(from, to) => *from + (*to - *from).mul_f64(rng.f64()),
            Self::Normal(mean, deviation) => {
                let seconds = mean.as_secs_f64() + deviation.as_secs_f64() * normal(rng);
                Duration::from_secs_f64(seconds.max(0.0))
            }
            Self::LogNormal(median, p99) => {
                let sigma = (p99.as_secs_f64() / median.as_secs_f64()).ln() / Z99;
                // Beyond six deviations there is nothing that anybody has time for.
                median.mul_f64((sigma * normal(rng).clamp(-6.0, 6.0)).exp())
            }
            Self::Histogram(histogram) => histogram.at(rng.f64()),
        }
    }

    fn parse(spec: Spec<'_>, text: &str) -> Result<Self> {
        let mut words = text.split(':');
        let name = words.next().unwrap_or_default();
        let pair = |words: &mut std::str::Split<'_, char>, meaning: &str| -> Result<(Duration, Duration)> {
            match (words.next(), words.next(), words.next()) {
                (Some(first), Some(second), None) => Ok((spec.duration(first)?, spec.duration(second)?)),
                _ => Err(spec.bad(format_args!("{name} takes two durations, {meaning}"))),
            }
        };
        match name {
            "uniform" => {
                let (from, to) = pair(&mut words, "from and to")?;
                if from > to {
                    return Err(spec.bad("it ends before it begins"));
                }
                Ok(Self::Uniform(from, to))
            }
            "normal" => {
                pair(&mut words, "mean and standard deviation").map(|(mean, deviation)| Self::Normal(mean, deviation))
            }
            "lognormal" => {
                let (median, p99) = pair(&mut words, "median and 99th percentile")?;
                if median.is_zero() || p99 < median {
                    return Err(spec.bad("the 99th percentile is not less than the median, and that not nothing"));
                }
                Ok(Self::LogNormal(median, p99))
            }
            _ => spec.duration(text).map(Self::Fixed),
        }
    }
}

/// A number of the standard normal distribution (Box and Muller, 1958).
fn normal(rng: &mut fastrand::Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.f64()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.f64()).cos()
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |duration: &Duration| spec::shown(*duration);
        match self {
            Self::Fixed(duration) => f.write_str(&shown(duration)),
            Self::Uniform(from, to) => write!(f, "uniform:{}:{}", shown(from), shown(to)),
            Self::Normal(mean, deviation) => write!(f, "normal:{}:{}", shown(mean), shown(deviation)),
            Self::LogNormal(median, p99) => write!(f, "lognormal:{}:{}", shown(median), shown(p99)),
            Self::Histogram(histogram) => write!(f, "a histogram of {} points", histogram.0.len()),
        }
    }
}

/// How long each sort of operation takes; nothing said is no latency.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Latency(Vec<(Operation, Distribution)>);

impl Latency {
    /// The same distribution for every operation.
    #[must_use]
    pub fn of_all(distribution: &Distribution) -> Self {
        Self(Operation::ALL.into_iter().map(|operation| (operation, distribution.clone())).collect())
    }

    /// The same, but `operation` takes as long as `distribution` says.
    #[must_use]
    pub fn with(mut self, operation: Operation, distribution: Distribution) -> Self {
        self.set(operation, distribution);
        self
    }

    fn set(&mut self, operation: Operation, distribution: Distribution) {
        self.0.retain(|(other, _)| *other != operation);
        self.0.push((operation, distribution));
        self.0.sort_by_key(|(operation, _)| *operation);
    }

    /// How long `operation` takes, if it takes any time.
    pub(in super::super) fn of(&self, operation: Operation) -> Option<&Distribution> {
        self.0.iter().find(|(other, _)| *other == operation).map(|(_, distribution)| distribution)
    }
}

impl FromStr for Latency {
    type Err = Error;

    /// `1ms`, `uniform:50us:150us`, `normal:100us:20us`, `lognormal:80us:900us`; or for each operation its own, as in
    /// `read=80us,write=20us,flush=1ms`, where one without a name is for all others.
    fn from_str(text: &str) -> Result<Self> {
        let spec = Spec { what: "latency", text };
        let mut latency = Self::default();
        let mut others = None;
        for (key, value) in spec.parts() {
            let distribution = Distribution::parse(spec, value)?;
            match key {
                Some(key) => latency.set(spec.operation(key)?, distribution),
                None if others.is_none() => others = Some(distribution),
                None => return Err(spec.bad("it says two things of all operations")),
            }
        }
        if let Some(others) = others {
            for operation in Operation::ALL {
                if latency.of(operation).is_none() {
                    latency.set(operation, others.clone());
                }
            }
        }
        Ok(latency)
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [(_, first), rest @ ..] = &*self.0
            && self.0.len() == Operation::ALL.len()
            && rest.iter().all(|(_, other)| other == first)
        {
            return first.fmt(f);
        }
        let parts: Vec<String> =
            self.0.iter().map(|(operation, distribution)| format!("{}={distribution}", operation.name())).collect();
        f.write_str(&parts.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_read_and_written() {
        for text in [
            "1ms",
            "uniform:50us:150us",
            "read=80us,write=20us,flush=1ms",
            "read=lognormal:80us:900us,write=normal:30us:5us",
        ] {
            assert_eq!(text.parse::<Latency>().unwrap().to_string(), text);
        }
        let mixed: Latency = "2ms,read=1ms".parse().unwrap();
        assert_eq!(mixed.of(Operation::Read), Some(&Distribution::Fixed(Duration::from_millis(1))));
        assert_eq!(mixed.of(Operation::Trim), Some(&Distribution::Fixed(Duration::from_millis(2))));
        for bad in [
            "",
            "1",
            "1ms,2ms",
            "rode=1ms",
            "uniform:1ms",
            "uniform:2ms:1ms",
            "lognormal:1ms:1us",
            "normal:1ms:2ms:3ms",
        ] {
            assert!(bad.parse::<Latency>().is_err(), "{bad}");
        }
    }

    #[test]
    fn samples_are_as_distributed() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut sorted = |distribution: &Distribution| {
            let mut samples: Vec<f64> =
                (0..20_000).map(|_| distribution.sample(&mut rng).as_secs_f64() * 1e6).collect();
            samples.sort_by(f64::total_cmp);
            samples
        };
        let near = |value: f64, wanted: f64| assert!((value / wanted - 1.0).abs() < 0.05, "{value} for {wanted}");
        let uniform = sorted(&Distribution::Uniform(Duration::from_micros(100), Duration::from_micros(300)));
        near(uniform[10_000], 200.0);
        assert!(uniform[0] >= 100.0 && uniform[19_999] <= 300.0);
        let normal = sorted(&Distribution::Normal(Duration::from_micros(500), Duration::from_micros(50)));
        near(normal[10_000], 500.0);
        near(normal[16_827], 550.0);
        let tailed = sorted(&Distribution::LogNormal(Duration::from_micros(80), Duration::from_micros(900)));
        near(tailed[10_000], 80.0);
        assert!((750.0..1100.0).contains(&tailed[19_800]), "{}", tailed[19_800]);
        let measured = Histogram::new(vec![(0.0, 10_000), (0.5, 20_000), (0.99, 100_000), (1.0, 1_000_000)]).unwrap();
        let measured = sorted(&Distribution::Histogram(measured));
        near(measured[10_000], 20.0);
        near(measured[19_600], 98.4);
        assert!(measured[0] >= 10.0 && measured[19_999] <= 1000.0);
    }

    #[test]
    fn a_histogram_rises() {
        for bad in [vec![], vec![(0.5, 2), (0.4, 3)], vec![(0.1, 3), (0.2, 2)], vec![(1.5, 1)]] {
            assert!(Histogram::new(bad).is_err());
        }
    }
}
