//! The disk that all nodes of a cluster share: an image that is made and attached to a loop device, or a block device that
//! is there already.
//!
//! The loop device is the kernel's and not a container's: it is attached beside the Docker daemon, once, and handed to every
//! node. Its number may be another after a reboot, so whoever needs it asks for it each time.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use blockdev::image::{self, CreateOptions, Prealloc};
use blockdev::loopdev::{self, LoopDevice};
use blockdev::signature::Contents;
use blockdev::{ByteSize, Cancel, Context, Error, ErrorKind, Result, mark, ui};
use pfs::format::{BLOCK_SIZE, BlktagNo, CHUNK_SIZE, SECTOR_SIZE, has_magic};
use pfs::volume::{Volume, VolumePath};

use crate::config::Config;
use crate::doctor::Finding;
use crate::runtime::quote;
use crate::state::{ClusterDirectory, Note};
use crate::step::Step;

/// The size of an image where none is asked for: as in the recipe.
pub const SIZE_DEFAULT: ByteSize = ByteSize::gib(20);
/// What an empty database takes of a sparse image: four WAL segments of 1 GiB, and its tables.
const NEW_DATABASE: ByteSize = ByteSize::gib(5);

/// The shared disk of a cluster.
#[derive(Debug, Clone)]
pub struct SharedDisk {
    directory: ClusterDirectory,
    source: Source,
    cancel: Cancel,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Image { path: PathBuf, size: ByteSize, prealloc: Prealloc },
    Device(PathBuf),
}

impl SharedDisk {
    /// The disk that `config` describes.
    ///
    /// # Errors
    /// When PolarFS cannot have a disk of that size, or both an image and a device are named.
    pub fn new(directory: &ClusterDirectory, config: &Config, cancel: &Cancel) -> Result<Self> {
        let image = config.disk.is_some() || config.disk_size.is_some() || config.prealloc.is_some();
        let source = match &config.device {
            Some(_) if image => {
                return Err(Error::invalid("the shared disk is given twice: as a device, and as an image")
                    .with_hint("take device, or take disk, disk_size and prealloc out of the settings"));
            }
            Some(device) => Source::Device(device.clone()),
            None => {
                let size = config.disk_size.unwrap_or(SIZE_DEFAULT);
                check_size(size)?;
                let path = config.disk.clone().unwrap_or_else(|| directory.path().join("disk.img"));
                Source::Image { path, size, prealloc: config.prealloc.unwrap_or_default() }
            }
        };
        Ok(Self { directory: directory.clone(), source, cancel: cancel.clone() })
    }

