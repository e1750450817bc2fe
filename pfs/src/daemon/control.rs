//! What others may ask a daemon about itself, while it serves: over a socket beside its pid file.

use std::fmt;
use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use blockdev::{Context, Error, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use crate::proto::{Places, RegionNo};

use super::mount::{Current, Mount};
use super::{Client, RequestCount, State, statistics};

/// How often to look whether the daemon is to end, in milliseconds.
const LOOK: u16 = 500;

/// How long somebody may take to ask or to take the answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Most bytes of a question.
const QUESTION_MAX: usize = 4096;

/// How the volume is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Nobody is connected.
    Unmounted,
    /// It is being mounted otherwise.
    Changing,
    /// For reading: all clients are replicas.
    ReadOnly,
    /// For writing: one client is the primary.
    ReadWrite,
}

/// The journal of a volume that is written.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct JournalStatus {
    /// Bytes of it that hold what counts and is in no metadata sector yet.
    pub used_bytes: u64,
    /// Bytes that there are.
    pub size_bytes: u64,
    /// Transactions since it was mounted.
    pub transactions: u64,
    /// Writes of the leader record that made them count.
    pub commits: u64,
    /// How often it was trimmed.
    pub trims: u64,
}

/// How far a reader is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FollowerStatus {
    /// The last transaction that it knows.
    pub transaction: u64,
    /// How long ago that was found to be the last one there is, in milliseconds.
    pub checked_ms: f64,
}

/// What a daemon says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// What clients call the disk.
    pub disk: String,
    /// What it is.
    pub device: PathBuf,
    /// The daemon's process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// How long it has been running, in seconds.
    pub uptime_s: f64,
    /// How the volume is mounted.
    pub access: Access,
    /// How many workers it has.
    pub workers: u32,
    /// How many of them look for requests now; the others wait until there is more to do.
    pub active_workers: u32,
    /// Requests under way, by worker.
    pub queue_depths: Vec<u64>,
    /// The most requests that a worker had under way at once.
    pub queue_depth_max: u64,
    /// Slots that are used, of each size.
    pub slots: Vec<SlotsStatus>,
    /// Who is connected.
    pub clients: Vec<Client>,
    /// What was asked since it started.
    pub requests: Vec<RequestCount>,
    /// Where it writes.
    pub journal: Option<JournalStatus>,
    /// Where it reads.
    pub follower: Option<FollowerStatus>,
}

/// Slots of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotsStatus {
    /// Bytes in the buffer of each.
    pub unit_bytes: u64,
    /// How many are used.
    pub used: u32,
    /// How many there are.
    pub total: u32,
}

