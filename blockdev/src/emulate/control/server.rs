//! The side of the disk.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::Serialize;
use serde_json::Value;

use super::{Command, Failure, HostStatus, Reply, Status};
use crate::cancel::Cancel;
use crate::emulate::disk::Disk;
use crate::emulate::host::HostName;
use crate::emulate::mailbox::lock;
use crate::emulate::served::Export;
use crate::emulate::stats::Counts;
use crate::error::{Context, Error, ErrorKind, Result};

/// The longest command, in bytes.
const LINE_MAX: u64 = 1 << 20;

/// How many may be connected at once.
const CLIENTS_MAX: usize = 64;

/// Listens for commands until it is dropped.
#[derive(Debug)]
pub(in super::super) struct Server {
    path: PathBuf,
    stop: Arc<EventFd>,
    clients: Arc<Clients>,
    thread: Option<JoinHandle<()>>,
}

/// Everybody who is connected, by a number of their own.
#[derive(Debug, Default)]
struct Clients {
    streams: Mutex<BTreeMap<u64, UnixStream>>,
    next: AtomicU64,
}

/// What commands are about.
#[derive(Debug, Clone)]
struct Scene {
    disk: Arc<Disk>,
    exports: Vec<Export>,
    began: Instant,
    stopped: Cancel,
}

impl Server {
    /// Listens at `path`; whoever asks the server to stop sets `stopped`.
    pub(in super::super) fn start(path: &Path, disk: Arc<Disk>, exports: Vec<Export>, stopped: Cancel) -> Result<Self> {
        let what = || format!("cannot listen for commands at {}", path.display());
        let listener = UnixListener::bind(path).context(what)?;
        // Before anybody can be let in: who connects meanwhile is not accepted yet, and asks for nothing.
        fs::set_permissions(path, Permissions::from_mode(0o600)).context(what)?;
        listener.set_nonblocking(true).context(what)?;
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC).context(what)?);
        let clients = Arc::new(Clients::default());
        let (theirs, stopping) = (Arc::clone(&clients), Arc::clone(&stop));
        let scene = Scene { disk, exports, began: Instant::now(), stopped };
        let thread = thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || listen(&listener, &stopping, &theirs, &scene))
            .context(what)?;
        Ok(Self { path: path.to_owned(), stop, clients, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its counter cannot overflow.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            // One that panicked listens no more.
            let _ = thread.join();
        }
        // Somebody may have removed it.
        let _ = fs::remove_file(&self.path);
        // Answers that are on their way arrive; nothing more is read.
        lock(&self.clients.streams).values().for_each(|stream| drop(stream.shutdown(Shutdown::Read)));
        let began = Instant::now();
        while !lock(&self.clients.streams).is_empty() && began.elapsed() < Duration::from_secs(2) {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn listen(listener: &UnixListener, stop: &EventFd, clients: &Arc<Clients>, scene: &Scene) {
    loop {
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        // A signal is none of our business.
        let _ = poll(&mut fds, PollTimeout::NONE);
        if fds[1].any() == Some(true) {
            return;
        }
        match listener.accept() {
            Ok((stream, _)) if lock(&clients.streams).len() < CLIENTS_MAX => admit(stream, clients, scene),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn admit(stream: UnixStream, clients: &Arc<Clients>, scene: &Scene) {
    let (Ok(copy), Ok(())) = (stream.try_clone(), stream.set_nonblocking(false)) else { return };
    let number = clients.next.fetch_add(1, Ordering::Relaxed);
    lock(&clients.streams).insert(number, copy);
    let (theirs, scene) = (Arc::clone(clients), scene.clone());
    let work = move || {
        // Who goes without waiting for the answer does not want it.
        let _ = serve(&stream, &scene);
        lock(&theirs.streams).remove(&number);
    };
    if thread::Builder::new().name("control-client".to_owned()).spawn(work).is_err() {
        lock(&clients.streams).remove(&number);
    }
}

fn serve(stream: &UnixStream, scene: &Scene) -> io::Result<()> {
    let mut lines = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        let got = lines.by_ref().take(LINE_MAX).read_until(b'\n', &mut line)?;
        if got == 0 {
            return Ok(());
        }
        if line.last() != Some(&b'\n') {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let reply = match scene.execute(&line) {
            Ok(value) => Reply::Ok(value),
            Err(error) => Reply::Error(Failure::of(&error)),
        };
        let mut text = serde_json::to_vec(&reply).map_err(io::Error::other)?;
        text.push(b'\n');
        (&*stream).write_all(&text)?;
    }
}

impl Scene {
    fn execute(&self, line: &[u8]) -> Result<Value> {
        let command: Command = serde_json::from_slice(line)
            .map_err(|source| Error::invalid("this is no command for a served disk").with_source(source))?;
        let disk = &self.disk;
        match command {
            Command::Status => value(&self.status()),
            Command::SetLayer { layer } => {
                disk.change_layers(|layers| layer.set(layers))?;
                value(&disk.layers())
            }
            Command::SetLayers { layers } => {
                disk.set_layers(layers)?;
                value(&disk.layers())
            }
            Command::CutPower { keep, seed } => value(&disk.cut_power(keep, seed)?),
            Command::RestorePower => {
                disk.restore_power();
                Ok(Value::Null)
            }
            Command::Flush => disk.flush().map(|()| Value::Null),
            Command::Reserve { action } => value(&disk.reserve(&action)?),
            Command::Stop => {
                self.stopped.cancel();
                Ok(Value::Null)
            }
        }
    }

    fn status(&self) -> Status {
        let disk = &self.disk;
        let reservations = disk.reservations();
        let of_host = |(name, counts): (&HostName, Counts)| HostStatus {
            name: name.clone(),
            writes: reservations.lets_write(name),
            counts,
        };
        let (faults, records) = disk.hits_and_records();
        Status {
            image: disk.path().to_owned(),
            size: disk.size(),
            pid: std::process::id(),
            uptime_ns: u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX),
            power: disk.has_power(),
            layers: disk.layers(),
            dirty: disk.dirty(),
            faults,
            records,
            layer_counts: disk.layer_counts(),
            exports: self.exports.clone(),
            hosts: disk.hosts().iter().zip(disk.counts()).map(of_host).collect(),
            reservations,
        }
    }
}

fn value(answer: &impl Serialize) -> Result<Value> {
    serde_json::to_value(answer)
        .map_err(|source| Error::new(ErrorKind::Io, "cannot write the answer as JSON").with_source(source))
}
