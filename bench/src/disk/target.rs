//! What is measured: a file or block device, and why its numbers may not be a disk's.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use blockdev::engine::{Choice, Config, Engine};
use blockdev::extents::{Extent, Extents, State};
use blockdev::loopdev::LoopDevice;
use blockdev::topology::{Topology, WriteCache};
use blockdev::{
    ByteOffset, ByteRange, ByteSize, Context, Error, ErrorKind, FileId, Result, engine, extents, topology, zero,
};

use crate::load::Work;
use crate::report;

/// File systems that keep their files in memory.
pub(crate) const MEMORY_FILE_SYSTEMS: [&str; 2] = ["tmpfs", "ramfs"];

/// Major number of loop devices (Documentation/admin-guide/devices.txt).
const LOOP_MAJOR: u64 = 7;

/// The least that an I/O through the page cache is a multiple of here: what is smaller is no block.
const SECTOR: ByteSize = ByteSize::new(512);

/// Whether I/O goes past the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Caching {
    /// Past it where the target can, else through it.
    #[default]
    Auto,
    /// Past it (O_DIRECT), or not at all.
    Direct,
    /// Through it.
    Buffered,
}

/// A file or block device to be measured.
#[derive(Debug)]
pub struct Target {
    name: String,
    path: PathBuf,
    file: File,
    id: FileId,
    size: ByteSize,
    /// What direct I/O asks for; none where I/O goes through the page cache.
    direct: Option<topology::DirectIo>,
    /// The loop device that it is.
    loop_device: Option<LoopDevice>,
}

