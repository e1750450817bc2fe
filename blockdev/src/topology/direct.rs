//! What a file or device asks of direct I/O.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use serde::Serialize;

use super::file_system::file_system;
use super::statx::statx;
use crate::error::{Context, Result};
use crate::file_id::FileId;
use crate::sysfs::BlockDir;
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
        return assumed(file);
    }
    let [memory_align, offset_align] =
        [told.stx_dio_mem_align, told.stx_dio_offset_align].map(|bytes| ByteSize::new(bytes.into()));
    // Zero means that this file has none.
    Ok((offset_align > ByteSize::ZERO).then_some(DirectIo { memory_align, offset_align }))
}

/// What is safe to assume where the kernel does not tell: blocks as large as those of the device, or as any device has them.
/// That a read of smaller ones works would prove nothing: in a hole there is no device to mind.
fn assumed(file: &File) -> Result<Option<DirectIo>> {
    let again = format!("/proc/self/fd/{}", file.as_raw_fd());
    match OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(again) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(None),
        outcome => outcome.context(|| "cannot try direct I/O on a file")?,
    };
    let metadata = file.metadata().context(|| "cannot look at a file")?;
    let number = match FileId::of(&metadata) {
        FileId::BlockDevice { number } => Some(number),
        FileId::Inode { .. } => file_system(file)?.and_then(|found| found.device),
    };
    let device = number.and_then(BlockDir::of_number).map(|device| device.whole());
    let block = device.and_then(|device| device.number("queue/logical_block_size")).unwrap_or(4096);
    Ok(Some(DirectIo { memory_align: ByteSize::new(block), offset_align: ByteSize::new(block) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_assumed_is_no_less_than_the_kernel_tells() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create_new(dir.path().join("file")).unwrap();
        let (told, assumed) = (direct_io(&file).unwrap(), assumed(&file).unwrap());
        assert_eq!(told.is_some(), assumed.is_some());
        if let (Some(told), Some(assumed)) = (told, assumed) {
            assert!(assumed.offset_align >= told.offset_align);
            assert!(assumed.memory_align >= told.memory_align);
        }
    }

    #[test]
    fn a_file_in_proc_has_none() {
        assert_eq!(direct_io(&File::open("/proc/self/status").unwrap()).unwrap(), None);
    }
}
