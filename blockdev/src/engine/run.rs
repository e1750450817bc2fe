//! Many operations one after the other, with the queue kept full.

use super::{Engine, Op};
use crate::cancel::Cancel;
use crate::error::Result;
use crate::ui::Progress;

impl Engine {
    /// Carries out all of `ops`, each given with how many bytes of progress it is, and keeps the queue full of them. `what`
    /// is being done, for the error of being interrupted.
    ///
    /// Nothing may be in flight before; nothing is afterwards.
    ///
    /// # Errors
    /// The first error of an operation, after which no further one is begun; or that `cancel` was set.
    pub fn run(
        &mut self,
        what: &str,
        mut ops: impl Iterator<Item = (Op, u64)>,
        progress: &mut dyn Progress,
        cancel: &Cancel,
    ) -> Result<()> {
        let mut done = Vec::new();
        let (mut outcome, mut more) = (Ok(()), true);
        while more || self.in_flight() > 0 {
            outcome = outcome.and_then(|()| cancel.check(what));
            more &= outcome.is_ok();
            while more && self.room() > 0 {
                match ops.next() {
                    Some((op, bytes)) => self.submit(bytes, op)?,
                    None => more = false,
                }
            }
            self.complete(1, None, &mut done)?;
            for completion in done.drain(..) {
                match completion.result {
                    Ok(()) => progress.advance(completion.tag),
                    Err(error) => outcome = outcome.and(Err(error)),
                }
            }
        }
        outcome
    }
}
