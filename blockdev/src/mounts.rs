//! The mount table, as the kernel writes it (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::libc::dev_t;
use nix::sys::stat::{major, makedev};

use crate::file_id::FileId;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// What statx(2) calls `stx_mnt_id`.
    pub(crate) id: u64,
    /// The device number of the file system; some file systems make one up, with major number 0.
    pub(crate) device: dev_t,
    /// Where it is mounted.
    pub(crate) point: PathBuf,
    /// The file system, such as `ext4` or `fuse.sshfs`.
    pub(crate) file_system: String,
    /// What is mounted: often a device.
    pub(crate) source: PathBuf,
}

impl Mount {
    /// The number of the block device that is mounted, if it is one.
    pub(crate) fn block_device(&self) -> Option<dev_t> {
        // btrfs and others mount under a device number that they made up; their source is the device.
        if major(self.device) > 0 {
            return Some(self.device);
        }
        let metadata = fs::metadata(Some(&self.source).filter(|source| source.is_absolute())?).ok()?;
        match FileId::of(&metadata) {
            FileId::BlockDevice { number } => Some(number),
            FileId::Inode { .. } => None,
        }
    }
}

/// The mounts that the process in the directory `process` of /proc sees; nothing where its table is hidden from us.
pub(crate) fn seen_by(process: &Path) -> Vec<Mount> {
    parse(&fs::read(process.join("mountinfo")).unwrap_or_default())
}

/// Whether a file system that calls itself `file_system` is mounted at `point`.
pub(crate) fn is_mounted(point: &Path, file_system: &str) -> bool {
    seen_by(Path::new("/proc/self")).iter().any(|mount| mount.point == point && mount.file_system == file_system)
}

fn parse(table: &[u8]) -> Vec<Mount> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let mut fields = line.split(|byte| *byte == b' ');
    let id = text(fields.next()?).parse().ok()?;
    let device = text(fields.nth(1)?);
    let (major, minor) = device.split_once(':')?;
    let point = unescape(fields.nth(1)?);
    // Any number of optional fields, and the hyphen that ends them.
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    Some(Mount {
        id,
        device: makedev(major.parse().ok()?, minor.parse().ok()?),
        point,
        file_system: text(fields.next()?),
        source: unescape(fields.next()?),
    })
}

/// The path that the kernel wrote with `\040` for a space, and so on (`mangle_path` in fs/seq_file.c).
pub(crate) fn unescape(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        if let (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) = (*first, tail) {
            bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = tail;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_with_and_without_optional_fields() {
        let mounts = parse(
            b"36 35 7:1 / /mnt/a\\040b rw,noatime master:1 shared:2 - ext4 /dev/loop1 rw\n\
            38 35 0:24 /sub /mnt/c rw - fuse.sshfs host:/x rw\n\
            garbage\n1 2 3:4\n\n",
        );
        let mount = |id, device, point: &str, file_system: &str, source: &str| Mount {
            id,
            device,
            point: point.into(),
            file_system: file_system.into(),
            source: source.into(),
        };
        assert_eq!(
            mounts,
            [
                mount(36, makedev(7, 1), "/mnt/a b", "ext4", "/dev/loop1"),
                mount(38, makedev(0, 24), "/mnt/c", "fuse.sshfs", "host:/x"),
            ]
        );
    }

    #[test]
    fn the_root_is_mounted_here() {
        assert!(seen_by(Path::new("/proc/self")).iter().any(|mount| mount.point == Path::new("/")));
    }

    proptest! {
        #[test]
        fn what_the_kernel_escapes_comes_back(name in proptest::collection::vec(1u8.., 1..40)) {
            let escaped: Vec<u8> = name
                .iter()
                .flat_map(|byte| match byte {
                    b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}").into_bytes(),
                    byte => vec![*byte],
                })
                .collect();
            prop_assert_eq!(unescape(&escaped).into_os_string().into_vec(), name);
        }

        #[test]
        fn any_table_is_read(table in proptest::collection::vec(any::<u8>(), 0..300)) {
            parse(&table);
        }
    }
}
