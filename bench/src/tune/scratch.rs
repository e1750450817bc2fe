//! A directory of its own, so that nothing else in the user's is touched and everything made goes again.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use blockdev::{Context, Error, ErrorKind, Result, mark, topology};
use nix::fcntl::{Flock, FlockArg};

/// What the directories are called, before the number of their process.
const PREFIX: &str = ".bench-tune-";

/// File systems that live in memory.
const IN_MEMORY: [&str; 3] = ["tmpfs", "ramfs", "devtmpfs"];

/// A directory for one image at a time. Dropping it removes it with all that is in it; that of a process that was killed
/// is removed by the next that works in the same place.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    /// Held as long as this process lives: who can take it knows that its owner is gone.
    lock: Option<Flock<File>>,
}

impl Scratch {
    /// A new directory in `parent`, and who was there before and left one is cleaned up after.
    ///
    /// # Errors
    /// When `parent` is no directory on a disk, or cannot be written to.
    pub fn new(parent: &Path) -> Result<Self> {
        let place = File::open(parent).context(|| format!("cannot open {}", parent.display()))?;
        let metadata = place.metadata().context(|| format!("cannot look at {}", parent.display()))?;
        if !metadata.is_dir() {
            return Err(Error::invalid(format!("{} is not a directory", parent.display()))
                .with_hint("give the directory in which disk images would be kept"));
        }
        if let Some(found) = topology::file_system(&place)?
            && IN_MEMORY.contains(&&*found.name)
        {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{} is in memory ({}): nothing measured there is a disk's", parent.display(), found.name),
            )
            .with_hint("give a directory on a disk"));
        }
        make_way(parent)?;
        let path = parent.join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir(&path).context(|| format!("cannot make a directory in {}", parent.display()))?;
        let mut made = Self { path, lock: None };
        let directory = File::open(&made.path).context(|| format!("cannot open {}", made.path.display()))?;
        mark::set(&directory)?;
        let lock = Flock::lock(directory, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, errno)| Error::io(format!("cannot lock {}", made.path.display()), errno))?;
        made.lock = Some(lock);
        Ok(made)
    }

    /// Where the image of a setup goes.
    #[must_use]
    pub fn image(&self) -> PathBuf {
        self.path.join("image")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next run.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes the directories in `parent` that runs before this one left when they were killed.
///
/// # Errors
/// When another run is working there: each would measure the other.
fn make_way(parent: &Path) -> Result<()> {
    let entries = fs::read_dir(parent).context(|| format!("cannot list {}", parent.display()))?;
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| is_ours(path)) {
        let Ok(directory) = File::open(&path) else { continue };
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(_lock) => fs::remove_dir_all(&path)
                .context(|| format!("cannot remove {}, which a run before this one left", path.display()))?,
            Err((_, errno)) => {
                return Err(Error::refused(format!("another bench tune is at work in {}", parent.display()))
                    .with_source(io::Error::from(errno))
                    .with_hint("wait for it: each would measure the other"));
            }
        }
    }
    Ok(())
}

/// Whether this is a directory that bench tune made.
fn is_ours(path: &Path) -> bool {
    let number = path.file_name().and_then(|name| name.to_str()?.strip_prefix(PREFIX));
    number.is_some_and(|number| number.parse::<u32>().is_ok())
        && fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
        && mark::is_set(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir_in("/var/tmp").unwrap()
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn it_goes_with_all_that_is_in_it_and_nothing_else_does() {
        let parent = directory();
        let theirs = [".bench-tune-1", ".bench-tune-x", "image"];
        for name in theirs {
            fs::create_dir(parent.path().join(name)).unwrap();
        }
        let scratch = Scratch::new(parent.path()).unwrap();
        fs::write(scratch.image(), "x").unwrap();
        assert_eq!(names(parent.path()).len(), 4);
        drop(scratch);
        assert_eq!(names(parent.path()), theirs);
    }

    #[test]
    fn what_a_killed_run_left_is_removed_and_what_a_living_one_has_is_not() {
        let parent = directory();
        let mut killed = Scratch::new(parent.path()).unwrap();
        fs::write(killed.image(), "x").unwrap();
        let error = Scratch::new(parent.path()).unwrap_err();
        assert!(error.to_string().starts_with("another bench tune is at work in "), "{error}");
        assert_eq!(error.kind(), ErrorKind::Refused);
        // A kill gives back its locks and nothing else.
        killed.lock = None;
        let path = std::mem::take(&mut killed.path);
        drop(killed);
        assert!(path.join("image").exists());
        let scratch = Scratch::new(parent.path()).unwrap();
        assert!(!scratch.image().exists());
    }

    #[test]
    fn a_place_that_is_no_directory_on_a_disk_is_refused() {
        let parent = directory();
        let file = parent.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Scratch::new(&file).unwrap_err();
        assert!(error.to_string().ends_with("is not a directory"), "{error}");
        let error = Scratch::new(&parent.path().join("none")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        // Linux has this in memory wherever it has it at all.
        let error = Scratch::new(Path::new("/dev/shm")).unwrap_err();
        assert_eq!((error.kind(), error.hint()), (ErrorKind::Unsupported, Some("give a directory on a disk")));
    }
}
