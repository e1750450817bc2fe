//! The journal, written: operations hand in their transactions, one thread writes them.
//!
//! Whatever has gathered while the thread was writing is written next, all of it at once: the entries of all those
//! transactions, then one leader record, which makes them all count. Metadata sectors are written much later, when the
//! journal is trimmed, and only as the journal has them: an operation that is not in the journal yet is in no sector.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use blockdev::usage::{self, Use};
use blockdev::{Context, Error, ErrorKind, FileId, Result};

use crate::format::{
    Bda, Checksum, ENTRY_SIZE, JournalEntry, LEADER_AT, LEADER_SIZE, LeaderRecord, LogOffset, LogPosition, Object,
    SECTOR_SIZE, Txid,
};

use super::super::device::{Device, OpenFile, Source};
use super::super::journal::Journal;
use super::super::load;
use super::super::metadata::{Chunk, Metadata};
use super::Fence;

/// How many transactions stay in the journal at least. A reader of the original's that fell further behind dies; it looks
/// once a second.
const KEPT: u64 = 20_000;

/// How many transactions are in the journal at most, before it is trimmed.
const TRIMMED_AT: u64 = 2 * KEPT;

/// How often the leader record is looked at while nothing is written: somebody else may be writing.
const LOOK: Duration = Duration::from_secs(1);

/// What was written so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// How many transactions.
    pub transactions: u64,
    /// How often the leader record was written to make transactions count.
    pub commits: u64,
    /// How often it was written to trim the journal.
    pub trims: u64,
    /// Bytes of the journal that hold what counts and is in no metadata sector yet.
    pub journal_used: u64,
    /// Bytes in the journal.
    pub journal_size: u64,
}

/// The journal of a volume that is being written.
#[derive(Debug)]
pub(super) struct Log {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// How many bytes of entries can be in it.
    capacity: u64,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// As the queue has it, for those who ask often.
    committed: AtomicU64,
    came: Condvar,
    done: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<Vec<Object>>,
    /// Chunks by which the volume was grown; what is handed in after them may have objects of theirs.
    grown: Vec<Chunk>,
    /// How many transactions were ever handed in, and how many of them count.
    appended: u64,
    committed: u64,
    /// Whether somebody waits for an empty journal.
    empty: bool,
    close: bool,
    statistics: Statistics,
    stopped: Option<Stopped>,
}

/// Why nothing more is written.
#[derive(Debug, Clone)]
struct Stopped {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
}

impl Stopped {
    fn by(error: &Error) -> Self {
        let because = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
        Self { kind: error.kind(), message: format!("{error}{because}"), hint: error.hint().map(str::to_owned) }
    }

    fn error(&self) -> Error {
        let error = Error::new(self.kind, format!("the volume is not written any more: {}", self.message));
        match &self.hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }
}

/// A transaction that was handed in: which one it is, of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Ticket(u64);

