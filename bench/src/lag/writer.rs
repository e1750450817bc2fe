//! The writer: transactions in their rhythm, and when each was due, sent and acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use blockdev::{Error, Result};
use fastrand::Rng;
use tokio::task::JoinSet;

use super::clock::{Timer, nanos};
use super::nodes::Endpoint;
use super::probe::Prepared;
use super::samples::Written;
use super::session::{Pace, Shared, patiently};
use super::{PATIENCE, runtime};

/// The longest sleep, so that a request to stop is noticed.
const SLEEP_MAX: Duration = Duration::from_millis(100);

/// What the writer wrote.
#[derive(Debug, Default)]
pub(super) struct Wrote {
    /// The transactions of each slot, in the order of their numbers.
    pub(super) slots: Vec<Vec<Written>>,
    /// When the rhythm began.
    pub(super) began: u64,
    /// When it ended.
    pub(super) ended: u64,
    /// When those were due for which no connection was free before it ended.
    pub(super) waiting: Vec<u64>,
    /// Why it ended before its time.
    pub(super) error: Option<Error>,
}

impl Wrote {
    /// The last number of each of `slots` slots whose commit was acknowledged.
    pub(super) fn acknowledged(&self, slots: usize) -> Vec<u64> {
        let last = |written: &Vec<Written>| {
            written.iter().rposition(|written| written.acknowledged.is_some()).map_or(0, |index| index as u64 + 1)
        };
        let mut numbers: Vec<u64> = self.slots.iter().map(last).collect();
        numbers.resize(slots, 0);
        numbers
    }
}

/// Times of a Poisson process of which it is known that in each of `stretches`, one after the other, it had as many arrivals
/// as it has in the mean: independent of each other, and at `rate` not only in the long run.
pub(super) fn arrivals(rate: f64, stretches: &[Duration], seed: u64) -> Vec<u64> {
    let mut rng = Rng::with_seed(seed);
    let mut due = Vec::new();
    let mut start = 0;
    for stretch in stretches {
        let end = start + nanos(*stretch);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be in range")]
        let count = (rate * stretch.as_secs_f64()).round() as usize;
        due.extend((0..count).map(|_| rng.u64(start..end.max(start + 1))));
        start = end;
    }
    due.sort_unstable();
    due
}

/// Writes as the session says, until its end or a stop.
///
/// # Errors
/// When it cannot begin.
pub(super) fn run(writer: &Endpoint, shared: &Arc<Shared>) -> Result<Wrote> {
    runtime()?.block_on(async {
        let mut connections = Vec::new();
        for slot in 0..shared.session.pace.slots() {
            let client = writer.connect().await?;
            let slot = i32::try_from(slot)
                .map_err(|source| Error::invalid("more connections than there are numbers for").with_source(source))?;
            let prepared = Prepared::new(shared.session.probe, client, slot).await;
            connections.push(prepared.map_err(|error| writer.failed("cannot write to", error))?);
        }
        match &shared.session.pace {
            Pace::Open { due, length, .. } => open(writer, connections, due, *length, shared).await,
            Pace::AfterSilence { silences } => {
                let Some(connection) = connections.pop() else { return Ok(Wrote::default()) };
                after_silence(writer, &connection, silences, shared).await
            }
        }
    })
}

/// The arrivals that nobody has taken yet. Whichever connection is free takes the next and waits until it is due, or sends
/// it at once when that has passed: a queue with many servers, without anybody who hands out.
#[derive(Debug)]
struct Queue {
    due: Vec<u64>,
    next: AtomicUsize,
    end: u64,
}

async fn open(
    writer: &Endpoint,
    connections: Vec<Prepared>,
    due: &[u64],
    length: Duration,
    shared: &Arc<Shared>,
) -> Result<Wrote> {
    let began = shared.clock.now();
    let due = due.iter().map(|offset| began + offset).collect();
    let queue = Arc::new(Queue { due, next: AtomicUsize::new(0), end: began + nanos(length) });
    let mut tasks = JoinSet::new();
    for (slot, connection) in connections.into_iter().enumerate() {
        let (writer, queue, shared, timer) = (writer.clone(), Arc::clone(&queue), Arc::clone(shared), Timer::new()?);
        tasks.spawn(async move { (slot, serve(&writer, &connection, &queue, &shared, &timer).await) });
    }
    let mut wrote = Wrote { slots: vec![Vec::new(); tasks.len()], began, ..Wrote::default() };
    while let Some(served) = tasks.join_next().await {
        let (slot, (written, outcome)) =
            served.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()));
        wrote.slots[slot] = written;
        if let Err(error) = outcome {
            wrote.error.get_or_insert(error);
        }
    }
    wrote.ended = queue.end.min(shared.clock.now());
    let untaken = queue.due.get(queue.next.load(Ordering::Acquire)..).unwrap_or_default();
    wrote.waiting = untaken.iter().copied().filter(|due| *due < wrote.ended).collect();
    Ok(wrote)
}

