//! Whether io_uring works here: a ring may set up and still be useless, so one I/O has to come back.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::uring::Uring;
use super::{Backend, Call};
use crate::buffer::Memory;

/// Sets a ring up and reads a few bytes back through it.
///
/// # Errors
/// The reason why io_uring cannot be used: `ENOSYS` (no such kernel), `EPERM` (seccomp or `kernel.io_uring_disabled`), or
/// whatever the I/O came back with.
pub fn uring_works() -> io::Result<()> {
    const PATTERN: &[u8; 8] = b"io_uring";
    let mut file = File::from(memfd_create("onedisk-probe", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(PATTERN)?;
    let memory = Memory::new(4096).map_err(io::Error::other)?;
    let mut ring = Uring::new(1, false, &memory, memory.len(), &[file.as_raw_fd()], &mut Vec::new())?;
    let read = Call::Read { file: 0, fd: file.as_raw_fd(), at: memory.as_ptr(), len: 8, offset: 0, lent: false };
    ring.push(0, read);
    let mut done = Vec::new();
    ring.wait(1, Some(Duration::from_secs(1)), &mut done)?;
    match done.first().map(|done| done.result) {
        Some(8) => {}
        Some(errno) if errno < 0 => return Err(io::Error::from_raw_os_error(-errno)),
        _ => return Err(io::Error::new(io::ErrorKind::TimedOut, "a ring sets up, but its I/O does not complete")),
    }
    // SAFETY: the memory is 4096 bytes, and the only call on it is done.
    let bytes = unsafe { std::slice::from_raw_parts(memory.as_ptr().as_ptr(), PATTERN.len()) };
    if bytes == PATTERN { Ok(()) } else { Err(io::Error::other("an I/O completed with the wrong data")) }
}
