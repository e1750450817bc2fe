//! What the kernel tells of a block device below /sys.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::libc::dev_t;
use nix::sys::stat::{major, makedev, minor};

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

    /// The device or partition with this number, if there is one.
    pub(crate) fn of_number(number: dev_t) -> Option<Self> {
        let link = format!("/sys/dev/block/{}:{}", major(number), minor(number));
        fs::canonicalize(link).ok().map(Self)
    }

    /// The kernel's name for it.
    pub(crate) fn name(&self) -> &OsStr {
        self.0.file_name().unwrap_or_default()
    }

    /// Where an attribute is.
    pub(crate) fn path(&self, attribute: &str) -> PathBuf {
        self.0.join(attribute)
    }

    /// The whole device that this is a partition of, or is.
    pub(crate) fn whole(&self) -> Self {
        match self.0.parent() {
            Some(parent) if self.path("partition").exists() => Self(parent.to_owned()),
            _ => self.clone(),
        }
    }

    /// The names of the devices that it stands on.
    pub(crate) fn stands_on(&self) -> impl Iterator<Item = String> {
        entries(&self.path("slaves")).filter_map(|entry| Some(entry.file_name()?.to_string_lossy().into_owned()))
    }

    /// Its partitions.
    pub(crate) fn partitions(&self) -> impl Iterator<Item = Self> {
        entries(&self.0).map(Self).filter(|entry| entry.path("partition").exists())
    }

    /// The nodes of the devices that stand on it.
    pub(crate) fn holders(&self) -> impl Iterator<Item = PathBuf> {
        entries(&self.path("holders")).filter_map(|entry| Some(Path::new("/dev").join(entry.file_name()?)))
    }

    /// The bytes of an attribute, without the newline at the end.
    pub(crate) fn bytes(&self, attribute: &str) -> Option<Vec<u8>> {
        let mut bytes = fs::read(self.path(attribute)).ok()?;
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
pub(crate) fn block_names() -> impl Iterator<Item = String> {
    entries(Path::new(BLOCK)).filter_map(|entry| entry.file_name()?.to_str().map(str::to_owned))
}

/// The paths of the entries of a directory, none where it cannot be read.
pub(crate) fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// A path as the kernel writes it.
pub(crate) fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}
