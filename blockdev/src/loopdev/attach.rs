//! From a file to a device.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::detach::{self, PATIENCE};
use super::{LoopDevice, Name, abi, name, node, users_of};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::file_id::FileId;
use crate::image::unfinished_grow;
use crate::ui::needs_root;
use crate::units::{ByteOffset, ByteSize};
use crate::{lock, topology};

const CONTROL: &str = "/dev/loop-control";

/// How often a device that was free a moment ago may turn out to be taken.
const RACES_MAX: u32 = 1000;

/// How to attach a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// The smallest unit of I/O: 512 or 4096 bytes.
    pub logical_block_size: ByteSize,
    /// Read and write the file past the page cache, so that a block is cached once, above the device, and a flush of the
    /// device costs no more than one of the file.
    pub direct_io: bool,
    /// Refuse writes.
    pub read_only: bool,
}

impl Default for Options {
    /// What a shared disk wants: direct I/O in blocks of 512 bytes, which every program can live with.
    fn default() -> Self {
        Self { logical_block_size: ByteSize::new(512), direct_io: true, read_only: false }
    }
}

/// An attached device that is detached when this is dropped, or when the process ends in whatever way, as soon as nobody
/// else has it open: the kernel sees to that (`LO_FLAGS_AUTOCLEAR`). [`keep`](Self::keep) makes it stay.
///
/// A device that was attached before stays as it is. Somebody who merely looks at all devices keeps a dropped one a moment
/// longer: to go on only when it is gone, [`detach`](Self::detach) it.
#[derive(Debug)]
pub struct Attachment {
    device: LoopDevice,
    is_new: bool,
    given: Given,
    // Dropped last: closing it is what detaches the device.
    node: File,
}

impl Attachment {
    /// The device.
    #[must_use]
    pub fn device(&self) -> &LoopDevice {
        &self.device
    }

    /// Whether it was attached now, and not before.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Makes `/dev/NAME` lead to the device. The name goes when this is dropped, or stays with a device that is
    /// [kept](Self::keep) until it is [detached](super::detach).
    ///
    /// # Errors
    /// When something else has that name, or /dev cannot be written.
    pub fn give_name(&mut self, name: &Name) -> Result<()> {
        if needs_root(name.give_to(self.device.number))? {
            self.given.0.push(name.clone());
            self.device.names = name::names_of(self.device.number);
        }
        Ok(())
    }

    /// Lets the device stay until somebody detaches it.
    ///
    /// # Errors
    /// When the kernel does not let it.
    pub fn keep(mut self) -> Result<LoopDevice> {
        detach::set_autoclear(&self.node, false)
            .context(|| format!("cannot make {} stay attached", self.device.path.display()))?;
        self.device.autoclear = false;
        self.given.0.clear();
        Ok(self.device)
    }

    /// Detaches the device, also one that was attached before.
    ///
    /// # Errors
    /// As [`detach`](super::detach). A new device is then detached as soon as nobody has it open.
    pub fn detach(self) -> Result<()> {
        let Self { device, node, .. } = self;
        drop(node);
        match detach::detach(&device) {
            // A new one has gone with its node, and its names go as this ends.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            outcome => outcome,
        }
    }
}

/// The names that were given and go again, unless the device is kept.
#[derive(Debug, Default)]
struct Given(Vec<Name>);

impl Drop for Given {
    fn drop(&mut self) {
        for name in &self.0 {
            // A link that is gone already is as it should be.
            let _ = fs::remove_file(name.path());
        }
    }
}

/// Attaches the file at `path`. What is attached in the same way already is not attached again: its device is returned.
///
/// # Errors
/// - [`InvalidInput`](ErrorKind::InvalidInput): no regular file, empty, or not a whole number of blocks.
/// - [`Refused`](ErrorKind::Refused): it is attached in another way: two devices would be two caches over one disk. Or it was
///   not grown to its end.
/// - [`Permission`](ErrorKind::Permission): the caller may not; the hint is the line to type.
/// - [`Unsupported`](ErrorKind::Unsupported): the kernel has no loop devices, or does not give direct I/O.
pub fn attach(path: &Path, options: &Options) -> Result<Attachment> {
    if ![512, 4096].contains(&options.logical_block_size.bytes()) {
        return Err(Error::invalid(format!(
            "a block size of {} asked for, 512 or 4096 possible",
            options.logical_block_size
        )));
    }
    open(path, options)?;
    // Nobody else may attach the file between our look at what it is attached to and our attaching it, nor replace it: so
    // it is opened once more under the lock.
    let _lock = lock::exclusive(path)?;
    let file = open(path, options)?;
    if let Some(before) = unfinished_grow(&file)? {
        let size = file.metadata().context(|| format!("cannot look at {}", path.display()))?.len();
        return Err(Error::refused(format!(
            "{} was being grown from {before}, and that was cut short: not all of it is what it should be",
            path.display()
        ))
        .with_hint(format!("finish that first: vdisk grow {} --size {}", path.display(), size)));
    }
    let start = Instant::now();
    loop {
        let Some(device) = users_of(&file)?.into_iter().next() else { return attach_new(path, &file, options) };
        match take_attached(path, &device, options) {
            // Open it cannot go any more; but it may have gone before.
            Ok(node) if device.is_still_there() => {
                return Ok(Attachment { device, is_new: false, given: Given::default(), node });
            }
            Ok(_) => {}
            // It was given back, and goes as soon as somebody who only looks at it has it closed.
            Err(_) if device.autoclear && start.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(20)),
            Err(error) => return Err(error),
        }
    }
}

