//! A disk of our own to measure: an image, and a loop device on it. All of it goes when it is dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blockdev::engine::Choice;
use blockdev::image::{self, CreateOptions, Prealloc};
use blockdev::loopdev::{self, Attachment, Options};
use blockdev::ui::Progress;
use blockdev::{ByteRange, ByteSize, Cancel, Context, Error, FileId, Result, mark, usage};

use super::target::{Caching, Target};
use crate::load::{self, Pattern, Work};
use crate::report::{Finding, Severity};

/// What our directories are called, before the id of the process that made them.
const PREFIX: &str = "onedisk-scratch-";

/// The image file, as reports call it: its path is another each time.
pub(crate) const IMAGE: &str = "image file";

/// The loop device on it.
pub(crate) const LOOP: &str = "loop device";

/// A directory of our own with an image, and a loop device on it where that is possible.
#[derive(Debug)]
pub struct Scratch {
    // Dropped first: the kernel lets go of the image, and then it can go.
    attachment: Option<Attachment>,
    findings: Vec<Finding>,
    directory: Directory,
}

impl Scratch {
    /// Makes an image of `size` in a new directory below `parent`, fills it with noise, and attaches it. What cannot be
    /// attached is measured as a file, and a finding says so.
    ///
    /// # Errors
    /// When there is not enough space, the image cannot be made, or `cancel` is set.
    pub fn make(parent: &Path, size: ByteSize, progress: &mut dyn Progress, cancel: &Cancel) -> Result<Self> {
        let (directory, mut findings) = Directory::make(parent)?;
        let image = directory.0.join("image");
        let allocation = image::create(&image, &CreateOptions::new(size), progress, cancel)?.allocation;
        for missing in allocation.missing.into_iter().chain(allocation.notices) {
            findings.push(Finding::new(Severity::Note, "image", missing));
        }
        fill(&image, progress, cancel)?;
        let attachment = match loopdev::attach(&image, &Options::default()) {
            Ok(attachment) => Some(attachment),
            Err(error) => {
                let finding = Finding::new(
                    Severity::Warning,
                    "no-loop-device",
                    format!(
                        "Only the image file is measured, not a loop device on it, which is what hosts share: {error}."
                    ),
                );
                findings.push(match error.hint() {
                    Some(_) if !nix::unistd::geteuid().is_root() => {
                        finding.with_hint("run it as root for the whole picture")
                    }
                    Some(hint) => finding.with_hint(hint),
                    None => finding,
                });
                None
            }
        };
        Ok(Self { attachment, findings, directory })
    }

    /// What is to be measured: the image, and the loop device on it.
    ///
    /// # Errors
    /// When one of them cannot be opened.
    pub fn targets(&self) -> Result<Vec<Target>> {
        let mut targets = vec![Target::open(&self.image(), Caching::Auto)?.named(IMAGE)];
        if let Some(attachment) = &self.attachment {
            targets.push(Target::open(&attachment.device().path, Caching::Auto)?.named(LOOP));
        }
        Ok(targets)
    }

    /// Where other files of the experiment may go.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory.0
    }

    /// What there is to say of how it was made.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    fn image(&self) -> PathBuf {
        self.directory.0.join("image")
    }
}

/// Fills the image with noise: a device that compresses, or knows zeroes when it sees them, is not asked for its best case.
fn fill(image: &Path, progress: &mut dyn Progress, cancel: &Cancel) -> Result<()> {
    let target = Target::open(image, Caching::Auto)?;
    let block = ByteSize::mib(1);
    let whole = target.size().bytes() - target.size().bytes() % block.bytes();
    let work = Work {
        once: true,
        warmup: Duration::ZERO,
        runtime: Duration::from_secs(24 * 3600),
        ..Work::new(Pattern::Write, block, 4, ByteRange::from_start(ByteSize::new(whole)))
    };
    progress.begin("noise", whole);
    load::run(&work, || target.engine(Choice::Auto, &work), cancel, |_| {})?;
    progress.end();
    cancel.check("filling the scratch image")
}

/// A directory that goes with all that is in it.
#[derive(Debug)]
pub(crate) struct Directory(PathBuf);

impl Directory {
    /// A new one below `parent`. What runs that were killed had left there goes, and findings say so.
    pub(crate) fn make(parent: &Path) -> Result<(Self, Vec<Finding>)> {
        let removed = |leftover: PathBuf| {
            let text = format!("Removed {}, which a run that was killed had left.", leftover.display());
            Finding::new(Severity::Note, "leftover", text)
        };
        let findings = sweep(parent).into_iter().map(removed).collect();
        let path = parent.join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir(&path).map_err(|source| {
            Error::io(format!("cannot make the scratch directory {}", path.display()), source)
                .with_hint("--scratch DIR takes another place")
        })?;
        // An absolute path stays right whatever becomes of the working directory.
        let path = fs::canonicalize(&path).context(|| format!("cannot find {}", path.display()))?;
        Ok((Self(path), findings))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Nobody is left to tell; the next run tries again.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Removes what runs that were killed left in `parent`, and says what it was.
fn sweep(parent: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(parent) else { return Vec::new() };
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| is_leftover(path))
        .filter(|path| fs::remove_dir_all(path).is_ok())
        .collect()
}

/// Whether `path` is a directory of ours whose process is gone, with nothing in it that is not ours or in use.
fn is_leftover(path: &Path) -> bool {
    let Some(pid) = path.file_name().and_then(|name| name.to_str()?.strip_prefix(PREFIX)?.parse::<u32>().ok()) else {
        return false;
    };
    let Ok(entries) = fs::read_dir(path) else { return false };
    let unused =
        |path: &Path| fs::metadata(path).is_ok_and(|metadata| usage::uses_of(FileId::of(&metadata)).is_empty());
    !Path::new("/proc").join(pid.to_string()).exists()
        && entries.flatten().all(|entry| mark::is_set(&entry.path()) && unused(&entry.path()))
}

/// Makes `path` an image in the state that `prealloc` says, in place of the one that is there.
pub(super) fn make_image(path: &Path, size: ByteSize, prealloc: Prealloc, cancel: &Cancel) -> Result<()> {
    let options = CreateOptions { prealloc, force: true, ..CreateOptions::new(size) };
    image::create(path, &options, &mut blockdev::ui::Silent, cancel).map(drop)
}
