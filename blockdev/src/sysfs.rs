//! What the kernel tells of a block device below /sys.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::libc::dev_t;
use nix::sys::stat::makedev;

use crate::units::ByteSize;

const BLOCK: &str = "/sys/block";

/// The directory of one block device, or of a partition.
#[derive(Debug, Clone)]
pub(crate) struct BlockDir(PathBuf);

impl BlockDir {
    /// The whole device that the kernel calls `name`.
    pub(crate) fn named(name: impl AsRef<Path>) -> Self {
        Self(Path::new(BLOCK).join(name))
    }

    /// The bytes of an attribute, without the newline at the end.
    pub(crate) fn bytes(&self, attribute: &str) -> Option<Vec<u8>> {
        let mut bytes = fs::read(self.0.join(attribute)).ok()?;
        bytes.pop_if(|last| *last == b'\n');
        Some(bytes)
    }

    /// The text of an attribute, trimmed; nothing where it is empty or absent.
    pub(crate) fn text(&self, attribute: &str) -> Option<String> {
        let text = String::from_utf8_lossy(&self.bytes(attribute)?).trim().to_owned();
        (!text.is_empty()).then_some(text)
    }

    /// An attribute that is a number.
    pub(crate) fn number(&self, attribute: &str) -> Option<u64> {
        self.text(attribute)?.parse().ok()
    }

    /// An attribute that is 0 or 1.
    pub(crate) fn flag(&self, attribute: &str) -> Option<bool> {
        self.number(attribute).map(|number| number != 0)
    }

    /// The device number.
    pub(crate) fn device_number(&self) -> Option<dev_t> {
        let text = self.text("dev")?;
        let (major, minor) = text.split_once(':')?;
        Some(makedev(major.parse().ok()?, minor.parse().ok()?))
    }

    /// How large the device is. `size` counts 512-byte sectors whatever the block size (Documentation/ABI/stable/sysfs-block).
    pub(crate) fn size(&self) -> Option<ByteSize> {
        self.number("size").map(|sectors| ByteSize::new(sectors * 512))
    }
}

/// The names of all whole block devices.
pub(crate) fn block_names() -> Vec<String> {
    let Ok(entries) = fs::read_dir(BLOCK) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

/// A path as the kernel writes it.
pub(crate) fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}
