//! What a file or device holds, so that nobody's data are destroyed by accident.
//!
//! This knows the file systems, partition tables, volumes and images that one meets on Linux, and those that a caller
//! [adds](Magic). That nothing was found does not mean that nothing is there.

mod table;

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use serde::Serialize;

use crate::error::{Context, Error, Result};
use crate::file_id::FileId;
use crate::ui::needs_root;
use crate::units::ByteOffset;
use crate::usage::{self, Use};

/// How much is looked at, at the start and at the end.
const WINDOW: u64 = 1 << 20;

/// Bytes at a place that tell what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Magic {
    /// What is there, as a noun without article: `PolarFS volume`.
    pub name: &'static str,
    /// Where the bytes are, from the start.
    pub offset: u64,
    /// The bytes.
    pub bytes: &'static [u8],
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Signature {
    /// What it is, as a noun without article: `ext4 file system`.
    pub name: &'static str,
    /// Where it was recognised.
    pub offset: ByteOffset,
}

/// What a file or device holds, and who is using it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Contents {
    /// What was recognised, by place.
    pub signatures: Vec<Signature>,
    /// Who is using it.
    pub uses: Vec<Use>,
}

impl Contents {
    /// What the file or device at `path` holds, where `extra` are known besides what everybody knows.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of(path: &Path, extra: &[Magic]) -> Result<Self> {
        let what = || format!("cannot read {} to see what it holds", path.display());
        let metadata = fs::metadata(path).context(what)?;
        if !metadata.is_file() && !metadata.file_type().is_block_device() {
            return Err(Error::invalid(format!("{} is neither a file nor a block device", path.display())));
        }
        // Looked at before it is opened here, which would count as a use.
        let uses = usage::uses_of(FileId::of(&metadata));
        let file = needs_root(File::open(path).context(what))?;
        let disk = Disk::read(&file, extra).context(what)?;
        Ok(Self { signatures: disk.signatures(extra), uses })
    }

    /// Whether nothing was recognised, and nobody is using it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.signatures.is_empty() && self.uses.is_empty()
    }

    /// Refuses to overwrite what is not [empty](Self::is_empty). `path` is what it is the contents of.
    ///
    /// # Errors
    /// [`Refused`](crate::ErrorKind::Refused), with all that was found; the hint is the caller's to add.
    pub fn refuse_to_overwrite(&self, path: &Path) -> Result<()> {
        if self.is_empty() { Ok(()) } else { Err(Error::refused(format!("{} {self}", path.display()))) }
    }
}

impl fmt::Display for Contents {
    /// `holds a GPT partition table, a swap space; is mounted on /mnt`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if !self.signatures.is_empty() {
            let mut names: Vec<&str> = self.signatures.iter().map(|signature| signature.name).collect();
            names.dedup();
            parts.push(format!("holds: {}", names.join(", ")));
        }
        if !self.uses.is_empty() {
            parts.push(format!("is {}", usage::describe(&self.uses)));
        }
        f.pad(&if parts.is_empty() { "holds nothing known".to_owned() } else { parts.join("; ") })
    }
}

/// The parts of a disk that are looked at.
struct Disk {
    size: u64,
    /// Where each part starts, and its bytes.
    parts: Vec<(u64, Vec<u8>)>,
}

impl Disk {
    fn read(file: &File, extra: &[Magic]) -> io::Result<Self> {
        // The size of a block device is where its end is.
        let size = io::Seek::seek(&mut &*file, io::SeekFrom::End(0))?;
        let part = |offset: u64, len: u64| {
            let mut bytes = vec![0; usize::try_from(len.min(size.saturating_sub(offset))).unwrap_or(0)];
            file.read_exact_at(&mut bytes, offset).map(|()| (offset, bytes))
        };
        let mut disk = Self { size, parts: vec![part(0, WINDOW)?, part(size.saturating_sub(WINDOW), WINDOW)?] };
        for magic in extra {
            let len = magic.bytes.len() as u64;
            if disk.at(magic.offset, magic.bytes.len()).is_none() && magic.offset.saturating_add(len) <= size {
                disk.parts.push(part(magic.offset, len)?);
            }
        }
        Ok(disk)
    }

    /// `len` bytes at `offset`; nothing where the disk does not reach so far, or nobody looked.
    fn at(&self, offset: u64, len: usize) -> Option<&[u8]> {
        self.parts.iter().find_map(|(start, bytes)| {
            let from = usize::try_from(offset.checked_sub(*start)?).ok()?;
            bytes.get(from..from.checked_add(len)?)
        })
    }

    fn is_at(&self, offset: u64, bytes: &[u8]) -> bool {
        self.at(offset, bytes.len()) == Some(bytes)
    }

    fn u32_le(&self, offset: u64) -> Option<u32> {
        Some(u32::from_le_bytes(self.at(offset, 4)?.try_into().ok()?))
    }

    fn byte(&self, offset: u64) -> Option<u8> {
        self.at(offset, 1).map(|bytes| bytes[0])
    }

    fn signatures(&self, extra: &[Magic]) -> Vec<Signature> {
        let by_bytes = table::MAGICS.iter().chain(extra).filter(|magic| self.is_at(magic.offset, magic.bytes));
        let mut found: Vec<Signature> = by_bytes
            .map(|magic| (magic.name, magic.offset))
            .chain(self.ext())
            .chain(self.fat())
            .chain(self.lvm())
            .chain(self.raid_at_the_end())
            .chain(self.zfs())
            .chain(self.gpt_at_the_end())
            .map(|(name, offset)| Signature { name, offset: ByteOffset::new(offset) })
            .collect();
        // The boot sector of a FAT, NTFS or exFAT file system looks like a partition table; a GPT has one to protect it.
        let in_boot_sector =
            |signature: &Signature| signature.offset.bytes() < 512 || signature.name.starts_with("GPT");
        if !found.iter().any(in_boot_sector) {
            found.extend(self.mbr().map(|(name, offset)| Signature { name, offset: ByteOffset::new(offset) }));
        }
        found.sort_by_key(|signature| signature.offset);
        found
    }

