//! Record: every change of the disk and every flush in a file, so that the disk can be had again as it was at any moment.
//!
//! The file is a header of 32 bytes and then records, each with a header of 48 bytes, its data after it. All numbers are
//! little-endian. Records stand in the order in which their operations were done; of two that overlapped while both were under
//! way either may have come first, on the disk too.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use serde::Serialize;

use crate::emulate::mailbox::lock;
use crate::emulate::request::{Operation, Request};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::units::{ByteOffset, ByteRange, ByteSize};

const MAGIC: [u8; 8] = *b"ODRECORD";
const VERSION: u32 = 1;
const FILE_HEADER: usize = 32;
const HEADER: usize = 48;
/// How much is written at once, in bytes.
const BUFFER: usize = 1 << 20;
/// The longest data of a record: that of the longest request.
const DATA_MAX: u64 = 64 << 20;

/// One record, without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Its number, from 1.
    pub number: u64,
    /// When it was done, in nanoseconds from when recording began.
    pub at_ns: u64,
    /// What it was. Only writes have data.
    pub operation: Operation,
    /// Which host did it.
    pub host: u8,
    /// Whether its answer waited until it was durable.
    pub fua: bool,
    /// Whether zeroes were to be allocated.
    pub allocate: bool,
    /// What it was about; nothing for a flush.
    pub range: ByteRange,
}

impl Entry {
    fn encode(&self, data: &[u8]) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0..8].copy_from_slice(&self.number.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.at_ns.to_le_bytes());
        bytes[16] = self.operation as u8;
        bytes[17] = self.host;
        bytes[18] = u8::from(self.fua) | u8::from(self.allocate) << 1;
        bytes[20..28].copy_from_slice(&self.range.start.bytes().to_le_bytes());
        bytes[28..36].copy_from_slice(&self.range.len.bytes().to_le_bytes());
        bytes[36..40].copy_from_slice(&crc32c::crc32c(data).to_le_bytes());
        let sum = crc32c::crc32c(&bytes[..44]);
        bytes[44..48].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// The record, and the checksum of its data.
    fn decode(bytes: &[u8; HEADER]) -> Option<(Self, u32)> {
        let u64_at = |at: usize| bytes[at..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        let u32_at = |at: usize| bytes[at..].first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        (u32_at(44)? == crc32c::crc32c(&bytes[..44])).then_some(())?;
        let range = ByteRange::new(ByteOffset::new(u64_at(20)?), ByteSize::new(u64_at(28)?)).ok()?;
        let entry = Self {
            number: u64_at(0)?,
            at_ns: u64_at(8)?,
            operation: *Operation::ALL.get(usize::from(bytes[16]))?,
            host: bytes[17],
            fua: bytes[18] & 1 != 0,
            allocate: bytes[18] & 2 != 0,
            range,
        };
        Some((entry, u32_at(36)?))
    }

    /// How many bytes of data it has.
    fn data_len(&self) -> u64 {
        if self.operation == Operation::Write { self.range.len.bytes() } else { 0 }
    }
}

/// Writes records.
#[derive(Debug)]
pub(in super::super) struct Recorder {
    path: PathBuf,
    began: Instant,
    tape: Mutex<Tape>,
}

#[derive(Debug)]
struct Tape {
    file: BufWriter<File>,
    records: u64,
}

