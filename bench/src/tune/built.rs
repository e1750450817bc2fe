//! A setup as it stands on this machine: the image made, the device attached, the scheduler set. All of it goes again.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use blockdev::engine::{Config, Engine, Target};
use blockdev::extents::{self, Summary};
use blockdev::file_id::FileId;
use blockdev::image::{self, CreateOptions};
use blockdev::loopdev::{self, Attachment, LoopDevice};
use blockdev::ui::Silent;
use blockdev::{ByteRange, ByteSize, Cancel, Context, Error, Result, topology};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::setup::{NO_SCHEDULER, Setup};
use crate::load::Work;

/// How long to wait for others to close a device that is to go.
const DETACH_WAIT: Duration = Duration::from_secs(10);

/// A setup that stands. Dropping it gives the device and its scheduler back and removes the image, errors or not;
/// [`remove`](Self::remove) tells of errors.
#[derive(Debug)]
pub struct Built<'a> {
    setup: &'a Setup,
    // Given back in this order.
    scheduler: Option<SchedulerBefore>,
    device: Option<Device>,
    image: Image,
}

impl<'a> Built<'a> {
    /// Builds `setup` with an image of `size` at `path`, where nothing is.
    ///
    /// # Errors
    /// When there is no space, or the machine cannot do it; nothing is left behind then.
    pub fn new(setup: &'a Setup, path: &Path, size: ByteSize, cancel: &Cancel) -> Result<Self> {
        let file = Image(path.to_owned());
        let options = CreateOptions { prealloc: setup.prealloc, ..CreateOptions::new(size) };
        image::create(path, &options, &mut Silent, cancel)?;
        let mut built = Self { setup, scheduler: None, device: None, image: file };
        if let Some(device) = &setup.device {
            let options = loopdev::Options {
                logical_block_size: device.block_size,
                direct_io: device.direct_io,
                read_only: false,
            };
            let attached = built.device.insert(Device::attach(path, &options)?);
            built.scheduler = SchedulerBefore::set(&attached.path, &device.scheduler)?;
        }
        Ok(built)
    }

    /// What is read and written: the device, or the image where there is none.
    #[must_use]
    pub fn target(&self) -> &Path {
        self.device.as_ref().map_or(&self.image.0, |device| &device.path)
    }

    /// An engine for `work` on the target, with direct I/O.
    ///
    /// # Errors
    /// When the target cannot be opened, or the engine of the setup does not work here.
    pub fn engine(&self, work: &Work) -> Result<Engine> {
        let config = Config::new(work.depth, work.depth, work.block.to_usize()?);
        Engine::open(self.setup.engine, &config, vec![Target::new(self.open()?, self.target())])
    }

    fn open(&self) -> Result<File> {
        let target = self.target();
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(target)
            .context(|| format!("cannot open {} with direct I/O", target.display()))
    }

    /// Makes everything written so far durable, and forgets what the page cache has of the image: what is measured next
    /// neither pays for what was before, nor is answered from memory.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn settle(&self) -> Result<()> {
        let what = || format!("cannot flush {}", self.target().display());
        self.open()?.sync_data().context(what)?;
        let image = File::open(&self.image.0).context(what)?;
        image.sync_data().context(what)?;
        posix_fadvise(&image, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).context(what)
    }

    /// What state the blocks of `range` are in.
    ///
    /// # Errors
    /// When the file system cannot be asked.
    pub fn extents(&self, range: ByteRange) -> Result<Summary> {
        let path = &self.image.0;
        let file = File::open(path).context(|| format!("cannot open {}", path.display()))?;
        extents::summarize_range(&file, path, range)
    }

    /// Takes all of it down.
    ///
    /// # Errors
    /// When something cannot be given back; the rest is, all the same.
    pub fn remove(mut self) -> Result<()> {
        let scheduler = self.scheduler.take().map_or(Ok(()), SchedulerBefore::restore);
        let device = self.device.take().map_or(Ok(()), Device::detach);
        let image = self.image.remove();
        scheduler.and(device).and(image)
    }
}

/// A file that is removed when this is dropped.
#[derive(Debug)]
struct Image(PathBuf);

