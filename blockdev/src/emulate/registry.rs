//! Which disks are served on this machine, and what a server that was killed has left behind.
//!
//! Each server has a directory of its own, with its control socket and a note of what it has taken: mounts, loop devices,
//! sockets. It holds a lock on the note as long as it lives, whatever ends it; so a note that nobody holds is of one that is gone.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::release;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::file_id::FileId;

/// The note in a server's directory.
const NOTE: &str = "note.json";
/// The control socket in a server's directory.
const SOCKET: &str = "control";

/// Where a server mounts files in its directory.
const MOUNT_POINT: &str = "files";

/// What a server has taken.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Note {
    /// The image it serves.
    pub(super) image: PathBuf,
    /// Its process.
    pub(super) pid: u32,
    /// Where it has mounted something.
    pub(super) mounts: Vec<PathBuf>,
    /// Which of those directories it makes.
    pub(super) made: Vec<PathBuf>,
    /// Whether it has attached loop devices to files there.
    pub(super) attached: bool,
    /// Sockets that it listens at.
    pub(super) sockets: Vec<PathBuf>,
}

/// A server's place in the registry, given back when this is dropped.
#[derive(Debug)]
pub(super) struct Registered {
    directory: PathBuf,
    note: Note,
    file: Flock<File>,
}

impl Registered {
    /// Takes the place of the server of `image`, cleaning up after one that is gone.
    pub(super) fn new(image: &Path) -> Result<Self> {
        let what = || format!("cannot note that {} is served", image.display());
        let directory = own_directory()?.join(name_of(image)?);
        clean_one(&directory);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).context(what)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join(NOTE))
            .context(what)?;
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, errno)| Error::io(format!("{} is served already", image.display()), errno))?;
        let note = Note { image: image.to_owned(), pid: std::process::id(), ..Note::default() };
        let mut registered = Self { directory, note, file };
        registered.write()?;
        Ok(registered)
    }

    /// Where its control socket is.
    pub(super) fn socket(&self) -> PathBuf {
        self.directory.join(SOCKET)
    }

    /// Where it may mount something if nobody says where.
    pub(super) fn mount_point(&self) -> PathBuf {
        self.directory.join(MOUNT_POINT)
    }

    /// Notes something that is about to be taken.
    pub(super) fn note(&mut self, change: impl FnOnce(&mut Note)) -> Result<()> {
        change(&mut self.note);
        self.write()
    }

    fn write(&mut self) -> Result<()> {
        let what = || format!("cannot write to {}", self.directory.display());
        let text =
            serde_json::to_vec(&self.note).map_err(|source| Error::new(ErrorKind::Io, what()).with_source(source))?;
        let mut file: &File = &self.file;
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(&text)).context(what)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // What is left is cleaned up by the next.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Where this user's servers are noted.
fn own_directory() -> Result<PathBuf> {
    if nix::unistd::geteuid().is_root() {
        return Ok("/run/onedisk".into());
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    match runtime {
        Some(runtime) => Ok(runtime.join("onedisk")),
        None => {
            let directory = std::env::temp_dir().join(format!("onedisk-{}", nix::unistd::geteuid()));
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&directory)
                .context(|| "cannot make a directory")?;
            // Anybody may have made it before.
            let metadata = fs::symlink_metadata(&directory).context(|| "cannot look at a directory")?;
            let ours = metadata.is_dir() && metadata.uid() == nix::unistd::geteuid().as_raw();
            if !ours || metadata.permissions().mode() & 0o077 != 0 {
                return Err(Error::refused(format!("{} is not this user's alone", directory.display())));
            }
            Ok(directory)
        }
    }
}

/// What the place of an image is called: after the file, whatever its names.
fn name_of(image: &Path) -> Result<String> {
    let metadata = fs::metadata(image).context(|| format!("cannot find {}", image.display()))?;
    Ok(match FileId::of(&metadata) {
        FileId::Inode { device, inode } => format!("{device:x}-{inode:x}"),
        FileId::BlockDevice { number } => format!("device-{number:x}"),
    })
}

/// The control socket of who serves `disk`, which may be the socket itself.
pub(super) fn socket_of(disk: &Path) -> Result<PathBuf> {
    let metadata = fs::metadata(disk).context(|| format!("cannot find {}", disk.display()))?;
    if metadata.file_type().is_socket() {
        return Ok(disk.to_owned());
    }
    let socket = own_directory()?.join(name_of(disk)?).join(SOCKET);
    if fs::symlink_metadata(&socket).is_err() {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("{} is not served on this machine by this user", disk.display()),
        )
        .with_hint("vdisk serve IMAGE, or `vdisk served` to see which are"));
    }
    Ok(socket)
}

/// The images that this user serves on this machine.
#[must_use]
pub fn served() -> Vec<PathBuf> {
    let directories =
        own_directory().ok().and_then(|directory| fs::read_dir(directory).ok()).into_iter().flatten().flatten();
    directories.filter_map(|entry| read(&entry.path()).map(|note| note.image)).collect()
}

fn read(directory: &Path) -> Option<Note> {
    let mut text = String::new();
    File::open(directory.join(NOTE)).ok()?.read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

/// Cleans up after servers that were killed: their mounts, loop devices and sockets. Returns what was found, in words.
pub fn clean_up() -> Vec<String> {
    let Ok(entries) = own_directory().and_then(|directory| fs::read_dir(directory).context(|| "")) else {
        return Vec::new();
    };
    entries.flatten().filter_map(|entry| clean_one(&entry.path())).collect()
}

/// Cleans up what is noted in `directory`, if nobody is alive who noted it.
fn clean_one(directory: &Path) -> Option<String> {
    let file = OpenOptions::new().read(true).write(true).open(directory.join(NOTE)).ok()?;
    let _alone = Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()?;
    let note = read(directory).unwrap_or_default();
    let mut found = Vec::new();
    if note.attached {
        found.extend(release::loop_devices(&note.mounts).iter().map(|device| device.path.display().to_string()));
    }
    for mount in &note.mounts {
        if release::mount(mount) {
            found.push(format!("the mount at {}", mount.display()));
        }
    }
    for made in &note.made {
        // Somebody may have put something there.
        let _ = fs::remove_dir(made);
    }
    for socket in &note.sockets {
        let is_socket = fs::symlink_metadata(socket).is_ok_and(|metadata| metadata.file_type().is_socket());
        let deserted = is_socket && std::os::unix::net::UnixStream::connect(socket).is_err();
        if deserted && fs::remove_file(socket).is_ok() {
            found.push(socket.display().to_string());
        }
    }
    // It goes with what it noted.
    let _ = fs::remove_dir_all(directory);
    let what = if found.is_empty() { "nothing".to_owned() } else { found.join(", ") };
    (!note.image.as_os_str().is_empty())
        .then(|| format!("the server of {} was killed; it had left behind: {what}", note.image.display()))
}
