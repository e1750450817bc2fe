//! What a process of the database does to use a disk that a `pfsd` serves; any pfsd's, the original's or ours.
//!
//! A [`Client`] is one connection. Threads share it, and so do the children of the process that made it, as the backends of
//! a database do: the memory is inherited, and each child asks under its own process id.
//!
//! ```no_run
//! use pfs::client::{Client, ConnectOptions};
//! use pfs::proto::OpenFlags;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect("nvme1n1", &ConnectOptions::default())?;
//! let file = client.open("/nvme1n1/data/pg_control", OpenFlags(0), 0)?;
//! let mut bytes = vec![0; 8192];
//! let count = client.pread(&file, 0, &mut bytes)?;
//! client.umount()?;
//! # Ok(()) }
//! ```
//!
//! What the original's library does, this does, with these differences:
//!
//! - A pfsd that is gone is noticed: who waits for it gives up after the [patience](ConnectOptions::patience) with an error,
//!   instead of waiting for ever. One that comes back earlier answers, and nobody notices more than a pause.
//! - Files stay open in the children of a process; the original closes them.
//! - Nothing is logged, and standard error stays what it was: the original sends that of tools to a file.
//! - Whether a disk is mounted for writing decides pfsd alone. The original's library looks for itself first, unless
//!   processes share the connection.
//! - There are no calls that do nothing: what pfsd has acknowledged is written, so there is no fsync, and no permissions.
//!   Everybody may read and write everything, however it was opened, as with the original.

mod call;
mod connection;
mod directory;
mod file;
mod names;
mod served;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

use blockdev::{Error, ErrorKind, Result};

use crate::proto::{
    CLUSTER, ChannelNo, ConnectionId, DISK_NAME_MAX, Memory, MountEpoch, MountFlags, MountId, MountRequest, Owner,
    Places, SlotNo, VERSION,
};
use crate::volume::{HostLock, Region};
use connection::Connection;

pub use connection::is_served;
pub use directory::{Directory, Entry};
pub use file::File;
pub use served::{Named, Served};

/// For how long the original's library tries to lock out those who grow the volume, before it mounts for writing.
const GROWING: Duration = Duration::from_secs(30);

/// How to connect.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// The installation of pfsd.
    pub places: Places,
    /// What kind of storage the disk is. There is only `disk`.
    pub cluster: String,
    /// Which host of the volume this is: from 1 on, as many as the volume was made for. 0 stands for the last.
    pub host: i32,
    /// Whether to write, and whether as a tool.
    pub flags: MountFlags,
    /// For how long to wait to be let in.
    pub timeout: Duration,
    /// For how long to wait for a pfsd that is gone, in case somebody starts it again.
    pub patience: Duration,
}

impl Default for ConnectOptions {
    /// A primary's, on the first host: 20 s to be let in, as the original's library, and 30 s of patience.
    fn default() -> Self {
        Self {
            places: Places::default(),
            cluster: CLUSTER.to_owned(),
            host: 1,
            flags: MountFlags::READ_WRITE,
            timeout: Duration::from_secs(20),
            patience: Duration::from_secs(30),
        }
    }
}

/// What changes when a client is promoted.
#[derive(Debug)]
struct Mount {
    flags: MountFlags,
    epoch: MountEpoch,
    /// Held while it is mounted for writing.
    _host: Option<HostLock>,
}

/// A connection to the pfsd of one disk. See the [module](self).
///
/// A process can have one connection to a disk at a time. Dropped, it leaves without waiting until pfsd has noticed, which
/// [`umount`](Self::umount) does.
#[derive(Debug)]
pub struct Client {
    disk: String,
    options: ConnectOptions,
    memory: Memory,
    connection: Connection,
    id: ConnectionId,
    /// Which mount to ask, and what the next request is told.
    mount_id: AtomicI32,
    mount: Mutex<Mount>,
    /// The directory from which relative paths start.
    directory: RwLock<Option<Vec<u8>>>,
    /// Where to look for a free slot next.
    next: AtomicUsize,
    /// Slots of requests that were given up while a pfsd was at them that is gone, and whether there are any. The next pfsd
    /// answers them, and nobody else can free them as long as this process lives.
    abandoned: Mutex<BTreeMap<(ChannelNo, SlotNo), Owner>>,
    has_abandoned: AtomicBool,
}

impl Client {
    /// Connects to the pfsd of a disk. Where there is none yet it has until the time limit to appear.
    ///
    /// To write, the disk is locked for the host, as the original does, so that no other process of this machine writes as
    /// the same.
    ///
    /// # Errors
    /// When the host is locked or cannot be, nobody answers in time (ETIMEDOUT), or pfsd refuses: EINVAL where it could not
    /// mount the disk so, ECONNREFUSED where it has too many clients.
    pub fn connect(disk: &str, options: &ConnectOptions) -> Result<Self> {
        if disk.is_empty() || disk.len() > DISK_NAME_MAX || disk.contains(['/', '\0']) {
            return Err(Error::invalid(format!("{disk:?} is no name of a disk"))
                .with_hint("it is what stands in /dev, a slash being an underscore: nvme1n1, mapper_vg-data"));
        }
        let host = host_lock(disk, options)?;
        let mount = Mount { flags: options.flags, epoch: MountEpoch(1), _host: host };
        let request = request(disk, options, &mount);
        let (connection, ack) = Connection::open(disk, options, &request)?;
        let id =
            ack.connection.ok_or_else(|| refused(disk, libc::EPROTO, "it did not say which connection this is"))?;
        let memory = Memory::open(|region| PathBuf::from(&ack.regions[region.index()]))?;
        Ok(Self {
            disk: disk.to_owned(),
            options: options.clone(),
            memory,
            connection,
            id,
            mount_id: AtomicI32::new(ack.mount.0),
            mount: Mutex::new(mount),
            directory: RwLock::new(None),
            next: AtomicUsize::new(0),
            abandoned: Mutex::default(),
            has_abandoned: AtomicBool::new(false),
        })
    }

