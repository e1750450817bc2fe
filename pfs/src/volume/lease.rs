//! Who writes a volume: a lease on the disk itself, so that it holds wherever the disk is seen.
//!
//! The original has no such thing: two of its writers destroy a volume without an error. Its locks reach no further than one
//! /var/run. The records of our lease lie in sectors that it never touches.
//!
//! Taking the lease needs no more than sectors that are read and written whole. Who wants it puts a *claim* into a slot of its
//! own, and then reads all slots: of two who do so at once at least one sees the other, and whoever sees another gives up. A
//! holder renews its record ten times before it would end. Whether it still lives is judged
//! - on the same boot of the same machine, by its process, and by when it was renewed last;
//! - elsewhere, whose clock means nothing here, by watching whether the record changes.
//!
//! A holder that was not able to renew in time (it was stopped, the disk hung, the machine slept) stops writing before
//! others may take it for dead, and goes on only when it finds its record untouched. There is no way to hold back a write that
//! is already with the device: seven tenths of the time must be enough for those to arrive in the rest.

mod process;
mod slots;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use blockdev::{Cancel, Context, Error, ErrorKind, Result};
use serde::Serialize;

use super::Device;
use crate::format::{Label, LeaseRecord, LeaseState};
use slots::{Records, Slots};

/// How often to try anew when others try at the same moment.
const ATTEMPTS: u32 = 20;

/// How often to look at what is watched.
const WATCH: Duration = Duration::from_millis(50);

/// How long to wait for the thread that renews a lease before looking whether it still runs.
const PATIENCE: Duration = Duration::from_secs(1);

/// The longest that a record may make others wait, whatever it says.
const EXPIRY_MAX: Duration = Duration::from_secs(60);

/// How to take a lease.
#[derive(Debug, Clone)]
pub struct LeaseOptions {
    /// Which host this is for the volume, 1 to 254; 0 where that is not known yet.
    pub host: u8,
    /// Take it from whoever holds it. They stop writing when they see it, which takes a tenth of `expiry`.
    pub force: bool,
    /// How long others wait before they take this process for dead, if they cannot see it: 1 to 60 s.
    pub expiry: Duration,
}

impl Default for LeaseOptions {
    fn default() -> Self {
        Self { host: 0, force: false, expiry: Duration::from_secs(10) }
    }
}

/// Who holds a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// The name of its program.
    pub program: String,
    /// Its process, as its own machine or container counts.
    pub pid: u32,
    /// The name of its machine or container.
    pub machine: String,
    /// Which host it is for the volume; 0 where it did not say.
    pub host: u32,
    /// Since when, in seconds since 1970 by its clock.
    pub since: u64,
}

impl Holder {
    fn of(record: &LeaseRecord) -> Self {
        Self {
            program: record.program.to_string(),
            pid: record.process.pid,
            machine: record.machine.to_string(),
            host: record.host,
            since: record.since,
        }
    }

    /// Whoever holds the lease of the volume on a device, if anybody does: they are alive, or may well be.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub fn find(device: &mut Device) -> Result<Option<Self>> {
        let boot = process::boot()?;
        let records = slots::read(device)?;
        let mut held: Vec<LeaseRecord> =
            records.into_iter().flatten().filter(|record| record.state == LeaseState::Held).collect();
        held.sort_by_key(|record| (record.generation, record.id));
        for record in held.iter().rev() {
            if judge(record, &boot)? != Life::Over {
                return Ok(Some(Self::of(record)));
            }
        }
        Ok(None)
    }
}

impl fmt::Display for Holder {
    /// `pfsd (pid 4321 on laptop) since 2026-11-22 16:20:48`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { program, pid, machine, since, .. } = self;
        let since = i64::try_from(*since).ok().and_then(|since| jiff::Timestamp::from_second(since).ok());
        let since = since.map(|since| since.to_zoned(jiff::tz::TimeZone::system()).strftime("%F %T").to_string());
        write!(f, "{program} (pid {pid} on {machine}) since {}", since.as_deref().unwrap_or("?"))
    }
}