    /// The block device, as this machine has it now.
    ///
    /// # Errors
    /// When the image is not attached, or cannot be looked at.
    pub fn attached_device(&self) -> Result<PathBuf> {
        let device = match &self.source {
            Source::Device(path) => Some(path.clone()),
            Source::Image { path, .. } => attached(path)?.map(|device| device.path),
        };
        device.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("the shared disk {} is not attached", self.path().display()))
                .with_hint("`provision repair` attaches it")
        })
    }

    /// The image or the device.
    #[must_use]
    pub fn path(&self) -> &Path {
        match &self.source {
            Source::Device(path) | Source::Image { path, .. } => path,
        }
    }

    /// Whether it is an image that is attached, and no device that was there.
    #[must_use]
    pub fn is_image(&self) -> bool {
        matches!(self.source, Source::Image { .. })
    }

    /// The shell's words for the block device, also before there is one.
    #[must_use]
    pub fn shell_device(&self) -> String {
        match &self.source {
            Source::Device(path) => quote(&path.to_string_lossy()),
            Source::Image { path, .. } => format!("\"$(losetup -nO NAME -j {})\"", quote(&path.to_string_lossy())),
        }
    }

    /// The steps that make the image and attach it; none for a device that is there.
    #[must_use]
    pub fn steps(&self) -> Vec<Step<'_>> {
        let Source::Image { path, size, prealloc } = &self.source else { return Vec::new() };
        vec![self.make(path, *size, *prealloc), attach(path)]
    }

    fn make<'a>(&'a self, path: &'a Path, size: ByteSize, prealloc: Prealloc) -> Step<'a> {
        let shown = quote(&path.to_string_lossy());
        Step::new(
            format!("make the shared disk ({size}, {prealloc})"),
            move || self.has_image(path, size),
            move || {
                if self.directory.is_noted(Note::Formatted) {
                    return Err(Error::new(ErrorKind::VerifyFailed, format!("{} is gone", path.display())).with_hint(
                        "bring it back; or give its data up with `provision down --purge`, and begin with an empty database",
                    ));
                }
                // Noted first: what is there from now on, this cluster has made.
                self.directory.note(Note::Making)?;
                let mut options = CreateOptions::new(size);
                options.prealloc = prealloc;
                image::create(path, &options, &mut ui::ProgressBar::new(), &self.cancel).map(drop)
            },
        )
        .shell([format!("vdisk create {shown} --size {} --prealloc {prealloc}", size.bytes())])
    }

    /// What is wrong with the disk.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn findings(&self) -> Result<Vec<Finding>> {
        match &self.source {
            Source::Device(path) => Ok(device_finding(path).into_iter().collect()),
            Source::Image { path, size, prealloc } => match self.has_image(path, *size) {
                Err(error) => Ok(vec![Finding::from_error("foreign-disk", &error)]),
                Ok(true) => Ok(loop_finding(path).into_iter().collect()),
                Ok(false) => {
                    let space = space_finding(path, *size, *prealloc)?;
                    Ok(space.into_iter().chain(loop_finding(path)).collect())
                }
            },
        }
    }

    /// Whether this cluster has made the image.
    fn has_image(&self, path: &Path, size: ByteSize) -> Result<bool> {
        let found = match fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            found => ByteSize::new(found.context(|| format!("cannot look at {}", path.display()))?.len()),
        };
        if !self.directory.is_noted(Note::Making) || !mark::is_set(path) {
            return Err(Error::refused(format!("{} exists, and this cluster did not make it", path.display()))
                .with_hint("name another place with --disk"));
        }
        if found != size {
            let path = path.display();
            return Err(Error::refused(format!("the shared disk {path} is {found}, and {size} is asked for")));
        }
        Ok(true)
    }

    /// Whether there is a PolarFS volume on it, however damaged.
    ///
    /// # Errors
    /// When it cannot be read, or is not attached.
    pub fn is_formatted(&self) -> Result<bool> {
        let device = self.attached_device()?;
        let mut sector = [0; SECTOR_SIZE];
        let read = File::open(&device).and_then(|file| file.read_exact_at(&mut sector, 0));
        ui::needs_root(read.context(|| format!("cannot read {}", device.display())))?;
        Ok(has_magic(&sector))
    }

    /// Whether there is something at `path` of the PolarFS volume, as it is now, whoever writes it.
    ///
    /// # Errors
    /// When the volume cannot be read.
    pub fn has(&self, path: &str) -> Result<bool> {
        let volume = Volume::open(&self.attached_device()?)?;
        match volume.metadata().lookup(&VolumePath::new(path)) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// How much of the PolarFS volume is taken.
    ///
    /// # Errors
    /// When it cannot be read, or is not attached.
    pub fn used(&self) -> Result<ByteSize> {
        let volume = Volume::open(&self.attached_device()?)?;
        let metadata = volume.metadata();
        let blocks: usize = metadata.headers().map(|chunk| metadata.used::<BlktagNo>(chunk.id).count()).sum();
        Ok(ByteSize::new(BLOCK_SIZE.bytes() * blocks as u64))
    }

    /// Refuses to format what somebody uses, and, unless `reformat`, what holds something.
    ///
    /// # Errors
    /// What it holds, or who uses it.
    pub fn refuse_to_format(&self, reformat: bool) -> Result<()> {
        let device = self.attached_device()?;
        let contents = Contents::of(&device, &[])?;
        if !contents.uses.is_empty() {
            return Err(Error::refused(format!("{} {contents}: it is not formatted", self.path().display()))
                .with_hint("end what uses it; no pfsd may have it open"));
        }
        if reformat {
            return Ok(());
        }
        let hint = "--reformat formats it nevertheless, and what it holds is gone; or name another disk";
        if self.is_formatted()? {
            return Err(Error::refused(format!("{} holds a PolarFS volume", self.path().display())).with_hint(hint));
        }
        contents.refuse_to_overwrite(self.path()).map_err(|error| error.with_hint(hint))
    }

    /// Gives the loop device back, and with `purge` removes an image that onedisk made. A device that was there stays.
    ///
    /// # Errors
    /// When somebody still uses it, or the image cannot be removed.
    pub fn release(&self, purge: bool) -> Result<()> {
        let Source::Image { path, .. } = &self.source else { return Ok(()) };
        if !self.directory.is_noted(Note::Making) || !mark::is_set(path) {
            return Ok(());
        }
        if let Some(device) = attached(path)? {
            loopdev::detach(&device)?;
        }
        if purge {
            fs::remove_file(path).context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }
}

fn attached(image: &Path) -> Result<Option<LoopDevice>> {
    match File::open(image) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        file => {
            let file = file.context(|| format!("cannot open {}", image.display()))?;
            Ok(loopdev::users_of(&file)?.into_iter().next())
        }
    }
}

