//! The kernel's side of a loop device: linux/loop.h as of Linux 6.18, whose layout has not changed since 2.6 (`LOOP_CONFIGURE`: 5.8).

use std::fs::File;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use nix::Result;
use nix::errno::Errno;

use crate::units::ByteSize;

pub(super) const READ_ONLY: u32 = 1;
pub(super) const AUTOCLEAR: u32 = 4;
pub(super) const DIRECT_IO: u32 = 16;

const NAME_SIZE: usize = 64;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LoopInfo64 {
    /// The `st_dev` of the backing file, in the encoding that stat(2) has.
    pub(super) device: u64,
    pub(super) inode: u64,
    /// The `st_rdev` of a backing device, 0 for a file.
    pub(super) rdevice: u64,
    pub(super) offset: u64,
    /// In bytes; 0 is the whole file.
    pub(super) size_limit: u64,
    pub(super) number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    pub(super) flags: u32,
    pub(super) file_name: [u8; NAME_SIZE],
    crypt_name: [u8; NAME_SIZE],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

impl LoopInfo64 {
    /// All of a file, with `flags`. `file_name` is informative and may be cut short.
    pub(super) fn new(file_name: &[u8], flags: u32) -> Self {
        let mut name = [0; NAME_SIZE];
        let len = file_name.len().min(NAME_SIZE - 1);
        name[..len].copy_from_slice(&file_name[..len]);
        Self { flags, file_name: name, ..Self::ZERO }
    }

    const ZERO: Self = Self {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; NAME_SIZE],
        crypt_name: [0; NAME_SIZE],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
}

/// `struct loop_config`.
#[repr(C)]
#[derive(Debug)]
pub(super) struct LoopConfig {
    pub(super) fd: u32,
    /// 0 leaves it to the kernel.
    pub(super) block_size: u32,
    pub(super) info: LoopInfo64,
    pub(super) reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo64>() == 232 && size_of::<LoopConfig>() == 304);

mod raw {
    use super::{LoopConfig, LoopInfo64};

    nix::ioctl_write_int_bad!(set_fd, 0x4C00);
    nix::ioctl_none_bad!(clr_fd, 0x4C01);
    nix::ioctl_write_ptr_bad!(set_status64, 0x4C04, LoopInfo64);
    nix::ioctl_read_bad!(get_status64, 0x4C05, LoopInfo64);
    nix::ioctl_none_bad!(set_capacity, 0x4C07);
    nix::ioctl_write_int_bad!(set_direct_io, 0x4C08);
    nix::ioctl_write_int_bad!(set_block_size, 0x4C09);
    nix::ioctl_write_ptr_bad!(configure, 0x4C0A, LoopConfig);
    nix::ioctl_none_bad!(ctl_get_free, 0x4C82);
}

/// What the device is attached to. `ENXIO`: to nothing.
pub(super) fn get_status(device: &File) -> Result<LoopInfo64> {
    let mut info = LoopInfo64::ZERO;
    // SAFETY: the kernel fills in a `struct loop_info64`, which `LoopInfo64` is.
    unsafe { raw::get_status64(device.as_raw_fd(), &raw mut info) }?;
    Ok(info)
}

/// The number of a device that was free a moment ago.
pub(super) fn get_free(control: &File) -> Result<u32> {
    // SAFETY: takes no argument.
    let number = unsafe { raw::ctl_get_free(control.as_raw_fd()) }?;
    u32::try_from(number).map_err(|_| Errno::EINVAL)
}

/// Attaches in one step. `EINVAL` on kernels before 5.8, too.
pub(super) fn configure(device: &File, file: &File, block_size: ByteSize, info: LoopInfo64) -> Result<()> {
    let block_size = u32::try_from(block_size.bytes()).map_err(|_| Errno::EINVAL)?;
    let config = LoopConfig { fd: descriptor(file), block_size, info, reserved: [0; 8] };
    // SAFETY: the kernel reads a `struct loop_config`, which `LoopConfig` is.
    unsafe { raw::configure(device.as_raw_fd(), &raw const config) }.map(drop)
}

/// Attaches, with the kernel's defaults.
pub(super) fn set_fd(device: &File, file: &File) -> Result<()> {
    // SAFETY: takes a descriptor.
    unsafe { raw::set_fd(device.as_raw_fd(), file.as_raw_fd()) }.map(drop)
}

/// Changes what can be changed of an attached device: of the flags, autoclear.
pub(super) fn set_status(device: &File, info: &LoopInfo64) -> Result<()> {
    // SAFETY: the kernel reads a `struct loop_info64`, which `LoopInfo64` is.
    while_busy(|| unsafe { raw::set_status64(device.as_raw_fd(), std::ptr::from_ref(info)) })
}

/// Changes the smallest unit of I/O of an attached device.
pub(super) fn set_block_size(device: &File, block_size: ByteSize) -> Result<()> {
    let bytes = i32::try_from(block_size.bytes()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: takes a number.
    while_busy(|| unsafe { raw::set_block_size(device.as_raw_fd(), bytes) })
}

/// Turns direct I/O of an attached device on.
pub(super) fn set_direct_io(device: &File) -> Result<()> {
    // SAFETY: takes a number.
    unsafe { raw::set_direct_io(device.as_raw_fd(), 1) }.map(drop)
}

/// Lets an attached device see that its file has grown.
pub(super) fn set_capacity(device: &File) -> Result<()> {
    // SAFETY: takes no argument.
    unsafe { raw::set_capacity(device.as_raw_fd()) }.map(drop)
}

/// Detaches: at once, or when the last that has the device open closes it.
pub(super) fn clr_fd(device: &File) -> Result<()> {
    // SAFETY: takes no argument.
    unsafe { raw::clr_fd(device.as_raw_fd()) }.map(drop)
}

fn descriptor(file: &File) -> u32 {
    u32::try_from(file.as_raw_fd()).unwrap_or(u32::MAX)
}

/// `EAGAIN` means that the device had dirty pages in the cache just then (older kernels).
fn while_busy(mut call: impl FnMut() -> Result<i32>) -> Result<()> {
    for _ in 0..100 {
        match call() {
            Err(Errno::EAGAIN) => thread::sleep(Duration::from_millis(10)),
            outcome => return outcome.map(drop),
        }
    }
    call().map(drop)
}
