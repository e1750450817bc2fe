//! What the kernel knows of a block device and its queue (Documentation/ABI/stable/sysfs-block).

use std::fs;
use std::path::{Path, PathBuf};

use nix::libc::dev_t;
use serde::Serialize;

use super::AtomicWrites;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::file_id::FileId;
use crate::loopdev::{self, LoopDevice};
use crate::sysfs::BlockDir;
use crate::ui::{needs_root, path_as_text};
use crate::units::ByteSize;

/// A block device: a whole one, or a partition, whose queue is that of the whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Device {
    /// What the kernel calls it, such as `nvme0n1`.
    pub name: String,
    /// Its node in /dev.
    #[serde(serialize_with = "path_as_text")]
    pub path: PathBuf,
    /// How large it is.
    pub size: ByteSize,
    /// What its maker calls it, where it says so.
    pub model: Option<String>,
    /// Whether it refuses writes.
    pub read_only: bool,
    /// Whether it says that it rotates. Virtual disks often say so, and do not.
    pub rotational: bool,
    /// The smallest unit it reads and writes.
    pub logical_block_size: ByteSize,
    /// The smallest unit it writes without reading first.
    pub physical_block_size: ByteSize,
    /// Whether a completed write may still be lost, and a flush is needed.
    pub write_cache: Option<WriteCache>,
    /// Whether it takes writes that go past its cache.
    pub fua: Option<bool>,
    /// The I/O scheduler, where it has a queue to schedule.
    pub scheduler: Option<Scheduler>,
    /// How many requests its queue takes.
    pub queue_requests: Option<u64>,
    /// How it discards, if it does.
    pub discard: Option<Discard>,
    /// The writes it does wholly or not at all, if any.
    pub atomic_writes: Option<AtomicWrites>,
    /// The devices that it stands on: of RAID, LVM or dm-crypt.
    pub stands_on: Vec<String>,
    /// As which loop device it is attached to a file, if it is one.
    #[serde(rename = "loop")]
    pub loop_device: Option<LoopDevice>,
}

/// What the kernel takes the device's cache for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WriteCache {
    /// It has a volatile one: flushes are sent.
    WriteBack,
    /// It has none, or a safe one: flushes are not sent.
    WriteThrough,
}

/// The I/O scheduler of a queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Scheduler {
    /// The one in use.
    pub current: String,
    /// Those that could be.
    pub available: Vec<String>,
}

/// How a device discards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Discard {
    /// The smallest unit.
    pub granularity: ByteSize,
    /// The most at once.
    pub max: ByteSize,
}

impl Device {
    /// What is known of the block device with this number, or nothing where there is none.
    #[must_use]
    pub fn with_number(number: dev_t) -> Option<Self> {
        let dir = BlockDir::of_number(number)?;
        let whole = dir.whole();
        let bytes = |attribute: &str| whole.number(attribute).map(ByteSize::new);
        let name = dir.name().to_string_lossy().into_owned();
        Some(Self {
            path: Path::new("/dev").join(&name),
            size: dir.size()?,
            // SCSI and NVMe; SD cards; device mapper.
            model: ["device/model", "device/name", "dm/name"].into_iter().find_map(|attribute| whole.text(attribute)),
            read_only: dir.flag("ro")?,
            rotational: whole.flag("queue/rotational")?,
            logical_block_size: bytes("queue/logical_block_size")?,
            physical_block_size: bytes("queue/physical_block_size")?,
            write_cache: whole.text("queue/write_cache").and_then(|text| match &*text {
                "write back" => Some(WriteCache::WriteBack),
                "write through" => Some(WriteCache::WriteThrough),
                _ => None,
            }),
            fua: whole.flag("queue/fua"),
            scheduler: whole.text("queue/scheduler").and_then(|text| Scheduler::parse(&text)),
            queue_requests: whole.number("queue/nr_requests"),
            discard: bytes("queue/discard_max_bytes")
                .filter(|max| *max > ByteSize::ZERO)
                .and_then(|max| Some(Discard { granularity: bytes("queue/discard_granularity")?, max })),
            atomic_writes: bytes("queue/atomic_write_unit_min_bytes")
                .zip(bytes("queue/atomic_write_unit_max_bytes"))
                .and_then(|(min, max)| AtomicWrites::new(min, max)),
            stands_on: whole.stands_on().collect(),
            loop_device: loopdev::list().into_iter().find(|device| device.path == Path::new("/dev").join(&name)),
            name,
        })
    }

    /// What is known of the block device whose node is at `path`.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) when it is no block device.
    pub fn at(path: &Path) -> Result<Self> {
        Self::with_number(number_of(path)?)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("{} is not in /sys/dev/block", path.display())))
    }
}

impl Scheduler {
    /// Of `none [mq-deadline] kyber`, the one in brackets is current.
    fn parse(text: &str) -> Option<Self> {
        let bare = |name: &str| name.trim_matches(['[', ']']).to_owned();
        let current = text.split_whitespace().find(|name| name.starts_with('['));
        // A device without a queue has one word, and no brackets.
        let current = bare(current.or_else(|| text.split_whitespace().next())?);
        Some(Self { current, available: text.split_whitespace().map(bare).collect() })
    }
}

/// Lets the block device at `path` (a partition: the whole one) use the I/O scheduler `name`, and returns the one it used before.
///
/// # Errors
/// [`InvalidInput`](ErrorKind::InvalidInput) when `path` is no block device or has no such scheduler,
/// [`Permission`](ErrorKind::Permission) without root.
pub fn set_scheduler(path: &Path, name: &str) -> Result<String> {
    let what = || format!("cannot set the I/O scheduler of {} to {name:?}", path.display());
    let whole = BlockDir::of_number(number_of(path)?).map(|dir| dir.whole());
    let text = whole.as_ref().and_then(|whole| whole.text("queue/scheduler"));
    let (Some(whole), Some(before)) = (whole, text.and_then(|text| Scheduler::parse(&text))) else {
        return Err(Error::new(ErrorKind::Unsupported, format!("{}: it has none", what())));
    };
    if !before.available.iter().any(|available| available == name) {
        return Err(Error::invalid(format!("{}: it has {}", what(), before.available.join(", "))));
    }
    needs_root(fs::write(whole.path("queue/scheduler"), name).context(what))?;
    Ok(before.current)
}

fn number_of(path: &Path) -> Result<dev_t> {
    let metadata = fs::metadata(path).context(|| format!("cannot look at {}", path.display()))?;
    match FileId::of(&metadata) {
        FileId::BlockDevice { number } => Ok(number),
        FileId::Inode { .. } => Err(Error::invalid(format!("{} is no block device", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedulers_as_the_kernel_writes_them() {
        let parsed = |text| Scheduler::parse(text).map(|found| (found.current, found.available.join(" ")));
        let found = |current: &str, available: &str| Some((current.to_owned(), available.to_owned()));
        assert_eq!(parsed("none [mq-deadline] kyber bfq"), found("mq-deadline", "none mq-deadline kyber bfq"));
        assert_eq!(parsed("[none]"), found("none", "none"));
        assert_eq!(parsed("none"), found("none", "none"));
        assert_eq!(parsed(""), None);
    }

    #[test]
    fn what_is_no_block_device_has_no_scheduler() {
        let error = set_scheduler(Path::new("/dev/null"), "none").unwrap_err();
        assert_eq!((error.kind(), &*error.to_string()), (ErrorKind::InvalidInput, "/dev/null is no block device"));
    }
}
