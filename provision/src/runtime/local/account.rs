//! Whom the processes of a node run as. A database refuses to run as root, and rightly.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use blockdev::{Context, Error, Result};
use nix::unistd::{Gid, Uid, User};

/// A user of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The user's name.
    pub name: String,
    /// Its number.
    pub uid: Uid,
    /// The number of its group.
    pub gid: Gid,
    /// Whether becoming this user needs a change of identity: we are root, and it is not.
    pub switch: bool,
}

impl Account {
    /// Whom to run as: `wanted`, else this user, or for root postgres or nobody, whichever exists.
    ///
    /// # Errors
    /// When `wanted` does not exist, is root, or is another user and this one is not root.
    pub fn find(wanted: Option<&str>) -> Result<Self> {
        let me = Uid::effective();
        let by_name = |name: &str| User::from_name(name).context(|| format!("cannot look up the user {name}"));
        let user = match wanted {
            Some(name) => by_name(name)?.ok_or_else(|| {
                Error::invalid(format!("there is no user called {name:?} on this machine"))
                    .with_hint("name another one with --user, or leave it out")
            })?,
            None if me.is_root() => match by_name("postgres")? {
                Some(user) => user,
                None => by_name("nobody")?.ok_or_else(|| {
                    Error::invalid("a database does not run as root, and there is neither a user postgres nor nobody")
                        .with_hint("name a user with --user")
                })?,
            },
            None => User::from_uid(me)
                .context(|| "cannot look up this user")?
                .ok_or_else(|| Error::invalid(format!("this user, number {me}, has no name")))?,
        };
        if user.uid.is_root() {
            return Err(Error::invalid("a database does not run as root").with_hint("name another user with --user"));
        }
        if !me.is_root() && user.uid != me {
            return Err(Error::invalid(format!("only root can run the database as {}", user.name))
                .with_hint("leave --user out: the database runs as you"));
        }
        Ok(Self { name: user.name, uid: user.uid, gid: user.gid, switch: me.is_root() })
    }

    /// The first directory on the way to `path`, `path` included, that this user may not enter; none if it may enter all, or
    /// those that are missing yet.
    #[must_use]
    pub fn barred_from(&self, path: &Path) -> Option<PathBuf> {
        let mut way: Vec<&Path> = path.ancestors().collect();
        way.reverse();
        way.into_iter()
            .find(|directory| fs::metadata(directory).is_ok_and(|metadata| !self.may_enter(&metadata)))
            .map(Path::to_owned)
    }

    fn may_enter(&self, metadata: &fs::Metadata) -> bool {
        let search_bit = if metadata.uid() == self.uid.as_raw() {
            0o100
        } else if metadata.gid() == self.gid.as_raw() {
            0o010
        } else {
            0o001
        };
        metadata.mode() & search_bit != 0
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn root_is_refused_and_so_is_nobody_that_exists() {
        assert_eq!(Account::find(Some("root")).unwrap_err().to_string(), "a database does not run as root");
        assert_eq!(
            Account::find(Some("no-such-user")).unwrap_err().to_string(),
            "there is no user called \"no-such-user\" on this machine"
        );
        assert!(!Account::find(None).unwrap().uid.is_root());
    }

    #[test]
    fn the_first_closed_door_is_named() {
        let root = tempfile::tempdir().unwrap();
        let (outer, inner) = (root.path().join("outer"), root.path().join("outer/inner"));
        fs::create_dir_all(&inner).unwrap();
        for directory in [root.path(), &outer, &inner] {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let stranger =
            Account { name: "stranger".to_owned(), uid: Uid::from_raw(54321), gid: Gid::from_raw(54321), switch: true };
        if stranger.barred_from(root.path()).is_some() {
            // The temporary directory itself is closed to others.
            return;
        }
        assert_eq!(stranger.barred_from(&inner.join("not yet")), None);
        fs::set_permissions(&outer, fs::Permissions::from_mode(0o750)).unwrap();
        assert_eq!(stranger.barred_from(&inner), Some(outer));
    }
}
