//! A volume that is written.
//!
//! Every change is made in memory first, as a transaction of the same objects in the same order as the
//! original's; it counts once the journal has it, for which every operation waits. Many threads may call a
//! [`Writer`] at once: those whose transactions wait for the journal at the same time share one write of it.
//!
//! Nothing that the journal does not have yet is ever relied on by what is written elsewhere: a block is written for its new
//! file only after the journal has that it is that file's, and a file grows only after its data are written.

mod allocator;
mod blocks;
mod content;
mod discard;
mod flushes;
mod log;
mod names;
mod operations;
mod pending;
mod pieces;
mod plan;
mod ready;
mod regrow;
mod sectors;
mod state;
mod transaction;

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use blockdev::engine::Choice;
use blockdev::{Error, ErrorKind, Result};
use nix::errno::Errno;

use crate::format::{Inode, InodeNo, Object, Stamp, Version};

use super::data::FileMap;
use super::device::{Device, OpenFile};
use super::load::{self, Load};

pub use content::{Content, Finished, Fresh};
pub use log::Statistics;
pub use pending::Pending;
pub use transaction::TOO_MANY_FILES;

use log::{Log, Ticket};
use sectors::Sectors;
pub(super) use state::State;
use transaction::Transaction;

/// How to write a volume.
#[derive(Debug, Default)]
pub struct Options {
    /// Acknowledge a change only once it survives a loss of power: data, journal and leader record are flushed in this order.
    /// The original never flushes, and relies on devices without a volatile cache.
    pub durable: bool,
    /// Leave what was removed, but is not freed for a crash, as it is. The original's commands do, its daemon does not.
    pub keep_orphans: bool,
    /// How I/O is done.
    pub engine: Choice,
    /// What must hold besides for as long as the volume is written.
    pub fence: Option<Box<dyn Fence>>,
}

/// Something that keeps others from writing a volume, or finds out that they do.
///
/// It is asked before every write of the leader record, and every second when nothing is written, on the thread that writes
/// the journal.
pub trait Fence: Send + fmt::Debug {
    /// Sees that this writer may go on.
    ///
    /// # Errors
    /// When it may not; nothing more is written then.
    fn check(&mut self, device: &mut Device) -> Result<()>;

    /// Lets others write the volume. Called once nothing more will be written.
    ///
    /// # Errors
    /// When that cannot be said.
    fn release(&mut self, device: &mut Device) -> Result<()>;
}

/// A file or directory, whatever it is called, for as long as it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Handle {
    /// Its inode.
    pub inode: InodeNo,
    /// When it was made, which tells it from what has the inode later.
    pub btime: Stamp,
}

impl Handle {
    /// What stands for an inode.
    #[must_use]
    pub fn of(inode: &Inode) -> Self {
        Self { inode: inode.number, btime: inode.btime }
    }
}

/// Where in a file to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// So many bytes from its start.
    At(u64),
    /// At its end, wherever that is by then.
    End,
}

/// How to allocate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Allocate {
    /// Leave the file as long as it is.
    pub keep_size: bool,
    /// Show what the device has there instead of zeroes.
    pub show_stale: bool,
}

/// A volume that is open for writing.
#[derive(Debug)]
pub struct Writer {
    shared: Mutex<Shared>,
    /// Something ended that others may wait for.
    ended: Condvar,
    log: Log,
    sectors: Sectors,
    file: Mutex<OpenFile>,
    durable: bool,
}

#[derive(Debug)]
struct Shared {
    state: State,
    /// The files whose content is being used.
    used: HashMap<InodeNo, Use>,
}

/// Who uses a file's content.
#[derive(Debug, Default)]
struct Use {
    /// How many read it or write it.
    shared: usize,
    /// Where what was never written is being written, in whole blocks: that changes how far the blocks are written.
    extending: Vec<Range<u64>>,
    /// Whether it is being truncated or removed.
    alone: bool,
}

