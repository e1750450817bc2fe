//! Volatile cache: what is written lives in memory until it is flushed, and is lost without power.
//!
//! Writes stand in a log, in the order in which they came, beside an index of what is newest where. Only one thread writes
//! them to the image, so that nothing old overtakes anything new: on a flush, what is newest everywhere, all flushes that wait
//! at once; for a write with forced unit access that write alone, though older ones around it stay where they are; and when the
//! cache is full the oldest writes, in their order, so that the image is always what it would be had the power failed
//! somewhere in between.

mod log;
mod write_back;

use std::collections::VecDeque;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::emulate::disk::Shared;
use crate::emulate::mailbox::{Letter, lock};
use crate::emulate::request::Outcome;
use crate::engine::{Choice, Config, Engine, Target};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::units::{ByteRange, ByteSize};
use log::{EMPTY, Log};
use write_back::WriteBack;

pub(in crate::emulate) use log::{Content, Patch};

/// How many writes to the image are in flight.
const DEPTH: u32 = 64;

/// What becomes of the writes that were not flushed when the power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// All are lost.
    #[default]
    None,
    /// Each is kept, lost, or torn: of a torn one, any of its sectors may have reached the disk.
    Random,
    /// Those up to some moment are kept, the one of that moment is torn after some sector, and those after it are lost.
    Prefix,
}

/// What a power cut did to the writes that were not flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Loss {
    /// How many there were.
    pub unflushed: u64,
    /// How many of them are on the disk all the same.
    pub kept: u64,
    /// How many are on it in part.
    pub torn: u64,
    /// How many are not.
    pub lost: u64,
}

/// What is to be made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::emulate) enum Durable {
    /// Everything that is in the cache now.
    All,
    /// This entry.
    Entry(u64),
}

#[derive(Debug)]
struct Wish {
    what: Durable,
    who: Who,
}

/// Who wants to know.
#[derive(Debug)]
enum Who {
    Job(Arc<Shared>, u32),
    Caller(Sender<Outcome>),
}

impl Who {
    fn told(self, outcome: Outcome) {
        match self {
            Self::Job(port, job) => port.mailbox.send(Letter::Done { job, outcome }),
            // Somebody who does not wait any more need not know.
            Self::Caller(caller) => drop(caller.send(outcome)),
        }
    }
}

/// A power cut on its way to the thread that writes.
#[derive(Debug)]
struct Cut {
    keep: Keep,
    seed: u64,
    tell: Sender<std::result::Result<Loss, Errno>>,
}

#[derive(Debug, Default)]
struct State {
    log: Log,
    wishes: Vec<Wish>,
    /// Jobs that wait for room.
    waiting: VecDeque<(Arc<Shared>, u32)>,
    cut: Option<Cut>,
    ending: bool,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
    capacity: u64,
}

/// The cache; its thread ends with it, and what is in it then is lost, unless it was [drained](Self::drain).
#[derive(Debug)]
pub(in crate::emulate) struct Cache {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
}

impl Cache {
    /// A cache of `capacity` before `image`, in sectors of `sector`.
    pub(in crate::emulate) fn new(capacity: ByteSize, sector: ByteSize, engine: Choice, image: Target) -> Result<Self> {
        let inner = Arc::new(Inner { state: Mutex::default(), changed: Condvar::new(), capacity: capacity.bytes() });
        let theirs = Arc::clone(&inner);
        let (tell, opened) = mpsc::channel();
        let work = move || {
            let device = image.is_block_device();
            let engine = match Engine::open(engine, &Config::new(DEPTH, 1, 4096), vec![image]) {
                Ok(engine) => engine,
                Err(error) => return drop(tell.send(Err(error))),
            };
            if tell.send(Ok(())).is_ok() {
                WriteBack { engine, device, sector: sector.bytes(), done: Vec::new() }.run(&theirs);
            }
        };
        let thread = thread::Builder::new()
            .name("write-back".to_owned())
            .spawn(work)
            .context(|| "cannot start the thread of the volatile cache")?;
        opened.recv().map_err(|_| Error::new(ErrorKind::Io, "the thread of the volatile cache panicked"))??;
        Ok(Self { inner, thread: Some(thread) })
    }

    /// How many bytes would be lost without power.
    pub(in crate::emulate) fn dirty(&self) -> u64 {
        lock(&self.inner.state).log.dirty
    }

    /// Takes a write; returns its number. Nothing where there is no room: then job `job` of `port` is told when there is.
    pub(in crate::emulate) fn write(
        &self,
        range: ByteRange,
        content: Content,
        port: &Arc<Shared>,
        job: u32,
    ) -> Option<u64> {
        let mut state = lock(&self.inner.state);
        let weight = if matches!(content, Content::Data(_)) { range.len.bytes() } else { EMPTY };
        // One that is larger than the cache goes through it alone.
        if state.log.dirty > 0 && state.log.dirty + weight > self.inner.capacity {
            state.waiting.push_back((Arc::clone(port), job));
            self.inner.changed.notify_one();
            return None;
        }
        Some(state.log.insert(range.start.bytes(), range.len.bytes(), content))
    }

    /// What is newer than the image in `range`, and whether that is all of it.
    pub(in crate::emulate) fn patches(&self, range: ByteRange) -> (Vec<Patch>, bool) {
        let patches = lock(&self.inner.state).log.patches(range);
        let covered: u64 = patches.iter().map(|patch| patch.len).sum();
        (patches, covered == range.len.bytes())
    }

    /// Tells job `job` of `port` when it is durable.
    pub(in crate::emulate) fn make_durable(&self, what: Durable, port: &Arc<Shared>, job: u32) {
        lock(&self.inner.state).wishes.push(Wish { what, who: Who::Job(Arc::clone(port), job) });
        self.inner.changed.notify_one();
    }

    /// Makes everything durable.
    pub(in crate::emulate) fn drain(&self) -> Outcome {
        let (tell, told) = mpsc::channel();
        lock(&self.inner.state).wishes.push(Wish { what: Durable::All, who: Who::Caller(tell) });
        self.inner.changed.notify_one();
        told.recv().unwrap_or(Err(Errno::EIO))
    }

    /// Who waits for a flush that has not begun waits in vain: the power is going.
    pub(in crate::emulate) fn refuse_wishes(&self) {
        let wishes = std::mem::take(&mut lock(&self.inner.state).wishes);
        wishes.into_iter().for_each(|wish| wish.who.told(Err(Errno::EIO)));
    }

    /// Loses what is in the cache, as `keep` and `seed` say. Nobody may be writing.
    pub(in crate::emulate) fn lose(&self, keep: Keep, seed: u64) -> std::result::Result<Loss, Errno> {
        let (tell, told) = mpsc::channel();
        lock(&self.inner.state).cut = Some(Cut { keep, seed, tell });
        self.inner.changed.notify_one();
        told.recv().unwrap_or(Err(Errno::EIO))
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        lock(&self.inner.state).ending = true;
        self.inner.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}
