//! The mark on files that onedisk made, so that it never takes back what somebody else made.
//!
//! The mark is the extended attribute `user.onedisk`. It follows the file through a rename, and a copy has it only if the
//! attributes were copied too (`cp -a`).
//!
//! Some file systems have no such attributes (vfat, exfat, 9p, ramfs, tmpfs before Linux 6.6). There the mark is an empty
//! file named after device, inode and birth time of the marked one: in `/var/lib/onedisk/made` for root, else in
//! `$XDG_STATE_HOME/onedisk/made` (`~/.local/state/onedisk/made`). Such a mark may be lost (another user asks, a file
//! system that numbers its files anew when mounted), and the file is then taken for somebody else's: the safe mistake.

use std::ffi::{CStr, CString};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::error::{Context, Result};

const ATTRIBUTE: &CStr = c"user.onedisk";
const VALUE: &[u8] = b"made by onedisk";

/// Marks `file`, which is open for writing, as made by onedisk.
///
/// # Errors
/// When neither the file system nor the directory of marks takes the mark.
pub fn set(file: &File) -> Result<()> {
    set_or_note(file, &directories()[0])
}

fn set_or_note(file: &File, directory: &Path) -> Result<()> {
    match set_attribute(file) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            let metadata = file.metadata().context(|| "cannot look at the file to mark")?;
            set_entry(directory, &metadata)
        }
        outcome => outcome.context(|| "cannot mark a file as made by onedisk"),
    }
}

/// Whether onedisk made the file at `path`. What cannot be looked at was not.
#[must_use]
pub fn is_set(path: &Path) -> bool {
    is_set_or_noted(path, &directories())
}

fn is_set_or_noted(path: &Path, directories: &[PathBuf]) -> bool {
    has_attribute(path)
        || fs::metadata(path)
            .is_ok_and(|metadata| directories.iter().any(|directory| directory.join(entry_name(&metadata)).exists()))
}

fn set_attribute(file: &File) -> io::Result<()> {
    // SAFETY: name and value are valid for the lengths given, and the call keeps neither.
    let outcome =
        unsafe { libc::fsetxattr(file.as_raw_fd(), ATTRIBUTE.as_ptr(), VALUE.as_ptr().cast(), VALUE.len(), 0) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn has_attribute(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: both strings end in a NUL; a size of 0 asks for the length alone and writes nothing.
    unsafe { libc::getxattr(path.as_ptr(), ATTRIBUTE.as_ptr(), std::ptr::null_mut(), 0) >= 0 }
}

/// Where marks are that no file system takes: first where this user's go, then where else to look.
fn directories() -> Vec<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = variable("XDG_STATE_HOME").or_else(|| variable("HOME").map(|home| home.join(".local/state")));
    let own = state.map(|state| state.join("onedisk/made"));
    let system = Some(PathBuf::from("/var/lib/onedisk/made"));
    let order = if nix::unistd::geteuid().is_root() { [system, own] } else { [own, system] };
    order.into_iter().flatten().collect()
}

fn set_entry(directory: &Path, metadata: &Metadata) -> Result<()> {
    let entry = directory.join(entry_name(metadata));
    fs::create_dir_all(directory)
        .and_then(|()| File::create(&entry))
        .map(drop)
        .context(|| format!("cannot note in {} that onedisk made a file", directory.display()))
}

/// Birth time included, so that a later file with the same inode number is not taken for the marked one.
fn entry_name(metadata: &Metadata) -> String {
    let born = metadata.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    format!("{:x}-{:x}-{:x}", metadata.dev(), metadata.ino(), born.as_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_attributes_the_mark_is_noted_elsewhere() {
        ::tests::needs_root!();
        let (point, made) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mount = |arguments: &[&str]| {
            let program = if arguments.is_empty() { "umount" } else { "mount" };
            std::process::Command::new(program).args(arguments).arg(point.path()).status().unwrap()
        };
        assert!(mount(&["-t", "ramfs", "ramfs"]).success());
        let (ours, renamed, other) =
            (point.path().join("ours"), point.path().join("renamed"), point.path().join("other"));
        let known = |path: &Path| is_set_or_noted(path, &[made.path().to_owned()]);
        let outcome = std::panic::catch_unwind(|| {
            let file = File::create(&ours).unwrap();
            set_or_note(&file, made.path()).unwrap();
            set_or_note(&file, made.path()).unwrap();
            File::create(&other).unwrap();
            fs::rename(&ours, &renamed).unwrap();
            assert!(!has_attribute(&renamed));
            assert!(known(&renamed) && !known(&other));
            assert_eq!(fs::read_dir(&made).unwrap().count(), 1);
        });
        assert!(mount(&[]).success());
        outcome.unwrap();
    }
}
