//! The passwords of a cluster: made once, kept in one file that only its owner can read, never on a command line.
//!
//! The file has the format of libpq's password file (`hostname:port:database:username:password`,
//! <https://www.postgresql.org/docs/current/libpq-pgpass.html>), so that psql and every other client can use it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use blockdev::{Context, Error, ErrorKind, Result};

use crate::state::{random_hex, write_atomically};

/// Whom one administers the database as.
pub const SUPERUSER: &str = "postgres";
/// Whom the replicas follow the primary as.
pub const REPLICATOR: &str = "replicator";

/// 192 bits: nobody guesses that.
const PASSWORD_BYTES: usize = 24;

/// The passwords of a cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct Passwords {
    /// That of [`SUPERUSER`].
    pub superuser: String,
    /// That of [`REPLICATOR`].
    pub replicator: String,
}

impl Passwords {
    /// Makes passwords and writes them to `path`.
    ///
    /// # Errors
    /// When the kernel gives no random bytes, or the file cannot be written.
    pub fn make(path: &Path) -> Result<()> {
        let passwords = Self { superuser: random_hex(PASSWORD_BYTES)?, replicator: random_hex(PASSWORD_BYTES)? };
        write_atomically(path, passwords.as_file().as_bytes(), 0o600)
    }

    /// Reads the passwords in `path`.
    ///
    /// # Errors
    /// When somebody else could read them too, or they are not there.
    pub fn read(path: &Path) -> Result<Self> {
        let failed = || format!("cannot read the password file {}", path.display());
        let mode = fs::metadata(path).context(failed)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(Error::refused(format!(
                "the password file {} has mode {mode:04o}: others can read or change it",
                path.display()
            ))
            .with_hint(format!("chmod 600 {}; if somebody may have read it, change the passwords", path.display())));
        }
        let text = fs::read_to_string(path).context(failed)?;
        let of = |user: &str| {
            text.lines().find_map(|line| line.strip_prefix(&format!("*:*:*:{user}:"))).map(str::to_owned).ok_or_else(
                || Error::new(ErrorKind::VerifyFailed, format!("{} has no password of {user}", path.display())),
            )
        };
        Ok(Self { superuser: of(SUPERUSER)?, replicator: of(REPLICATOR)? })
    }

    /// What the password file holds.
    #[must_use]
    pub fn as_file(&self) -> String {
        format!("*:*:*:{SUPERUSER}:{}\n*:*:*:{REPLICATOR}:{}\n", self.superuser, self.replicator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_come_back_and_are_never_the_same_twice() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pgpass");
        Passwords::make(&path).unwrap();
        let first = Passwords::read(&path).unwrap();
        assert_eq!(first.superuser.len(), 48);
        assert_ne!(first.superuser, first.replicator);
        Passwords::make(&path).unwrap();
        assert!(Passwords::read(&path).unwrap() != first);
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pgpass");
        Passwords::make(&path).unwrap();
        for mode in [0o640, 0o604, 0o620] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = Passwords::read(&path).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Refused);
            assert!(error.to_string().contains(&format!("has mode {mode:04o}: others can read")), "{error}");
            assert!(error.hint().unwrap().starts_with("chmod 600 "));
        }
    }

    #[test]
    fn a_file_without_passwords_is_no_password_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pgpass");
        write_atomically(&path, b"*:*:*:postgres:x\n", 0o600).unwrap();
        assert!(Passwords::read(&path).err().unwrap().to_string().ends_with("has no password of replicator"));
    }
}
