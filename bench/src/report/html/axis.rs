//! Axes: where a value goes, and which values are worth a tick.

use super::super::format;
use super::super::model::{Parameter, Unit, Value};

/// Values that span more than this factor are drawn on a logarithmic scale, where each can be told from zero.
const LOG_FROM: f64 = 30.0;

/// About so many ticks on a linear axis.
const TICKS: f64 = 5.0;

/// A line of values from `min` to `max`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    /// What stands beside it.
    pub(super) title: String,
    pub(super) ticks: Vec<Tick>,
    scale: Scale,
    min: f64,
    max: f64,
}

/// A value on an axis, and what is written there.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tick {
    pub(super) value: f64,
    pub(super) label: String,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Scale {
    Linear,
    Log,
}

impl Axis {
    /// Where `value` goes, from 0 at the start of the axis to 1 at its end.
    pub(super) fn position(&self, value: f64) -> f64 {
        let place = match self.scale {
            Scale::Linear => (value - self.min) / (self.max - self.min),
            Scale::Log => (value.max(self.min).ln() - self.min.ln()) / (self.max.ln() - self.min.ln()),
        };
        if place.is_finite() { place.clamp(0.0, 1.0) } else { 0.0 }
    }

    /// Whether lengths along it mean anything: it begins at zero.
    pub(super) fn is_from_zero(&self) -> bool {
        self.scale == Scale::Linear && self.min == 0.0
    }

    /// An axis for measured `values`: from zero, unless they span too much.
    pub(super) fn of_measured(title: &str, values: impl Iterator<Item = f64>, unit: Unit) -> Self {
        let (low, high) = bounds(values);
        if low > 0.0 && high / low > LOG_FROM {
            Self::log(title, low, high, unit)
        } else {
            Self::linear(title, low.min(0.0), high, unit)
        }
    }

    /// A logarithmic axis from `low`, above zero, to `high`.
    pub(super) fn log(title: &str, low: f64, high: f64, unit: Unit) -> Self {
        let (low, high) = if high > low { (low, high) } else { (low / 2.0, low * 2.0) };
        let decades = (high / low).log10();
        let steps: &[f64] = match decades {
            d if d <= 2.2 => &[1.0, 2.0, 5.0],
            d if d <= 3.5 => &[1.0, 3.0],
            _ => &[1.0],
        };
        #[allow(clippy::cast_possible_truncation, reason = "a logarithm of an f64 is within 324")]
        let exponents = low.log10().floor() as i32..=high.log10().ceil() as i32;
        let ticks: Vec<f64> =
            exponents.flat_map(|exponent| steps.iter().map(move |step| step * 10f64.powi(exponent))).collect();
        // From the last tick not above the lowest value to the first not below the highest.
        let first = ticks.iter().rposition(|tick| *tick <= low * 1.000_001).unwrap_or(0);
        let last = ticks.iter().position(|tick| *tick >= high * 0.999_999).unwrap_or(ticks.len() - 1);
        let ticks = &ticks[first..=last];
        Self {
            title: title.to_owned(),
            scale: Scale::Log,
            min: ticks[0],
            max: ticks[ticks.len() - 1],
            ticks: ticks.iter().map(|tick| Tick { value: *tick, label: format::tick(*tick, unit) }).collect(),
        }
    }

    /// A linear axis that holds `low` and `high`, ending at round values.
    pub(super) fn linear(title: &str, low: f64, high: f64, unit: Unit) -> Self {
        let span = if high > low { high - low } else { 1.0 };
        // Round in the unit that is shown: 512 MiB, not 500,000,000 bytes.
        let base = if unit == Unit::Bytes { 1024f64.powf((span.max(1.0).log2() / 10.0).floor()) } else { 1.0 };
        let step = round_step(span / base / TICKS) * base;
        let (first, last) = ((low / step).floor(), ((high / step) - 1e-9).ceil().max((low / step).floor() + 1.0));
        let mut ticks = Vec::new();
        let mut at = first;
        while at <= last {
            ticks.push(Tick { value: at * step, label: format::tick(at * step, unit) });
            at += 1.0;
        }
        Self { title: title.to_owned(), scale: Scale::Linear, min: first * step, max: last * step, ticks }
    }

    /// An axis for time from 0 to `end_ns`, where it stops, round or not.
    pub(super) fn of_time(title: &str, end_ns: f64) -> Self {
        let mut axis = Self::linear(title, 0.0, end_ns, Unit::Nanoseconds);
        axis.max = end_ns.max(1.0);
        axis.ticks.retain(|tick| tick.value <= end_ns);
        axis
    }

    /// An axis for the values of a parameter, each of which was chosen and so gets a tick.
    pub(super) fn of_parameter(parameter: &Parameter, values: &[u64]) -> Self {
        let floats: Vec<f64> = values.iter().map(|value| format::float(*value)).collect();
        let (low, high) = bounds(floats.iter().copied());
        // Chosen values mostly double from one to the next.
        let scale = if low > 0.0 && high / low >= 8.0 { Scale::Log } else { Scale::Linear };
        let (min, max) = if high > low { (low, high) } else { (low - 1.0, low + 1.0) };
        let label = |value: &u64| format::value(&Value::Number(*value), parameter);
        let ticks = values.iter().map(|value| Tick { value: format::float(*value), label: label(value) }).collect();
        Self { title: parameter.label.to_string(), scale, min, max, ticks }
    }

