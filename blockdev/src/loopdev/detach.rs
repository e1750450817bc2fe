//! From a device back to a mere file.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::thread;
use std::time::{Duration, Instant};

use super::{LoopDevice, abi, name, node, not_attached};
use crate::error::{Context, Error, Result};
use crate::file_id::FileId;
use crate::ui::needs_root;
use crate::usage::{self, Use};

/// For how long something may still look at a device (udev does, whenever one changes) before it counts as using it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Detaches `device`, and removes the names it was given.
///
/// # Errors
/// [`Refused`](crate::ErrorKind::Refused) when it is mounted, open or otherwise in use, with what uses it;
/// [`NotFound`](crate::ErrorKind::NotFound) when it is not attached (any more).
pub fn detach(device: &LoopDevice) -> Result<()> {
    let path = device.path.display();
    let Some(number) = node::sysfs(device.number).device_number().filter(|_| device.is_still_there()) else {
        return Err(not_attached(device.number));
    };
    let id = FileId::BlockDevice { number };
    // Exclusive, so that nobody mounts it between the look at who uses it and the end. It fails if somebody did before,
    // perhaps where we cannot see it.
    let mut exclusive = OpenOptions::new();
    exclusive.read(true).custom_flags(libc::O_EXCL);
    let start = Instant::now();
    let node = loop {
        let uses = usage::uses_of(id);
        let passing = uses.iter().all(|r#use| matches!(r#use, Use::Open { .. })) && start.elapsed() < PATIENCE;
        match node::open(device.number, &exclusive) {
            Ok(node) if uses.is_empty() => break node,
            Err(error) if error.raw_os_error() != Some(libc::EBUSY) => {
                return needs_root(Err(error).context(|| format!("cannot open {path} to detach it")));
            }
            _ if passing => thread::sleep(Duration::from_millis(20)),
            _ => return Err(in_use(device, &uses)),
        }
    };
    needs_root(abi::clr_fd(&node).context(|| format!("cannot detach {path}")))?;
    drop(node);
    // The kernel detached it only if nobody else had it open; else it will when the last one closes it.
    let start = Instant::now();
    while device.is_still_there() {
        if start.elapsed() > PATIENCE {
            let uses = usage::uses_of(id);
            if let Ok(node) = node::open(device.number, OpenOptions::new().read(true)) {
                // As it was before; if this fails, then because it is detached at last.
                let _ = set_autoclear(&node, device.autoclear);
            }
            return Err(in_use(device, &uses));
        }
        thread::sleep(Duration::from_millis(5));
    }
    name::remove_all(device.number)
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
