//! What a file or device asks of direct I/O.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use serde::Serialize;

use super::statx::statx;
use crate::buffer::Memory;
use crate::error::{Context, Result};
use crate::units::ByteSize;

/// What O_DIRECT asks of a file's I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DirectIo {
    /// Memory starts at a multiple of this.
    pub memory_align: ByteSize,
    /// Offsets and lengths are multiples of this.
    pub offset_align: ByteSize,
}

/// What direct I/O on `file` (however it was opened) asks for, or nothing where it cannot be.
///
/// # Errors
/// When the file cannot be looked at.
pub fn direct_io(file: &File) -> Result<Option<DirectIo>> {
    let told = statx(file, libc::STATX_DIOALIGN).context(|| "cannot ask a file for its direct I/O")?;
    if told.stx_mask & libc::STATX_DIOALIGN == 0 {
        // Linux before 6.1, or a file system that does not say.
        return probe(file).context(|| "cannot try direct I/O on a file");
    }
    let [memory_align, offset_align] =
        [told.stx_dio_mem_align, told.stx_dio_offset_align].map(|bytes| ByteSize::new(bytes.into()));
    // Zero means that this file has none.
    Ok((offset_align > ByteSize::ZERO).then_some(DirectIo { memory_align, offset_align }))
}

/// Opens the file once more and tries. What it asks of memory is not found out but assumed to be the same: safe.
fn probe(file: &File) -> io::Result<Option<DirectIo>> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let direct = match OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(None),
        outcome => outcome?,
    };
    let memory = Memory::new(ALIGN_MAX).map_err(io::Error::other)?;
    // SAFETY: the memory is this long, zeroed, and nobody else has it.
    let buffer = unsafe { std::slice::from_raw_parts_mut(memory.as_ptr().as_ptr(), ALIGN_MAX) };
    for align in ALIGNS {
        match direct.read_at(&mut buffer[..align], 0) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            outcome => {
                let align = ByteSize::new(outcome.map(|_| align)? as u64);
                return Ok(Some(DirectIo { memory_align: align, offset_align: align }));
            }
        }
    }
    Ok(None)
}

/// The alignments there are, smallest first.
const ALIGNS: [usize; 4] = [512, 1024, 2048, ALIGN_MAX];
const ALIGN_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probing_finds_no_less_than_the_kernel_tells() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create_new(dir.path().join("file")).unwrap();
        file.set_len(1 << 20).unwrap();
        let (told, found) = (direct_io(&file).unwrap(), probe(&file).unwrap());
        assert_eq!(told.is_some(), found.is_some());
        if let (Some(told), Some(found)) = (told, found) {
            assert_eq!(found.offset_align, told.offset_align);
            assert!(found.memory_align >= told.memory_align);
        }
    }

    #[test]
    fn a_file_in_proc_has_none() {
        assert_eq!(direct_io(&File::open("/proc/self/status").unwrap()).unwrap(), None);
    }
}