impl Status {
    pub(super) fn of(state: &State) -> Self {
        let (current, _) = state.mounts.current();
        let (mut journal, mut follower) = (None, None);
        let access = match &current {
            Current::Unmounted => Access::Unmounted,
            Current::Paused => Access::Changing,
            Current::Mounted(mount) => match &**mount {
                Mount::Writer(writer) => {
                    let seen = writer.statistics();
                    journal = Some(JournalStatus {
                        used_bytes: seen.journal_used,
                        size_bytes: seen.journal_size,
                        transactions: seen.transactions,
                        commits: seen.commits,
                        trims: seen.trims,
                    });
                    Access::ReadWrite
                }
                Mount::Reader(reader) => {
                    let (leader, age) = reader.leader();
                    let checked_ms = age.as_secs_f64() * 1e3;
                    follower = Some(FollowerStatus { transaction: leader.head.txid.raw(), checked_ms });
                    Access::ReadOnly
                }
            },
        };
        let slots = RegionNo::all().zip(state.slots.used()).map(|(region, used)| SlotsStatus {
            unit_bytes: region.unit() as u64,
            used,
            total: u32::from(region.channels()) * u32::from(region.slots()),
        });
        let depths = |depth: fn(&statistics::Counters) -> &std::sync::atomic::AtomicU64| {
            state.counters.iter().map(|counters| depth(counters).load(Ordering::Relaxed)).collect::<Vec<_>>()
        };
        #[allow(clippy::cast_possible_truncation, reason = "no more than WORKERS_MAX")]
        Self {
            disk: state.disk.clone(),
            device: state.device.clone(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: state.started.elapsed().as_secs_f64(),
            access,
            workers: state.counters.len() as u32,
            active_workers: state.crew.active() as u32,
            queue_depths: depths(|counters| &counters.depth),
            queue_depth_max: depths(|counters| &counters.depth_max).into_iter().max().unwrap_or(0),
            slots: slots.collect(),
            clients: state.seen.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            requests: statistics::sum(state.counters.iter()),
            journal,
            follower,
        }
    }

    /// Asks the daemon that serves a disk.
    ///
    /// # Errors
    /// When there is none, or it does not answer: the original's does not.
    pub fn ask(places: &Places, disk: &str) -> Result<Self> {
        let path = places.control(disk);
        let what = || format!("cannot ask the pfsd of disk {disk}");
        let hint =
            "only onedisk's own pfsd answers, and only its own user and root; is it running? `pfsd start` starts one";
        let mut stream = UnixStream::connect(&path).map_err(|error| Error::io(what(), error).with_hint(hint))?;
        stream.set_read_timeout(Some(PATIENCE)).context(what)?;
        stream.set_write_timeout(Some(PATIENCE)).context(what)?;
        stream.write_all(b"status\n").context(what)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context(what)?;
        serde_json::from_str(&answer).map_err(|error| {
            Error::new(blockdev::ErrorKind::Io, what()).with_source(error).with_hint("it may be of another version")
        })
    }

    /// The same in the text format that Prometheus reads.
    #[must_use]
    pub fn prometheus(&self) -> String {
        use std::fmt::Write as _;
        let mut text = String::new();
        let disk = self.disk.replace(['\\', '"', '\n'], "_");
        let mut metric = |name: &str, kind: &str, help: &str, samples: &[(String, f64)]| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "# HELP pfsd_{name} {help}\n# TYPE pfsd_{name} {kind}");
            for (labels, value) in samples {
                let _ = writeln!(text, "pfsd_{name}{{disk=\"{disk}\"{labels}}} {value}");
            }
        };
        let one = |value: f64| [(String::new(), value)];
        #[allow(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
        {
            metric("uptime_seconds", "gauge", "How long the daemon has been running.", &one(self.uptime_s));
            metric("workers", "gauge", "Workers that there are.", &one(f64::from(self.workers)));
            metric("workers_active", "gauge", "Workers that look for requests.", &one(f64::from(self.active_workers)));
            metric("clients", "gauge", "Clients that are connected.", &one(self.clients.len() as f64));
            let depth: u64 = self.queue_depths.iter().sum();
            metric("requests_under_way", "gauge", "Requests taken and not answered.", &one(depth as f64));
            let each = |value: fn(&RequestCount) -> f64| -> Vec<(String, f64)> {
                self.requests.iter().map(|of| (format!(",request=\"{}\"", of.request), value(of))).collect()
            };
            metric("requests_total", "counter", "Requests answered.", &each(|of| of.count as f64));
            metric("request_errors_total", "counter", "Requests answered with an error.", &each(|of| of.errors as f64));
            let mut quantiles = Vec::new();
            for (quantile, value) in
                [("0.5", each(|of| of.p50_us as f64 / 1e6)), ("0.99", each(|of| of.p99_us as f64 / 1e6))]
            {
                quantiles.extend(value.into_iter().map(|(of, value)| (format!("{of},quantile=\"{quantile}\""), value)));
            }
            metric("request_seconds", "gauge", "How long requests took, since the daemon started.", &quantiles);
            if let Some(journal) = &self.journal {
                metric("journal_used_bytes", "gauge", "Journal that is in use.", &one(journal.used_bytes as f64));
                metric("journal_size_bytes", "gauge", "Journal that there is.", &one(journal.size_bytes as f64));
                metric("transactions_total", "counter", "Transactions.", &one(journal.transactions as f64));
                metric("commits_total", "counter", "Writes that made them count.", &one(journal.commits as f64));
            }
            if let Some(follower) = &self.follower {
                let age = follower.checked_ms / 1e3;
                metric("follower_checked_seconds", "gauge", "Since when this knows all there is.", &one(age));
            }
        }
        text
    }
}

