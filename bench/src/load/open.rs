//! The open loop: operations start when their time has come, whether or not the disk is ready for them.

use std::time::Duration;

use blockdev::engine::Completion;
use blockdev::{Cancel, Result};
use fastrand::Rng;

use super::Work;
use super::offsets::{Kind, Ops};
use super::queue::{Queue, Wait};
use super::recorder::Recorder;

/// A sleep ends this much before the next arrival, and the rest is spun: a timer wakes a thread some microseconds late.
pub(crate) const SPIN_NS: u64 = 20_000;

/// The longest sleep, so that a request to stop is noticed.
const SLEEP_NS_MAX: u64 = 100_000_000;

/// The intended starts of a Poisson process: independent of each other and of all that happens.
#[derive(Debug, Clone)]
pub(crate) struct Arrivals {
    mean_ns: f64,
    next_ns: f64,
    rng: Rng,
}

impl Arrivals {
    /// Arrivals at `rate` a second, from 0.
    pub(crate) fn new(rate: f64, seed: u64) -> Self {
        let mut arrivals = Self { mean_ns: 1e9 / rate, next_ns: 0.0, rng: Rng::with_seed(seed) };
        arrivals.advance();
        arrivals
    }

    /// When the next one is due, in nanoseconds since the run began.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time since a start; it saturates")]
    pub(crate) fn next(&self) -> u64 {
        self.next_ns as u64
    }

    pub(crate) fn advance(&mut self) {
        // 1 - f64() lies in (0, 1], whose logarithm is finite.
        self.next_ns -= (1.0 - self.rng.f64()).ln() * self.mean_ns;
    }
}

/// What is in flight under a tag.
#[derive(Debug, Clone, Copy)]
struct Flight {
    kind: Kind,
    intended: u64,
    started: u64,
}

/// How an open loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended {
    /// When, in nanoseconds since the run began.
    pub(super) at: u64,
    /// How many arrivals were due and had found no room in the queue.
    pub(super) waiting: u64,
}

