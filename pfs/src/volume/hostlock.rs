//! The locks by which the original keeps its processes on one machine apart: byte ranges of a file in /var/run/pfs.
//!
//! They are as good as that file is shared: another container has another /var/run. What holds everywhere is the
//! [lease](super::Lease).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use blockdev::ui::needs_root;
use blockdev::{Context, Error, ErrorKind, Result, loopdev};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// Where the original has them.
const DIRECTORY: &str = "/var/run/pfs";

/// Bytes of the file that stand for one host.
const HOST: i64 = 1024;

/// What is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Region {
    /// Everything: for making a volume.
    All,
    /// A host that writes: 1 to 254, as the volume's leader record allows.
    Host(u8),
    /// The number of chunks: for growing a volume.
    Chunks,
    /// What a tool locks that asks a pfsd to write for it.
    Tools,
}

/// A lock on a device, held until dropped or until the process ends. Nothing for a file, which the original does not know.
#[derive(Debug)]
pub struct HostLock {
    /// One for each name of the device, as it may be locked by any.
    _files: Vec<File>,
}

impl HostLock {
    /// Locks the device at `path`, by all names that are known of it.
    ///
    /// Open file descriptions own these locks, and not the process, as they do the original's: that forgets its own when it
    /// closes the file once more. Both kinds exclude each other.
    ///
    /// # Errors
    /// [`Refused`](ErrorKind::Refused), errno EAGAIN, when somebody holds it; and when the file that is locked cannot be
    /// made.
    pub fn take(path: &Path, region: Region) -> Result<Self> {
        let metadata = fs::metadata(path).context(|| format!("cannot open {}", path.display()))?;
        if !metadata.file_type().is_block_device() {
            return Ok(Self { _files: Vec::new() });
        }
        let directory = Path::new(DIRECTORY);
        let what = path.display().to_string();
        let files = names(path)?.iter().map(|name| lock(directory, &what, name, region)).collect::<Result<_>>()?;
        Ok(Self { _files: files })
    }

    /// Locks the disk of this name, as who asks a pfsd to write does. The locks are in `directory`.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn of_disk(directory: &Path, disk: &str, region: Region) -> Result<Self> {
        Ok(Self { _files: vec![lock(directory, disk, disk, region)?] })
    }
}

/// What the original may call a device: by the name it was given, the kernel's, and those that onedisk gave it. They are
/// paths below /dev whose slashes are underscores.
pub(crate) fn names(path: &Path) -> Result<Vec<String>> {
    let real = fs::canonicalize(path).context(|| format!("cannot follow {}", path.display()))?;
    let given = loopdev::list().into_iter().filter(|device| device.path == real).flat_map(|device| device.names);
    let mut names: Vec<String> =
        [path, &real].into_iter().filter_map(disk_name).chain(given.map(|name| name.to_string())).collect();
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

fn disk_name(path: &Path) -> Option<String> {
    let below = path.strip_prefix("/dev").ok().or_else(|| path.file_name().map(Path::new))?;
    Some(below.to_string_lossy().replace('/', "_"))
}

/// Locks what is called `name`, and in messages `what`.
fn lock(directory: &Path, what: &str, name: &str, region: Region) -> Result<File> {
    let path = directory.join(format!("{name}-paxos-hostid"));
    let file = needs_root(open(&path).context(|| format!("cannot open {}", path.display())))?;
    let (start, len) = match region {
        // To the end, wherever that is.
        Region::All => (0, 0),
        Region::Host(host) => (i64::from(host) * HOST, HOST),
        Region::Chunks => (255 * HOST, HOST),
        Region::Tools => (256 * HOST, HOST),
    };
    #[allow(clippy::cast_possible_truncation, reason = "both are small constants")]
    let wanted = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: len,
        l_pid: 0,
    };
    match fcntl(&file, FcntlArg::F_OFD_SETLK(&wanted)) {
        Ok(_) => Ok(file),
        Err(Errno::EAGAIN | Errno::EACCES) => {
            let mut holder = wanted;
            // Who it is only makes the message better.
            let _ = fcntl(&file, FcntlArg::F_OFD_GETLK(&mut holder));
            let who = process(holder.l_pid)
                .map_or_else(|| "another process".to_owned(), |name| format!("{name} (pid {})", holder.l_pid));
            let error = Error::io(format!("{what} is locked by {who}, in {}", path.display()), Errno::EAGAIN);
            Err(error
                .with_kind(ErrorKind::Refused)
                .with_hint("a pfsd or a `pfs` command of this machine is using it: end that first"))
        }
        Err(errno) => Err(Error::io(format!("cannot lock {}", path.display()), errno)),
    }
}

/// Opens the file, and makes it where it is missing, for everybody to lock, as the original does.
fn open(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
        fs::create_dir_all(directory)?;
    }
    let options = || {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_CLOEXEC);
        options
    };
    match options().create_new(true).mode(0o666).open(path) {
        Ok(file) => {
            // Past the umask. Whose file it is may always do this.
            file.set_permissions(fs::Permissions::from_mode(0o666))?;
            Ok(file)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => options().open(path),
        Err(error) => Err(error),
    }
}

/// The name of a process that this one can see.
fn process(pid: i32) -> Option<String> {
    let name = (pid > 0).then(|| fs::read_to_string(format!("/proc/{pid}/comm")).ok())??;
    Some(name.trim_end().to_owned())
}
