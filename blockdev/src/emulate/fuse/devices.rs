//! Loop devices on files that this process serves, from a thread that does not keep the process from being killed.

use std::path::Path;
use std::thread;

use crate::error::{Context, Error, ErrorKind, Result};
use crate::loopdev::{self, LoopDevice, Options};
use crate::units::ByteSize;

/// Attaches a loop device to `file`, which stays until it is detached, also when this process is killed: then requests to it
/// fail, and the next of our commands detaches it. If it went by itself, the kernel would write back first what is cached of it,
/// to a process that is dying.
pub(super) fn attach(file: &Path, sector_size: ByteSize, read_only: bool) -> Result<LoopDevice> {
    let options = Options { logical_block_size: sector_size, direct_io: true, read_only };
    apart(|| loopdev::attach(file, &options)?.keep())
}

/// Detaches `device`, once what is cached of it is written back.
pub(super) fn detach(device: &LoopDevice) -> Result<()> {
    apart(|| loopdev::detach(device))
}

/// Detaches `device` as soon as nobody uses it any more.
pub(super) fn abandon(device: &LoopDevice) {
    // One that is gone already is as it should be.
    let _ = apart(|| loopdev::abandon(device));
}

/// Lets a thread that has none of this process's descriptors do `what`. Waiting for the disk it cannot be killed; but the others
/// can, and with them goes the other side of the file system, which ends its waiting.
fn apart<T: Send>(what: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let work = || {
        // SAFETY: from here on this thread uses no descriptor that it did not open itself, but for those of the terminal: what
        // it was given holds none. Others keep theirs (CLOSE_RANGE_UNSHARE, Linux 5.9).
        let closed = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE) };
        if closed < 0 {
            return Err(Error::io("cannot part with the descriptors of this process", std::io::Error::last_os_error())
                .with_kind(ErrorKind::Unsupported)
                .with_hint("loop devices on a served disk need Linux 5.9"));
        }
        what()
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("loop".to_owned()).spawn_scoped(scope, work);
        let joined = thread.context(|| "cannot start a thread")?.join();
        joined.unwrap_or_else(|_| Err(Error::new(ErrorKind::Io, "a thread that attaches devices panicked")))
    })
}
