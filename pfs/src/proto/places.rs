//! Where the files are by which client and daemon find each other.

use std::path::{Path, PathBuf};

use super::RegionNo;

/// The directories of one installation. All processes that share a disk on one machine must have the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// What runs: pid files, and in a directory for each disk the clients' files. `/var/run/pfsd`.
    pub run: PathBuf,
    /// The original's locks of hosts. `/var/run/pfs`.
    pub locks: PathBuf,
    /// The shared memory. `/dev/shm/pfsd`.
    pub shm: PathBuf,
    /// Below it a directory of logs for each disk. `/var/log`.
    pub log: PathBuf,
}

impl Default for Places {
    /// The original's.
    fn default() -> Self {
        Self {
            run: PathBuf::from("/var/run/pfsd"),
            locks: PathBuf::from("/var/run/pfs"),
            shm: PathBuf::from("/dev/shm/pfsd"),
            log: PathBuf::from("/var/log"),
        }
    }
}

impl Places {
    /// All of them below one directory: an installation of its own, which needs no privilege.
    #[must_use]
    pub fn below(root: &Path) -> Self {
        Self { run: root.join("run"), locks: root.join("locks"), shm: root.join("shm"), log: root.join("log") }
    }

    /// The daemon's pid file, which it keeps locked.
    #[must_use]
    pub fn daemon(&self, disk: &str) -> PathBuf {
        self.run.join(format!("pfsd_{disk}.pid"))
    }

    /// Where a daemon of ours answers questions about itself.
    #[must_use]
    pub fn control(&self, disk: &str) -> PathBuf {
        self.run.join(format!("pfsd_{disk}.sock"))
    }

    /// Where the clients' files are. The daemon watches it.
    #[must_use]
    pub fn clients(&self, disk: &str) -> PathBuf {
        self.run.join(disk)
    }

    /// A client's file.
    #[must_use]
    pub fn client(&self, disk: &str, pid: u32) -> PathBuf {
        self.clients(disk).join(format!("{pid}.pid"))
    }

    /// The file of a region.
    #[must_use]
    pub fn region(&self, disk: &str, region: RegionNo) -> PathBuf {
        self.shm.join(format!("shm_pfsd-{disk}_{:02}", region.index()))
    }

    /// Where a daemon's log is.
    #[must_use]
    pub fn logs(&self, disk: &str) -> PathBuf {
        self.log.join(format!("pfsd-{disk}"))
    }
}
