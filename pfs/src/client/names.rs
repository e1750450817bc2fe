//! What is done to names.

use std::borrow::Cow;
use std::sync::PoisonError;

use blockdev::Result;
use nix::errno::Errno;

use super::Client;
use super::call::Failure;
use crate::proto::Request;
use crate::proto::request::PATH_SIZE;
use crate::proto::response::{FileType, Reply, WireStat};

/// Most bytes in a name, the NUL that ends it in C included.
const NAME_SIZE: usize = 256;

fn text(path: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(path)
}

impl Client {
    /// A path as pfsd is told it: a slash, the disk, and what comes after. Relative ones start where [`chdir`](Self::chdir)
    /// led.
    ///
    /// # Errors
    /// EINVAL for none, ENOENT where nothing was said that relative ones start from, ENODEV for another disk's, ENAMETOOLONG.
    pub(super) fn full_path(&self, path: &[u8]) -> Result<Vec<u8>, Failure> {
        if path.is_empty() || path.contains(&0) {
            return Err(Errno::EINVAL.into());
        }
        let mut full = if path[0] == b'/' {
            path.to_vec()
        } else {
            let directory = self.directory.read().unwrap_or_else(PoisonError::into_inner);
            [directory.as_deref().ok_or(Errno::ENOENT)?, b"/", path].concat()
        };
        let mut parts = full.split(|byte| *byte == b'/').filter(|part| !part.is_empty());
        match parts.next() {
            None => return Err(Errno::EINVAL.into()),
            Some(disk) if disk != self.disk.as_bytes() => return Err(Errno::ENODEV.into()),
            // The original wants a slash after it.
            Some(_) if parts.next().is_none() && !full.ends_with(b"/") => full.push(b'/'),
            Some(_) => {}
        }
        if full.len() >= PATH_SIZE { Err(Errno::ENAMETOOLONG.into()) } else { Ok(full) }
    }

    fn named(&self, path: &[u8], request: impl FnOnce(Vec<u8>) -> Request) -> Result<Reply, Failure> {
        let full = self.full_path(path)?;
        let kind = FileType::of(&full);
        self.call(&request(full), kind, |_| {}, |_, reply| reply)
    }

    /// Removes a file. It is gone at once, for those who opened it, too.
    ///
    /// # Errors
    /// ENOENT, EISDIR, EROFS; when the pfsd is gone.
    pub fn unlink(&self, path: impl AsRef<[u8]>) -> Result<()> {
        let path = path.as_ref();
        let done = self.named(path, |path| Request::Unlink { path });
        done.map(drop).map_err(|failure| failure.error(self, format!("cannot remove {}", text(path))))
    }

    /// Makes a file so many bytes long.
    ///
    /// # Errors
    /// ENOENT, EISDIR, ENOSPC, EROFS; when the pfsd is gone.
    pub fn truncate(&self, path: impl AsRef<[u8]>, len: u64) -> Result<()> {
        let path = path.as_ref();
        let failed = |failure: Failure| failure.error(self, format!("cannot make {} {len} bytes long", text(path)));
        let len = i64::try_from(len).map_err(|_| failed(Errno::EINVAL.into()))?;
        self.named(path, |path| Request::Truncate { path, len }).map(drop).map_err(failed)
    }

