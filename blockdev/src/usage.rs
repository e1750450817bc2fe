//! Who is using a file or a block device right now.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::path::PathBuf;

use nix::libc::dev_t;
use serde::Serialize;

use crate::file_id::FileId;
use crate::loopdev;
use crate::mounts::{self, Mount};
use crate::sysfs::BlockDir;
use crate::ui::path_as_text;

/// One way in which something is in use.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case", tag = "use")]
pub enum Use {
    /// Its file system is mounted.
    Mounted {
        /// Where, as the process that sees the mount has it.
        #[serde(serialize_with = "path_as_text")]
        at: PathBuf,
    },
    /// The kernel swaps to it.
    Swap,
    /// Another block device stands on it: a device mapper or RAID device, or a loop device.
    Held {
        /// That device.
        #[serde(serialize_with = "path_as_text")]
        by: PathBuf,
    },
    /// A process has it open.
    Open {
        /// The name of its program.
        process: String,
        /// Its id.
        pid: u32,
    },
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mounted { at } => write!(f, "mounted on {}", at.display()),
            Self::Swap => f.write_str("used as swap"),
            Self::Held { by } => write!(f, "held by {}", by.display()),
            Self::Open { process, pid } => write!(f, "open in {process} (pid {pid})"),
        }
    }
}

/// Several uses in one line, for an error.
#[must_use]
pub fn describe(uses: &[Use]) -> String {
    uses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Every use of the file or device `id`, its partitions included, that this process may see: other users' processes and
/// mounts of other mount namespaces are visible to root alone. A file that this process has open itself is in use, too.
#[must_use]
pub fn uses_of(id: FileId) -> Vec<Use> {
    let ids = with_partitions(id);
    let mut uses = held_by(&ids);
    uses.extend(mounted(&ids));
    if swaps().iter().any(|swap| ids.contains(swap)) {
        uses.push(Use::Swap);
    }
    uses.extend(open_in(&ids));
    uses
}

fn with_partitions(id: FileId) -> Vec<FileId> {
    let mut ids = vec![id];
    if let FileId::BlockDevice { number } = id
        && let Some(device) = BlockDir::of_number(number)
    {
        let numbers = device.partitions().filter_map(|partition| partition.device_number());
        ids.extend(numbers.map(|number| FileId::BlockDevice { number }));
    }
    ids
}

/// The device numbers among `ids`.
fn numbers(ids: &[FileId]) -> impl Iterator<Item = dev_t> {
    ids.iter().filter_map(|id| match id {
        FileId::BlockDevice { number } => Some(*number),
        FileId::Inode { .. } => None,
    })
}

fn held_by(ids: &[FileId]) -> Vec<Use> {
    let holders = numbers(ids).filter_map(BlockDir::of_number).flat_map(|device| device.holders().collect::<Vec<_>>());
    let loops = loopdev::list().into_iter().filter(|device| ids.iter().any(|id| device.is_on(*id)));
    holders.chain(loops.map(|device| device.path)).map(|by| Use::Held { by }).collect()
}

fn mounted(ids: &[FileId]) -> Vec<Use> {
    let numbers: Vec<dev_t> = numbers(ids).collect();
    if numbers.is_empty() {
        return Vec::new();
    }
    let is_of = |mount: &Mount| mount.block_device().is_some_and(|number| numbers.contains(&number));
    let mut namespaces = HashSet::new();
    let mut points: Vec<PathBuf> = Vec::new();
    for process in processes() {
        // One process of each mount namespace is enough; where the namespace is hidden from us, so is the table.
        let seen = fs::read_link(process.join("ns/mnt")).is_ok_and(|namespace| !namespaces.insert(namespace));
        if !seen {
            for mount in mounts::seen_by(&process).into_iter().filter(is_of) {
                if !points.contains(&mount.point) {
                    points.push(mount.point);
                }
            }
        }
    }
    points.into_iter().map(|at| Use::Mounted { at }).collect()
}

/// The files and devices that the kernel swaps to.
fn swaps() -> Vec<FileId> {
    let table = fs::read("/proc/swaps").unwrap_or_default();
    table
        .split(|byte| *byte == b'\n')
        .skip(1)
        .filter_map(|line| fs::metadata(mounts::unescape(line.split(|byte| *byte == b' ').next()?)).ok())
        .map(|metadata| FileId::of(&metadata))
        .collect()
}

fn open_in(ids: &[FileId]) -> Vec<Use> {
    let mut uses = Vec::new();
    for process in processes() {
        let Some(pid) = process.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
        let Ok(descriptors) = fs::read_dir(process.join("fd")) else { continue };
        let open = descriptors.flatten().any(|descriptor| {
            fs::metadata(descriptor.path()).is_ok_and(|metadata| ids.contains(&FileId::of(&metadata)))
        });
        if open {
            let name = fs::read(process.join("comm")).unwrap_or_default();
            uses.push(Use::Open { process: String::from_utf8_lossy(&name).trim_end().to_owned(), pid });
        }
    }
    uses
}

/// The directories of all processes in /proc.
fn processes() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit))
        .map(|entry| entry.path())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_file_is_open_in_this_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("open");
        let file = fs::File::create(&path).unwrap();
        let id = FileId::of(&file.metadata().unwrap());
        let [Use::Open { pid, process }] = &uses_of(id)[..] else { panic!("open once") };
        assert_eq!(*pid, std::process::id());
        assert!(!process.is_empty());
        drop(file);
        assert_eq!(uses_of(id), []);
    }
}
