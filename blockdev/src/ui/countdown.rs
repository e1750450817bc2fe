//! How far something has come whose time is known beforehand.

use std::time::Duration;

use indicatif::{ProgressBar as Bar, ProgressDrawTarget, ProgressStyle};

/// The steps of something that takes a known time, on standard error: which one it is, and how long all that are left
/// will take. Nothing where that is no terminal.
#[derive(Debug)]
pub struct Countdown {
    bar: Bar,
    /// How long everything takes.
    total: Duration,
    /// What was left when this step began.
    left: Duration,
    step: String,
}

impl Countdown {
    /// A countdown over `total`.
    #[must_use]
    pub fn new(total: Duration) -> Self {
        let length = u64::try_from(total.as_millis()).unwrap_or(u64::MAX);
        let bar = Bar::with_draw_target(Some(length), ProgressDrawTarget::stderr_with_hz(8));
        if let Ok(style) = ProgressStyle::with_template("{prefix:>8} [{bar:24}] {wide_msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        Self { bar, total, left: total, step: String::new() }
    }

    /// Step `number` (from 1) of `of` begins, called `name`; it and those that follow take `left`.
    pub fn step(&mut self, number: usize, of: usize, name: &str, left: Duration) {
        self.bar.set_prefix(format!("{number}/{of}"));
        name.clone_into(&mut self.step);
        self.left = left;
        self.elapsed(Duration::ZERO);
    }

    /// The step has been going for `elapsed`.
    pub fn elapsed(&mut self, elapsed: Duration) {
        let left = self.left.saturating_sub(elapsed);
        let done = self.total.saturating_sub(left);
        self.bar.set_position(u64::try_from(done.as_millis()).unwrap_or(u64::MAX));
        self.bar.set_message(format!("{} · {} s left", self.step, left.as_secs()));
    }
}

impl Drop for Countdown {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
