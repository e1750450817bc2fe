//! Being let in, and leaving: the client's file.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use blockdev::{Context, Error, ErrorKind, Result};
use nix::errno::Errno;

use super::{ConnectOptions, refused};
use crate::proto::handshake::{ASK, FILE_SIZE, LEAVE, SYNC_SIZE};
use crate::proto::{Ack, MountRequest, Places};

/// How often to look whether pfsd has answered, and whether it has noticed that a client left.
const LOOK: Duration = Duration::from_micros(100);

/// How long to wait before a lock is tried again.
const RETRY: Duration = Duration::from_millis(10);

/// Whether a pfsd serves a disk: whether one has its pid file locked.
#[must_use]
pub fn is_served(places: &Places, disk: &str) -> bool {
    // Shared, so that those who look do not take each other for a pfsd. One that starts in the very moment in which this has
    // the lock, a microsecond, would think that another runs; so this is not to be asked all the time.
    File::open(places.daemon(disk)).is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// Does what may be refused because somebody else has a lock, again and again for so long.
pub(super) fn retry<T>(limit: Duration, act: impl Fn() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    loop {
        match act() {
            Err(error) if error.errno() == Some(libc::EAGAIN) && started.elapsed() < limit => thread::sleep(RETRY),
            done => return done,
        }
    }
}

/// The file by which pfsd knows a client. That it is locked is the sign that the client lives.
#[derive(Debug)]
pub(super) struct Connection {
    path: PathBuf,
    places: Places,
    disk: String,
    /// Nothing once it was left.
    file: Option<File>,
    /// Whose it is. Its children have the file, too, and must leave the lock alone.
    process: u32,
}

impl Connection {
    /// Makes the file, asks, and waits for the answer.
    pub(super) fn open(disk: &str, options: &ConnectOptions, request: &MountRequest) -> Result<(Self, Ack)> {
        let directory = options.places.clients(disk);
        let what = || format!("cannot make {}", directory.display());
        match fs::create_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let hint =
                    "where pfsd runs there is this directory; is it another installation, or another container's?";
                return Err(Error::io(what(), error).with_hint(hint));
            }
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(Error::io(what(), error)),
            // Past the umask. Whose directory it is may do this, and then it was done.
            _ => drop(fs::set_permissions(&directory, Permissions::from_mode(0o777))),
        }
        let process = process::id();
        let path = options.places.client(disk, process);
        let started = Instant::now();
        let file = make(&path, started + options.timeout)?;
        file.try_lock()
            .map_err(|error| Error::io(format!("cannot lock {}", path.display()), io::Error::from(error)))?;
        let places = options.places.clone();
        let connection = Self { path, places, disk: disk.to_owned(), file: Some(file), process };
        let left = options.timeout.saturating_sub(started.elapsed());
        let ack = connection.ask(disk, options, request, Some(left))?;
        Ok((connection, ack))
    }

    /// Asks, and waits for the answer, for so long or until the pfsd is gone.
    pub(super) fn ask(
        &self,
        disk: &str,
        options: &ConnectOptions,
        request: &MountRequest,
        limit: Option<Duration>,
    ) -> Result<Ack> {
        let file = self.file()?;
        let what = || format!("cannot ask in {}", self.path.display());
        file.write_all_at(&request.write(), 0).context(what)?;
        // What pfsd watches the directory for.
        file.set_permissions(Permissions::from_mode(ASK)).context(what)?;
        let started = Instant::now();
        let mut gone = None;
        loop {
            if file.metadata().context(what)?.len() >= FILE_SIZE as u64 {
                let ack = self.last_ack()?;
                if ack.epoch >= request.epoch {
                    return match ack.error {
                        0 => Ok(ack),
                        error => Err(refusal(disk, error, &ack.text)),
                    };
                }
            }
            let late = match limit {
                Some(limit) => started.elapsed() >= limit,
                None if is_served(&self.places, &self.disk) => {
                    gone = None;
                    thread::sleep(RETRY);
                    false
                }
                None => gone.get_or_insert_with(Instant::now).elapsed() >= options.patience,
            };
            if late {
                return Err(self.unanswered(started.elapsed()));
            }
            thread::sleep(LOOK);
        }
    }

    fn unanswered(&self, waited: Duration) -> Error {
        let (disk, seconds) = (&self.disk, waited.as_secs_f64());
        let message = format!("nobody answered within {seconds:.1} s who asked for the disk {disk}");
        let error = Error::io(message, Errno::ETIMEDOUT);
        if is_served(&self.places, disk) {
            error.with_hint(format!("its pfsd runs, see its log in {}", self.places.logs(disk).display()))
        } else {
            let pid = self.places.daemon(disk);
            error
                .with_kind(ErrorKind::NotFound)
                .with_hint(format!("no pfsd serves it: {} is not locked", pid.display()))
        }
    }

    /// What pfsd answered last.
    pub(super) fn last_ack(&self) -> Result<Ack> {
        let mut page = [0; SYNC_SIZE];
        let what = || format!("cannot read pfsd's answer in {}", self.path.display());
        self.file()?.read_exact_at(&mut page, SYNC_SIZE as u64).context(what)?;
        Ok(Ack::parse(&page))
    }

    fn file(&self) -> Result<&File> {
        self.file.as_ref().ok_or_else(|| refused(&self.disk, libc::ENOTCONN, "the connection is closed"))
    }

    /// Leaves, and waits until pfsd has noticed.
    pub(super) fn leave(mut self, force: bool) -> Result<()> {
        if self.process != process::id() {
            let message = format!("the connection to the pfsd of {} is process {}'s", self.disk, self.process);
            return Err(Error::io(message, Errno::EPERM).with_hint("whoever connected has to leave"));
        }
        self.close(force)?;
        while self.path.exists() {
            if !is_served(&self.places, &self.disk) {
                // Nobody else will. A pfsd that starts now finds it unlocked and does the same.
                let _ = fs::remove_file(&self.path);
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Closes the file, and says so.
    fn close(&mut self, force: bool) -> Result<()> {
        let Some(file) = self.file.take().filter(|_| self.process == process::id()) else { return Ok(()) };
        let what = || format!("cannot leave by {}", self.path.display());
        // First this: pfsd tries the lock when it sees that the file is closed, and the kernel says that before it unlocks.
        file.unlock().context(what)?;
        if force {
            file.set_permissions(Permissions::from_mode(LEAVE)).context(what)?;
        }
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let Some(file) = &self.file else { return };
        // Never answered, and there is nobody who will clear up.
        let unanswered = file.metadata().is_ok_and(|metadata| metadata.len() < FILE_SIZE as u64);
        if self.process == process::id() && unanswered && !is_served(&self.places, &self.disk) {
            let _ = fs::remove_file(&self.path);
        }
        let _ = self.close(false);
    }
}

/// Makes the file. Where there is one, of an earlier process of this number or an earlier connection of this one, pfsd is
/// about to remove it.
fn make(path: &std::path::Path, until: Instant) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o644).custom_flags(libc::O_SYNC | libc::O_CLOEXEC);
    loop {
        match options.open(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && Instant::now() < until => thread::sleep(LOOK),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let hint = "if this process has no other connection to the disk, pfsd has not noticed yet that an earlier \
                            one ended; it clears up when it starts";
                return Err(Error::io(format!("cannot make {}", path.display()), error).with_hint(hint));
            }
            made => return made.context(|| format!("cannot make {}", path.display())),
        }
    }
}

/// That pfsd does not let us in.
fn refusal(disk: &str, error: i32, text: &str) -> Error {
    let errno = error.saturating_abs();
    let error = refused(disk, errno, if text.is_empty() { "it does not say why" } else { text });
    if errno == libc::ECONNREFUSED {
        return error.with_hint("it has as many clients as it can have: let one of them go first");
    }
    // The original's has errors of its own, too, and says the same of all.
    let hint =
        "is there a volume on the disk, does it have this host, and does no other client use the same host to write?";
    error.with_hint(hint)
}
