//! The disk that is served: one image, whoever uses it, and what all of them share.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use nix::fcntl::Flock;

use super::host::{Bars, Gate, HOSTS_MAX, HostId, HostName, Leave};
use super::mailbox::{Letter, Mailbox, lock};
use super::port::Port;
use super::request::Operation;
use super::stats::{Activity, Counters, Total};
use crate::engine::{Choice, Target};
use crate::error::{Context, Error, Result};
use crate::units::ByteSize;
use crate::{loopdev, topology};

/// How the image of a served disk is opened.
#[derive(Debug, Clone)]
pub struct DiskOptions {
    /// The smallest unit that is read and written: 512 or 4096 bytes. A power cut tears writes at its multiples.
    pub sector_size: ByteSize,
    /// Past the page cache. Otherwise what is written is in the page cache of this machine until a flush, which is quicker,
    /// and leaves it to the layers how quick the disk is.
    pub direct_io: bool,
    /// Refuse whatever changes the disk.
    pub read_only: bool,
    /// What carries the I/O.
    pub engine: Choice,
    /// Who uses it; at least one.
    pub hosts: Vec<HostName>,
}

impl Default for DiskOptions {
    fn default() -> Self {
        Self {
            sector_size: ByteSize::new(512),
            direct_io: false,
            read_only: false,
            engine: Choice::Auto,
            hosts: vec![HostName::default()],
        }
    }
}

/// A served disk. Threads that use it each [open a port](Self::open_port).
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    file: File,
    size: ByteSize,
    options: DiskOptions,
    gates: Vec<Gate>,
    ports: Mutex<Vec<Arc<Shared>>>,
    /// What ports counted that are closed.
    closed: Mutex<Vec<Total>>,
    // Nobody else serves, attaches or grows the image meanwhile. A device is opened exclusively instead.
    _lock: Option<Flock<File>>,
}

/// What others need of a port.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) mailbox: Mailbox,
    /// By host: how many operations are on their way to the image.
    under_way: Vec<AtomicU32>,
    counters: Vec<OnceLock<Box<Counters>>>,
}

impl Shared {
    /// What is counted here for `host`.
    pub(super) fn counters(&self, host: HostId) -> &Counters {
        self.counters[host.index()].get_or_init(Box::default)
    }
}

impl Disk {
    /// Opens the image at `path`.
    ///
    /// # Errors
    /// When it is not there, is no file or block device, is in use, or cannot be had as asked for.
    pub fn open(path: &Path, options: DiskOptions) -> Result<Arc<Self>> {
        let sector = options.sector_size;
        if ![512, 4096].contains(&sector.bytes()) {
            return Err(Error::invalid(format!("sectors of {sector} asked for, 512 or 4096 bytes possible")));
        }
        if options.hosts.is_empty() || options.hosts.len() > HOSTS_MAX {
            return Err(Error::invalid(format!("{} hosts named, 1 to {HOSTS_MAX} possible", options.hosts.len())));
        }
        for (index, host) in options.hosts.iter().enumerate() {
            if options.hosts[..index].contains(host) {
                return Err(Error::invalid(format!("host {host} is named twice")));
            }
        }
        let what = || format!("cannot open {} to serve it", path.display());
        let metadata = std::fs::metadata(path).context(what)?;
        let device = metadata.file_type().is_block_device();
        if !device && !metadata.is_file() {
            return Err(Error::invalid(format!("{} is neither a file nor a block device", path.display())));
        }
        let lock = if device { None } else { crate::lock::exclusive(path)? };
        let exclusive = if device { libc::O_EXCL } else { 0 };
        let direct = if options.direct_io { libc::O_DIRECT } else { 0 };
        let file = OpenOptions::new()
            .read(true)
            .write(!options.read_only)
            .custom_flags(exclusive | direct)
            .open(path)
            .map_err(|source| no_open(path, &options, source))?;
        if let Some(user) = loopdev::users_of(&file)?.first() {
            return Err(Error::refused(format!(
                "{} is attached to {}; served beside it, there would be two caches over one disk",
                path.display(),
                user.path.display()
            ))
            .with_hint(format!("first: vdisk detach {}", user.path.display())));
        }
        if let Some(direct) = topology::direct_io(&file)?.filter(|_| options.direct_io)
            && direct.offset_align > sector
        {
            return Err(Error::invalid(format!(
                "{} can be read directly in units of {} only, and has sectors of {sector}",
                path.display(),
                direct.offset_align
            ))
            .with_hint("--sector-size 4096"));
        }
        let size = topology::Topology::of(path)?.size;
        let size = ByteSize::new(size.bytes() / sector.bytes() * sector.bytes());
        if size == ByteSize::ZERO {
            return Err(Error::invalid(format!("{} is not even one sector of {sector}", path.display())));
        }
        let count = options.hosts.len();
        Ok(Arc::new(Self {
            path: path.to_owned(),
            file,
            size,
            gates: (0..count).map(|_| Gate::default()).collect(),
            ports: Mutex::default(),
            closed: Mutex::new(vec![Total::default(); count]),
            options,
            _lock: lock,
        }))
    }

    /// Its image.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How large it is; a multiple of its sectors.
    #[must_use]
    pub fn size(&self) -> ByteSize {
        self.size
    }

    /// How it was opened.
    #[must_use]
    pub fn options(&self) -> &DiskOptions {
        &self.options
    }

