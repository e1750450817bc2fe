use proptest::prelude::*;

use super::*;

/// A disk of zeroes with some bytes in it.
fn disk(size: u64, bytes: &[(u64, &[u8])]) -> Disk {
    let mut parts = vec![vec![0; WINDOW.min(size) as usize], vec![0; WINDOW.min(size) as usize]];
    let starts = [0, size.saturating_sub(WINDOW)];
    for (offset, bytes) in bytes {
        for (start, part) in starts.into_iter().zip(&mut parts) {
            if let Some(from) = offset.checked_sub(start).filter(|from| from + bytes.len() as u64 <= WINDOW.min(size)) {
                part[from as usize..][..bytes.len()].copy_from_slice(bytes);
            }
        }
    }
    Disk { size, parts: starts.into_iter().zip(parts).collect() }
}

fn names(disk: &Disk) -> Vec<&'static str> {
    disk.signatures(&[]).into_iter().map(|signature| signature.name).collect()
}

#[test]
fn nothing_is_in_zeroes() {
    for size in [0, 1, 512, 4096, WINDOW, 3 * WINDOW] {
        assert_eq!(names(&disk(size, &[])), [] as [&str; 0]);
    }
}

#[test]
fn every_magic_is_found_where_it_is_and_not_a_byte_beside() {
    for magic in table::MAGICS {
        let here = disk(3 * WINDOW, &[(magic.offset, magic.bytes)]);
        assert_eq!(names(&here), [magic.name]);
        let beside = disk(3 * WINDOW, &[(magic.offset + 1, magic.bytes)]);
        assert_eq!(names(&beside), [] as [&str; 0], "{}", magic.name);
    }
}

/// The superblock's magic, and the three feature sets.
fn ext(compat: u8, incompat: u8, ro_compat: u8) -> Vec<&'static str> {
    names(&disk(
        WINDOW,
        &[(1080, &[0x53, 0xef]), (1024 + 0x5c, &[compat]), (1024 + 0x60, &[incompat]), (1024 + 0x64, &[ro_compat])],
    ))
}

#[test]
fn ext_is_told_by_its_features() {
    assert_eq!(ext(0, 0x2, 0x1), ["ext2 file system"]);
    assert_eq!(ext(0x4, 0x2 | 0x4, 0x3), ["ext3 file system"]);
    assert_eq!(ext(0x4, 0x2 | 0x40, 0x3), ["ext4 file system"]);
    assert_eq!(ext(0x4, 0x2, 0x8), ["ext4 file system"]);
    assert_eq!(ext(0, 0x8, 0), ["ext4 journal"]);
    // Two bytes of magic among others that make no sense.
    assert_eq!(names(&disk(WINDOW, &[(1080, &[0x53, 0xef]), (1024 + 0x18, &[7])])), [] as [&str; 0]);
}

/// What mkfs.vfat writes at the start of a FAT16 file system.
const FAT_BOOT: [u8; 32] =
    *b"\xeb\x3c\x90mkfs.fat\x00\x02\x04\x04\x00\x02\x00\x02\x00\x00\xf8\x40\x00\x20\x00\x08\x00\x00\x00\x00\x00";

