//! A change that was begun, and that waits for others: for whoever uses a file's content, and for the journal.
//!
//! What it does to the metadata in memory is done when it is begun, as far as that is possible at once; so a thread can begin
//! many, and all of them share a write of the journal.

use std::sync::PoisonError;

use blockdev::Result;

use crate::format::InodeNo;

use super::log::Ticket;
use super::{Alone, Handle, Writer};

/// A change on its way. It must be brought to its end, by [`poll`](Self::poll) or [`wait`](Self::wait): until then a file that
/// was removed keeps its blocks.
#[derive(Debug)]
#[must_use = "what was begun must be brought to its end"]
pub struct Pending<'a, T> {
    writer: &'a Writer,
    outcome: T,
    stage: Stage<'a>,
}

#[derive(Debug)]
enum Stage<'a> {
    /// Others may be using the file's content.
    Shared(Then, Ticket),
    /// The journal must have it. Nobody else uses the file meanwhile, where that matters.
    Counting { ticket: Ticket, _alone: Option<Alone<'a>> },
}

/// What is to be done to a file once nobody else uses it.
#[derive(Debug, Clone, Copy)]
enum Then {
    /// Nothing names it any more.
    Free(InodeNo),
    /// Make it so long.
    Truncate(Handle, u64),
}

impl Then {
    fn file(self) -> InodeNo {
        match self {
            Self::Free(inode) => inode,
            Self::Truncate(file, _) => file.inode,
        }
    }
}

impl<'a, T: Copy> Pending<'a, T> {
    /// A change that is made once the journal has it.
    pub(super) fn counting(writer: &'a Writer, outcome: T, ticket: Ticket) -> Self {
        Self { writer, outcome, stage: Stage::Counting { ticket, _alone: None } }
    }

    /// A change by which a file lost its name.
    pub(super) fn freeing(writer: &'a Writer, outcome: T, inode: InodeNo, ticket: Ticket) -> Self {
        Self { writer, outcome, stage: Stage::Shared(Then::Free(inode), ticket) }
    }

    /// A change of how long a file is, which is not begun.
    pub(super) fn truncating(writer: &'a Writer, outcome: T, file: Handle, size: u64) -> Self {
        Self { writer, outcome, stage: Stage::Shared(Then::Truncate(file, size), Ticket::default()) }
    }

    /// Goes on as far as possible without waiting. Returns what came of it, once it is done.
    ///
    /// # Errors
    /// What it failed of; it is over then.
    pub fn poll(&mut self) -> Result<Option<T>> {
        if let Stage::Shared(then, _) = self.stage {
            let alone = self.writer.lock().try_alone(then.file());
            if !alone {
                return Ok(None);
            }
            self.alone(Alone { writer: self.writer, file: then.file() })?;
        }
        let Stage::Counting { ticket, .. } = &self.stage else { return Ok(None) };
        Ok(self.writer.log.has(*ticket)?.then_some(self.outcome))
    }

    /// Brings it to its end.
    ///
    /// # Errors
    /// What it failed of.
    pub fn wait(mut self) -> Result<T> {
        if let Stage::Shared(then, _) = self.stage {
            let mut shared = self.writer.lock();
            while !shared.try_alone(then.file()) {
                shared = self.writer.ended.wait(shared).unwrap_or_else(PoisonError::into_inner);
            }
            drop(shared);
            self.alone(Alone { writer: self.writer, file: then.file() })?;
        }
        if let Stage::Counting { ticket, .. } = &self.stage {
            self.writer.log.wait(*ticket)?;
        }
        Ok(self.outcome)
    }

    /// Goes on, now that nobody else uses the file.
    fn alone(&mut self, alone: Alone<'a>) -> Result<()> {
        let Stage::Shared(then, since) = self.stage else { return Ok(()) };
        let ticket = match then {
            Then::Free(inode) => self.writer.free_alone(inode)?,
            Then::Truncate(file, size) => self.writer.truncate_alone(file, size)?,
        };
        self.stage = Stage::Counting { ticket: ticket.max(since), _alone: Some(alone) };
        Ok(())
    }
}
