//! Numbers as people read them: three digits and a unit that fits.

use blockdev::ByteSize;

use super::model::{Parameter, Unit, Value};

/// `value` in `unit`, to three digits: `27.4k`, `81.0 µs`, `1.02 GB/s`, `8 KiB`, `93.1 %`.
#[must_use]
pub fn figure(value: f64, unit: Unit) -> String {
    let (value, suffix) = scaled(value, unit);
    let digits = three_digits(value);
    format!("{digits}{suffix}")
}

/// The same without trailing zeros, for the ticks of an axis, whose values are round: `100 µs`, `20k`, `1.5 GB/s`.
#[must_use]
pub fn tick(value: f64, unit: Unit) -> String {
    let (value, suffix) = scaled(value, unit);
    if value == 0.0 {
        return "0".to_owned();
    }
    let digits = three_digits(value);
    let digits = if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { &digits };
    format!("{digits}{suffix}")
}

/// The value of a parameter: `8 KiB`, `16`, `randread`, `yes`.
#[must_use]
pub fn value(value: &Value, parameter: &Parameter) -> String {
    match value {
        Value::Flag(true) => "yes".to_owned(),
        Value::Flag(false) => "no".to_owned(),
        Value::Text(text) => text.clone(),
        Value::Number(number) => match parameter.unit {
            Unit::Bytes => ByteSize::new(*number).to_string(),
            Unit::Count => number.to_string(),
            unit => tick(float(*number), unit),
        },
    }
}

/// How many times something is something else: `1.04`, `12.3`, `0.0061`.
#[must_use]
pub fn ratio(value: f64) -> String {
    if (0.1..10.0).contains(&value) { format!("{value:.2}") } else { three_digits(value) }
}

/// A span of time in seconds: `58.2 s`, `4 min 10 s`.
#[must_use]
pub fn seconds(seconds: f64) -> String {
    if seconds < 120.0 {
        return figure(seconds * 1e9, Unit::Nanoseconds);
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive count that saturates")]
    let whole = seconds.round() as u64;
    let (hours, minutes, seconds) = (whole / 3600, whole / 60 % 60, whole % 60);
    if hours > 0 { format!("{hours} h {minutes} min") } else { format!("{minutes} min {seconds} s") }
}

/// An instant in UTC, to the minute.
#[must_use]
pub fn instant(instant: jiff::Timestamp) -> String {
    instant.strftime("%Y-%m-%d %H:%M UTC").to_string()
}

/// A whole number with its thousands apart: `1 234 567`.
#[must_use]
pub fn whole(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|group| str::from_utf8(group).ok()).collect();
    groups.join("\u{202f}")
}

/// A number of things as a fraction; beyond 2^53 it is rounded, which no reader sees.
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
pub fn float(number: u64) -> f64 {
    number as f64
}

/// The leaves of a JSON value, each with its path in words: `file system › kind`, `ext4`. What is null is left out.
#[must_use]
pub fn flattened(value: &serde_json::Value) -> Vec<(String, String)> {
    fn walk(value: &serde_json::Value, path: &str, leaves: &mut Vec<(String, String)>) {
        use serde_json::Value;
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let name = name.replace('_', " ");
                    walk(value, &if path.is_empty() { name } else { format!("{path} › {name}") }, leaves);
                }
            }
            Value::Array(items) if items.iter().any(|item| item.is_object() || item.is_array()) => {
                for (index, item) in items.iter().enumerate() {
                    walk(item, &format!("{path} {}", index + 1), leaves);
                }
            }
            Value::Array(items) => {
                let items: Vec<String> = items.iter().map(leaf).collect();
                leaves.push((path.to_owned(), items.join(", ")));
            }
            Value::Null => {}
            value => leaves.push((path.to_owned(), leaf(value))),
        }
    }
    fn leaf(value: &serde_json::Value) -> String {
        match value {
            serde_json::Value::Bool(true) => "yes".to_owned(),
            serde_json::Value::Bool(false) => "no".to_owned(),
            serde_json::Value::String(text) => text.clone(),
            serde_json::Value::Number(number) => match number.as_u64() {
                // Facts do not say what their numbers count. These look like bytes, and are read more easily so.
                Some(number) if number >= 4096 && number.is_multiple_of(512) => {
                    format!("{} ({})", whole(number), ByteSize::new(number))
                }
                Some(number) => whole(number),
                None => number.to_string(),
            },
            other => other.to_string(),
        }
    }
    let mut leaves = Vec::new();
    walk(value, "", &mut leaves);
    leaves
}