fn attach(image: &Path) -> Step<'_> {
    Step::new(
        "attach the shared disk",
        // One that goes when it is closed is not attached: nobody may have it open tomorrow.
        move || Ok(attached(image)?.is_some_and(|device| !device.autoclear)),
        move || loopdev::attach(image, &loopdev::Options::default())?.keep().map(drop),
    )
    .shell([format!("vdisk attach {}", quote(&image.to_string_lossy()))])
}

/// Refuses a size that PolarFS rounds down or cannot have.
fn check_size(size: ByteSize) -> Result<()> {
    let chunk = CHUNK_SIZE;
    if size >= chunk && size.is_multiple_of(chunk) {
        return Ok(());
    }
    let up = size.bytes().div_ceil(chunk.bytes()).max(1);
    Err(Error::invalid(format!(
        "a shared disk cannot be {size}: PolarFS divides it into chunks of {chunk}, and takes no part of one"
    ))
    .with_hint(format!("make it {}", ByteSize::new(up.saturating_mul(chunk.bytes())))))
}

fn device_finding(path: &Path) -> Option<Finding> {
    let broken = |message: String| Some(Finding::error("no-device", message, "name a block device with --device"));
    let Ok(metadata) = fs::metadata(path) else {
        return broken(format!("there is no device {}", path.display()));
    };
    if !metadata.file_type().is_block_device() {
        return broken(format!("{} is no block device", path.display()));
    }
    let mut file = File::open(path).ok()?;
    let size = ByteSize::new(std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).ok()?);
    let chunk = CHUNK_SIZE;
    if size < chunk {
        return Some(Finding::error(
            "disk-size",
            format!("{} has {size}; PolarFS needs at least {chunk}", path.display()),
            format!("name a device of {chunk} or more"),
        ));
    }
    let rest = ByteSize::new(size.bytes() % chunk.bytes());
    (rest > ByteSize::ZERO).then(|| {
        Finding::warning(
            "disk-size",
            format!("{} has {size}, of which PolarFS leaves the last {rest} unused", path.display()),
            format!("make it a multiple of {chunk}"),
        )
    })
}

/// Why the image could not be attached, unless it is.
fn loop_finding(image: &Path) -> Option<Finding> {
    if attached(image).is_ok_and(|device| device.is_some()) {
        return None;
    }
    no_loop_devices(Path::new("/dev/loop-control"), nix::unistd::geteuid().is_root())
}

fn no_loop_devices(control: &Path, is_root: bool) -> Option<Finding> {
    let device = "or name a block device with --device";
    if !control.exists() {
        let what = format!("this kernel has no loop devices: there is no {}", control.display());
        return Some(Finding::error("no-loop", what, format!("modprobe loop; {device}")));
    }
    (!is_root).then(|| {
        let what = "the image of the shared disk is attached to a loop device, which takes root";
        Finding::error("no-root", what, format!("{}; {device}", ui::sudo_line()))
    })
}

