//! A pfsd, started with as many workers as are asked for, and ended again: ours, the original, or the one that is there.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use blockdev::{Context, Error, ErrorKind, Result};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pfs::client::is_served;
use pfs::proto::{Places, RegionNo};

use super::{Disk, Service};

/// What programs are called that are a pfsd.
const PROGRAMS: [&str; 2] = ["pfsdaemon", "pfsd"];

/// Where the original is, where nobody says otherwise.
const ORIGINAL: &str = "/usr/local/polarstore/pfsd/bin/pfsdaemon";

/// Where what the original logs and how is said, beside the directory of its program.
const LOGGER: &str = "conf/pfsd_logger.conf";

/// What the log of a pfsd is called, of either.
const LOG: &str = "pfsd.log";

/// The file system in memory in which shared memory is.
const SHARED_MEMORY: &str = "/dev/shm";

/// What an installation of our own is called there, before the id of the process that made it.
const PREFIX: &str = "onedisk-pfsd-";

/// How long a pfsd may take to begin: it looks at the disk first.
const BEGINNING: Duration = Duration::from_secs(30);

/// How long one may take to end: it finishes the requests that it has begun.
const ENDING: Duration = Duration::from_secs(30);

/// How often it is looked whether something has come about.
const LOOK: Duration = Duration::from_millis(5);

/// The installation of a pfsd, and how to run it there.
#[derive(Debug)]
pub(super) struct Installation {
    pub(super) places: Places,
    pub(super) disk: String,
    program: PathBuf,
    /// Its arguments but the number of its workers.
    arguments: Vec<OsString>,
    /// One that runs in it and is not ours.
    found: Option<Found>,
    /// What is to run again in the end.
    before: Option<Found>,
    // Dropped last: what was not there before goes.
    _traces: Traces,
}

/// A pfsd that was found running.
#[derive(Debug, Clone)]
struct Found {
    pid: Pid,
    program: PathBuf,
    /// Without the program's own name.
    arguments: Vec<OsString>,
    directory: PathBuf,
    environment: Vec<(OsString, OsString)>,
    disk: String,
}

impl Installation {
    /// What `service` says. Nothing is started or ended yet.
    ///
    /// # Errors
    /// When there is no such program or disk, somebody else's pfsd serves it, or the one that is to be started anew has
    /// clients.
    pub(super) fn of(service: &Service) -> Result<Self> {
        match service {
            Service::Ours { program, disk, device } => {
                let root = own_root()?;
                let places = Places::below(&root);
                for directory in [&places.run, &places.locks, &places.shm, &places.log] {
                    fs::create_dir_all(directory).context(|| format!("cannot make {}", directory.display()))?;
                }
                let words = ["--root".into(), root.clone().into(), "--device".into(), device.clone().into()];
                Ok(Self {
                    places,
                    disk: disk.clone(),
                    program: program.clone(),
                    arguments: [vec!["-f".into(), "-p".into(), disk.into()], words.to_vec()].concat(),
                    found: None,
                    before: None,
                    _traces: Traces(vec![root]),
                })
            }
            Service::Original { program, disk } => Self::original(program, disk),
            Service::Here { disk } => Self::here(disk.as_deref()),
        }
    }

    fn original(program: &Path, disk: &str) -> Result<Self> {
        let places = Places::default();
        if is_served(&places, disk) {
            return Err(Error::refused(format!("a pfsd serves the disk {disk} already"))
                .with_hint(format!("its process is in {}; stop it first", places.daemon(disk).display())));
        }
        let traces = Traces::of(&places, disk);
        for directory in [&places.locks, &places.run, &places.shm] {
            meeting_place(directory)?;
        }
        let configuration = program.parent().and_then(Path::parent).unwrap_or(Path::new("/")).join(LOGGER);
        Ok(Self {
            places,
            disk: disk.to_owned(),
            program: program.to_owned(),
            arguments: vec!["-f".into(), "-p".into(), disk.into(), "-c".into(), configuration.into()],
            found: None,
            before: None,
            _traces: traces,
        })
    }

