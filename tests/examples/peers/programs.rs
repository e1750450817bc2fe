//! Which programs there are to compare.

use std::path::{Path, PathBuf};
use std::process::Command;

use blockdev::{Context, Error, Result};

/// Our own, which cargo puts beside this one.
pub(crate) struct Programs {
    directory: PathBuf,
}

impl Programs {
    /// Finds them.
    ///
    /// # Errors
    /// When they have not been built.
    pub(crate) fn beside_this() -> Result<Self> {
        let this = std::env::current_exe().context(|| "cannot find out where this program is")?;
        // target/<profile>/examples/peers: the programs are one level up.
        let directory = this.parent().and_then(Path::parent).unwrap_or(Path::new("."));
        let programs = Self { directory: directory.to_owned() };
        let pfsd = Command::new(programs.directory.join("pfsd"));
        for program in [programs.vdisk(), programs.bench(), programs.provision(), programs.pfs(), pfsd] {
            let path = Path::new(program.get_program());
            if !path.exists() {
                return Err(Error::invalid(format!("{} does not exist", path.display()))
                    .with_hint("build it first, or say `make peers`, which does"));
            }
        }
        Ok(programs)
    }

    /// Where they are.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// `vdisk`, to be given arguments.
    pub(crate) fn vdisk(&self) -> Command {
        Command::new(self.directory.join("vdisk"))
    }

    /// `bench`, to be given arguments.
    pub(crate) fn bench(&self) -> Command {
        Command::new(self.directory.join("bench"))
    }

    /// `provision`, to be given arguments.
    pub(crate) fn provision(&self) -> Command {
        Command::new(self.directory.join("provision"))
    }

    /// `pfs`, to be given arguments.
    pub(crate) fn pfs(&self) -> Command {
        Command::new(self.directory.join("pfs"))
    }
}

/// Whether somebody else's program is installed.
pub(crate) fn is_installed(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_installed_is_found() {
        assert!(is_installed("sort"));
        assert!(!is_installed("no-such-program"));
    }
}
