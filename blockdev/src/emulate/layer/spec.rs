//! How layers are written on a command line: a word or none, and `key=value` pairs, with commas between them.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use crate::emulate::request::Operation;
use crate::error::{Error, Result};
use crate::units::ByteSize;

/// The parts of a specification, and what it specifies, for errors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spec<'a> {
    pub(super) what: &'static str,
    pub(super) text: &'a str,
}

impl<'a> Spec<'a> {
    /// The key, where there is one, and value of each part.
    pub(super) fn parts(self) -> impl Iterator<Item = (Option<&'a str>, &'a str)> {
        self.text.split(',').map(str::trim).map(|part| match part.split_once('=') {
            Some((key, value)) => (Some(key.trim()), value.trim()),
            None => (None, part),
        })
    }

    pub(super) fn bad(self, why: impl Display) -> Error {
        Error::invalid(format!("{:?} is no {}: {why}", self.text, self.what))
    }

    /// A value that is parsed as `T`.
    pub(super) fn value<T: FromStr<Err: Display>>(self, text: &str) -> Result<T> {
        text.parse().map_err(|why| self.bad(format_args!("{text:?}: {why}")))
    }

    /// A value such as `100us`, `1ms` or `1.5s`.
    pub(super) fn duration(self, text: &str) -> Result<Duration> {
        duration(text).ok_or_else(|| self.bad(format_args!("{text:?} is no duration such as 80us, 1ms or 2s")))
    }

    /// A value such as `1M` or `4096`.
    pub(super) fn size(self, text: &str) -> Result<ByteSize> {
        text.parse().map_err(|why| self.bad(why))
    }

    /// The name of an operation.
    pub(super) fn operation(self, text: &str) -> Result<Operation> {
        operation(text).ok_or_else(|| {
            self.bad(format_args!(
                "{text:?} is no operation; they are {}",
                Operation::ALL.map(Operation::name).join(", ")
            ))
        })
    }
}

/// The operation with that name.
pub(super) fn operation(text: &str) -> Option<Operation> {
    Operation::ALL.into_iter().find(|operation| operation.name() == text)
}

/// A number and a unit: ns, us (µs), ms, s, m, h.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(split);
    let nanoseconds = match unit.trim() {
        "ns" => 1.0,
        "us" | "µs" | "μs" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        "m" | "min" => 60e9,
        "h" => 3600e9,
        _ => return None,
    };
    let number: f64 = number.parse().ok()?;
    let nanoseconds = number * nanoseconds;
    // A thousand years are enough for anybody.
    (0.0..3e19).contains(&nanoseconds).then(|| Duration::from_secs_f64(nanoseconds / 1e9))
}

/// The shortest way to write a duration that [`duration`] reads back.
pub(super) fn shown(duration: Duration) -> String {
    let ns = duration.as_nanos();
    for (unit, name) in [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us")] {
        if ns >= unit && (ns * 1000).is_multiple_of(unit) {
            #[allow(clippy::cast_precision_loss, reason = "a few digits")]
            return format!("{}{name}", ns as f64 / unit as f64);
        }
    }
    format!("{ns}ns")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written() {
        for (text, ns, again) in [
            ("1ms", 1_000_000, "1ms"),
            ("80us", 80_000, "80us"),
            ("1.5s", 1_500_000_000, "1.5s"),
            ("250ns", 250, "250ns"),
            ("1500us", 1_500_000, "1.5ms"),
            ("2 m", 120_000_000_000, "120s"),
            ("0s", 0, "0ns"),
        ] {
            let read = duration(text).unwrap();
            assert_eq!((read.as_nanos(), shown(read).as_str()), (ns, again), "{text}");
        }
        for bad in ["", "1", "ms", "-1s", "1x", "1.2.3s", "99999999999999999999h"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }
}
