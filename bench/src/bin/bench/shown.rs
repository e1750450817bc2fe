//! Progress of an experiment, for a person.

use std::time::Duration;

use bench::disk::Progress;
use blockdev::ui;

/// Shows on a terminal how far it is.
#[derive(Debug, Default)]
pub(crate) struct Shown(Option<ui::Countdown>);

impl Progress for Shown {
    fn cell(&mut self, number: usize, of: usize, name: &str, left: Duration) {
        self.0.get_or_insert_with(|| ui::Countdown::new(left)).step(number, of, name, left);
    }

    fn elapsed(&mut self, elapsed: Duration) {
        if let Some(countdown) = &mut self.0 {
            countdown.elapsed(elapsed);
        }
    }
}
