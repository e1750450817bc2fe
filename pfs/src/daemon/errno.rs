//! What a client is told of an error: one of the errnos that the original lets through.

use blockdev::{Error, ErrorKind};

use crate::volume::writer::TOO_MANY_FILES;

/// What the original lets through; whatever else went wrong is EIO.
const KNOWN: [i32; 22] = [
    libc::EACCES,
    libc::EAGAIN,
    libc::EBADF,
    libc::EEXIST,
    libc::EFBIG,
    libc::EINVAL,
    libc::EISDIR,
    libc::EMFILE,
    libc::ENAMETOOLONG,
    libc::ENODEV,
    libc::ENOENT,
    libc::ENOTEMPTY,
    libc::ENOMEM,
    libc::ENOSPC,
    libc::ENOTDIR,
    libc::EXDEV,
    libc::EOVERFLOW,
    libc::EROFS,
    libc::EBUSY,
    libc::ERANGE,
    libc::EPERM,
    TOO_MANY_FILES,
];

/// The errno of an error.
pub(super) fn errno(error: &Error) -> i32 {
    match error.errno() {
        Some(errno) if KNOWN.contains(&errno) => errno,
        Some(_) => libc::EIO,
        None if error.kind() == ErrorKind::NoSpace => libc::ENOSPC,
        None => libc::EIO,
    }
}
