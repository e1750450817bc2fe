//! Whether a target may be written to: never by accident over what somebody may want to keep.

use blockdev::signature::{Contents, Magic};
use blockdev::usage::Use;
use blockdev::{Error, Result, loopdev, mark};

use super::target::Target;

/// PolarFS begins with `0x5046534348` plus its version, which is small, as a little-endian u64. The version's byte is the
/// first; these are the other seven.
const POLARFS: Magic = Magic { name: "PolarFS volume", offset: 1, bytes: &[0x43, 0x53, 0x46, 0x50, 0, 0, 0] };

/// Whether `target` may be overwritten. With `destroy` the person has said so; that two caches lie over one disk they
/// cannot say.
///
/// # Errors
/// Of kind `Refused`, saying what was found.
pub fn may_overwrite(target: &Target, destroy: bool) -> Result<()> {
    let path = target.path().display();
    if let Some(device) = loopdev::list().into_iter().find(|device| device.is_on(target.id())) {
        let device = device.path.display();
        return Err(Error::refused(format!(
            "{path} is attached as {device}: written past that device, its users would go on seeing what was there before"
        ))
        .with_hint(format!("measure {device} instead, or `vdisk detach {device}` first")));
    }
    if destroy {
        return Ok(());
    }
    let mut contents = Contents::of(target.path(), &[POLARFS])?;
    let ourselves = std::process::id();
    contents.uses.retain(|used| !matches!(used, Use::Open { pid, .. } if *pid == ourselves));
    let hint = "reads are safe (--rw read,randread); --destroy overwrites it all the same";
    contents.refuse_to_overwrite(target.path()).map_err(|error| error.with_hint(hint))?;
    if is_ours(target) {
        return Ok(());
    }
    if let Some(offset) = target.first_content()? {
        return Err(Error::refused(format!(
            "{path} was not made by onedisk and holds data, the first at offset {offset}: writing would destroy them"
        ))
        .with_hint(hint));
    }
    Ok(())
}

/// Whether onedisk made the file, or the file behind the loop device.
fn is_ours(target: &Target) -> bool {
    target.loop_device().map_or_else(|| mark::is_set(target.path()), loopdev::LoopDevice::is_ours)
}