    fn here(disk: Option<&str>) -> Result<Self> {
        let running: Vec<Found> =
            all_found().into_iter().filter(|found| disk.is_none_or(|disk| found.disk == disk)).collect();
        match (&*running, disk) {
            ([found], _) => {
                let places = Places::default();
                let clients = clients(&places, &found.disk);
                if !clients.is_empty() {
                    let pids: Vec<String> = clients.iter().map(ToString::to_string).collect();
                    return Err(Error::refused(format!(
                        "the pfsd of {} is in use: it would have to be started anew under process {}",
                        found.disk,
                        pids.join(", ")
                    ))
                    .with_hint("stop the database that uses it first"));
                }
                Ok(Self {
                    places: Places::default(),
                    disk: found.disk.clone(),
                    program: found.program.clone(),
                    arguments: without_workers(&found.arguments),
                    found: Some(found.clone()),
                    before: Some(found.clone()),
                    _traces: Traces(Vec::new()),
                })
            }
            ([], Some(disk)) => Self::original(Path::new(ORIGINAL), disk),
            ([], None) => Err(Error::new(ErrorKind::NotFound, "no pfsd runs there, and no disk was named")
                .with_hint("--disk NAME says which disk to start one on, such as nvme1n1")),
            (several, _) => {
                let disks: Vec<&str> = several.iter().map(|found| found.disk.as_str()).collect();
                Err(Error::invalid(format!("{} pfsds run there, of {}", several.len(), disks.join(", ")))
                    .with_hint("--disk NAME says which one to measure"))
            }
        }
    }

    /// What disk it is.
    pub(super) fn disk(&self) -> Disk {
        let device = fs::metadata(Path::new("/dev").join(&self.disk)).ok();
        let number = device.filter(|device| device.file_type().is_block_device()).map(|device| device.rdev());
        Disk { name: self.disk.clone(), number, boot: super::boot(), program: self.program.clone() }
    }

    /// Starts it with so many workers. When this returns it takes clients.
    ///
    /// # Errors
    /// When it cannot be started, or ends at once: with what it said last.
    pub(super) fn start(&mut self, workers: u32) -> Result<Daemon> {
        if let Some(found) = self.found.take() {
            found.end()?;
        }
        let what = || format!("cannot start {}", self.program.display());
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).args(["-w", &workers.to_string()]);
        let said = tempfile::tempfile().context(|| "cannot make a temporary file")?;
        let log = self.places.logs(&self.disk).join(LOG);
        let log = (fs::metadata(&log).map_or(0, |metadata| metadata.len()), log);
        let output = || said.try_clone().context(|| "cannot share a temporary file");
        command.stdin(Stdio::null()).stdout(output()?).stderr(output()?).process_group(0);
        if let Some(before) = &self.before {
            before.surround(&mut command);
        }
        // SAFETY: prctl is async-signal-safe, and nothing is allocated.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        let child = command.spawn().context(what)?;
        let mut daemon = Daemon { child, said, log, program: self.program.clone() };
        let clients = self.places.clients(&self.disk);
        let started = Instant::now();
        while !watches(daemon.pid()?, &clients) {
            daemon.check()?;
            if started.elapsed() > BEGINNING {
                let last_words = daemon.last_words();
                let message = format!("{}: it takes no clients after {BEGINNING:?}{last_words}", what());
                return Err(Error::new(ErrorKind::Io, message));
            }
            thread::sleep(LOOK);
        }
        Ok(daemon)
    }

    /// Lets run again what ran before.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(super) fn give_back(&mut self) -> Result<()> {
        // Not taken when it was never ended.
        let Some(before) = self.before.take().filter(|_| self.found.is_none()) else { return Ok(()) };
        let what = || {
            let words: Vec<String> = before.arguments.iter().map(|word| word.to_string_lossy().into_owned()).collect();
            format!("the pfsd that ran before does not run again: {} {}", before.program.display(), words.join(" "))
        };
        let mut command = Command::new(&before.program);
        command.args(&before.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        before.surround(&mut command);
        let mut child = command.process_group(0).spawn().context(what)?;
        let started = Instant::now();
        let clients = self.places.clients(&self.disk);
        loop {
            // One that goes to the background leaves a parent behind, which ends.
            let _ = child.try_wait();
            if all_found().iter().any(|found| found.disk == self.disk && watches(found.pid, &clients)) {
                return Ok(());
            }
            if started.elapsed() > BEGINNING {
                return Err(Error::new(ErrorKind::Io, what()).with_hint("start it by hand"));
            }
            thread::sleep(LOOK);
        }
    }
}

