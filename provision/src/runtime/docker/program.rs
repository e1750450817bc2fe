//! Programs of this machine in the containers of a cluster.

use std::path::{Path, PathBuf};

use blockdev::{Context, Result};
use sha2::{Digest, Sha256};

use super::{Docker, guest};
use crate::runtime::quote;
use crate::topology::Node;

/// Where they are in a container. Nothing else is there.
const DIRECTORY: &str = "/usr/local/lib/onedisk";
/// How many bytes of its digest tell a program from others of its name.
const DIGEST: usize = 8;
/// Makes room for the program whose path without the digest is $1: of each name there is one. Those that run go on.
const MAKE_ROOM: &str = "mkdir -p \"${1%/*}\" && rm -f \"$1\"-*";

/// Where a container has `program`: under its name and what it holds.
pub(super) fn place_of(program: &Path) -> Result<PathBuf> {
    let content = std::fs::read(program).context(|| format!("cannot read {}", program.display()))?;
    let digest: String = Sha256::digest(content).iter().take(DIGEST).map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{}-{digest}", without_digest(program)).into())
}

fn without_digest(program: &Path) -> String {
    format!("{DIRECTORY}/{}", program.file_name().unwrap_or_default().to_string_lossy())
}

impl Docker {
    pub(super) fn bring_program(&self, node: &Node, program: &Path) -> Result<()> {
        let place = place_of(program)?;
        if self.stat(node, &place)?.is_some() {
            return Ok(());
        }
        let what = || format!("cannot make room for {}", program.display());
        self.script(node, MAKE_ROOM, &[&without_digest(program)], &[], what)?;
        // Whole or not there: under a name of its own until it is known to run.
        let place = place.to_string_lossy();
        let new = format!("{place}.new");
        guest::bring(&*self.client(node)?, &self.container_name(node), program, &new, &self.cancel)?;
        let what = || format!("cannot rename {new}");
        self.script(node, "mv -f \"$1\" \"$2\"", &[&new, &place], &[], what)
    }

    pub(super) fn shell_bring_program(&self, node: &Node, program: &Path) -> Result<String> {
        let place = place_of(program)?;
        let make = Self::root_script("mkdir -p \"$1\"", &[DIRECTORY]);
        let (docker, program) = (self.shell_docker(node), quote(&program.to_string_lossy()));
        let copy = format!("{docker} cp {program} {}:{}", self.container_name(node), quote(&place.to_string_lossy()));
        Ok(format!("{} && {copy}", self.shell_exec(node, "", &make)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_program_has_another_place() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("pfsd");
        let place = |content: &str| {
            std::fs::write(&program, content).unwrap();
            place_of(&program).unwrap()
        };
        assert_eq!(place("abc"), Path::new("/usr/local/lib/onedisk/pfsd-ba7816bf8f01cfea"));
        assert_ne!(place("abc"), place("abd"));
        let missing = place_of(&dir.path().join("none")).unwrap_err();
        assert_eq!(missing.kind(), blockdev::ErrorKind::NotFound);
    }
}
