//! What has been made, on disk: a directory for each cluster, with its record, its lock, its secrets, sockets and logs.
//!
//! The record is written before what it names is made, so that whatever an interrupted command leaves behind is known to
//! the next one.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use blockdev::{Context, Error, ErrorKind, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::topology::{Name, Topology};

/// The version of [`Record`] that this program writes and reads.
const RECORD_VERSION: u32 = 1;

/// What is known of a cluster that exists.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    version: u32,
    /// Tells this cluster's processes and directories from those of any other, of any name, at any time.
    pub id: String,
    /// What it was made with.
    pub config: Config,
    /// Its nodes.
    pub topology: Topology,
}

impl Record {
    /// The record of a cluster that is about to be made.
    ///
    /// # Errors
    /// When the kernel gives no random bytes.
    pub fn new(config: Config, topology: Topology) -> Result<Self> {
        Ok(Self { version: RECORD_VERSION, id: random_hex(8)?, config, topology })
    }
}

/// `bytes` random bytes from the kernel, in hexadecimal.
///
/// # Errors
/// When the kernel gives none.
pub fn random_hex(bytes: usize) -> Result<String> {
    let mut random = vec![0; bytes];
    getrandom::fill(&mut random)
        .map_err(|source| Error::new(ErrorKind::Io, "cannot get random bytes from the kernel").with_source(source))?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Where all clusters are noted.
#[derive(Debug, Clone)]
pub struct StateDirectory(PathBuf);

impl StateDirectory {
    /// `given`, or where this user's state belongs: `$XDG_STATE_HOME/onedisk`, else /var/lib/onedisk for root (whose home no
    /// database may enter) and ~/.local/state/onedisk for everybody else.
    ///
    /// # Errors
    /// When there is neither a state directory nor a home, or `given` cannot be made absolute.
    pub fn find(given: Option<&Path>) -> Result<Self> {
        if let Some(given) = given {
            let path = std::path::absolute(given).context(|| format!("cannot find {}", given.display()))?;
            return Ok(Self(path));
        }
        let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let root = nix::unistd::geteuid().is_root().then(|| PathBuf::from("/var/lib/onedisk"));
        variable("XDG_STATE_HOME")
            .map(|state| state.join("onedisk"))
            .or(root)
            .or_else(|| variable("HOME").map(|home| home.join(".local/state/onedisk")))
            .map(Self)
            .ok_or_else(|| {
                Error::invalid("there is no place for the state of clusters: neither XDG_STATE_HOME nor HOME is set")
                    .with_hint("name one with --state-dir")
            })
    }

    /// The directory of the cluster called `name`, which need not exist.
    #[must_use]
    pub fn cluster(&self, name: &Name) -> ClusterDirectory {
        ClusterDirectory(self.clusters().join(name.as_str()))
    }

    /// The records of all clusters. One that cannot be read is left out.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        let Ok(entries) = fs::read_dir(self.clusters()) else { return Vec::new() };
        entries.filter_map(|entry| ClusterDirectory(entry.ok()?.path()).record().ok().flatten()).collect()
    }

    fn clusters(&self) -> PathBuf {
        self.0.join("clusters")
    }
}

/// The directory of one cluster.
#[derive(Debug, Clone)]
pub struct ClusterDirectory(PathBuf);

impl ClusterDirectory {
    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where the sockets of the nodes are.
    #[must_use]
    pub fn sockets(&self) -> PathBuf {
        self.0.join("run")
    }

