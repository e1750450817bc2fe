//! A volume that is read while another host writes it, kept up to date in the background.

use std::path::Path;
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use blockdev::{Context, Error, ErrorKind, Result};

use crate::format::LeaderRecord;

use super::metadata::Metadata;
use super::{Change, Volume};

/// How often to look, if nobody says otherwise.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// A volume open for reading, which a thread keeps as new as its interval: it looks at the leader record, one read of a
/// sector, and reads on in the journal when that moved.
#[derive(Debug)]
pub struct Follower {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    known: RwLock<Known>,
    progress: Mutex<Progress>,
    moved: Condvar,
}

/// What is known of the volume.
#[derive(Debug)]
struct Known {
    metadata: Metadata,
    leader: LeaderRecord,
}

#[derive(Debug, Default)]
struct Progress {
    stop: bool,
    /// How often somebody wanted to know whether the volume was grown, and how often that was looked at.
    asked: u64,
    answered: u64,
    /// How often what is known changed.
    changes: u64,
    /// Why the last look failed, if it did.
    failed: Option<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Follower {
    /// Opens the volume on a file or device, and looks at it anew every `interval`.
    ///
    /// # Errors
    /// As [`Volume::open`].
    pub fn open(path: &Path, interval: Duration) -> Result<Self> {
        let path = path.to_owned();
        let (opened, is_open) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("pfs-follower".to_owned())
            .spawn(move || {
                let mut volume = match Volume::open(&path) {
                    Ok(volume) => volume,
                    Err(error) => {
                        let _ = opened.send(Err(error));
                        return;
                    }
                };
                let known = Known { metadata: volume.metadata().clone(), leader: volume.leader().clone() };
                let shared =
                    Arc::new(Shared { known: RwLock::new(known), progress: Mutex::default(), moved: Condvar::new() });
                // Whoever started this thread waits for the word.
                let _ = opened.send(Ok(Arc::clone(&shared)));
                shared.follow(&mut volume, interval);
            })
            .context(|| "cannot start a thread that follows a volume")?;
        match is_open.recv() {
            Ok(shared) => Ok(Self { shared: shared?, thread: Some(thread) }),
            Err(_) => Err(Error::new(ErrorKind::Io, "the thread that follows the volume ended")),
        }
    }

    /// Looks at what is known: the metadata, and the leader record that they are of. Nothing changes meanwhile.
    pub fn with<T>(&self, look: impl FnOnce(&Metadata, &LeaderRecord) -> T) -> T {
        let known = self.shared.known.read().unwrap_or_else(PoisonError::into_inner);
        look(&known.metadata, &known.leader)
    }

    /// Sees that the last look at the volume was fine. When it was not, what is known is what it was before.
    ///
    /// # Errors
    /// Why it was not.
    pub fn check(&self) -> Result<()> {
        match &lock(&self.shared.progress).failed {
            Some(why) => Err(Error::new(ErrorKind::Io, format!("cannot follow the volume: {why}"))),
            None => Ok(()),
        }
    }

    /// Looks whether the volume was [grown](crate::growfs), and waits until what is known is of all its chunks. What is in
    /// new chunks is found without this, but not how much there is room for.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn regrow(&self) -> Result<()> {
        let mut progress = lock(&self.shared.progress);
        progress.asked += 1;
        let asked = progress.asked;
        self.shared.moved.notify_all();
        while progress.answered < asked && !self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
            progress =
                self.shared.moved.wait_timeout(progress, LOOK_INTERVAL).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(progress);
        self.check()
    }

    /// Waits until what is known is as it should be, or the time is up. Returns whether it is.
    pub fn wait(&self, timeout: Duration, is_there: impl Fn(&Metadata, &LeaderRecord) -> bool) -> bool {
        let deadline = Instant::now() + timeout;
        let mut progress = lock(&self.shared.progress);
        loop {
            let seen = progress.changes;
            drop(progress);
            if self.with(&is_there) {
                return true;
            }
            progress = lock(&self.shared.progress);
            while progress.changes == seen {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return false;
                }
                progress = self.shared.moved.wait_timeout(progress, left).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        lock(&self.shared.progress).stop = true;
        self.shared.moved.notify_all();
        if let Some(thread) = self.thread.take() {
            // One that panicked follows nothing any more.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn follow(&self, volume: &mut Volume, interval: Duration) {
        loop {
            let due = Instant::now() + interval;
            let mut progress = lock(&self.progress);
            loop {
                let left = due.saturating_duration_since(Instant::now());
                if progress.stop || progress.asked > progress.answered || left.is_zero() {
                    break;
                }
                progress = self.moved.wait_timeout(progress, left).unwrap_or_else(PoisonError::into_inner).0;
            }
            if progress.stop {
                return;
            }
            let (asked, answered) = (progress.asked, progress.answered);
            drop(progress);
            let outcome = if asked > answered { volume.follow_growth() } else { volume.follow() };
            let changed = matches!(outcome, Ok(Change::Objects(_) | Change::All));
            if changed {
                let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
                match &outcome {
                    Ok(Change::Objects(objects)) => objects.iter().for_each(|object| known.metadata.put(object)),
                    _ => known.metadata = volume.metadata().clone(),
                }
                known.leader = volume.leader().clone();
            }
            let mut progress = lock(&self.progress);
            progress.changes += u64::from(changed);
            progress.failed = outcome.err().map(|error| {
                let source = std::error::Error::source(&error);
                source.map_or(error.to_string(), |source| format!("{error}: {source}"))
            });
            progress.answered = asked;
            if changed || asked > answered {
                self.moved.notify_all();
            }
        }
    }
}
