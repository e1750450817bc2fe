//! A file that is not whole yet, under a name that nobody takes for the real one.
//!
//! It is called `.NAME.onedisk-HEX.partial`, beside the file it is to become, and locked with flock(2) by whoever builds it:
//! one that nobody has locked is a leftover of a run that was killed, and the next run removes it. A file without a name
//! (`O_TMPFILE`) would leave nothing behind, but it cannot replace another in one step, nor be had on every file system; this
//! is one way for all.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, RenameFlags, renameat2};

use crate::error::{Context, Error, ErrorKind, Result};
use crate::file_id::FileId;

const MIDDLE: &[u8] = b".onedisk-";
const SUFFIX: &[u8] = b".partial";
const HEX_DIGITS: usize = 16;

/// Longest name of a file (NAME_MAX of limits.h).
const NAME_MAX: usize = 255;

/// How often a new name is tried after a collision, or after another run took the new file for a leftover.
const ATTEMPTS_MAX: u32 = 100;

/// A file in the making. Unless it is [published](Partial::publish), it goes when dropped.
#[derive(Debug)]
pub(super) struct Partial {
    file: File,
    path: PathBuf,
    /// On a descriptor of its own: `file` may be duplicated for I/O. Nothing where the file system has no locks; then no run
    /// can tell that this file is alive, and none will remove it.
    _lock: Option<Flock<File>>,
    published: bool,
}

