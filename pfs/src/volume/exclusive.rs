//! What keeps others from writing a volume.

use std::path::Path;

use blockdev::{Cancel, Result};

use super::load::{read_first_header, read_leader};
use super::writer::Fence;
use super::{Device, HostLock, Lease, LeaseOptions, Region};

/// The right to be the only writer of a volume: the original's lock of a host on this machine, and the [`Lease`] wherever the
/// disk is seen.
#[derive(Debug)]
pub struct Exclusive {
    lease: Option<Lease>,
    host: Option<HostLock>,
}

impl Exclusive {
    /// Takes both for the volume on the file or device at `path`. Without a host of its own this is the last that the volume
    /// has room for, as the original's commands are.
    ///
    /// # Errors
    /// When there is no volume, or another writer; the error names it.
    pub fn take(path: &Path, options: &LeaseOptions, cancel: &Cancel) -> Result<Self> {
        let mut device = Device::open(path)?;
        read_first_header(&mut device)?;
        let hosts = u8::try_from(read_leader(&mut device)?.hosts).unwrap_or(u8::MAX);
        let host = if options.host == 0 { hosts } else { options.host };
        let lock = HostLock::take(path, Region::Host(host))?;
        let lease = Lease::take(path, &LeaseOptions { host, ..options.clone() }, cancel)?;
        Ok(Self { lease: Some(lease), host: Some(lock) })
    }

    /// Takes the lease alone, for who writes on behalf of others that hold the locks themselves: a daemon's clients.
    ///
    /// # Errors
    /// As [`Lease::take`].
    pub fn lease(path: &Path, options: &LeaseOptions, cancel: &Cancel) -> Result<Self> {
        Ok(Self { lease: Some(Lease::take(path, options, cancel)?), host: None })
    }
}

impl Fence for Exclusive {
    fn check(&mut self, _device: &mut Device) -> Result<()> {
        self.lease.as_ref().map_or(Ok(()), Lease::check)
    }

    fn release(&mut self, _device: &mut Device) -> Result<()> {
        self.lease = None;
        self.host = None;
        Ok(())
    }
}