    /// Where the logs are.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.0.join("log")
    }

    /// Where the nodes' files are, unless the cluster file puts them elsewhere.
    #[must_use]
    pub fn nodes(&self) -> PathBuf {
        self.0.join("nodes")
    }

    /// The passwords, in the format of libpq's password file.
    #[must_use]
    pub fn passwords(&self) -> PathBuf {
        self.0.join("pgpass")
    }

    /// Notes that the data of a node are complete. What is gone of these was lost, and is not made anew in silence.
    ///
    /// # Errors
    /// When the note cannot be written.
    pub fn note_complete(&self, node: &Name) -> Result<()> {
        let notes = self.0.join("complete");
        DirBuilder::new().recursive(true).create(&notes).context(|| format!("cannot make {}", notes.display()))?;
        write_atomically(&notes.join(node.as_str()), b"", 0o644)
    }

    /// Whether the data of a node were complete once.
    #[must_use]
    pub fn was_complete(&self, node: &Name) -> bool {
        self.0.join("complete").join(node.as_str()).exists()
    }

    /// Forgets what was noted of a node.
    ///
    /// # Errors
    /// When the note cannot be removed.
    pub fn forget(&self, node: &Name) -> Result<()> {
        remove_note(&self.0.join("complete").join(node.as_str()))
    }

    /// Notes that something has come so far.
    ///
    /// # Errors
    /// When it cannot be noted.
    pub fn note(&self, note: Note) -> Result<()> {
        write_atomically(&self.note_path(note), b"", 0o644)
    }

    /// Whether something had come so far.
    #[must_use]
    pub fn is_noted(&self, note: Note) -> bool {
        self.note_path(note).exists()
    }

    /// Takes a note back.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn forget_note(&self, note: Note) -> Result<()> {
        remove_note(&self.note_path(note))
    }

    fn note_path(&self, note: Note) -> PathBuf {
        self.0.join(match note {
            Note::Making => "disk.making",
            Note::Formatting => "disk.formatting",
            Note::Formatted => "disk.formatted",
            Note::Copying => "disk.copying",
            Note::Heartbeat => "heartbeat",
        })
    }

    fn record_path(&self) -> PathBuf {
        self.0.join("cluster.json")
    }

    /// What is known of the cluster; nothing if there is none.
    ///
    /// # Errors
    /// When its record cannot be read, or another version of this program wrote it.
    pub fn record(&self) -> Result<Option<Record>> {
        let path = self.record_path();
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.context(|| format!("cannot read the record {}", path.display()))?,
        };
        let damaged = |why: String| {
            Error::new(ErrorKind::VerifyFailed, format!("the record {} {why}", path.display()))
                .with_hint("the program that wrote it reads it")
        };
        let document: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| damaged("is no JSON".to_owned()).with_source(error))?;
        if document["version"] != RECORD_VERSION {
            return Err(damaged(format!("is of version {}; this program reads {RECORD_VERSION}", document["version"])));
        }
        serde_json::from_value(document).map(Some).map_err(|error| damaged("is damaged".to_owned()).with_source(error))
    }

    /// Writes the record, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, record: &Record, _lock: &Lock) -> Result<()> {
        let text = serde_json::to_vec_pretty(record)
            .map_err(|source| Error::new(ErrorKind::Io, "cannot write the record as JSON").with_source(source))?;
        write_atomically(&self.record_path(), &text, 0o644)
    }

    /// Makes the directory unless it is there, and locks it.
    ///
    /// # Errors
    /// When it cannot be made, or another command works on this cluster.
    pub fn create(&self) -> Result<Lock> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&self.0)
            .context(|| format!("cannot make the cluster's directory {}", self.0.display()))?;
        Lock::take(&self.0.join("lock"), true)
    }

    /// Locks the directory; nothing if it does not exist.
    ///
    /// # Errors
    /// When another command works on this cluster, or the lock cannot be taken.
    pub fn lock(&self) -> Result<Option<Lock>> {
        if self.0.is_dir() { Lock::take(&self.0.join("lock"), true).map(Some) } else { Ok(None) }
    }

    /// Removes the directory with all that is in it, the lock last.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn remove(&self, lock: Lock) -> Result<()> {
        let failed = || format!("cannot remove the cluster's directory {}", self.0.display());
        for entry in fs::read_dir(&self.0).context(failed)? {
            let entry = entry.context(failed)?;
            let directory = entry.file_type().context(failed)?.is_dir();
            // The record goes last but one: until then the cluster is known, and can be taken down again.
            if entry.file_name() != "lock" && entry.file_name() != "cluster.json" {
                if directory { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) }
                    .context(failed)?;
            }
        }
        for last in [self.record_path(), self.0.join("lock")] {
            match fs::remove_file(last) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).context(failed),
                _ => {}
            }
        }
        drop(lock);
        match fs::remove_dir(&self.0) {
            // Somebody makes the cluster anew.
            Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => Ok(()),
            outcome => outcome.context(failed),
        }
    }
}

