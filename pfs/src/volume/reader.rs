//! A volume that is read while another host writes it, by many threads, each as fresh as it asks for.
//!
//! A [`Follower`](super::Follower) is as new as its interval. Here whoever asks looks at the leader record first, as the
//! original does before each operation: what another host's writer acknowledged before is seen. Most often it has not moved,
//! and that is all; otherwise a thread reads on in the journal, for all who wait.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use blockdev::engine::Choice;
use blockdev::{Context, Error, ErrorKind, Result};
use nix::errno::Errno;

use crate::format::{LEADER_SIZE, LeaderBytes, LeaderRecord};

use super::data::Segment;
use super::device::{Device, OpenFile};
use super::load::Load;
use super::metadata::Metadata;
use super::name::VolumePath;
use super::tree::{Entry, FileKind, Stat};
use super::writer::{Handle, State};
use super::{Change, Volume};

/// How often to look when nobody asks, so that who asks then has little to read.
const IDLE: Duration = Duration::from_millis(200);

/// A volume open for reading by many threads.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    file: Mutex<OpenFile>,
}

#[derive(Debug)]
struct Shared {
    known: Mutex<Known>,
    asked: Mutex<Asked>,
    came: Condvar,
    /// How many of those that were asked for are over, for those who ask often.
    answered: AtomicU64,
}

/// What is known of the volume.
#[derive(Debug)]
struct Known {
    state: State,
    leader: LeaderRecord,
    bytes: LeaderBytes,
    /// When this was found to be the newest.
    at: Instant,
}

#[derive(Debug, Default)]
struct Asked {
    /// How often somebody asked to catch up, and up to which of them that is over.
    asked: u64,
    answered: u64,
    /// Whether the volume may have grown.
    grown: bool,
    stop: bool,
    failed: Option<String>,
}

/// Somebody asked to catch up: which time that was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CatchUp(u64);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reader {
    /// Opens the volume on a file or device.
    ///
    /// # Errors
    /// As [`Volume::open`].
    pub fn open(path: &Path, engine: Choice) -> Result<Self> {
        let device = Device::open_with(path, engine)?;
        let (file, theirs) = (device.file()?, device.file()?);
        // A device stays on its thread.
        drop(device);
        let (opened, is_open) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("pfs-reader".to_owned())
            .spawn(move || {
                let started =
                    theirs.device().and_then(|device| Volume::load(device, Load::default())).and_then(|volume| {
                        let shared = Arc::new(Shared {
                            known: Mutex::new(Known::of(&volume)?),
                            asked: Mutex::default(),
                            came: Condvar::new(),
                            answered: AtomicU64::new(0),
                        });
                        Ok((volume, shared))
                    });
                match started {
                    Ok((mut volume, shared)) => {
                        // Whoever started this thread waits for the word.
                        let _ = opened.send(Ok(Arc::clone(&shared)));
                        shared.follow(&mut volume);
                    }
                    Err(error) => {
                        let _ = opened.send(Err(error));
                    }
                }
            })
            .context(|| "cannot start a thread that follows a volume")?;
        match is_open.recv() {
            Ok(shared) => Ok(Self { shared: shared?, thread: Some(thread), file: Mutex::new(file) }),
            Err(_) => Err(Error::new(ErrorKind::Io, "the thread that follows the volume ended")),
        }
    }

    /// The file that it is, for a thread's own queue.
    pub(super) fn file(&self) -> Result<OpenFile> {
        lock(&self.file).try_clone()
    }

    /// Takes what a look at the leader record found. Returns whether that is what is known; otherwise it is time to
    /// [catch up](Self::catch_up).
    pub(super) fn is_newest(&self, found: &LeaderBytes, looked: Instant) -> bool {
        let mut known = lock(&self.shared.known);
        let same = known.bytes == *found;
        if same {
            known.at = known.at.max(looked);
        }
        same
    }

    /// Asks for what was written up to now.
    pub fn catch_up(&self) -> CatchUp {
        let mut asked = lock(&self.shared.asked);
        asked.asked += 1;
        self.shared.came.notify_one();
        CatchUp(asked.asked)
    }

    /// Asks for what was written up to now, and for the chunks by which the volume may have been grown.
    pub fn regrow(&self) -> CatchUp {
        lock(&self.shared.asked).grown = true;
        self.catch_up()
    }

    /// Whether what was asked for is known.
    ///
    /// # Errors
    /// Why it could not be read.
    pub fn has_caught_up(&self, which: CatchUp) -> Result<bool> {
        if self.shared.answered.load(Ordering::Acquire) < which.0 {
            if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
                return Err(Error::new(ErrorKind::Io, "the thread that follows the volume ended"));
            }
            return Ok(false);
        }
        match &lock(&self.shared.asked).failed {
            Some(why) => Err(Error::new(ErrorKind::Io, format!("cannot follow the volume: {why}"))),
            None => Ok(true),
        }
    }

    /// What a path leads to.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR, ENAMETOOLONG; or damage on the way.
    pub fn lookup(&self, path: &VolumePath) -> Result<Handle> {
        let found = lock(&self.shared.known).state.resolve(path)?.found;
        let failed = |errno, why: &str| Error::io(format!("cannot find {:?}: {why}", path.display()), errno);
        let found = found.ok_or_else(|| failed(Errno::ENOENT, "there is nothing of that name"))?;
        if path.names_directory() && Stat::of(&found).is_some_and(|stat| stat.kind == FileKind::File) {
            return Err(failed(Errno::ENOTDIR, "it is no directory"));
        }
        Ok(Handle::of(&found))
    }

    /// What stat says of a file or directory.
    ///
    /// # Errors
    /// ENOENT once it was removed.
    pub fn stat(&self, handle: Handle) -> Result<Stat> {
        let inode = lock(&self.shared.known).state.inode(handle)?;
        Stat::of(&inode).ok_or_else(|| Error::io(format!("inode {} is free", handle.inode), Errno::ENOENT))
    }

    /// The names in a directory, in their order.
    ///
    /// # Errors
    /// ENOENT once it was removed, ENOTDIR when it is a file; or damage.
    pub fn entries(&self, directory: Handle) -> Result<Vec<Entry>> {
        let known = lock(&self.shared.known);
        known.state.inode(directory)?;
        known.state.metadata().entries(directory.inode)
    }

    /// What there is to read of a file at this moment. Who writes the volume may free it at the next.
    pub(super) fn segments(&self, file: Handle, offset: u64, len: u64) -> Result<Vec<Segment>> {
        Ok(lock(&self.shared.known).state.map(file)?.segments(offset, len).collect())
    }

    /// Looks at all metadata as they are known at this moment.
    pub fn with_metadata<T>(&self, look: impl FnOnce(&Metadata) -> T) -> T {
        look(lock(&self.shared.known).state.metadata())
    }

    /// The leader record that is known, and how long ago it was found to be the newest.
    #[must_use]
    pub fn leader(&self) -> (LeaderRecord, Duration) {
        let known = lock(&self.shared.known);
        (known.leader.clone(), known.at.elapsed())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        lock(&self.shared.asked).stop = true;
        self.shared.came.notify_all();
        if let Some(thread) = self.thread.take() {
            // One that panicked follows nothing any more.
            let _ = thread.join();
        }
    }
}

