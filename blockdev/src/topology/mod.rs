//! What a file or a block device is, and what it can do: everything that decides how fast and how safe it is.
//!
//! Nothing here needs a privilege; what the kernel does not tell is left out.

mod device;
mod direct;
mod file_system;
mod statx;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Context, Error, Result};
use crate::file_id::FileId;
use crate::loopdev::{self, LoopDevice};
use crate::ui::path_as_text;
use crate::units::ByteSize;
use statx::statx;

pub use device::{Device, Discard, Scheduler, WriteCache, set_scheduler};
pub use direct::{DirectIo, direct_io};
pub use file_system::{FileSystem, file_system};

/// All that is known of a file or a block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Topology {
    /// What was asked about.
    #[serde(serialize_with = "path_as_text")]
    pub path: PathBuf,
    /// What sort of thing it is.
    pub kind: Kind,
    /// How large it is.
    pub size: ByteSize,
    /// How much of a file has blocks; reserved ones count.
    pub allocated: Option<ByteSize>,
    /// What it asks of direct I/O; nothing where it has none.
    pub direct_io: Option<DirectIo>,
    /// The writes it does wholly or not at all, if any.
    pub atomic_writes: Option<AtomicWrites>,
    /// The file system that a file is on.
    pub file_system: Option<FileSystem>,
    /// The block device that it is, or that its file system is on.
    pub device: Option<Device>,
    /// The loop devices that are attached to it.
    pub loop_devices: Vec<LoopDevice>,
    /// The file that it is attached to, if it is a loop device.
    pub below: Option<Box<Self>>,
}

/// What sort of thing can be a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A regular file.
    File,
    /// A block device.
    BlockDevice,
}

/// The sizes of writes that are done wholly or not at all (`RWF_ATOMIC`): powers of two, aligned to their size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct AtomicWrites {
    /// The smallest.
    pub unit_min: ByteSize,
    /// The largest.
    pub unit_max: ByteSize,
}

impl AtomicWrites {
    /// The kernel says 0 where there are none.
    fn new(unit_min: ByteSize, unit_max: ByteSize) -> Option<Self> {
        (unit_max > ByteSize::ZERO).then_some(Self { unit_min, unit_max })
    }
}

impl Topology {
    /// All that is known of the file or block device at `path`.
    ///
    /// # Errors
    /// When there is no such thing, or it is neither.
    pub fn of(path: &Path) -> Result<Self> {
        let what = || format!("cannot look at {}", path.display());
        // This needs no right to read, and does not wait for the other end of a pipe.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path).context(what)?;
        let metadata = file.metadata().context(what)?;
        let id = FileId::of(&metadata);
        let kind = if metadata.is_file() {
            Kind::File
        } else if metadata.file_type().is_block_device() {
            Kind::BlockDevice
        } else {
            return Err(Error::invalid(format!("{} is neither a file nor a block device", path.display())));
        };
        let (file_system, device) = match id {
            FileId::BlockDevice { number } => (None, Device::with_number(number)),
            FileId::Inode { .. } => {
                let file_system = file_system(&file)?;
                let number = file_system.as_ref().and_then(|found| found.device);
                (file_system, number.and_then(Device::with_number))
            }
        };
        let attached =
            device.as_ref().filter(|_| kind == Kind::BlockDevice).and_then(|device| device.loop_device.as_ref());
        // It may be deleted, or in a file system tree that we do not see.
        let below = attached.and_then(|attached| {
            Self::of(&attached.backing_file).ok().filter(|below| below.is_at(attached.file)).map(Box::new)
        });
        Ok(Self {
            path: path.to_owned(),
            kind,
            size: match (&device, kind) {
                (Some(device), Kind::BlockDevice) => device.size,
                _ => ByteSize::new(metadata.len()),
            },
            // st_blocks counts 512 bytes, whatever the file system's blocks are (inode(7)).
            allocated: (kind == Kind::File).then(|| ByteSize::new(metadata.blocks() * 512)),
            direct_io: direct_io(&file)?,
            atomic_writes: atomic_writes(&file)?,
            file_system,
            device,
            loop_devices: loopdev::list().into_iter().filter(|device| device.is_on(id)).collect(),
            below,
        })
    }

    fn is_at(&self, id: Option<FileId>) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|metadata| Some(FileId::of(&metadata)) == id)
    }
}

/// The writes that `file` takes wholly or not at all (Linux 6.11), if any.
fn atomic_writes(file: &File) -> Result<Option<AtomicWrites>> {
    let told = statx(file, libc::STATX_WRITE_ATOMIC).context(|| "cannot ask a file for its atomic writes")?;
    let [min, max] = [told.stx_atomic_write_unit_min, told.stx_atomic_write_unit_max].map(u64::from).map(ByteSize::new);
    Ok(if told.stx_mask & libc::STATX_WRITE_ATOMIC == 0 { None } else { AtomicWrites::new(min, max) })
}
