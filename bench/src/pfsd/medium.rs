//! A disk of our own to serve: an image with a volume, and a loop device on it. All of it goes when it is dropped.

use std::fs::File;
use std::path::{Path, PathBuf};

use blockdev::image::{self, CreateOptions, Prealloc};
use blockdev::loopdev::{self, Attachment, Options};
use blockdev::ui::Silent;
use blockdev::{ByteOffset, ByteRange, ByteSize, Cancel, Context, Error, ErrorKind, Result, topology};
use nix::sys::statvfs::statvfs;
use pfs::format::CHUNK_SIZE;
use pfs::mkfs::{MkfsOptions, journal_for, mkfs};
use pfs::volume::{FileMap, Segment, Volume, VolumePath};

use crate::disk::{Caching, Directory, IMAGE, LOOP, MEMORY_FILE_SYSTEMS, Target};
use crate::report::{Finding, Severity};

/// Space of a volume and of the file system below it besides what is written to files: metadata in the first place.
const OVERHEAD: ByteSize = ByteSize::mib(256);

/// A disk of our own.
#[derive(Debug)]
pub(super) struct Medium {
    /// What it is on: a file system.
    pub(super) name: String,
    /// Whether that is memory.
    pub(super) in_memory: bool,
    /// What there is to say of how it was made.
    pub(super) findings: Vec<Finding>,
    // Dropped first: the kernel lets go of the image, and then it can go.
    attachment: Option<Attachment>,
    image: PathBuf,
    _directory: Directory,
}

impl Medium {
    /// Makes an image in a new directory below `parent`, with a volume that has room for `room`, and attaches it. It is
    /// sparse: only what is written takes space. What cannot be attached is served as a file, and a finding says so.
    ///
    /// # Errors
    /// When there is not enough space, it cannot be made, or `cancel` is set.
    pub(super) fn make(parent: &Path, room: ByteSize, cancel: &Cancel) -> Result<Self> {
        let (directory, mut findings) = Directory::make(parent)?;
        let place = File::open(directory.path()).context(|| format!("cannot open {}", directory.path().display()))?;
        let system =
            topology::file_system(&place)?.map_or_else(|| "unknown file system".to_owned(), |found| found.name);
        let chunks = (room + OVERHEAD).bytes().div_ceil(CHUNK_SIZE.bytes());
        let chunks = u32::try_from(chunks).map_err(|_| Error::invalid(format!("no volume has room for {room}")))?;
        check_space(parent, room + OVERHEAD + journal_for(chunks))?;
        let image = directory.path().join("image");
        let size = ByteSize::new(CHUNK_SIZE.bytes() * u64::from(chunks));
        let options = CreateOptions { prealloc: Prealloc::Sparse, ..CreateOptions::new(size) };
        image::create(&image, &options, &mut Silent, cancel)?;
        // Before it has a device: as a file it is locked by nobody.
        mkfs(&image, &MkfsOptions { journal: None, ..MkfsOptions::default() }, &mut Silent, cancel)?;
        let attachment = match loopdev::attach(&image, &Options::default()) {
            Ok(attachment) => Some(attachment),
            Err(error) => {
                let text =
                    format!("The image file is served, not a loop device on it, which is what hosts share: {error}.");
                let hint = error.hint().unwrap_or("run it as root for the whole picture");
                findings.push(Finding::new(Severity::Warning, "no-loop-device", text).with_hint(hint));
                None
            }
        };
        let in_memory = MEMORY_FILE_SYSTEMS.contains(&system.as_str());
        Ok(Self { name: system, in_memory, findings, attachment, image, _directory: directory })
    }

    /// Where it can be opened: the device, or else the image.
    pub(super) fn path(&self) -> &Path {
        self.attachment.as_ref().map_or(&self.image, |attachment| &attachment.device().path)
    }

    /// What the original calls it: the name of its device in /dev.
    ///
    /// # Errors
    /// When it has no device.
    pub(super) fn device_name(&self) -> Result<String> {
        let device = self.attachment.as_ref().and_then(|attachment| attachment.device().path.file_name());
        device.map(|name| name.to_string_lossy().into_owned()).ok_or_else(|| {
            Error::new(ErrorKind::Permission, "the original's pfsd serves block devices alone, and there is none here")
                .with_hint("run it as root, for a loop device")
        })
    }

    /// What can be asked without a pfsd: the image, and the loop device on it.
    ///
    /// # Errors
    /// When one of them cannot be opened.
    pub(super) fn targets(&self) -> Result<Vec<Target>> {
        let mut targets = vec![Target::open(&self.image, Caching::Auto)?.named(IMAGE)];
        if let Some(attachment) = &self.attachment {
            targets.push(Target::open(&attachment.device().path, Caching::Auto)?.named(LOOP));
        }
        Ok(targets)
    }
}

/// Where the file at `path` of the volume on `device` lies: its longest run of blocks that are neighbours. The volume must
/// not be mounted by anybody who writes to it.
///
/// # Errors
/// When there is no such volume or file, or part of the file was never written.
pub(super) fn place_of(device: &Path, path: &str) -> Result<ByteRange> {
    let volume = Volume::open(device)?;
    let inode = volume.metadata().lookup(&VolumePath::new(path))?;
    longest_run(&volume.metadata().file_map(inode.number)?).ok_or_else(|| {
        Error::new(ErrorKind::VerifyFailed, format!("not all of {path} on {} was written", device.display()))
    })
}

fn longest_run(file: &FileMap) -> Option<ByteRange> {
    let mut longest: Option<ByteRange> = None;
    for segment in file.segments(0, file.size) {
        let Segment::Data { at, len } = segment else { return None };
        if longest.is_none_or(|longest| longest.len.bytes() < len) {
            longest = Some(ByteRange { start: ByteOffset::new(at.bytes()), len: ByteSize::new(len) });
        }
    }
    longest
}

/// Whether so much fits into `directory`.
fn check_space(directory: &Path, needed: ByteSize) -> Result<()> {
    let what = || format!("cannot see how much space is free in {}", directory.display());
    let there = statvfs(directory).context(what)?;
    let free = ByteSize::new(there.blocks_available().saturating_mul(there.fragment_size()));
    if there.blocks() == 0 || free >= needed {
        return Ok(());
    }
    let message = format!("not enough space in {}: {needed} needed, {free} free", directory.display());
    Err(Error::new(ErrorKind::NoSpace, message).with_hint("a smaller --size, or --scratch DIR for another place"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_asked_for_before_anything_is_made() {
        let parent = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let error = Medium::make(parent.path(), ByteSize::gib(1 << 20), &Cancel::new()).unwrap_err();
        assert_eq!((error.kind(), error.hint().is_some()), (ErrorKind::NoSpace, true));
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}