/// No code panics while holding this lock but that which finds a broken promise of its own; the data is whole then.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Log {
    /// Starts the thread that writes the journal of a volume, which is in the state of `metadata` and `leader`.
    pub(super) fn start(
        device: OpenFile,
        metadata: Metadata,
        journal: Journal,
        leader: LeaderRecord,
        durable: bool,
        fence: Option<Box<dyn Fence>>,
    ) -> Result<Self> {
        let shared = Arc::<Shared>::default();
        let capacity = journal.size().saturating_sub(MARGIN);
        let (opened, is_open) = mpsc::channel();
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("pfs-log".to_owned())
            .spawn(move || {
                let _dies = Dies(&own);
                match LogWriter::open(device, metadata, journal, leader, durable, fence) {
                    Ok(mut writer) => {
                        lock(&own.queue).statistics = writer.statistics();
                        // Whoever started this thread waits for the word.
                        let _ = opened.send(Ok(()));
                        own.serve(&mut writer);
                    }
                    Err(error) => {
                        let _ = opened.send(Err(error));
                    }
                }
            })
            .context(|| "cannot start the thread that writes the journal")?;
        let log = Self { shared, thread: Some(thread), capacity };
        match is_open.recv() {
            Ok(outcome) => outcome.map(|()| log),
            Err(_) => Err(Error::new(ErrorKind::Io, "the thread that writes the journal ended")),
        }
    }

    /// Whether a transaction of so many objects can be in the journal at all.
    pub(super) fn fits(&self, objects: usize) -> bool {
        ((objects * ENTRY_SIZE) as u64) < self.capacity
    }

    /// An error if nothing more is written.
    pub(super) fn check(&self) -> Result<()> {
        match &lock(&self.shared.queue).stopped {
            Some(stopped) => Err(stopped.error()),
            None => Ok(()),
        }
    }

    /// Hands a transaction in. They count in the order in which they came.
    pub(super) fn append(&self, objects: Vec<Object>) -> Ticket {
        let mut queue = lock(&self.shared.queue);
        queue.waiting.push(objects);
        queue.appended += 1;
        self.shared.came.notify_one();
        Ticket(queue.appended)
    }

    /// Takes in chunks by which the volume was grown.
    pub(super) fn extend(&self, chunks: Vec<Chunk>) {
        lock(&self.shared.queue).grown.extend(chunks);
    }

    /// Whether a transaction, and all before it, count.
    ///
    /// # Errors
    /// When they could not be written.
    pub(super) fn has(&self, ticket: Ticket) -> Result<bool> {
        if self.shared.committed.load(Ordering::Acquire) >= ticket.0 {
            return Ok(true);
        }
        let queue = lock(&self.shared.queue);
        match &queue.stopped {
            _ if queue.committed >= ticket.0 => Ok(true),
            Some(stopped) => Err(stopped.error()),
            None => Ok(false),
        }
    }

    /// Waits until a transaction, and all before it, count.
    ///
    /// # Errors
    /// When they could not be written.
    pub(super) fn wait(&self, ticket: Ticket) -> Result<()> {
        let mut queue = lock(&self.shared.queue);
        loop {
            if queue.committed >= ticket.0 {
                return Ok(());
            }
            if let Some(stopped) = &queue.stopped {
                return Err(stopped.error());
            }
            queue = self.shared.done.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until some transaction came to count, nothing is written any more, or the time is up.
    pub(super) fn wait_for_any(&self, timeout: Duration) {
        let queue = lock(&self.shared.queue);
        if queue.committed < queue.appended && queue.stopped.is_none() {
            // Whoever asked looks again, whatever it was that ended this.
            let _ = self.shared.done.wait_timeout(queue, timeout).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Brings everything from the journal into the metadata sectors, and waits for that.
    ///
    /// # Errors
    /// When it could not be written.
    pub(super) fn empty(&self) -> Result<()> {
        let mut queue = lock(&self.shared.queue);
        queue.empty = true;
        self.shared.came.notify_one();
        loop {
            if let Some(stopped) = &queue.stopped {
                return Err(stopped.error());
            }
            if !queue.empty {
                return Ok(());
            }
            queue = self.shared.done.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn statistics(&self) -> Statistics {
        lock(&self.shared.queue).statistics
    }

    /// Writes what was handed in and ends the thread.
    ///
    /// # Errors
    /// When something could not be written.
    pub(super) fn close(&mut self) -> Result<()> {
        lock(&self.shared.queue).close = true;
        self.shared.came.notify_one();
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| Error::new(ErrorKind::Io, "the thread that writes the journal ended"))?;
        }
        self.check()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // Whoever wants to know calls `close` before.
        let _ = self.close();
    }
}

impl Shared {
    /// What the thread does until it is told to end or cannot go on.
    fn serve(&self, writer: &mut LogWriter) {
        let mut queue = lock(&self.queue);
        loop {
            while queue.waiting.is_empty() && !queue.empty && !queue.close {
                let (woken, timeout) = self.came.wait_timeout(queue, LOOK).unwrap_or_else(PoisonError::into_inner);
                queue = woken;
                if timeout.timed_out() && queue.waiting.is_empty() {
                    drop(queue);
                    let outcome = writer.look();
                    queue = lock(&self.queue);
                    if let Err(error) = outcome {
                        return self.stop(queue, &error);
                    }
                }
            }
            let waiting = std::mem::take(&mut queue.waiting);
            writer.metadata.extend(queue.grown.drain(..));
            let (empty, close) = (queue.empty, queue.close);
            drop(queue);
            let count = waiting.len() as u64;
            let mut outcome = writer.commit(waiting);
            if outcome.is_ok() && empty {
                outcome = writer.trim(0);
            }
            if outcome.is_ok() && close {
                outcome = writer.end();
            }
            queue = lock(&self.queue);
            queue.statistics = writer.statistics();
            if let Err(error) = outcome {
                return self.stop(queue, &error);
            }
            queue.committed += count;
            self.committed.store(queue.committed, Ordering::Release);
            queue.empty &= !empty;
            self.done.notify_all();
            if count > 0 {
                drop(queue);
                // Nobody waits for this.
                let outcome = writer.trim_if_due();
                queue = lock(&self.queue);
                queue.statistics = writer.statistics();
                if let Err(error) = outcome {
                    return self.stop(queue, &error);
                }
            }
            if close && queue.waiting.is_empty() {
                return;
            }
        }
    }

    fn stop(&self, mut queue: MutexGuard<'_, Queue>, error: &Error) {
        queue.stopped = Some(Stopped::by(error));
        self.done.notify_all();
    }
}

/// Tells those who wait, should the thread die of a panic.
struct Dies<'a>(&'a Shared);

impl Drop for Dies<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let error = Error::new(ErrorKind::Io, "the thread that writes the journal died");
            self.0.stop(lock(&self.0.queue), &error);
        }
    }
}

