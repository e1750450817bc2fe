//! The file or device that a volume is on, read and written past the page cache: another host may be using it.

use std::ffi::OsString;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blockdev::engine::{Choice, Completion, Config, Engine, Kind, Op, Span, Target};
use blockdev::{ByteSize, Context, Error, ErrorKind, Result};

use crate::format::{Bda, SECTOR_SIZE};

/// I/Os in flight at once.
const QUEUE_DEPTH: u32 = 8;

/// Most bytes in one I/O.
const IO_MAX: usize = 256 << 10;

/// The file or device that a volume is on.
#[derive(Debug)]
pub struct Device {
    engine: Engine,
    path: PathBuf,
    size: ByteSize,
    witness: Option<Arc<dyn Witness>>,
}

/// Where to write whole sectors, and what.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The address of the first byte.
    pub at: Bda,
    /// What to write.
    pub from: &'a [u8],
}

/// Where to read, and into what.
#[derive(Debug)]
pub struct Part<'a> {
    /// The address of the first byte.
    pub at: Bda,
    /// What to fill.
    pub into: &'a mut [u8],
}

/// The device that is called `disk`, below `devices`, which is /dev. A name has no slash: `mapper_x` is /dev/mapper/x, as in
/// the original.
#[must_use]
pub fn device_of(devices: &Path, disk: &[u8]) -> PathBuf {
    let mut name = disk.to_vec();
    if let Some(at) = name.windows(7).position(|part| part == b"mapper_") {
        name[at + 6] = b'/';
    }
    devices.join(OsString::from_vec(name))
}

