//! How far something long has come.

use std::time::Duration;

use indicatif::{ProgressBar as Bar, ProgressDrawTarget, ProgressStyle};

/// Is told how far something has come. Libraries report to this and never print.
pub trait Progress {
    /// A phase begins: its name and how many bytes it will take.
    fn begin(&mut self, phase: &str, total_bytes: u64);
    /// So many more bytes of it are done.
    fn advance(&mut self, bytes: u64);
    /// The phase is over.
    fn end(&mut self);
}

/// Tells nobody.
#[derive(Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&mut self, _phase: &str, _total_bytes: u64) {}
    fn advance(&mut self, _bytes: u64) {}
    fn end(&mut self) {}
}

/// A bar on standard error with rate and time left; nothing where that is no terminal.
#[derive(Debug, Default)]
pub struct ProgressBar {
    bar: Option<Bar>,
}

impl ProgressBar {
    /// A bar that shows nothing until a phase begins.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Progress for ProgressBar {
    fn begin(&mut self, phase: &str, total_bytes: u64) {
        let bar = Bar::with_draw_target(Some(total_bytes), ProgressDrawTarget::stderr_with_hz(8));
        if let Ok(style) = ProgressStyle::with_template(
            "{prefix:>10} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}, {eta} left",
        ) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(phase.to_owned());
        bar.enable_steady_tick(Duration::from_millis(500));
        self.bar = Some(bar);
    }

    fn advance(&mut self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for ProgressBar {
    fn drop(&mut self) {
        self.end();
    }
}
