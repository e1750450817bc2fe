//! Sixty-four processes under load on one pfsd, as a database's are, while they and the daemon are killed at random. Every
//! block says who wrote it and when, so that a lost, repeated or torn write is told from what may be.
//!
//! It is a program of its own, with one thread: processes are forked from it. `ONEDISK_PFSD_SECONDS` says for how long, with
//! our pfsd and then with the original's where `ONEDISK_PFS_ORIGINAL` names the directory in which it is.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]
#![allow(clippy::print_stdout, reason = "a test says so when it passes")]

mod common;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use blockdev::stamp::{self, Expected, Stamp};
use blockdev::{ByteOffset, stamp::Fault};
use common::daemon::{Daemon, Kind};
use common::forked;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, setpgid};
use pfs::client::{Client, File};
use pfs::proto::{MountFlags, OpenFlags};

/// Connections: as many as a daemon has for databases.
const GROUPS: usize = 7;

/// Processes that share each, besides the one that connected: with those, sixty-four. One group has one more.
const BACKENDS: usize = 57;

/// Blocks that each of them writes, and how large they are.
const BLOCKS: usize = 8;
const BLOCK: usize = 8192;

/// What all processes see.
#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    /// What some process found wrong. The first says it on standard error.
    failures: AtomicU32,
    writes: AtomicU64,
    reads: AtomicU64,
    changes: AtomicU64,
    /// Tells this run's stamps from others.
    seed: AtomicU64,
    pids: [AtomicU32; BACKENDS],
    /// For each block the last generation that was begun, and the last that was acknowledged.
    begun: [[AtomicU64; BLOCKS]; BACKENDS],
    acknowledged: [[AtomicU64; BLOCKS]; BACKENDS],
}

impl Shared {
    /// Zeroes that all children have in common with this process.
    fn new() -> &'static Self {
        let size = std::num::NonZeroUsize::new(size_of::<Self>()).unwrap();
        let (protection, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED);
        // SAFETY: new memory, never unmapped; all zeroes is a value of every atomic.
        unsafe { mmap_anonymous(None, size, protection, flags).unwrap().cast::<Self>().as_ref() }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire) || self.failures.load(Ordering::Acquire) > 0
    }
}

/// The backends of a group.
fn backends_of(group: usize) -> impl Iterator<Item = usize> {
    (0..BACKENDS).filter(move |backend| backend % GROUPS == group)
}

fn offset(backend: usize, block: usize) -> u64 {
    ((backend * BLOCKS + block) * BLOCK) as u64
}

/// Forks. What goes wrong in the child is counted, whoever waits for it.
fn spawn(shared: &Shared, work: impl FnOnce()) -> Pid {
    forked::spawn(|| {
        let failed = Failed(shared);
        work();
        std::mem::forget(failed);
    })
}

/// Counts a failure, unless it is forgotten.
struct Failed<'a>(&'a Shared);

impl Drop for Failed<'_> {
    fn drop(&mut self) {
        self.0.failures.fetch_add(1, Ordering::AcqRel);
    }
}

/// What connects and starts others: a postmaster.
fn lead(daemon: &Daemon, shared: &'static Shared, group: usize) {
    let host = i32::try_from(group).unwrap() + 1;
    let client = Client::connect(&daemon.disk, &daemon.options(host, MountFlags::READ_WRITE)).unwrap();
    let file = client.open(daemon.path("data"), OpenFlags(libc::O_RDWR), 0).unwrap();
    let start = |backend: usize| {
        let pid = spawn(shared, || serve(daemon, shared, &client, &file, backend));
        shared.pids[backend].store(pid.as_raw().cast_unsigned(), Ordering::Release);
        pid
    };
    let mut running: Vec<(usize, Pid)> = backends_of(group).map(|backend| (backend, start(backend))).collect();
    while !running.is_empty() {
        let status = waitpid(None, None).unwrap();
        let place = running.iter().position(|(_, pid)| Some(*pid) == status.pid()).unwrap();
        let (backend, pid) = running.swap_remove(place);
        match status {
            WaitStatus::Signaled(_, Signal::SIGKILL, _) => {
                // What it wrote must not come after what the next one writes.
                client.abort(pid.as_raw().cast_unsigned()).unwrap();
                if !shared.stopped() {
                    running.push((backend, start(backend)));
                }
            }
            status => assert_eq!(status, WaitStatus::Exited(pid, 0)),
        }
    }
    client.umount().unwrap();
}

