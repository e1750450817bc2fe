//! Files of a container, by way of Docker's own archives: no command runs for them, and a stopped container has them, too.

use std::io::Read;
use std::path::Path;
use std::time::SystemTime;

use blockdev::{Error, ErrorKind, Result};
use bollard::query_parameters::{ContainerArchiveInfoOptions, DownloadFromContainerOptions};
use futures_util::StreamExt;

use super::client::Client;

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
