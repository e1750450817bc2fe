//! Loop devices: a file as a block device that everything on this machine shares.
//!
//! The device is the kernel's, not a container's: every container and the host see the same one. Two devices on one file
//! would be two caches over one disk, so a file has at most one.

mod abi;
mod node;

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Context, Result};
use crate::file_id::FileId;
use crate::sysfs;
use crate::ui::path_as_text;
use crate::units::{ByteOffset, ByteSize};

/// An attached loop device, as it was when asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LoopDevice {
    /// The N of /dev/loopN.
    pub number: u32,
    /// Its node, /dev/loopN.
    #[serde(serialize_with = "path_as_text")]
    pub path: PathBuf,
    /// The file it is attached to, by the name the kernel has for it now: it follows renames, and is that of the attacher's
    /// file system tree, which may not be ours.
    #[serde(serialize_with = "path_as_text")]
    pub backing_file: PathBuf,
    /// Whether that name is gone: the file was deleted, and lives until the device is detached.
    pub deleted: bool,
    /// Which file that is. Without the right to open the device it is what `backing_file` leads to, if anything.
    pub file: Option<FileId>,
    /// Where in the file the device starts.
    pub offset: ByteOffset,
    /// Where the device ends, if before the end of the file: bytes from `offset`.
    pub size_limit: Option<ByteSize>,
    /// How large the device is.
    pub size: ByteSize,
    /// Whether it reads and writes the file with direct I/O, past the page cache.
    pub direct_io: bool,
    /// The smallest unit it reads and writes.
    pub logical_block_size: ByteSize,
    /// Whether it refuses writes.
    pub read_only: bool,
    /// Whether the kernel detaches it when nobody has it open any more.
    pub autoclear: bool,
}

impl LoopDevice {
    /// The attached loop device with this number, or nothing if it is not attached.
    #[must_use]
    pub fn with_number(number: u32) -> Option<Self> {
        let sysfs = node::sysfs(number);
        let name = sysfs.bytes("loop/backing_file")?;
        let (file, backing_file, deleted) = backing(number, &name);
        Some(Self {
            number,
            path: node::path(number),
            backing_file,
            deleted,
            file,
            offset: ByteOffset::new(sysfs.number("loop/offset")?),
            size_limit: sysfs.number("loop/sizelimit").filter(|limit| *limit > 0).map(ByteSize::new),
            size: sysfs.size()?,
            direct_io: sysfs.flag("loop/dio")?,
            logical_block_size: ByteSize::new(sysfs.number("queue/logical_block_size")?),
            read_only: sysfs.flag("ro")?,
            autoclear: sysfs.flag("loop/autoclear")?,
        })
    }

    /// Whether it is attached to the file `id`.
    #[must_use]
    pub fn is_on(&self, id: FileId) -> bool {
        self.file == Some(id)
    }
}

/// All attached loop devices, by number.
#[must_use]
pub fn list() -> Vec<LoopDevice> {
    let mut numbers: Vec<u32> = sysfs::block_names().iter().filter_map(|name| number_in(name)).collect();
    numbers.sort_unstable();
    // One that goes away meanwhile is not attached.
    numbers.into_iter().filter_map(LoopDevice::with_number).collect()
}

/// The loop devices that are attached to `file`, whatever name each of them was given.
///
/// # Errors
/// When `file` cannot be looked at.
pub fn users_of(file: &File) -> Result<Vec<LoopDevice>> {
    let metadata = file.metadata().context(|| "cannot look at a file to find its loop devices")?;
    let id = FileId::of(&metadata);
    Ok(list().into_iter().filter(|device| device.is_on(id)).collect())
}

/// The N of loopN.
fn number_in(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("loop")?;
    // "+1" and "01" are numbers too, but never in the kernel's names.
    digits.parse().ok().filter(|number: &u32| number.to_string() == digits)
}

/// What a device is attached to: which file, its name, and whether that name is gone. `name` is as sysfs has it.
fn backing(number: u32, name: &[u8]) -> (Option<FileId>, PathBuf, bool) {
    const DELETED: &[u8] = b" (deleted)";
    let at = |path: &Path| fs::metadata(path).ok().map(|metadata| FileId::of(&metadata));
    let full = sysfs::path_of(name);
    let found = at(&full);
    let told = node::open(number, OpenOptions::new().read(true)).ok().and_then(|device| {
        let info = abi::get_status(&device).ok()?;
        Some(match info.rdevice {
            0 => FileId::Inode { device: info.device, inode: info.inode },
            number => FileId::BlockDevice { number },
        })
    });
    match name.strip_suffix(DELETED) {
        // A living file may be called so, too.
        Some(before) if found.is_none() || told.is_some_and(|told| found != Some(told)) => {
            (told, sysfs::path_of(before), true)
        }
        _ => (told.or(found), full, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_loop_devices_have_a_number() {
        assert_eq!(number_in("loop0"), Some(0));
        assert_eq!(number_in("loop1048575"), Some(1_048_575));
        for name in ["loop", "loop-control", "loop1p1", "loop01", "loop+1", "xloop1", "sda", "loop99999999999"] {
            assert_eq!(number_in(name), None, "{name}");
        }
    }
}
