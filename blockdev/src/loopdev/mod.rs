//! Loop devices: a file as a block device that everything on this machine shares.
//!
//! The device is the kernel's, not a container's: every container and the host see the same one. Two devices on one file
//! would be two caches over one disk, so a file has at most one.

mod abi;
mod attach;
mod detach;
mod name;
mod node;

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Context, Error, ErrorKind, Result};
use crate::file_id::FileId;
use crate::mark;
use crate::sysfs::{self, BlockDir};
use crate::ui::{needs_root, path_as_text};
use crate::units::{ByteOffset, ByteSize};

pub use attach::{Attachment, Options, attach};
pub(crate) use detach::abandon;
pub use detach::detach;
pub use name::{NAME_MAX, Name};

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
    /// The names that onedisk gave it: links in /dev.
    pub names: Vec<Name>,
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
            names: name::names_of(number),
        })
    }

    /// Whether it is attached to the file `id`.
    #[must_use]
    pub fn is_on(&self, id: FileId) -> bool {
        self.file == Some(id)
    }

    /// Whether onedisk [made](crate::mark) the file it is attached to. In doubt, it did not.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        // The name may by now lead to another file, or be that of another file system tree.
        let same = fs::metadata(&self.backing_file).is_ok_and(|metadata| self.is_on(FileId::of(&metadata)));
        same && mark::is_set(&self.backing_file)
    }

    /// Lets the device see that its file has grown, and looks at it again.
    ///
    /// # Errors
    /// When the caller may not, or it is not attached any more.
    pub fn refresh_size(&self) -> Result<Self> {
        let what = || format!("cannot let {} see the new size of its file", self.path.display());
        let node = needs_root(node::open(self.number, OpenOptions::new().read(true).write(true)).context(what))?;
        needs_root(abi::set_capacity(&node).context(what))?;
        Self::with_number(self.number).ok_or_else(|| not_attached(self.number))
    }

    /// Whether it is still attached to the same file.
    fn is_still_there(&self) -> bool {
        Self::with_number(self.number).is_some_and(|now| now.file == self.file)
    }
}

/// All attached loop devices, by number.
#[must_use]
pub fn list() -> Vec<LoopDevice> {
    let mut numbers: Vec<u32> = sysfs::block_names().filter_map(|name| number_in(&name)).collect();
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

/// The loop devices that `name` means: a device (`/dev/loop3`, `loop3`), a name it was given (`nvme1n1`, `/dev/nvme1n1`), or
/// a file that devices are attached to. A bare word is a device if there is one of that name; write `./nvme1n1` for a file.
///
/// # Errors
/// [`NotFound`](ErrorKind::NotFound) when nothing is attached there, or there is no such thing.
pub fn find(name: &Path) -> Result<Vec<LoopDevice>> {
    let in_dev = Path::new("/dev").join(name);
    let is_bare = name.components().count() == 1 && !name.as_os_str().as_encoded_bytes().contains(&b'/');
    let path = if is_bare && fs::symlink_metadata(&in_dev).is_ok() { &in_dev } else { name };
    let metadata = fs::metadata(path).context(|| format!("cannot find {}", path.display()))?;
    let id = FileId::of(&metadata);
    let FileId::BlockDevice { number } = id else {
        let devices: Vec<LoopDevice> = list().into_iter().filter(|device| device.is_on(id)).collect();
        if devices.is_empty() {
            return Err(Error::new(ErrorKind::NotFound, format!("no loop device is attached to {}", path.display())));
        }
        return Ok(devices);
    };
    let Some(number) = BlockDir::of_number(number).and_then(|device| number_in(device.name().to_str()?)) else {
        return Err(Error::invalid(format!("{} is not a loop device", path.display())));
    };
    Ok(vec![LoopDevice::with_number(number).ok_or_else(|| not_attached(number))?])
}

fn not_attached(number: u32) -> Error {
    Error::new(ErrorKind::NotFound, format!("{} is not attached", node::path(number).display()))
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
