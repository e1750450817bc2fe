//! The disk that is served: one image, whoever uses it, and what all of them share.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use nix::fcntl::Flock;

use super::host::{Bars, Gate, HOSTS_MAX, HostId, HostName, Leave};
use super::layer::{Keep, Layers, Loss, Stack};
use super::mailbox::{Letter, Mailbox, lock};
use super::port::Port;
use super::request::Operation;
use super::reservation::{Action, Reservations};
use super::stats::{Counters, Counts, LayerCount, LayerCounters};
use crate::engine::{Choice, Target};
use crate::error::{Context, Error, ErrorKind, Result};
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
    stack: Mutex<Arc<Stack>>,
    /// How often the layers have changed.
    generation: AtomicU64,
    /// One change at a time, of layers, power or reservations.
    changing: Mutex<()>,
    reservations: Mutex<Reservations>,
    /// Where they outlive the server.
    kept_at: Option<PathBuf>,
    ports: Mutex<Vec<Arc<Shared>>>,
    /// What ports counted that are closed.
    closed: Mutex<Vec<Counts>>,
    /// And of the layers.
    closed_layers: Mutex<Vec<LayerCount>>,
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
    layer_counters: OnceLock<Box<LayerCounters>>,
}

impl Shared {
    /// What is counted here for `host`.
    pub(super) fn counters(&self, host: HostId) -> &Counters {
        self.counters[host.index()].get_or_init(Box::default)
    }

