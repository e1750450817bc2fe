//! Telling the device which blocks are free.

use std::sync::PoisonError;

use blockdev::{Cancel, Result};

use crate::format::{BLOCK_SIZE, Blktag, BlktagNo, BlktagState, DiscardState};

use super::Writer;

/// How many blocks one transaction marks, as in the original.
const AT_ONCE: usize = 500;

impl Writer {
    /// Tells the device which blocks are free and that it does not know of yet; or which are free at `all`. Returns how many.
    ///
    /// Two transactions each, as the original's: while the device is being told, a block is not to be used.
    ///
    /// # Errors
    /// When the device cannot discard or cannot be written, or `cancel` says so; what was said before is said.
    pub fn discard(&self, all: bool, cancel: &Cancel) -> Result<u64> {
        let mut device = self.file.lock().unwrap_or_else(PoisonError::into_inner).try_clone()?.device()?;
        let mut left = self.with_metadata(|metadata| {
            let free = metadata.numbers::<BlktagNo>().filter(|number| {
                metadata.blktag(*number).is_ok_and(|blktag| match blktag.state {
                    BlktagState::Free { discard, .. } => all || discard != DiscardState::Done,
                    BlktagState::Used { .. } => false,
                })
            });
            free.collect::<Vec<_>>().into_iter()
        });
        let mut count = 0;
        loop {
            cancel.check("telling the device what is free")?;
            let blocks: Vec<BlktagNo> = left.by_ref().take(AT_ONCE).collect();
            if blocks.is_empty() {
                return Ok(count);
            }
            let blocks = self.mark(&blocks, DiscardState::InProgress)?;
            let ranges = blocks.iter().map(|block| (block.block().start(), BLOCK_SIZE.bytes()));
            let outcome = device.discard(ranges);
            // Whatever the device makes of it, the blocks can be used again.
            self.mark(&blocks, DiscardState::Done)?;
            outcome?;
            count += blocks.len() as u64;
        }
    }

    /// Marks those of some blocks that are free, and returns them.
    fn mark(&self, blocks: &[BlktagNo], state: DiscardState) -> Result<Vec<BlktagNo>> {
        let mut shared = self.lock();
        let (marked, ticket) = self.transact(&mut shared.state, |transaction| {
            let mut marked = Vec::new();
            for block in blocks {
                let mut blktag: Blktag = transaction.get(*block)?;
                if let BlktagState::Free { discard, discards, .. } = &mut blktag.state {
                    *discard = state;
                    *discards += u32::from(state == DiscardState::InProgress);
                    transaction.put(blktag);
                    marked.push(*block);
                }
            }
            Ok(marked)
        })?;
        for block in &marked {
            shared.state.withhold(*block, state == DiscardState::InProgress);
        }
        drop(shared);
        self.log.wait(ticket)?;
        Ok(marked)
    }
}
