//! Which daemon is meant: the disk's name, and where its files are.

use std::path::PathBuf;

use pfs::proto::Places;

/// Where daemons and their clients find each other.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Where {
    /// A directory for everything that is elsewhere otherwise (/var/run/pfsd, /dev/shm/pfsd, /var/log): a daemon of its own,
    /// which needs no privilege, and which only clients that are told of it find.
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
}

impl Where {
    pub(crate) fn places(&self) -> Places {
        self.root.as_deref().map_or_else(Places::default, Places::below)
    }
}
