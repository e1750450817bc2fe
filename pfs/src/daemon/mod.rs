//! What `pfsd` does: it mounts a volume for the processes of a database, and carries out what they ask through shared memory.
//!
//! It speaks the protocol of the original's `pfsdaemon`, so neither the database nor the original's tools know the difference.
//! Where the original falls short this does not: a worker keeps many requests in flight and never waits for one; an append
//! works; a client too many is refused; an error of the disk is an error of the request; two writers of a disk are kept apart,
//! wherever they are; and whatever a client writes into the shared memory, it harms itself alone.
//!
//! - `connections`: who is let in; `mount`: the volume, and for which hosts it is open;
//! - `slots`: the shared memory, as far as it is believed; `worker` and `session`: carrying out requests;
//! - [`control`]: what others may ask the daemon about itself; [`launch`]: starting and stopping one from outside.

mod connections;
pub mod control;
mod errno;
pub mod launch;
mod log;
mod mount;
mod session;
mod slots;
mod statistics;
mod worker;

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Seek, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use blockdev::engine::Choice;
use blockdev::{Cancel, Context, Error, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::proto::slot::{SlotState, SlotWord};
use crate::proto::{DISK_NAME_MAX, Places};
use crate::volume::{Device, Volume};

pub use connections::Client;
pub use statistics::RequestCount;

use connections::{Connections, Open, Shared};
use log::Log;
use mount::{How, Mounts};
use session::Surroundings;
use slots::Slots;
use statistics::Counters;
use worker::{Crew, Worker};

/// How many workers there can be.
pub const WORKERS_MAX: u32 = 128;

/// How often slots are looked for whose owner died, as in the original.
const SWEEP: Duration = Duration::from_secs(10);

/// How often to look whether to end.
const LOOK: Duration = Duration::from_millis(50);

/// How to serve a disk.
#[derive(Debug, Clone)]
pub struct Options {
    /// What clients call the disk.
    pub disk: String,
    /// The file or device that it is.
    pub device: PathBuf,
    /// Where clients look for the daemon.
    pub places: Places,
    /// How many workers, 1 to 128.
    pub workers: u32,
    /// Never sleep: look for requests all the time.
    pub busy_poll: bool,
    /// Flush before a change is acknowledged. The original never does.
    pub durable: bool,
    /// How I/O is done.
    pub engine: Choice,
    /// Write the log to standard error, too.
    pub echo: bool,
    /// Where else to say how it is, for Prometheus.
    pub metrics: Option<control::Endpoint>,
}

/// How long somebody who has the lock may only be looking whether it is held.
const LOOKING: Duration = Duration::from_millis(200);

/// The lock that says that a disk is served on this machine; it is held for as long as this lives.
#[derive(Debug)]
pub struct Claim {
    lock: Flock<File>,
}

impl Claim {
    /// Takes it, unless another daemon of this or the original's kind has it.
    ///
    /// # Errors
    /// [`Refused`](blockdev::ErrorKind::Refused) when one has; or when the file cannot be made.
    pub fn take(places: &Places, disk: &str) -> Result<Self> {
        if disk.is_empty() || disk.len() > DISK_NAME_MAX || disk.contains('/') || disk == "." || disk == ".." {
            let message = format!("{disk:?} cannot be the name of a disk");
            return Err(Error::invalid(message).with_hint("a disk's name is a device's below /dev: nvme1n1, loop0"));
        }
        for directory in [&places.run, &places.locks, &places.shm] {
            let what = || format!("cannot make {}", directory.display());
            if !directory.is_dir() {
                fs::create_dir_all(directory).context(what)?;
                // Databases of any user may come.
                fs::set_permissions(directory, Permissions::from_mode(0o777)).context(what)?;
            }
        }
        let path = places.daemon(disk);
        let what = || format!("cannot lock {}", path.display());
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o644).open(&path);
        let mut file = file.context(what)?;
        let started = Instant::now();
        loop {
            file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Self { lock }),
                // It may be a client that looks whether there is a daemon: that has it for an instant.
                Err((file, Errno::EWOULDBLOCK)) if started.elapsed() < LOOKING => {
                    std::thread::sleep(LOOK);
                    file
                }
                Err((_, Errno::EWOULDBLOCK)) => {
                    let pid = fs::read_to_string(&path).unwrap_or_default();
                    let message = format!("disk {disk} is served already, by process {}", pid.trim());
                    return Err(Error::refused(message).with_hint(format!("`pfsd stop {disk}` ends it")));
                }
                Err((_, errno)) => return Err(Error::io(what(), errno)),
            };
        }
    }

    /// Says which process serves it.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn sign(&mut self) -> Result<()> {
        let what = || "cannot write the pid file".to_owned();
        self.lock.set_len(0).context(what)?;
        self.lock.rewind().context(what)?;
        write!(self.lock, "{}", std::process::id()).context(what)
    }
}

/// Everything that the threads of a daemon share.
#[derive(Debug)]
pub(crate) struct State {
    disk: String,
    device: PathBuf,
    started: Instant,
    slots: Arc<Slots>,
    mounts: Arc<Mounts>,
    open: Arc<Open>,
    log: Arc<Log>,
    seen: Arc<Mutex<Vec<Client>>>,
    crew: Arc<Crew>,
    counters: Vec<Counters>,
}