/// Starts an operation at each of `arrivals`, or as soon after it as one of [`Work::depth`] places in the queue is free,
/// until the recorder's window is over or `stop` is set.
///
/// Arrivals that find no room wait their turn in order. No list of them is kept: they are the ones between the last that
/// was started and now.
pub(super) fn run(
    queue: &mut impl Queue,
    work: &Work,
    mut ops: Ops,
    mut arrivals: Arrivals,
    recorder: &mut Recorder,
    stop: &Cancel,
) -> Result<Ended> {
    let mut free: Vec<u32> = (0..work.depth).rev().collect();
    let mut flights: Vec<Option<Flight>> = vec![None; work.depth as usize];
    let mut done: Vec<Completion> = Vec::with_capacity(work.depth as usize);
    let mut unsynced = 0;
    let mut now = queue.now();
    while now < recorder.end() && !stop.is_cancelled() {
        recorder.tick(now);
        for completion in done.drain(..) {
            completion.result?;
            #[allow(clippy::cast_possible_truncation, reason = "tags are given out below, below `depth`")]
            let tag = completion.tag as u32;
            let Some(flight) = flights[tag as usize].take() else { unreachable!("only what is in flight completes") };
            recorder.service(flight.kind as usize, now - flight.started);
            recorder.response(flight.kind as usize, now - flight.intended);
            unsynced += u32::from(flight.kind == Kind::Write);
            if work.fdatasync > 0 && unsynced >= work.fdatasync {
                unsynced = 0;
                queue.submit(tag, Kind::Sync, 0)?;
                flights[tag as usize] = Some(Flight { kind: Kind::Sync, intended: now, started: now });
            } else {
                free.push(tag);
            }
        }
        while arrivals.next() <= now
            && let Some(tag) = free.pop()
        {
            let (kind, offset) = ops.next();
            queue.submit(tag, kind, offset)?;
            flights[tag as usize] = Some(Flight { kind, intended: arrivals.next(), started: now });
            arrivals.advance();
        }
        let wait = match arrivals.next().saturating_sub(now) {
            _ if free.is_empty() => Wait::ForCompletion,
            left if left > SPIN_NS => Wait::AtMost(Duration::from_nanos((left - SPIN_NS).min(SLEEP_NS_MAX))),
            _ => Wait::Not,
        };
        queue.complete(wait, &mut done)?;
        now = queue.now();
    }
    for completion in done {
        completion.result?;
    }
    // Whoever still waits has waited at least until now: to leave these out would be to forget the worst.
    let at = now.min(recorder.end());
    recorder.tick(at.saturating_sub(1));
    for flight in flights.into_iter().flatten() {
        recorder.response(flight.kind as usize, at.saturating_sub(flight.intended));
    }
    let mut waiting = 0;
    while arrivals.next() < at {
        recorder.response(ops.next().0 as usize, at - arrivals.next());
        arrivals.advance();
        waiting += 1;
    }
    Ok(Ended { at, waiting })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Pattern;
    use crate::load::recorder::{Sample, Window};
    use crate::load::simulated::{Simulated, ms};
    use blockdev::{ByteRange, ByteSize};
    use proptest::prelude::*;

    fn work(pattern: Pattern, depth: u32) -> Work {
        Work::new(pattern, ByteSize::kib(4), depth, ByteRange::from_start(ByteSize::mib(1)))
    }

    fn window(seconds: u64) -> Window {
        Window { start: 0, end: ms(1000 * seconds), interval: ms(100) }
    }

    /// All latencies of a kind, in the order of their size.
    fn all(samples: &[Sample], of: impl Fn(&Sample) -> &Vec<(u64, u64)>) -> Vec<u64> {
        let mut all: Vec<u64> = samples
            .iter()
            .flat_map(|sample| of(sample).iter().flat_map(|(value, count)| (0..*count).map(|_| *value)))
            .collect();
        all.sort_unstable();
        all
    }

    fn reads(samples: &[Sample]) -> (Vec<u64>, Vec<u64>) {
        let kind = Kind::Read as usize;
        (all(samples, |sample| &sample.service[kind]), all(samples, |sample| &sample.response[kind]))
    }

    fn due(rate: f64, seed: u64, end: u64) -> Vec<u64> {
        let mut arrivals = Arrivals::new(rate, seed);
        std::iter::from_fn(|| {
            let next = arrivals.next();
            arrivals.advance();
            (next < end).then_some(next)
        })
        .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn arrivals_come_in_order_and_at_the_rate(rate in 10.0f64..100_000.0, seed: u64) {
            let count = 10_000;
            let mut arrivals = Arrivals::new(rate, seed);
            let mut last = 0;
            for _ in 0..count {
                prop_assert!(arrivals.next() >= last);
                last = arrivals.next();
                arrivals.advance();
            }
            // The time of 10,000 arrivals has a standard deviation of 1 %.
            let expected = f64::from(count) * 1e9 / rate;
            #[allow(clippy::cast_precision_loss, reason = "a ratio")]
            let ratio = last as f64 / expected;
            prop_assert!((0.94..1.06).contains(&ratio), "{ratio}");
        }

        /// A disk that does one thing at a time is Lindley's recursion: an operation starts when it arrives or when the one
        /// before is done, whichever is later. Whatever the disk does, the response times must be those.
        #[test]
        fn response_times_count_from_the_intended_start(
            services in prop::collection::vec(1_000u64..20_000_000, 1..20),
            rate in 10.0f64..400.0,
            seed: u64,
        ) {
            let end = ms(2000);
            let mut calls = 0;
            let mut disk = Simulated::new(|now, _| {
                calls += 1;
                now + services[(calls - 1) % services.len()]
            });
            let mut recorder = Recorder::new(window(2), Kind::COUNT, true);
            let work = work(Pattern::RandRead, 1);
            let arrivals = Arrivals::new(rate, seed);
            let ended = run(&mut disk, &work, Ops::new(&work, 0), arrivals, &mut recorder, &Cancel::new()).unwrap();

            let mut free_at = 0;
            let mut expected: Vec<u64> = due(rate, seed, end)
                .into_iter()
                .zip(services.iter().cycle())
                .map(|(due, service)| {
                    free_at = due.max(free_at) + service;
                    free_at.min(end) - due
                })
                .collect();
            expected.sort_unstable();
            let (service, response) = reads(&recorder.finish(ended.at));
            prop_assert_eq!(response.len(), expected.len());
            prop_assert!(response.len() - service.len() <= usize::try_from(ended.waiting).unwrap() + 1);
            for (got, expected) in response.iter().zip(&expected) {
                // Three digits, and up to one look at the queue later for everyone in the same busy period.
                let tolerance = expected / 500 + 100 * u64::try_from(response.len()).unwrap();
                prop_assert!(got.abs_diff(*expected) <= tolerance, "{got} instead of {expected}");
            }
        }
    }

    #[test]
    fn everyone_who_comes_during_a_stall_feels_it() {
        // Instant, but for half a second in the middle.
        let stall = |now: u64, _| if (ms(500)..ms(1000)).contains(&now) { ms(1000) } else { now + 1000 };
        let mut disk = Simulated::new(stall);
        let mut recorder = Recorder::new(window(2), Kind::COUNT, true);
        let work = work(Pattern::RandRead, 4);
        let ended =
            run(&mut disk, &work, Ops::new(&work, 0), Arrivals::new(1000.0, 7), &mut recorder, &Cancel::new()).unwrap();
        let (service, response) = reads(&recorder.finish(ended.at));
        let slow = |latencies: &[u64]| latencies.iter().filter(|latency| **latency > ms(10)).count();
        // Four were in flight; the 490 or so who came more than 10 ms before its end waited as well.
        assert_eq!(slow(&service), 4);
        assert!((430..550).contains(&slow(&response)), "{}", slow(&response));
        assert_eq!(ended.waiting, 0);
    }

    #[test]
    fn operations_start_when_they_are_due_and_not_before() {
        let mut disk = Simulated::new(|now, _| now + 50_000);
        let mut recorder = Recorder::new(window(1), Kind::COUNT, true);
        let work = work(Pattern::RandRead, 64);
        run(&mut disk, &work, Ops::new(&work, 0), Arrivals::new(500.0, 3), &mut recorder, &Cancel::new()).unwrap();
        let due = due(500.0, 3, ms(1000));
        assert!(disk.seen.len().abs_diff(due.len()) <= 1);
        for (seen, due) in disk.seen.iter().zip(&due) {
            assert!(seen.at >= *due && seen.at - due <= 200, "{} instead of {due}", seen.at);
        }
    }

    #[test]
    fn a_disk_that_cannot_keep_up_is_found_out() {
        let mut disk = Simulated::new(|now, _| now + ms(10));
        let mut recorder = Recorder::new(window(1), Kind::COUNT, true);
        let work = work(Pattern::RandRead, 2);
        let ended =
            run(&mut disk, &work, Ops::new(&work, 0), Arrivals::new(1000.0, 5), &mut recorder, &Cancel::new()).unwrap();
        let due = due(1000.0, 5, ms(1000)).len();
        let (service, response) = reads(&recorder.finish(ended.at));
        assert!((190..=200).contains(&service.len()), "{}", service.len());
        assert_eq!(response.len(), due);
        assert_eq!(usize::try_from(ended.waiting).unwrap(), due - disk.seen.len());
        assert_eq!(disk.deepest, 2);
        assert!(response.last().unwrap() > &ms(700));
    }

    #[test]
    fn every_nth_write_is_followed_by_an_fdatasync() {
        let mut disk = Simulated::new(|now, kind| now + if kind == Kind::Sync { ms(2) } else { 10_000 });
        let mut recorder = Recorder::new(window(1), Kind::COUNT, true);
        let work = Work { fdatasync: 3, ..work(Pattern::RandWrite, 1) };
        let ended =
            run(&mut disk, &work, Ops::new(&work, 0), Arrivals::new(100.0, 5), &mut recorder, &Cancel::new()).unwrap();
        for (index, seen) in disk.seen.iter().enumerate() {
            assert_eq!(seen.kind == Kind::Sync, index % 4 == 3, "operation {index}");
        }
        let samples = recorder.finish(ended.at);
        let syncs = all(&samples, |sample| &sample.service[Kind::Sync as usize]);
        assert!(syncs.len() > 20 && syncs.iter().all(|sync| sync.abs_diff(ms(2)) <= ms(2) / 500), "{syncs:?}");
    }

    #[test]
    fn a_failed_operation_ends_the_run_and_stopping_does_not() {
        let work = work(Pattern::Read, 4);
        let mut disk = Simulated::new(|now, _| now + 1000);
        disk.bad = Some(40960);
        let mut recorder = Recorder::new(window(1), Kind::COUNT, true);
        let outcome = run(&mut disk, &work, Ops::new(&work, 0), Arrivals::new(500.0, 3), &mut recorder, &Cancel::new());
        assert_eq!(outcome.unwrap_err().to_string(), "a bad block");

        let stop = Cancel::new();
        let mut disk = Simulated::new(|now, _| {
            if now > ms(300) {
                stop.cancel();
            }
            now + 1000
        });
        let mut recorder = Recorder::new(window(1), Kind::COUNT, true);
        let ended = run(&mut disk, &work, Ops::new(&work, 0), Arrivals::new(500.0, 3), &mut recorder, &stop).unwrap();
        assert!((ms(300)..ms(350)).contains(&ended.at), "{ended:?}");
        assert!(!reads(&recorder.finish(ended.at)).0.is_empty());
    }
}