/// The right to write a volume, for as long as this lives and [`check`](Self::check) says so.
///
/// A thread renews it. Dropping it gives it back.
#[derive(Debug)]
pub struct Lease {
    path: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Lease {
    /// Takes the lease of the volume on the file or device at `path`.
    ///
    /// Where somebody on another machine holds it, or did when that machine stopped, this watches whether they renew it, for as
    /// long as their lease says.
    ///
    /// # Errors
    /// - [`Refused`](ErrorKind::Refused): somebody holds it; the message says who and since when. Or several want it at once.
    /// - [`Interrupted`](ErrorKind::Interrupted): `cancel` was set.
    /// - When the device cannot be read or written.
    pub fn take(path: &Path, options: &LeaseOptions, cancel: &Cancel) -> Result<Self> {
        let mut slots = Slots::open(path)?;
        let mut own = Own::new(options)?;
        for _ in 0..ATTEMPTS {
            let found = Found::look(&mut slots, &own.record.boot, !options.force, cancel)?;
            if let (Some(holder), false) = (found.holder(), options.force) {
                return Err(taken(path, &holder));
            }
            if own.claim(&mut slots, &found)? {
                return Self::hold(path, own);
            }
            cancel.check("taking the lease")?;
            thread::sleep(Duration::from_millis(5 + u64::from(random::<1>()?[0] % 50)));
        }
        let busy = format!("cannot take the lease on {}: others are trying to at the same moment", path.display());
        Err(Error::refused(busy).with_hint("try again"))
    }

    /// Keeps what was taken.
    fn hold(path: &Path, own: Own) -> Result<Self> {
        let state = State { fresh_until: own.fresh_until()?, ..State::default() };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let (path, theirs) = (path.to_owned(), Arc::clone(&shared));
        let device = path.clone();
        let thread = thread::Builder::new()
            .name("lease".to_owned())
            .spawn(move || keep(&device, own, &theirs))
            .context(|| "cannot start a thread")?;
        Ok(Self { path, shared, thread: Some(thread) })
    }

    /// Says whether a write that is begun now will be over before anybody else may write. Costs nothing as long as it is
    /// renewed in time; otherwise waits until it is.
    ///
    /// # Errors
    /// [`Refused`](ErrorKind::Refused) when somebody else took it, for good; or why it cannot be renewed.
    pub fn check(&self) -> Result<()> {
        let mut state = self.shared.lock();
        let before = state.attempts;
        loop {
            if let Some(by) = &state.lost {
                let by = by.as_deref().unwrap_or("somebody");
                let message = format!("lost the lease on {}: {by} took it", self.path.display());
                return Err(
                    Error::refused(message).with_hint("nothing more is written; open the volume again to go on")
                );
            }
            if process::since_boot()? < state.fresh_until {
                return Ok(());
            }
            if let (true, Some(why)) = (state.attempts > before, &state.problem) {
                return Err(Error::new(
                    ErrorKind::Io,
                    format!("cannot renew the lease on {}: {why}", self.path.display()),
                ));
            }
            // A device may be slow for longer than a lease lasts. Nothing is written meanwhile; whoever took the lease for over
            // in that time is found by renewing it.
            state.wanted = true;
            self.shared.changed.notify_all();
            (state, _) = self.shared.changed.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner);
            if self.thread.as_ref().is_none_or(JoinHandle::is_finished) && state.lost.is_none() {
                let message = format!("nothing renews the lease on {} any more", self.path.display());
                return Err(Error::new(ErrorKind::Io, message));
            }
        }
    }

    /// Whether nobody is known to have taken it.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.check().is_ok()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // What it panicked over is on standard error; the lease then ends by itself.
            let _ = thread.join();
        }
    }
}

/// What a lease and the thread that renews it tell each other.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Until when, since boot, writing is safe.
    fresh_until: Duration,
    /// Somebody else took it, if known whom.
    lost: Option<Option<String>>,
    /// How often it was tried to renew it, and why that failed last.
    attempts: u64,
    problem: Option<String>,
    /// Renew it now; give it back.
    wanted: bool,
    stop: bool,
}

