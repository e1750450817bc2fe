//! All of a served disk: the disk, the exports over it, and who controls it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::control;
use super::disk::{Disk, DiskOptions};
use super::layer::Layers;
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
    disk: Arc<Disk>,
    stopped: Cancel,
    registered: Registered,
}

/// Where a host finds the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// Which host.
    pub host: String,
    /// As an NBD client calls it.
    pub uri: String,
}

impl std::fmt::Display for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.uri)
    }
}

impl Served {
    /// Serves the image at `path`.
    ///
    /// # Errors
    /// When the image or an export cannot be had as asked for; then nothing is served.
    pub fn start(path: &Path, options: &Options) -> Result<Self> {
        if options.nbd.is_empty() {
            return Err(Error::invalid(format!("{} is to be served nowhere", path.display()))
                .with_hint("--nbd unix:/run/disk.sock"));
        }
        let disk = Disk::open(path, options.disk.clone())?;
        let mut registered = Registered::new(path)?;
        disk.set_layers(options.layers.clone())?;
        let mut nbd = Vec::new();
        for address in &options.nbd {
            if let Address::Unix(path) = address {
                registered.note(|note| note.sockets.push(path.clone()))?;
            }
            let certificates = options.certificates.as_ref().filter(|_| matches!(address, Address::Tcp(_)));
            nbd.push(nbd::Server::start(&disk, address, certificates)?);
        }
        let mut served = Self { control: None, nbd, disk, stopped: Cancel::new(), registered };
        let (disk, stopped) = (Arc::clone(&served.disk), served.stopped.clone());
        let socket = served.registered.socket();
        served.control = Some(control::Server::start(&socket, disk, served.exports(), stopped)?);
        Ok(served)
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

    /// Whether somebody has asked for its end ([`control::Command::Stop`]).
    #[must_use]
    pub fn is_asked_to_stop(&self) -> bool {
        self.stopped.is_cancelled()
    }

    /// Ends the exports, and makes durable what is in the volatile cache, as who turns a disk off in an orderly way does.
    ///
    /// # Errors
    /// When the image cannot be written.
    pub fn stop(mut self) -> Result<()> {
        self.control = None;
        self.nbd.clear();
        self.disk.flush()
    }

    /// Where each host finds it.
    #[must_use]
    pub fn exports(&self) -> Vec<Export> {
        let of_host = |host: &super::HostName| {
            let uri = |server: &nbd::Server| Export { host: host.to_string(), uri: server.uri(host.as_str()) };
            self.nbd.iter().map(uri).collect::<Vec<_>>()
        };
        self.disk.hosts().iter().flat_map(of_host).collect()
    }
}
