//! Names and paths: any bytes but NUL and the slash.

use std::borrow::Cow;
use std::fmt;

use nix::errno::Errno;
use serde::{Serialize, Serializer};

use crate::format::NAME_MAX;

/// Most bytes in a path, the NUL that ends it in C included.
const PATH_MAX: usize = 4096;

/// A name in a directory: 1 to 255 bytes, no NUL, no slash, neither `.` nor `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<[u8]>);

/// Why bytes are no name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameError {
    /// There are none.
    Empty,
    /// There are more than 255.
    TooLong,
    /// There is a slash or a NUL among them.
    BadByte,
    /// `.` and `..` stand for directories already.
    Dots,
}

impl NameError {
    /// The errno that stands for it.
    #[must_use]
    pub fn errno(self) -> Errno {
        match self {
            Self::TooLong => Errno::ENAMETOOLONG,
            Self::Empty | Self::BadByte | Self::Dots => Errno::EINVAL,
        }
    }
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Empty => "it is empty",
            Self::TooLong => "it is longer than 255 bytes",
            Self::BadByte => "it contains a slash or a NUL",
            Self::Dots => "it is `.` or `..`",
        })
    }
}

impl Name {
    /// These bytes as a name.
    ///
    /// # Errors
    /// When nothing can be called so.
    pub fn new(bytes: &[u8]) -> Result<Self, NameError> {
        match bytes {
            [] => Err(NameError::Empty),
            b"." | b".." => Err(NameError::Dots),
            _ if bytes.len() > NAME_MAX => Err(NameError::TooLong),
            _ if bytes.iter().any(|byte| matches!(byte, 0 | b'/')) => Err(NameError::BadByte),
            _ => Ok(Self(bytes.into())),
        }
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&String::from_utf8_lossy(&self.0))
    }
}

/// A path from the root of a volume: names between slashes, however many. It need not begin with one.
#[derive(Clone, PartialEq, Eq)]
pub struct VolumePath(Vec<u8>);

impl VolumePath {
    /// These bytes as a path.
    #[must_use]
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// Its bytes, as they were given.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// For a message.
    #[must_use]
    pub fn display(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }

    /// A name in the directory that this leads to.
    #[must_use]
    pub fn join(&self, name: &Name) -> Self {
        Self([self.0.strip_suffix(b"/").unwrap_or(&self.0), b"/", name.as_bytes()].concat())
    }

    /// Whether it is longer than a path may be.
    #[must_use]
    pub fn is_too_long(&self) -> bool {
        self.0.len() >= PATH_MAX
    }

    /// Whether it ends in a slash, and so can only be a directory.
    #[must_use]
    pub fn names_directory(&self) -> bool {
        self.0.last() == Some(&b'/')
    }

    /// What stands between its slashes; `.` and `..` among it.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').filter(|component| !component.is_empty())
    }

    /// Its last name, unless it is the root or ends in `.` or `..`.
    #[must_use]
    pub fn file_name(&self) -> Option<Name> {
        self.components().last().and_then(|last| Name::new(last).ok())
    }
}

impl fmt::Debug for VolumePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_any_bytes_but_two() {
        assert_eq!(Name::new(b"with space\n\xff").unwrap().as_bytes(), b"with space\n\xff");
        assert!(Name::new(&[b'x'; 255]).is_ok());
        for (bytes, why) in [
            (b"".as_slice(), NameError::Empty),
            (b".", NameError::Dots),
            (b"..", NameError::Dots),
            (b"a/b", NameError::BadByte),
            (b"a\0b", NameError::BadByte),
            (&[b'x'; 256], NameError::TooLong),
        ] {
            assert_eq!(Name::new(bytes), Err(why));
        }
    }

    #[test]
    fn slashes_separate_and_more_of_them_do_no_more() {
        let path = VolumePath::new("//a///b/./../c");
        assert_eq!(path.components().collect::<Vec<_>>(), [b"a".as_slice(), b"b", b".", b"..", b"c"]);
        assert!(!path.names_directory());
        assert!(VolumePath::new("a/").names_directory());
        assert_eq!(VolumePath::new("/").components().count(), 0);
        assert_eq!(VolumePath::new("/a/b//").file_name(), Name::new(b"b").ok());
        assert_eq!(VolumePath::new("/a/..").file_name(), None);
    }
}
