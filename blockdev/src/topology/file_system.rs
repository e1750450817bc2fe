//! The file system that a file is on.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::libc::dev_t;
use serde::Serialize;

use super::statx::statx;
use crate::error::{Context, Result};
use crate::mounts;
use crate::ui::path_as_text;

/// A mounted file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileSystem {
    /// Its kind as mount(8) calls it, such as `ext4`, `tmpfs` or `fuse.sshfs`.
    pub name: String,
    /// Where it is mounted.
    #[serde(serialize_with = "path_as_text")]
    pub mount_point: PathBuf,
    /// What is mounted: a device, or whatever the file system calls it.
    #[serde(serialize_with = "path_as_text")]
    pub source: PathBuf,
    /// The number of the block device it is on, if it is on one.
    #[serde(skip)]
    pub device: Option<dev_t>,
}

/// The file system that `file` is on, or nothing where its mount is not visible here.
///
/// # Errors
/// When the file cannot be looked at.
pub fn file_system(file: &File) -> Result<Option<FileSystem>> {
    let what = || "cannot find the file system of a file";
    let status = statx(file, libc::STATX_MNT_ID).context(what)?;
    let device = file.metadata().context(what)?.dev();
    // Linux before 5.8 tells no mount. The device number serves then, but btrfs has another one for files than for mounts.
    let told = (status.stx_mask & libc::STATX_MNT_ID != 0).then_some(status.stx_mnt_id);
    let mount = mounts::seen_by(Path::new("/proc/self"))
        .into_iter()
        .find(|mount| told.map_or(mount.device == device, |id| mount.id == id));
    Ok(mount.map(|mount| FileSystem {
        device: mount.block_device(),
        name: mount.file_system,
        mount_point: mount.point,
        source: mount.source,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_proc() {
        let found = file_system(&File::open("/proc/self/status").unwrap()).unwrap().unwrap();
        assert_eq!((&*found.name, &*found.mount_point), ("proc", Path::new("/proc")));
        assert_eq!(found.device, None);
    }
}
