//! `pfs rm`: removes files, and directories with all that is below them.

use std::ffi::{CString, OsString};

use blockdev::{Error, Result};
use nix::errno::Errno;
use pfs::client::Named;
use pfs::volume::{FileKind, VolumePath};

use crate::changing::Changing;
use crate::session::{Failure, Session};

/// Remove a file; or a directory with all that is below it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Remove a directory with all that is below it.
    #[arg(short, long)]
    recursive: bool,

    /// Take the last name in the path as a pattern (`*`, `?`, `[a-z]`) and remove all that it fits.
    #[arg(short, long)]
    wildcard: bool,

    /// What to remove.
    #[arg(value_name = "VOLUME:/PATH")]
    path: OsString,
}

pub(crate) fn run(args: &Args, session: &Session<'_>) -> Result<(), Failure> {
    session.write(&args.path, |changing, path| {
        if !args.wildcard {
            return remove(changing, path, args.recursive);
        }
        // What cannot be removed is in nobody else's way; the first reason is told.
        let outcomes = matching(changing, path)?.into_iter().map(|path| remove(changing, &path, args.recursive));
        outcomes.collect::<Vec<_>>().into_iter().collect()
    })
}

/// What the last name of a path fits, but the file system's own two files.
fn matching(changing: &Changing, path: &VolumePath) -> Result<Vec<VolumePath>> {
    let bytes = path.as_bytes();
    let at = bytes.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let (directory, pattern) = bytes.split_at(at);
    let entries = changing.entries(&VolumePath::new(directory))?;
    let others = entries.iter().filter(|entry| !entry.stat.inode.is_internal());
    let fitting = others.filter(|entry| fits(pattern, entry.name.as_bytes()));
    Ok(fitting.map(|entry| VolumePath::new([directory, entry.name.as_bytes()].concat())).collect())
}

/// Whether a name fits a pattern, as fnmatch(3) says. A backslash is one.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    let (Ok(pattern), Ok(name)) = (CString::new(pattern), CString::new(name)) else { return false };
    // SAFETY: both are strings that end in a NUL, and it keeps neither.
    unsafe { libc::fnmatch(pattern.as_ptr(), name.as_ptr(), libc::FNM_NOESCAPE) == 0 }
}

fn remove(changing: &Changing, path: &VolumePath, recursive: bool) -> Result<(), Failure> {
    let stat = changing.stat(path)?;
    // These the original refuses by itself.
    let refused = |why: &str, errno| Error::io(format!("cannot remove {:?}: {why}", path.display()), errno);
    if stat.inode.is_internal() {
        let why = if stat.kind == FileKind::Directory { "it is the root" } else { "it is the file system's own" };
        return Err(Failure::own(refused(why, Errno::EPERM), -1));
    }
    if stat.kind == FileKind::File {
        return Ok(changing.unlink(path)?);
    }
    if !recursive {
        let error = refused("it is a directory", Errno::EISDIR).with_hint("`rm -r` removes directories");
        return Err(Failure::own(error, -1));
    }
    for (kind, below) in all_below(changing, path)? {
        match kind {
            FileKind::File => changing.unlink(&below)?,
            FileKind::Directory => changing.rmdir(&below)?,
        }
    }
    Ok(changing.rmdir(path)?)
}

/// Everything below a directory, what is in a directory before it.
fn all_below(changing: &Changing, path: &VolumePath) -> Result<Vec<(FileKind, VolumePath)>> {
    let (mut all, mut open): (_, Vec<VolumePath>) = (Vec::new(), Vec::new());
    for Named { depth, name, stat } in changing.walk(path)? {
        all.extend(open.drain(depth.min(open.len())..).rev().map(|path| (FileKind::Directory, path)));
        let below = open.last().unwrap_or(path).join(&name);
        match stat.kind {
            FileKind::File => all.push((FileKind::File, below)),
            FileKind::Directory => open.push(below),
        }
    }
    all.extend(open.into_iter().rev().map(|path| (FileKind::Directory, path)));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_as_a_shell_has_them() {
        for (pattern, name, expected) in [
            ("*", "anything", true),
            ("wal_?", "wal_1", true),
            ("wal_?", "wal_10", false),
            ("[a-c]x", "bx", true),
            ("\\*", "\\*", true),
            ("plain", "plain", true),
        ] {
            assert_eq!(fits(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }
}
