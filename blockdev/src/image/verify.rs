//! Looking at what became of an image: is every block written, is all of it zero, are its stamps whole.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::access::Access;
use super::grow::unfinished_grow;
use super::read::read_in_order;
use super::{Cost, Meter};
use crate::cancel::Cancel;
use crate::engine::{Choice, Kind};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::extents::{self, Summary};
use crate::stamp::{self, Scan, Tally};
use crate::ui::{Progress, path_as_text};
use crate::units::{ByteOffset, ByteRange, ByteSize};
use crate::zero;

/// The unit in which what is not zero is counted.
const BLOCK: usize = 4096;

/// How many places that are not zero are kept; all are counted.
const PLACES_KEPT: usize = 16;

/// What is to be looked at beside the extents.
#[derive(Debug, Clone, Copy, Default)]
pub struct Checks {
    /// That every byte is zero.
    pub zero: bool,
    /// That every sector is a whole stamp in its place, or zero.
    pub stamped: bool,
    /// Of which run the stamps are to be; of any, if not given.
    pub seed: Option<u64>,
}

/// Whether all is zero.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct ZeroCheck {
    /// How many 4 KiB blocks are not.
    pub blocks_not_zero: u64,
    /// The first byte of each that is not; the first few of them.
    pub first_offsets: Vec<ByteOffset>,
}

impl ZeroCheck {
    fn look(&mut self, start: ByteOffset, bytes: &[u8]) {
        if zero::is_zero(bytes) {
            return;
        }
        for (number, block) in (0u64..).zip(bytes.chunks(BLOCK)) {
            if let Some(at) = zero::first_nonzero(block) {
                self.blocks_not_zero += 1;
                if self.first_offsets.len() < PLACES_KEPT {
                    self.first_offsets.push(start + ByteSize::new(number * BLOCK as u64 + at as u64));
                }
            }
        }
    }
}

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct Verified {
    /// What was looked at.
    #[serde(serialize_with = "path_as_text")]
    pub path: PathBuf,
    /// How large it is.
    pub size: ByteSize,
    /// The states of its extents; a block device has none.
    pub extents: Option<Summary>,
    /// If it was being grown and that was cut short: what its size was before.
    pub unfinished_grow_from: Option<ByteSize>,
    /// Whether all is zero, if that was asked.
    pub zero: Option<ZeroCheck>,
    /// What its stamps say, if that was asked.
    pub stamps: Option<Tally>,
    /// What read it, if it was read.
    pub engine: Option<Kind>,
    /// What reading took.
    pub cost: Option<Cost>,
    /// What is wrong with it, in words.
    pub faults: Vec<String>,
    /// What could not be checked here.
    pub missing: Vec<String>,
    /// What a person should know about how it was read.
    pub notices: Vec<String>,
}

impl Verified {
    /// An error of kind [`VerifyFailed`](ErrorKind::VerifyFailed) if anything is wrong.
    ///
    /// # Errors
    /// If so.
    pub fn verdict(&self) -> Result<()> {
        if self.faults.is_empty() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::VerifyFailed, format!("{}: {}", self.path.display(), self.faults.join("; "))))
    }

    fn judge(&mut self) {
        if let Some(before) = self.unfinished_grow_from {
            self.faults.push(format!(
                "growing it from {before} is not finished (if nobody is at it: vdisk grow --size {} finishes it)",
                self.size.bytes()
            ));
        }
        if let Some(extents) = &self.extents
            && extents.not_on_disk() > ByteSize::ZERO
        {
            self.faults.push(format!("not every block is written ({extents})"));
        }
        if let Some(zero) = &self.zero
            && zero.blocks_not_zero > 0
        {
            let offsets: Vec<String> = zero.first_offsets.iter().map(ToString::to_string).collect();
            let more = if zero.blocks_not_zero > offsets.len() as u64 { ", ..." } else { "" };
            let blocks = zero.blocks_not_zero;
            self.faults.push(format!("{blocks} blocks of 4 KiB are not zero (at offset {}{more})", offsets.join(", ")));
        }
        if let Some(stamps) = &self.stamps
            && stamps.faults() > 0
        {
            let first: Vec<String> = stamps.first_faults.iter().take(3).map(ToString::to_string).collect();
            let Tally { torn, misdirected, corrupt, .. } = stamps;
            self.faults.push(format!(
                "{torn} torn, {misdirected} misdirected, {corrupt} corrupt sectors (first: {})",
                first.join("; ")
            ));
        }
    }
}