impl Device {
    /// Opens a file or block device for reading, with the engine that works best here.
    ///
    /// # Errors
    /// When it is neither, or cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, Choice::Auto)
    }

    /// Opens a file or block device for reading.
    ///
    /// # Errors
    /// When it is neither, or cannot be opened, or the engine does not work here.
    pub fn open_with(path: &Path, engine: Choice) -> Result<Self> {
        Self::open_as(path, engine, false)
    }

    /// Opens a file or block device for reading and writing.
    ///
    /// # Errors
    /// When it is neither, or cannot be opened so, or the engine does not work here.
    pub fn open_writable(path: &Path, engine: Choice) -> Result<Self> {
        Self::open_as(path, engine, true)
    }

    fn open_as(path: &Path, engine: Choice, write: bool) -> Result<Self> {
        let what = || format!("cannot open {}{}", path.display(), if write { " for writing" } else { "" });
        let kind = std::fs::metadata(path).context(what)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(Error::invalid(format!("{} is neither a file nor a block device", path.display())));
        }
        let file = open_file(path, write).context(what)?;
        if write {
            takes_writes(&file, path)?;
        }
        Self::over(file, path, engine)
    }

    fn over(mut file: File, path: &Path, engine: Choice) -> Result<Self> {
        let size = measure(&mut file, path)?;
        let config = Config::new(QUEUE_DEPTH, QUEUE_DEPTH, IO_MAX);
        let engine = Engine::open(engine, &config, vec![Target::new(file, path)])?;
        Ok(Self { engine, path: path.to_owned(), size, witness: None })
    }

    /// The same device, whose writes, and those of all devices made of it, somebody sees.
    #[must_use]
    pub fn witnessed(self, witness: Arc<dyn Witness>) -> Self {
        Self { witness: Some(witness), ..self }
    }

    /// The file that it is, for another thread to make a device of: a device stays on its thread.
    pub(super) fn file(&self) -> Result<OpenFile> {
        let target = &self.engine.targets()[0];
        let file = target.file().try_clone().context(|| format!("cannot open {} once more", self.path.display()))?;
        Ok(OpenFile { file, path: self.path.clone(), engine: self.engine.kind(), witness: self.witness.clone() })
    }

    /// What it was opened as.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How large it is, or was when that was last looked at.
    #[must_use]
    pub fn size(&self) -> ByteSize {
        self.size
    }

    /// Looks how large it is by now.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub(super) fn measure(&mut self) -> Result<()> {
        self.size = measure(&mut self.engine.targets()[0].file(), &self.path)?;
        Ok(())
    }

    /// Fills `into` from the device.
    ///
    /// # Errors
    /// When it cannot be read there.
    pub fn read(&mut self, at: Bda, into: &mut [u8]) -> Result<()> {
        self.read_parts([Part { at, into }])
    }

    /// Fills every part from the device, many at once.
    ///
    /// # Errors
    /// When it cannot be read somewhere; what the parts hold then is undefined.
    pub fn read_parts<'a>(&mut self, parts: impl IntoIterator<Item = Part<'a>>) -> Result<()> {
        let pieces = parts.into_iter().flat_map(pieces);
        self.run(
            pieces,
            |_, buffer, piece| {
                let span = Span::whole(buffer, piece.span);
                Op::Read { file: 0, offset: piece.offset, span }
            },
            |engine, buffer, piece| {
                let from = &engine.buffer(buffer)[piece.skip..];
                piece.into.copy_from_slice(&from[..piece.into.len()]);
            },
        )
    }

    /// Writes whole sectors to the device, many at once and in no order.
    ///
    /// # Errors
    /// When it cannot be written somewhere; what stands there then is undefined. When something else than whole sectors is
    /// to be written.
    pub fn write_parts<'a>(&mut self, parts: impl IntoIterator<Item = Source<'a>>) -> Result<()> {
        let parts: Vec<Source<'a>> = parts.into_iter().collect();
        let aligned = |number: u64| number.is_multiple_of(SECTOR_SIZE as u64);
        if let Some(part) = parts.iter().find(|part| !aligned(part.at.bytes()) || !aligned(part.from.len() as u64)) {
            return Err(Error::invalid(format!("{} bytes at {} are not whole sectors", part.from.len(), part.at)));
        }
        if let Some(witness) = &self.witness {
            parts.iter().for_each(|part| witness.write(part.at, part.from));
        }
        let pieces = parts.into_iter().flat_map(|part| {
            part.from
                .chunks(IO_MAX)
                .zip((part.at.bytes()..).step_by(IO_MAX))
                .map(|(from, at)| Source { at: Bda::new(at), from })
        });
        self.run(
            pieces,
            |engine, buffer, piece| {
                engine.buffer_mut(buffer)[..piece.from.len()].copy_from_slice(piece.from);
                #[allow(clippy::cast_possible_truncation, reason = "at most IO_MAX")]
                let span = Span::whole(buffer, piece.from.len() as u32);
                Op::Write { file: 0, offset: piece.at.bytes(), span }
            },
            |_, _, _| {},
        )
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// When the device does not say that it is.
    pub fn flush(&mut self) -> Result<()> {
        if let Some(witness) = &self.witness {
            witness.flush();
        }
        self.run([()].into_iter(), |_, _, ()| Op::Fdatasync { file: 0 }, |_, _, ()| {})
    }

    /// Says that ranges of the device, each from an address on, are not needed any more; they may read as anything then.
    ///
    /// # Errors
    /// When the device cannot be told.
    pub fn discard(&mut self, ranges: impl IntoIterator<Item = (Bda, u64)>) -> Result<()> {
        self.run(
            ranges.into_iter(),
            |_, _, (at, len)| Op::Discard { file: 0, offset: at.bytes(), len: *len },
            |_, _, _| {},
        )
    }

    /// Does an operation for each piece, as many at once as there are buffers.
    fn run<P>(
        &mut self,
        mut pieces: impl Iterator<Item = P>,
        start: impl Fn(&mut Engine, u32, &P) -> Op,
        finish: impl Fn(&Engine, u32, P),
    ) -> Result<()> {
        let mut waiting: [Option<P>; QUEUE_DEPTH as usize] = Default::default();
        let mut done: Vec<Completion> = Vec::with_capacity(waiting.len());
        let mut outcome = Ok(());
        loop {
            for (buffer, slot) in (0u32..).zip(&mut waiting) {
                if slot.is_none()
                    && outcome.is_ok()
                    && let Some(piece) = pieces.next()
                {
                    let op = start(&mut self.engine, buffer, &piece);
                    self.engine.submit(u64::from(buffer), op)?;
                    *slot = Some(piece);
                }
            }
            if self.engine.in_flight() == 0 {
                return outcome;
            }
            self.engine.complete(1, None, &mut done)?;
            for completion in done.drain(..) {
                #[allow(clippy::cast_possible_truncation, reason = "tags are the numbers of buffers")]
                let buffer = completion.tag as u32;
                let piece = waiting[buffer as usize].take();
                match (completion.result, piece) {
                    (Ok(()), Some(piece)) => finish(&self.engine, buffer, piece),
                    (Ok(()), None) => {}
                    (Err(error), _) => outcome = outcome.and(Err(error)),
                }
            }
        }
    }
}