/// A pfsd that was started, and ends with this.
#[derive(Debug)]
pub(super) struct Daemon {
    child: Child,
    said: File,
    /// Its log, and how long that was before.
    log: (u64, PathBuf),
    program: PathBuf,
}

impl Daemon {
    /// Its process.
    pub(super) fn pid(&self) -> Result<Pid> {
        let pid =
            i32::try_from(self.child.id()).map_err(|source| Error::io("no such process", io::Error::other(source)))?;
        Ok(Pid::from_raw(pid))
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// When it does not: with how it ended and what it said last.
    pub(super) fn check(&mut self) -> Result<()> {
        let status = self.child.try_wait().context(|| format!("cannot look at {}", self.program.display()))?;
        let Some(status) = status else { return Ok(()) };
        let last_words = self.last_words();
        let message = format!("{} has ended by itself ({status}){last_words}", self.program.display());
        Err(Error::new(ErrorKind::Io, message))
    }

    /// What it said last, to be put after what is wrong: in its log, if there is anything, or else on its standard error.
    fn last_words(&mut self) -> String {
        const LINES: usize = 3;
        let (before, log) = (self.log.0, File::open(&self.log.1));
        let logged = log.and_then(|mut log| tail(&mut log, before)).unwrap_or_default();
        let said = if logged.is_empty() { tail(&mut self.said, 0).unwrap_or_default() } else { logged };
        let last = &said[said.len().saturating_sub(LINES)..];
        if last.is_empty() { String::new() } else { format!(": {}", last.join("; ")) }
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it had to be killed.
    pub(super) fn end(mut self) -> Result<()> {
        let pid = self.pid()?;
        let what = || format!("cannot end {}", self.program.display());
        kill(pid, Signal::SIGINT).context(what)?;
        let begun = Instant::now();
        while begun.elapsed() < ENDING {
            if self.child.try_wait().context(what)?.is_some() {
                return Ok(());
            }
            thread::sleep(LOOK);
        }
        Err(Error::new(
            ErrorKind::Io,
            format!("{} did not end within {ENDING:?}: it was killed", self.program.display()),
        ))
    }
}

/// The last lines of a file, of what is beyond byte `before`, without the frames of a backtrace.
fn tail(file: &mut File, before: u64) -> io::Result<Vec<String>> {
    const MOST: u64 = 16384;
    /// How an address stands in what glibc's `backtrace_symbols` makes.
    const FRAME: &str = " [0x";
    let end = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(before.max(end.saturating_sub(MOST)).min(end)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let told = |line: &&str| !line.is_empty() && !line.contains(FRAME);
    Ok(text.lines().map(str::trim).filter(told).map(str::to_owned).collect())
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // One that has ended and was waited for is not signalled again: the standard library sees to that.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Found {
    /// The pfsd that process `pid` is, if it is one.
    fn at(pid: Pid) -> Option<Self> {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let program = fs::read_link(process.join("exe")).ok()?;
        if !program.file_name().is_some_and(|name| PROGRAMS.iter().any(|known| name == *known)) {
            return None;
        }
        let words = |file: &str| -> Option<Vec<OsString>> {
            let bytes = fs::read(process.join(file)).ok()?;
            let bytes = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
            Some(bytes.split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_vec())).collect())
        };
        let arguments: Vec<OsString> = words("cmdline")?.into_iter().skip(1).collect();
        let variable = |word: OsString| {
            let bytes = word.into_vec();
            let at = bytes.iter().position(|byte| *byte == b'=')?;
            Some((OsString::from_vec(bytes[..at].to_vec()), OsString::from_vec(bytes[at + 1..].to_vec())))
        };
        let environment = words("environ").unwrap_or_default().into_iter().filter_map(variable).collect();
        let directory = fs::read_link(process.join("cwd")).unwrap_or_else(|_| PathBuf::from("/"));
        let disk = value_of(&arguments, "-p", "--pbdname")?;
        Some(Self { pid, program, arguments, directory, environment, disk })
    }

    /// Lets `command` run where it ran.
    fn surround(&self, command: &mut Command) {
        command.current_dir(&self.directory).env_clear().envs(self.environment.iter().cloned());
    }

    /// Ends it. What is not ours is not killed.
    fn end(&self) -> Result<()> {
        let what = || format!("cannot end the pfsd of {}, process {}", self.disk, self.pid);
        match kill(self.pid, Signal::SIGINT) {
            Err(Errno::ESRCH) => return Ok(()),
            outcome => outcome.context(what)?,
        }
        let begun = Instant::now();
        while runs(self.pid) {
            if begun.elapsed() > ENDING {
                return Err(Error::new(ErrorKind::Io, format!("{}: it goes on", what())).with_hint("stop it by hand"));
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }
}

/// All that run in this pid namespace.
fn all_found() -> Vec<Found> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Found::at(Pid::from_raw(pid)))
        .collect()
}

/// Whether a process runs: one that has ended and that nobody has waited for does not.
fn runs(pid: Pid) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The name, in parentheses, may contain anything.
    !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']))
}

