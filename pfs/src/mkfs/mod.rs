//! Making a volume: the same bytes as the original makes, time stamps aside.

pub(crate) mod chunk;
pub(crate) mod disk;
pub(crate) mod plan;
mod safety;

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use blockdev::engine::Choice;
use blockdev::ui::{Progress, path_as_text};
use blockdev::{ByteOffset, ByteRange, ByteSize, Cancel, Error, ErrorKind, Result, lock};
use serde::Serialize;

use crate::format::{CHUNK_SIZE, ChunkId, ENTRY_SIZE, Kind, LEADER_AT, SECTOR_SIZE, Stamp};
use crate::volume::{HostLock, Region};
use disk::{Disk, Sharing};
use plan::Plan;

/// The smallest journal: one transaction can have an entry for every block of a chunk, and must fit.
pub const JOURNAL_MIN: ByteSize = ByteSize::mib(1);

/// The size of a journal is a multiple of this, in bytes.
const JOURNAL_UNIT: u64 = 512;

/// Most hosts that can share a volume.
pub const HOSTS_MAX: u8 = 254;

/// How a volume is to be made.
#[derive(Debug, Clone, Copy)]
pub struct MkfsOptions {
    /// How large the journal is to be, from [`JOURNAL_MIN`] on, a multiple of 512 bytes; [`journal_for`] if nothing is said.
    pub journal: Option<ByteSize>,
    /// How many hosts may share it, 1 to [`HOSTS_MAX`].
    pub hosts: u8,
    /// Make it whatever the disk holds, and whoever has it open; not, however, where it is mounted or part of another device.
    pub force: bool,
    /// What writes.
    pub engine: Choice,
}

impl Default for MkfsOptions {
    /// The original's: a journal of 1 GiB, 30 hosts.
    fn default() -> Self {
        Self { journal: Some(ByteSize::gib(1)), hosts: 30, force: false, engine: Choice::Auto }
    }
}

/// A volume that was made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Made {
    /// On what.
    #[serde(serialize_with = "path_as_text")]
    pub path: PathBuf,
    /// How large: a multiple of 10 GiB.
    pub size: ByteSize,
    /// How many chunks that is.
    pub chunks: u32,
    /// How much of the disk is left over at its end, because it is less than a chunk.
    pub unused: ByteSize,
    /// How large its journal is.
    pub journal: ByteSize,
    /// How many hosts may share it.
    pub hosts: u8,
    /// How long it took until it was durable, in seconds.
    pub elapsed_s: f64,
}

/// How large a journal is that can hold two transactions which change everything in a volume of so many chunks: 32 MiB to
/// 1 GiB.
#[must_use]
pub fn journal_for(chunks: u32) -> ByteSize {
    let objects: usize = Kind::ALL.into_iter().map(Kind::per_chunk).sum();
    let bytes = u64::from(chunks) * (objects * ENTRY_SIZE * 2) as u64;
    ByteSize::new(bytes.clamp(32 << 20, 1 << 30).next_multiple_of(SECTOR_SIZE as u64))
}

/// Makes a volume on the file or block device at `path`, as large as whole chunks of 10 GiB fit.
///
/// It is a volume only once it is whole and durable: until then its first header is missing.
///
/// # Errors
/// Nothing is changed by
/// - [`InvalidInput`](ErrorKind::InvalidInput): a journal or a number of hosts that cannot be;
/// - [`NoSpace`](ErrorKind::NoSpace): less than 10 GiB; a journal larger than the volume;
/// - [`Refused`](ErrorKind::Refused): the disk holds something or is in use, as the error says; a `pfsd` of this
///   machine has it locked (errno EAGAIN).
///
/// When it cannot be written, or `cancel` is set, the disk holds no volume.
pub fn mkfs(path: &Path, options: &MkfsOptions, progress: &mut dyn Progress, cancel: &Cancel) -> Result<Made> {
    let start = Instant::now();
    let _host = HostLock::take(path, Region::All)?;
    // Attaching a file waits for this lock, and udev does not look at a device as long as it is held.
    let _lock = lock::exclusive(path)?;
    safety::may_overwrite(path, options.force)?;
    let mut disk = Disk::open(path, Sharing::Exclusive, options.engine)?;
    let chunks = whole_chunks(path, disk.size())?;
    let journal = options.journal.unwrap_or_else(|| journal_for(chunks.get()));
    check_journal(journal)?;
    if options.hosts == 0 || options.hosts > HOSTS_MAX {
        return Err(Error::invalid(format!(
            "{} hosts cannot share a volume: it is for 1 to {HOSTS_MAX}",
            options.hosts
        )));
    }
    let plan = Plan::new(chunks, journal.bytes(), options.hosts)?;
    write(&mut disk, &plan, progress, cancel)?;
    let size = ByteSize::new(u64::from(chunks.get()) * CHUNK_SIZE.bytes());
    Ok(Made {
        path: path.to_owned(),
        size,
        chunks: chunks.get(),
        unused: disk.size() - size,
        journal,
        hosts: options.hosts,
        elapsed_s: start.elapsed().as_secs_f64(),
    })
}

/// Everything, the first header before and after all else: without it there is no volume.
fn write(disk: &mut Disk, plan: &Plan, progress: &mut dyn Progress, cancel: &Cancel) -> Result<()> {
    let first = ByteRange { start: ByteOffset::ZERO, len: ByteSize::new(SECTOR_SIZE as u64) };
    disk.zero(std::iter::once(first), progress, cancel)?;
    disk.sync()?;
    for mut chunk in plan.chunks(now()) {
        cancel.check("making the volume")?;
        if chunk.id != ChunkId::FIRST {
            chunk.set_header(&plan.header(chunk.id));
        }
        disk.write(chunk.id.start(), chunk.bytes())?;
    }
    let zeroes: Vec<ByteRange> = plan.zeroes().collect();
    progress.begin("zeroing the journal", zeroes.iter().map(|range| range.len).sum::<ByteSize>().bytes());
    disk.zero(zeroes.into_iter(), progress, cancel)?;
    progress.end();
    disk.write(LEADER_AT, &plan.leader().write())?;
    disk.sync()?;
    disk.write(ChunkId::FIRST.start(), &plan.header(ChunkId::FIRST).write())?;
    disk.sync()
}

/// How many chunks fit on a disk of `size`, at `path`.
///
/// # Errors
/// When not even one does.
pub(crate) fn whole_chunks(path: &Path, size: ByteSize) -> Result<NonZeroU32> {
    let count = size.bytes() / CHUNK_SIZE.bytes();
    u32::try_from(count).ok().and_then(NonZeroU32::new).filter(|count| count.get() <= ChunkId::COUNT_MAX).ok_or_else(
        || {
            Error::new(
                ErrorKind::NoSpace,
                format!("{} has {size}, too little for a volume, which has {CHUNK_SIZE} or more", path.display()),
            )
            .with_hint("an image of its own: vdisk create VirtualDisk.img --size 20G; a larger one: vdisk grow")
        },
    )
}

fn check_journal(size: ByteSize) -> Result<()> {
    let bad = |why: &str| Err(Error::invalid(format!("a journal cannot be {} bytes: {why}", size.bytes())));
    if !size.bytes().is_multiple_of(JOURNAL_UNIT) {
        return bad(&format!("it must be a multiple of {JOURNAL_UNIT}"));
    }
    if size < JOURNAL_MIN {
        return bad(&format!("a transaction may need {JOURNAL_MIN}"));
    }
    Ok(())
}

/// The time, in microseconds since 1970.
fn now() -> Stamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Stamp(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}
