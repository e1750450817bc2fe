//! All of a served disk: the disk, and the exports over it.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::disk::{Disk, DiskOptions};
use super::nbd::{self, Address, Certificates};
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
}

/// A disk that is served until this is dropped.
#[derive(Debug)]
pub struct Served {
    // Exports go before what they export.
    nbd: Vec<nbd::Server>,
    disk: Arc<Disk>,
}

/// Where a host finds the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Export {
    /// Which host.
    pub host: String,
    /// As an NBD client calls it.
    pub uri: String,
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
        let mut nbd = Vec::new();
        for address in &options.nbd {
            let certificates = options.certificates.as_ref().filter(|_| matches!(address, Address::Tcp(_)));
            nbd.push(nbd::Server::start(&disk, address, certificates)?);
        }
        Ok(Self { nbd, disk })
    }

    /// The disk.
    #[must_use]
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
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