impl Known {
    fn of(volume: &Volume) -> Result<Self> {
        let state = State::new(volume.metadata().clone())?;
        Ok(Self { state, leader: volume.leader().clone(), bytes: bytes(volume.leader()), at: Instant::now() })
    }
}

/// A leader record as it stands on the disk.
fn bytes(leader: &LeaderRecord) -> LeaderBytes {
    let mut bytes = [0; LEADER_SIZE];
    bytes.copy_from_slice(&leader.write()[..LEADER_SIZE]);
    bytes
}

impl Shared {
    fn follow(&self, volume: &mut Volume) {
        loop {
            let asked = lock(&self.asked);
            let idle = |asked: &mut Asked| asked.asked == asked.answered && !asked.stop;
            let (mut asked, _) =
                self.came.wait_timeout_while(asked, IDLE, idle).unwrap_or_else(PoisonError::into_inner);
            if asked.stop {
                return;
            }
            let (upto, grown) = (asked.asked, std::mem::take(&mut asked.grown));
            drop(asked);
            let looked = Instant::now();
            let outcome = if grown { volume.follow_growth() } else { volume.follow() };
            let outcome = outcome.and_then(|change| self.take_over(volume, &change, looked));
            let mut asked = lock(&self.asked);
            asked.answered = upto;
            asked.failed = outcome.err().map(|error| {
                let source = std::error::Error::source(&error);
                source.map_or(error.to_string(), |source| format!("{error}: {source}"))
            });
            self.answered.store(upto, Ordering::Release);
        }
    }

    fn take_over(&self, volume: &Volume, change: &Change, looked: Instant) -> Result<()> {
        let mut known = lock(&self.known);
        match change {
            Change::Nothing => {}
            Change::Objects(objects) => known.state.apply(objects),
            Change::All => *known = Known::of(volume)?,
        }
        if !matches!(change, Change::Nothing) {
            known.leader = volume.leader().clone();
            known.bytes = bytes(&known.leader);
        }
        known.at = looked;
        Ok(())
    }
}