    /// An axis for percentiles, on which each further nine takes as much room as the one before. Its values are those
    /// of [`nines`]; `last` is where it ends.
    pub(super) fn of_percentiles(last: f64) -> Self {
        let ticks = [50.0, 90.0, 99.0, 99.9, 99.99, 99.999, 99.9999]
            .into_iter()
            .map(|percentile| Tick { value: nines(percentile / 100.0), label: format!("{percentile} %") })
            .filter(|tick| tick.value <= last + 1e-9)
            .collect();
        Self {
            title: "of all operations took at most".to_owned(),
            scale: Scale::Linear,
            min: 0.0,
            max: last.max(0.5),
            ticks,
        }
    }
}

/// How many nines a share of less than 1 has: 0.9 has one, 0.99 two.
pub(super) fn nines(share: f64) -> f64 {
    -(1.0 - share).log10()
}

fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    if low <= high { (low, high) } else { (0.0, 1.0) }
}

/// The round number nearest to `step`: 1, 2 or 5 times a power of ten.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= step * 0.999_999).unwrap_or(10.0);
    factor * power
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|tick| tick.label.as_str()).collect()
    }

    #[test]
    fn ticks_are_round_in_the_unit_shown() {
        let iops = Axis::of_measured("IOPS", [9_810.0, 131_000.0].into_iter(), Unit::PerSecond);
        assert_eq!(labels(&iops), ["0", "50k", "100k", "150k"]);
        assert!(iops.is_from_zero());
        let memory = Axis::of_measured("memory", [0.0, 1.9 * 1_073_741_824.0].into_iter(), Unit::Bytes);
        assert_eq!(labels(&memory), ["0", "512 MiB", "1 GiB", "1.5 GiB", "2 GiB"]);
        let latency = Axis::of_measured("p99", [81_000.0, 7_000_000.0].into_iter(), Unit::Nanoseconds);
        assert_eq!(labels(&latency), ["50 µs", "100 µs", "200 µs", "500 µs", "1 ms", "2 ms", "5 ms", "10 ms"]);
    }

    #[test]
    fn a_logarithm_has_no_zero() {
        assert!(!Axis::log("p99", 1.0, 100.0, Unit::Nanoseconds).is_from_zero());
        assert!(!Axis::linear("drift", -1.0, 5.0, Unit::Count).is_from_zero());
    }

    #[test]
    fn chosen_values_get_the_ticks() {
        let depths = Axis::of_parameter(&Parameter::new("iodepth", "queue depth", Unit::Count), &[1, 4, 16, 64]);
        assert_eq!(labels(&depths), ["1", "4", "16", "64"]);
        assert_eq!(
            depths.ticks.iter().map(|tick| depths.position(tick.value)).map(|p| (p * 3.0).round()).collect::<Vec<_>>(),
            [0.0, 1.0, 2.0, 3.0]
        );
        let one = Axis::of_parameter(&Parameter::new("iodepth", "queue depth", Unit::Count), &[16]);
        assert!((one.position(16.0) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn each_nine_takes_the_same_room() {
        let axis = Axis::of_percentiles(4.0);
        assert_eq!(labels(&axis), ["50 %", "90 %", "99 %", "99.9 %", "99.99 %"]);
        assert!((axis.position(nines(0.99)) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn time_stops_where_it_stopped() {
        let axis = Axis::of_time("", 5.1e9);
        assert_eq!(labels(&axis), ["0", "2 s", "4 s"]);
        assert!((axis.position(5.1e9) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn nothing_to_draw_still_has_an_axis() {
        assert_eq!(Axis::of_measured("IOPS", std::iter::empty(), Unit::PerSecond).ticks.len(), 6);
        assert!(Axis::of_measured("IOPS", [0.0].into_iter(), Unit::PerSecond).ticks.len() > 1);
        assert!(Axis::log("p99", 5.0, 5.0, Unit::Nanoseconds).ticks.len() > 1);
    }

    proptest! {
        #[test]
        fn an_axis_holds_its_values_and_has_a_handful_of_ticks(a in -1e12f64..1e12, b in 1e-3f64..1e12) {
            for axis in [
                Axis::of_measured("", [a, b].into_iter(), Unit::Nanoseconds),
                Axis::log("", b, b.max(a), Unit::BytesPerSecond),
            ] {
                prop_assert!((2..=20).contains(&axis.ticks.len()), "{:?}", axis);
                prop_assert!(axis.min <= b * 1.000_01 && axis.max >= b * 0.999_99, "{:?}", axis);
                let (first, last) = (&axis.ticks[0], &axis.ticks[axis.ticks.len() - 1]);
                prop_assert!(axis.position(first.value) < 1e-6 && axis.position(last.value) > 1.0 - 1e-6);
            }
        }
    }
}