    /// What is known of a file or directory.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR; when the pfsd is gone.
    pub fn stat(&self, path: impl AsRef<[u8]>) -> Result<WireStat> {
        let path = path.as_ref();
        let failed = |failure: Failure| failure.error(self, format!("cannot stat {}", text(path)));
        match self.named(path, |path| Request::Stat { path }).map_err(failed)? {
            Reply::Stat(stat) => Ok(stat),
            _ => Err(failed(Errno::EPROTO.into())),
        }
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// EEXIST, ENOENT, ENOTDIR, EROFS; 1001 when there is no room for another; when the pfsd is gone.
    pub fn mkdir(&self, path: impl AsRef<[u8]>) -> Result<()> {
        let path = path.as_ref();
        // The original's library does not say with which permissions: there are none.
        let done = self.named(path, |path| Request::Mkdir { path, mode: 0 });
        done.map(drop).map_err(|failure| failure.error(self, format!("cannot make directory {}", text(path))))
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR, ENOTEMPTY, EROFS; when the pfsd is gone.
    pub fn rmdir(&self, path: impl AsRef<[u8]>) -> Result<()> {
        let path = path.as_ref();
        let done = self.named(path, |path| Request::Rmdir { path });
        done.map(drop).map_err(|failure| failure.error(self, format!("cannot remove directory {}", text(path))))
    }

    /// Whether there is a file or directory; `mode` is access(2)'s, but everybody may do everything.
    ///
    /// # Errors
    /// When there is none, ENOENT for `F_OK` and EACCES for all else, as the original has it; EINVAL for a mode that asks
    /// nothing; when the pfsd is gone.
    pub fn access(&self, path: impl AsRef<[u8]>, mode: i32) -> Result<()> {
        let path = path.as_ref();
        let access = || {
            if mode != libc::F_OK && mode & (libc::R_OK | libc::W_OK | libc::X_OK) == 0 {
                return Err(Errno::EINVAL.into());
            }
            self.named(path, |path| Request::Access { path, mode })
        };
        access().map(drop).map_err(|failure| failure.error(self, format!("cannot look for {}", text(path))))
    }

    /// Calls a file or directory otherwise. What is called so already is replaced.
    ///
    /// # Errors
    /// ENOENT, EISDIR, ENOTDIR, ENOTEMPTY, EINVAL for a directory into itself, EROFS; when the pfsd is gone.
    pub fn rename(&self, from: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Result<()> {
        let (from, to) = (from.as_ref(), to.as_ref());
        let rename = || {
            let (from, to) = (self.full_path(from)?, self.full_path(to)?);
            let kind = FileType::of(&from);
            self.done(&Request::Rename { from, to }, kind)
        };
        rename().map_err(|failure| failure.error(self, format!("cannot rename {} to {}", text(from), text(to))))
    }

    /// Says from where relative paths start. It is for this process alone, and pfsd only looks whether it is a directory.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR, ENAMETOOLONG; when the pfsd is gone.
    pub fn chdir(&self, path: impl AsRef<[u8]>) -> Result<()> {
        let path = path.as_ref();
        let change = || {
            let full = self.full_path(path)?;
            let normal = normal(&full)?;
            self.done(&Request::Chdir { path: full }, FileType::OTHER)?;
            *self.directory.write().unwrap_or_else(PoisonError::into_inner) = Some(normal);
            Ok(())
        };
        change().map_err(|failure: Failure| failure.error(self, format!("cannot go to {}", text(path))))
    }

    /// From where relative paths start, if that was said.
    #[must_use]
    pub fn getcwd(&self) -> Option<Vec<u8>> {
        self.directory.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says that the disk has grown and the volume was, too: pfsd takes the new part into use.
    ///
    /// # Errors
    /// As pfsd says; when it is gone.
    pub fn growfs(&self) -> Result<()> {
        let done = self.done(&Request::Growfs { disk: self.disk.clone() }, FileType::OTHER);
        done.map_err(|failure| {
            failure.error(self, format!("the pfsd of {} cannot take its growth into use", self.disk))
        })
    }
}

/// A path without `.`, `..` and double slashes. The disk cannot be left, and has a slash after it when it stands alone.
fn normal(path: &[u8]) -> Result<Vec<u8>, Failure> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => parts.truncate(parts.len().saturating_sub(1).max(1)),
            part if part.len() >= NAME_SIZE => return Err(Errno::ENAMETOOLONG.into()),
            part => parts.push(part),
        }
    }
    let mut normal: Vec<u8> = parts.iter().flat_map(|part| [b"/", *part].concat()).collect();
    if parts.len() == 1 {
        normal.push(b'/');
    }
    Ok(normal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_kept_as_the_original_keeps_them() {
        for (path, kept) in [
            ("/loop1", "/loop1/"),
            ("/loop1/", "/loop1/"),
            ("/loop1/./a//b/", "/loop1/a/b"),
            ("/loop1/a/../b", "/loop1/b"),
            ("/loop1/../../..", "/loop1/"),
        ] {
            assert_eq!(text(&normal(path.as_bytes()).unwrap()), kept, "{path}");
        }
        let long = format!("/loop1/{}", "n".repeat(256));
        assert_eq!(normal(long.as_bytes()), Err(Failure::from(Errno::ENAMETOOLONG)));
    }
}