/// Serves a disk until `cancel` says that it is enough. `ready` is called once clients are let in.
///
/// What clients asked and was not begun then stays where it is, for the next daemon; they wait for that.
///
/// # Errors
/// When the device cannot be opened or holds no volume, when something in the directories is in the way, or when a thread that
/// all hangs on fails.
pub fn serve(options: &Options, mut claim: Claim, cancel: &Cancel, ready: impl FnOnce()) -> Result<()> {
    claim.sign()?;
    let log = Arc::new(Log::open(&options.places.logs(&options.disk), options.echo)?);
    let hosts_max = inspect(&options.device)?;
    let slots = Arc::new(Slots::serve(&options.places, &options.disk)?);
    let how = How { path: options.device.clone(), durable: options.durable, engine: options.engine };
    let workers = options.workers.clamp(1, WORKERS_MAX) as usize;
    let crew = Arc::new(Crew::new(workers, options.busy_poll));
    let mounts = Arc::new(Mounts::new(how, cancel.clone(), Arc::clone(&crew)));
    let state = State {
        disk: options.disk.clone(),
        device: options.device.clone(),
        started: Instant::now(),
        slots,
        mounts,
        open: Arc::default(),
        log: Arc::clone(&log),
        seen: Arc::default(),
        crew,
        counters: (0..workers).map(|_| Counters::default()).collect(),
    };
    log.info(&format!("serving {} as disk {} with {workers} workers", options.device.display(), options.disk));
    let outcome = run(options, &state, hosts_max, cancel, ready);
    if let Err(error) = &outcome {
        log.error("cannot go on", error);
    }
    // Those who wait stay where they are, for the next daemon.
    if let Err(error) = state.mounts.end() {
        log.error("the volume was not given back in order", &error);
    }
    log.info("ended");
    outcome
}

/// Sees that there is a volume, and how many hosts it has room for.
fn inspect(device: &Path) -> Result<u8> {
    let volume = Volume::load(Device::open(device)?, crate::volume::Load::default())?;
    Ok(u8::try_from(volume.leader().hosts).unwrap_or(u8::MAX))
}

fn run(options: &Options, state: &State, hosts_max: u8, cancel: &Cancel, ready: impl FnOnce()) -> Result<()> {
    let shared = Shared {
        slots: Arc::clone(&state.slots),
        mounts: Arc::clone(&state.mounts),
        open: Arc::clone(&state.open),
        log: Arc::clone(&state.log),
        seen: Arc::clone(&state.seen),
    };
    let mut connections = Connections::new(&options.disk, &options.places, hosts_max, shared);
    let inotify = connections.watch()?;
    // Before any worker looks: what they ask of an earlier daemon's clients is answered with the mount that these have.
    connections.recover();
    let control = control::listen(&options.places.control(&options.disk), options.metrics.as_ref())?;
    std::thread::scope(|scope| {
        // However this ends, nobody is left waiting for it.
        let _stop = StopOnDrop(&state.crew);
        let workers = state.counters.iter().enumerate().map(|(index, counters)| {
            let around = Surroundings { disk: &state.disk, slots: &state.slots, counters, log: &state.log };
            let (of, crew, mounts) = (state.counters.len(), &*state.crew, &*state.mounts);
            let worker = Worker { index, of, crew, mounts, around };
            std::thread::Builder::new()
                .name(format!("pfsd-{index}"))
                .spawn_scoped(scope, move || worker.run())
                .context(|| "cannot start a worker")
        });
        let workers = workers.collect::<Result<Vec<_>>>()?;
        let listener = std::thread::Builder::new()
            .name("pfsd-clients".to_owned())
            .spawn_scoped(scope, move || connections.serve(&inotify, || state.crew.is_stopped()))
            .context(|| "cannot start the thread that lets clients in")?;
        std::thread::Builder::new()
            .name("pfsd-control".to_owned())
            .spawn_scoped(scope, || control.serve(state))
            .context(|| "cannot start the thread that answers questions")?;
        ready();
        let mut swept = Instant::now();
        let mut suspects = Vec::new();
        while !cancel.is_cancelled() {
            std::thread::sleep(LOOK);
            if swept.elapsed() >= SWEEP {
                sweep(state);
                state.slots.mend(&mut suspects);
                swept = Instant::now();
            }
            if let Some(dead) = workers.iter().position(std::thread::ScopedJoinHandle::is_finished) {
                return Err(Error::new(blockdev::ErrorKind::Io, format!("worker {dead} died")));
            }
            if listener.is_finished() {
                break;
            }
        }
        state.crew.stop();
        match listener.join() {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::new(blockdev::ErrorKind::Io, "the thread that lets clients in died")),
        }
    })
}

struct StopOnDrop<'a>(&'a Crew);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Frees the slots that nobody will ever free: of clients that are gone, and of processes that died over them.
fn sweep(state: &State) {
    state.slots.reclaim(|word| match word.state() {
        Some(SlotState::Alloc | SlotState::WaitRelease) => !state.open.has(word) || is_dead(word),
        _ => !state.open.has(word),
    });
}

/// Whether the process died that owns a slot. A tool's may be in another pid namespace.
fn is_dead(word: SlotWord) -> bool {
    let owner = word.owner();
    let tool = owner.connection % 2 == 1;
    !tool && owner.pid > 0 && kill(Pid::from_raw(owner.pid), None::<Signal>) == Err(Errno::ESRCH)
}
