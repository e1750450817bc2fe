//! Making an image larger where it is, while it may be in use.
//!
//! Space can only be written once the file reaches it, so a file that is being grown has its new size before the new space
//! is what it should be. The extended attribute `user.onedisk.growing` tells it from a finished image: it holds the size
//! before, is durable before the file is touched, and goes when all is done. On failure the file gets its size back. After
//! a kill it keeps the attribute, and the next run finishes it; it does not cut the file, because by then somebody may have
//! put data there. A loop device does not see the new size before the end.

use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use serde::Serialize;

use super::access::Access;
use super::allocate::{Allocation, allocate, prove};
use super::{Meter, Prealloc, check_size, space};
use crate::cancel::Cancel;
use crate::engine::Choice;
use crate::error::{Context, Error, Result};
use crate::extents;
use crate::lock;
use crate::loopdev::{self, LoopDevice};
use crate::ui::{Progress, path_as_text};
use crate::units::{ByteOffset, ByteRange, ByteSize};

const GROWING: &CStr = c"user.onedisk.growing";

/// How an image is to grow.
#[derive(Debug, Clone, Copy)]
pub struct GrowOptions {
    /// How large it is to be: a multiple of [`SIZE_UNIT`](super::SIZE_UNIT).
    pub size: ByteSize,
    /// How the new space is set aside.
    pub prealloc: Prealloc,
    /// What writes.
    pub engine: Choice,
}

/// An image that was grown.
#[derive(Debug, Clone, Serialize)]
pub struct Grown {
    /// Where it is.
    #[serde(serialize_with = "path_as_text")]
    pub path: PathBuf,
    /// How large it was.
    pub size_before: ByteSize,
    /// How large it is.
    pub size: ByteSize,
    /// The loop devices on it, with the size they have now.
    pub devices: Vec<LoopDevice>,
    /// How the new part got its space.
    #[serde(flatten)]
    pub allocation: Allocation,
}

/// Makes the image at `path` larger.
///
/// # Errors
/// On failure the image has the size and the content it had.
/// - [`InvalidInput`](crate::ErrorKind::InvalidInput): a size that cannot be, or is less than it has; or no regular file.
/// - [`Refused`](crate::ErrorKind::Refused): another program works on it.
/// - [`NoSpace`](crate::ErrorKind::NoSpace): there is not enough space, or it ran out.
/// - [`Permission`](crate::ErrorKind::Permission): it has grown, but the caller may not let a loop device on it see that.
/// - [`VerifyFailed`](crate::ErrorKind::VerifyFailed): every block was written, and the file system says that it was not.
/// - [`Interrupted`](crate::ErrorKind::Interrupted): `cancel` was set.
pub fn grow(path: &Path, options: &GrowOptions, progress: &mut dyn Progress, cancel: &Cancel) -> Result<Grown> {
    check_size(options.size)?;
    let file = open(path)?;
    let _lock = lock::exclusive(path)?;
    let has = ByteSize::new(file.metadata().context(|| format!("cannot look at {}", path.display()))?.len());
    let unfinished = unfinished_grow(&file)?;
    let size_before = unfinished.map_or(has, |before| before.min(has));
    if options.size < has {
        let unfinished = if unfinished.is_some() { ", and a grow to that size is to be finished first" } else { "" };
        return Err(Error::invalid(format!(
            "{} cannot shrink to {}: it has {has}{unfinished}",
            path.display(),
            options.size
        )));
    }
    let devices = loopdev::users_of(&file)?;
    let mut notices = Vec::new();
    if unfinished.is_some() {
        refuse_if_seen(path, size_before, &devices)?;
        notices.push(format!("finished what an earlier run had begun, when the image had {size_before}"));
    }

    let mut missing: Vec<String> = Vec::new();
    let more = options.size - has;
    if options.prealloc != Prealloc::Sparse && more > ByteSize::ZERO {
        missing.extend(space::check(&file, path, more)?.map(str::to_owned));
    }
    let meter = Meter::start();
    let range = ByteRange { start: ByteOffset::ZERO + size_before, len: options.size - size_before };
    let (mut method, mut engine) = (None, None);
    if !range.is_empty() {
        let growing = Growing::begin(&file, path, has, unfinished)?;
        if !growing.marked {
            missing.push(
                "the file system has no extended attributes: if a grow is killed, nothing tells the file from a finished one"
                    .to_owned(),
            );
        }
        let access = Access::new(file.try_clone().context(|| "cannot open the file once more")?, path, true, path)?;
        let filled =
            allocate(&access, range, ByteOffset::ZERO + has, options.prealloc, options.engine, progress, cancel)?;
        if let Some(filled) = filled {
            (method, engine) = (Some(filled.method), Some(filled.engine));
            notices.extend(filled.notices);
            missing.extend(access.gap().map(str::to_owned));
        }
        file.sync_all().context(|| format!("cannot make {} durable", path.display()))?;
        if options.prealloc == Prealloc::Written {
            missing.extend(prove(&extents::summarize_range(&file, path, range)?, path)?.map(str::to_owned));
        }
        cancel.check("growing the image")?;
        growing.finish()?;
    }
    let devices = devices.iter().map(LoopDevice::refresh_size).collect::<Result<Vec<_>>>()?;
    let allocation = Allocation {
        prealloc: options.prealloc,
        method,
        engine,
        cost: meter.cost(range.len),
        extents: extents::summarize_range(&file, path, range)?,
        price: options.prealloc.cost(),
        missing,
        notices,
    };
    Ok(Grown { path: path.to_owned(), size_before, size: options.size, devices, allocation })
}