/// What one backend does until it is told to stop.
fn serve(daemon: &Daemon, shared: &Shared, client: &Client, inherited: &File, backend: usize) {
    let mut random = fastrand::Rng::with_seed(u64::from(std::process::id()));
    let own = client.open(daemon.path("data"), OpenFlags(libc::O_RDWR), 0).unwrap();
    let file = if random.bool() { inherited } else { &own };
    let mut buffer = vec![0; BLOCK];
    // What an earlier process of this name had begun and nobody acknowledged is done again.
    for block in 0..BLOCKS {
        write(shared, client, file, backend, block, &mut buffer);
    }
    while !shared.stopped() {
        match random.u32(..100) {
            0..50 => write(shared, client, file, backend, random.usize(..BLOCKS), &mut buffer),
            50..95 => read(shared, client, file, random.usize(..BACKENDS), random.usize(..BLOCKS), &mut buffer),
            _ => change(daemon, shared, client, backend),
        }
    }
}

fn write(shared: &Shared, client: &Client, file: &File, backend: usize, block: usize, buffer: &mut [u8]) {
    let (seed, at) = (shared.seed.load(Ordering::Relaxed), offset(backend, block));
    let generation = shared.begun[backend][block].load(Ordering::Acquire) + 1;
    stamp::write(buffer, Stamp { seed, offset: ByteOffset::new(at), generation });
    shared.begun[backend][block].store(generation, Ordering::Release);
    assert_eq!(client.pwrite(file, at, buffer).unwrap(), BLOCK);
    shared.acknowledged[backend][block].store(generation, Ordering::Release);
    shared.writes.fetch_add(1, Ordering::Relaxed);
}

/// What is wrong with a block, if something is. A block that somebody may be writing at the moment may be torn.
fn look(shared: &Shared, client: &Client, file: &File, place: (usize, usize), buffer: &mut [u8]) -> Option<Fault> {
    let (backend, block) = place;
    let at = offset(backend, block);
    let acknowledged = shared.acknowledged[backend][block].load(Ordering::Acquire);
    assert_eq!(client.pread(file, at, buffer).unwrap(), BLOCK);
    let newest = shared.begun[backend][block].load(Ordering::Acquire);
    let offset = ByteOffset::new(at);
    let expected = Expected { seed: shared.seed.load(Ordering::Relaxed), offset, acknowledged, newest };
    match stamp::check(buffer, &expected) {
        Err(Fault::Torn { .. }) if newest > acknowledged => None,
        outcome => outcome.err(),
    }
}

fn read(shared: &Shared, client: &Client, file: &File, backend: usize, block: usize, buffer: &mut [u8]) {
    let fault = look(shared, client, file, (backend, block), buffer);
    assert_eq!(fault, None, "block {block} of backend {backend}");
    shared.reads.fetch_add(1, Ordering::Relaxed);
}

/// Makes, renames and removes a file of its own. What an earlier process or an earlier daemon did of that and nobody
/// acknowledged may have been done.
fn change(daemon: &Daemon, shared: &Shared, client: &Client, backend: usize) {
    let (name, other) = (daemon.path(&format!("own/{backend}")), daemon.path(&format!("own/{backend}-renamed")));
    let or_done = |outcome: blockdev::Result<()>| match outcome {
        Err(error) if error.errno() == Some(libc::ENOENT) => {}
        outcome => outcome.unwrap(),
    };
    let file = client.create(&name).unwrap();
    client.pwrite(&file, 0, &[1; 100]).unwrap();
    or_done(client.rename(&name, &other));
    or_done(client.ftruncate(&file, 10_000));
    or_done(client.unlink(&other));
    shared.changes.fetch_add(1, Ordering::Relaxed);
}

