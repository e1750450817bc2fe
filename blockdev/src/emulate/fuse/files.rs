//! What is in the directory: for each host a file of its name, which is the disk. Nothing else, and none of it ever changes.

use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::unistd::{getegid, geteuid};

use super::abi::{self, Out, ROOT, SetAttr, Transfer, opcode};
use crate::emulate::disk::Disk;
use crate::emulate::host::HostId;

/// For how long the kernel may believe what it was told, in seconds: for good.
const VALID: u64 = 365 * 86400;

/// What a file system says it reads and writes at once.
const BLOCK: u32 = 4096;

/// The directory.
#[derive(Debug)]
pub(super) struct Files {
    disk: Arc<Disk>,
    /// When it was made, in seconds since 1970.
    since: u64,
}

impl Files {
    pub(super) fn new(disk: &Arc<Disk>) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        Self { disk: Arc::clone(disk), since }
    }

    /// Whose file `node` is.
    pub(super) fn host(&self, node: u64) -> Option<HostId> {
        let index = usize::try_from(node.checked_sub(ROOT + 1)?).ok()?;
        self.disk.hosts().get(index).and_then(|host| self.disk.host(host.as_str()))
    }

    /// What is to be said to a request that is about no data.
    pub(super) fn answer(&self, code: u32, node: u64, arguments: &[u8]) -> Result<Vec<u8>, Errno> {
        let is_file = self.host(node).is_some();
        Ok(match code {
            opcode::LOOKUP if node == ROOT => self.lookup(arguments)?,
            opcode::GETATTR => self.attributes(Out::default().u64(VALID).u64(0), node)?,
            opcode::SETATTR => {
                let SetAttr { valid, size } = SetAttr::parse(arguments);
                let resizes = valid & abi::SET_SIZE != 0 && !(is_file && size == self.disk.size().bytes());
                if resizes || valid & (abi::SET_MODE | abi::SET_OWNER) != 0 {
                    return Err(Errno::EPERM);
                }
                self.attributes(Out::default().u64(VALID).u64(0), node)?
            }
            opcode::OPEN if is_file => {
                let writes = abi::open_flags(arguments) & libc::O_ACCMODE != libc::O_RDONLY;
                if writes && self.disk.options().read_only {
                    return Err(Errno::EROFS);
                }
                Out::default().u64(0).u32(abi::FOPEN_DIRECT_IO | abi::FOPEN_PARALLEL_DIRECT_WRITES).u32(0).0
            }
            opcode::OPENDIR if node == ROOT => Out::default().u64(0).u64(0).0,
            opcode::READDIR if node == ROOT => self.entries(Transfer::parse(arguments)),
            opcode::STATFS => self.statistics(),
            opcode::RELEASE | opcode::RELEASEDIR | opcode::FSYNCDIR => Vec::new(),
            _ if !is_file && node != ROOT => return Err(Errno::ENOENT),
            // The kernel does not ask again.
            _ => return Err(Errno::ENOSYS),
        })
    }

    /// `fuse_entry_out`.
    fn lookup(&self, arguments: &[u8]) -> Result<Vec<u8>, Errno> {
        let name = arguments.split(|byte| *byte == 0).next().unwrap_or_default();
        let index = self.disk.hosts().iter().position(|host| host.as_str().as_bytes() == name).ok_or(Errno::ENOENT)?;
        let node = ROOT + 1 + index as u64;
        self.attributes(Out::default().u64(node).u64(0).u64(VALID).u64(VALID).u32(0).u32(0), node)
    }

    /// Adds a `fuse_attr`.
    fn attributes(&self, out: Out, node: u64) -> Result<Vec<u8>, Errno> {
        let (size, mode, links) = match self.host(node) {
            Some(_) if self.disk.options().read_only => (self.disk.size().bytes(), libc::S_IFREG | 0o400, 1),
            Some(_) => (self.disk.size().bytes(), libc::S_IFREG | 0o600, 1),
            None if node == ROOT => (0, libc::S_IFDIR | 0o500, 2),
            None => return Err(Errno::ENOENT),
        };
        let out = out.u64(node).u64(size).u64(size / 512);
        // Accessed, modified and changed; and their nanoseconds.
        let out = (0..3).fold(out, |out, _| out.u64(self.since));
        let out = (0..3).fold(out, |out, _| out.u32(0));
        let out = out.u32(mode).u32(links).u32(geteuid().as_raw()).u32(getegid().as_raw());
        Ok(out.u32(0).u32(BLOCK).u32(0).0)
    }

    fn entries(&self, Transfer { offset, size, .. }: Transfer) -> Vec<u8> {
        let hosts = (ROOT + 1..).zip(self.disk.hosts()).map(|(node, host)| (node, libc::DT_REG, host.as_str()));
        let all = [(ROOT, libc::DT_DIR, "."), (ROOT, libc::DT_DIR, "..")].into_iter().chain(hosts);
        let mut out = Out::default();
        for (next, (node, kind, name)) in (1..).zip(all).skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            let before = out.0.len();
            out = out.entry(node, next, kind, std::ffi::OsStr::new(name).as_bytes());
            if out.0.len() > size as usize {
                out.0.truncate(before);
                break;
            }
        }
        out.0
    }

    /// `fuse_statfs_out`: all of it is in use.
    fn statistics(&self) -> Vec<u8> {
        let files = self.disk.hosts().len() as u64;
        let out = Out::default().u64(self.disk.size().bytes() / u64::from(BLOCK)).u64(0).u64(0).u64(files).u64(0);
        let out = out.u32(BLOCK).u32(255).u32(BLOCK).u32(0);
        (0..6).fold(out, |out, _| out.u32(0)).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulate::DiskOptions;

    #[test]
    fn each_host_has_a_file_and_there_is_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk.img");
        std::fs::File::create(&image).unwrap().set_len(1 << 20).unwrap();
        let hosts = vec!["a".parse().unwrap(), "b".parse().unwrap()];
        let files = Files::new(&Disk::open(&image, DiskOptions { hosts, ..DiskOptions::default() }).unwrap());
        let ask = |code, node, arguments: &[u8]| files.answer(code, node, arguments);
        assert_eq!(ask(opcode::LOOKUP, ROOT, b"b\0").unwrap()[..8], 3u64.to_ne_bytes());
        assert_eq!(ask(opcode::LOOKUP, ROOT, b"b\0").unwrap().len(), 128);
        assert_eq!(ask(opcode::LOOKUP, ROOT, b"c\0"), Err(Errno::ENOENT));
        assert_eq!(ask(opcode::GETATTR, 2, &[]).unwrap().len(), 104);
        assert_eq!(ask(opcode::GETATTR, 4, &[]), Err(Errno::ENOENT));
        assert_eq!(ask(opcode::OPEN, 4, &[]), Err(Errno::ENOENT));
        assert_eq!(ask(opcode::STATFS, ROOT, &[]).unwrap().len(), 80);
        assert_eq!((files.host(ROOT), files.host(3), files.host(4)), (None, Some(HostId(1)), None));
        let size = |size| Out::default().u32(abi::SET_SIZE).u32(0).u64(0).u64(size).0;
        assert!(ask(opcode::SETATTR, 2, &size(1 << 20)).is_ok());
        assert_eq!(ask(opcode::SETATTR, 2, &size(0)), Err(Errno::EPERM));
        // All entries, and those that there is room for, from where the kernel was.
        let list = |offset, size| ask(opcode::READDIR, ROOT, &Out::default().u64(0).u64(offset).u32(size).0).unwrap();
        assert_eq!((list(0, 4096).len(), list(0, 64).len(), list(2, 64).len(), list(4, 4096).len()), (128, 64, 64, 0));
    }
}
