//! Whether everything in a volume is as it should be.
//!
//! Reading a volume stops at the first thing that is wrong; this goes on and names them all. It writes nothing and takes
//! no lock, unless it is asked to [repair].

mod repair;
mod structure;

use std::error::Error as _;

use blockdev::{Error, ErrorKind, Result};
use serde::Serialize;

use crate::format::{
    Bda, BlktagNo, Checksum, ChunkHeader, Damage, DirentryNo, InodeNo, LEADER_AT, LeaderRecord, Number, check_object,
};
use crate::volume::load::{
    ATTEMPTS, leader_in_place, read_first_header, read_headers, read_leader, read_leader_bytes, read_sets,
};
use crate::volume::{Device, Journal, Metadata};

pub use repair::{Repaired, repair};

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It may be meant so, but a person should know.
    Note,
    /// It cannot be right.
    Damage,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is, and where.
    #[serde(flatten)]
    pub what: Damage,
}

/// How many objects of one kind there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Used {
    /// How many are used.
    pub used: u64,
    /// How many there are.
    pub total: u64,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether everything was looked at. Without a header, a leader record and a journal that can be read, nothing can be
    /// said of the state that they lead to.
    pub complete: bool,
    /// What is not as it should be, in the order of the device.
    pub findings: Vec<Finding>,
    /// How many chunks there are.
    pub chunks: u32,
    /// How many transactions the journal holds.
    pub transactions: u64,
    /// Blocks.
    pub blocks: Used,
    /// Names and further pieces of names.
    pub direntries: Used,
    /// Files and directories.
    pub inodes: Used,
}

impl Report {
    /// How many findings are damage.
    #[must_use]
    pub fn damages(&self) -> usize {
        self.findings.iter().filter(|finding| finding.severity == Severity::Damage).count()
    }

    fn damage(&mut self, what: Damage) {
        self.findings.push(Finding { severity: Severity::Damage, what });
    }

    fn note(&mut self, what: Damage) {
        self.findings.push(Finding { severity: Severity::Note, what });
    }

    /// Says that `count` structures, the first of which is this, have no checksum.
    fn unchecked(&mut self, structure: String, at: Bda, field: &'static str, count: usize) {
        let more = if count > 1 { format!(", nor have {} more of its kind", count - 1) } else { String::new() };
        self.note(Damage::new(structure, at, field, format!("it has none{more}, as if older than checksums")));
    }
}

/// Checks the volume on a device. If somebody writes it meanwhile and something seems wrong, it is looked at again.
///
/// # Errors
/// When the device cannot be read, or holds nothing that looks like a volume known here.
pub fn check(device: &mut Device) -> Result<Report> {
    for _ in 1..ATTEMPTS {
        let before = read_leader_bytes(device)?;
        let report = check_once(device)?;
        if report.damages() == 0 || before == read_leader_bytes(device)? {
            return Ok(report);
        }
    }
    check_once(device)
}

fn check_once(device: &mut Device) -> Result<Report> {
    let mut report = Report::default();
    match gather(device, &mut report) {
        Ok(metadata) => {
            structure::check(&metadata, &mut report);
            report.complete = true;
        }
        Err(error) => {
            let damage = damage_in(&error).cloned().ok_or(error)?;
            report.damage(damage);
        }
    }
    report.findings.sort_by_key(|finding| finding.what.at());
    Ok(report)
}

/// The damage that an error speaks of, if it is damage.
fn damage_in(error: &Error) -> Option<&Damage> {
    if error.kind() != ErrorKind::VerifyFailed {
        return None;
    }
    error.source()?.downcast_ref()
}

/// Reads the metadata and brings them up to date. What is wrong on the way there becomes a finding where it is possible to
/// go on, and an error where it is not.
fn gather(device: &mut Device, report: &mut Report) -> Result<Metadata> {
    let first = read_first_header(device)?;
    report.chunks = first.chunks.get();
    let headers = read_headers(device, first.chunks)?;
    let headers = headers.into_iter().map(|(id, header)| {
        header.unwrap_or_else(|damage| {
            report.damage(damage);
            ChunkHeader { id, ..first.clone() }
        })
    });
    let headers = headers.collect();
    // Before the sectors: what is trimmed meanwhile is replayed once more, which does no harm.
    let leader = read_leader(device)?;
    hosts(&leader, report);
    let mut metadata = read_sets(device, headers)?;
    for header in metadata.headers() {
        let structure = format!("header of chunk {}", header.id);
        if header.chunks != first.chunks {
            // Growing writes the header of chunk 0 last: a crash leaves the others ahead.
            let problem = format!("{}, but chunk 0 says {}", header.chunks, first.chunks);
            report.note(Damage::new(&structure, header.id.start(), "ck_nchunk", problem));
        }
        if header.checksum == Checksum::Absent {
            report.unchecked(structure, header.id.start(), "ck_checksum", 1);
        }
    }
    if let Err(damage) = leader_in_place(&metadata) {
        report.damage(damage);
    }
    let before = wrong_checksums(&metadata);
    let journal = Journal::find(&metadata, &leader)?;
    report.transactions = leader.head.txid.raw() - leader.tail.txid.raw();
    journal.replay(device, (leader.tail, leader.tail_lsn()), &leader, &mut metadata)?;
    let after = wrong_checksums(&metadata);
    for damage in before.into_iter().filter(|damage| !after.contains(damage)) {
        let problem = format!("{}; the journal holds a good copy", damage.problem());
        report.note(Damage::new(damage.structure(), damage.at(), damage.field(), problem));
    }
    Ok(metadata)
}

fn hosts(leader: &LeaderRecord, report: &mut Report) {
    if leader.hosts == 0 || leader.hosts > leader.hosts_max {
        let problem = format!("{} hosts, of at most {}", leader.hosts, leader.hosts_max);
        report.note(Damage::new("leader record", LEADER_AT, "num_hosts", problem));
    }
}

/// The objects whose checksums are wrong.
fn wrong_checksums(metadata: &Metadata) -> Vec<Damage> {
    fn of<N: Number>(metadata: &Metadata) -> impl Iterator<Item = Damage> {
        metadata
            .numbers::<N>()
            .filter_map(|number| metadata.bytes(number).and_then(|bytes| check_object(bytes, number)).err())
    }
    of::<BlktagNo>(metadata).chain(of::<DirentryNo>(metadata)).chain(of::<InodeNo>(metadata)).collect()
}