fn open(path: &Path, options: &Options) -> Result<File> {
    let what = || format!("cannot open {} to attach it", path.display());
    // Looked at before it is opened: a pipe would keep us waiting for somebody at its other end.
    let metadata = fs::metadata(path).context(what)?;
    if metadata.file_type().is_block_device() {
        return Err(Error::invalid(format!("{} is a block device already: use it as it is", path.display())));
    }
    if !metadata.is_file() {
        return Err(Error::invalid(format!("{} is no regular file: it cannot be attached", path.display())));
    }
    let size = ByteSize::new(metadata.len());
    if size == ByteSize::ZERO {
        return Err(Error::invalid(format!("{} is empty: it cannot be attached", path.display())));
    }
    if !size.is_multiple_of(options.logical_block_size) {
        return Err(Error::invalid(format!(
            "{} has {} bytes, which is not a whole number of {}-byte blocks: its end could not be reached",
            path.display(),
            size.bytes(),
            options.logical_block_size.bytes()
        )));
    }
    match OpenOptions::new().read(true).write(!options.read_only).open(path) {
        Err(error) if error.raw_os_error() == Some(libc::EROFS) => {
            Err(Error::io(what(), error).with_hint("attach it read-only: --read-only"))
        }
        outcome => needs_root(outcome.context(what)),
    }
}

/// Opens `device`, which `path` is attached to, if it is attached as asked for.
fn take_attached(path: &Path, device: &LoopDevice, options: &Options) -> Result<File> {
    let mut differences = Vec::new();
    if device.offset != ByteOffset::ZERO || device.size_limit.is_some() {
        differences.push("as a part of the file".to_owned());
    }
    if device.logical_block_size != options.logical_block_size {
        differences.push(format!("with {}-byte blocks", device.logical_block_size.bytes()));
    }
    if device.direct_io != options.direct_io {
        differences.push(if device.direct_io { "with direct I/O" } else { "without direct I/O" }.to_owned());
    }
    if device.read_only != options.read_only {
        differences.push(if device.read_only { "read-only" } else { "for writing" }.to_owned());
    }
    if !differences.is_empty() {
        return Err(Error::refused(format!(
            "{} is attached to {} already, {}; a second device would be a second cache over one disk",
            path.display(),
            device.path.display(),
            differences.join(", ")
        ))
        .with_hint(format!("use {0}, or first: vdisk detach {0}", device.path.display())));
    }
    let node = node::open(device.number, OpenOptions::new().read(true).write(!device.read_only));
    needs_root(node.context(|| format!("cannot open {}", device.path.display())))
}

fn attach_new(path: &Path, file: &File, options: &Options) -> Result<Attachment> {
    let (number, node) = needs_root(take_free(path, file, options))?;
    let device = LoopDevice::with_number(number)
        .filter(|device| file.metadata().is_ok_and(|metadata| device.is_on(FileId::of(&metadata))));
    let Some(device) = device else {
        return Err(Error::new(
            ErrorKind::Io,
            format!("/dev/loop{number} was attached to {}, and is not", path.display()),
        ));
    };
    // From here on, an error detaches: `node` is closed.
    if options.direct_io && !device.direct_io {
        return Err(no_direct_io(path, file, options));
    }
    Ok(Attachment { device, is_new: true, given: Given::default(), node })
}

