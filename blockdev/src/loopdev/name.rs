//! The stable name of a loop device: a symbolic link in /dev, such as `/dev/nvme1n1 -> loop3`.
//!
//! A link is ours when its target is exactly `loopN`. Nothing else is ever replaced or removed, and not even such a link
//! while the device it leads to is attached to something else.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Serialize;

use super::{LoopDevice, number_in};
use crate::error::{Context, Error, Result};
use crate::sysfs;

const DEV: &str = "/dev";

/// Longest name of a device, in bytes.
pub const NAME_MAX: usize = 63;

/// A name for a device in /dev: 1 to [`NAME_MAX`] bytes, no `/`, and not one that the kernel gives to loop devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Name(String);

impl Name {
    /// Where the link of this name is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(DEV).join(&self.0)
    }

    /// Makes the link of this name lead to loop device `number`. Returns whether it did not before.
    pub(super) fn give_to(&self, number: u32) -> Result<bool> {
        let path = self.path();
        let failed = || format!("cannot make the link {}", path.display());
        match symlink(format!("loop{number}"), &path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            outcome => return outcome.map(|()| true).context(failed),
        }
        let Some(present) = leads_to(&path) else {
            return Err(Error::refused(format!("{} exists, and is not a link that onedisk made", path.display()))
                .with_hint("choose another --name"));
        };
        if present == number {
            return Ok(false);
        }
        if let Some(other) = LoopDevice::with_number(present) {
            return Err(Error::refused(format!(
                "{} is the name of {}, which is attached to {}",
                path.display(),
                other.path.display(),
                other.backing_file.display()
            ))
            .with_hint(format!("choose another --name, or first: vdisk detach {self}")));
        }
        // Its device went away without us: whoever opens the name meanwhile finds the old link or the new one.
        let temporary = Path::new(DEV).join(format!(".{self}.onedisk"));
        let _ = fs::remove_file(&temporary);
        symlink(format!("loop{number}"), &temporary)
            .and_then(|()| fs::rename(&temporary, &path))
            .map(|()| true)
            .context(failed)
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let why = if text.is_empty() || text.len() > NAME_MAX {
            "it is not 1 to 63 bytes long"
        } else if text.contains('/') {
            "it contains a slash"
        } else if text.starts_with('.') {
            "it starts with a dot"
        } else if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            "it contains a space or a control character"
        } else if number_in(text).is_some() {
            "the kernel gives it to a loop device"
        } else {
            return Ok(Self(text.to_owned()));
        };
        Err(Error::invalid(format!("{text:?} cannot be the name of a device: {why}"))
            .with_hint("a name such as nvme1n1, without /dev/"))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The names that loop device `number` was given, in order.
pub(super) fn names_of(number: u32) -> Vec<Name> {
    let mut names: Vec<Name> = sysfs::entries(Path::new(DEV))
        .filter(|path| leads_to(path) == Some(number))
        .filter_map(|path| path.file_name()?.to_str()?.parse().ok())
        .collect();
    names.sort_by(|a, b| a.0.cmp(&b.0));
    names
}

/// Removes every link to loop device `number`.
pub(super) fn remove_all(number: u32) -> Result<()> {
    for name in names_of(number) {
        match fs::remove_file(name.path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io(format!("cannot remove the link {}", name.path().display()), error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The N of the link `path -> loopN`, if it is one.
fn leads_to(path: &Path) -> Option<u32> {
    let target = fs::read_link(path).ok()?;
    number_in(target.to_str()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_cannot_be_say_why() {
        let long = "x".repeat(64);
        for (text, why) in [
            ("", "1 to 63"),
            (&*long, "1 to 63"),
            ("a/b", "slash"),
            ("/dev/nvme1n1", "slash"),
            ("..", "dot"),
            (".hidden", "dot"),
            ("a b", "space"),
            ("a\0b", "control"),
            ("loop7", "loop device"),
        ] {
            let error = text.parse::<Name>().unwrap_err();
            assert!(error.to_string().contains(why), "{text:?}: {error}");
            assert!(error.hint().is_some());
        }
        for text in ["nvme1n1", "x", &*"x".repeat(63), "loop", "loopy", "disk-1_a.b"] {
            assert_eq!(text.parse::<Name>().unwrap().path(), Path::new("/dev").join(text));
        }
    }
}
