//! A disk of a node's own: an image, a loop device on it, and an ext4 that is mounted where the node's files go.
//!
//! The device is detached by the kernel when the file system is unmounted, by whomever, or when the machine goes down.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use blockdev::image::{self, CreateOptions, Prealloc};
use blockdev::loopdev;
use blockdev::ui::{self, Silent};
use blockdev::{ByteSize, Cancel, Context, Error, ErrorKind, Result};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::quoted;

/// How large it is where nothing else is asked for: enough for an empty database and the 1 GiB to which WAL may grow.
const SIZE_DEFAULT: ByteSize = ByteSize::gib(2);

/// What makes the file system. Discarding would take back the blocks that were written beforehand.
const MKFS: [&str; 5] = ["mkfs.ext4", "-q", "-F", "-E", "nodiscard"];

/// Where Debian keeps what administers disks, out of an ordinary user's path.
const ADMINISTRATION: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// How long something may still use a file system whose processes were ended.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the disks of all nodes are like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    size: ByteSize,
    prealloc: Prealloc,
}

impl Kind {
    pub(super) fn new(size: Option<ByteSize>, prealloc: Option<Prealloc>) -> Self {
        Self { size: size.unwrap_or(SIZE_DEFAULT), prealloc: prealloc.unwrap_or_default() }
    }

    /// How much space a new one takes at once, where `database` is what an empty database takes.
    pub(super) fn space(self, database: ByteSize) -> ByteSize {
        if self.prealloc == Prealloc::Sparse { database } else { self.size }
    }
}

/// The disk of one node.
#[derive(Debug)]
pub(super) struct Volume {
    kind: Kind,
    image: PathBuf,
    /// Where it is mounted.
    pub(super) point: PathBuf,
}

impl Volume {
    /// The disk in the node's directory `root`.
    pub(super) fn new(kind: Kind, root: &Path) -> Self {
        Self { kind, image: root.join("disk.img"), point: root.join("disk") }
    }

    /// Whether there is one: it gets its name when it is complete.
    pub(super) fn exists(&self) -> bool {
        self.image.exists() && self.point.is_dir()
    }

    /// Makes the image and the file system on it, whole or not at all.
    pub(super) fn make(&self, cancel: &Cancel) -> Result<()> {
        if !self.image.exists() {
            let new = self.new_image();
            let options =
                CreateOptions { prealloc: self.kind.prealloc, force: true, ..CreateOptions::new(self.kind.size) };
            image::create(&new, &options, &mut Silent, cancel)?;
            make_file_system(&new)?;
            let failed = || format!("cannot make {} durable", new.display());
            File::open(&new).and_then(|file| file.sync_all()).context(failed)?;
            fs::rename(&new, &self.image).context(|| format!("cannot rename {}", new.display()))?;
        }
        match DirBuilder::new().mode(0o755).create(&self.point) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            outcome => outcome.context(|| format!("cannot make the directory {}", self.point.display())),
        }
    }

    fn new_image(&self) -> PathBuf {
        self.image.with_extension("img.new")
    }

    /// Whether it is mounted.
    pub(super) fn is_mounted(&self) -> Result<bool> {
        let Ok(mounted) = fs::metadata(&self.point) else { return Ok(false) };
        let devices = match loopdev::find(&self.image) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            found => found?,
        };
        let is_device =
            |device: &loopdev::LoopDevice| fs::metadata(&device.path).is_ok_and(|node| node.rdev() == mounted.dev());
        Ok(devices.iter().any(is_device))
    }

    /// Mounts it.
    pub(super) fn mount(&self) -> Result<()> {
        let failed = || format!("cannot mount {} on {}", self.image.display(), self.point.display());
        let attachment = loopdev::attach(&self.image, &loopdev::Options::default())?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let mounted = mount(Some(&attachment.device().path), &self.point, Some("ext4"), flags, None::<&str>);
        ui::needs_root(mounted.context(failed))
        // The attachment is let go of: from here on, the mount alone keeps it.
    }

    /// Unmounts it, which detaches its device.
    pub(super) fn unmount(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.is_mounted()? {
            match umount2(&self.point, MntFlags::empty()) {
                Ok(()) => {}
                Err(Errno::EBUSY) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
                outcome => {
                    let failed = || format!("cannot unmount {}", self.point.display());
                    return ui::needs_root(outcome.context(failed)).map_err(|error| {
                        error.with_hint(format!("end what uses it: fuser -vm {}", quoted(&self.point)))
                    });
                }
            }
        }
        // The kernel detaches the device a moment after the last one has closed it.
        while loopdev::find(&self.image).is_ok() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// What [`make`](Self::make) does, as one would type it.
    pub(super) fn shell_make(&self) -> [String; 3] {
        let (image, new) = (quoted(&self.image), quoted(&self.new_image()));
        let Kind { size, prealloc } = self.kind;
        [
            format!("vdisk create {new} --size {} --prealloc {prealloc}", size.bytes()),
            format!("{} {new} && mv {new} {image}", MKFS.join(" ")),
            format!("mkdir -p {}", quoted(&self.point)),
        ]
    }

    /// What [`mount`](Self::mount) does, as one would type it.
    pub(super) fn shell_mount(&self) -> String {
        format!("mount -t ext4 -o nosuid,nodev \"$(vdisk attach {})\" {}", quoted(&self.image), quoted(&self.point))
    }
}

/// Whether the program that makes the file system is there.
pub(super) fn can_make_file_systems() -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    std::env::split_paths(&format!("{path}:{ADMINISTRATION}")).any(|dir| dir.join(MKFS[0]).is_file())
}

fn make_file_system(image: &Path) -> Result<()> {
    let failed = || format!("cannot make a file system on {}", image.display());
    let [program, options @ ..] = MKFS;
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new(program)
        .args(options)
        .arg(image)
        .env("PATH", format!("{path}:{ADMINISTRATION}"))
        .stdin(Stdio::null())
        .output()
        .context(failed)?;
    if output.status.success() {
        Ok(())
    } else {
        let said = String::from_utf8_lossy(&output.stderr);
        Err(Error::new(ErrorKind::Io, format!("{}: {program} says: {}", failed(), said.trim())))
    }
}
