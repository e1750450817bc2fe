//! Growing under a writer.

use std::sync::PoisonError;

use blockdev::Result;

use super::super::load;
use super::Writer;

impl Writer {
    /// Takes into use the chunks by which the volume was [grown](crate::growfs) meanwhile. Returns whether it was.
    ///
    /// The journal does not say that, so somebody has to; what is done meanwhile goes on.
    ///
    /// # Errors
    /// When the new chunks cannot be read, or are not as growing leaves them; what was known before stays as it was.
    pub fn regrow(&self) -> Result<bool> {
        self.log.check()?;
        // One at a time; the volume's own lock is not held while the new chunks are read.
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.with_metadata(|metadata| metadata.headers().len());
        let chunks = load::read_growth(&mut file.try_clone()?.device()?, known)?;
        if chunks.is_empty() {
            return Ok(false);
        }
        let mut shared = self.lock();
        shared.state.extend(chunks.clone())?;
        // Under the same lock: no transaction with something of the new chunks is handed in before them.
        self.log.extend(chunks);
        Ok(true)
    }
}
