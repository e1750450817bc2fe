//! From a device back to a mere file.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::{LoopDevice, abi, name, node, not_attached};
use crate::error::{Context, Error, Result};
use crate::file_id::FileId;
use crate::ui::needs_root;
use crate::usage::{self, Use};

/// For how long something may still look at a device (udev does, whenever one changes) before it counts as using it.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// Detaches `device`, and removes the names it was given.
///
/// # Errors
/// [`Refused`](crate::ErrorKind::Refused) when it is mounted, open or otherwise in use, with what uses it;
/// [`NotFound`](crate::ErrorKind::NotFound) when it is not attached (any more).
pub fn detach(device: &LoopDevice) -> Result<()> {
    let Some(number) = node::sysfs(device.number).device_number() else { return Err(not_attached(device.number)) };
    let start = Instant::now();
    while let Some(uses) = try_detach(device, FileId::BlockDevice { number })? {
        let passing = uses.iter().all(|r#use| matches!(r#use, Use::Open { .. })) && start.elapsed() < PATIENCE;
        if !passing {
            return Err(in_use(device, &uses));
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Detaches `device`, whose file is gone, or else as soon as the last one who has it open closes it; removes its names.
pub(crate) fn abandon(device: &LoopDevice) -> Result<()> {
    let path = device.path.display();
    let node = needs_root(
        node::open(device.number, OpenOptions::new().read(true)).context(|| format!("cannot open {path} to detach it")),
    )?;
    if !device.is_still_there() {
        return Err(not_attached(device.number));
    }
    needs_root(abi::clr_fd(&node).context(|| format!("cannot detach {path}")))?;
    name::remove_all(device.number)
}

/// Detaches `device`, whose node has the identity `id`, unless it is in use: then returns who is using it, as far as can be seen.
fn try_detach(device: &LoopDevice, id: FileId) -> Result<Option<Vec<Use>>> {
    let path = device.path.display();
    let uses = usage::uses_of(id);
    // Exclusive, so that from here on nobody mounts it, and its number is not given to another file. It fails if somebody
    // mounted it before, perhaps where we cannot see it.
    let node = match node::open(device.number, OpenOptions::new().read(true).custom_flags(libc::O_EXCL)) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Ok(Some(uses)),
        outcome => needs_root(outcome.context(|| format!("cannot open {path} to detach it")))?,
    };
    if !device.is_still_there() {
        return Err(not_attached(device.number));
    }
    if !uses.is_empty() {
        return Ok(Some(uses));
    }
    needs_root(abi::clr_fd(&node).context(|| format!("cannot detach {path}")))?;
    if abi::get_status(&node) != Err(Errno::ENXIO) {
        // Somebody opened it in between. The kernel would detach it when they close it; leave it as it was instead.
        set_autoclear(&node, device.autoclear).context(|| format!("cannot leave {path} attached"))?;
        drop(node);
        return Ok(Some(usage::uses_of(id)));
    }
    name::remove_all(device.number)?;
    drop(node);
    // Nothing can keep it any more, but some kernels (5.17) take a moment.
    let start = Instant::now();
    while device.is_still_there() && start.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(5));
    }
    Ok(None)
}

/// Whether the kernel detaches the device when the last one that has it open closes it.
pub(super) fn set_autoclear(node: &File, on: bool) -> nix::Result<()> {
    let mut info = abi::get_status(node)?;
    let flags = if on { info.flags | abi::AUTOCLEAR } else { info.flags & !abi::AUTOCLEAR };
    if flags == info.flags {
        return Ok(());
    }
    info.flags = flags;
    abi::set_status(node, &info)
}

fn in_use(device: &LoopDevice, uses: &[Use]) -> Error {
    let path = device.path.display();
    let by_whom = if uses.is_empty() {
        "in use by somebody who is not visible here, perhaps a mount in a container".to_owned()
    } else {
        usage::describe(uses)
    };
    let hint = match uses.first() {
        Some(Use::Mounted { at }) => format!("first: sudo umount {}", at.display()),
        Some(Use::Swap) => format!("first: sudo swapoff {path}"),
        Some(Use::Open { pid, .. }) => format!("end process {pid} first"),
        Some(Use::Held { by }) => format!("give {} back first", by.display()),
        None => "look there, too: docker ps, lsns -t mnt".to_owned(),
    };
    Error::refused(format!("{path} cannot be detached: {by_whom}")).with_hint(hint)
}
