//! What tells a file system, partition table or the like by a few bytes at a fixed place.
//!
//! Where the place depends on a page or block size, there is a line for each. What takes more than comparing bytes is in
//! the module above.

use super::Magic;

const fn magic(name: &'static str, offset: u64, bytes: &'static [u8]) -> Magic {
    Magic { name, offset, bytes }
}

pub(super) const MAGICS: &[Magic] = &[
    // linux/magic.h, with the place of the superblock from each file system's headers in Linux (fs/*/).
    magic("XFS file system", 0, b"XFSB"),
    magic("Btrfs file system", 0x10040, b"_BHRfS_M"),
    magic("F2FS file system", 1024, &[0x10, 0x20, 0xf5, 0xf2]),
    magic("EROFS file system", 1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
    magic("squashfs file system", 0, b"hsqs"),
    magic("GFS2 file system", 0x10000, &[0x01, 0x16, 0x19, 0x70]),
    magic("JFS file system", 0x8000, b"JFS1"),
    magic("ReiserFS file system", 0x10034, b"ReIsErFs"),
    magic("ReiserFS file system", 0x10034, b"ReIsEr2Fs"),
    magic("ReiserFS file system", 0x10034, b"ReIsEr3Fs"),
    magic("OCFS2 file system", 1024, b"OCFSV2"),
    magic("OCFS2 file system", 2048, b"OCFSV2"),
    magic("OCFS2 file system", 4096, b"OCFSV2"),
    // Linux, include/uapi/linux/nilfs2_ondisk.h: revision 2 and the magic that follows it.
    magic("NILFS2 file system", 1024, &[2, 0, 0, 0, 0, 0, 0x34, 0x34]),
    // Linux, fs/bcachefs/bcachefs_format.h: BCHFS_MAGIC; drivers/md/bcache and earlier bcachefs: BCACHE_MAGIC.
    magic("bcachefs file system", 0x1018, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"),
    magic("bcache device", 0x1018, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"),
    // exFAT specification (Microsoft), 3.1.2; NTFS and BitLocker: OEM ID of the boot sector.
    magic("exFAT file system", 3, b"EXFAT   "),
    magic("NTFS file system", 3, b"NTFS    "),
    magic("BitLocker volume", 3, b"-FVE-FS-"),
    // ECMA-119, 8.4.2 (ISO 9660) and ECMA-167, 3/9.1 (UDF).
    magic("ISO 9660 file system", 0x8001, b"CD001"),
    magic("UDF file system", 0x8001, b"BEA01"),
    // Apple File System Reference, nx_superblock_t; TN1150 (HFS Plus).
    magic("APFS container", 32, b"NXSB"),
    magic("HFS+ file system", 1024, b"H+\x00\x04"),
    magic("HFS+ file system", 1024, b"HX\x00\x05"),
    // Linux, include/linux/swap.h: union swap_header, in the last ten bytes of the first page.
    magic("swap space", 4096 - 10, b"SWAPSPACE2"),
    magic("swap space", 8192 - 10, b"SWAPSPACE2"),
    magic("swap space", 16384 - 10, b"SWAPSPACE2"),
    magic("swap space", 65536 - 10, b"SWAPSPACE2"),
    // LUKS1 specification, 2.1; LUKS2 specification, 2.1 (its second header starts at one of several places).
    magic("LUKS encrypted volume", 0, b"LUKS\xba\xbe"),
    magic("LUKS encrypted volume", 0x4000, b"SKUL\xba\xbe"),
    // Linux, include/uapi/linux/raid/md_p.h: versions 1.1 and 1.2.
    magic("Linux RAID member", 0, &[0xfc, 0x4e, 0x2b, 0xa9]),
    magic("Linux RAID member", 4096, &[0xfc, 0x4e, 0x2b, 0xa9]),
    // UEFI specification, 5.3.2, in blocks of 512 and of 4096 bytes.
    magic("GPT partition table", 512, b"EFI PART"),
    magic("GPT partition table", 4096, b"EFI PART"),
    // Ceph, src/os/bluestore/BlueStore.cc.
    magic("Ceph BlueStore", 0, b"bluestore block device"),
    // Disk images of virtual machines, which must be written by their own tools alone: QEMU docs/interop/qcow2.rst, VMDK 5.0
    // specification (sparse extent), MS-VHDX 2.2.1, VirtualBox VDICore.h.
    magic("qcow2 image", 0, b"QFI\xfb"),
    magic("VMDK image", 0, b"KDMV"),
    magic("VHDX image", 0, b"vhdxfile"),
    magic("VDI image", 64, &[0x7f, 0x10, 0xda, 0xbe]),
];