#[test]
fn a_boot_sector_is_a_file_system_or_a_partition_table() {
    let signed: (u64, &[u8]) = (510, &[0x55, 0xaa]);
    let mut boot = FAT_BOOT;
    // Bytes per sector come right behind the eight letters of the maker.
    assert_eq!(&boot[11..13], &[0, 2]);
    assert_eq!(names(&disk(WINDOW, &[(0, &boot), signed])), ["FAT file system"]);
    boot[13] = 3;
    assert_eq!(names(&disk(WINDOW, &[(0, &boot), signed])), ["MBR partition table"], "three sectors are no cluster");
    let entry: (u64, &[u8]) = (446, &[0x80, 1, 1, 0, 0x83]);
    assert_eq!(names(&disk(WINDOW, &[entry, signed])), ["MBR partition table"]);
    assert_eq!(names(&disk(WINDOW, &[(446, &[0x17]), signed])), [] as [&str; 0], "no entry has such a flag");
    assert_eq!(names(&disk(WINDOW, &[(3, b"NTFS    "), signed])), ["NTFS file system"]);
    let protective: (u64, &[u8]) = (446, &[0, 0, 2, 0, 0xee]);
    assert_eq!(names(&disk(WINDOW, &[protective, signed, (512, b"EFI PART")])), ["GPT partition table"]);
    assert_eq!(names(&disk(WINDOW, &[signed, (0x8001, b"CD001")])), ["MBR partition table", "ISO 9660 file system"]);
}

#[test]
fn what_is_at_the_end_is_found() {
    let size = 5 * WINDOW + 4096 * 3;
    let raid = [0xfc, 0x4e, 0x2b, 0xa9];
    for (name, offset, bytes) in [
        ("GPT partition table", size - 512, &b"EFI PART"[..]),
        ("GPT partition table", size - 4096, b"EFI PART"),
        ("Linux RAID member", (size & !0xffff) - 0x10000, &raid),
        ("Linux RAID member", size - 8192, &raid),
        ("ZFS pool member", (size >> 18 << 18) - (512 << 10) + (131 << 10), &0x00ba_b10c_u64.to_be_bytes()),
    ] {
        let found = disk(size, &[(offset, bytes)]).signatures(&[]);
        assert_eq!(found, [Signature { name, offset: ByteOffset::new(offset) }]);
    }
}

#[test]
fn lvm_is_in_one_of_four_sectors() {
    let label = b"LABELONE\0\0\0\0\0\0\0\0\0\0\0\0\x20\0\0\0LVM2 001";
    for sector in 0..4 {
        assert_eq!(names(&disk(WINDOW, &[(sector * 512, label)])), ["LVM2 physical volume"]);
    }
    assert_eq!(names(&disk(WINDOW, &[(4 * 512, label)])), [] as [&str; 0]);
    assert_eq!(names(&disk(WINDOW, &[(512, &label[..20])])), [] as [&str; 0]);
}

#[test]
fn contents_read_as_a_sentence() {
    let contents = |signatures: &[&'static str], uses: &[Use]| Contents {
        signatures: signatures.iter().map(|name| Signature { name, offset: ByteOffset::ZERO }).collect(),
        uses: uses.to_owned(),
    };
    let mounted = [Use::Mounted { at: "/mnt".into() }];
    assert_eq!(contents(&[], &[]).to_string(), "holds nothing known");
    assert_eq!(contents(&["a", "a", "b"], &[]).to_string(), "holds: a, b");
    assert_eq!(contents(&["a"], &mounted).to_string(), "holds: a; is mounted on /mnt");
    assert!(contents(&[], &[]).refuse_to_overwrite(Path::new("/x")).is_ok());
    let error = contents(&[], &mounted).refuse_to_overwrite(Path::new("/x")).unwrap_err();
    assert_eq!((error.kind(), &*error.to_string()), (crate::ErrorKind::Refused, "/x is mounted on /mnt"));
}

proptest! {
    #[test]
    fn any_bytes_are_looked_at(size in 0u64..3 * WINDOW, places in proptest::collection::vec((0..WINDOW, any::<[u8; 16]>()), 0..20)) {
        let places: Vec<(u64, &[u8])> = places.iter().map(|(offset, bytes)| (*offset, &bytes[..])).collect();
        disk(size, &places).signatures(&[Magic { name: "x", offset: u64::MAX, bytes: b"xy" }]);
    }

    #[test]
    fn any_boot_sector_is_looked_at(start in proptest::collection::vec(any::<u8>(), 4096)) {
        names(&disk(4096, &[(0, &start)]));
    }
}
