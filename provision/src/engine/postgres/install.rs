//! The PostgreSQL that is installed on this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use blockdev::{Error, ErrorKind, Result};

/// The oldest major version whose replication is set up as here.
pub const VERSION_MIN: u32 = 14;
/// The programs that are needed.
const PROGRAMS: [&str; 3] = ["postgres", "initdb", "pg_basebackup"];

/// An installed PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    /// Where its programs are.
    pub bin: PathBuf,
    /// Its major version.
    pub version: u32,
}

impl Installation {
    /// The one in `wanted`, else the newest that is found where Debian, Red Hat and Homebrew put it, or on the path.
    ///
    /// # Errors
    /// When there is none, or none new enough.
    pub fn find(wanted: Option<&Path>) -> Result<Self> {
        if let Some(bin) = wanted {
            return Self::at(bin);
        }
        let found = candidates().into_iter().filter_map(|bin| Self::at(&bin).ok()).max_by_key(|found| found.version);
        found.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("no PostgreSQL {VERSION_MIN} or newer is installed here"))
                .with_hint("apt-get install postgresql, or name the directory of its programs with --bin-directory")
        })
    }

    fn at(bin: &Path) -> Result<Self> {
        for program in PROGRAMS {
            if !bin.join(program).is_file() {
                return Err(Error::new(ErrorKind::NotFound, format!("there is no {program} in {}", bin.display()))
                    .with_hint(
                        "name the directory that holds postgres, initdb and pg_basebackup with --bin-directory",
                    ));
            }
        }
        let postgres = bin.join("postgres");
        let asked = Command::new(&postgres).arg("--version").output();
        let output = asked.map_err(|source| Error::io(format!("cannot run {}", postgres.display()), source))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = supported_version(&text, &postgres.to_string_lossy())?;
        Ok(Self { bin: bin.to_owned(), version })
    }

    /// Where its programs are.
    #[must_use]
    pub fn programs(&self) -> Programs {
        Programs(Some(self.bin.clone()))
    }
}

/// Where the programs are on a node: in this directory, or on its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs(pub Option<PathBuf>);

impl Programs {
    /// Those on the node's path.
    #[must_use]
    pub fn on_path() -> Self {
        Self(None)
    }

    /// What to call one of them by.
    #[must_use]
    pub fn program(&self, name: &str) -> String {
        match &self.0 {
            Some(bin) => bin.join(name).to_string_lossy().into_owned(),
            None => name.to_owned(),
        }
    }
}

fn candidates() -> Vec<PathBuf> {
    let below = |parent: &str, rest: &str| -> Vec<PathBuf> {
        let entries = fs::read_dir(parent).into_iter().flatten().flatten();
        entries.map(|entry| entry.path().join(rest)).filter(|path| path.is_dir()).collect()
    };
    let mut all = below("/usr/lib/postgresql", "bin");
    all.extend(below("/usr", "bin").into_iter().filter(|path| path.to_string_lossy().contains("pgsql-")));
    all.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    all
}

/// The major version in what `postgres --version` printed.
///
/// # Errors
/// When it is too old, or none.
pub(super) fn supported_version(printed: &str, postgres: &str) -> Result<u32> {
    let version = major_version(printed).ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, format!("{postgres} is no PostgreSQL: {:?}", printed.trim()))
    })?;
    if version < VERSION_MIN {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("{postgres} is PostgreSQL {version}; {VERSION_MIN} or newer is needed"),
        )
        .with_hint("name a newer one with --bin-directory"));
    }
    Ok(version)
}

/// The major version in what `postgres --version` prints: `postgres (PostgreSQL) 15.8 (Debian ...)`, `... 18beta1`.
fn major_version(text: &str) -> Option<u32> {
    let (_, version) = text.split_once("(PostgreSQL) ")?;
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn versions() {
        assert_eq!(major_version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some(15));
        assert_eq!(major_version("postgres (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(major_version("bash 5.2"), None);
    }

    #[test]
    fn what_is_no_installation_says_why() {
        let directory = tempfile::tempdir().unwrap();
        let find = || Installation::find(Some(directory.path())).unwrap_err().to_string();
        assert!(find().starts_with("there is no postgres in "));
        for program in PROGRAMS {
            let path = directory.path().join(program);
            fs::write(&path, "#!/bin/sh\necho 'postgres (PostgreSQL) 9.6.1'\n").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        assert!(find().ends_with("is PostgreSQL 9; 14 or newer is needed"));
    }
}
