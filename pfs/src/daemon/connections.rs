//! Who is connected: clients are let in, promoted, and forgotten once they are gone.
//!
//! A client is there for as long as it keeps its file locked. All this happens on one thread, which watches the directory of
//! the clients' files.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use blockdev::{Context, Error, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent};
use serde::{Deserialize, Serialize};
use std::os::fd::AsFd;

use crate::proto::handshake::{ASK, FILE_SIZE, LEAVE, SYNC_SIZE};
use crate::proto::slot::{SlotState, SlotWord};
use crate::proto::{
    Ack, CLUSTER, ConnectionId, MountEpoch, MountFlags, MountId, MountRequest, Places, RegionNo, VERSION,
};

use super::errno::errno;
use super::log::Log;
use super::mount::{Hosts, MOUNT, Mounts, Role};
use super::slots::Slots;

/// How often to look whether the daemon is to end.
const LOOK: u16 = 500;

/// How often to look whether clients are still there. The kernel may say that a file is closed before it is unlocked, and then
/// nothing more.
const SWEEP: Duration = Duration::from_secs(5);

/// How often to look whether requests of a client that is gone have ended.
const WAIT: Duration = Duration::from_micros(100);

/// Which connections there are, for those who only want to know that.
#[derive(Debug, Default)]
pub(super) struct Open(AtomicU32);

impl Open {
    fn set(&self, id: ConnectionId, open: bool) {
        let bit = 1 << id.raw();
        if open {
            self.0.fetch_or(bit, Ordering::AcqRel)
        } else {
            self.0.fetch_and(!bit, Ordering::AcqRel)
        };
    }

    /// Whether whoever a slot says owns it is connected.
    pub(super) fn has(&self, word: SlotWord) -> bool {
        ConnectionId::new(word.owner().connection.into())
            .is_some_and(|id| self.0.load(Ordering::Acquire) & (1 << id.raw()) != 0)
    }
}

/// A client, as others see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Client {
    /// The number of its connection: even ones are databases', odd ones tools'.
    pub connection: u8,
    /// The process that connected, as its own pid namespace counts.
    pub pid: u32,
    /// Which host of the volume it is.
    pub host: u8,
    /// Whether it may write.
    pub writes: bool,
    /// Whether it is a tool's.
    pub tool: bool,
}

impl Client {
    /// As what it mounts the volume.
    fn role(&self) -> Role {
        Role { host: self.host, writes: self.writes, tool: self.tool }
    }
}

/// Who lets clients in.
#[derive(Debug)]
pub(super) struct Connections {
    disk: String,
    places: Places,
    directory: PathBuf,
    /// How many hosts the volume has room for.
    hosts_max: u8,
    hosts: Hosts,
    table: BTreeMap<ConnectionId, Client>,
    slots: Arc<Slots>,
    mounts: Arc<Mounts>,
    open: Arc<Open>,
    log: Arc<Log>,
    /// The table, for those who ask.
    seen: Arc<std::sync::Mutex<Vec<Client>>>,
}

/// What is shared with those who let clients in.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    pub(super) slots: Arc<Slots>,
    pub(super) mounts: Arc<Mounts>,
    pub(super) open: Arc<Open>,
    pub(super) log: Arc<Log>,
    pub(super) seen: Arc<std::sync::Mutex<Vec<Client>>>,
}

/// A client's file, as it stands.
#[derive(Debug)]
struct Handshake {
    file: File,
    mode: u32,
    request: Option<MountRequest>,
    ack: Option<Ack>,
}

impl Connections {
    pub(super) fn new(disk: &str, places: &Places, hosts_max: u8, shared: Shared) -> Self {
        let Shared { slots, mounts, open, log, seen } = shared;
        Self {
            disk: disk.to_owned(),
            directory: places.clients(disk),
            places: places.clone(),
            hosts_max,
            hosts: Hosts::default(),
            table: BTreeMap::new(),
            slots,
            mounts,
            open,
            log,
            seen,
        }
    }

