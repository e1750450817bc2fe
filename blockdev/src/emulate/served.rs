//! All of a served disk: the disk, the exports over it, and who controls it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::control;
use super::disk::{Disk, DiskOptions};
use super::fuse;
use super::layer::{Fault, Layers};
use super::nbd::{self, Address, Certificates};
use super::registry::Registered;
use crate::cancel::Cancel;
use crate::error::{Error, Result};

/// What is served, and how.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// How the image is opened, and who uses it.
    pub disk: DiskOptions,
    /// Where NBD clients find it.
    pub nbd: Vec<Address>,
    /// The certificates without which no NBD client is let in that comes through TCP. Unix sockets have permissions.
    pub certificates: Option<Certificates>,
    /// The directory in which each host finds it as a file of its name, through FUSE. It is made, if it is not there.
    pub fuse: Option<PathBuf>,
    /// Make a loop device of each of these files; without a directory for them, in one of our own.
    pub attach: bool,
    /// What the disk does to requests.
    pub layers: Layers,
}

/// A disk that is served until this is dropped; what is in the volatile cache then is lost, unless it was
/// [stopped](Self::stop).
#[derive(Debug)]
pub struct Served {
    // Nobody gives commands to what is being taken apart, and exports go before what they export.
    control: Option<control::Server>,
    nbd: Vec<nbd::Server>,
    fuse: Option<fuse::Server>,
    /// Whether somebody wants to know of the files, and not of the devices alone.
    shows_files: bool,
    disk: Arc<Disk>,
    stopped: Cancel,
    registered: Registered,
}

/// Where a host finds the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// Which host.
    pub host: String,
    /// As what.
    pub kind: ExportKind,
    /// Where: a URI for NBD, a path otherwise.
    pub at: String,
}

/// As what a host finds the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExportKind {
    /// Over NBD.
    Nbd,
    /// A file of this machine.
    File,
    /// A block device of this machine.
    Device,
}

impl std::fmt::Display for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.at)
    }
}

impl Served {
    /// Serves the image at `path`.
    ///
    /// # Errors
    /// When the image or an export cannot be had as asked for; then nothing is served.
    pub fn start(path: &Path, options: &Options) -> Result<Self> {
        if options.nbd.is_empty() && options.fuse.is_none() && !options.attach {
            return Err(Error::invalid(format!("{} is to be served nowhere", path.display()))
                .with_hint("--nbd unix:/run/disk.sock, --fuse /mnt/disk or --attach"));
        }
        let disk = Disk::open(path, options.disk.clone())?;
        let registered = Registered::new(path)?;
        disk.set_layers(options.layers.clone())?;
        // What has been started ends when something else cannot be.
        let mut served = Self {
            control: None,
            nbd: Vec::new(),
            fuse: None,
            shows_files: options.fuse.is_some(),
            disk,
            stopped: Cancel::new(),
            registered,
        };
        served.start_nbd(options)?;
        served.start_fuse(options)?;
        let (disk, stopped) = (Arc::clone(&served.disk), served.stopped.clone());
        let socket = served.registered.socket();
        served.control = Some(control::Server::start(&socket, disk, served.exports(), stopped)?);
        Ok(served)
    }

    fn start_nbd(&mut self, options: &Options) -> Result<()> {
        for address in &options.nbd {
            if let Address::Unix(path) = address {
                self.registered.note(|note| note.sockets.push(path.clone()))?;
            }
            let certificates = options.certificates.as_ref().filter(|_| matches!(address, Address::Tcp(_)));
            self.nbd.push(nbd::Server::start(&self.disk, address, certificates)?);
        }
        Ok(())
    }

    fn start_fuse(&mut self, options: &Options) -> Result<()> {
        let own = options.attach.then(|| self.registered.mount_point());
        let Some(directory) = options.fuse.clone().or(own) else { return Ok(()) };
        let point = fuse::Point::at(&directory)?;
        self.registered.note(|note| {
            note.mounts.push(point.path().to_owned());
            note.made.extend(point.is_new().then(|| point.path().to_owned()));
            note.attached = options.attach;
        })?;
        let fuse = self.fuse.insert(fuse::Server::start(&self.disk, point, &self.stopped)?);
        if options.attach { fuse.attach() } else { Ok(()) }
    }

    /// The disk.
    #[must_use]
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// Where [`control::Client`] finds it, if not by its image.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.registered.socket()
    }

    /// Whether somebody has asked for its end ([`control::Command::Stop`]), or it cannot go on.
    #[must_use]
    pub fn is_asked_to_stop(&self) -> bool {
        self.stopped.is_cancelled()
    }

    /// Detaches the devices, as who turns a disk off in an orderly way does first. Whatever is cached of them is written.
    ///
    /// # Errors
    /// [`Refused`](crate::ErrorKind::Refused) when somebody uses one, and says who: it stays as it is, and all is served as before.
    pub fn detach(&mut self) -> Result<()> {
        let Some(fuse) = &mut self.fuse else { return Ok(()) };
        if self.disk.layers().faults.iter().any(Fault::keeps_waiting) {
            // What never ends would keep them for good.
            self.disk.change_layers(|layers| layers.faults.retain(|fault| !fault.keeps_waiting()))?;
        }
        fuse.detach()
    }

    /// Ends the exports, and makes durable what is in the volatile cache, as who turns a disk off in an orderly way does. From
    /// who still uses a device it is taken away.
    ///
    /// # Errors
    /// When the image cannot be written, or a device was in use.
    pub fn stop(mut self) -> Result<()> {
        let detached = self.detach();
        self.control = None;
        self.nbd.clear();
        let ended = self.fuse.take().map_or(Ok(()), fuse::Server::stop);
        let flushed = self.disk.flush();
        ended.and(flushed).and(detached)
    }

    /// Where each host finds it.
    #[must_use]
    pub fn exports(&self) -> Vec<Export> {
        let of_host = |host: &super::HostName| {
            let host = host.as_str();
            let export = |kind, at| Export { host: host.to_owned(), kind, at };
            let mut exports: Vec<Export> =
                self.nbd.iter().map(|server| export(ExportKind::Nbd, server.uri(host))).collect();
            let shown = |path: &Path| path.display().to_string();
            if let Some(fuse) = &self.fuse {
                let file = self.shows_files.then(|| export(ExportKind::File, shown(&fuse.file(host))));
                let device = fuse.device(host).map(|device| export(ExportKind::Device, shown(device)));
                exports.extend(file.into_iter().chain(device));
            }
            exports
        };
        self.disk.hosts().iter().flat_map(of_host).collect()
    }
}