impl Image {
    /// The file system may free blocks when its journal is next committed, and discard them then: that is to be over before
    /// anything else is measured.
    fn remove(&self) -> Result<()> {
        let what = || format!("cannot remove {}", self.0.display());
        fs::remove_file(&self.0).context(what)?;
        let directory = self.0.parent().unwrap_or(Path::new("."));
        File::open(directory).and_then(|directory| directory.sync_all()).context(what)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // It may be gone already, or was never made.
        let _ = fs::remove_file(&self.0);
    }
}

/// A loop device that goes when this is dropped.
#[derive(Debug)]
struct Device {
    path: PathBuf,
    number: u32,
    on: Option<FileId>,
    attachment: Option<Attachment>,
}

impl Device {
    fn attach(image: &Path, options: &loopdev::Options) -> Result<Self> {
        let attachment = loopdev::attach(image, options)?;
        let device = attachment.device();
        let (path, number, on) = (device.path.clone(), device.number, device.file);
        Ok(Self { path, number, on, attachment: Some(attachment) })
    }

    /// The kernel detaches it when the last who has it open closes it. That may be udev, which looks at every device that
    /// somebody wrote to; so this waits a while.
    fn detach(mut self) -> Result<()> {
        drop(self.attachment.take());
        let start = Instant::now();
        // Once it is free, somebody else may have it at once.
        while let Some(device) = LoopDevice::with_number(self.number).filter(|device| device.file == self.on) {
            if start.elapsed() > DETACH_WAIT {
                return Err(Error::refused(format!(
                    "{} is still attached to {}: somebody has it open",
                    device.path.display(),
                    device.backing_file.display()
                )));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// The scheduler that a device had, which it gets back: the kernel keeps it with the device's number beyond a detach.
#[derive(Debug)]
struct SchedulerBefore {
    device: PathBuf,
    before: Option<String>,
}

impl SchedulerBefore {
    /// Lets `device` have `scheduler`; nothing is to be given back where it has it already.
    fn set(device: &Path, scheduler: &str) -> Result<Option<Self>> {
        let current = topology::Device::at(device)?.scheduler.map(|found| found.current);
        if current.as_deref().unwrap_or(NO_SCHEDULER) == scheduler {
            return Ok(None);
        }
        let before = topology::set_scheduler(device, scheduler)?;
        Ok(Some(Self { device: device.to_owned(), before: Some(before) }))
    }

    fn restore(mut self) -> Result<()> {
        self.before.take().map_or(Ok(()), |before| topology::set_scheduler(&self.device, &before).map(drop))
    }
}

impl Drop for SchedulerBefore {
    fn drop(&mut self) {
        if let Some(before) = self.before.take() {
            // Something else failed already, and is what is told.
            let _ = topology::set_scheduler(&self.device, &before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedulers_of(number: u32) -> topology::Scheduler {
        topology::Device::at(Path::new(&format!("/dev/loop{number}"))).unwrap().scheduler.unwrap()
    }

    /// Builds a setup that changes all there is to change, and ends as `end` does.
    fn build_and(end: impl FnOnce(Built)) {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("image");
        let mut setup = Setup::recommended(NO_SCHEDULER);
        let device = setup.device.as_mut().unwrap();
        device.block_size = ByteSize::new(4096);
        device.scheduler = "mq-deadline".to_owned();
        let built = Built::new(&setup, &path, ByteSize::mib(4), &Cancel::new()).unwrap();
        let attached = built.device.as_ref().unwrap();
        let (number, on) = (attached.number, attached.on);
        let before = built.scheduler.as_ref().and_then(|scheduler| scheduler.before.clone()).unwrap();
        let device = LoopDevice::with_number(number).unwrap();
        assert!(device.direct_io && device.logical_block_size == ByteSize::new(4096));
        assert_eq!(schedulers_of(number).current, "mq-deadline");
        end(built);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        // The kernel may still be at it when nobody waits for it.
        let start = Instant::now();
        while LoopDevice::with_number(number).is_some_and(|device| device.file == on) {
            assert!(start.elapsed() < DETACH_WAIT, "it is still attached");
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(schedulers_of(number).current, before);
    }

    #[test]
    fn all_of_it_goes_again_also_on_a_panic() {
        ::tests::needs_root!();
        build_and(|built| built.remove().unwrap());
        build_and(|built| drop(built));
        build_and(|built| {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
                let _built = built;
                panic!("on purpose");
            }));
            assert!(outcome.is_err());
        });
    }
}
