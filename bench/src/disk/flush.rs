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
        // A flush of a loop device goes through a thread of the kernel's to its file, which takes as long as some media do.
        let verdict = if target.loop_device().is_some() {
            ". Part of that is the way through the loop device: whether it reached a medium, a flush of its file tells."
        } else {
            ": long enough to have reached a medium."
        };
        let text = format!("An fdatasync on {subject} takes {measured}{verdict}");
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Caching;
    use crate::load::{Pattern, Work};
    use blockdev::engine::Choice;
    use blockdev::{ByteRange, ByteSize};

    fn found(fdatasync: u32, count: u64, micros: u64) -> Option<Finding> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, [0; 8192]).unwrap();
        let target = Target::open(&path, Caching::Buffered).unwrap().named("loop device");
        let region = ByteRange::from_start(ByteSize::kib(8));
        let work = Work { fdatasync, ..Work::new(Pattern::RandWrite, ByteSize::kib(8), 1, region) };
        let spec = Spec { group: "", name: String::new(), target: 0, engine: Choice::Auto, work };
        let mut syncs = Histogram::new();
        syncs.record_n(micros * 1000, count);
        finding(&spec, &target, &syncs)
    }

    #[test]
    fn a_flush_faster_than_any_medium_is_said_to_be_cached() {
        let finding = found(1, 500, 21).unwrap();
        assert_eq!((finding.id.as_str(), finding.severity), ("flush-is-cached", Severity::Warning));
        let start =
            "An fdatasync on the loop device takes 21 µs in the median of 500 after a write of 8 KiB: no medium";
        assert!(finding.text.starts_with(start), "{}", finding.text);
        assert!(finding.hint.is_some());
    }

    #[test]
    fn a_slow_one_may_have_reached_a_medium_and_few_say_nothing() {
        let finding = found(1, 20, 1900).unwrap();
        assert_eq!((finding.id.as_str(), finding.severity), ("flush-takes-time", Severity::Note));
        assert!(finding.text.contains("takes 1901 µs"), "{}", finding.text);
        assert_eq!(found(1, 19, 1900), None);
        assert_eq!(found(8, 500, 21), None);
    }
}
