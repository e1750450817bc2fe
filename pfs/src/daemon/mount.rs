//! The volume, as it is mounted for all clients at once: read by a replica's, written by a primary's.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use blockdev::engine::Choice;
use blockdev::{Cancel, Error, Result};
use nix::errno::Errno;

use crate::proto::MountId;
use crate::volume::writer::{Options, Writer};
use crate::volume::{Exclusive, LeaseOptions, Reader};

use super::worker::Crew;

/// The number of the mount: there is one at a time, and all clients have the same.
pub(super) const MOUNT: MountId = MountId(0);

/// How often to look whether the workers have let a volume go.
const LOOK: Duration = Duration::from_micros(200);

/// The volume, open.
#[derive(Debug)]
pub(super) enum Mount {
    Writer(Box<Writer>),
    Reader(Reader),
}

/// What the workers work on.
#[derive(Debug, Clone)]
pub(super) enum Current {
    /// Nobody mounts it.
    Unmounted,
    /// It is being mounted otherwise: who asks something waits.
    Paused,
    Mounted(Arc<Mount>),
}

/// How to mount.
#[derive(Debug, Clone)]
pub(super) struct How {
    /// The file or device.
    pub(super) path: PathBuf,
    /// Flush before a change is acknowledged.
    pub(super) durable: bool,
    /// How I/O is done.
    pub(super) engine: Choice,
}

/// The mount, and for whom it is.
#[derive(Debug)]
pub(super) struct Mounts {
    how: How,
    cancel: Cancel,
    current: Mutex<Current>,
    /// How often it changed.
    generation: AtomicU64,
    /// Who works on it.
    crew: Arc<Crew>,
}

/// As what a client mounts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Role {
    /// Which host of the volume it is.
    pub(super) host: u8,
    /// Whether it may write.
    pub(super) writes: bool,
    /// Whether it is a tool's. Those take no host for themselves: whoever they are with does as before.
    pub(super) tool: bool,
}

/// Who mounts it. Whoever lets clients in has this.
#[derive(Debug, Default)]
pub(super) struct Hosts(Vec<Role>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mounts {
    pub(super) fn new(how: How, cancel: Cancel, crew: Arc<Crew>) -> Self {
        Self { how, cancel, current: Mutex::new(Current::Unmounted), generation: AtomicU64::new(0), crew }
    }

    /// How often the mount changed: whoever works on one looks whether it still is the one.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// What there is to work on, and since when.
    pub(super) fn current(&self) -> (Current, u64) {
        let current = lock(&self.current);
        (current.clone(), self.generation())
    }

    fn set(&self, new: Current) -> Current {
        let mut current = lock(&self.current);
        self.generation.fetch_add(1, Ordering::AcqRel);
        let before = std::mem::replace(&mut *current, new);
        drop(current);
        self.crew.rouse();
        before
    }

    /// Lets the workers end what they are doing, and gives the volume back.
    fn unmount(&self, meanwhile: Current) -> Result<()> {
        let Current::Mounted(mut mount) = self.set(meanwhile) else { return Ok(()) };
        loop {
            match Arc::try_unwrap(mount) {
                Ok(Mount::Writer(writer)) => return writer.close(),
                Ok(Mount::Reader(_)) => return Ok(()),
                Err(shared) => {
                    mount = shared;
                    std::thread::sleep(LOOK);
                }
            }
        }
    }

    fn open(&self, host: u8, write: bool) -> Result<Mount> {
        let How { path, durable, engine } = &self.how;
        if !write {
            return Ok(Mount::Reader(Reader::open(path, *engine)?));
        }
        let lease = LeaseOptions { host, ..LeaseOptions::default() };
        let exclusive = Exclusive::lease(path, &lease, &self.cancel)?;
        let fence = Some(Box::new(exclusive) as _);
        let options = Options { durable: *durable, engine: *engine, fence, ..Options::default() };
        Ok(Mount::Writer(Box::new(Writer::open(path, options)?)))
    }

    /// Mounts it, or mounts it otherwise. Where that cannot be done, it is as it was.
    ///
    /// # Errors
    /// Why it cannot be mounted so; or, mounted so, why what was there before was not closed in order.
    fn remount(&self, host: u8, write: bool) -> Result<()> {
        let before = match self.current().0 {
            Current::Mounted(mount) => Some(matches!(*mount, Mount::Writer(_))),
            _ => None,
        };
        if before == Some(write) {
            return Ok(());
        }
        // Of a writer that could not be closed in order nothing is left either: it goes on with what comes instead.
        let closed = if before.is_some() { self.unmount(Current::Paused) } else { Ok(()) };
        match self.open(host, write) {
            Ok(mount) => {
                self.set(Current::Mounted(Arc::new(mount)));
                closed
            }
            Err(error) => {
                let back = before.map(|written| self.open(host, written));
                self.set(match back {
                    Some(Ok(mount)) => Current::Mounted(Arc::new(mount)),
                    _ => Current::Unmounted,
                });
                Err(error)
            }
        }
    }

    /// Gives the volume back, whoever mounts it: the daemon ends.
    pub(super) fn end(&self) -> Result<()> {
        self.unmount(Current::Paused)
    }
}

impl Hosts {
    /// The databases' of a host.
    fn of(&self, host: u8) -> impl Iterator<Item = &Role> {
        self.0.iter().filter(move |role| role.host == host && !role.tool)
    }

    /// Mounts it for one more client.
    ///
    /// # Errors
    /// EINVAL when the host writes it, or is to write it and has clients already; or why it cannot be mounted.
    pub(super) fn acquire(&mut self, mounts: &Mounts, new: Role) -> Result<()> {
        if !new.tool && self.of(new.host).any(|role| new.writes || role.writes) {
            let message = format!("host {} has a client already, and one of the two writes", new.host);
            return Err(Error::io(message, Errno::EINVAL));
        }
        if new.writes || self.0.is_empty() {
            mounts.remount(new.host, new.writes)?;
        }
        self.0.push(new);
        Ok(())
    }

    /// Lets the only client of a host write, which read until now.
    ///
    /// # Errors
    /// EINVAL when it is not the only one or writes already; or why it cannot be mounted so.
    pub(super) fn promote(&mut self, mounts: &Mounts, host: u8) -> Result<()> {
        if self.of(host).count() != 1 || self.of(host).any(|role| role.writes) {
            return Err(Error::io(format!("host {host} has not one client that reads"), Errno::EINVAL));
        }
        mounts.remount(host, true)?;
        self.0.iter_mut().filter(|role| role.host == host && !role.tool).for_each(|role| role.writes = true);
        Ok(())
    }

    /// Forgets a client.
    ///
    /// # Errors
    /// What could not be given back in order, or not be mounted otherwise; the client is forgotten all the same.
    pub(super) fn release(&mut self, mounts: &Mounts, gone: Role) -> Result<()> {
        let Some(place) = self.0.iter().position(|role| *role == gone) else { return Ok(()) };
        self.0.swap_remove(place);
        match self.0.first() {
            None => mounts.unmount(Current::Unmounted),
            Some(other) if gone.writes && !self.0.iter().any(|role| role.writes) => mounts.remount(other.host, false),
            Some(_) => Ok(()),
        }
    }
}
