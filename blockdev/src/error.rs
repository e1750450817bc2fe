//! The one error type of the house: what was tried on what, why it failed, what to do next.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

/// What sort of failure an [`Error`] is; decides the exit code of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// An argument is out of range, malformed or contradicts another.
    InvalidInput,
    /// A file, device or path does not exist.
    NotFound,
    /// Going on would overwrite or harm something that is not ours: it exists, holds data, or is in use.
    Refused,
    /// Not enough free space.
    NoSpace,
    /// Something that was checked is not as it should be: wrong content, holes, a damaged report.
    VerifyFailed,
    /// The caller lacks a privilege.
    Permission,
    /// The kernel, file system or device cannot do this.
    Unsupported,
    /// A signal asked the program to stop.
    Interrupted,
    /// An I/O or system call failed.
    Io,
}

impl ErrorKind {
    /// The exit code a program ends with: 1 failure, 2 bad input (as clap), 3 refused, 4 no space, 5 verification
    /// failed, 6 not permitted or not supported here, 130 interrupted.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Io | Self::NotFound => 1,
            Self::InvalidInput => 2,
            Self::Refused => 3,
            Self::NoSpace => 4,
            Self::VerifyFailed => 5,
            Self::Permission | Self::Unsupported => 6,
            Self::Interrupted => 130,
        }
    }

    /// The kind that an errno speaks of.
    fn of_errno(errno: Option<i32>) -> Self {
        match errno {
            Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => Self::NotFound,
            Some(libc::EEXIST | libc::EBUSY | libc::ETXTBSY) => Self::Refused,
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => Self::NoSpace,
            Some(libc::EPERM | libc::EACCES | libc::EROFS) => Self::Permission,
            Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY) => Self::Unsupported,
            Some(libc::EINTR) => Self::Interrupted,
            _ => Self::Io,
        }
    }
}

/// An error a person can act on.
///
/// `Display` is what was tried and, where known, why it failed; it never repeats the [source](StdError::source), which
/// is printed after it by [`ui::report_error`](crate::ui::report_error), followed by the [hint](Error::hint).
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind` that says `message`: what was tried on what, and why it failed.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), hint: None, source: None }))
    }

    /// A failed system call: `message` says what was tried on what, `source` says why; the kind follows the errno.
    pub fn io(message: impl Into<String>, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        Self::new(ErrorKind::of_errno(source.raw_os_error()), message).with_source(source)
    }

    /// Bad input.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidInput, message)
    }

    /// Refused, because going on would harm something.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Refused, message)
    }

    /// Stopped by a signal.
    pub fn interrupted(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Interrupted, message)
    }

    /// The same error with what the person can do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// The same error with its cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The same error under another kind.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }

    /// What sort of failure this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What to do next, where there is something.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// The errno of the system call that failed, if this came from one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        self.0.source.as_ref()?.downcast_ref::<io::Error>()?.raw_os_error()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|source| &**source as &(dyn StdError + 'static))
    }
}

/// Adds what was being tried to the error of a system call.
pub trait Context<T> {
    /// Turns the error into an [`Error`] whose message is `what()`.
    ///
    /// # Errors
    /// The error of `self`, with its context.
    fn context<M: Into<String>>(self, what: impl FnOnce() -> M) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context<M: Into<String>>(self, what: impl FnOnce() -> M) -> Result<T> {
        self.map_err(|source| Error::io(what(), source))
    }
}

impl<T> Context<T> for nix::Result<T> {
    fn context<M: Into<String>>(self, what: impl FnOnce() -> M) -> Result<T> {
        self.map_err(|errno| Error::io(what(), errno))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_does_not_repeat_the_source() {
        let error = Error::io("cannot open /x", io::Error::from_raw_os_error(libc::ENOENT)).with_hint("make it");
        assert_eq!(error.to_string(), "cannot open /x");
        assert_eq!(error.source().map(ToString::to_string).as_deref(), Some("No such file or directory (os error 2)"));
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(error.errno(), Some(libc::ENOENT));
        assert_eq!(error.hint(), Some("make it"));
    }

    #[test]
    fn errno_decides_kind_and_exit_code() {
        for (errno, kind, code) in [
            (libc::ENOSPC, ErrorKind::NoSpace, 4),
            (libc::EBUSY, ErrorKind::Refused, 3),
            (libc::EPERM, ErrorKind::Permission, 6),
            (libc::EOPNOTSUPP, ErrorKind::Unsupported, 6),
            (libc::EIO, ErrorKind::Io, 1),
        ] {
            let error = nix::Result::<()>::Err(nix::errno::Errno::from_raw(errno)).context(|| "x").unwrap_err();
            assert_eq!((error.kind(), error.kind().exit_code()), (kind, code));
        }
    }
}