/// How much of the journal stays free: the sector in which the oldest entry lies is never written, as long as it counts.
const MARGIN: u64 = 2 * SECTOR_SIZE as u64;

/// What the thread knows.
#[derive(Debug)]
struct LogWriter {
    device: Device,
    journal: Journal,
    leader: LeaderRecord,
    /// The metadata as the journal has them.
    metadata: Metadata,
    /// The sectors that are older than the journal, and the first transaction that they lack.
    dirty: BTreeMap<Bda, Txid>,
    /// Where transactions in the journal end, the oldest first: where it can be trimmed.
    ends: VecDeque<LogPosition>,
    /// The bytes of the sector in which the journal ends.
    last_sector: Vec<u8>,
    durable: bool,
    fence: Option<Box<dyn Fence>>,
    statistics: Statistics,
}

impl LogWriter {
    fn open(
        device: OpenFile,
        metadata: Metadata,
        journal: Journal,
        leader: LeaderRecord,
        durable: bool,
        fence: Option<Box<dyn Fence>>,
    ) -> Result<Self> {
        let mut device = device.device()?;
        let mut dirty = BTreeMap::new();
        let mut ends = VecDeque::new();
        let mut end = leader.tail;
        journal.scan(&mut device, (leader.tail, leader.tail_lsn()), &leader, |entry, _| {
            dirty.entry(entry.object.slot().sector).or_insert(entry.txid);
            end = LogPosition { txid: entry.txid, offset: after(end.offset, ENTRY_SIZE as u64, leader.log_size) };
            if entry.last {
                ends.push_back(end);
            }
            Ok(())
        })?;
        let mut last_sector = vec![0; SECTOR_SIZE];
        let at = journal.address(leader.head.offset.bytes()).bytes();
        device.read(Bda::new(at - at % SECTOR_SIZE as u64), &mut last_sector)?;
        let statistics = Statistics::default();
        Ok(Self { device, journal, leader, metadata, dirty, ends, last_sector, durable, fence, statistics })
    }