/// The value of an option that is called `short` or `long`.
fn value_of(arguments: &[OsString], short: &str, long: &str) -> Option<String> {
    let mut words = arguments.iter().filter_map(|word| word.to_str());
    while let Some(word) = words.next() {
        if word == short || word == long {
            return words.next().map(str::to_owned);
        }
        let attached = word.strip_prefix(short).filter(|_| !word.starts_with("--"));
        if let Some(value) = attached.or_else(|| word.strip_prefix(long)?.strip_prefix('=')) {
            return Some(value.to_owned());
        }
    }
    None
}

/// Arguments with which it stays in the foreground, and with no number of workers.
fn without_workers(arguments: &[OsString]) -> Vec<OsString> {
    let mut kept: Vec<OsString> = vec!["-f".into()];
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match word.to_str() {
            Some("-f" | "-d") => {}
            Some("-w" | "--workers") => drop(words.next()),
            Some(word) if word.starts_with("--workers=") || (word.starts_with("-w") && !word.starts_with("--")) => {}
            _ => kept.push(word.clone()),
        }
    }
    kept
}

/// Whether a process watches a directory (inotify): a pfsd takes clients from then on, and does not see those before.
fn watches(pid: Pid, directory: &Path) -> bool {
    let Ok(directory) = fs::metadata(directory) else { return false };
    // proc_pid_fdinfo(5): "inotify wd:1 ino:7a1 sdev:800001 ...", numbers in hexadecimal.
    let watched = format!(" ino:{:x} ", directory.ino());
    let files = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    files
        .filter_map(|file| fs::read_to_string(file.path()).ok())
        .any(|text| text.lines().any(|line| line.starts_with("inotify ") && line.contains(&watched)))
}

/// The clients of a disk's pfsd: processes whose file is locked.
fn clients(places: &Places, disk: &str) -> Vec<u32> {
    let files = fs::read_dir(places.clients(disk)).into_iter().flatten().flatten();
    let pid = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.strip_suffix(".pid")?.parse().ok()?;
        let file = File::open(entry.path()).ok()?;
        matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)).then_some(pid)
    };
    files.filter_map(pid).collect()
}

/// A directory in which a pfsd and its clients meet, of whatever user.
fn meeting_place(path: &Path) -> Result<()> {
    let what = || format!("cannot make {}, where pfsd and its clients meet", path.display());
    if path.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o777).create(path).context(what)?;
    // Past the umask.
    fs::set_permissions(path, fs::Permissions::from_mode(0o777)).context(what)
}

