//! Giving back what a served disk took from the kernel, also after a server that is gone.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

use crate::loopdev::{self, LoopDevice};
use crate::mounts;

/// Detaches the loop devices that stand on files in one of `mounts`, which are ours. Returns those there were.
pub(super) fn loop_devices(mounts: &[PathBuf]) -> Vec<LoopDevice> {
    let ours: Vec<&Path> = mounts.iter().map(PathBuf::as_path).filter(|point| is_ours(point)).collect();
    let mut devices = loopdev::list();
    devices.retain(|device| device.backing_file.parent().is_some_and(|parent| ours.contains(&parent)));
    // Who has it open or mounted keeps it until they let go; what they do with it fails, for there is no disk any more.
    devices.retain(|device| loopdev::abandon(device).is_ok());
    devices
}

/// Unmounts what is mounted at `point`, if it is one of ours; who has a file open there keeps it. Returns whether there was
/// something.
pub(super) fn mount(point: &Path) -> bool {
    is_ours(point) && umount2(point, MntFlags::MNT_DETACH).is_ok()
}

/// As [`mount`]; and whatever is asked of it, or was and is not answered, fails.
pub(super) fn abort(point: &Path) {
    if is_ours(point) {
        // Somebody else may have been quicker.
        let _ = umount2(point, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH);
    }
}

fn is_ours(point: &Path) -> bool {
    mounts::is_mounted(point, super::FILE_SYSTEM)
}
