//! How often the primary's heart beats.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use blockdev::{Error, Result};
use serde::{Deserialize, Serialize};

/// What does any good, and harms nobody: a replica of PolarDB sleeps for a second at most, and every beat is a transaction.
const TIMES: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(5);

/// How often the primary writes something tiny, so that no replica falls asleep over what it has received.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Heartbeat {
    /// It does not.
    #[default]
    Off,
    /// Once in such a time.
    Every(Duration),
}

impl FromStr for Heartbeat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: &str| {
            Error::invalid(format!("{text:?} is no heartbeat: {why}")).with_hint("write a time such as 10ms, or off")
        };
        if text == "off" {
            return Ok(Self::Off);
        }
        match humantime::parse_duration(text) {
            Ok(time) if TIMES.contains(&time) => Ok(Self::Every(time)),
            Ok(_) => Err(bad(&format!("it is not in {:?} to {:?}", TIMES.start(), TIMES.end()))),
            Err(error) => Err(bad(&error.to_string())),
        }
    }
}

impl fmt::Display for Heartbeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.pad("off"),
            Self::Every(time) => f.pad(&humantime::format_duration(*time).to_string()),
        }
    }
}

impl TryFrom<String> for Heartbeat {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Heartbeat> for String {
    fn from(heartbeat: Heartbeat) -> Self {
        heartbeat.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_back_what_it_says() {
        for text in ["off", "10ms", "1s", "1s 500ms"] {
            assert_eq!(text.parse::<Heartbeat>().unwrap().to_string(), text);
        }
        for (text, why) in [
            ("0ms", "\"0ms\" is no heartbeat: it is not in 1ms to 5s"),
            ("6s", "\"6s\" is no heartbeat: it is not in 1ms to 5s"),
            ("often", "\"often\" is no heartbeat: expected number at 0"),
        ] {
            assert_eq!(text.parse::<Heartbeat>().unwrap_err().to_string(), why);
        }
    }
}