/// A new directory in shared memory. Those that were killed before left theirs, which go.
fn own_root() -> Result<PathBuf> {
    let memory = Path::new(SHARED_MEMORY);
    for entry in fs::read_dir(memory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse::<i32>().ok());
        if pid.is_some_and(|pid| !runs(Pid::from_raw(pid))) {
            // Another user's stays.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let root = memory.join(format!("{PREFIX}{}", std::process::id()));
    fs::create_dir(&root).context(|| format!("cannot make {} for the shared memory of pfsd", root.display()))?;
    Ok(root)
}

/// What was not there before, and goes in the end.
#[derive(Debug)]
struct Traces(Vec<PathBuf>);

impl Traces {
    /// What the original leaves behind of a disk, as far as it is not there yet.
    fn of(places: &Places, disk: &str) -> Self {
        let regions = RegionNo::all().map(|region| places.region(disk, region));
        let locks = [format!("{disk}-paxos-hostid"), format!("pfsadm-{disk}.sock")].map(|name| places.locks.join(name));
        let own =
            [places.daemon(disk), places.clients(disk), places.logs(disk), places.log.join(format!("pfs-{disk}.log"))];
        let cpus = places.run.join("pfsd.cpuset");
        let directories = [&places.run, &places.locks, &places.shm].map(PathBuf::clone);
        let all = regions.chain(locks).chain(own).chain([cpus]).chain(directories);
        Self(all.filter(|path| !path.exists()).collect())
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        for path in &self.0 {
            // Where somebody else has put something meanwhile, their directory stays.
            let shared = [Places::default().run, Places::default().locks, Places::default().shm].contains(path);
            let _ = match fs::symlink_metadata(path) {
                Ok(found) if found.is_dir() && shared => fs::remove_dir(path),
                Ok(found) if found.is_dir() => fs::remove_dir_all(path),
                Ok(_) => fs::remove_file(path),
                Err(_) => Ok(()),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn a_command_line_is_taken_over_but_for_the_workers() {
        let line = words("-p nvme1n1 -w 4 -c /etc/pfsd.conf");
        assert_eq!(value_of(&line, "-p", "--pbdname").as_deref(), Some("nvme1n1"));
        assert_eq!(without_workers(&line), words("-f -p nvme1n1 -c /etc/pfsd.conf"));
        assert_eq!(without_workers(&words("-f -w20 -pnvme1n1 --workers=3 --workers 5")), words("-f -pnvme1n1"));
        assert_eq!(value_of(&words("-f -w20 -pnvme1n1"), "-p", "--pbdname").as_deref(), Some("nvme1n1"));
        assert_eq!(value_of(&words("-w 20"), "-p", "--pbdname"), None);
    }

    #[test]
    fn a_process_that_watches_a_directory_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!watches(Pid::this(), directory.path()));
        let path = std::ffi::CString::new(directory.path().to_str().unwrap()).unwrap();
        // SAFETY: inotify_init1 takes no pointer.
        let watcher = unsafe { libc::inotify_init1(libc::IN_CLOEXEC) };
        // SAFETY: the path ends in a NUL and outlives the call.
        assert!(unsafe { libc::inotify_add_watch(watcher, path.as_ptr(), libc::IN_ATTRIB) } >= 0);
        assert!(watches(Pid::this(), directory.path()));
        // SAFETY: it is ours and open.
        unsafe { libc::close(watcher) };
        assert!(!watches(Pid::this(), &directory.path().join("missing")));
    }

    #[test]
    fn whose_file_is_locked_is_a_client() {
        let root = tempfile::tempdir().unwrap();
        let places = Places::below(root.path());
        fs::create_dir_all(places.clients("d")).unwrap();
        fs::write(places.client("d", 7), "").unwrap();
        fs::write(places.client("d", 9), "").unwrap();
        assert!(clients(&places, "d").is_empty());
        let file = File::open(places.client("d", 9)).unwrap();
        file.lock().unwrap();
        assert_eq!(clients(&places, "d"), [9]);
        assert!(clients(&places, "e").is_empty());
    }

    #[test]
    fn only_what_was_not_there_before_goes() {
        let root = tempfile::tempdir().unwrap();
        let places = Places::below(root.path());
        fs::create_dir_all(&places.run).unwrap();
        fs::write(places.daemon("d"), "1").unwrap();
        let traces = Traces::of(&places, "d");
        fs::create_dir_all(places.clients("d")).unwrap();
        fs::create_dir_all(places.logs("d")).unwrap();
        fs::write(places.logs("d").join("pfsd.log"), "").unwrap();
        drop(traces);
        assert!(places.daemon("d").exists() && places.run.exists());
        assert!(!places.clients("d").exists() && !places.logs("d").exists());
    }

    #[test]
    fn who_has_ended_does_not_run() {
        assert!(runs(Pid::this()));
        let mut child = Command::new("true").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let begun = Instant::now();
        while runs(pid) {
            assert!(begun.elapsed() < Duration::from_secs(10));
        }
        child.wait().unwrap();
        assert!(!runs(pid));
    }
}