    fn statistics(&self) -> Statistics {
        let journal_used = self.leader.entries() * ENTRY_SIZE as u64;
        Statistics { journal_used, journal_size: self.journal.size(), ..self.statistics }
    }

    /// Writes transactions, so that they count.
    fn commit(&mut self, transactions: Vec<Vec<Object>>) -> Result<()> {
        let mut waiting = transactions.into_iter().peekable();
        while waiting.peek().is_some() {
            let size = |objects: &Vec<Object>| (objects.len() * ENTRY_SIZE) as u64;
            if waiting.peek().is_some_and(|objects| size(objects) > self.room()) {
                self.make_room(waiting.peek().map_or(0, size))?;
            }
            let mut room = self.room();
            let mut group = Vec::new();
            while let Some(objects) = waiting.next_if(|objects| size(objects) <= room) {
                room -= size(&objects);
                group.push(objects);
            }
            self.commit_group(&group)?;
        }
        Ok(())
    }

    /// Writes transactions for which there is room: first the entries, then the leader record.
    fn commit_group(&mut self, group: &[Vec<Object>]) -> Result<()> {
        self.look()?;
        let mut leader = self.leader.clone();
        let mut ends = Vec::with_capacity(group.len());
        let mut bytes = Vec::new();
        for objects in group {
            leader.head.txid = leader.head.txid.next();
            for (index, object) in objects.iter().enumerate() {
                leader.head_lsn = leader.head_lsn.next();
                let entry = JournalEntry {
                    lsn: leader.head_lsn,
                    txid: leader.head.txid,
                    last: index + 1 == objects.len(),
                    object: object.clone(),
                    checksum: Checksum::Present,
                };
                bytes.extend_from_slice(&entry.write());
            }
            leader.head.offset = after(self.leader.head.offset, bytes.len() as u64, leader.log_size);
            ends.push(leader.head);
        }
        self.write_entries(&bytes)?;
        if self.durable {
            self.device.flush()?;
        }
        self.write_leader(leader)?;
        self.statistics.commits += 1;
        self.statistics.transactions += group.len() as u64;
        for (objects, end) in group.iter().zip(ends) {
            for object in objects {
                self.dirty.entry(object.slot().sector).or_insert(end.txid);
                self.metadata.put(object);
            }
            self.ends.push_back(end);
        }
        Ok(())
    }

    /// Writes entries after the last that counts.
    fn write_entries(&mut self, bytes: &[u8]) -> Result<()> {
        let mut rest = bytes;
        let mut runs = Vec::new();
        for (at, len) in self.journal.runs(self.leader.head.offset, bytes.len() as u64) {
            #[allow(clippy::cast_possible_truncation, reason = "no more than there are bytes")]
            let (run, later) = rest.split_at(len as usize);
            rest = later;
            #[allow(clippy::cast_possible_truncation, reason = "a remainder of 4096")]
            let before = (at.bytes() % SECTOR_SIZE as u64) as usize;
            // What follows in the last sector never counted, or not any more.
            let mut sectors = self.last_sector[..before].to_vec();
            sectors.extend_from_slice(run);
            sectors.resize(sectors.len().next_multiple_of(SECTOR_SIZE), 0);
            runs.push((Bda::new(at.bytes() - before as u64), sectors));
        }
        self.device.write_parts(runs.iter().map(|(at, sectors)| Source { at: *at, from: sectors }))?;
        if let Some((_, sectors)) = runs.pop() {
            self.last_sector = sectors[sectors.len() - SECTOR_SIZE..].to_vec();
        }
        Ok(())
    }

    fn write_leader(&mut self, leader: LeaderRecord) -> Result<()> {
        self.device.write_parts([Source { at: LEADER_AT, from: &leader.write() }])?;
        if self.durable {
            self.device.flush()?;
        }
        self.leader = leader;
        Ok(())
    }

