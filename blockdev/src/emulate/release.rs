//! Giving back what a served disk took from the kernel, also after a server that is gone.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

use crate::loopdev::{self, LoopDevice};
use crate::mounts;

/// Detaches a loop device that stands on a file below one of `mounts`. Returns whether there was one.
pub(super) fn loop_device(number: u32, mounts: &[PathBuf]) -> bool {
    let Some(device) = LoopDevice::with_number(number) else { return false };
    if !mounts.iter().any(|mount| device.backing_file.starts_with(mount)) {
        return false;
    }
    // Who has it open or mounted keeps it until they let go; what they do with it fails, for there is no disk any more.
    loopdev::abandon(&device).is_ok()
}

/// Unmounts what is mounted at `point`, if it is one of ours. Returns whether there was something.
pub(super) fn mount(point: &Path) -> bool {
    mounts::is_mounted(point, super::FILE_SYSTEM) && umount2(point, MntFlags::MNT_DETACH).is_ok()
}
