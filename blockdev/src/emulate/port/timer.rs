//! Moments that jobs wait for, met as exactly as the machine can.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

/// By how much at most to be early and look at the clock again and again.
const LATENESS_MAX: Duration = Duration::from_micros(200);

/// Moments, and the jobs that wait for them.
#[derive(Debug)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, u32)>>,
    /// When the thread wants to be woken, if for a moment of ours.
    alarm: Option<Instant>,
    /// By how much it is woken too late, of late.
    lateness: Duration,
}

impl Timers {
    pub(super) fn new() -> Self {
        // The kernel lets timers be 50 µs late to save power, unless it is told not to (PR_SET_TIMERSLACK).
        // SAFETY: takes no pointer; an error leaves it as it is.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1usize) };
        Self { heap: BinaryHeap::new(), alarm: None, lateness: Duration::ZERO }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    pub(super) fn add(&mut self, at: Instant, job: u32) {
        self.heap.push(Reverse((at, job)));
    }

    /// A job whose moment has come.
    pub(super) fn due(&mut self, now: Instant) -> Option<u32> {
        let Reverse((at, _)) = *self.heap.peek()?;
        if at > now {
            return None;
        }
        self.heap.pop().map(|Reverse((_, job))| job)
    }

    /// How long to wait at the most: until `timeout`, or until it is nearly time. Woken too late as the thread is, it is woken
    /// early, and waits the rest awake.
    pub(super) fn timeout(&mut self, timeout: Option<Duration>) -> Option<Duration> {
        self.alarm = None;
        let Some(Reverse((at, _))) = self.heap.peek() else { return timeout };
        let now = Instant::now();
        let left = at.saturating_duration_since(now).saturating_sub(self.lateness);
        if timeout.is_some_and(|timeout| timeout < left) {
            return timeout;
        }
        if !left.is_zero() {
            self.alarm = Some(now + left);
        }
        Some(left)
    }

    /// The thread is awake again, for whatever reason.
    pub(super) fn woke(&mut self) {
        let Some(alarm) = self.alarm.take() else { return };
        let now = Instant::now();
        if let Some(late) = now.checked_duration_since(alarm) {
            // What was late once may be again; what was not for long, is not.
            self.lateness = late.min(LATENESS_MAX).max(self.lateness.mul_f32(0.98));
        }
    }
}