impl Shared {
    /// Every change of the state is whole, so that one who panicked does no harm.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Renews a lease until it is lost or to be given back.
fn keep(path: &Path, mut own: Own, shared: &Shared) {
    let mut slots = Slots::open(path);
    loop {
        let state = shared.lock();
        let heartbeat = own.expiry() / 10;
        let idle = |state: &mut State| !state.stop && !state.wanted;
        let (state, _) =
            shared.changed.wait_timeout_while(state, heartbeat, idle).unwrap_or_else(PoisonError::into_inner);
        let stop = state.stop;
        let fresh_until = state.fresh_until;
        drop(state);
        if stop {
            if let Ok(slots) = &mut slots {
                // What cannot be given back ends by itself.
                let _ = own.give_back(slots);
            }
            return;
        }
        if slots.is_err() {
            slots = Slots::open(path);
        }
        let outcome = match &mut slots {
            Ok(slots) => own.renew(slots, fresh_until),
            Err(error) => Err(Error::new(error.kind(), error.to_string())),
        };
        let mut state = shared.lock();
        state.wanted = false;
        state.attempts += 1;
        match outcome {
            Ok(Renewal::Until(fresh_until)) => (state.fresh_until, state.problem) = (fresh_until, None),
            Ok(Renewal::Lost(by)) => state.lost = Some(by.map(|by| by.to_string())),
            Err(error) => state.problem = Some(error.to_string()),
        }
        shared.changed.notify_all();
        if state.lost.is_some() {
            return;
        }
    }
}

enum Renewal {
    /// Writing is safe until then, since boot.
    Until(Duration),
    /// Somebody else took it.
    Lost(Option<Holder>),
}

/// Our own record.
struct Own {
    record: LeaseRecord,
    slot: usize,
}

impl Own {
    fn new(options: &LeaseOptions) -> Result<Self> {
        let expiry = options.expiry.clamp(Duration::from_secs(1), EXPIRY_MAX);
        let name = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let record = LeaseRecord {
            state: LeaseState::Claimed,
            host: options.host.into(),
            id: random()?,
            boot: process::boot()?,
            process: process::this()?,
            generation: 0,
            since: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            renewed: 0,
            renewed_at: 0,
            expiry: millis(expiry),
            machine: Label::new(name("/proc/sys/kernel/hostname").trim_end()),
            program: Label::new(name("/proc/self/comm").trim_end()),
        };
        Ok(Self { record, slot: 0 })
    }

    fn expiry(&self) -> Duration {
        Duration::from_millis(self.record.expiry)
    }

    /// Until when writing is safe: others count from when it was renewed, or later.
    fn fresh_until(&self) -> Result<Duration> {
        Ok(Duration::from_millis(self.record.renewed_at) + self.expiry() * 7 / 10)
    }

    fn write(&mut self, slots: &mut Slots) -> Result<()> {
        self.record.renewed += 1;
        self.record.renewed_at = millis(process::since_boot()?);
        slots.write(self.slot, Some(&self.record))
    }

    /// Tries to take the lease, of which all but what was `found` may be in the way. Returns whether that succeeded.
    fn claim(&mut self, slots: &mut Slots, found: &Found) -> Result<bool> {
        self.slot = found.free_slot(random::<8>()?)?;
        self.record.state = LeaseState::Claimed;
        self.record.generation = found.generation().saturating_add(1);
        self.write(slots)?;
        let now = slots.read()?;
        let ours = now[self.slot].as_ref() == Some(&self.record);
        let rival = now.iter().enumerate().any(|(slot, record)| {
            slot != self.slot && record.as_ref().is_some_and(|record| !found.knows(slot, record))
        });
        if rival || !ours {
            if ours {
                slots.write(self.slot, None)?;
            }
            return Ok(false);
        }
        self.record.state = LeaseState::Held;
        self.write(slots)?;
        for slot in found.used().filter(|slot| *slot != self.slot) {
            slots.write(slot, None)?;
        }
        Ok(true)
    }

    /// Renews the lease, which was safe to write under until then.
    fn renew(&mut self, slots: &mut Slots, fresh_until: Duration) -> Result<Renewal> {
        if let Some(lost) = self.lost(&slots.read()?) {
            return Ok(lost);
        }
        self.write(slots)?;
        let late = process::since_boot()? >= fresh_until;
        // Who meanwhile took this process for dead claimed the lease before that write: it either holds it by now, or has
        // seen the write and gives up.
        let mut left = if late { self.expiry() } else { Duration::ZERO };
        while !left.is_zero() {
            let now = slots.read()?;
            if let Some(lost) = self.lost(&now) {
                return Ok(lost);
            }
            if !now.iter().flatten().any(|record| record.state == LeaseState::Claimed) {
                break;
            }
            thread::sleep(WATCH.min(left));
            left = left.saturating_sub(WATCH);
        }
        self.fresh_until().map(Renewal::Until)
    }

    /// Whether the records say that somebody else has the lease.
    fn lost(&self, now: &Records) -> Option<Renewal> {
        let others =
            now.iter().flatten().filter(|record| record.state == LeaseState::Held && record.id != self.record.id);
        let newest = others.max_by_key(|record| (record.generation, record.id));
        let ours = now[self.slot].as_ref().is_some_and(|record| record.id == self.record.id);
        let beaten =
            newest.is_some_and(|newest| (newest.generation, newest.id) > (self.record.generation, self.record.id));
        (!ours || beaten).then(|| Renewal::Lost(newest.map(Holder::of)))
    }