    /// Sees that this may still write, and that nobody else did.
    fn look(&mut self) -> Result<()> {
        if let Some(fence) = &mut self.fence {
            fence.check(&mut self.device)?;
        }
        let found = load::read_leader_bytes(&mut self.device)?;
        if found[..] == self.leader.write()[..LEADER_SIZE] {
            return Ok(());
        }
        let path = self.device.path();
        let what = match LeaderRecord::parse(&found) {
            Ok(found) => format!(
                "transactions {} to {} instead of {} to {}",
                found.tail.txid, found.head.txid, self.leader.tail.txid, self.leader.head.txid
            ),
            Err(damage) => damage.to_string(),
        };
        let message = format!("somebody else writes {}: the journal holds {what}{}", path.display(), others(path));
        Err(Error::refused(message)
            .with_hint("the original pfsdaemon and pfs know no leases: stop them, then run `pfs check`"))
    }

    /// How many bytes of entries the journal can take now.
    fn room(&self) -> u64 {
        let used = self.leader.entries() * ENTRY_SIZE as u64;
        (self.journal.size() - used).saturating_sub(MARGIN)
    }

    /// Trims so much that there is room for `bytes`, and for as much again where that is not all of the journal.
    fn make_room(&mut self, bytes: u64) -> Result<()> {
        let wanted = bytes.max(self.journal.size() / 2);
        let (head, size) = (self.leader.head.offset.bytes(), self.journal.size());
        let used_after = |end: &LogPosition| (head + size - end.offset.bytes()) % size;
        let kept = self.ends.iter().position(|end| used_after(end) + wanted + MARGIN <= size);
        let kept = kept.map_or(0, |first| self.ends.len() - 1 - first);
        self.trim(kept as u64)
    }

    /// Trims if there are many transactions in the journal.
    fn trim_if_due(&mut self) -> Result<()> {
        if self.ends.len() as u64 >= TRIMMED_AT { self.trim(KEPT) } else { Ok(()) }
    }

    /// Brings all but the newest `kept` transactions of the journal into the metadata sectors.
    fn trim(&mut self, kept: u64) -> Result<()> {
        let Some(count) = (self.ends.len() as u64).checked_sub(kept).filter(|count| *count > 0) else { return Ok(()) };
        #[allow(clippy::cast_possible_truncation, reason = "no more than the length")]
        let Some(tail) = self.ends.get(count as usize - 1).copied() else { return Ok(()) };
        self.look()?;
        let due = |since: &Txid| *since <= tail.txid;
        let sectors = self.dirty.iter().filter(|(_, since)| due(since));
        let parts: Vec<Source<'_>> =
            sectors.filter_map(|(at, _)| Some(Source { at: *at, from: self.metadata.sector(*at)? })).collect();
        self.device.write_parts(parts)?;
        if self.durable {
            self.device.flush()?;
        }
        self.write_leader(LeaderRecord { tail, ..self.leader.clone() })?;
        self.statistics.trims += 1;
        self.dirty.retain(|_, since| !due(since));
        #[allow(clippy::cast_possible_truncation, reason = "no more than the length")]
        self.ends.drain(..count as usize);
        Ok(())
    }

    /// Gives back what others may have.
    fn end(&mut self) -> Result<()> {
        match &mut self.fence {
            Some(fence) => fence.release(&mut self.device),
            None => Ok(()),
        }
    }
}

/// Who else on this machine has a device open, for a message.
fn others(path: &Path) -> String {
    let Ok(metadata) = std::fs::metadata(path) else { return String::new() };
    let mut uses = usage::uses_of(FileId::of(&metadata));
    uses.retain(|used| !matches!(used, Use::Open { pid, .. } if *pid == std::process::id()));
    if uses.is_empty() { String::new() } else { format!("; it is {}", usage::describe(&uses)) }
}

/// A position `bytes` after another in a journal of `size` bytes.
fn after(offset: LogOffset, bytes: u64, size: u64) -> LogOffset {
    // A whole number of entries on, and inside the journal: an entry starts there.
    LogOffset::new((offset.bytes() + bytes) % size).unwrap_or(LogOffset::ZERO)
}
