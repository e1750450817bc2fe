//! Starting and stopping a daemon from outside, so that success is proven.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use blockdev::{Cancel, Context, Error, ErrorKind, FileId, Result, loopdev};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::proto::Places;
use crate::volume::hostlock;

use super::control::Status;

/// How often to look whether it is so far.
const LOOK: Duration = Duration::from_millis(20);

/// How much of what a daemon said last goes into an error, in lines.
const LAST_WORDS: usize = 5;

/// The process that serves a disk on this machine, as its pid file says: of this or the original's kind.
///
/// # Errors
/// When the file cannot be looked at.
pub fn running(places: &Places, disk: &str) -> Result<Option<u32>> {
    let path = places.daemon(disk);
    let what = || format!("cannot look at {}", path.display());
    let file = match OpenOptions::new().read(true).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(what(), error)),
    };
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(None),
        Err((_, Errno::EWOULDBLOCK)) => {
            let text = fs::read_to_string(&path).context(what)?;
            // One that has not signed yet, or is the original's, whose text says which process made it.
            Ok(Some(text.trim().parse().unwrap_or(0)))
        }
        Err((_, errno)) => Err(Error::io(what(), errno)),
    }
}

/// By what name a daemon of this machine calls the disk that it serves the volume on the file or device `volume` as, if one
/// does: of this kind, which says what it serves, or the original's, which serves the device of that name.
#[must_use]
pub fn serving(places: &Places, volume: &Path) -> Option<String> {
    let mut names = Vec::new();
    let mut ids: Vec<FileId> = fs::metadata(volume).map(|metadata| FileId::of(&metadata)).into_iter().collect();
    // A loop device, or the file that one is attached to: whichever the daemon has.
    let devices = loopdev::find(volume).unwrap_or_default();
    for path in devices.iter().map(|device| device.path.as_path()).chain([volume]) {
        ids.extend(fs::metadata(path).map(|metadata| FileId::of(&metadata)));
        if path.starts_with("/dev") {
            names.extend(hostlock::names(path).unwrap_or_default());
        }
    }
    ids.extend(devices.iter().filter_map(|device| device.file));
    let serves = |disk: &str| {
        let said = Status::ask(places, disk).ok();
        let id = said.and_then(|status| fs::metadata(status.device).ok()).map(|metadata| FileId::of(&metadata));
        id.map_or_else(|| names.iter().any(|name| name == disk), |id| ids.contains(&id))
    };
    let mut disks = disks(places);
    disks.retain(|disk| running(places, disk).is_ok_and(|process| process.is_some()));
    disks.into_iter().find(|disk| serves(disk))
}

/// The disks that daemons left pid files of, whether or not they still run.
fn disks(places: &Places) -> Vec<String> {
    let Ok(entries) = fs::read_dir(&places.run) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| Some(name.strip_prefix("pfsd_")?.strip_suffix(".pid")?.to_owned())).collect()
}

/// Starts a daemon in the background, and waits until it lets clients in.
///
/// # Errors
/// When one serves the disk already, when it ends at once (the error says what it said last), or does not get so far in time.
pub fn start(program: &Path, arguments: &[String], places: &Places, disk: &str, patience: Duration) -> Result<Status> {
    if let Some(pid) = running(places, disk)? {
        return Err(Error::refused(format!("disk {disk} is served already, by process {pid}"))
            .with_hint(format!("`pfsd stop {disk}` ends it, `pfsd status {disk}` says more")));
    }
    let what = || format!("cannot start {}", program.display());
    let said = said_in(places, disk)?;
    let errors = File::create(&said).context(what)?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors)
        .spawn()
        .context(what)?;
    let deadline = Instant::now() + patience;
    loop {
        // Itself ends at once: what it leaves behind serves.
        let ended = child.try_wait().context(what)?;
        if let Ok(status) = Status::ask(places, disk) {
            let _ = child.wait();
            let _ = fs::remove_file(&said);
            return Ok(status);
        }
        let failed = ended.is_some_and(|status| !status.success());
        let nobody = ended.is_some() && running(places, disk)?.is_none();
        if failed || nobody || Instant::now() > deadline {
            let why = if failed || nobody { "it ended" } else { "it does not let clients in" };
            let words = fs::read_to_string(&said).unwrap_or_default();
            let words: Vec<&str> = words.lines().rev().take(LAST_WORDS).collect();
            let words: Vec<&str> = words.into_iter().rev().collect();
            let _ = fs::remove_file(&said);
            let message = format!("the pfsd of disk {disk} did not start: {why}");
            let error = Error::new(ErrorKind::Io, message);
            return Err(match words.as_slice() {
                [] => error.with_hint(format!("its log is in {}", places.logs(disk).display())),
                words => error.with_source(words.join("\n")),
            });
        }
        std::thread::sleep(LOOK);
    }
}

fn said_in(places: &Places, disk: &str) -> Result<PathBuf> {
    fs::create_dir_all(&places.run).context(|| format!("cannot make {}", places.run.display()))?;
    Ok(places.run.join(format!("pfsd_{disk}.start")))
}

/// Asks the daemon that serves a disk to end, and waits for that. Returns which process it was, if there was any.
///
/// # Errors
/// When it may not be asked, or does not end in time.
pub fn stop(places: &Places, disk: &str, patience: Duration, cancel: &Cancel) -> Result<Option<u32>> {
    let Some(pid) = running(places, disk)? else { return Ok(None) };
    let target = Status::ask(places, disk).map_or(pid, |status| status.pid);
    let what = || format!("cannot stop process {target}, which serves disk {disk}");
    let process = i32::try_from(target).ok().filter(|pid| *pid > 0).map(Pid::from_raw);
    let Some(process) = process else {
        return Err(Error::new(ErrorKind::Io, format!("disk {disk} is served, but its pid file does not say by whom")));
    };
    match kill(process, Signal::SIGINT) {
        Ok(()) => {}
        Err(errno) => {
            return Err(Error::io(what(), errno).with_hint(
                "the original writes the number of another process into its pid file: stop it by its own script",
            ));
        }
    }
    let deadline = Instant::now() + patience;
    while running(places, disk)?.is_some() {
        cancel.check("waiting for a pfsd to end")?;
        if Instant::now() > deadline {
            return Err(Error::new(
                ErrorKind::Io,
                format!("process {target} still serves disk {disk} after {patience:?}"),
            )
            .with_hint(format!("its clients wait until it is started again; `kill -9 {target}` ends it")));
        }
        std::thread::sleep(LOOK);
    }
    Ok(Some(target))
}