    fn give_back(&self, slots: &mut Slots) -> Result<()> {
        if self.lost(&slots.read()?).is_none() {
            slots.write(self.slot, None)?;
        }
        Ok(())
    }
}

/// Whether somebody lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Alive,
    Over,
    /// It is not to be told from here, but by watching.
    Unknown,
}

fn judge(record: &LeaseRecord, boot: &[u8; 16]) -> Result<Life> {
    if record.boot != *boot {
        return Ok(Life::Unknown);
    }
    let age = millis(process::since_boot()?).saturating_sub(record.renewed_at);
    let over = age > millis(expiry(record)) || process::has_ended(record.process);
    Ok(if over { Life::Over } else { Life::Alive })
}

/// How long a record counts after it was renewed.
fn expiry(record: &LeaseRecord) -> Duration {
    Duration::from_millis(record.expiry).min(EXPIRY_MAX)
}

/// What stood in the slots, once it was clear who of them lives.
struct Found {
    records: Records,
    alive: Vec<usize>,
}

impl Found {
    /// Reads all slots, and may `watch` those of which nothing is known otherwise until they change or would have had to.
    fn look(slots: &mut Slots, boot: &[u8; 16], watch: bool, cancel: &Cancel) -> Result<Self> {
        let start = process::since_boot()?;
        let mut found = Self { records: slots.read()?, alive: Vec::new() };
        let mut watched = HashMap::new();
        for (slot, record) in
            found.records.iter().enumerate().filter_map(|(slot, record)| Some((slot, record.as_ref()?)))
        {
            match judge(record, boot)? {
                Life::Alive => found.alive.push(slot),
                Life::Over => {}
                Life::Unknown => drop(watched.insert(slot, expiry(record))),
            }
        }
        while watch && !watched.is_empty() && found.holder().is_none() {
            cancel.check("waiting whether another machine still writes the volume")?;
            thread::sleep(WATCH);
            let (now, waited) = (slots.read()?, process::since_boot()?.saturating_sub(start));
            if watched.keys().any(|slot| now[*slot] != found.records[*slot]) {
                found.records = now;
                break;
            }
            watched.retain(|_, wait| waited <= *wait);
        }
        // In doubt they live.
        found.alive.extend(watched.keys().filter(|slot| found.records[**slot].is_some()));
        Ok(found)
    }

    /// Who holds the lease and lives.
    fn holder(&self) -> Option<Holder> {
        let mut alive = self.alive.iter().filter_map(|slot| self.records[*slot].as_ref());
        alive.find(|record| record.state == LeaseState::Held).map(Holder::of)
    }

    /// Whether this is what was found in that slot, so that nobody has to mind it: they are dead, or to be driven out.
    fn knows(&self, slot: usize, record: &LeaseRecord) -> bool {
        let known = self.records[slot].as_ref();
        if self.alive.contains(&slot) {
            return known.is_some_and(|known| known.id == record.id && record.state == LeaseState::Held);
        }
        known == Some(record)
    }

    fn used(&self) -> impl Iterator<Item = usize> {
        self.records.iter().enumerate().filter(|(_, record)| record.is_some()).map(|(slot, _)| slot)
    }

    fn generation(&self) -> u64 {
        self.records.iter().flatten().map(|record| record.generation).max().unwrap_or(0)
    }

    /// A slot that nobody uses, or one of somebody dead.
    fn free_slot(&self, random: [u8; 8]) -> Result<usize> {
        let none = |slot: &usize| self.records[*slot].is_none();
        let mut free: Vec<usize> = (0..self.records.len()).filter(none).collect();
        if free.is_empty() {
            free = (0..self.records.len()).filter(|slot| !self.alive.contains(slot)).collect();
        }
        let count = free.len().max(1) as u64;
        #[allow(clippy::cast_possible_truncation, reason = "less than the number of slots")]
        let picked = free.get((u64::from_le_bytes(random) % count) as usize);
        picked.copied().ok_or_else(|| Error::refused("every slot for a lease is in use"))
    }
}

fn taken(path: &Path, holder: &Holder) -> Error {
    Error::refused(format!("{} is being written by {holder}", path.display())).with_hint(
        "end that first, or wait: what has died is noticed after some seconds. --take-over takes the volume from it",
    )
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|source| Error::new(ErrorKind::Io, "cannot get random bytes").with_source(source))?;
    Ok(bytes)
}
