//! `pfs cp`: copies out of a volume, into one, and from one to another.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use blockdev::ui::ProgressBar;
use blockdev::{ByteSize, Cancel, Error, ErrorKind};
use nix::errno::Errno;
use pfs::copy::{Copied, Copy, Source};
use pfs::volume::{FileKind, VolumePath};

use crate::session::{Failure, Session};

/// Copy a file or directory: from the host into a volume, out of one, or from one to another.
///
/// On the host holes stay holes, and a file appears under its name once it is whole.
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

    /// Which host this is for the source (after -C). A reader needs no number.
    #[arg(short = 's', long = "src_hostid", value_name = "ID", hide_short_help = true)]
    src_hostid: Option<u8>,

    /// Which host this is for the target (after -C). The option -H says so for all commands.
    #[arg(short = 'd', long = "dst_hostid", value_name = "ID", hide_short_help = true)]
    dst_hostid: Option<u8>,

    /// What to copy: a path of the host, or one in a volume.
    #[arg(value_name = "[VOLUME:/]PATH")]
    from: OsString,

    /// Where to.
    #[arg(value_name = "[VOLUME:/]PATH")]
    to: OsString,
}

impl Args {
    /// Whether a cluster is named, which only the original knows.
    pub(crate) fn names_cluster(&self) -> bool {
        self.src_cluster.is_some() || self.dst_cluster.is_some()
    }

    fn copy(&self, session: &Session<'_>) -> Copy {
        Copy { recursive: self.recursive, force: self.force, skip_hidden: session.compatible }
    }
}

pub(crate) fn run(args: &Args, session: &Session<'_>) -> Result<(), Failure> {
    let both = args.src_cluster.is_some() && args.dst_cluster.is_some();
    let in_volume = |path: &OsStr| if session.compatible { both || is_disk_path(path) } else { names_volume(path) };
    let cancel = Cancel::on_signals()?;
    let copied = match (in_volume(&args.from), in_volume(&args.to)) {
        (true, false) => out(args, session, &cancel).map_err(refused)?,
        (from, true) => into(args, from, session, &cancel).map_err(refused)?,
        (false, false) => {
            let message = format!("neither {} nor {} is in a volume", args.from.display(), args.to.display());
            return Err(Failure::own(Error::invalid(message).with_hint("name a path in a volume as FILE:/PATH"), -1));
        }
    };
    session.print(&copied, |copied| if session.compatible { each(copied, args) } else { summary(copied) })
}

fn out(args: &Args, session: &Session<'_>, cancel: &Cancel) -> Result<Copied, Failure> {
    let place = session.place(&args.from)?;
    let mut volume = session.open(&place.volume)?;
    let stat = volume.metadata().stat(volume.metadata().lookup(&place.path)?.number)?;
    if stat.kind == FileKind::Directory && !args.recursive {
        return Err(is_a_directory(args));
    }
    let (name, to) = (place.path.file_name(), PathBuf::from(&args.to));
    Ok(args.copy(session).out(&mut volume, &stat, name.as_ref(), &to, &mut ProgressBar::new(), cancel)?)
}

fn into(args: &Args, from_volume: bool, session: &Session<'_>, cancel: &Cancel) -> Result<Copied, Failure> {
    let to = session.place(&args.to)?;
    let from = from_volume.then(|| session.place(&args.from)).transpose()?;
    let mut volume = from.as_ref().map(|from| session.open(&from.volume)).transpose()?;
    let source = match (&from, &mut volume) {
        (Some(from), Some(volume)) => Source::Volume(volume, &from.path),
        _ => Source::Host(Path::new(&args.from)),
    };
    if source.kind()? == FileKind::Directory && !args.recursive {
        return Err(is_a_directory(args));
    }
    if from.as_ref().is_some_and(|from| from.volume == to.volume && is_below(&to.path, &from.path)) {
        let message = format!("cannot copy {} into itself", args.from.display());
        return Err(Failure::own(Error::io(message, Errno::EINVAL), -1));
    }
    let changing = session.changing(&to, cancel)?;
    let (copy, name) = (args.copy(session), name(&args.from, session));
    let copied = copy.into_volume(source, name, changing.target(), &to.path, &mut ProgressBar::new(), cancel);
    let closed = changing.close();
    let copied = copied?;
    closed?;
    Ok(copied)
}

/// That something is in the way the original finds out by itself.
fn refused(failure: Failure) -> Failure {
    match failure {
        Failure::Command { error, code, .. } if error.kind() == ErrorKind::Refused => {
            Failure::Command { error, code, own: true }
        }
        failure => failure,
    }
}

fn is_a_directory(args: &Args) -> Failure {
    let error = Error::io(format!("{} is a directory", args.from.display()), Errno::EISDIR);
    Failure::own(error.with_hint("`cp -r` copies directories"), -(Errno::EISDIR as i32))
}

/// What something is called where it is copied into a directory. To the original it is what comes after the last slash, even if
/// that is nothing.
fn name<'a>(path: &'a OsStr, session: &Session<'_>) -> &'a [u8] {
    let mut parts = path.as_bytes().rsplit(|byte| *byte == b'/');
    if session.compatible { parts.next() } else { parts.find(|part| !part.is_empty()) }.unwrap_or_default()
}

/// Whether a path is another or leads to something below it.
fn is_below(path: &VolumePath, other: &VolumePath) -> bool {
    let mut components = path.components();
    other.components().all(|component| components.next() == Some(component))
}

fn summary(Copied { files, directories, bytes }: &Copied) -> Vec<u8> {
    let count = |count: usize, one: &str, many: &str| format!("{count} {}", if count == 1 { one } else { many });
    let (files, directories) = (count(files.len(), "file", "files"), count(*directories, "directory", "directories"));
    format!("copied {files} and {directories}: {} of data\n", ByteSize::new(*bytes)).into_bytes()
}

/// A line for each file, as the original prints them.
fn each(copied: &Copied, args: &Args) -> Vec<u8> {
    // It names what is on a disk with the disk's name, which the paths in a volume are without.
    let disk = if args.dst_cluster.is_some() || is_disk_path(&args.to) {
        let bytes = args.to.as_bytes();
        let start = bytes.iter().position(|byte| *byte != b'/').unwrap_or(0);
        let end = bytes[start..].iter().position(|byte| *byte == b'/').map_or(bytes.len(), |end| start + end);
        &bytes[..end]
    } else {
        b""
    };
    let mut out = Vec::new();
    for file in &copied.files {
        out.extend(b"copy file from ");
        out.extend(args.from.as_bytes());
        out.extend(&file.from);
        out.extend(b" to ");
        out.extend(disk);
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
