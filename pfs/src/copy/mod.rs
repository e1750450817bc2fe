//! Copying out of a volume, into one, and from one to another.

mod into;
mod pipe;
mod target;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use blockdev::ui::Progress;
use blockdev::{Cancel, Context, Error, Result};
use nix::errno::Errno;
use serde::{Serialize, Serializer};

use crate::format::InodeNo;
use crate::volume::{FileKind, Name, Segment, Stat, Visit, Volume};

pub use into::Source;
pub use target::Target;

/// Bytes read at once.
const BUFFER: usize = 4 << 20;

/// How to copy.
#[derive(Debug, Clone, Copy, Default)]
pub struct Copy {
    /// Copy a directory with all that is below it.
    pub recursive: bool,
    /// Replace files that exist.
    pub force: bool,
    /// Leave out names that begin with a dot, as the original does. The file system's own two files are left out always.
    pub skip_hidden: bool,
}

/// What was copied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Copied {
    /// The files, in the order in which they were copied.
    pub files: Vec<CopiedFile>,
    /// How many directories.
    pub directories: usize,
    /// How many bytes of data; holes are left holes, and do not count.
    pub bytes: u64,
}

/// A file that was copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CopiedFile {
    /// Where it was: its path below what was to be copied, empty if it is that itself, else beginning with a slash.
    #[serde(serialize_with = "lossy")]
    pub from: Vec<u8>,
    /// Where it is now.
    #[serde(serialize_with = "lossy_path")]
    pub to: PathBuf,
}

fn lossy<S: Serializer>(path: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(path))
}

fn lossy_path<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    lossy(path.as_os_str().as_bytes(), serializer)
}

/// One thing to be made on the host.
struct Item {
    stat: Stat,
    from: Vec<u8>,
    to: PathBuf,
}

impl Copy {
    /// Copies a file or directory of a volume, called `name` there, to the host: to `to`, or into it where that is a
    /// directory.
    ///
    /// A file appears under its name once it is whole; what was there before stays until then.
    ///
    /// # Errors
    /// When something exists and may not be replaced, the volume is damaged or cannot be read, the host's file system cannot
    /// take it, or `cancel` says so. What was copied before stays.
    pub fn out(
        self,
        volume: &mut Volume,
        from: &Stat,
        name: Option<&Name>,
        to: &Path,
        progress: &mut dyn Progress,
        cancel: &Cancel,
    ) -> Result<Copied> {
        let to = match name {
            Some(name) if to.is_dir() => to.join(host_name(name)),
            _ => to.to_owned(),
        };
        let items = self.items(volume, from, &to)?;
        for item in &items {
            self.may_make(item)?;
        }
        progress.begin(
            "copy",
            items.iter().filter(|item| item.stat.kind == FileKind::File).map(|item| item.stat.size).sum(),
        );
        let mut copied = Copied::default();
        for item in items {
            match item.stat.kind {
                FileKind::Directory => {
                    match fs::create_dir(&item.to) {
                        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && item.to.is_dir() => Ok(()),
                        outcome => outcome,
                    }
                    .context(|| format!("cannot make directory {}", item.to.display()))?;
                    copied.directories += 1;
                }
                FileKind::File => {
                    copied.bytes += file_out(volume, &item, progress, cancel)?;
                    copied.files.push(CopiedFile { from: item.from, to: item.to });
                }
            }
        }
        progress.end();
        Ok(copied)
    }

    /// Everything that is to be made, directories before what is in them.
    fn items(self, volume: &Volume, from: &Stat, to: &Path) -> Result<Vec<Item>> {
        let mut items = vec![Item { stat: from.clone(), from: Vec::new(), to: to.to_owned() }];
        if from.kind == FileKind::File {
            return Ok(items);
        }
        if !self.recursive {
            return Err(Error::io(format!("inode {} is a directory", from.inode), Errno::EISDIR)
                .with_hint("`cp -r` copies directories"));
        }
        let mut way = vec![(Vec::new(), to.to_owned())];
        let mut skipped = None;
        for visit in volume.metadata().walk(from.inode)? {
            let visit = visit?;
            if skipped.is_some_and(|depth| visit.depth > depth) {
                continue;
            }
            skipped = self.skips(&visit).then_some(visit.depth);
            if skipped.is_some() {
                continue;
            }
            way.truncate(visit.depth + 1);
            let (from, to) = &way[visit.depth];
            let from = [from, b"/".as_slice(), visit.entry.name.as_bytes()].concat();
            let to = to.join(host_name(&visit.entry.name));
            if visit.stat.kind == FileKind::Directory {
                way.push((from.clone(), to.clone()));
            }
            items.push(Item { stat: visit.stat, from, to });
        }
        Ok(items)
    }