impl Partial {
    /// A new, empty file beside `target`, which has a file name.
    pub(super) fn new(target: &Path) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        let mut outcome = Err(io::Error::from_raw_os_error(libc::EEXIST));
        for _ in 0..ATTEMPTS_MAX {
            let path = target.with_file_name(name_for(target));
            outcome = match options.open(&path) {
                Ok(file) => Self::lock(file, path),
                Err(error) => Err(error),
            };
            match &outcome {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                _ => break,
            }
        }
        outcome.context(|| format!("cannot make a file beside {}", target.display()))
    }

    /// Locks the new file. `AlreadyExists` says that another run was faster and has removed it as a leftover.
    fn lock(file: File, path: PathBuf) -> io::Result<Self> {
        let mut partial = Self { file, path, _lock: None, published: false };
        let taken = || io::Error::from_raw_os_error(libc::EEXIST);
        match Flock::lock(File::open(&partial.path)?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => partial._lock = Some(lock),
            Err((_, Errno::EWOULDBLOCK)) => return Err(taken()),
            Err(_) => return Ok(partial),
        }
        if partial.file.metadata()?.nlink() == 0 {
            return Err(taken());
        }
        Ok(partial)
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the file its real name, all at once: `replace` takes the place of what has it now, otherwise that is an error.
    /// Durable when it returns.
    pub(super) fn publish(mut self, target: &Path, replace: bool) -> Result<()> {
        let what = || format!("cannot give the finished file its name {}", target.display());
        if replace {
            fs::rename(&self.path, target).context(what)?;
        } else {
            match renameat2(AT_FDCWD, &self.path, AT_FDCWD, target, RenameFlags::RENAME_NOREPLACE) {
                // Not on this file system (NFS, most of FUSE). A second name does not replace either, and the first goes
                // when `self` does.
                Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
                    fs::hard_link(&self.path, target).context(what)?;
                    fs::remove_file(&self.path).context(what)?;
                }
                outcome => outcome.context(what)?,
            }
        }
        self.published = true;
        let directory = target.parent().unwrap_or(Path::new("/"));
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .context(|| format!("cannot make the new name in {} durable", directory.display()))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.published {
            // If it cannot be removed, the next run finds it unlocked.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A name for the unfinished `target`, as no file has it.
fn name_for(target: &Path) -> OsString {
    let mut name = prefix_for(target);
    name.extend_from_slice(format!("{:016x}", fastrand::u64(..)).as_bytes());
    name.extend_from_slice(SUFFIX);
    OsString::from_vec(name)
}

/// What all names for the unfinished `target` begin with: `.NAME.onedisk-`, with as much of the name as fits.
fn prefix_for(target: &Path) -> Vec<u8> {
    let name = target.file_name().unwrap_or_default().as_bytes();
    let room = NAME_MAX - 1 - MIDDLE.len() - HEX_DIGITS - SUFFIX.len();
    [b".", &name[..name.len().min(room)], MIDDLE].concat()
}

/// Whether only a file in the making is called so.
fn is_partial(name: &OsStr) -> bool {
    let Some(rest) = name.as_bytes().strip_suffix(SUFFIX) else { return false };
    let Some((start, hex)) = rest.split_at_checked(rest.len().saturating_sub(HEX_DIGITS)) else { return false };
    let is_hex = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
    hex.len() == HEX_DIGITS && hex.iter().all(is_hex) && start.starts_with(b".") && start.ends_with(MIDDLE)
}

/// Removes what killed runs have left in the directory of `target`, and returns what that was.
///
/// # Errors
/// [`Refused`](ErrorKind::Refused) when another run is making `target` right now.
pub(super) fn sweep(target: &Path) -> Result<Vec<PathBuf>> {
    let directory = target.parent().unwrap_or(Path::new("/"));
    let entries = fs::read_dir(directory).context(|| format!("cannot read the directory {}", directory.display()))?;
    let prefix = prefix_for(target);
    let mut removed = Vec::new();
    for entry in entries.flatten().filter(|entry| is_partial(&entry.file_name())) {
        match remove_leftover(&entry.path()) {
            Ok(()) => removed.push(entry.path()),
            Err(Errno::EWOULDBLOCK) if entry.file_name().as_bytes().starts_with(&prefix) => {
                let message =
                    format!("another run is making {} right now, as {}", target.display(), entry.path().display());
                return Err(Error::new(ErrorKind::Refused, message).with_hint("wait until it is finished, or end it"));
            }
            // Alive, or not ours to judge: another user's, or on a file system without locks.
            Err(_) => {}
        }
    }
    Ok(removed)
}

/// Removes the file at `path` unless somebody has it locked (`EWOULDBLOCK`).
fn remove_leftover(path: &Path) -> Result<(), Errno> {
    let errno = |error: io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    // A pipe of that name would keep us waiting, and a link may lead anywhere.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(errno)?;
    if !file.metadata().map_err(errno)?.is_file() {
        return Err(Errno::EINVAL);
    }
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
    // Locked from here on, so that nobody else takes it for dead or alive; but it may have been published meanwhile.
    let at_path = FileId::of(&fs::symlink_metadata(path).map_err(errno)?);
    if at_path != FileId::of(&lock.metadata().map_err(errno)?) {
        return Err(Errno::ENOENT);
    }
    fs::remove_file(path).map_err(errno)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names_in(directory: &Path) -> Vec<OsString> {
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    }

    #[test]
    fn a_dropped_one_is_gone_and_a_published_one_has_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("disk");
        drop(Partial::new(&target).unwrap());
        assert!(names_in(dir.path()).is_empty());
        Partial::new(&target).unwrap().publish(&target, false).unwrap();
        assert_eq!(names_in(dir.path()), ["disk"]);
    }

    #[test]
    fn only_what_is_asked_to_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("disk");
        fs::write(&target, "old").unwrap();
        let error = Partial::new(&target).unwrap().publish(&target, false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert_eq!(error.to_string(), format!("cannot give the finished file its name {}", target.display()));
        assert_eq!((names_in(dir.path()).len(), &*fs::read(&target).unwrap()), (1, &b"old"[..]));
        Partial::new(&target).unwrap().publish(&target, true).unwrap();
        assert_eq!((names_in(dir.path()).len(), &*fs::read(&target).unwrap()), (1, &b""[..]));
    }

    #[test]
    fn leftovers_are_removed_and_living_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, other) = (dir.path().join("ours"), dir.path().join("other"));
        let dead = dir.path().join(name_for(&other));
        fs::write(&dead, "half").unwrap();
        let alive = Partial::new(&other).unwrap();
        fs::write(dir.path().join("bystander.partial"), "").unwrap();
        assert_eq!(sweep(&ours).unwrap(), [dead]);
        assert_eq!(sweep(&ours).unwrap(), [""; 0].map(PathBuf::from));
        assert_eq!(names_in(dir.path()).len(), 2);

        let error = sweep(&other).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().starts_with(&format!("another run is making {}", other.display())), "{error}");
        drop(alive);
        assert!(sweep(&other).unwrap().is_empty());
    }

    #[test]
    fn what_only_looks_like_a_leftover_stays() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("disk");
        fs::write(&target, "").unwrap();
        std::os::unix::fs::symlink(&target, dir.path().join(name_for(&target))).unwrap();
        fs::create_dir(dir.path().join(name_for(&target))).unwrap();
        nix::unistd::mkfifo(&dir.path().join(name_for(&target)), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(sweep(&target).unwrap().is_empty());
        assert_eq!(names_in(dir.path()).len(), 4);
    }

    proptest! {
        #[test]
        fn a_name_is_recognised_and_fits(bytes in prop::collection::vec(prop::num::u8::ANY, 1..=255)) {
            prop_assume!(!bytes.contains(&b'/') && !bytes.contains(&0) && bytes != b"." && bytes != b"..");
            let target = Path::new("/directory").join(OsStr::from_bytes(&bytes));
            let name = name_for(&target);
            prop_assert!(is_partial(&name));
            prop_assert!(name.len() <= NAME_MAX);
            prop_assert!(!is_partial(target.file_name().unwrap()));
        }

        #[test]
        fn any_name_is_looked_at_without_harm(bytes in prop::collection::vec(prop::num::u8::ANY, 0..60)) {
            let _ = is_partial(OsStr::from_bytes(&bytes));
        }
    }
}
