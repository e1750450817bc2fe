//! The daemon's log: a line for whatever a person may want to know later. It is rotated by size.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use blockdev::{Context, Error, Result};

use crate::proto::request::NAMES;

/// Bytes in a file before the next is begun, as in the original.
const SIZE_MAX: u64 = 100 << 20;

/// How many files are kept besides the one that is written.
const KEPT: u32 = 10;

/// How many lines that clients cause are written at once, and how many a second after that: they cause as many as they like.
const BURST: u32 = 100;
const PER_SECOND: f64 = 10.0;

/// Where lines go.
#[derive(Debug)]
pub(super) struct Log {
    state: Mutex<State>,
    path: PathBuf,
    /// Also to standard error: somebody is watching.
    echo: bool,
}

#[derive(Debug)]
struct State {
    file: File,
    size: u64,
    allowance: Allowance,
}

/// How many lines clients may cause yet.
#[derive(Debug)]
struct Allowance {
    lines: f64,
    counted: Instant,
    left_out: u64,
}

impl Allowance {
    fn new(now: Instant) -> Self {
        Self { lines: BURST.into(), counted: now, left_out: 0 }
    }

    /// Whether a line may be written, and how many were left out since the last that was.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let gained = now.saturating_duration_since(self.counted).as_secs_f64() * PER_SECOND;
        self.lines = (self.lines + gained).min(BURST.into());
        self.counted = now;
        if self.lines < 1.0 {
            self.left_out += 1;
            return None;
        }
        self.lines -= 1.0;
        Some(std::mem::take(&mut self.left_out))
    }
}

impl Log {
    /// Opens `pfsd.log` in a directory, which is made where it is missing.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(super) fn open(directory: &Path, echo: bool) -> Result<Self> {
        fs::create_dir_all(directory).context(|| format!("cannot make {}", directory.display()))?;
        let path = directory.join("pfsd.log");
        let file = open(&path).context(|| format!("cannot open {}", path.display()))?;
        let size = file.metadata().context(|| format!("cannot look at {}", path.display()))?.len();
        Ok(Self { state: Mutex::new(State { file, size, allowance: Allowance::new(Instant::now()) }), path, echo })
    }

    /// Something that happened.
    pub(super) fn info(&self, what: &str) {
        self.write("info", what);
    }

    /// Something that should not have happened, and goes on.
    pub(super) fn warn(&self, what: &str) {
        self.write("warning", what);
    }

    /// Something that a client did. Where there is too much of that, some of it is left out, and counted.
    pub(super) fn client(&self, what: &str) {
        let allowed = self.state().allowance.take(Instant::now());
        match allowed {
            None => {}
            Some(0) => self.warn(what),
            Some(left_out) => self.warn(&format!("{what} ({left_out} more such lines were left out)")),
        }
    }

    /// An error, with its cause.
    pub(super) fn error(&self, what: &str, error: &Error) {
        self.write("error", &format!("{what}: {}", with_cause(error)));
    }

    /// A request that failed for another reason than that what it is about is not there, or there already.
    pub(super) fn failed(&self, number: i32, error: &Error) {
        let ordinary = [libc::ENOENT, libc::EEXIST, libc::ENOTEMPTY, libc::ENOTDIR, libc::EISDIR];
        if error.errno().is_some_and(|errno| ordinary.contains(&errno)) {
            return;
        }
        let name = usize::try_from(number).ok().and_then(|number| NAMES.get(number)).unwrap_or(&"a request");
        self.client(&format!("{name} failed: {}", with_cause(error)));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, level: &str, what: &str) {
        // A log that goes wrong must not stop the disk: there is nobody to tell but whoever watches.
        let line = format!("{} {level}: {}\n", jiff::Zoned::now().strftime("%F %T%.3f"), what.replace('\n', " "));
        if self.echo {
            let _ = io::stderr().write_all(line.as_bytes());
        }
        let mut state = self.state();
        if state.size >= SIZE_MAX
            && let Ok(file) = rotate(&self.path)
        {
            (state.file, state.size) = (file, 0);
        }
        if state.file.write_all(line.as_bytes()).is_ok() {
            state.size += line.len() as u64;
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// Calls `pfsd.log` `pfsd.log.0`, that `pfsd.log.1`, and so on, and begins a new one.
fn rotate(path: &Path) -> io::Result<File> {
    let numbered = |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    };
    for number in (0..KEPT - 1).rev() {
        match fs::rename(numbered(number), numbered(number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::rename(path, numbered(0))?;
    open(path)
}

fn with_cause(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn clients_do_not_fill_the_disk_with_lines() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let written = (0..1_000).filter(|_| allowance.take(start).is_some()).count();
        assert_eq!(written, BURST as usize);
        let later = start + Duration::from_secs(1);
        assert_eq!(allowance.take(later), Some(900));
        let written = (0..1_000).filter(|_| allowance.take(later).is_some()).count();
        assert_eq!(written, 9);
        let much_later = start + Duration::from_secs(3_600);
        assert_eq!(allowance.take(much_later), Some(991));
        assert_eq!((0..1_000).filter(|_| allowance.take(much_later).is_some()).count(), BURST as usize - 1);
    }

    #[test]
    fn files_move_up_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pfsd.log");
        for round in 0..KEPT + 3 {
            fs::write(&path, round.to_string()).unwrap();
            drop(rotate(&path).unwrap());
        }
        let mut names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names.len(), KEPT as usize + 1);
        assert_eq!(fs::read_to_string(dir.path().join("pfsd.log.0")).unwrap(), (KEPT + 2).to_string());
        assert_eq!(fs::read_to_string(dir.path().join("pfsd.log.9")).unwrap(), "3");
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
    }
}