/// Looks at the file or device at `path`. What is wrong with it is in the [verdict](Verified::verdict).
///
/// # Errors
/// When it cannot be looked at or read, there is nothing to look at (a device without a check of its content), or `cancel`
/// was set.
pub fn verify(
    path: &Path,
    checks: &Checks,
    engine: Choice,
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<Verified> {
    let (file, size) = open(path)?;
    let is_device = file.metadata().is_ok_and(|metadata| metadata.file_type().is_block_device());
    if is_device && !checks.zero && !checks.stamped {
        return Err(Error::invalid(format!("{} is a device and has no extents to look at", path.display())).with_hint(
            "--zero or --stamped looks at its content; for a loop device, verify the file it is attached to",
        ));
    }
    let mut verified = Verified {
        path: path.to_owned(),
        size,
        extents: None,
        unfinished_grow_from: None,
        zero: None,
        stamps: None,
        engine: None,
        cost: None,
        faults: Vec::new(),
        missing: Vec::new(),
        notices: Vec::new(),
    };
    if !is_device {
        let extents = extents::summarize(&file, path)?;
        verified.missing.extend(extents.gap().map(str::to_owned));
        verified.extents = Some(extents);
        verified.unfinished_grow_from = unfinished_grow(&file)?;
    }
    if checks.zero || checks.stamped {
        read(file, checks, engine, &mut verified, progress, cancel)?;
    }
    verified.judge();
    Ok(verified)
}

fn open(path: &Path) -> Result<(File, ByteSize)> {
    let what = || format!("cannot open {}", path.display());
    // Looked at before it is opened: a pipe would keep us waiting for somebody at its other end.
    let kind = fs::metadata(path).context(what)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(Error::invalid(format!("{} is neither a file nor a block device", path.display())));
    }
    let mut file = File::open(path).context(what)?;
    let size = file.seek(SeekFrom::End(0)).context(|| format!("cannot find the size of {}", path.display()))?;
    Ok((file, ByteSize::new(size)))
}

fn read(
    file: File,
    checks: &Checks,
    engine: Choice,
    verified: &mut Verified,
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<()> {
    let path = verified.path.clone();
    let size = verified.size;
    if checks.stamped && !size.is_multiple_of(ByteSize::new(stamp::SECTOR as u64)) {
        return Err(Error::invalid(format!(
            "{} has {} bytes, no whole number of {}-byte sectors: it cannot be stamped",
            path.display(),
            size.bytes(),
            stamp::SECTOR
        )));
    }
    let file = Access::new(file, &path, false, &path)?;
    let mut zero = checks.zero.then(ZeroCheck::default);
    let mut scan = checks.stamped.then(|| Scan::new(checks.seed, ByteOffset::ZERO));
    let meter = Meter::start();
    let reading = read_in_order(&file, ByteRange::from_start(size), engine, progress, cancel, &mut |start, bytes| {
        if let Some(zero) = &mut zero {
            zero.look(start, bytes);
        }
        if let Some(scan) = &mut scan {
            scan.push(bytes);
        }
    })?;
    verified.cost = Some(meter.cost(size));
    verified.engine = Some(reading.engine);
    verified.notices.extend(reading.notices);
    verified.missing.extend(file.gap().map(str::to_owned));
    verified.zero = zero;
    verified.stamps = scan.map(Scan::finish);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_block_that_is_not_zero_is_counted_and_the_first_are_named(
            marks in prop::collection::btree_set(0usize..40 * BLOCK, 0..40),
            piece in 1usize..5,
        ) {
            let mut bytes = vec![0u8; 40 * BLOCK];
            for at in &marks {
                bytes[*at] = 1;
            }
            let mut found = ZeroCheck::default();
            let start = 1 << 30;
            for (number, piece_bytes) in bytes.chunks(piece * BLOCK).enumerate() {
                found.look(ByteOffset::new(start + (number * piece * BLOCK) as u64), piece_bytes);
            }
            let mut expected: Vec<u64> = Vec::new();
            let mut blocks = std::collections::BTreeSet::new();
            for at in marks {
                if blocks.insert(at / BLOCK) {
                    expected.push(start + at as u64);
                }
            }
            prop_assert_eq!(found.blocks_not_zero, expected.len() as u64);
            expected.truncate(PLACES_KEPT);
            prop_assert_eq!(found.first_offsets.iter().map(|at| at.bytes()).collect::<Vec<_>>(), expected);
        }
    }
}