    /// Who uses it.
    #[must_use]
    pub fn hosts(&self) -> &[HostName] {
        &self.options.hosts
    }

    /// The host of that name.
    #[must_use]
    pub fn host(&self, name: &str) -> Option<HostId> {
        let index = self.options.hosts.iter().position(|host| host.as_str() == name)?;
        u8::try_from(index).ok().map(HostId)
    }

    /// The open image, to ask the file system about it.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Makes a port for the calling thread: `depth` is how many operations it may have on their way to the image.
    ///
    /// # Errors
    /// When memory or descriptors are short, or the engine does not work here.
    pub fn open_port(self: &Arc<Self>, depth: u32) -> Result<Port> {
        let count = self.options.hosts.len();
        let shared = Arc::new(Shared {
            mailbox: Mailbox::new()?,
            under_way: (0..count).map(|_| AtomicU32::new(0)).collect(),
            counters: (0..count).map(|_| OnceLock::new()).collect(),
        });
        let port = Port::new(Arc::clone(self), Arc::clone(&shared), depth)?;
        lock(&self.ports).push(shared);
        Ok(port)
    }

    /// The image as an engine takes it.
    pub(super) fn target(&self) -> Result<Target> {
        let file = self.file.try_clone().context(|| format!("cannot share {}", self.path.display()))?;
        let target = Target::new(file, &self.path);
        Ok(if self.options.direct_io { target } else { target.with_inline_writes() })
    }

    /// Takes back what [`open_port`](Self::open_port) gave.
    pub(super) fn close_port(&self, shared: &Arc<Shared>) {
        let mut ports = lock(&self.ports);
        ports.retain(|port| !Arc::ptr_eq(port, shared));
        for (total, counters) in lock(&self.closed).iter_mut().zip(&shared.counters) {
            if let Some(counters) = counters.get() {
                total.add(counters);
            }
        }
    }

    /// What was counted for each host until now.
    fn totals(&self) -> Vec<Total> {
        let ports = lock(&self.ports);
        let mut totals = lock(&self.closed).clone();
        for port in &*ports {
            for (total, counters) in totals.iter_mut().zip(&port.counters) {
                if let Some(counters) = counters.get() {
                    total.add(counters);
                }
            }
        }
        totals
    }

    /// Asks leave to do something to the image. What has leave to go is under way until [`arrived`](Self::arrived).
    pub(super) fn set_out(&self, shared: &Shared, host: HostId, operation: Operation) -> Leave {
        let under_way = &shared.under_way[host.index()];
        under_way.fetch_add(1, Ordering::SeqCst);
        let leave = self.gates[host.index()].leave(operation);
        let leave = if self.options.read_only && operation.changes() {
            Leave::Refused(nix::errno::Errno::EROFS)
        } else {
            leave
        };
        if leave != Leave::Go {
            under_way.fetch_sub(1, Ordering::SeqCst);
        }
        leave
    }

    /// What [set out](Self::set_out) has its effect, or none.
    pub(super) fn arrived(shared: &Shared, host: HostId) {
        shared.under_way[host.index()].fetch_sub(1, Ordering::SeqCst);
    }

    /// Puts a bar before `hosts`, or takes it away. When this returns, nothing is under way that set out before.
    fn bar(&self, hosts: &[HostId], bar: Bars, on: bool) {
        for host in hosts {
            self.gates[host.index()].raise(bar, on);
        }
        let ports: Vec<Arc<Shared>> = lock(&self.ports).clone();
        if on {
            // A port opened meanwhile sees the bar.
            let under_way =
                |port: &Shared| hosts.iter().any(|host| port.under_way[host.index()].load(Ordering::SeqCst) > 0);
            while ports.iter().any(|port| under_way(port)) {
                thread::sleep(Duration::from_micros(50));
            }
        } else {
            ports.iter().for_each(|port| port.mailbox.send(Letter::Look));
        }
    }

    /// Cuts the power: when this returns, nothing reaches the image any more, and every request is answered with an error.
    pub fn cut_power(&self) {
        self.bar(&self.host_ids(), Bars::POWER, true);
    }

    /// Gives the power back.
    pub fn restore_power(&self) {
        self.bar(&self.host_ids(), Bars::POWER, false);
    }

    /// What each host has asked of the disk since it was opened.
    #[must_use]
    pub fn activity(&self) -> Vec<Vec<Activity>> {
        self.totals().iter().map(|total| total.since(&Total::default())).collect()
    }

    /// Every host.
    fn host_ids(&self) -> Vec<HostId> {
        // There are few.
        (0..self.options.hosts.len()).filter_map(|index| u8::try_from(index).ok().map(HostId)).collect()
    }
}

fn no_open(path: &Path, options: &DiskOptions, source: std::io::Error) -> Error {
    let what = format!("cannot open {} to serve it", path.display());
    match source.raw_os_error() {
        Some(libc::EINVAL) if options.direct_io => {
            Error::io(what, source).with_hint("this file system has no direct I/O: go without --direct")
        }
        Some(libc::EROFS) if !options.read_only => Error::io(what, source).with_hint("serve it with --read-only"),
        Some(libc::EBUSY) => Error::io(what, source)
            .with_hint("it is mounted, or something else has it for itself: vdisk info says what"),
        _ => Error::io(what, source),
    }
}