    /// Linux, fs/ext4/ext4.h: the superblock is at 1024. Its two bytes of magic alone are too few to be sure.
    fn ext(&self) -> Option<(&'static str, u64)> {
        const SUPERBLOCK: u64 = 1024;
        // Features that ext3 and older do not have are whatever is not among these.
        const EXT3_INCOMPAT: u32 = 0x2 | 0x4 | 0x10;
        const EXT3_RO_COMPAT: u32 = 0x1 | 0x2 | 0x4;
        const COMPAT_HAS_JOURNAL: u32 = 0x4;
        const INCOMPAT_JOURNAL_DEV: u32 = 0x8;
        let field = |offset: u64| self.u32_le(SUPERBLOCK + offset);
        let (log_block_size, revision) = (field(0x18)?, field(0x4c)?);
        if !self.is_at(SUPERBLOCK + 0x38, &[0x53, 0xef]) || log_block_size > 6 || revision > 1 {
            return None;
        }
        let (compat, incompat, ro_compat) = (field(0x5c)?, field(0x60)?, field(0x64)?);
        let name = if incompat & INCOMPAT_JOURNAL_DEV != 0 {
            "ext4 journal"
        } else if incompat & !EXT3_INCOMPAT != 0 || ro_compat & !EXT3_RO_COMPAT != 0 {
            "ext4 file system"
        } else if compat & COMPAT_HAS_JOURNAL != 0 {
            "ext3 file system"
        } else {
            "ext2 file system"
        };
        Some((name, SUPERBLOCK + 0x38))
    }

    /// Microsoft's FAT specification, 3.1: there is no magic that every mkfs writes, so the BIOS parameter block has to make sense.
    fn fat(&self) -> Option<(&'static str, u64)> {
        let boot = self.at(0, 512)?;
        let sector = u16::from_le_bytes([boot[11], boot[12]]);
        let reserved = u16::from_le_bytes([boot[14], boot[15]]);
        let makes_sense = matches!(boot[0], 0xeb | 0xe9)
            && matches!(sector, 512 | 1024 | 2048 | 4096)
            && boot[13].is_power_of_two()
            && reserved > 0
            && matches!(boot[16], 1 | 2)
            && matches!(boot[21], 0xf0 | 0xf8..);
        makes_sense.then_some(("FAT file system", 0))
    }

    /// LVM2, lib/format_text/layout.h and lib/label/label.h: in one of the first four sectors.
    fn lvm(&self) -> Option<(&'static str, u64)> {
        let label = (0..4).map(|sector| sector * 512).find(|offset| self.is_at(*offset, b"LABELONE"))?;
        self.is_at(label + 24, b"LVM2 001").then_some(("LVM2 physical volume", label))
    }

    /// Linux, include/uapi/linux/raid/md_p.h and drivers/md/md.c: versions 0.90 and 1.0.
    fn raid_at_the_end(&self) -> Option<(&'static str, u64)> {
        const MAGIC: [u8; 4] = [0xfc, 0x4e, 0x2b, 0xa9];
        let version_0 = (self.size & !0xffff).checked_sub(0x10000);
        let version_1 = (self.size / 512).checked_sub(16).map(|sector| (sector & !7) * 512);
        let found = [version_0, version_1].into_iter().flatten().find(|offset| self.is_at(*offset, &MAGIC))?;
        Some(("Linux RAID member", found))
    }

    /// OpenZFS, include/sys/vdev_impl.h and uberblock_impl.h: two labels of 256 KiB at the start, two at the end; the second half
    /// of each are uberblocks, one in every KiB at the closest.
    fn zfs(&self) -> Option<(&'static str, u64)> {
        const LABEL: u64 = 256 << 10;
        const MAGIC: u64 = 0x00ba_b10c;
        let end = self.size / LABEL * LABEL;
        let labels = [Some(0), Some(LABEL), end.checked_sub(2 * LABEL), end.checked_sub(LABEL)];
        let mut uberblocks =
            labels.into_iter().flatten().flat_map(|label| (128..256).map(move |kib| label + kib * 1024));
        let found = uberblocks
            .find(|offset| self.is_at(*offset, &MAGIC.to_le_bytes()) || self.is_at(*offset, &MAGIC.to_be_bytes()))?;
        Some(("ZFS pool member", found))
    }

    /// UEFI specification, 5.3.2: the backup header is the last block.
    fn gpt_at_the_end(&self) -> Option<(&'static str, u64)> {
        let last = [512, 4096].into_iter().filter_map(|block| self.size.checked_sub(block));
        let found = last.into_iter().find(|offset| self.is_at(*offset, b"EFI PART"))?;
        Some(("GPT partition table", found))
    }

    /// UEFI specification, 5.2.1: the boot sector ends in 55 AA; four entries start at 446, each with a flag of 00 or 80.
    fn mbr(&self) -> Option<(&'static str, u64)> {
        let entries = (0..4).map(|entry| 446 + entry * 16);
        let makes_sense =
            self.is_at(510, &[0x55, 0xaa]) && entries.into_iter().all(|at| matches!(self.byte(at), Some(0 | 0x80)));
        makes_sense.then_some(("MBR partition table", 510))
    }
}

#[cfg(test)]
mod tests;