/// Waits until all that a group had asked is done, and the daemon has forgotten it.
fn forgotten(daemon: &Daemon, leader: Pid) {
    let name = format!("{leader}.pid");
    let started = Instant::now();
    while daemon.clients().contains(&name) {
        assert!(started.elapsed() < Duration::from_secs(30), "{name} is still there");
        sleep(Duration::from_millis(1));
    }
}

fn run(kind: Kind, time: Duration) -> String {
    let shared = Shared::new();
    let mut random = fastrand::Rng::new();
    shared.seed.store(random.u64(..), Ordering::Relaxed);
    let mut daemon = Daemon::new(kind, 2);
    let client = daemon.connect();
    client.mkdir(daemon.path("own")).unwrap();
    let file = client.create(daemon.path("data")).unwrap();
    client.fallocate(&file, 0, 0, offset(BACKENDS, 0)).unwrap();
    drop(file);
    client.umount().unwrap();

    let start = |daemon: &Daemon, group| {
        spawn(shared, || {
            setpgid(Pid::from_raw(0), Pid::from_raw(0)).unwrap();
            lead(daemon, shared, group);
        })
    };
    let mut leaders: Vec<Pid> = (0..GROUPS).map(|group| start(&daemon, group)).collect();
    let (started, mut backends, mut groups, mut daemons) = (Instant::now(), 0, 0, 0);
    while started.elapsed() < time && !shared.stopped() {
        sleep(Duration::from_millis(random.u64(20..200)));
        match random.u32(..100) {
            0..80 => {
                let pid = shared.pids[random.usize(..BACKENDS)].load(Ordering::Acquire);
                if pid != 0 {
                    // It may be gone already, with its group.
                    backends += u32::from(kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).is_ok());
                }
            }
            80..88 => {
                let group = random.usize(..GROUPS);
                let leader = leaders[group];
                backends_of(group).for_each(|backend| shared.pids[backend].store(0, Ordering::Release));
                // It may not have come so far as to lead a group.
                let _ = killpg(leader, Signal::SIGKILL);
                let _ = kill(leader, Signal::SIGKILL);
                waitpid(leader, None).unwrap();
                forgotten(&daemon, leader);
                leaders[group] = start(&daemon, group);
                groups += 1;
            }
            _ => {
                daemon.stop(if random.bool() { Signal::SIGKILL } else { Signal::SIGINT });
                sleep(Duration::from_millis(random.u64(..300)));
                daemon.start();
                daemons += 1;
            }
        }
    }
    shared.stop.store(true, Ordering::Release);
    for leader in leaders {
        assert_eq!(waitpid(leader, None).unwrap(), WaitStatus::Exited(leader, 0));
    }
    assert_eq!(shared.failures.load(Ordering::Acquire), 0);

    let client = daemon.connect();
    let file = client.open(daemon.path("data"), OpenFlags(0), 0).unwrap();
    let mut buffer = vec![0; BLOCK];
    for place in (0..BACKENDS).flat_map(|backend| (0..BLOCKS).map(move |block| (backend, block))) {
        assert_eq!(look(shared, &client, &file, place, &mut buffer), None, "{place:?}");
    }
    client.umount().unwrap();
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (writes, reads, changes) = (count(&shared.writes), count(&shared.reads), count(&shared.changes));
    assert!(writes > 0 && reads > 0 && changes > 0);
    daemon.end();
    format!(
        "{writes} writes, {reads} reads, {changes} changes of names; {backends} processes killed, {groups} connections, \
         {daemons} daemons"
    )
}

fn main() {
    let seconds = std::env::var("ONEDISK_PFSD_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(15);
    for kind in [Kind::Ours, Kind::Original] {
        if let Some(why) = kind.missing() {
            tests::say_skipped(&format!("processes: {kind}"), why);
            continue;
        }
        let done = run(kind, Duration::from_secs(seconds));
        println!("test {kind} under load, with kills ... ok: {done}");
    }
}
