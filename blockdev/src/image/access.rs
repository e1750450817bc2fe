//! A file opened for direct I/O, where it has that, and through the page cache for the ends that direct I/O cannot reach.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::engine::Target;
use crate::error::{Context, Result};
use crate::topology;
use crate::units::{ByteOffset, ByteRange, ByteSize};

/// What is missing where there is no direct I/O.
const NO_DIRECT_IO: &str = "the file system has no direct I/O: the page cache lies between the program and the disk";

#[derive(Debug)]
pub(super) struct Access {
    /// What errors call it.
    name: PathBuf,
    cached: File,
    direct: Option<File>,
    align: ByteSize,
}

/// A range in three parts, each of which may be empty.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parts {
    /// Before the first multiple of the alignment.
    pub(super) head: ByteRange,
    /// What direct I/O can reach.
    pub(super) body: ByteRange,
    /// After the last multiple of the alignment.
    pub(super) tail: ByteRange,
}

impl Access {
    /// Opens `cached`, which lies at `path`, for direct I/O as well. Errors are to call it `name`.
    pub(super) fn new(cached: File, path: &Path, writable: bool, name: &Path) -> Result<Self> {
        let found = topology::direct_io(&cached)?;
        let direct = found
            .map(|_| OpenOptions::new().read(true).write(writable).custom_flags(libc::O_DIRECT).open(path))
            .transpose()
            .context(|| format!("cannot open {} for direct I/O", name.display()))?;
        let align = found.map_or(ByteSize::new(1), |direct| direct.offset_align);
        Ok(Self { name: name.to_owned(), cached, direct, align })
    }

    pub(super) fn name(&self) -> &Path {
        &self.name
    }

    pub(super) fn cached(&self) -> &File {
        &self.cached
    }

    /// Whether I/O goes past the page cache.
    pub(super) fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// What cannot be promised of I/O on it, if anything.
    pub(super) fn gap(&self) -> Option<&'static str> {
        if self.is_direct() { None } else { Some(NO_DIRECT_IO) }
    }

    /// The file as the engine is to see it.
    pub(super) fn target(&self) -> Result<Target> {
        let file = self.direct.as_ref().unwrap_or(&self.cached);
        let file = file.try_clone().context(|| format!("cannot open {} once more", self.name.display()))?;
        Ok(Target::new(file, &self.name))
    }

    /// `range`, cut where direct I/O can begin and must end.
    pub(super) fn parts(&self, range: ByteRange) -> Parts {
        parts(range, self.align)
    }
}

fn parts(range: ByteRange, align: ByteSize) -> Parts {
    let align = align.bytes().max(1);
    let (start, end) = (range.start.bytes(), range.end().bytes());
    let first = start.checked_next_multiple_of(align).map_or(end, |first| first.min(end));
    let last = (end - end % align).max(first);
    let between = |from: u64, to: u64| ByteRange { start: ByteOffset::new(from), len: ByteSize::new(to - from) };
    Parts { head: between(start, first), body: between(first, last), tail: between(last, end) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_aligned_range_is_all_body() {
        let range = ByteRange::from_start(ByteSize::mib(20));
        let parts = parts(range, ByteSize::new(4096));
        assert_eq!(parts.body, range);
        assert!(parts.head.is_empty() && parts.tail.is_empty());
    }

    proptest! {
        #[test]
        fn parts_cover_the_range_and_the_body_is_aligned(
            start in 0u64..1 << 40,
            len in 0u64..1 << 24,
            exponent in 0u32..17,
            last_bytes: bool,
        ) {
            let align = 1u64 << exponent;
            let start = if last_bytes { u64::MAX - len } else { start };
            let range = ByteRange::new(ByteOffset::new(start), ByteSize::new(len)).unwrap();
            let Parts { head, body, tail } = parts(range, ByteSize::new(align));
            prop_assert_eq!(head.start, range.start);
            prop_assert_eq!(head.end(), body.start);
            prop_assert_eq!(body.end(), tail.start);
            prop_assert_eq!(tail.end(), range.end());
            prop_assert!(body.is_empty() || body.start.bytes().is_multiple_of(align));
            prop_assert!(body.len.bytes().is_multiple_of(align));
            // Nothing that direct I/O could reach is left to the ends.
            prop_assert!(!body.is_empty() || len < 2 * align);
            prop_assert!(body.is_empty() || (head.len.bytes() < align && tail.len.bytes() < align));
        }
    }
}