    /// Mounts the disk for writing where it was mounted for reading only: a replica that becomes the primary. Waits for that
    /// as long as the pfsd is there: it may have much to read first.
    ///
    /// # Errors
    /// EINVAL when it is mounted for writing already, or pfsd cannot, as for a tool; when the host is locked. The mount is
    /// as it was then.
    pub fn remount(&self, flags: MountFlags) -> Result<()> {
        let mut mount = self.mount.lock().unwrap_or_else(PoisonError::into_inner);
        let refuse = |why: &str| Err(refused(&self.disk, libc::EINVAL, why));
        if mount.flags.has(MountFlags::WRITE) {
            return refuse("it is mounted for writing already");
        }
        if flags.has(MountFlags::TOOL) || !flags.has(MountFlags::WRITE) {
            return refuse("only a database is promoted, and only to write");
        }
        let host = HostLock::of_disk(&self.options.places.locks, &self.disk, host_region(self.options.host)?)?;
        let ack = self.connection.last_ack()?;
        let next = Mount { flags, epoch: MountEpoch(ack.epoch.0.wrapping_add(1)), _host: Some(host) };
        let ack = self.connection.ask(&self.disk, &self.options, &request(&self.disk, &self.options, &next), None)?;
        if ack.remount_error != 0 {
            let errno = ack.remount_error.saturating_abs();
            return Err(refused(&self.disk, errno, "it could not mount the disk for writing"));
        }
        *mount = next;
        self.mount_id.store(ack.mount.0, Ordering::Relaxed);
        Ok(())
    }

    /// Leaves, and waits until pfsd has noticed. As long as children of this process have the connection, that waits for
    /// them; see [`umount_force`](Self::umount_force).
    ///
    /// # Errors
    /// In a child of the process that connected: the connection is its parent's.
    pub fn umount(self) -> Result<()> {
        self.connection.leave(false)
    }

    /// Leaves at once, whoever else has the connection. What children of this process ask from now on fails.
    ///
    /// # Errors
    /// As [`umount`](Self::umount).
    pub fn umount_force(self) -> Result<()> {
        self.connection.leave(true)
    }

    /// The disk.
    #[must_use]
    pub fn disk(&self) -> &str {
        &self.disk
    }

    /// Which connection of its pfsd this is.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// How it is mounted.
    #[must_use]
    pub fn flags(&self) -> MountFlags {
        self.mount.lock().unwrap_or_else(PoisonError::into_inner).flags
    }

    /// How it was connected.
    #[must_use]
    pub fn options(&self) -> &ConnectOptions {
        &self.options
    }

    /// The shared memory, for who wants to look or do it by hand.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Which mount of pfsd requests are for.
    #[must_use]
    pub fn mount_id(&self) -> MountId {
        MountId(self.mount_id.load(Ordering::Relaxed))
    }
}

/// The page that asks for a mount.
fn request(disk: &str, options: &ConnectOptions, mount: &Mount) -> MountRequest {
    MountRequest {
        version: VERSION,
        cluster: options.cluster.clone(),
        disk: disk.to_owned(),
        host: options.host,
        flags: mount.flags,
        epoch: mount.epoch,
    }
}

/// The part of the lock file that stands for a host. The whole of it for host 0, as in the original.
fn host_region(host: i32) -> Result<Region> {
    match u8::try_from(host) {
        Ok(0) => Ok(Region::All),
        Ok(host @ 1..=254) => Ok(Region::Host(host)),
        _ => Err(Error::invalid(format!("there can be no host {host}")).with_hint("hosts are 1 to 254")),
    }
}

/// Locks what the original locks before it asks pfsd to mount a disk.
fn host_lock(disk: &str, options: &ConnectOptions) -> Result<Option<HostLock>> {
    if !options.flags.has(MountFlags::WRITE) {
        return Ok(None);
    }
    let locks = &options.places.locks;
    let tool = options.flags.has(MountFlags::TOOL);
    let region = if tool && options.host == 0 { Region::Tools } else { host_region(options.host)? };
    // Nobody grows the volume in the moment in which it is mounted.
    let _growing =
        if tool { None } else { Some(connection::retry(GROWING, || HostLock::of_disk(locks, disk, Region::Chunks))?) };
    // A database has its host for itself; tools take turns.
    let patience = if tool { options.timeout } else { Duration::ZERO };
    connection::retry(patience, || HostLock::of_disk(locks, disk, region)).map(Some)
}

/// That pfsd does not do it.
fn refused(disk: &str, errno: i32, why: &str) -> Error {
    let source = std::io::Error::from_raw_os_error(errno);
    Error::io(format!("the pfsd of {disk} refused: {why}"), source).with_kind(ErrorKind::Refused)
}
