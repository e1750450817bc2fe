//! Whether there is room, asked before anything is made.

use std::fs::File;
use std::path::Path;

use nix::sys::statvfs::fstatvfs;

use crate::error::{Context, Error, ErrorKind, Result};
use crate::units::ByteSize;

/// What has to stay free beside an image: the file system's own needs (extent trees, journal) and those of everybody else
/// on it, who would be stopped by the last block. One hundredth of the image, 4 MiB to 1 GiB.
fn margin(image: ByteSize) -> ByteSize {
    ByteSize::new((image.bytes() / 100).clamp(ByteSize::mib(4).bytes(), ByteSize::gib(1).bytes()))
}

/// Refuses where the file system of `file` (or directory) has no room for `needed` bytes more of the image `name`. What is
/// reserved for root is not counted: an image is not what it is reserved for.
///
/// Returns what could not be checked, if anything.
pub(super) fn check(file: &File, name: &Path, needed: ByteSize) -> Result<Option<&'static str>> {
    let about = fstatvfs(file).context(|| format!("cannot ask for the free space for {}", name.display()))?;
    if about.blocks() == 0 {
        return Ok(Some("the file system does not tell how much space is free: it may run full while it is written"));
    }
    let free = ByteSize::new(about.blocks_available().saturating_mul(about.fragment_size()));
    enough(free, name, needed)?;
    Ok(None)
}

fn enough(free: ByteSize, name: &Path, needed: ByteSize) -> Result<()> {
    let margin = margin(needed);
    if needed.bytes().saturating_add(margin.bytes()) <= free.bytes() {
        return Ok(());
    }
    let message =
        format!("not enough space for {}: {needed} and a margin of {margin} needed, {free} free", name.display());
    Err(Error::new(ErrorKind::NoSpace, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_margin_is_a_hundredth_within_bounds() {
        for (image, expected) in [
            (ByteSize::mib(64), ByteSize::mib(4)),
            (ByteSize::gib(10), ByteSize::new((10 << 30) / 100)),
            (ByteSize::gib(1000), ByteSize::gib(1)),
        ] {
            assert_eq!(margin(image), expected);
        }
    }

    #[test]
    fn the_error_has_both_numbers() {
        let name = Path::new("/disk");
        assert!(enough(ByteSize::mib(104), name, ByteSize::mib(100)).is_ok());
        let error = enough(ByteSize::mib(103), name, ByteSize::mib(100)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert_eq!(error.to_string(), "not enough space for /disk: 100 MiB and a margin of 4 MiB needed, 103 MiB free");
        assert!(enough(ByteSize::gib(1), name, ByteSize::new(u64::MAX)).is_err());
    }
}