impl Target {
    /// The file or block device at `path`, to be read and written as `caching` says.
    ///
    /// # Errors
    /// When it is missing, empty or something else, or direct I/O is asked for and it has none.
    pub fn open(path: &Path, caching: Caching) -> Result<Self> {
        let shown = path.display();
        let mut file = File::open(path).map_err(|source| {
            let error = Error::io(format!("cannot open {shown} to measure it"), source);
            if error.kind() == ErrorKind::NotFound {
                return error.with_hint(format!("`vdisk create {shown} --size 2G` makes an image"));
            }
            error
        })?;
        let metadata = file.metadata().context(|| format!("cannot look at {shown}"))?;
        let kind = metadata.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(Error::invalid(format!("{shown} is neither a file nor a block device")));
        }
        let size = ByteSize::new(file.seek(SeekFrom::End(0)).context(|| format!("cannot find the size of {shown}"))?);
        if size == ByteSize::ZERO {
            return Err(Error::invalid(format!("{shown} is empty: there is nothing to measure"))
                .with_hint(format!("`vdisk create {shown} --size 2G --force` makes an image of it")));
        }
        let direct = match caching {
            Caching::Buffered => None,
            Caching::Auto | Caching::Direct => topology::direct_io(&file)?,
        };
        if direct.is_none() && caching == Caching::Direct {
            return Err(Error::new(ErrorKind::Unsupported, format!("{shown} has no direct I/O"))
                .with_hint("--buffered measures it through the page cache"));
        }
        let id = FileId::of(&metadata);
        let name = shown.to_string();
        Ok(Self { name, path: path.to_owned(), file, size, direct, loop_device: loop_device(id), id })
    }

    /// The same under another name than its path, for reports of what has another path each time.
    #[must_use]
    pub fn named(self, name: impl Into<String>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// What reports call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it was opened as.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How large it is.
    #[must_use]
    pub fn size(&self) -> ByteSize {
        self.size
    }

    /// Which file or device it is.
    #[must_use]
    pub fn id(&self) -> FileId {
        self.id
    }

    /// Whether its I/O goes past the page cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// The loop device that it is, if it is one.
    #[must_use]
    pub fn loop_device(&self) -> Option<&LoopDevice> {
        self.loop_device.as_ref()
    }

    /// What offsets and lengths of its I/O must be multiples of.
    #[must_use]
    pub fn alignment(&self) -> ByteSize {
        self.direct.map_or(SECTOR, |direct| direct.offset_align)
    }

    /// A fresh open file on it, for writing too if `write`.
    ///
    /// # Errors
    /// When it cannot be opened so.
    pub fn open_file(&self, write: bool) -> Result<engine::Target> {
        let flags = if self.is_direct() { libc::O_DIRECT } else { 0 };
        let file = OpenOptions::new().read(true).write(write).custom_flags(flags).open(&self.path);
        let purpose = if write { "write to" } else { "read" };
        let file = file.context(|| format!("cannot open {} to {purpose} it", self.path.display()))?;
        Ok(engine::Target::new(file, &self.path))
    }

    /// An engine for a job of `work` on it.
    ///
    /// # Errors
    /// When the target or the engine cannot be opened.
    pub fn engine(&self, choice: Choice, work: &Work) -> Result<Engine> {
        let config = Config::new(work.depth, work.depth, work.block.to_usize()?);
        Engine::open(choice, &config, vec![self.open_file(work.pattern.writes())?])
    }

    /// Why the numbers of `work` on it would not be a disk's, if they would not.
    ///
    /// # Errors
    /// When the extents cannot be looked at.
    pub fn why_not_disk(&self, work: &Work) -> Result<Option<String>> {
        let durable = work.pattern.writes() && work.fdatasync > 0;
        if !self.is_direct() && !durable {
            return Ok(Some("the page cache answers, not the disk (no direct I/O)".to_owned()));
        }
        let through_cache = self.loop_device.as_ref().filter(|device| !device.direct_io && !durable);
        if let Some(device) = through_cache {
            return Ok(Some(format!(
                "{} reads and writes its file through the page cache, which answers instead of the disk",
                device.path.display()
            )));
        }
        let Some((file, path, range)) = self.backing(work.region)? else { return Ok(None) };
        let system = topology::file_system(&file)?.map(|system| system.name);
        if let Some(system) = system.filter(|system| MEMORY_FILE_SYSTEMS.contains(&system.as_str())) {
            return Ok(Some(format!("{system} keeps its files in memory")));
        }
        if !work.pattern.reads() {
            return Ok(None);
        }
        let summary = extents::summarize_range(&file, &path, range)?;
        let nowhere = summary.not_on_disk();
        Ok((nowhere > ByteSize::ZERO)
            .then(|| format!("{nowhere} of the {} read have no written blocks: no disk is asked for them", range.len)))
    }

    /// All that is known of it, for the report.
    #[must_use]
    pub fn facts(&self) -> report::Target {
        // What cannot be looked at is left out: it is no reason not to measure.
        let facts =
            Topology::of(&self.path).ok().and_then(|facts| serde_json::to_value(facts).ok()).unwrap_or_default();
        report::Target { name: self.name.clone(), facts }
    }

    /// What the device at the bottom says of its write cache.
    #[must_use]
    pub fn write_cache(&self) -> Option<WriteCache> {
        let topology = Topology::of(&self.path).ok()?;
        topology.below.as_deref().unwrap_or(&topology).device.as_ref()?.write_cache
    }

    /// Where the first byte is that is not zero, if there is one. Reads everything that has blocks until it finds it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn first_content(&self) -> Result<Option<ByteOffset>> {
        const PIECE: ByteSize = ByteSize::mib(1);
        let whole = ByteRange::from_start(self.size);
        let ranges: Vec<ByteRange> = match self.id {
            FileId::BlockDevice { .. } => vec![whole],
            FileId::Inode { .. } => Extents::of(&self.file, &self.path, whole)?
                .filter(|extent| !matches!(extent, Ok(Extent { state: State::Hole | State::Unwritten, .. })))
                .map(|extent| extent.map(|extent| extent.range))
                .collect::<Result<_>>()?,
        };
        let mut bytes = vec![0; PIECE.to_usize()?];
        for piece in ranges.into_iter().flat_map(|range| range.pieces(PIECE)) {
            let bytes = &mut bytes[..piece.len.to_usize()?];
            let what = || format!("cannot read {} at offset {} to see what it holds", self.path.display(), piece.start);
            self.file.read_exact_at(bytes, piece.start.bytes()).context(what)?;
            if let Some(at) = zero::first_nonzero(bytes) {
                return Ok(Some(piece.start + ByteSize::new(at as u64)));
            }
        }
        Ok(None)
    }

    /// The file whose extents hold `region`, and where in it; nothing where no file does, or it cannot be found.
    fn backing(&self, region: ByteRange) -> Result<Option<(File, PathBuf, ByteRange)>> {
        if matches!(self.id, FileId::Inode { .. }) {
            let file = self.file.try_clone().context(|| format!("cannot look at {}", self.path.display()))?;
            return Ok(Some((file, self.path.clone(), region)));
        }
        let Some(device) = &self.loop_device else { return Ok(None) };
        // The name is the attacher's; only a file that is the right one by its inode is looked at.
        let Some(file) = File::open(&device.backing_file)
            .ok()
            .filter(|file| file.metadata().is_ok_and(|metadata| device.is_on(FileId::of(&metadata))))
        else {
            return Ok(None);
        };
        let start = ByteOffset::new(device.offset.bytes() + region.start.bytes());
        Ok(Some((file, device.backing_file.clone(), ByteRange::new(start, region.len)?)))
    }
}

/// The attached loop device that `id` is.
fn loop_device(id: FileId) -> Option<LoopDevice> {
    let FileId::BlockDevice { number } = id else { return None };
    let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
    (major == LOOP_MAJOR).then(|| u32::try_from(minor).ok().and_then(LoopDevice::with_number)).flatten()
}
