//! statx(2), for what std does not ask.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

/// The status of an open file; `stx_mask` tells which parts of `mask` the kernel and the file system answered.
pub(super) fn statx(file: &File, mask: u32) -> io::Result<libc::statx> {
    let mut status = MaybeUninit::zeroed();
    // SAFETY: the empty path, which ends in a NUL, names the descriptor itself, and the kernel fills in a `struct statx`.
    let outcome =
        unsafe { libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, mask, status.as_mut_ptr()) };
    if outcome != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was zeroed, which is a valid status, and then filled in.
    Ok(unsafe { status.assume_init() })
}
