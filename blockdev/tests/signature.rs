//! What real tools write is recognised.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use blockdev::signature::{Contents, Magic};
use blockdev::usage::Use;
use blockdev::{ByteOffset, ErrorKind};

/// A sparse file, in a directory that goes with it.
struct Image {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Image {
    fn new(mib: u64) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = dir.path().join("disk");
        File::create(&path).unwrap().set_len(mib << 20).unwrap();
        Self { path, _dir: dir }
    }

    fn names(&self) -> Vec<&'static str> {
        let contents = Contents::of(&self.path, &[]).unwrap();
        contents.signatures.into_iter().map(|signature| signature.name).collect()
    }
}

/// Every tool that is installed; e2fsprogs and util-linux always are. Each writes to `$1`.
#[test]
fn what_the_tools_make_is_recognised() {
    let luks = |version| {
        format!(
            "cryptsetup -q luksFormat --type {version} --pbkdf pbkdf2 --pbkdf-force-iterations 1000 -d /proc/version $1"
        )
    };
    let (luks1, luks2) = (luks("luks1"), luks("luks2"));
    let mut tried = 0;
    for (mib, script, name) in [
        (16, "mkfs.ext2 -q $1", "ext2 file system"),
        (16, "mkfs.ext3 -q $1", "ext3 file system"),
        (16, "mkfs.ext4 -q $1", "ext4 file system"),
        (16, "mke2fs -q -O journal_dev $1", "ext4 journal"),
        (16, "mkswap $1", "swap space"),
        (320, "mkfs.xfs -q $1", "XFS file system"),
        (128, "mkfs.btrfs -q $1", "Btrfs file system"),
        (64, "mkfs.f2fs -q $1", "F2FS file system"),
        (1, "mkfs.erofs $1 $(mktemp -d $1.XXX)", "EROFS file system"),
        (1, "mksquashfs $(mktemp -d $1.XXX) $1 -noappend -quiet", "squashfs file system"),
        (1, "genisoimage -quiet -o $1 $(mktemp -d $1.XXX)", "ISO 9660 file system"),
        (16, "mkfs.vfat $1", "FAT file system"),
        (512, "mkfs.vfat -F 32 $1", "FAT file system"),
        (16, "mkfs.vfat -F 12 -S 4096 $1", "FAT file system"),
        (16, "mkfs.exfat $1", "exFAT file system"),
        (16, "mkfs.ntfs -q -F -Q $1", "NTFS file system"),
        (64, "mkfs.jfs -q $1", "JFS file system"),
        (160, "mkfs.nilfs2 -q $1", "NILFS2 file system"),
        (64, "mkfs.udf $1", "UDF file system"),
        (64, "mkfs.gfs2 -q -O -p lock_nolock -J 8 $1", "GFS2 file system"),
        (64, "mkfs.ocfs2 -q -x -M local -F $1", "OCFS2 file system"),
        (64, "mkreiserfs -q -f -f $1", "ReiserFS file system"),
        (64, "bcachefs format -q $1", "bcachefs file system"),
        (32, &*luks1, "LUKS encrypted volume"),
        (32, &*luks2, "LUKS encrypted volume"),
        (16, "echo label: gpt | sfdisk -q $1", "GPT partition table"),
        (16, "echo label: dos | sfdisk -q $1", "MBR partition table"),
        (16, "printf '%s\n' 'label: gpt' ,4M , | sfdisk -q $1", "GPT partition table"),
        (16, "printf '%s\n' 'label: dos' ,4M , | sfdisk -q $1", "MBR partition table"),
        (16, "echo label: gpt | sfdisk -q $1; dd if=/dev/zero of=$1 bs=1M count=1 conv=notrunc", "GPT partition table"),
    ] {
        let tool = if script.contains("sfdisk") { "sfdisk" } else { script.split(' ').next().unwrap() };
        let image = Image::new(mib);
        let script = format!("command -v {tool} >/dev/null || exit 77; {script}");
        let out = Command::new("sh").args(["-c", &script, "sh"]).arg(&image.path).output().unwrap();
        if out.status.code() == Some(77) {
            continue;
        }
        assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
        let mut names = image.names();
        names.dedup();
        assert_eq!(names, [name], "{script}");
        tried += 1;
    }
    assert!(tried >= 5);
}

#[test]
fn a_caller_adds_what_it_knows_wherever_it_is() {
    let image = Image::new(8);
    let magic = |offset| Magic { name: "frobnicated volume", offset, bytes: b"FROB" };
    let file = OpenOptions::new().write(true).open(&image.path).unwrap();
    for offset in [0, 5000, (1 << 20) - 2, 4 << 20, (8 << 20) - 4] {
        file.write_all_at(b"FROB", offset).unwrap();
        let contents = Contents::of(&image.path, &[magic(offset)]).unwrap();
        let found: Vec<_> = contents.signatures.iter().map(|found| (found.name, found.offset)).collect();
        assert_eq!(found, [("frobnicated volume", ByteOffset::new(offset))]);
    }
    for offset in [1, (8 << 20) - 3, 1 << 40] {
        assert!(Contents::of(&image.path, &[magic(offset)]).unwrap().signatures.is_empty());
    }
}

#[test]
fn an_open_file_is_not_overwritten() {
    let image = Image::new(1);
    assert!(Contents::of(&image.path, &[]).unwrap().is_empty());
    let _open = File::open(&image.path).unwrap();
    let contents = Contents::of(&image.path, &[]).unwrap();
    assert!(matches!(&contents.uses[..], [Use::Open { pid, .. }] if *pid == std::process::id()));
    let error = contents.refuse_to_overwrite(&image.path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
}

#[test]
fn a_mounted_device_says_what_it_holds_and_where_it_is_mounted() {
    tests::needs_root!();
    let image = Image::new(8);
    let attachment = blockdev::loopdev::attach(&image.path, &blockdev::loopdev::Options::default()).unwrap();
    let device = attachment.device().path.clone();
    let point = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let run = |program: &str, arguments: &[&std::path::Path]| {
        assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program}");
    };
    run("mkfs.ext4", &["-q".as_ref(), &device]);
    run("mount", &[&device, point.path()]);
    let contents = Contents::of(&device, &[]);
    run("umount", &[point.path()]);
    let contents = contents.unwrap();
    assert_eq!(contents.signatures[0].name, "ext4 file system");
    assert!(contents.uses.contains(&Use::Mounted { at: point.path().to_owned() }), "{contents}");
}

#[test]
fn what_holds_nothing_says_why() {
    for (path, kind, why) in [
        ("/dev/null", ErrorKind::InvalidInput, "/dev/null is neither a file nor a block device"),
        ("/nowhere", ErrorKind::NotFound, "cannot read /nowhere to see what it holds"),
    ] {
        let error = Contents::of(path.as_ref(), &[]).unwrap_err();
        assert_eq!((error.kind(), &*error.to_string()), (kind, why));
    }
}
