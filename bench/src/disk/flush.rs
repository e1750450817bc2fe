//! Does a flush reach the medium? Only its time can tell.

use std::time::Duration;

use blockdev::topology::WriteCache;

use super::plan::Spec;
use super::target::Target;
use crate::report::{Finding, Histogram, Severity};

/// Faster than any medium without its own power: flash takes longer to program a page, a disk longer to turn. Devices whose
/// cache survives a loss of power are this fast, and so are those that lie.
const NO_MEDIUM: Duration = Duration::from_micros(100);

/// So few flushes say nothing.
const COUNT_MIN: u64 = 20;

/// What the times of fdatasync in `syncs`, each after one write, say of `spec` on `target`.
pub(super) fn finding(spec: &Spec, target: &Target, syncs: &Histogram) -> Option<Finding> {
    if spec.work.fdatasync != 1 || spec.work.depth != 1 || spec.work.jobs != 1 || syncs.count() < COUNT_MIN {
        return None;
    }
    let median = Duration::from_nanos(syncs.percentile(50.0));
    let subject = on(target);
    let measured =
        format!("{:.0} µs in the median of {} after a write of {}", micros(median), syncs.count(), spec.work.block);
    if median >= NO_MEDIUM {
        let text = format!("An fdatasync on {subject} takes {measured}: long enough to have reached a medium.");
        return Some(Finding::new(Severity::Note, "flush-takes-time", text));
    }
    let cache = match target.write_cache() {
        Some(WriteCache::WriteThrough) => {
            " (The device says that it has no volatile cache, so the kernel sends it no flushes.)"
        }
        Some(WriteCache::WriteBack) => " (The device says that it has a volatile cache, and answers a flush at once.)",
        None => "",
    };
    let text = format!(
        "An fdatasync on {subject} takes {measured}: no medium is that fast. A cache answers, in the device or in the \
         hypervisor. Unless that cache survives a loss of power, what a database calls durable may not be.{cache}"
    );
    Some(Finding::new(Severity::Warning, "flush-is-cached", text).with_hint(
        "ask the maker of the device whether it has power-loss protection, and a hypervisor for its cache mode",
    ))
}

/// `the loop device`, `/dev/sdb`.
fn on(target: &Target) -> String {
    let name = target.name();
    if name.contains('/') { name.to_owned() } else { format!("the {name}") }
}

#[allow(clippy::cast_precision_loss, reason = "microseconds for people")]
fn micros(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1000.0
}
