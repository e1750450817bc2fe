//! The file or device that a volume is on, read past the page cache: another host may be writing it.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use blockdev::engine::{Choice, Completion, Config, Engine, Op, Span, Target};
use blockdev::{ByteSize, Context, Error, Result};

use crate::format::{Bda, SECTOR_SIZE};

/// Reads in flight at once.
const QUEUE_DEPTH: u32 = 8;

/// Most bytes in one read.
const READ_MAX: usize = 256 << 10;

/// The file or device that a volume is on.
#[derive(Debug)]
pub struct Device {
    engine: Engine,
    path: PathBuf,
    size: ByteSize,
}

/// Where to read, and into what.
#[derive(Debug)]
pub struct Part<'a> {
    /// The address of the first byte.
    pub at: Bda,
    /// What to fill.
    pub into: &'a mut [u8],
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
        let what = || format!("cannot open {}", path.display());
        let kind = std::fs::metadata(path).context(what)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(Error::invalid(format!("{} is neither a file nor a block device", path.display())));
        }
        let mut file = direct(path).or_else(|_| File::open(path)).context(what)?;
        let size = ByteSize::new(
            file.seek(SeekFrom::End(0)).context(|| format!("cannot see how large {} is", path.display()))?,
        );
        let config = Config::new(QUEUE_DEPTH, QUEUE_DEPTH, READ_MAX);
        let engine = Engine::open(engine, &config, vec![Target::new(file, path)])?;
        Ok(Self { engine, path: path.to_owned(), size })
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
        let mut pieces = parts.into_iter().flat_map(pieces);
        let mut waiting: [Option<Piece<'a>>; QUEUE_DEPTH as usize] = Default::default();
        let mut done: Vec<Completion> = Vec::with_capacity(waiting.len());
        let mut outcome = Ok(());
        loop {
            for (buffer, slot) in (0u32..).zip(&mut waiting) {
                if slot.is_none()
                    && outcome.is_ok()
                    && let Some(piece) = pieces.next()
                {
                    let span = Span::whole(buffer, piece.span);
                    self.engine.submit(u64::from(buffer), Op::Read { file: 0, offset: piece.offset, span })?;
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
                match completion.result {
                    Ok(()) => {
                        if let Some(piece) = piece {
                            let from = &self.engine.buffer(buffer)[piece.skip..];
                            piece.into.copy_from_slice(&from[..piece.into.len()]);
                        }
                    }
                    Err(error) => outcome = outcome.and(Err(error)),
                }
            }
        }
    }
}

/// Opens past the page cache. A file system without that (tmpfs) says EINVAL.
fn direct(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path)
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
        let len = rest.len().min(READ_MAX - skip);
        let (into, later) = std::mem::take(&mut rest).split_at_mut(len);
        rest = later;
        #[allow(clippy::cast_possible_truncation, reason = "at most READ_MAX")]
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