/// How far a cluster has come: what cannot be seen of it, or not at all times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// The image of its shared disk is made, or was.
    Making,
    /// The disk was looked at, may be formatted, and is.
    Formatting,
    /// It was formatted.
    Formatted,
    /// The database is copied onto it, and not all of it may be there.
    Copying,
    /// The primary has a heartbeat.
    Heartbeat,
}

fn remove_note(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The right to change a cluster. The kernel gives it back when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

impl Lock {
    fn take(path: &Path, retry: bool) -> Result<Self> {
        let failed = || format!("cannot lock {}", path.display());
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(path)
            .context(failed)?;
        let mut file = match Flock::lock(file.try_clone().context(failed)?, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => locked,
            Err((_, Errno::EWOULDBLOCK)) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                let holder = if holder.trim().is_empty() { "another command".to_owned() } else { holder };
                return Err(Error::refused(format!("{holder} is at work on this cluster"))
                    .with_hint("wait until it is done, or stop it"));
            }
            Err((_, errno)) => return Err(errno).context(failed),
        };
        // Who held it may have removed it, and somebody else made it anew.
        let current = fs::metadata(path).is_ok_and(|at_path| {
            file.metadata().is_ok_and(|ours| (ours.dev(), ours.ino()) == (at_path.dev(), at_path.ino()))
        });
        if !current {
            return if retry {
                Self::take(path, false)
            } else {
                Err(Error::refused("another command is taking this cluster down").with_hint("try again"))
            };
        }
        let holder = format!("process {}", std::process::id());
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(holder.as_bytes()))
            .context(failed)?;
        Ok(Self { _file: file })
    }
}

/// Writes a file so that after a crash it holds either what it held or `content`, never a part.
///
/// # Errors
/// When it cannot be written; nothing is left of the attempt.
pub fn write_atomically(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let write = || -> std::io::Result<()> {
        // Left by one who was killed here, perhaps with another mode.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        match path.parent() {
            Some(directory) => File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    };
    write().context(failed).inspect_err(|_| {
        let _ = fs::remove_file(&new);
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::Layers;
    use crate::topology::{Node, Role};

    fn record() -> Record {
        let node = Node { host_id: 1, ..Node::new("primary".parse().unwrap(), Role::Primary, 5500) };
        Record::new(Layers::default().config().unwrap(), Topology::new(vec![node]).unwrap()).unwrap()
    }

    fn place(root: &Path) -> ClusterDirectory {
        StateDirectory::find(Some(root)).unwrap().cluster(&"c".parse().unwrap())
    }

    #[test]
    fn a_record_comes_back_as_it_was_saved() {
        let root = tempfile::tempdir().unwrap();
        let place = place(root.path());
        assert_eq!(place.record().unwrap(), None);
        let lock = place.create().unwrap();
        let record = record();
        place.save(&record, &lock).unwrap();
        assert_eq!(place.record().unwrap(), Some(record.clone()));
        assert_eq!(StateDirectory::find(Some(root.path())).unwrap().records(), [record]);
        place.remove(lock).unwrap();
        assert!(!place.path().exists());
    }

    #[test]
    fn a_record_of_another_version_is_not_guessed_at() {
        let root = tempfile::tempdir().unwrap();
        let place = place(root.path());
        let _lock = place.create().unwrap();
        for (text, why) in
            [("{", "is no JSON"), ("{\"version\": 9}", "is of version 9"), ("{\"version\": 1}", "is damaged")]
        {
            fs::write(place.record_path(), text).unwrap();
            assert!(place.record().unwrap_err().to_string().contains(why));
        }
    }

    #[test]
    fn two_commands_do_not_race() {
        let root = tempfile::tempdir().unwrap();
        let place = place(root.path());
        assert!(place.lock().unwrap().is_none());
        let lock = place.create().unwrap();
        for error in [place.lock().unwrap_err(), place.create().unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::Refused);
            assert_eq!(error.to_string(), format!("process {} is at work on this cluster", std::process::id()));
        }
        drop(lock);
        assert!(place.lock().unwrap().is_some());
    }

    #[test]
    fn a_file_is_replaced_whole_and_with_its_mode() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("secret");
        fs::write(root.path().join("secret.new"), "left by a killed one").unwrap();
        write_atomically(&path, b"one", 0o600).unwrap();
        write_atomically(&path, b"two", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
        let error = write_atomically(&root.path().join("no/file"), b"", 0o600).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}
