//! Which parts of the disk are allocated, as its file system says.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::disk::Disk;
use crate::units::ByteRange;

/// A part of the disk, and how its blocks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// How many bytes.
    pub(super) len: u64,
    /// Whether it is a hole, which reads as zeroes.
    pub(super) hole: bool,
}

impl Disk {
    /// The state of `range`, which is not empty and lies inside the disk, in at most `max` parts from its start; the last may
    /// end before the range does.
    pub(super) fn allocation(&self, range: ByteRange, max: usize) -> io::Result<Vec<Part>> {
        let (mut at, end) = (range.start.bytes(), range.end().bytes());
        let mut parts = Vec::new();
        while at < end && parts.len() < max {
            let (next, hole) = match seek(self.file(), at, libc::SEEK_DATA) {
                Ok(data) if data > at => (data, true),
                Ok(_) => (seek(self.file(), at, libc::SEEK_HOLE)?, false),
                // No data from here to the end of the file.
                Err(error) if error.raw_os_error() == Some(libc::ENXIO) => (end, true),
                // Devices do not say.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => (end, false),
                Err(error) => return Err(error),
            };
            // A file that is being changed may say anything; but it goes on.
            let next = next.clamp(at + 1, end).max(at + 1);
            parts.push(Part { len: next - at, hole });
            at = next;
        }
        Ok(parts)
    }
}

/// The position of the descriptor is nobody else's business: all I/O says where.
fn seek(file: &File, at: u64, whence: i32) -> io::Result<u64> {
    let at = libc::off_t::try_from(at).map_err(io::Error::other)?;
    // SAFETY: takes no pointer.
    let found = unsafe { libc::lseek(file.as_raw_fd(), at, whence) };
    u64::try_from(found).map_err(|_| io::Error::last_os_error())
}
