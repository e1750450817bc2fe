//! One at a time: a lock on a file that is being attached, grown or replaced.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::error::{Context, Error, Result};
use crate::file_id::FileId;

/// How long to wait for another program that holds the lock: attaching takes a moment, growing may take minutes.
const WAIT: Duration = Duration::from_secs(10);

/// Locks the file at `path` until dropped, or until this process ends in whatever way. The lock is on a descriptor of its
/// own, so that one kept by a loop device or an engine does not keep it. Nothing where the file system has no locks.
///
/// # Errors
/// [`Refused`](crate::ErrorKind::Refused) when another program does not let go of it.
pub fn exclusive(path: &Path) -> Result<Option<Flock<File>>> {
    let what = || format!("cannot lock {}", path.display());
    let start = Instant::now();
    loop {
        // Without waiting for somebody at the other end, should it be a pipe.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).context(what)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            // By now another file may have the name.
            Ok(lock)
                if FileId::of(&lock.metadata().context(what)?) == FileId::of(&fs::metadata(path).context(what)?) =>
            {
                return Ok(Some(lock));
            }
            Ok(_) => {}
            Err((_, Errno::EWOULDBLOCK)) if start.elapsed() < WAIT => thread::sleep(Duration::from_millis(5)),
            Err((_, Errno::EWOULDBLOCK)) => {
                return Err(Error::refused(format!("another program holds a lock on {}", path.display()))
                    .with_hint("it may be attached or grown right now: wait until that is finished"));
            }
            Err((_, Errno::EOPNOTSUPP | Errno::ENOLCK | Errno::ENOSYS)) => return Ok(None),
            Err((_, errno)) => return Err(Error::io(what(), errno)),
        }
    }
}
