//! Which file it is, whatever it is called.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use serde::Serialize;

/// What tells one file or device from all others of this machine: it survives a rename, and is the same through a link, a
/// bind mount or another mount namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(untagged)]
pub enum FileId {
    /// A file (or anything else that is no block device).
    Inode {
        /// The device number of its file system, as `st_dev`.
        device: u64,
        /// Its number in that file system.
        inode: u64,
    },
    /// A block device, whichever node it was reached through.
    BlockDevice {
        /// Its device number, as `st_rdev`.
        number: u64,
    },
}

impl FileId {
    /// The identity of what `metadata` is of.
    #[must_use]
    pub fn of(metadata: &Metadata) -> Self {
        if metadata.file_type().is_block_device() {
            Self::BlockDevice { number: metadata.rdev() }
        } else {
            Self::Inode { device: metadata.dev(), inode: metadata.ino() }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_rename_and_a_link_keep_it_and_a_copy_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b, c) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("c"));
        fs::write(&a, "x").unwrap();
        let id = FileId::of(&fs::metadata(&a).unwrap());
        fs::rename(&a, &b).unwrap();
        fs::hard_link(&b, &c).unwrap();
        fs::copy(&b, &a).unwrap();
        assert_eq!(FileId::of(&fs::metadata(&b).unwrap()), id);
        assert_eq!(FileId::of(&fs::metadata(&c).unwrap()), id);
        assert_ne!(FileId::of(&fs::metadata(&a).unwrap()), id);
    }
}