    /// What is counted here for the layers.
    pub(super) fn layer_counters(&self) -> &LayerCounters {
        self.layer_counters.get_or_init(Box::default)
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
        let held = if device { None } else { crate::lock::exclusive(path)? };
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
        // A device's name says little about what is behind it next time.
        let kept_at = (!device).then(|| Reservations::path_for(path));
        let reservations = kept_at.as_deref().map_or(Ok(Reservations::default()), Reservations::load)?;
        let count = options.hosts.len();
        let disk = Self {
            path: path.to_owned(),
            file,
            size,
            gates: (0..count).map(|_| Gate::default()).collect(),
            stack: Mutex::default(),
            generation: AtomicU64::new(0),
            changing: Mutex::default(),
            reservations: Mutex::new(reservations),
            kept_at,
            ports: Mutex::default(),
            closed: Mutex::new(vec![Counts::default(); count]),
            closed_layers: Mutex::new(LayerCount::none()),
            options,
            _lock: held,
        };
        for host in disk.host_ids() {
            let may = lock(&disk.reservations).lets_write(disk.name(host));
            disk.gates[host.index()].raise(Bars::WRITES, !may);
        }
        Ok(Arc::new(disk))
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

    /// The name of a host.
    #[must_use]
    pub fn name(&self, host: HostId) -> &HostName {
        &self.options.hosts[host.index()]
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
            layer_counters: OnceLock::new(),
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
        // Whoever waits for them waits for nothing: the engine is done, and what is in the cache is the cache's.
        shared.under_way.iter().for_each(|count| count.store(0, Ordering::SeqCst));
        for (total, counters) in lock(&self.closed).iter_mut().zip(&shared.counters) {
            if let Some(counters) = counters.get() {
                total.add(counters);
            }
        }
        if let Some(counters) = shared.layer_counters.get() {
            LayerCount::add(&mut lock(&self.closed_layers), counters);
        }
    }

    /// What each host has asked of the disk since it was opened.
    #[must_use]
    pub fn counts(&self) -> Vec<Counts> {
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
        if on && bar == Bars::POWER {
            // Also what waits for something else learns it.
            ports.iter().for_each(|port| port.mailbox.send(Letter::Look));
        }
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

    /// How often the layers have changed.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The layers, and which change brought them.
    pub(super) fn stack(&self) -> (u64, Arc<Stack>) {
        let stack = lock(&self.stack);
        (self.generation(), Arc::clone(&stack))
    }

    /// Which layers the disk has.
    #[must_use]
    pub fn layers(&self) -> Layers {
        lock(&self.stack).layers.clone()
    }

    /// Gives the disk other layers. A layer that stays as it is goes on as it was; a volatile cache that goes, or gets another
    /// size, is flushed first.
    ///
    /// # Errors
    /// When a layer cannot be had, or the cache not be flushed: then all stays as it is.
    pub fn set_layers(&self, layers: Layers) -> Result<()> {
        let _alone = lock(&self.changing);
        self.replace_layers(layers)
    }

    /// Sets them; who calls this is the only one.
    fn replace_layers(&self, layers: Layers) -> Result<()> {
        let before = self.stack().1;
        let stack = Stack::build(layers, &before, self)?;
        let hosts = self.host_ids();
        self.bar(&hosts, Bars::PAUSE, true);
        let goes = |cache: &Arc<_>| stack.cache.as_ref().is_none_or(|after| !Arc::ptr_eq(cache, after));
        // A port may have it a moment longer, and nobody writes to it any more.
        let recorded = before.record.as_ref().map_or(Ok(()), |record| record.flush());
        let flushed = before.cache.as_ref().filter(|cache| goes(cache)).map_or(Ok(()), |cache| cache.drain());
        if flushed.is_ok() {
            let mut current = lock(&self.stack);
            *current = Arc::new(stack);
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
        self.bar(&hosts, Bars::PAUSE, false);
        recorded?;
        flushed.map_err(|errno| {
            Error::io(format!("the volatile cache of {} cannot be flushed", self.path.display()), errno)
        })
    }

    /// Changes some of the layers.
    ///
    /// # Errors
    /// As [`set_layers`](Self::set_layers).
    pub fn change_layers(&self, change: impl FnOnce(&mut Layers)) -> Result<()> {
        let _alone = lock(&self.changing);
        let mut layers = self.layers();
        change(&mut layers);
        self.replace_layers(layers)
    }

    /// What each layer has done since the disk was opened.
    #[must_use]
    pub fn layer_counts(&self) -> Vec<LayerCount> {
        let ports = lock(&self.ports);
        let mut counts = lock(&self.closed_layers).clone();
        ports.iter().filter_map(|port| port.layer_counters.get()).for_each(|port| LayerCount::add(&mut counts, port));
        counts
    }

    /// How often each fault has come, and how much was recorded.
    pub(super) fn hits_and_records(&self) -> (Vec<u64>, u64) {
        let stack = self.stack().1;
        let faults = stack.faults.as_ref().map_or(Vec::new(), |faults| faults.hits().collect());
        (faults, stack.record.as_ref().map_or(0, |record| record.records()))
    }

    /// Makes durable whatever is in the volatile cache.
    ///
    /// # Errors
    /// When the image cannot be written.
    pub fn flush(&self) -> Result<()> {
        let stack = self.stack().1;
        let drained = stack.cache.as_ref().map_or(Ok(()), |cache| cache.drain());
        drained.map_err(|errno| {
            Error::io(format!("the volatile cache of {} cannot be flushed", self.path.display()), errno)
        })?;
        stack.record.as_ref().map_or(Ok(()), |record| record.flush())
    }

    /// Cuts the power: when this returns, nothing reaches the image any more, and every request is answered with an error.
    /// Of the writes in the volatile cache that were not flushed, those survive that `keep` and `seed` say.
    ///
    /// # Errors
    /// When what survives cannot be written.
    pub fn cut_power(&self, keep: Keep, seed: u64) -> Result<Loss> {
        let _alone = lock(&self.changing);
        let stack = self.stack().1;
        if let Some(cache) = &stack.cache {
            cache.refuse_wishes();
        }
        self.bar(&self.host_ids(), Bars::POWER, true);
        let lost = stack.cache.as_ref().map_or(Ok(Loss::default()), |cache| cache.lose(keep, seed));
        lost.map_err(|errno| {
            Error::io(format!("cannot write to {} what survives the power cut", self.path.display()), errno)
        })
    }

    /// Gives the power back.
    pub fn restore_power(&self) {
        let _alone = lock(&self.changing);
        self.bar(&self.host_ids(), Bars::POWER, false);
    }

    /// Whether the disk has power.
    #[must_use]
    pub fn has_power(&self) -> bool {
        !self.gates.iter().any(|gate| gate.is_barred(Bars::POWER))
    }

    /// Who is registered, who has reserved the disk, who was fenced.
    #[must_use]
    pub fn reservations(&self) -> Reservations {
        lock(&self.reservations).clone()
    }

    /// Does something about reservations. When this returns, it is kept, and no host that may not write any more has a write
    /// that is not done: what it sends from now on fails.
    ///
    /// # Errors
    /// As [`Reservations::after`]; when it cannot be kept; or when there is no such host. Then nothing has changed.
    pub fn reserve(&self, action: &Action) -> Result<Reservations> {
        let _alone = lock(&self.changing);
        let host = action.host();
        if self.host(host.as_str()).is_none() {
            let known: Vec<&str> = self.hosts().iter().map(HostName::as_str).collect();
            return Err(Error::new(ErrorKind::NotFound, format!("{} knows no host {host}", self.path.display()))
                .with_hint(format!("its hosts are {}", known.join(", "))));
        }
        let before = self.reservations();
        let after = before.after(action)?;
        let (keep_out, let_in): (Vec<HostId>, Vec<HostId>) =
            self.host_ids().into_iter().partition(|host| !after.lets_write(self.name(*host)));
        // First it is so, then it is kept, and only then anybody is let in.
        self.bar(&keep_out, Bars::WRITES, true);
        if let Err(error) = self.kept_at.as_deref().map_or(Ok(()), |path| after.store(path)) {
            let as_before: Vec<HostId> =
                keep_out.into_iter().filter(|host| before.lets_write(self.name(*host))).collect();
            self.bar(&as_before, Bars::WRITES, false);
            return Err(error);
        }
        self.bar(&let_in, Bars::WRITES, false);
        *lock(&self.reservations) = after.clone();
        Ok(after)
    }

    /// How many bytes in the volatile cache would be lost without power.
    #[must_use]
    pub fn dirty(&self) -> ByteSize {
        ByteSize::new(self.stack().1.cache.as_ref().map_or(0, |cache| cache.dirty()))
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