fn open(path: &Path) -> Result<File> {
    let what = || format!("cannot open {} to grow it", path.display());
    let kind = fs::metadata(path).context(what)?.file_type();
    if !kind.is_file() {
        return Err(Error::invalid(format!("{} is no regular file: it cannot grow", path.display())));
    }
    OpenOptions::new().read(true).write(true).open(path).context(what)
}

/// Whether a loop device shows more of its file than the first `size` bytes.
fn shows_more_than(device: &LoopDevice, size: ByteSize) -> bool {
    device.offset + device.size > ByteOffset::ZERO + size
}

fn refuse_if_seen(path: &Path, size_before: ByteSize, devices: &[LoopDevice]) -> Result<()> {
    let Some(device) = devices.iter().find(|device| shows_more_than(device, size_before)) else { return Ok(()) };
    let device = device.path.display();
    let message = format!("{} was never grown to its end, and {device} shows the unfinished part", path.display());
    Err(Error::refused(message).with_hint(format!("first: vdisk detach {device}")))
}

/// If `file` was being grown and that is not finished: how large it was before.
///
/// # Errors
/// When the file cannot be asked.
pub fn unfinished_grow(file: &File) -> Result<Option<ByteSize>> {
    let mut text = [0u8; 24];
    // SAFETY: the kernel writes at most as many bytes as the buffer has; the name ends in a NUL.
    let found = unsafe { libc::fgetxattr(file.as_raw_fd(), GROWING.as_ptr(), text.as_mut_ptr().cast(), text.len()) };
    match Errno::result(found) {
        Ok(len) => {
            let text = usize::try_from(len).ok().and_then(|len| std::str::from_utf8(text.get(..len)?).ok());
            // Something else under this name is not ours.
            Ok(text.and_then(|text| text.parse().ok()).map(ByteSize::new))
        }
        Err(Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(None),
        Err(errno) => Err(Error::io("cannot ask whether a file was grown to its end", errno)),
    }
}

/// A file whose size is not final. Unless [finished](Growing::finish), it gets back what it had when dropped.
#[derive(Debug)]
struct Growing<'a> {
    file: &'a File,
    path: &'a Path,
    size: ByteSize,
    /// Whether the file says so itself.
    marked: bool,
    /// An earlier run began this, so that the mark was there already.
    resumed: bool,
    finished: bool,
}

impl<'a> Growing<'a> {
    /// Notes durably that `file`, which has `size` now, is being grown; `unfinished` is what an earlier run noted.
    fn begin(file: &'a File, path: &'a Path, size: ByteSize, unfinished: Option<ByteSize>) -> Result<Self> {
        let resumed = unfinished.is_some();
        let mut growing = Self { file, path, size, marked: resumed, resumed, finished: false };
        if !resumed {
            let text = size.bytes().to_string();
            // SAFETY: name and value are valid for the lengths given, and the call keeps neither.
            let outcome =
                unsafe { libc::fsetxattr(file.as_raw_fd(), GROWING.as_ptr(), text.as_ptr().cast(), text.len(), 0) };
            match Errno::result(outcome) {
                Ok(_) => growing.marked = true,
                Err(Errno::EOPNOTSUPP) => {}
                Err(errno) => return Err(growing.failure(errno)),
            }
            file.sync_all().map_err(|error| growing.failure(error))?;
        }
        Ok(growing)
    }

    fn failure(&self, source: impl Into<io::Error>) -> Error {
        Error::io(format!("cannot note in {} that it is being grown", self.path.display()), source)
    }

    /// The file is what it should be, durably.
    fn finish(mut self) -> Result<()> {
        self.finished = true;
        self.unmark().map_err(|errno| self.failure(errno))?;
        self.file.sync_all().map_err(|error| self.failure(error))
    }

    fn unmark(&self) -> nix::Result<()> {
        if !self.marked {
            return Ok(());
        }
        // SAFETY: the name ends in a NUL.
        Errno::result(unsafe { libc::fremovexattr(self.file.as_raw_fd(), GROWING.as_ptr()) }).map(drop)
    }
}

impl Drop for Growing<'_> {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        // Who attached it meanwhile by other means may have put data there.
        let seen = loopdev::users_of(self.file)
            .map_or(true, |devices| devices.iter().any(|device| shows_more_than(device, self.size)));
        // This also gives back what was reserved beyond the end. If it fails, the mark stays and the next run sees it.
        if !seen && self.file.set_len(self.size.bytes()).is_ok() && !self.resumed {
            let _ = self.unmark();
        }
    }
}