/// Where else to answer, in the text format that Prometheus reads, over HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// `unix:PATH`.
    Unix(PathBuf),
    /// `127.0.0.1:9187`: an address of this machine's own.
    Tcp(SocketAddr),
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        let address: SocketAddr = text.parse().map_err(|_| "neither unix:PATH nor 127.0.0.1:PORT".to_owned())?;
        if address.ip().is_loopback() {
            Ok(Self::Tcp(address))
        } else {
            Err("only an address of this machine itself".into())
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

/// Something that can be read and written.
trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

enum Listener {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

impl Listener {
    fn accept(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(Box::new(stream))
            }
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(Box::new(stream))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // Where somebody removed it before there is nothing left to do.
            let _ = fs::remove_file(path);
        }
    }
}

/// Where questions are taken.
pub(super) struct Control(Vec<Listener>);

/// Begins to take questions. The daemon holds the disk's lock, so whatever socket is there is a dead one's.
pub(super) fn listen(path: &Path, endpoint: Option<&Endpoint>) -> Result<Control> {
    let mut listeners = vec![unix(path, 0o600)?];
    match endpoint {
        Some(Endpoint::Unix(path)) => listeners.push(unix(path, 0o600)?),
        Some(Endpoint::Tcp(address)) => {
            let what = || format!("cannot listen on {address}");
            let listener = TcpListener::bind(address).context(what)?;
            listener.set_nonblocking(true).context(what)?;
            listeners.push(Listener::Tcp(listener));
        }
        None => {}
    }
    Ok(Control(listeners))
}

fn unix(path: &Path, mode: u32) -> Result<Listener> {
    use std::os::unix::fs::FileTypeExt;
    let what = || format!("cannot listen on {}", path.display());
    if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
        fs::remove_file(path).context(what)?;
    }
    let listener = UnixListener::bind(path).context(what)?;
    let listener = Listener::Unix(listener, path.to_owned());
    fs::set_permissions(path, Permissions::from_mode(mode)).context(what)?;
    if let Listener::Unix(listener, _) = &listener {
        listener.set_nonblocking(true).context(what)?;
    }
    Ok(listener)
}

impl Control {
    /// Answers questions until the daemon ends, one after the other.
    pub(super) fn serve(&self, state: &State) {
        while !state.crew.is_stopped() {
            let mut ready: Vec<PollFd<'_>> = self
                .0
                .iter()
                .map(|listener| match listener {
                    Listener::Unix(listener, _) => listener.as_fd(),
                    Listener::Tcp(listener) => listener.as_fd(),
                })
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
                .collect();
            if !matches!(poll(&mut ready, PollTimeout::from(LOOK)), Ok(1..)) {
                continue;
            }
            let ready: Vec<bool> = ready.iter().map(|fd| fd.any().unwrap_or(false)).collect();
            for (listener, _) in self.0.iter().zip(ready).filter(|(_, ready)| *ready) {
                // Who goes away before the answer is no concern of ours.
                let _ = listener.accept().and_then(|mut stream| answer(&mut *stream, state));
            }
        }
    }
}

fn answer(stream: &mut dyn Stream, state: &State) -> io::Result<()> {
    let mut question = Vec::new();
    let mut byte = [0; 256];
    while question.len() < QUESTION_MAX && !question.contains(&b'\n') {
        match stream.read(&mut byte)? {
            0 => break,
            count => question.extend_from_slice(&byte[..count]),
        }
    }
    let status = Status::of(state);
    if question.starts_with(b"GET ") {
        let body = status.prometheus();
        let head = "HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length:";
        return write!(stream, "{head} {}\r\n\r\n{body}", body.len());
    }
    serde_json::to_writer(&mut *stream, &status)?;
    stream.flush()
}