/// One connection: what it wrote, and why it ended before its time.
async fn serve(
    writer: &Endpoint,
    connection: &Prepared,
    queue: &Queue,
    shared: &Shared,
    timer: &Timer,
) -> (Vec<Written>, Result<()>) {
    let mut written = Vec::new();
    loop {
        if shared.stop.is_cancelled() || shared.clock.now() >= queue.end {
            return (written, Ok(()));
        }
        let Some(due) = queue.due.get(queue.next.fetch_add(1, Ordering::AcqRel)) else { return (written, Ok(())) };
        if let Err(error) = until(*due, timer, shared).await {
            return (written, Err(error));
        }
        if shared.stop.is_cancelled() {
            return (written, Ok(()));
        }
        if let Err(error) = commit(writer, connection, *due, &mut written, shared).await {
            return (written, Err(error));
        }
    }
}

/// Waits until `due`, or a stop.
pub(super) async fn until(due: u64, timer: &Timer, shared: &Shared) -> Result<()> {
    loop {
        let left = Duration::from_nanos(due.saturating_sub(shared.clock.now()));
        if left.is_zero() || shared.stop.is_cancelled() {
            return Ok(());
        }
        timer.sleep(left.min(SLEEP_MAX)).await?;
    }
}

/// Commits the next transaction of the connection's slot. What was sent is noted, whatever becomes of it.
async fn commit(
    writer: &Endpoint,
    connection: &Prepared,
    intended: u64,
    written: &mut Vec<Written>,
    shared: &Shared,
) -> Result<()> {
    let number = shared.session.base + i64::try_from(written.len()).unwrap_or(i64::MAX - shared.session.base) + 1;
    let sent = shared.clock.now();
    let outcome = patiently(connection.commit(number), &shared.stop).await;
    let acknowledged = outcome.is_ok().then(|| shared.clock.now());
    written.push(Written { intended, sent, acknowledged });
    match outcome.map_err(|silence| silence.into_error(writer, "lost the writer")) {
        Err(Some(error)) => {
            shared.stop.cancel();
            Err(error)
        }
        _ => Ok(()),
    }
}

async fn after_silence(
    writer: &Endpoint,
    connection: &Prepared,
    silences: &[Duration],
    shared: &Shared,
) -> Result<Wrote> {
    let timer = Timer::new()?;
    let began = shared.clock.now();
    let mut wrote = Wrote { began, ..Wrote::default() };
    let mut written = Vec::new();
    for silence in silences {
        until(shared.clock.now() + nanos(*silence), &timer, shared).await?;
        if shared.stop.is_cancelled() {
            break;
        }
        let intended = shared.clock.now();
        if let Err(error) = commit(writer, connection, intended, &mut written, shared).await {
            wrote.error = Some(error);
            break;
        }
        // The next one would wake a reader that sleeps over this one.
        let deadline = shared.clock.now() + nanos(PATIENCE);
        let number = written.len() as u64;
        while !shared.all_have_seen(number) && shared.clock.now() < deadline && !shared.stop.is_cancelled() {
            timer.sleep(Duration::from_millis(1)).await?;
        }
    }
    wrote.slots = vec![written];
    wrote.ended = shared.clock.now();
    Ok(wrote)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_are_as_many_as_asked_for_and_spread_like_a_poisson_process() {
        let stretches = [Duration::from_secs(1), Duration::from_secs(9)];
        let due = arrivals(1000.0, &stretches, 7);
        let early = due.iter().filter(|due| **due < nanos(stretches[0])).count();
        assert_eq!((due.len(), early), (10_000, 1000));
        assert!(due.is_sorted() && due.last().is_some_and(|last| *last < nanos(Duration::from_secs(10))));
        // Exponential gaps have a standard deviation that equals their mean; those of a clock have none.
        let gaps: Vec<f64> = due.windows(2).map(|pair| (pair[1] - pair[0]) as f64).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((0.95..1.05).contains(&(variance.sqrt() / mean)), "{}", variance.sqrt() / mean);
        assert_eq!(due, arrivals(1000.0, &stretches, 7));
        assert_ne!(due, arrivals(1000.0, &stretches, 8));
        assert_eq!(arrivals(1000.0, &[Duration::ZERO], 7), [0; 0]);
    }

    #[test]
    fn readers_wait_for_the_last_acknowledged_number() {
        let acknowledged = Written { intended: 0, sent: 1, acknowledged: Some(2) };
        let lost = Written { acknowledged: None, ..acknowledged };
        let wrote = Wrote { slots: vec![vec![acknowledged, lost], vec![lost], Vec::new()], ..Wrote::default() };
        assert_eq!(wrote.acknowledged(4), [1, 0, 0, 0]);
    }
}
