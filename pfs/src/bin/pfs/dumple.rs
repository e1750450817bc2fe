//! `pfs dumple`: the entries of the journal, field by field.

use std::ffi::OsString;

use blockdev::ui::{self, Output};
use pfs::format::{ENTRY_SIZE, EntryBytes, Kind, entry_fields, entry_subject};
use pfs::volume::{Load, Volume};

use crate::dumpfs::Fields;
use crate::original::number;
use crate::session::{Failure, Session};
use crate::text;

/// Bytes gathered before they are printed.
const FLUSH: usize = 64 << 10;

/// Show the entries of the journal, field by field.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Show all that is in the journal, also what does not count any more.
    #[arg(short)]
    all: bool,

    /// Entries of this transaction only.
    #[arg(short, long, value_name = "TRANSACTION", value_parser = number)]
    txid: Option<u64>,

    /// Entries of this blktag only.
    #[arg(short, long, value_name = "NUMBER", value_parser = number)]
    btno: Option<u64>,

    /// Entries of this direntry only.
    #[arg(short, long, value_name = "NUMBER", value_parser = number)]
    deno: Option<u64>,

    /// Entries of this inode only.
    #[arg(short, long = "inno", value_name = "NUMBER", value_parser = number)]
    ino: Option<u64>,

    /// The volume.
    #[arg(value_name = "VOLUME")]
    volume: OsString,
}

pub(crate) fn run(args: &Args, session: &Session<'_>) -> Result<(), Failure> {
    // A damaged journal is what somebody wants to look at: it is not replayed.
    let mut volume = session.open_with(&session.volume(&args.volume)?, Load { replay: false, verify: false })?;
    if session.output == Output::Json {
        let mut entries = Vec::new();
        visit(args, &mut volume, |bytes| {
            entries.push(Fields(entry_fields(bytes)));
            Ok(())
        })?;
        return Ok(ui::print_result(session.output, &entries, |_| String::new())?);
    }
    let mut out = Vec::new();
    let mut read = true;
    visit(args, &mut volume, |bytes| {
        text::fields(&entry_fields(bytes), 0, &mut out);
        if read && out.len() >= FLUSH {
            read = ui::print_bytes(&out)?;
            out.clear();
        }
        Ok(())
    })?;
    ui::print_bytes(&out)?;
    Ok(())
}

/// Visits the entries that are asked for.
fn visit(
    args: &Args,
    volume: &mut Volume,
    mut visit: impl FnMut(&EntryBytes) -> blockdev::Result<()>,
) -> blockdev::Result<()> {
    let (leader, journal) = (volume.leader().clone(), volume.journal().clone());
    let (from, count) = if args.all {
        // From the head once around, as the original: the oldest come first.
        (leader.head.offset, journal.size() / ENTRY_SIZE as u64)
    } else {
        (leader.tail.offset, leader.entries())
    };
    journal.visit(volume.device_mut(), from, count, |bytes, _| {
        if bytes.iter().any(|byte| *byte != 0) && args.wants(bytes) { visit(bytes) } else { Ok(()) }
    })
}

impl Args {
    fn wants(&self, bytes: &EntryBytes) -> bool {
        let subject = entry_subject(bytes);
        let objects = [(self.btno, Kind::Blktag), (self.deno, Kind::Direntry), (self.ino, Kind::Inode)];
        self.txid.is_none_or(|txid| txid == subject.txid)
            && objects.into_iter().all(|(number, kind)| {
                number.is_none_or(|number| subject.kind == Some(kind) && subject.number == number)
            })
    }
}