/// Somebody who sees everything that is written to a device, before it is: to know what a crash can leave behind.
pub trait Witness: Send + Sync + fmt::Debug {
    /// These sectors are about to be written. What is seen between two flushes may reach the device in any order.
    fn write(&self, at: Bda, bytes: &[u8]);

    /// What was written before is about to be made durable.
    fn flush(&self);
}

/// A device on its way to another thread.
#[derive(Debug)]
pub(super) struct OpenFile {
    file: File,
    path: PathBuf,
    engine: Kind,
    witness: Option<Arc<dyn Witness>>,
}

impl OpenFile {
    /// The same once more.
    pub(super) fn try_clone(&self) -> Result<Self> {
        let file = self.file.try_clone().context(|| format!("cannot open {} once more", self.path.display()))?;
        Ok(Self { file, path: self.path.clone(), engine: self.engine, witness: self.witness.clone() })
    }

    /// A queue of this thread's to the same device, with the same engine, and who sees what is written.
    pub(super) fn engine(self, config: &Config) -> Result<(Engine, Option<Arc<dyn Witness>>)> {
        let engine = Engine::open(self.choice(), config, vec![Target::new(self.file, self.path)])?;
        Ok((engine, self.witness))
    }

    /// The same device on this thread, with the same engine.
    pub(super) fn device(self) -> Result<Device> {
        let engine = self.choice();
        Ok(Device { witness: self.witness, ..Device::over(self.file, &self.path, engine)? })
    }

    fn choice(&self) -> Choice {
        match self.engine {
            Kind::Uring => Choice::Uring,
            Kind::UringSqpoll => Choice::UringSqpoll,
            Kind::Aio => Choice::Aio,
            Kind::Threads => Choice::Threads,
        }
    }
}

/// Opens past the page cache, unless the file system is without that (tmpfs), which says EINVAL.
fn open_file(path: &Path, write: bool) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(write);
    let direct = options.clone().custom_flags(libc::O_DIRECT).open(path);
    direct.or_else(|_| options.open(path))
}

nix::ioctl_read_bad!(
    /// Whether a block device is read-only (`BLKROGET` of <linux/fs.h>).
    is_read_only,
    nix::request_code_none!(0x12, 94),
    libc::c_int
);

/// Sees that what was opened for writing is no block device that is read-only: root may open one so, and is told only when it
/// writes.
///
/// # Errors
/// [`Permission`](blockdev::ErrorKind::Permission) when it is.
pub(crate) fn takes_writes(file: &File, path: &Path) -> Result<()> {
    let mut read_only = 0;
    // SAFETY: the kernel writes an int into what is one. Where it is no block device it does nothing and says so.
    let asked = unsafe { is_read_only(file.as_raw_fd(), &raw mut read_only) };
    if asked.is_err() || read_only == 0 {
        return Ok(());
    }
    let message = format!("cannot open {} for writing: the device is read-only", path.display());
    Err(Error::new(ErrorKind::Permission, message)
        .with_hint("attach it without --read-only, or `blockdev --setrw` makes it writable"))
}

