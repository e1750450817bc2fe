//! The node of a loop device in /dev. A container's /dev is a copy made at its start, so a device that came later has none there.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, SFlag, mknod};

use crate::sysfs::BlockDir;

/// Where the node of loop device `number` is.
pub(super) fn path(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/loop{number}"))
}

/// What sysfs tells of loop device `number`.
pub(super) fn sysfs(number: u32) -> BlockDir {
    BlockDir::named(format!("loop{number}"))
}

/// Opens the node of loop device `number`, and makes it first where only sysfs knows the device.
pub(super) fn open(number: u32, how: &OpenOptions) -> io::Result<File> {
    let path = path(number);
    let device = sysfs(number).device_number();
    let file = match how.open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make(&path, device.ok_or(error)?)?;
            how.open(&path)?
        }
        outcome => outcome?,
    };
    // A `dd of=/dev/loop9` before there was a loop9 leaves a plain file there.
    if device.is_some_and(|device| file.metadata().is_ok_and(|metadata| metadata.rdev() == device)) {
        Ok(file)
    } else {
        Err(io::Error::other(format!("{} is not the node of a loop device", path.display())))
    }
}

fn make(path: &Path, device: nix::libc::dev_t) -> io::Result<()> {
    match mknod(path, SFlag::S_IFBLK, Mode::from_bits_truncate(0o660), device) {
        // Somebody, perhaps udev, was faster.
        Err(nix::errno::Errno::EEXIST) => Ok(()),
        outcome => Ok(outcome?),
    }
}