    fn skips(self, visit: &Visit) -> bool {
        let own = matches!(visit.stat.inode, InodeNo::PAXOS | InodeNo::JOURNAL);
        own || (self.skip_hidden && visit.entry.name.as_bytes().starts_with(b"."))
    }

    /// Sees that nothing is in the way, before anything is made.
    fn may_make(self, item: &Item) -> Result<()> {
        let to = item.to.display();
        match (item.stat.kind, fs::symlink_metadata(&item.to)) {
            (_, Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            (_, Err(error)) => Err(Error::io(format!("cannot look at {to}"), error)),
            (FileKind::Directory, Ok(found)) if found.is_dir() => Ok(()),
            (FileKind::File, Ok(found)) if found.is_file() && (self.force || self.recursive) => Ok(()),
            (FileKind::File, Ok(found)) if found.is_file() => {
                Err(Error::refused(format!("{to} exists")).with_hint("`cp -f` replaces files that exist"))
            }
            (FileKind::File, _) => Err(Error::refused(format!("{to} exists, and is no file"))),
            (FileKind::Directory, _) => Err(Error::refused(format!("{to} exists, and is no directory"))),
        }
    }
}

/// Copies one file. Returns how many bytes of data it has.
fn file_out(volume: &mut Volume, item: &Item, progress: &mut dyn Progress, cancel: &Cancel) -> Result<u64> {
    let map = volume.metadata().file_map(item.stat.inode)?;
    let part = Part::create(&item.to)?;
    let what = |verb: &str| format!("cannot {verb} {}", item.to.display());
    part.file.set_len(map.size).context(|| what("extend"))?;
    let mut buffer = vec![0; BUFFER];
    let (mut at, mut data) = (0, 0);
    while at < map.size {
        cancel.check("copy")?;
        let segments: Vec<Segment> = map.segments(at, BUFFER as u64).collect();
        // A hole may be far longer than a buffer.
        if let [Segment::Zero { .. }] = segments[..]
            && let Some(Segment::Zero { len }) = map.segments(at, u64::MAX).next()
        {
            progress.advance(len);
            at += len;
            continue;
        }
        let filled = volume.read(&map, at, &mut buffer)?;
        let mut within = 0;
        for segment in segments {
            #[allow(clippy::cast_possible_truncation, reason = "no longer than the buffer")]
            let len = segment.len() as usize;
            if let Segment::Data { .. } = segment {
                let bytes = &buffer[within..within + len];
                part.file.write_all_at(bytes, at + within as u64).context(|| what("write"))?;
                data += len as u64;
            }
            within += len;
        }
        progress.advance(filled as u64);
        at += filled as u64;
    }
    part.finish(&item.to)?;
    Ok(data)
}

/// A file that is not whole yet. It goes away unless it is finished.
struct Part {
    file: File,
    path: Option<PathBuf>,
}

impl Part {
    fn create(to: &Path) -> Result<Self> {
        let mut name = std::ffi::OsString::from(".pfs-cp-");
        name.push(std::process::id().to_string());
        let path = to.with_file_name(name);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&path)
            .context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { file, path: Some(path) })
    }

    fn finish(mut self, to: &Path) -> Result<()> {
        if let Some(path) = self.path.take() {
            fs::rename(&path, to).context(|| format!("cannot rename {} to {}", path.display(), to.display()))?;
        }
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // The error that led here is the one to tell.
            let _ = fs::remove_file(path);
        }
    }
}

fn host_name(name: &Name) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(name.as_bytes()))
}