/// How large a file or device is.
fn measure(file: &mut impl Seek, path: &Path) -> Result<ByteSize> {
    let end = file.seek(SeekFrom::End(0)).context(|| format!("cannot see how large {} is", path.display()))?;
    Ok(ByteSize::new(end))
}

/// One read: whole sectors, of which some bytes at both ends may be of no interest.
#[derive(Debug)]
struct Piece<'a> {
    offset: u64,
    span: u32,
    skip: usize,
    into: &'a mut [u8],
}

/// Cuts a part into reads.
fn pieces(part: Part<'_>) -> impl Iterator<Item = Piece<'_>> {
    let mut at = part.at.bytes();
    let mut rest = part.into;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        #[allow(clippy::cast_possible_truncation, reason = "a remainder of 4096")]
        let skip = (at % SECTOR_SIZE as u64) as usize;
        let len = rest.len().min(IO_MAX - skip);
        let (into, later) = std::mem::take(&mut rest).split_at_mut(len);
        rest = later;
        #[allow(clippy::cast_possible_truncation, reason = "at most IO_MAX")]
        let span = (skip + len).next_multiple_of(SECTOR_SIZE) as u32;
        let piece = Piece { offset: at - skip as u64, span, skip, into };
        at += len as u64;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn device(len: u64, write: &[(u64, &[u8])]) -> (Device, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let file = File::create(&path).unwrap();
        file.set_len(len).unwrap();
        for (at, bytes) in write {
            file.write_all_at(bytes, *at).unwrap();
        }
        (Device::open(&path).unwrap(), dir)
    }

    #[test]
    fn any_range_is_read() {
        let content: Vec<u8> = (0..3u32 << 18).map(|n| (n % 251) as u8).collect();
        let (mut device, _dir) = device(1 << 20, &[(0, &content)]);
        assert_eq!(device.size(), ByteSize::mib(1));
        for (at, len) in [(0, 1), (1, 4096), (4095, 2), (5000, 300_000), (0, content.len()), (262_143, 262_146)] {
            let mut bytes = vec![0xff; len];
            device.read(Bda::new(at as u64), &mut bytes).unwrap();
            assert_eq!(bytes, content[at..at + len], "{len} bytes at {at}");
        }
    }

    #[test]
    fn many_parts_at_once() {
        let content: Vec<u8> = (0..1u32 << 20).map(|n| (n % 241) as u8).collect();
        let (mut device, _dir) = device(1 << 20, &[(0, &content)]);
        let mut bytes = vec![0; 64 * 100];
        let parts = bytes.chunks_mut(100).enumerate().map(|(n, into)| Part { at: Bda::new(n as u64 * 9000), into });
        device.read_parts(parts).unwrap();
        for (n, part) in bytes.chunks(100).enumerate() {
            assert_eq!(part, &content[n * 9000..][..100]);
        }
    }

    #[test]
    fn beyond_the_end_is_an_error_and_the_next_read_works() {
        let (mut device, _dir) = device(8192, &[(0, &[7; 8192])]);
        let mut bytes = [0; 5000];
        let error = device.read(Bda::new(4096), &mut bytes).unwrap_err();
        assert!(error.to_string().contains("read of 4096 bytes at offset 8192 failed"), "{error}");
        device.read(Bda::new(3192), &mut bytes).unwrap();
        assert_eq!(bytes, [7; 5000]);
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = Device::open(dir.path()).unwrap_err();
        assert!(error.to_string().ends_with("is neither a file nor a block device"), "{error}");
        let error = Device::open(&dir.path().join("missing")).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOENT));
    }
}