impl Recorder {
    /// Records to a new file at `path`, of a disk of `size`.
    pub(in super::super) fn create(path: &Path, size: ByteSize) -> Result<Self> {
        let what = || format!("cannot record to {}", path.display());
        let file = OpenOptions::new().write(true).create_new(true).open(path).context(what)?;
        let mut file = BufWriter::with_capacity(BUFFER, file);
        let mut header = [0; FILE_HEADER];
        header[..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[16..24].copy_from_slice(&size.bytes().to_le_bytes());
        file.write_all(&header).and_then(|()| file.flush()).context(what)?;
        Ok(Self { path: path.to_owned(), began: Instant::now(), tape: Mutex::new(Tape { file, records: 0 }) })
    }

    /// How many records there are.
    pub(in super::super) fn records(&self) -> u64 {
        lock(&self.tape).records
    }

    /// Adds what was done.
    pub(in super::super) fn add(&self, host: u8, request: &Request, data: &[u8]) -> io::Result<()> {
        let operation = request.operation();
        if operation == Operation::Read {
            return Ok(());
        }
        let at_ns = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let allocate = matches!(request, Request::WriteZeroes { allocate: true, .. });
        let range = request.range().unwrap_or(ByteRange::from_start(ByteSize::ZERO));
        let mut tape = lock(&self.tape);
        let entry = Entry { number: tape.records + 1, at_ns, operation, host, fua: request.fua(), allocate, range };
        tape.file.write_all(&entry.encode(data))?;
        tape.file.write_all(data)?;
        tape.records += 1;
        // What hosts rely on is on the tape, too, whatever becomes of this process.
        if operation == Operation::Flush || entry.fua { tape.file.flush() } else { Ok(()) }
    }

    /// Lets others see what was recorded.
    pub(in super::super) fn flush(&self) -> Result<()> {
        lock(&self.tape).file.flush().context(|| format!("cannot record to {}", self.path.display()))
    }
}

/// Reads records.
#[derive(Debug)]
pub struct Recording {
    path: PathBuf,
    file: BufReader<File>,
    size: ByteSize,
    last: u64,
}

impl Recording {
    /// Opens the recording at `path`.
    ///
    /// # Errors
    /// When it is not there, or is none.
    pub fn open(path: &Path) -> Result<Self> {
        let what = || format!("cannot read the recording {}", path.display());
        let mut file = BufReader::with_capacity(BUFFER, File::open(path).context(what)?);
        let mut header = [0; FILE_HEADER];
        file.read_exact(&mut header).context(what)?;
        let version = header[8..].first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        if header[..8] != MAGIC || version != Some(VERSION) {
            return Err(Error::invalid(format!("{} is no recording of a disk", path.display())));
        }
        let size = header[16..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        Ok(Self { path: path.to_owned(), file, size: ByteSize::new(size), last: 0 })
    }

    /// How large the disk is.
    #[must_use]
    pub fn size(&self) -> ByteSize {
        self.size
    }

    /// The next record, with its data in `data`; nothing at the end. A record that was cut short, as when the disk's server
    /// was killed, is the end.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged.
    pub fn next(&mut self, data: &mut Vec<u8>) -> Result<Option<Entry>> {
        let what = || format!("cannot read the recording {}", self.path.display());
        let mut header = [0; HEADER];
        match self.file.read_exact(&mut header) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            outcome => outcome.context(what)?,
        }
        let damaged = |last: u64| {
            Error::new(ErrorKind::VerifyFailed, format!("{} is damaged after record {last}", self.path.display()))
        };
        let Some((entry, sum)) = Entry::decode(&header) else { return Err(damaged(self.last)) };
        let inside = entry.range.end().bytes() <= self.size.bytes() && entry.data_len() <= DATA_MAX;
        if entry.number != self.last + 1 || !inside {
            return Err(damaged(self.last));
        }
        data.clear();
        data.resize(usize::try_from(entry.data_len()).unwrap_or(0), 0);
        match self.file.read_exact(data) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            outcome => outcome.context(what)?,
        }
        if crc32c::crc32c(data) != sum {
            return Err(damaged(self.last));
        }
        self.last = entry.number;
        Ok(Some(entry))
    }

    /// Does to `image`, which is what the disk was when recording began, what was done up to record `until`, or to the end.
    /// Returns the number of the last record that was done.
    ///
    /// # Errors
    /// When the recording cannot be read, or the image not be written.
    pub fn replay(&mut self, image: &File, until: Option<u64>) -> Result<u64> {
        static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
        let mut data = Vec::new();
        let mut done = 0;
        while until.is_none_or(|until| self.last < until)
            && let Some(entry) = self.next(&mut data)?
        {
            let what = || format!("cannot replay record {}", entry.number);
            match entry.operation {
                Operation::Write => image.write_all_at(&data, entry.range.start.bytes()).context(what)?,
                Operation::Trim | Operation::WriteZeroes => {
                    for piece in entry.range.pieces(ByteSize::new(ZEROES.len() as u64)) {
                        let len = piece.len.to_usize()?;
                        image.write_all_at(&ZEROES[..len], piece.start.bytes()).context(what)?;
                    }
                }
                Operation::Read | Operation::Flush => {}
            }
            done = entry.number;
        }
        Ok(done)
    }
}
