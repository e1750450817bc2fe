//! `pfs check`: whether everything in a volume is as it should be.

use std::ffi::OsString;

use blockdev::{Cancel, Error, ErrorKind, ui};
use pfs::check::{self, Repaired, Report, Severity};

use crate::session::{Failure, Session};

/// Check whether everything in a volume is as it should be.
///
/// Looks at every header, at the leader record, the journal, at every object and how they hang together, and names all
/// that is wrong with its address. Without --repair it writes nothing, and takes no lock: somebody may be writing the volume.
///
/// Ends with 5 when the volume is damaged. A note is no damage: what a crash left and the next mount clears up, or what may
/// be meant so.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Mend first what can be mended without guessing: headers of chunks after the first; what the journal has a good copy of;
    /// what was removed, but a crash kept from being freed.
    #[arg(long)]
    repair: bool,

    /// The volume.
    #[arg(value_name = "VOLUME")]
    volume: OsString,
}

pub(crate) fn run(args: &Args, session: &Session<'_>) -> Result<(), Failure> {
    let path = session.volume(&args.volume)?;
    if args.repair {
        let lease = session.lease();
        let repaired = check::repair(&path, &lease, &Cancel::on_signals()?)?;
        ui::notice(mended(&repaired).trim_end());
    }
    let report = check::check(&mut session.device(&path)?)?;
    session.print(&report, |report| text(report).into_bytes())?;
    let path = path.display();
    let why = match (report.complete, report.damages()) {
        (true, 0) => return Ok(()),
        (true, 1) => format!("{path} is damaged in one place"),
        (true, count) => format!("{path} is damaged in {count} places"),
        (false, _) => format!("{path} is damaged, and could not be checked beyond that"),
    };
    Err(Error::new(ErrorKind::VerifyFailed, why).into())
}

fn mended(repaired: &Repaired) -> String {
    let mut out = String::new();
    for id in &repaired.headers {
        out.push_str(&format!("mended: header of chunk {id}\n"));
    }
    for inode in &repaired.freed {
        out.push_str(&format!("mended: inode {inode}, which was removed, is freed\n"));
    }
    if repaired.rewritten > 0 {
        out.push_str(&format!("mended: {} objects, from the journal\n", repaired.rewritten));
    }
    if repaired.damage_left {
        out.push_str("what is left cannot be mended without guessing\n");
    } else if out.is_empty() {
        out.push_str("there was nothing to mend\n");
    }
    out
}

fn text(report: &Report) -> String {
    let mut out = String::new();
    for finding in &report.findings {
        let severity = match finding.severity {
            Severity::Note => "note",
            Severity::Damage => "damage",
        };
        out.push_str(&format!("{severity}: {}\n", finding.what));
    }
    if report.complete {
        let Report { chunks, transactions, blocks, direntries, inodes, .. } = report;
        let s = if *chunks == 1 { "" } else { "s" };
        out.push_str(&format!(
            "checked {chunks} chunk{s}: {} of {} blocks, {} of {} direntries, {} of {} inodes used; {transactions} \
             transactions in the journal\n",
            blocks.used, blocks.total, direntries.used, direntries.total, inodes.used, inodes.total
        ));
    }
    out
}
