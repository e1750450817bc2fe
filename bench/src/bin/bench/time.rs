//! Times on the command line.

use std::time::Duration;

use blockdev::{Error, Result};

/// A time as people write it; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.map_or_else(
        || {
            humantime::parse_duration(text).map_err(|source| {
                Error::invalid(format!("{text:?} is no time, such as 10s or 500ms")).with_source(source)
            })
        },
        Ok,
    )
}
