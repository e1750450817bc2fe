//! What all commands share: how a volume and a path in it are named, opening it, and how a command fails.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use blockdev::ui::{self, Output};
use blockdev::{Cancel, Error};
use nix::errno::Errno;
use pfs::format::InodeNo;
use pfs::volume::writer::{Options, Writer};
use pfs::volume::{Device, Exclusive, LeaseOptions, Load, Volume, VolumePath, device_of};
use serde::Serialize;

use crate::changing::Changing;
use crate::original;

/// Longest name of a disk, with the NUL that ends it in C.
const DISK_NAME_MAX: usize = 64;

/// Why a command failed. The original ends differently depending on how far it came.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The original leaves at once with an errno: what should name a volume does not, or the disk is not free.
    Exit {
        /// What is wrong.
        error: Error,
        /// What the original exits with.
        errno: Errno,
    },
    /// The volume could not be opened.
    Mount(Error),
    /// The command itself failed.
    Command {
        /// What went wrong.
        error: Error,
        /// What the original's command returns.
        code: i32,
        /// Whether the original finds this out by itself, without an errno.
        own: bool,
    },
}

impl Failure {
    /// A failure that the original finds out by itself, without an errno, and for which its command returns `code`.
    pub(crate) fn own(error: Error, code: i32) -> Self {
        Self::Command { error, code, own: true }
    }

    pub(crate) fn into_error(self) -> Error {
        match self {
            Self::Exit { error, .. } | Self::Mount(error) | Self::Command { error, .. } => error,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Command { error, code: -1, own: false }
    }
}

/// A volume and a path in it.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// The file or device.
    pub(crate) volume: PathBuf,
    /// The path in it.
    pub(crate) path: VolumePath,
    /// What the original calls the disk, after -C.
    pub(crate) disk: Option<String>,
}

/// Refuses to change the content of the file system's own files: it is what all else hangs on.
pub(crate) fn not_internal(inode: InodeNo, path: &VolumePath) -> blockdev::Result<()> {
    // What a directory is asked for finds out by itself that it is one.
    if !inode.is_internal() || inode == InodeNo::ROOT {
        return Ok(());
    }
    Err(Error::io(format!("cannot write {:?}: it is the file system's own", path.display()), Errno::EPERM))
}

/// What all commands are given.
#[derive(Clone, Copy)]
pub(crate) struct Session<'a> {
    pub(crate) original: &'a original::Options,
    pub(crate) output: Output,
    /// Whether to be the original.
    pub(crate) compatible: bool,
    /// Whether to take the volume from whoever writes it.
    pub(crate) take_over: bool,
    /// Whether to say how a volume is reached.
    pub(crate) verbose: bool,
    /// Where pfsds are looked for, if not where the original has them.
    pub(crate) root: Option<&'a Path>,
}

