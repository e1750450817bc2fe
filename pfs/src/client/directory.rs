//! What is in a directory.

use std::collections::VecDeque;

use blockdev::Result;
use nix::errno::Errno;

use super::Client;
use super::call::Failure;
use crate::proto::response::{ENTRY_SIZE, FileType, Reply, WireEntry};
use crate::proto::{Request, Slot};

/// A name in a directory.
pub type Entry = WireEntry;

/// The names in a directory, in the order in which pfsd has them. It is asked again for every few dozen, so what others do
/// meanwhile may be seen or not; the original's may leave out or repeat a name that was there all the time.
#[derive(Debug)]
pub struct Directory<'a> {
    client: &'a Client,
    path: Vec<u8>,
    inode: i64,
    /// The direntry of the next, and how many came before. 0 for none.
    next: i64,
    index: u64,
    /// Those that came with the last answer.
    entries: VecDeque<Entry>,
}

impl Client {
    /// Opens a directory to read what is in it.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR; when the pfsd is gone.
    pub fn opendir(&self, path: impl AsRef<[u8]>) -> Result<Directory<'_>> {
        let path = path.as_ref();
        let open = || {
            let path = self.full_path(path)?;
            let request = Request::Opendir { path: path.clone() };
            match self.call(&request, FileType::of(&path), |_| {}, |_, reply| reply)? {
                Reply::Directory { inode, first } => Ok((path, inode, first)),
                _ => Err(Errno::EPROTO.into()),
            }
        };
        let failed =
            |failure: Failure| failure.error(self, format!("cannot open directory {}", String::from_utf8_lossy(path)));
        let (path, inode, next) = open().map_err(failed)?;
        Ok(Directory { client: self, path, inode, next, index: 0, entries: VecDeque::new() })
    }

    /// All that is in a directory.
    ///
    /// # Errors
    /// As [`opendir`](Self::opendir).
    pub fn readdir(&self, path: impl AsRef<[u8]>) -> Result<Vec<Entry>> {
        self.opendir(path)?.collect()
    }
}

impl Directory<'_> {
    /// Asks for more.
    fn fetch(&mut self) -> Result<(), Failure> {
        let request = Request::Readdir { directory: self.inode, entry: self.next, index: self.index };
        let drain = |slot: Slot<'_>, reply| {
            let Reply::Entries { next, index, bytes } = reply else { return Err(Failure::from(Errno::EPROTO)) };
            // No more than the buffer has, as was looked at when the answer was parsed.
            let mut buffer = vec![0; usize::try_from(bytes).unwrap_or(0)];
            slot.copy_from_buffer(0, &mut buffer);
            Ok((next, index, buffer))
        };
        let (next, index, buffer) = self.client.call(&request, FileType::of(&self.path), |_| {}, drain)??;
        let (entries, rest) = buffer.as_chunks::<ENTRY_SIZE>();
        if !rest.is_empty() {
            return Err(Errno::EPROTO.into());
        }
        // Whoever says that there is more has to get on.
        (self.next, self.index) = if entries.is_empty() { (0, 0) } else { (next, index) };
        self.entries.extend(entries.iter().map(WireEntry::parse));
        Ok(())
    }
}

impl Iterator for Directory<'_> {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.entries.is_empty() && self.next != 0 {
            if let Err(failure) = self.fetch() {
                self.next = 0;
                let what = format!("cannot read directory {}", String::from_utf8_lossy(&self.path));
                return Some(Err(failure.error(self.client, what)));
            }
        }
        self.entries.pop_front().map(Ok)
    }
}
