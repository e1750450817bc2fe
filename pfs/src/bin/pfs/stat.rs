//! `pfs stat`: what is known of one file or directory.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use pfs::volume::{FileKind, Stat};

use crate::session::{Failure, Session};
use crate::text;

/// Show what is known of a file or directory.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The file or directory.
    #[arg(value_name = "VOLUME:/PATH")]
    path: OsString,
}

pub(crate) fn run(args: &Args, session: &Session<'_>) -> Result<(), Failure> {
    let place = session.place(&args.path)?;
    let stat = session.reading(&place)?.stat(&place.path)?;
    let device = if session.compatible { disk_number(&place.volume) } else { 0 };
    session.print(&stat, |stat| text(stat, args.path.as_bytes(), device))
}

fn text(stat: &Stat, path: &[u8], device: u64) -> Vec<u8> {
    let kind = match stat.kind {
        FileKind::File => "  file: ",
        FileKind::Directory => "   dir: ",
    };
    let mut out = kind.as_bytes().to_vec();
    out.extend(path);
    out.extend(format!("\n  size: {:<15}\tblocks: {}\n", stat.size, stat.blocks).into_bytes());
    out.extend(format!("device: pbd-{device}\t\tinode: {} links: {}\n", stat.inode, stat.links).into_bytes());
    for (name, at) in [("access", stat.atime), ("modify", stat.mtime), ("change", stat.ctime)] {
        out.extend(format!("{name}: {at}, {}\n", text::time(at)).into_bytes());
    }
    out
}

/// The number that a disk's name begins with, if it does.
fn disk_number(device: &Path) -> u64 {
    let name = device.file_name().unwrap_or_default().as_bytes();
    let digits = name.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number: u64, digit| number.saturating_mul(10).saturating_add(u64::from(digit - b'0')))
}