impl Writer {
    /// Opens the volume on a file or device for writing.
    ///
    /// What was removed, but is not freed for a crash, is freed.
    ///
    /// # Errors
    /// When it cannot be opened, holds no volume, one of another version or a damaged one.
    pub fn open(path: &Path, options: Options) -> Result<Self> {
        Self::on(Device::open_writable(path, options.engine)?, options)
    }

    /// Opens the volume on `device`, which must be open for writing.
    ///
    /// # Errors
    /// As [`Writer::open`].
    pub fn on(mut device: Device, options: Options) -> Result<Self> {
        let loaded = load::load(&mut device, Load::default())?;
        let version = loaded.metadata.version();
        if version < Version::NEWEST {
            let (path, newest) = (device.path().display(), Version::NEWEST);
            let message = format!("{path} holds a volume of version {version}; only {newest} is written here");
            return Err(Error::new(ErrorKind::Unsupported, message)
                .with_hint("a mount of the original for writing upgrades it"));
        }
        let state = State::new(loaded.metadata.clone())?;
        let log =
            Log::start(device.file()?, loaded.metadata, loaded.journal, loaded.leader, options.durable, options.fence)?;
        let shared = Mutex::new(Shared { state, used: HashMap::new() });
        let file = Mutex::new(device.file()?);
        let writer =
            Self { shared, ended: Condvar::new(), log, sectors: Sectors::default(), file, durable: options.durable };
        if !options.keep_orphans {
            writer.reclaim_orphans()?;
        }
        Ok(writer)
    }

    /// No code panics while holding this lock but that which finds a broken promise of its own.
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes one transaction of what `change` does, if anything, and hands it to the journal.
    fn transact<T>(
        &self,
        state: &mut State,
        change: impl FnOnce(&mut Transaction<'_>) -> Result<T>,
    ) -> Result<(T, Ticket)> {
        self.log.check()?;
        let mut transaction = state.begin();
        let outcome = change(&mut transaction)?;
        let objects = self.finish(transaction)?;
        Ok((outcome, self.hand_in(state, objects)))
    }

    /// As [`transact`](Self::transact), on a file.
    fn transact_on<T>(
        &self,
        state: &mut State,
        file: Handle,
        change: impl FnOnce(&mut Transaction<'_>, &FileMap) -> Result<T>,
    ) -> Result<(T, Ticket)> {
        self.log.check()?;
        let (mut transaction, map) = state.begin_on(file)?;
        let outcome = change(&mut transaction, map)?;
        let objects = self.finish(transaction)?;
        Ok((outcome, self.hand_in(state, objects)))
    }

    fn finish(&self, transaction: Transaction<'_>) -> Result<Vec<Object>> {
        if self.log.fits(transaction.len()) {
            return Ok(transaction.finish());
        }
        let message = format!("{} objects would change at once, too many for the journal", transaction.len());
        Err(Error::io(message, Errno::EFBIG).with_hint("do it in several steps"))
    }

    fn hand_in(&self, state: &mut State, objects: Vec<Object>) -> Ticket {
        if objects.is_empty() {
            return Ticket::default();
        }
        state.apply(&objects);
        // Under the same lock: the journal has transactions in the order in which they build on one another.
        self.log.append(objects)
    }

    /// Says that a file's content is used otherwise from now on.
    fn use_ends(&self, file: InodeNo, change: impl FnOnce(&mut Use)) {
        let mut shared = self.lock();
        if let Some(used) = shared.used.get_mut(&file) {
            change(used);
            if used.shared == 0 && !used.alone {
                shared.used.remove(&file);
            }
        }
        self.ended.notify_all();
    }
}

impl Shared {
    /// Keeps a file's content from all others, if nobody uses it. Returns whether.
    fn try_alone(&mut self, file: InodeNo) -> bool {
        let used = self.used.entry(file).or_default();
        let free = used.shared == 0 && !used.alone;
        used.alone |= free;
        free
    }
}

/// Nobody else uses a file's content until this is dropped.
#[derive(Debug)]
struct Alone<'a> {
    writer: &'a Writer,
    file: InodeNo,
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.writer.use_ends(self.file, |used| used.alone = false);
    }
}
