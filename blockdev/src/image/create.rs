//! Making an image: whole, or not at all.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::access::Access;
use super::allocate::{Allocation, allocate, prove};
use super::partial::{self, Partial};
use super::{Meter, Prealloc, check_size, space};
use crate::cancel::Cancel;
use crate::engine::Choice;
use crate::error::{Context, Error, Result};
use crate::extents;
use crate::ui::{self, Progress, path_as_text};
use crate::units::{ByteRange, ByteSize};
use crate::{lock, loopdev, mark};

/// How an image is to be made.
#[derive(Debug, Clone, Copy)]
pub struct CreateOptions {
    /// How large: a multiple of [`SIZE_UNIT`](super::SIZE_UNIT).
    pub size: ByteSize,
    /// How its space is set aside.
    pub prealloc: Prealloc,
    /// Replace a file that is there, at the end and all at once. Until then both need their space.
    pub force: bool,
    /// What writes.
    pub engine: Choice,
}

impl CreateOptions {
    /// An image of `size`, written, that replaces nothing.
    #[must_use]
    pub fn new(size: ByteSize) -> Self {
        Self { size, prealloc: Prealloc::default(), force: false, engine: Choice::default() }
    }
}

/// An image that was made.
#[derive(Debug, Clone, Serialize)]
pub struct Created {
    /// Where it is.
    #[serde(serialize_with = "path_as_text")]
    pub path: PathBuf,
    /// How large.
    pub size: ByteSize,
    /// How it got its space.
    #[serde(flatten)]
    pub allocation: Allocation,
}

/// Makes an image at `path`: under another name first, and renamed only when it is whole, durable and proven.
///
/// # Errors
/// Whatever happens, no file that is not whole bears the name `path`, and what was there before is as it was.
/// - [`InvalidInput`](crate::ErrorKind::InvalidInput): a size that cannot be, here or anywhere.
/// - [`Refused`](crate::ErrorKind::Refused): there is a file, and `force` is not set; or what is there must not be replaced: a
///   directory, a device, a file that a loop device uses. Or another run is making it.
/// - [`NoSpace`](crate::ErrorKind::NoSpace): there is not enough space, or it ran out.
/// - [`VerifyFailed`](crate::ErrorKind::VerifyFailed): every block was written, and the file system says that it was not.
/// - [`Interrupted`](crate::ErrorKind::Interrupted): `cancel` was set.
pub fn create(path: &Path, options: &CreateOptions, progress: &mut dyn Progress, cancel: &Cancel) -> Result<Created> {
    check_size(options.size)?;
    let target = resolve(path)?;
    check_target(&target, options.force)?;
    let mut notices: Vec<String> = partial::sweep(&target)?
        .iter()
        .map(|leftover| format!("removed {}, which a run that was killed had left", leftover.display()))
        .collect();
    let directory = target.parent().unwrap_or(Path::new("/"));
    let directory = File::open(directory).context(|| format!("cannot open {}", directory.display()))?;
    let mut missing = Vec::new();
    if options.prealloc != Prealloc::Sparse {
        missing.extend(space::check(&directory, path, options.size)?.map(str::to_owned));
    }

    let meter = Meter::start();
    let partial = Partial::new(&target)?;
    if let Err(why) = mark::set(partial.file()) {
        missing.push(format!("{why}: it will be taken for somebody else's, and `vdisk detach --all` will pass it by"));
    }
    let again = partial.file().try_clone().context(|| format!("cannot open {} once more", path.display()))?;
    let file = Access::new(again, partial.path(), true, path)?;
    let whole = ByteRange::from_start(options.size);
    let filled = allocate(&file, whole, whole.start, options.prealloc, options.engine, progress, cancel)?;
    partial.file().sync_all().context(|| format!("cannot make {} durable", path.display()))?;
    let extents = extents::summarize(partial.file(), path)?;
    if options.prealloc == Prealloc::Written {
        missing.extend(prove(&extents, path)?.map(str::to_owned));
    }
    cancel.check("creating the image")?;

    // The last look and the rename are one step to everybody who attaches with onedisk: attaching takes the same lock.
    let _lock = if target.exists() { lock::exclusive(&target)? } else { None };
    check_target(&target, options.force)?;
    partial.publish(&target, options.force)?;

    let cost = meter.cost(options.size);
    let (method, engine) = filled.as_ref().map(|filled| (filled.method, filled.engine)).unzip();
    if let Some(filled) = filled {
        missing.extend(file.gap().map(str::to_owned));
        notices.extend(filled.notices);
    }
    let (prealloc, price) = (options.prealloc, options.prealloc.cost());
    let allocation = Allocation { prealloc, method, engine, cost, extents, price, missing, notices };
    Ok(Created { path: path.to_owned(), size: options.size, allocation })
}

/// Where the image is to be in the end: links are followed, so that what is replaced is the file and not the link.
fn resolve(path: &Path) -> Result<PathBuf> {
    let (Some(name), false) = (path.file_name(), path.as_os_str().as_encoded_bytes().ends_with(b"/")) else {
        return Err(Error::invalid(format!("{} is no name for a file", path.display())));
    };
    match fs::symlink_metadata(path) {
        Ok(found) => match fs::canonicalize(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && found.is_symlink() => {
                Err(Error::refused(format!("{} is a link that leads to nothing", path.display())))
            }
            outcome => outcome.context(|| format!("cannot follow {}", path.display())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            fs::canonicalize(parent).map(|parent| parent.join(name)).map_err(|source| {
                let error = Error::io(format!("cannot find the directory {}", parent.display()), source);
                error.with_hint(format!("make it first: mkdir -p {}", ui::shell_word(&parent.to_string_lossy())))
            })
        }
        Err(error) => Err(error).context(|| format!("cannot look at {}", path.display())),
    }
}

/// Refuses to replace what must not be replaced.
fn check_target(target: &Path, force: bool) -> Result<()> {
    let file = match fs::symlink_metadata(target) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context(|| format!("cannot look at {}", target.display())),
    };
    if !file.is_file() {
        let what = if file.is_dir() {
            "a directory"
        } else if file.file_type().is_block_device() {
            "a block device"
        } else {
            "no regular file"
        };
        return Err(Error::refused(format!("{} is {what}: only a regular file can be replaced", target.display())));
    }
    // O_PATH: to know which file it is, nobody needs the right to read it.
    let which = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(target);
    let which = which.context(|| format!("cannot look at {}", target.display()))?;
    if let Some(device) = loopdev::users_of(&which)?.first() {
        let device = device.path.display();
        return Err(Error::refused(format!("{} is attached to {device}: it is never replaced", target.display()))
            .with_hint(format!("if nobody needs it any more: vdisk detach {device}")));
    }
    if !force {
        let size = ByteSize::new(file.len());
        return Err(Error::refused(format!("{} exists ({size})", target.display()))
            .with_hint("--force replaces it, once the new image is whole; until then both need their space"));
    }
    Ok(())
}