impl<'a> Session<'a> {
    /// Prints a result: as JSON, or what `text` makes of it, which need not be UTF-8.
    pub(crate) fn print<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> Vec<u8>) -> Result<(), Failure> {
        match self.output {
            Output::Json => ui::print_result(self.output, value, |_| String::new())?,
            Output::Text => drop(ui::print_bytes(&text(value))?),
        }
        Ok(())
    }

    /// What an argument with a path names.
    pub(crate) fn place(&self, given: &OsStr) -> Result<Place, Failure> {
        let text = given.as_bytes();
        if !self.compatible {
            let Some(at) = text.windows(2).position(|pair| pair == b":/") else {
                let error = Error::invalid(format!("{} names no path in a volume", given.display())).with_hint(
                    "name the file or device, a colon and the path: VirtualDisk.img:/dir; or put `-C disk` first",
                );
                return Err(Failure::Exit { error, errno: Errno::EINVAL });
            };
            let volume = PathBuf::from(OsString::from_vec(text[..at].to_vec()));
            return Ok(Place { volume, path: VolumePath::new(&text[at + 1..]), disk: None });
        }
        if !text.starts_with(b"/") {
            // The original takes it for the name of a disk, which has no such command.
            let error = Error::invalid(format!("{} names no path on a disk", given.display()));
            return Err(Failure::Mount(error.with_hint("such a path is /nvme1n1/dir")));
        }
        let inner = text.iter().position(|byte| *byte != b'/').filter(|start| *start > 0).map(|start| &text[start..]);
        let split = inner.and_then(|inner| Some((inner, inner.iter().position(|byte| *byte == b'/')?)));
        let Some((inner, end)) = split else {
            let error = Error::invalid(format!("{} names no path on a disk", given.display()))
                .with_hint("after the disk's name comes a slash: /nvme1n1/ is its root directory");
            return Err(Failure::Exit { error, errno: Errno::EINVAL });
        };
        let volume = self.disk(&inner[..end])?;
        let disk = String::from_utf8(inner[..end].to_vec()).ok();
        Ok(Place { volume, path: VolumePath::new(&inner[end..]), disk })
    }

    /// What an argument with no more than a volume names.
    pub(crate) fn volume(&self, given: &OsStr) -> Result<PathBuf, Failure> {
        if !self.compatible {
            return Ok(PathBuf::from(given));
        }
        if given.as_bytes().starts_with(b"/") {
            return Ok(self.place(given)?.volume);
        }
        self.disk(given.as_bytes())
    }

    /// The disk that an argument names, to make or grow a volume on. The original finds fault with all of it in one way.
    pub(crate) fn disk_to_write(&self, given: &OsStr) -> Result<PathBuf, Failure> {
        let bad = |error| Failure::Exit { error, errno: Errno::EINVAL };
        self.original.known_cluster().map_err(bad)?;
        self.volume(given).map_err(|failure| bad(failure.into_error()))
    }

    /// The failure of a command that the original ends with a line of its own, before that of every command.
    pub(crate) fn failed(&self, command: &str, error: Error, errno: Errno) -> Failure {
        if self.compatible {
            // Nobody is left to tell when standard output itself is gone.
            let _ = ui::print(&format!("pfs {command} failed!\n"));
        }
        // It knows the reason of a system call that failed, and no others.
        let own = error.errno() != Some(libc::EAGAIN);
        Failure::Command { error, code: -(errno as i32), own }
    }

    /// The device of a disk, as the original finds it.
    fn disk(&self, name: &[u8]) -> Result<PathBuf, Failure> {
        if name.len() >= DISK_NAME_MAX {
            let error = Error::invalid(format!("{} is too long for a disk's name", String::from_utf8_lossy(name)));
            return Err(Failure::Exit { error, errno: Errno::ENAMETOOLONG });
        }
        Ok(device_of(&self.original.devices, name))
    }

    /// A name below a path, for printing. The original puts a slash between, whatever stands there already.
    pub(crate) fn join(&self, path: &[u8], name: &[u8]) -> Vec<u8> {
        let path = if self.compatible { path } else { path.strip_suffix(b"/").unwrap_or(path) };
        [path, b"/", name].concat()
    }

    /// How to take the lease.
    pub(crate) fn lease(&self) -> LeaseOptions {
        LeaseOptions { host: self.original.hostid, force: self.take_over, ..LeaseOptions::default() }
    }

    /// Opens a volume for writing, as its only writer.
    pub(crate) fn writer(&self, path: &Path, cancel: &Cancel) -> Result<Writer, Failure> {
        self.original.known_cluster().map_err(Failure::Mount)?;
        let exclusive = Exclusive::take(path, &self.lease(), cancel).map_err(Failure::Mount)?;
        let options = Options {
            // What a person asked for is there when the command ends; the original's promises nothing.
            durable: !self.compatible,
            // As the original's commands: what a crash left is for the daemon to clear up.
            keep_orphans: self.compatible,
            fence: Some(Box::new(exclusive)),
            ..Options::default()
        };
        Writer::open(path, options).map_err(Failure::Mount)
    }

    /// Opens the volume of a path for writing, does something there, and gives it back.
    pub(crate) fn write<T>(
        &self,
        given: &OsStr,
        change: impl FnOnce(&Changing, &VolumePath) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let place = self.place(given)?;
        let changing = self.changing(&place, &Cancel::on_signals()?)?;
        let outcome = change(&changing, &place.path);
        let closed = changing.close();
        let done = outcome?;
        closed?;
        Ok(done)
    }

    /// Opens a device.
    pub(crate) fn device(&self, path: &Path) -> Result<Device, Failure> {
        self.original.known_cluster().map_err(Failure::Mount)?;
        Device::open(path).map_err(Failure::Mount)
    }

    /// Opens a volume.
    pub(crate) fn open(&self, path: &Path) -> Result<Volume, Failure> {
        self.open_with(path, Load::default())
    }

    /// Opens a volume in another way.
    pub(crate) fn open_with(&self, path: &Path, how: Load) -> Result<Volume, Failure> {
        let volume = Volume::load(self.device(path)?, how).map_err(Failure::Mount)?;
        let (host, hosts) = (u64::from(self.original.hostid), volume.leader().hosts);
        if host > hosts {
            let message = format!("there can be no host {host}: {} has room for {hosts}", path.display());
            return Err(Failure::Mount(Error::invalid(message)));
        }
        Ok(volume)
    }
}