    /// Begins to watch for clients.
    ///
    /// # Errors
    /// When their directory cannot be made or watched.
    pub(super) fn watch(&self) -> Result<Inotify> {
        let what = || format!("cannot watch {}", self.directory.display());
        match fs::create_dir(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(Error::io(what(), error)),
            _ => {}
        }
        fs::set_permissions(&self.directory, Permissions::from_mode(0o777)).context(what)?;
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).context(what)?;
        let events = AddWatchFlags::IN_ATTRIB | AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_ONLYDIR;
        inotify.add_watch(&self.directory, events).context(what)?;
        Ok(inotify)
    }

    /// Lets clients in and forgets them, until `stop` says that it is enough.
    ///
    /// # Errors
    /// When the directory cannot be watched any more.
    pub(super) fn serve(&mut self, inotify: &Inotify, stop: impl Fn() -> bool) -> Result<()> {
        let what = format!("cannot watch {} any more", self.directory.display());
        let mut swept = Instant::now();
        while !stop() {
            if swept.elapsed() >= SWEEP {
                let known = self.table.values().map(|client| client.pid);
                let left: Vec<u32> = known.filter(|pid| !self.is_locked(*pid)).collect();
                left.into_iter().for_each(|pid| self.gone(pid));
                swept = Instant::now();
            }
            let mut ready = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, PollTimeout::from(LOOK)) {
                Ok(0) | Err(Errno::EINTR) => continue,
                Ok(_) => {}
                Err(errno) => return Err(Error::io(what, errno)),
            }
            match inotify.read_events() {
                Ok(events) => events.into_iter().for_each(|event| self.take(&event)),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => return Err(Error::io(what, errno)),
            }
        }
        Ok(())
    }

    fn take(&mut self, event: &InotifyEvent) {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            // What was not told is found by looking.
            return self.look_at_all();
        }
        let Some(pid) = event.name.as_deref().and_then(pid_of) else { return };
        if event.mask.contains(AddWatchFlags::IN_ATTRIB) {
            self.asked(pid);
        } else if event.mask.contains(AddWatchFlags::IN_CLOSE_WRITE) && !self.is_locked(pid) {
            self.gone(pid);
        }
    }

    fn look_at_all(&mut self) {
        for pid in self.files() {
            if self.is_locked(pid) { self.asked(pid) } else { self.gone(pid) }
        }
    }

    /// The clients that have a file.
    fn files(&self) -> Vec<u32> {
        let Ok(entries) = fs::read_dir(&self.directory) else { return Vec::new() };
        entries.flatten().filter_map(|entry| pid_of(&entry.file_name())).collect()
    }

    /// A client wants something.
    fn asked(&mut self, pid: u32) {
        let Some(handshake) = self.read(pid) else { return };
        match (handshake.mode, handshake.request) {
            (LEAVE, _) => self.gone(pid),
            (ASK, Some(request)) => {
                let known = handshake.ack.filter(|ack| self.is_of(ack.connection, pid));
                match known {
                    Some(ack) if ack.epoch < request.epoch => self.remount(&handshake.file, pid, &request, ack),
                    Some(_) => {}
                    None => self.accept(&handshake.file, pid, &request),
                }
            }
            _ => {}
        }
    }

    /// Whether a connection is that of a process.
    fn is_of(&self, connection: Option<ConnectionId>, pid: u32) -> bool {
        connection.and_then(|id| self.table.get(&id)).is_some_and(|client| client.pid == pid)
    }

    /// Lets a client in, or tells it why not.
    fn accept(&mut self, file: &File, pid: u32, request: &MountRequest) {
        let refuse = |errno, text: &str| Ack::refusal(request.epoch, errno, text);
        let tool = request.flags.has(MountFlags::TOOL);
        let free = ConnectionId::all(tool).find(|id| !self.table.contains_key(id));
        let ack = if request.version != VERSION {
            refuse(libc::EPROTO, &format!("Unrecognized version : {}", request.version))
        } else if let Some(id) = free {
            match self.let_in(id, pid, request) {
                Ok(()) => self.ack(id, request.flags, request.epoch),
                Err(error) => {
                    self.log.error(&format!("process {pid} cannot mount"), &error);
                    refuse(errno(&error), "Mount failed!")
                }
            }
        } else {
            self.log.client(&format!("process {pid} cannot connect: there are as many as there can be"));
            refuse(libc::ECONNREFUSED, "Too many connections!")
        };
        self.answer(file, pid, &ack);
    }

    /// Mounts for a client, under a number.
    fn let_in(&mut self, id: ConnectionId, pid: u32, request: &MountRequest) -> Result<()> {
        if request.cluster != CLUSTER || request.disk != self.disk {
            let message =
                format!("it wants disk {} of {}, this is {} of {CLUSTER}", request.disk, request.cluster, self.disk);
            return Err(Error::io(message, Errno::EINVAL));
        }
        let host = match request.host {
            0 => self.hosts_max,
            host => u8::try_from(host).ok().filter(|host| (1..=self.hosts_max).contains(host)).ok_or_else(|| {
                let message = format!("there can be no host {host}: the volume has room for {}", self.hosts_max);
                Error::io(message, Errno::EINVAL)
            })?,
        };
        let (writes, tool) = (request.flags.has(MountFlags::WRITE), request.flags.has(MountFlags::TOOL));
        self.hosts.acquire(&self.mounts, Role { host, writes, tool })?;
        let client = Client { connection: id.raw(), pid, host, writes, tool };
        self.log.info(&format!(
            "process {pid} mounts for {} as host {host}, connection {id}",
            if writes { "writing" } else { "reading" }
        ));
        self.table.insert(id, client);
        self.open.set(id, true);
        self.show();
        Ok(())
    }

    /// Lets a client write that only read.
    fn remount(&mut self, file: &File, pid: u32, request: &MountRequest, before: Ack) {
        let Some(id) = before.connection else { return };
        let mut ack = Ack { epoch: request.epoch, ..before };
        let outcome = self.promote(id, request, ack.flags);
        match outcome {
            Ok(()) => {
                ack.flags = request.flags.without(MountFlags::TOOL).with(MountFlags::PFSD);
                ack.remount_error = 0;
            }
            Err(error) => {
                self.log.error(&format!("process {pid} cannot mount for writing"), &error);
                ack.remount_error = -errno(&error);
                "Remount failed!".clone_into(&mut ack.text);
            }
        }
        self.answer(file, pid, &ack);
    }

    fn promote(&mut self, id: ConnectionId, request: &MountRequest, now: MountFlags) -> Result<()> {
        let Some(client) = self.table.get_mut(&id) else { return Ok(()) };
        if request.flags.with(MountFlags::PFSD) == now.with(MountFlags::PFSD) {
            return Ok(());
        }
        let host = if request.host == 0 { i32::from(client.host) } else { request.host };
        let wanted = MountFlags::WRITE.with(MountFlags::LOG);
        if host != i32::from(client.host) || client.writes || client.tool || !request.flags.has(wanted) {
            let message = format!("connection {id} cannot become {:?} of host {host}", request.flags);
            return Err(Error::io(message, Errno::EINVAL));
        }
        self.hosts.promote(&self.mounts, client.host)?;
        client.writes = true;
        self.log.info(&format!("process {} mounts for writing now, connection {id}", client.pid));
        self.show();
        Ok(())
    }

    fn ack(&self, id: ConnectionId, flags: MountFlags, epoch: MountEpoch) -> Ack {
        let regions: Vec<String> =
            RegionNo::all().map(|region| self.places.region(&self.disk, region).display().to_string()).collect();
        Ack {
            error: 0,
            text: String::new(),
            connection: Some(id),
            regions: std::array::from_fn(|region| regions[region].clone()),
            mount: MOUNT,
            epoch,
            flags: flags.without(MountFlags::TOOL).with(MountFlags::PFSD),
            remount_error: 0,
        }
    }

    fn answer(&self, file: &File, pid: u32, ack: &Ack) {
        if let Err(error) = file.write_all_at(&ack.write(), SYNC_SIZE as u64) {
            self.log.warn(&format!("process {pid} cannot be answered: {error}"));
        }
    }

    /// A client is gone, or wants to be: what it asked ends, and nothing is left of it.
    fn gone(&mut self, pid: u32) {
        let id = self
            .table
            .values()
            .find(|client| client.pid == pid)
            .and_then(|client| ConnectionId::new(client.connection.into()));
        if let Some(id) = id {
            self.open.set(id, false);
            self.end_requests(id);
            if let Some(client) = self.table.remove(&id) {
                if let Err(error) = self.hosts.release(&self.mounts, client.role()) {
                    self.log.error("the volume was not given back in order", &error);
                }
                self.log.info(&format!("process {pid} is gone, connection {id}"));
            }
            self.show();
        }
        let path = self.places.client(&self.disk, pid);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                self.log.warn(&format!("cannot remove {}: {error}", path.display()));
            }
            _ => {}
        }
    }

    /// Waits until no worker is at a request of a connection, and frees its slots.
    fn end_requests(&self, id: ConnectionId) {
        let theirs = |word: SlotWord| word.owner().connection == i16::from(id.raw());
        while self.slots.reclaim(theirs) > 0 {
            std::thread::sleep(WAIT);
        }
    }

    /// Takes over the clients of an earlier daemon: those that are there go on under the same numbers.
    pub(super) fn recover(&mut self) {
        let mut new = Vec::new();
        for pid in self.files() {
            let locked = self.is_locked(pid);
            let Some(handshake) = self.read(pid) else {
                if !locked {
                    self.gone(pid);
                }
                continue;
            };
            let connection = handshake.ack.as_ref().and_then(|ack| ack.connection);
            if !locked || handshake.mode == LEAVE {
                if let Some(id) = connection {
                    self.end_requests(id);
                }
                self.gone(pid);
                continue;
            }
            match (handshake.request, handshake.ack, connection) {
                (Some(request), Some(ack), Some(id)) => self.readmit(&handshake.file, pid, id, &request, &ack),
                (Some(_), ..) => new.push(pid),
                (None, ..) => {}
            }
        }
        // Whoever was never answered comes after all that were.
        new.into_iter().for_each(|pid| self.asked(pid));
        // What is left belongs to nobody.
        let open = Arc::clone(&self.open);
        self.slots.reclaim(|word| !open.has(word) && word.state() != Some(SlotState::WaitReply));
    }

    fn readmit(&mut self, file: &File, pid: u32, id: ConnectionId, request: &MountRequest, ack: &Ack) {
        let remounting = ack.epoch < request.epoch;
        let tool = if id.is_tool() { MountFlags::TOOL } else { MountFlags::default() };
        let flags = if remounting { request.flags } else { ack.flags.with(tool) };
        let outcome = if self.table.contains_key(&id) {
            Err(Error::io(format!("two clients say that they are connection {id}"), Errno::EEXIST))
        } else {
            self.let_in(id, pid, &MountRequest { flags, ..request.clone() })
        };
        let answer = match outcome {
            Ok(()) if remounting => self.ack(id, request.flags, request.epoch),
            Ok(()) => return,
            Err(error) => {
                self.log.error(&format!("process {pid}, a client of an earlier daemon, cannot go on"), &error);
                let errno = -errno(&error);
                Ack { mount: MountId(-1), epoch: request.epoch, remount_error: errno, ..ack.clone() }
            }
        };
        self.answer(file, pid, &answer);
    }

    /// Reads a client's file. Nothing where there is none, or it is none.
    fn read(&self, pid: u32) -> Option<Handshake> {
        let path = self.places.client(&self.disk, pid);
        // Anybody can put anything into this directory.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(path)
            .ok()?;
        let metadata = file.metadata().ok()?;
        if !metadata.is_file() {
            return None;
        }
        let page = |at: usize| {
            let mut page = [0; SYNC_SIZE];
            file.read_exact_at(&mut page, at as u64).is_ok().then_some(page)
        };
        let request = page(0).map(|page| MountRequest::parse(&page));
        let ack = (metadata.len() >= FILE_SIZE as u64).then(|| page(SYNC_SIZE)).flatten().map(|page| Ack::parse(&page));
        Some(Handshake { mode: metadata.mode() & 0o777, request, ack, file })
    }

    /// Whether a client is there: it keeps its file locked.
    fn is_locked(&self, pid: u32) -> bool {
        let path = self.places.client(&self.disk, pid);
        // For reading: to close a file that was open for writing would be an event.
        let options = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
        let Ok(file) = options else { return false };
        matches!(Flock::lock(file, FlockArg::LockExclusiveNonblock), Err((_, Errno::EWOULDBLOCK)))
    }

    /// Lets others see who is connected.
    fn show(&self) {
        *self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = self.table.values().cloned().collect();
    }
}

/// The process whose file is called so.
fn pid_of(name: &OsStr) -> Option<u32> {
    let name = Path::new(name);
    (name.extension()? == "pid").then(|| name.file_stem()?.to_str()?.parse().ok())?
}