/// Attaches `file` to a free device, which stays as long as the node that is returned is open.
fn take_free(path: &Path, file: &File, options: &Options) -> Result<(u32, File)> {
    let control = OpenOptions::new().read(true).write(true).open(CONTROL).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            Error::new(ErrorKind::Unsupported, format!("no loop devices here: there is no {CONTROL}"))
                .with_hint("load the kernel module with `modprobe loop`, or run where the kernel has it")
        }
        _ => Error::io(format!("cannot open {CONTROL}"), error),
    })?;
    let name = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut flags = abi::AUTOCLEAR;
    if options.direct_io {
        flags |= abi::DIRECT_IO;
    }
    if options.read_only {
        flags |= abi::READ_ONLY;
    }
    let info = abi::LoopInfo64::new(name.as_os_str().as_bytes(), flags);
    for _ in 0..RACES_MAX {
        let number = abi::get_free(&control).context(|| "cannot find a free loop device")?;
        let node = match node::open(number, OpenOptions::new().read(true).write(true)) {
            // Somebody removed the device (LOOP_CTL_REMOVE).
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENODEV)) => continue,
            outcome => outcome.context(|| format!("cannot open /dev/loop{number}"))?,
        };
        match configure(&node, file, options.logical_block_size, info) {
            Ok(()) => return Ok((number, node)),
            // Somebody was faster.
            Err(Errno::EBUSY) => thread::sleep(Duration::from_millis(fastrand::u64(..3))),
            Err(errno) => {
                return Err(Error::io(format!("cannot attach {} to /dev/loop{number}", path.display()), errno));
            }
        }
    }
    Err(Error::refused(format!(
        "cannot attach {}: every loop device that was free was taken by others",
        path.display()
    )))
}

fn configure(node: &File, file: &File, block_size: ByteSize, info: abi::LoopInfo64) -> nix::Result<()> {
    match abi::configure(node, file, block_size, info) {
        // Linux before 5.8; or what is asked for cannot be, and then the steps say so again.
        Err(Errno::EINVAL | Errno::ENOTTY) => configure_by_steps(node, file, block_size, info),
        outcome => outcome,
    }
}

fn configure_by_steps(node: &File, file: &File, block_size: ByteSize, info: abi::LoopInfo64) -> nix::Result<()> {
    abi::set_fd(node, file)?;
    let steps = || {
        abi::set_status(node, &info)?;
        abi::set_block_size(node, block_size)?;
        if info.flags & abi::DIRECT_IO == 0 {
            return Ok(());
        }
        match abi::set_direct_io(node) {
            // It cannot be: as LOOP_CONFIGURE, go on without. The caller looks at what came of it.
            Err(Errno::EINVAL) => Ok(()),
            outcome => outcome,
        }
    };
    steps().inspect_err(|_| {
        // The first error is the one to report.
        let _ = abi::clr_fd(node);
    })
}

/// Why the kernel did not give direct I/O (`lo_can_use_dio` in drivers/block/loop.c).
fn no_direct_io(path: &Path, file: &File, options: &Options) -> Error {
    let file_system =
        topology::file_system(file).ok().flatten().map_or("its file system".to_owned(), |found| found.name);
    let block = options.logical_block_size.bytes();
    let without = "go without, at the price of a second cache: --buffered";
    let (why, hint) = match topology::direct_io(file) {
        Ok(None) => (format!("{file_system} has none"), format!("put the file on ext4, xfs or btrfs, or {without}")),
        Ok(Some(direct)) if direct.offset_align > options.logical_block_size => {
            let wanted = direct.offset_align.bytes();
            let hint = if wanted == 4096 { "--block-size 4096".to_owned() } else { without.to_owned() };
            (format!("{file_system} wants units of {wanted} bytes, and the device has blocks of {block}"), hint)
        }
        _ => ("the kernel does not give it, and does not say why".to_owned(), without.to_owned()),
    };
    Error::new(ErrorKind::Unsupported, format!("{} cannot be attached with direct I/O: {why}", path.display()))
        .with_hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_of_older_kernels_come_to_the_same() {
        ::tests::needs_root!();
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("disk");
        let file = File::create_new(&path).unwrap();
        file.set_len(1 << 20).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let control = File::open(CONTROL).unwrap();
        let info = abi::LoopInfo64::new(b"disk", abi::AUTOCLEAR | abi::DIRECT_IO);
        let (number, node) = loop {
            let number = abi::get_free(&control).unwrap();
            let node = node::open(number, OpenOptions::new().read(true).write(true)).unwrap();
            match configure_by_steps(&node, &file, ByteSize::new(4096), info) {
                Err(Errno::EBUSY) => {}
                outcome => break outcome.map(|()| (number, node)).unwrap(),
            }
        };
        let device = LoopDevice::with_number(number).unwrap();
        assert_eq!(
            (device.direct_io, device.logical_block_size),
            (topology::direct_io(&file).unwrap().is_some(), ByteSize::new(4096))
        );
        assert!(device.autoclear && device.is_on(FileId::of(&file.metadata().unwrap())));
        abi::clr_fd(&node).unwrap();
    }
}
