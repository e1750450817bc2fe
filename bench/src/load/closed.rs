//! The closed loop: a number of operations in flight, and the next one starts when one completes.

use blockdev::{Cancel, Result};

use super::Work;
use super::offsets::{Kind, Ops};
use super::open::Ended;
use super::queue::{Queue, Wait};
use super::recorder::Recorder;

/// What is in flight under a tag.
#[derive(Debug, Clone, Copy)]
struct Flight {
    kind: Kind,
    started: u64,
}

/// Keeps [`Work::depth`] operations in flight until the recorder's window is over, `stop` is set or there are no more
/// operations. Returns when that was.
///
/// One look at the clock per batch of completions serves as their end and as the start of their successors, which are
/// handed to the kernel right after it.
pub(super) fn run(
    queue: &mut impl Queue,
    work: &Work,
    mut ops: Ops,
    recorder: &mut Recorder,
    stop: &Cancel,
) -> Result<Ended> {
    let mut flights = Vec::with_capacity(work.depth as usize);
    let mut done = Vec::with_capacity(work.depth as usize);
    let mut unsynced = 0;
    let started = queue.now();
    let mut in_flight = 0;
    while in_flight < work.depth && ops.has_next() {
        let tag = in_flight;
        in_flight += 1;
        let (kind, offset) = ops.next();
        queue.submit(tag, kind, offset)?;
        flights.push(Flight { kind, started });
    }
    let ended = loop {
        queue.complete(Wait::ForCompletion, &mut done)?;
        let now = queue.now();
        if !recorder.tick(now) || stop.is_cancelled() {
            break now;
        }
        for completion in done.drain(..) {
            completion.result?;
            #[allow(clippy::cast_possible_truncation, reason = "tags are given out above, below `depth`")]
            let tag = completion.tag as u32;
            let flight = &mut flights[tag as usize];
            recorder.service(flight.kind as usize, now - flight.started);
            unsynced += u32::from(flight.kind == Kind::Write);
            let (kind, offset) = if work.fdatasync > 0 && unsynced >= work.fdatasync {
                unsynced = 0;
                (Kind::Sync, 0)
            } else if ops.has_next() {
                ops.next()
            } else {
                in_flight -= 1;
                continue;
            };
            queue.submit(tag, kind, offset)?;
            *flight = Flight { kind, started: now };
        }
        if in_flight == 0 {
            break now;
        }
    };
    for completion in done {
        completion.result?;
    }
    Ok(Ended { at: ended, waiting: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Pattern;
    use crate::load::recorder::Window;
    use crate::load::simulated::{Simulated, ms};
    use blockdev::{ByteRange, ByteSize};

    const WINDOW: Window = Window { start: ms(100), end: ms(1100), interval: ms(100) };

    fn work(pattern: Pattern, depth: u32) -> Work {
        Work::new(pattern, ByteSize::kib(4), depth, ByteRange::from_start(ByteSize::mib(1)))
    }

    #[test]
    fn the_queue_is_kept_full_and_the_warm_up_left_out() {
        let mut disk = Simulated::new(|now, _| now + ms(1));
        let mut recorder = Recorder::new(WINDOW, Kind::COUNT, false);
        let work = work(Pattern::RandRead, 8);
        let ended = run(&mut disk, &work, Ops::new(&work, 0), &mut recorder, &Cancel::new()).unwrap();
        assert_eq!(ended, Ended { at: ms(1100), waiting: 0 });
        assert_eq!(disk.deepest, 8);
        assert_eq!(disk.seen.len(), 8 * 1100);
        let samples = recorder.finish(ended.at);
        assert_eq!(samples.len(), 10);
        for sample in samples {
            let [reads, writes, syncs] = <[_; Kind::COUNT]>::try_from(sample.service).unwrap();
            assert!(writes.is_empty() && syncs.is_empty());
            assert_eq!(reads.len(), 1);
            assert!(reads[0].0.abs_diff(ms(1)) <= 1000);
            assert_eq!(reads[0].1, 800);
        }
    }

    #[test]
    fn every_nth_write_is_followed_by_an_fdatasync() {
        let mut disk = Simulated::new(|now, kind| now + if kind == Kind::Sync { ms(4) } else { ms(1) });
        let mut recorder = Recorder::new(WINDOW, Kind::COUNT, false);
        let work = Work { fdatasync: 2, ..work(Pattern::Write, 1) };
        let ended = run(&mut disk, &work, Ops::new(&work, 0), &mut recorder, &Cancel::new()).unwrap();
        for (index, seen) in disk.seen.iter().enumerate() {
            assert_eq!(seen.kind == Kind::Sync, index % 3 == 2, "operation {index}");
        }
        let offsets: Vec<u64> =
            disk.seen.iter().filter(|seen| seen.kind == Kind::Write).take(3).map(|seen| seen.offset).collect();
        assert_eq!(offsets, [0, 4096, 8192]);
        let syncs: u64 = recorder
            .finish(ended.at)
            .iter()
            .flat_map(|sample| &sample.service[Kind::Sync as usize])
            .map(|at| at.1)
            .sum();
        assert!((166..=167).contains(&syncs), "{syncs}");
    }

    #[test]
    fn it_is_over_when_every_block_was_touched() {
        for (depth, over) in [(1, ms(256)), (16, ms(16)), (1000, ms(1))] {
            let mut disk = Simulated::new(|now, _| now + ms(1));
            let mut recorder = Recorder::new(Window { start: 0, ..WINDOW }, Kind::COUNT, false);
            let work = Work { once: true, ..work(Pattern::RandWrite, depth) };
            let ended = run(&mut disk, &work, Ops::new(&work, 0), &mut recorder, &Cancel::new()).unwrap();
            assert_eq!(ended, Ended { at: over, waiting: 0 });
            assert_eq!(disk.seen.len(), 256);
            let counted: u64 = recorder
                .finish(ended.at)
                .iter()
                .flat_map(|sample| &sample.service[Kind::Write as usize])
                .map(|at| at.1)
                .sum();
            assert_eq!(counted, 256);
        }
    }

    #[test]
    fn a_failed_operation_ends_the_run_and_stopping_does_not() {
        let work = work(Pattern::Read, 4);
        let mut disk = Simulated::new(|now, _| now + ms(1));
        disk.bad = Some(40960);
        let mut recorder = Recorder::new(WINDOW, Kind::COUNT, false);
        let outcome = run(&mut disk, &work, Ops::new(&work, 0), &mut recorder, &Cancel::new());
        assert_eq!(outcome.unwrap_err().to_string(), "a bad block");

        let stop = Cancel::new();
        let mut disk = Simulated::new(|now, _| {
            if now >= ms(500) {
                stop.cancel();
            }
            now + ms(1)
        });
        let mut recorder = Recorder::new(WINDOW, Kind::COUNT, false);
        let ended = run(&mut disk, &work, Ops::new(&work, 0), &mut recorder, &stop).unwrap();
        assert_eq!(ended.at, ms(501));
        assert_eq!(recorder.finish(ended.at).len(), 5);
    }
}
