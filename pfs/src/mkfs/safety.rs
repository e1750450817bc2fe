//! Whether a disk may become a volume: never by accident over what somebody may want to keep.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use blockdev::signature::Contents;
use blockdev::usage::{self, Use};
use blockdev::{Error, Result};

use crate::format::{Bda, CHUNK_SIZE, ChunkHeader, ChunkId, SECTOR_SIZE, has_magic};
use crate::volume::{Device, Holder};

/// For how long somebody may look at a disk before that counts as using it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Refuses to make a volume where something is. With `force` the person has said that it may go; what is mounted, or what
/// another device stands on, they cannot say so of.
pub(super) fn may_overwrite(path: &Path, force: bool) -> Result<()> {
    let mut contents = settled(path)?;
    let (open, held): (Vec<Use>, Vec<Use>) =
        contents.uses.into_iter().partition(|used| matches!(used, Use::Open { .. }));
    if let Some(first) = held.first() {
        let error = Error::refused(format!("{} is {}", path.display(), usage::describe(&held)));
        return Err(match first {
            Use::Held { by } => {
                let by = by.display();
                error.with_hint(format!(
                    "make the volume on {by}, through which others see the disk, or detach it first"
                ))
            }
            _ => error.with_hint("unmount it first"),
        });
    }
    if force {
        return Ok(());
    }
    contents.uses = open;
    let hint = "--force makes a volume there all the same; what is there is lost";
    if let Some(volume) = volume_on(path)? {
        return Err(Error::refused(format!("{} holds {volume}", path.display())).with_hint(hint));
    }
    contents.refuse_to_overwrite(path).map_err(|error| error.with_hint(hint))
}

/// What is on a disk, and who uses it, once those have closed it again who only look at it, as udev does whenever one changes.
fn settled(path: &Path) -> Result<Contents> {
    let start = Instant::now();
    loop {
        let mut contents = Contents::of(path, &[])?;
        // This process has it open itself, to lock it.
        contents.uses.retain(|used| !matches!(used, Use::Open { pid, .. } if *pid == std::process::id()));
        let is_open = contents.uses.iter().any(|used| matches!(used, Use::Open { .. }));
        if !is_open || start.elapsed() >= PATIENCE {
            return Ok(contents);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// What volume a disk holds, in words.
fn volume_on(path: &Path) -> Result<Option<String>> {
    let mut device = Device::open(path)?;
    if device.size() < CHUNK_SIZE {
        return Ok(None);
    }
    let mut sector = [0; SECTOR_SIZE];
    device.read(Bda::new(0), &mut sector)?;
    if has_magic(&sector)
        && let Some(holder) = Holder::find(&mut device)?
    {
        return Ok(Some(format!("a PolarFS volume, which is being written by {holder}")));
    }
    Ok(match ChunkHeader::parse(&sector, ChunkId::FIRST) {
        Ok(header) => {
            let chunks = u64::from(header.chunks.get());
            Some(format!("a PolarFS volume of {}", blockdev::ByteSize::new(chunks * CHUNK_SIZE.bytes())))
        }
        Err(_) if has_magic(&sector) => Some("a damaged PolarFS volume".to_owned()),
        Err(_) => None,
    })
}
