//! `pfs cp`: copies out of a volume.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use blockdev::ui::ProgressBar;
use blockdev::{ByteSize, Cancel, Error, ErrorKind};
use nix::errno::Errno;
use pfs::copy::{Copied, Copy};
use pfs::volume::FileKind;

use crate::session::{Failure, Session};

/// Copy a file or directory out of a volume to the host.
///
/// Holes stay holes. A file appears under its name once it is whole.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Copy a directory with all that is below it, and replace files that exist.
    #[arg(short, long)]
    recursive: bool,

    /// Replace files that exist.
    #[arg(short, long)]
    force: bool,

    /// The source is on a disk of this cluster (after -C).
    #[arg(short = 'S', long = "src_cluster", value_name = "NAME")]
    src_cluster: Option<String>,

    /// The target is on a disk of this cluster (after -C).
    #[arg(short = 'D', long = "dst_cluster", value_name = "NAME")]
    dst_cluster: Option<String>,

    /// What to copy.
    #[arg(value_name = "VOLUME:/PATH")]
    from: OsString,

    /// Where to, on the host.
    #[arg(value_name = "TARGET")]
    to: OsString,
}

pub(crate) fn run(args: &Args, session: &Session<'_>) -> Result<(), Failure> {
    let original = session.original.asked_for();
    if args.dst_cluster.is_some() || (original && is_disk_path(&args.to)) || (!original && names_volume(&args.to)) {
        let message = format!("cannot copy to {}: writing to a volume is not supported", args.to.display());
        return Err(Error::new(ErrorKind::Unsupported, message).into());
    }
    if original && args.src_cluster.is_none() && !is_disk_path(&args.from) {
        let message = format!("neither {} nor {} is on a disk", args.from.display(), args.to.display());
        return Err(Failure::own(Error::invalid(message), -1));
    }
    let cancel = Cancel::on_signals()?;
    let place = session.place(&args.from)?;
    let mut volume = session.open(&place.volume)?;
    let stat = volume.metadata().stat(volume.metadata().lookup(&place.path)?.number)?;
    if stat.kind == FileKind::Directory && !args.recursive {
        let error = Error::io(format!("{} is a directory", args.from.display()), Errno::EISDIR);
        return Err(Failure::own(error.with_hint("`cp -r` copies directories"), -(Errno::EISDIR as i32)));
    }
    let copy = Copy { recursive: args.recursive, force: args.force, skip_hidden: original };
    let (name, to) = (place.path.file_name(), PathBuf::from(&args.to));
    let copied = copy.out(&mut volume, &stat, name.as_ref(), &to, &mut ProgressBar::new(), &cancel)?;
    session.print(&copied, |copied| if original { each(copied, &args.from) } else { summary(copied) })
}

fn summary(Copied { files, directories, bytes }: &Copied) -> Vec<u8> {
    let count = |count: usize, one: &str, many: &str| format!("{count} {}", if count == 1 { one } else { many });
    let (files, directories) = (count(files.len(), "file", "files"), count(*directories, "directory", "directories"));
    format!("copied {files} and {directories}: {} of data\n", ByteSize::new(*bytes)).into_bytes()
}

/// A line for each file, as the original prints them.
fn each(copied: &Copied, from: &OsStr) -> Vec<u8> {
    let mut out = Vec::new();
    for file in &copied.files {
        out.extend(b"copy file from ");
        out.extend(from.as_bytes());
        out.extend(&file.from);
        out.extend(b" to ");
        out.extend(file.to.as_os_str().as_bytes());
        out.extend(b" succeeded\n");
    }
    out
}

/// Whether the original takes a path for one on a disk: by how it begins.
fn is_disk_path(path: &OsStr) -> bool {
    let path = path.as_bytes();
    let digit = matches!(path, [b'/', digit, ..] if digit.is_ascii_digit());
    let known = ["/sd", "/sf", "/vd", "/nvme", "/loop", "/mapper_", "/pangu-"];
    digit || known.into_iter().any(|start| path.starts_with(start.as_bytes()))
}

/// Whether something can only be a path in a volume.
fn names_volume(path: &OsStr) -> bool {
    path.as_bytes().windows(2).any(|pair| pair == b":/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_known_by_their_names() {
        for (path, expected) in
            [("/nvme1n1/x", true), ("/1/x", true), ("/loop3/", true), ("/tmp/x", false), ("x", false), ("/", false)]
        {
            assert_eq!(is_disk_path(OsStr::new(path)), expected, "{path}");
        }
    }
}
