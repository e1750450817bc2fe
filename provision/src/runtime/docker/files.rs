//! Files of a container, by way of Docker's own archives: no command runs for them, and a stopped container has them, too.

use std::io::Read;
use std::path::Path;
use std::time::SystemTime;

use blockdev::{Error, ErrorKind, Result};
use bollard::query_parameters::{ContainerArchiveInfoOptions, DownloadFromContainerOptions};
use futures_util::StreamExt;

use super::client::Client;
use crate::runtime::Command;

/// Prints, of each of its arguments, how many bytes it has and then these; or that it is absent.
const PRINT_ALL: &str =
    "for file; do if [ -e \"$file\" ]; then wc -c <\"$file\" && cat \"$file\" || exit; else echo absent; fi; done";

/// What is known of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    pub length: u64,
    pub modified: SystemTime,
}

/// What is at `path`; nothing if it, or the container, does not exist.
pub(super) fn stat(client: &Client, container: &str, path: &Path) -> Result<Option<Stat>> {
    let what = || format!("cannot look at {} in the container {container}", path.display());
    let options = ContainerArchiveInfoOptions { path: path.to_string_lossy().into_owned() };
    let Some(seen) =
        client.look(what, async |docker| docker.get_container_archive_info(container, Some(options)).await)?
    else {
        return Ok(None);
    };
    let damaged = || Error::new(ErrorKind::VerifyFailed, format!("{}: Docker's answer is damaged", what()));
    let modified: jiff::Timestamp =
        seen.modification_time.as_deref().and_then(|time| time.parse().ok()).ok_or_else(damaged)?;
    let length = u64::try_from(seen.size).map_err(|_| damaged())?;
    Ok(Some(Stat { length, modified: modified.into() }))
}

/// What is in the file at `path`; nothing if it, or the container, does not exist.
pub(super) fn read(client: &Client, container: &str, path: &Path) -> Result<Option<Vec<u8>>> {
    let what = || format!("cannot read {} in the container {container}", path.display());
    let options = DownloadFromContainerOptions { path: path.to_string_lossy().into_owned() };
    let archive = client.look(what, async |docker| {
        let mut pieces = docker.download_from_container(container, Some(options));
        let mut archive = Vec::new();
        while let Some(piece) = pieces.next().await {
            archive.extend_from_slice(&piece?);
        }
        Ok(archive)
    })?;
    let Some(archive) = archive else { return Ok(None) };
    let failed = |source| Error::io(what(), source);
    let mut archive = tar::Archive::new(archive.as_slice());
    let mut content = Vec::new();
    if let Some(entry) = archive.entries().map_err(failed)?.next() {
        entry.map_err(failed)?.read_to_end(&mut content).map_err(failed)?;
    }
    Ok(Some(content))
}

/// What prints all of `paths`, for [`printed`].
pub(super) fn print_all(paths: &[&Path]) -> Command {
    let names = paths.iter().map(|path| path.to_string_lossy());
    Command::new("sh").args(["-c", PRINT_ALL, "sh"]).args(names).as_root()
}

/// The `count` files that [`print_all`] has printed; nothing if these are not they.
pub(super) fn printed(mut bytes: &[u8], count: usize) -> Option<Vec<Option<Vec<u8>>>> {
    let mut contents = Vec::new();
    for _ in 0..count {
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        let said = std::str::from_utf8(&bytes[..end]).ok()?.trim();
        bytes = &bytes[end + 1..];
        if said == "absent" {
            contents.push(None);
            continue;
        }
        let (content, rest) = bytes.split_at_checked(said.parse().ok()?)?;
        contents.push(Some(content.to_vec()));
        bytes = rest;
    }
    bytes.is_empty().then_some(contents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_files_are_printed_in_one_go() {
        let directory = tempfile::tempdir().unwrap();
        let [first, second, none] = ["first", "second", "none"].map(|name| directory.path().join(name));
        std::fs::write(&first, "7\nabsent\n").unwrap();
        std::fs::write(&second, [0, b'\n', 0xff]).unwrap();
        let print = print_all(&[&first, &none, &second]);
        let output = std::process::Command::new(print.program).args(print.args).output().unwrap();
        let found = printed(&output.stdout, 3).unwrap();
        assert_eq!(found, [Some(b"7\nabsent\n".to_vec()), None, Some(vec![0, b'\n', 0xff])]);
        for (said, count) in [(&b""[..], 1), (b"5\nabc", 1), (b"x\nabc", 1), (b"1\nab", 1), (b"absent\n", 2)] {
            assert_eq!(printed(said, count), None);
        }
    }
}
