//! Mending what can be mended without guessing.

use std::path::Path;

use blockdev::engine::Choice;
use blockdev::{Cancel, Result};
use serde::Serialize;

use super::{check, wrong_checksums};
use crate::format::{Checksum, ChunkHeader, ChunkId, Content, InodeNo, SECTOR_SIZE, Version};
use crate::volume::load::{read_first_header, read_headers};
use crate::volume::writer::{Options, Writer};
use crate::volume::{Device, Exclusive, LeaseOptions, Load, Metadata, Source, Volume};

/// What was mended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Repaired {
    /// The chunks whose headers were written anew: they were damaged, or said another number of chunks than the first. All that
    /// stands in them is known from there.
    pub headers: Vec<ChunkId>,
    /// The files that were removed before a crash, and are freed now.
    pub freed: Vec<InodeNo>,
    /// How many objects were damaged in the metadata sectors and whole in the journal, from where they were written back.
    pub rewritten: usize,
    /// Whether damage is left that cannot be mended without guessing. Nothing was changed then but headers.
    pub damage_left: bool,
}

/// Mends the volume on the file or device at `path`, as its only writer. What is left after it a [check](super::check) says.
///
/// # Errors
/// When there is no volume, or its first header or leader record is damaged, without which nothing is known of it; when somebody
/// else writes it; when it cannot be read or written.
pub fn repair(path: &Path, lease: &LeaseOptions, cancel: &Cancel) -> Result<Repaired> {
    let exclusive = Exclusive::take(path, lease, cancel)?;
    let mut repaired = Repaired::default();
    let mut device = Device::open_writable(path, Choice::Auto)?;
    repaired.headers = headers(&mut device)?;
    if check(&mut device)?.damages() > 0 {
        repaired.damage_left = true;
        return Ok(repaired);
    }
    let sectors = Volume::load(Device::open(path)?, Load { replay: false, verify: false })?;
    repaired.rewritten = wrong_checksums(sectors.metadata()).len();
    repaired.freed = orphans(Volume::load(Device::open(path)?, Load::default())?.metadata());
    if repaired.rewritten > 0 || !repaired.freed.is_empty() {
        // Opening it frees what has no name any more.
        let options = Options { durable: true, fence: Some(Box::new(exclusive)), ..Options::default() };
        let writer = Writer::on(device, options)?;
        if repaired.rewritten > 0 {
            writer.empty_journal()?;
        }
        writer.close()?;
    }
    Ok(repaired)
}

/// Writes the headers anew that are not what the first says that they must be.
fn headers(device: &mut Device) -> Result<Vec<ChunkId>> {
    let first = read_first_header(device)?;
    let mut wrong = Vec::new();
    for (id, found) in read_headers(device, first.chunks)? {
        let header = ChunkHeader { id, version: Version::OLDEST, chunks: first.chunks, checksum: Checksum::Present };
        if id != ChunkId::FIRST && found.as_ref().ok() != Some(&header) {
            wrong.push((id, header.write()));
        }
    }
    if !wrong.is_empty() {
        let sector = |(id, bytes): &(ChunkId, [u8; SECTOR_SIZE])| (id.start(), *bytes);
        let sectors: Vec<_> = wrong.iter().map(sector).collect();
        device.write_parts(sectors.iter().map(|(at, from)| Source { at: *at, from }))?;
        device.flush()?;
    }
    Ok(wrong.into_iter().map(|(id, _)| id).collect())
}

/// The files and directories without a name.
fn orphans(metadata: &Metadata) -> Vec<InodeNo> {
    let nameless = |number: &InodeNo| {
        metadata.inode(*number).is_ok_and(|inode| inode.name.is_none() && inode.content != Content::Free)
    };
    metadata.numbers::<InodeNo>().filter(nameless).collect()
}
