//! The kernel's side of a loop device: linux/loop.h as of Linux 6.18, whose layout has not changed since 2.6 (`LOOP_CONFIGURE`: 5.8).

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::Result;

const NAME_SIZE: usize = 64;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
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