/// Text from outside without what could steer a terminal.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// The number in the largest unit that leaves at least 1, and that unit.
fn scaled(value: f64, unit: Unit) -> (f64, &'static str) {
    let units: &[(f64, &str)] = match unit {
        Unit::Count | Unit::PerSecond => &[(1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")],
        Unit::Nanoseconds => &[(1e9, " s"), (1e6, " ms"), (1e3, " µs"), (1.0, " ns")],
        Unit::Bytes => &[
            (1_099_511_627_776.0, " TiB"),
            (1_073_741_824.0, " GiB"),
            (1_048_576.0, " MiB"),
            (1024.0, " KiB"),
            (1.0, " B"),
        ],
        Unit::BytesPerSecond => &[(1e9, " GB/s"), (1e6, " MB/s"), (1e3, " kB/s"), (1.0, " B/s")],
        Unit::Ratio => return (value * 100.0, " %"),
    };
    // What rounds up to the next unit belongs to it: 999.7 µs is 1.00 ms.
    let reached = |at: f64| value.abs() >= at * 0.9995;
    let (at, suffix) = units.iter().find(|(at, _)| reached(*at)).or(units.last()).copied().unwrap_or((1.0, ""));
    (value / at, suffix)
}

/// Three significant digits, and all of those before the point.
fn three_digits(value: f64) -> String {
    let magnitude = value.abs();
    let decimals = match magnitude {
        0.0 => 0,
        m if m >= 99.95 => 0,
        m if m >= 9.995 => 1,
        m if m >= 0.9995 => 2,
        m if m >= 0.09995 => 3,
        _ => 4,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_and_a_unit_that_fits() {
        for (value, unit, text) in [
            (27_412.0, Unit::PerSecond, "27.4k"),
            (981.0, Unit::PerSecond, "981"),
            (999.7, Unit::PerSecond, "1.00k"),
            (81_023.0, Unit::Nanoseconds, "81.0 µs"),
            (999_700.0, Unit::Nanoseconds, "1.00 ms"),
            (12.0, Unit::Nanoseconds, "12.0 ns"),
            (0.0, Unit::Nanoseconds, "0 ns"),
            (1.0234e9, Unit::BytesPerSecond, "1.02 GB/s"),
            (8192.0, Unit::Bytes, "8.00 KiB"),
            (0.931, Unit::Ratio, "93.1 %"),
            (-1500.0, Unit::Count, "-1.50k"),
        ] {
            assert_eq!(figure(value, unit), text);
        }
    }

    #[test]
    fn ticks_are_round() {
        for (value, unit, text) in [
            (100_000.0, Unit::Nanoseconds, "100 µs"),
            (1_500_000.0, Unit::Nanoseconds, "1.5 ms"),
            (20_000.0, Unit::PerSecond, "20k"),
            (0.0, Unit::PerSecond, "0"),
            (0.5, Unit::Ratio, "50 %"),
            (200.0, Unit::PerSecond, "200"),
        ] {
            assert_eq!(tick(value, unit), text);
        }
    }

    #[test]
    fn parameters_spans_and_numbers() {
        let bytes = Parameter::new("bs", "block size", Unit::Bytes);
        let plain = Parameter::new("iodepth", "queue depth", Unit::Count);
        assert_eq!(value(&Value::Number(8192), &bytes), "8 KiB");
        assert_eq!(value(&Value::Number(16384), &plain), "16384");
        assert_eq!(value(&Value::Flag(true), &plain), "yes");
        assert_eq!(seconds(58.21), "58.2 s");
        assert_eq!(seconds(250.0), "4 min 10 s");
        assert_eq!(seconds(7300.0), "2 h 1 min");
        assert_eq!(ratio(1.0431), "1.04");
        assert_eq!(ratio(0.0061), "0.0061");
        assert_eq!(ratio(12.34), "12.3");
        assert_eq!(whole(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(whole(12), "12");
        assert_eq!(instant("2025-11-22T18:05:31Z".parse().unwrap()), "2025-11-22 18:05 UTC");
    }

    #[test]
    fn facts_are_flattened_to_lines() {
        let facts = serde_json::json!({
            "size": 8192, "extents": [{"state": "written", "count": 34}], "write_cache": null, "direct_io": true,
            "sizes": [512, 1.5], "file_system": {"kind": "ext4"}
        });
        let expected = [
            ("direct io", "yes"),
            ("extents 1 › count", "34"),
            ("extents 1 › state", "written"),
            ("file system › kind", "ext4"),
            ("size", "8\u{202f}192 (8 KiB)"),
            ("sizes", "512, 1.5"),
        ];
        assert_eq!(flattened(&facts), expected.map(|(what, value)| (what.to_owned(), value.to_owned())));
    }

    #[test]
    fn nothing_from_outside_steers_the_terminal() {
        assert_eq!(printable("a\u{1b}[31mb\r\nc\u{9b}"), "a\u{fffd}[31mb\u{fffd}\nc\u{fffd}");
    }
}
