//! Whether a target may be written to: never by accident over what somebody may want to keep.

use blockdev::{Error, ErrorKind, FileId, Result, loopdev, mark, usage};

use super::target::Target;

/// Whether `target` may be overwritten. With `destroy` the person has said so; that two caches lie over one disk they
/// cannot say.
///
/// # Errors
/// Of kind `Refused`, saying what was found.
pub fn may_overwrite(target: &Target, destroy: bool) -> Result<()> {
    let path = target.path().display();
    if let Some(device) = attached_as(target) {
        let device = device.path.display();
        return Err(Error::refused(format!(
            "{path} is attached as {device}: written past that device, its users would go on seeing what was there before"
        ))
        .with_hint(format!("measure {device} instead, or `vdisk detach {device}` first")));
    }
    if destroy {
        return Ok(());
    }
    let ourselves = std::process::id();
    let uses: Vec<usage::Use> = usage::uses_of(target.id())
        .into_iter()
        .filter(|used| !matches!(used, usage::Use::Open { pid, .. } if *pid == ourselves))
        .collect();
    let found = if !uses.is_empty() {
        format!("{path} is {}", usage::describe(&uses))
    } else if is_ours(target) {
        return Ok(());
    } else {
        format!("{path} was not made by onedisk")
    };
    Err(Error::new(ErrorKind::Refused, format!("{found}: writing to it would destroy what it holds"))
        .with_hint("reads are safe (--rw read,randread); --destroy overwrites it all the same"))
}

/// The loop device that a target which is a file is attached to.
fn attached_as(target: &Target) -> Option<loopdev::LoopDevice> {
    let FileId::Inode { .. } = target.id() else { return None };
    loopdev::list().into_iter().find(|device| device.is_on(target.id()))
}

/// Whether onedisk made the file, or the file behind the loop device.
fn is_ours(target: &Target) -> bool {
    target.loop_device().map_or_else(|| mark::is_set(target.path()), loopdev::LoopDevice::is_ours)
}