fn space_finding(path: &Path, size: ByteSize, prealloc: Prealloc) -> Result<Option<Finding>> {
    let directory = path.ancestors().skip(1).find(|path| path.exists()).unwrap_or(Path::new("/"));
    let statistics = nix::sys::statvfs::statvfs(directory)
        .context(|| format!("cannot ask for the free space at {}", directory.display()))?;
    let free = ByteSize::new(statistics.blocks_available() * statistics.fragment_size());
    let needed = if prealloc == Prealloc::Sparse { NEW_DATABASE } else { size };
    let (id, remedy) = ("disk-space", "make room, choose another place with --disk, or a smaller --disk-size");
    let place = directory.display();
    Ok(if free < needed {
        let what = format!("{place} has {free} free; a new shared disk takes {needed}");
        Some(Finding::error(id, what, remedy))
    } else if free < size {
        let what = format!("{place} has {free} free, and a sparse disk of {size} may come to take all of that");
        Some(Finding::warning(id, what, remedy))
    } else {
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Layers, Origin, Settings};
    use crate::state::StateDirectory;

    #[test]
    fn a_size_is_whole_chunks() {
        for size in [10, 20, 1000] {
            check_size(ByteSize::gib(size)).unwrap();
        }
        for (size, hint) in [
            (ByteSize::ZERO, "make it 10 GiB"),
            (ByteSize::gib(5), "make it 10 GiB"),
            (ByteSize::gib(15), "make it 20 GiB"),
            (ByteSize::new(1), "make it 10 GiB"),
        ] {
            let error = check_size(size).unwrap_err();
            assert!(error.to_string().contains("chunks of 10 GiB"), "{error}");
            assert_eq!((error.hint(), error.kind()), (Some(hint), ErrorKind::InvalidInput));
        }
    }

    /// A disk whose image is at `image`, for a cluster of its own in `root`.
    fn disk(root: &Path, settings: &str) -> Result<SharedDisk> {
        let mut layers = Layers::default();
        layers.add(Settings::parse(settings, Path::new("t")).unwrap(), |_| Origin::File("t".into()));
        let config = layers.config().unwrap();
        let directory = StateDirectory::find(Some(root)).unwrap().cluster(&config.name);
        SharedDisk::new(&directory, &config, &Cancel::new())
    }

    #[test]
    fn nobody_elses_file_becomes_a_disk_or_goes_with_one() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("mine.img");
        fs::write(&path, "mine").unwrap();
        let disk = disk(root.path(), &format!("disk = {path:?}\ndisk_size = \"10GiB\"")).unwrap();
        let findings = disk.findings().unwrap();
        assert_eq!(findings.iter().map(|finding| finding.id).collect::<Vec<_>>(), ["foreign-disk"]);
        assert!(findings[0].message.ends_with("exists, and this cluster did not make it"));
        disk.release(true).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }

    #[test]
    fn a_disk_that_does_not_fit_is_told_before_it_is_made() {
        let root = tempfile::tempdir().unwrap();
        let disk = disk(root.path(), "disk_size = \"1000TiB\"").unwrap();
        let findings = disk.findings().unwrap();
        assert_eq!(findings[0].id, "disk-space");
        assert!(findings[0].message.ends_with("free; a new shared disk takes 1000 TiB"), "{}", findings[0].message);
    }

    #[test]
    fn what_attaching_takes_is_told_before() {
        let directory = tempfile::tempdir().unwrap();
        let ids = |control: &Path, is_root| no_loop_devices(control, is_root).map(|finding| finding.id);
        assert_eq!(ids(&directory.path().join("none"), true), Some("no-loop"));
        assert_eq!(ids(directory.path(), false), Some("no-root"));
        assert_eq!(ids(directory.path(), true), None);
    }

    #[test]
    fn an_image_and_a_device_are_one_too_many() {
        let root = tempfile::tempdir().unwrap();
        let error = disk(root.path(), "device = \"/dev/x\"\ndisk_size = \"10GiB\"").unwrap_err();
        assert_eq!(error.to_string(), "the shared disk is given twice: as a device, and as an image");
    }

    #[test]
    fn what_holds_something_or_is_in_use_is_not_formatted() {
        ::tests::needs_root!();
        let root = tempfile::tempdir_in("/var/tmp").unwrap();
        let image = root.path().join("image");
        File::create(&image).unwrap().set_len(CHUNK_SIZE.bytes()).unwrap();
        let attached = loopdev::attach(&image, &loopdev::Options::default()).unwrap().keep().unwrap();
        let outcome = std::panic::catch_unwind(|| {
            let disk = disk(root.path(), &format!("device = {:?}", attached.path)).unwrap();
            assert_eq!(disk.findings().unwrap(), []);
            assert!(!disk.is_formatted().unwrap());
            disk.refuse_to_format(false).unwrap();

            let open = File::options().write(true).open(&attached.path).unwrap();
            let error = disk.refuse_to_format(true).unwrap_err();
            assert!(error.to_string().contains(" is open in "), "{error}");
            // The magic number of pfs-format's chunk header, of version 2.
            open.write_all_at(&(0x50_4653_4348_u64 + 2).to_le_bytes(), 0).unwrap();
            drop(open);

            assert!(disk.is_formatted().unwrap());
            let error = disk.refuse_to_format(false).unwrap_err();
            assert!(error.to_string().ends_with(" holds a PolarFS volume"), "{error}");
            assert!(error.hint().unwrap().starts_with("--reformat "));
            disk.refuse_to_format(true).unwrap();
            // A device that was there stays.
            disk.release(true).unwrap();
            assert!(loopdev::find(&image).is_ok());
        });
        loopdev::detach(&attached).unwrap();
        outcome.unwrap();
    }

    #[test]
    fn what_is_no_device_is_none() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(device_finding(&directory.path().join("none")).unwrap().id, "no-device");
        assert!(device_finding(directory.path()).unwrap().message.ends_with("is no block device"));
    }
}
