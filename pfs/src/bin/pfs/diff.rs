//! `pfs diff`: how two volumes differ.

use std::ffi::OsString;

use blockdev::{Cancel, Error, ErrorKind};
use pfs::diff::{Diff, Difference};

use crate::session::{Failure, Session};

/// Show how two volumes differ.
///
/// What counts is what is called how, and what is in it; not where on the disk it lies. Ends with 5 when they differ.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Compare when files changed, too.
    #[arg(long)]
    times: bool,

    /// Compare every object of the metadata, too: where names and blocks lie.
    #[arg(long)]
    objects: bool,

    /// The first volume.
    #[arg(value_name = "VOLUME")]
    a: OsString,

    /// The second.
    #[arg(value_name = "VOLUME")]
    b: OsString,
}

pub(crate) fn run(args: &Args, session: &Session<'_>) -> Result<(), Failure> {
    let cancel = Cancel::on_signals()?;
    let (one, other) = (session.volume(&args.a)?, session.volume(&args.b)?);
    let (mut a, mut b) = (session.open(&one)?, session.open(&other)?);
    let found = Diff { times: args.times, objects: args.objects }.compare(&mut a, &mut b, &cancel)?;
    session.print(&found, |found| {
        let line = |Difference { what, field, a, b }: &Difference| format!("{what}: {field}: {a} | {b}\n");
        found.iter().map(line).collect::<String>().into_bytes()
    })?;
    if found.is_empty() {
        return Ok(());
    }
    let s = if found.len() == 1 { "" } else { "s" };
    let message = format!("{} and {} differ in {} respect{s}", one.display(), other.display(), found.len());
    Err(Error::new(ErrorKind::VerifyFailed, message).into())
}
