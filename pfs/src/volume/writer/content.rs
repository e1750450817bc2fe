//! The content of files, read and written: many at once on one thread.

mod freshness;

use std::collections::{BTreeMap, VecDeque};
use std::ptr::{self, NonNull};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use blockdev::engine::{Completion, Config, Engine, Lent, Op, Span};
use blockdev::{Error, ErrorKind, Result};
use nix::errno::Errno;

use crate::format::Bda;

use super::super::device::{OpenFile, Witness};
use super::super::reader::Reader;
use super::flushes::Flushes;
use super::log::Ticket;
use super::pieces::{BUFFER, Piece, fill, read_pieces, write_pieces};
use super::plan::{Plan, Using};
use super::sectors::Hold;
use super::{Handle, Position, Writer};
use freshness::Freshness;

pub use freshness::Fresh;

/// I/Os in flight at once.
const QUEUE_DEPTH: u32 = 64;

/// How many buffers there are for what is not aligned.
const BUFFERS: u32 = 8;

/// Most bytes in one I/O.
const IO_MAX: u64 = 1 << 30;

/// Of so many I/Os that are with the device, one is waited for at least.
const TOGETHER: usize = 4;

/// How often to look at what ends without an I/O of this thread's: the journal, or somebody else's use of a file.
const LOOK: Duration = Duration::from_micros(200);

/// A thread's way to the content of files: it stays on the thread that asked for it.
///
/// Data go directly from and to the caller's memory, in one I/O as far as they are together on the device, where address,
/// length and position are multiples of a sector (4096 bytes). What is not goes through buffers, and the sectors that are
/// written in part are read before.
///
/// Whoever truncates or removes a file waits for everything that was started on it: not for what the same thread started and
/// does not [complete](Self::complete).
#[derive(Debug)]
pub struct Content<'a> {
    // Declared first, dropped first: it waits for what is in flight.
    engine: Option<Engine>,
    witness: Option<Arc<dyn Witness>>,
    side: Side<'a>,
    freshness: Freshness,
    flushes: Flushes,
    /// By the order in which they came.
    requests: BTreeMap<u64, Box<Request<'a>>>,
    next: u64,
    buffers: Vec<u32>,
    /// What is in flight: whose it is, and what. The index is the tag of the I/O.
    flights: Vec<Option<(u64, Flight)>>,
    /// What is done and not told yet.
    finished: Vec<(u64, Finished)>,
    done: Vec<Completion>,
    /// The requests there are, while they are gone through.
    numbers: Vec<u64>,
}

/// Whose files they are.
#[derive(Debug, Clone, Copy)]
enum Side<'a> {
    Writer(&'a Writer),
    Reader(&'a Reader),
}

impl<'a> Side<'a> {
    fn writer(self) -> Result<&'a Writer> {
        match self {
            Self::Writer(writer) => Ok(writer),
            Self::Reader(_) => Err(Error::io("the volume is open for reading only", Errno::EROFS)),
        }
    }

    /// Whether the journal has a transaction.
    fn has(self, ticket: Ticket) -> Result<bool> {
        self.writer()?.log.has(ticket)
    }
}

/// Reading or writing that was asked for.
#[derive(Debug)]
struct Request<'a> {
    tag: u64,
    file: Handle,
    what: What,
    memory: Lent,
    stage: Stage,
    /// What is to be moved yet.
    pieces: VecDeque<Piece>,
    in_flight: usize,
    using: Option<Using<'a>>,
    hold: Option<Hold<'a>>,
    /// How many bytes were there to be read, or where writing began.
    answer: u64,
    failed: Option<Error>,
}

#[derive(Debug)]
enum What {
    Read(u64),
    Write(Position, Plan),
}

/// How far it is.
#[derive(Debug, Clone, Copy)]
enum Stage {
    /// Somebody may be alone with the file.
    New,
    /// The journal must have a transaction first.
    Allocating(Ticket),
    /// Somebody may be writing the same sectors.
    Holding,
    Moving,
    /// A flush must be over that began after all was written.
    Flushing(u64),
    /// The journal must have what was written.
    Counting(Ticket),
    Done,
}

#[derive(Debug, Clone, Copy)]
enum Flight {
    Direct,
    Flush,
    /// The leader record.
    Look(u32),
    Read(Piece, u32),
    /// The sectors that a piece to be written is to keep something of.
    Before(Piece, u32),
    Write(u32),
}

/// Something that was asked for and is done.
#[derive(Debug)]
pub struct Finished {
    /// What it was asked for with.
    pub tag: u64,
    /// How many bytes were there to be read, fewer than asked for only at the end of the file; or where in the file what was
    /// written begins.
    pub result: Result<u64>,
}

impl Writer {
    /// This thread's way to the content of files.
    ///
    /// # Errors
    /// When the device cannot be opened once more.
    pub fn content(&self) -> Result<Content<'_>> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner).try_clone()?;
        Content::new(Side::Writer(self), file)
    }
}

impl Reader {
    /// This thread's way to the content of files.
    ///
    /// # Errors
    /// When the device cannot be opened once more.
    pub fn content(&self) -> Result<Content<'_>> {
        Content::new(Side::Reader(self), self.file()?)
    }
}

impl<'a> Content<'a> {
    fn new(side: Side<'a>, file: OpenFile) -> Result<Self> {
        let (engine, witness) = file.engine(&Config::new(QUEUE_DEPTH, BUFFERS, BUFFER))?;
        Ok(Self {
            engine: Some(engine),
            witness,
            side,
            freshness: Freshness::default(),
            flushes: Flushes::default(),
            requests: BTreeMap::new(),
            next: 0,
            buffers: (0..BUFFERS).collect(),
            flights: vec![None; QUEUE_DEPTH as usize],
            finished: Vec::new(),
            done: Vec::new(),
            numbers: Vec::new(),
        })
    }

    /// Whether something was asked of the device that is not done.
    #[must_use]
    pub fn awaits_device(&self) -> bool {
        self.engine.as_ref().is_some_and(|engine| engine.in_flight() > 0)
    }

    /// Fills `into` from byte `offset` of a file on, and waits for that. Returns how many bytes there were: fewer than asked
    /// for only at the end of the file. What was never written reads as zeroes.
    ///
    /// # Errors
    /// ENOENT once the file was removed, EISDIR for a directory; or when the device cannot be read. No more than 1 GiB can
    /// be read at once.
    pub fn read(&mut self, file: Handle, offset: u64, into: &mut [u8]) -> Result<usize> {
        let Some(memory) = lend(into.as_mut_ptr(), into.len())? else { return Ok(0) };
        let count = self.one(file, What::Read(offset), memory)?;
        #[allow(clippy::cast_possible_truncation, reason = "no more than there is room for")]
        Ok(count as usize)
    }

    /// Writes `bytes` into a file, and waits for that. Returns where they start.
    ///
    /// # Errors
    /// ENOSPC, and nothing is changed; ENOENT once the file was removed, EISDIR for a directory, EFBIG beyond 2^63 - 1 bytes;
    /// or when the device cannot be written. No more than 1 GiB can be written at once.
    pub fn write(&mut self, file: Handle, position: Position, bytes: &[u8]) -> Result<u64> {
        let Some(memory) = lend(bytes.as_ptr().cast_mut(), bytes.len())? else {
            let size = self.side.writer()?.file_map(file)?.size;
            return Ok(if let Position::At(start) = position { start } else { size });
        };
        self.one(file, What::Write(position, Plan::default()), memory)
    }

    fn one(&mut self, file: Handle, what: What, memory: Lent) -> Result<u64> {
        let number = self.start(0, file, what, memory);
        while self.requests.contains_key(&number) {
            if let Err(error) = self.work(None) {
                // The kernel may be using the caller's memory: dropping the engine waits for that.
                self.engine = None;
                return Err(error);
            }
        }
        let place = self.finished.iter().position(|(finished, _)| *finished == number);
        match place.map(|place| self.finished.swap_remove(place)) {
            Some((_, finished)) => finished.result,
            None => Err(broken()),
        }
    }

    /// Starts filling memory from byte `offset` of a file on; `tag` comes back once that is done.
    pub fn start_read(&mut self, tag: u64, file: Handle, offset: u64, into: Lent) {
        self.start(tag, file, What::Read(offset), into);
    }

    /// Starts writing memory into a file; `tag` comes back once that is done.
    pub fn start_write(&mut self, tag: u64, file: Handle, position: Position, from: Lent) {
        self.start(tag, file, What::Write(position, Plan::default()), from);
    }

    /// How much was started and is not [complete](Self::complete).
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.requests.len() + self.finished.len()
    }

    /// Goes on with everything that was started until at least `min` of it is done (no more than was started) or the time is
    /// up, and appends what is done to `out`. Nothing goes on otherwise.
    ///
    /// # Errors
    /// When the engine itself fails. What failed for another reason says so in its result.
    pub fn complete(&mut self, min: usize, timeout: Option<Duration>, out: &mut Vec<Finished>) -> Result<()> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let min = min.min(self.unfinished());
        loop {
            self.reap(0, None)?;
            self.advance_all();
            let late = deadline.is_some_and(|deadline| deadline <= Instant::now());
            if self.finished.len() >= min || late {
                out.extend(self.finished.drain(..).map(|(_, finished)| finished));
                return Ok(());
            }
            self.work(deadline)?;
        }
    }

    /// Goes on with everything that can go on, and appends what is done to `out`. Where nothing can, waits for the device, no
    /// longer than `wait`; not at all for anything else. Returns whether anything went on.
    ///
    /// Where much is with the device it waits for a part of that, so that it is not woken for each.
    ///
    /// # Errors
    /// When the engine itself fails.
    pub fn turn(&mut self, wait: Duration, out: &mut Vec<Finished>) -> Result<bool> {
        let mut went_on = self.advance_all();
        let in_flight = self.engine.as_ref().map_or(0, Engine::in_flight);
        let waits = !went_on && self.finished.is_empty() && !wait.is_zero() && in_flight > 0;
        if waits {
            self.reap(in_flight.div_ceil(TOGETHER), Some(wait))?;
        } else {
            self.reap(0, None)?;
        }
        went_on |= self.advance_all();
        went_on |= !self.finished.is_empty();
        out.extend(self.finished.drain(..).map(|(_, finished)| finished));
        Ok(went_on)
    }

    fn start(&mut self, tag: u64, file: Handle, what: What, memory: Lent) -> u64 {
        let number = self.next;
        self.next += 1;
        let request = Box::new(Request {
            tag,
            file,
            what,
            memory,
            stage: Stage::New,
            pieces: VecDeque::new(),
            in_flight: 0,
            using: None,
            hold: None,
            answer: 0,
            failed: None,
        });
        self.requests.insert(number, request);
        self.advance(number);
        number
    }

    /// Goes on with what can go on, waiting for something if nothing can.
    fn work(&mut self, deadline: Option<Instant>) -> Result<()> {
        if self.advance_all() {
            return Ok(());
        }
        let waits = |request: &Request<'_>| !matches!(request.stage, Stage::Moving | Stage::Flushing(_));
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let engine = self.engine.as_mut().ok_or_else(broken)?;
        if engine.in_flight() > 0 {
            let look = self.requests.values().any(|request| waits(request)).then_some(LOOK);
            let timeout = [look, left].into_iter().flatten().min();
            return self.reap(1, timeout);
        }
        // Only others can make this go on.
        let tickets = self.requests.values().filter_map(|request| match request.stage {
            Stage::Allocating(ticket) | Stage::Counting(ticket) => Some(ticket),
            _ => None,
        });
        let timeout = left.map_or(LOOK, |left| left.min(LOOK));
        match (tickets.min(), self.side) {
            (Some(ticket), Side::Writer(writer)) if self.requests.len() == 1 && deadline.is_none() => {
                // What comes of it is seen when the request goes on.
                let _ = writer.log.wait(ticket);
            }
            (Some(_), Side::Writer(writer)) => writer.log.wait_for_any(timeout),
            _ => std::thread::sleep(timeout),
        }
        Ok(())
    }

    /// Takes the I/Os that are complete, waiting for at least `min` of them.
    fn reap(&mut self, min: usize, timeout: Option<Duration>) -> Result<()> {
        let engine = self.engine.as_mut().ok_or_else(broken)?;
        let mut done = std::mem::take(&mut self.done);
        let outcome = engine.complete(min, timeout, &mut done);
        for completion in done.drain(..) {
            self.land(completion);
        }
        self.done = done;
        outcome.map(|_| ())
    }

    /// Returns whether anything went on.
    fn advance_all(&mut self) -> bool {
        let mut went_on = self.advance_look();
        let mut numbers = std::mem::take(&mut self.numbers);
        let may_go_on = self.requests.iter().filter(|(_, request)| !request.is_in_flight());
        numbers.extend(may_go_on.map(|(number, _)| *number));
        for number in numbers.drain(..) {
            went_on |= self.advance(number);
        }
        self.numbers = numbers;
        // After all of them: who has written everything by now shares it.
        self.flush() || went_on
    }

    fn advance(&mut self, number: u64) -> bool {
        let Some(mut request) = self.requests.remove(&number) else { return false };
        let mut went_on = false;
        loop {
            match self.step(number, &mut request) {
                Ok(true) => went_on = true,
                Ok(false) => break,
                Err(error) => {
                    request.fail(error);
                    went_on = true;
                }
            }
        }
        if matches!(request.stage, Stage::Done) {
            let Request { tag, answer, failed, .. } = *request;
            self.finished.push((number, Finished { tag, result: failed.map_or(Ok(answer), Err) }));
        } else {
            self.requests.insert(number, request);
        }
        went_on
    }

    /// Takes a request as far as its next stage, if it can get there now.
    fn step(&mut self, number: u64, request: &mut Request<'a>) -> Result<bool> {
        let len = u64::from(request.memory.len());
        request.stage = match request.stage {
            Stage::New => match &mut request.what {
                What::Read(offset) => {
                    let segments = match self.side {
                        Side::Writer(writer) => {
                            let Some((segments, using)) = writer.try_reading(request.file, *offset, len)? else {
                                return Ok(false);
                            };
                            request.using = Some(using);
                            segments
                        }
                        Side::Reader(reader) => reader.segments(request.file, *offset, len)?,
                    };
                    request.answer = segments.iter().map(|segment| segment.len()).sum();
                    request.pieces = read_pieces(&segments, request.memory);
                    Stage::Moving
                }
                What::Write(position, plan) => {
                    let Some(writing) = self.side.writer()?.try_writing(request.file, *position, len)? else {
                        return Ok(false);
                    };
                    *plan = writing.plan;
                    request.using = Some(writing.using);
                    request.answer = writing.start;
                    Stage::Allocating(writing.after)
                }
            },
            Stage::Allocating(ticket) if self.side.has(ticket)? => Stage::Holding,
            Stage::Holding => {
                let What::Write(_, plan) = &request.what else { return Err(broken()) };
                let Some(hold) = self.side.writer()?.sectors.try_hold(plan.parts()) else { return Ok(false) };
                request.hold = Some(hold);
                request.pieces = write_pieces(&plan.runs, request.memory);
                Stage::Moving
            }
            Stage::Moving if request.pieces.is_empty() && request.in_flight == 0 => {
                request.hold = None;
                match &request.what {
                    _ if request.failed.is_some() => Stage::Done,
                    What::Read(_) => Stage::Done,
                    What::Write(..) if self.side.writer()?.durable => Stage::Flushing(self.flushes.next()),
                    What::Write(..) => self.finish(request)?,
                }
            }
            Stage::Moving => return self.submit(number, request),
            Stage::Flushing(flush) if self.flushes.has(flush)? => self.finish(request)?,
            Stage::Counting(ticket) if self.side.has(ticket)? => Stage::Done,
            Stage::Allocating(_) | Stage::Flushing(_) | Stage::Counting(_) | Stage::Done => return Ok(false),
        };
        if matches!(request.stage, Stage::Done) {
            request.using = None;
        }
        Ok(true)
    }

    fn finish(&self, request: &Request<'a>) -> Result<Stage> {
        let What::Write(_, plan) = &request.what else { return Err(broken()) };
        let end = request.answer + u64::from(request.memory.len());
        Ok(Stage::Counting(self.side.writer()?.finish_writing(request.file, plan, end)?))
    }

    /// Begins a flush if somebody waits for one. Returns whether it did.
    fn flush(&mut self) -> bool {
        let Some(engine) = self.engine.as_mut().filter(|engine| engine.room() > 0) else { return false };
        let Some(place) = self.flights.iter().position(Option::is_none).filter(|_| self.flushes.is_due()) else {
            return false;
        };
        if let Some(witness) = &self.witness {
            witness.flush();
        }
        self.flushes.begin();
        match engine.submit(place as u64, Op::Fdatasync { file: 0 }) {
            Ok(()) => self.flights[place] = Some((u64::MAX, Flight::Flush)),
            Err(error) => self.flushes.end(Err(error)),
        }
        true
    }

    /// Submits pieces as long as there is room. Returns false: what becomes of them is seen later.
    fn submit(&mut self, number: u64, request: &mut Request<'a>) -> Result<bool> {
        while let Some(piece) = request.pieces.front().copied() {
            let engine = self.engine.as_mut().ok_or_else(broken)?;
            if engine.room() == 0 || (!matches!(piece, Piece::Direct { .. }) && self.buffers.is_empty()) {
                break;
            }
            request.pieces.pop_front();
            match piece {
                Piece::Direct { at, from, len } => {
                    let memory = request.memory.part(from, len);
                    let op = match request.what {
                        What::Read(_) => Op::ReadLent { file: 0, offset: at, memory },
                        What::Write(..) => {
                            if let Some(witness) = &self.witness {
                                // SAFETY: who lent the memory promised that it is there, and that nobody writes it.
                                let bytes =
                                    unsafe { std::slice::from_raw_parts(memory.start().as_ptr(), len as usize) };
                                witness.write(Bda::new(at), bytes);
                            }
                            Op::WriteLent { file: 0, offset: at, memory }
                        }
                    };
                    self.fly(number, request, Flight::Direct, op)?;
                }
                Piece::Read { at, sectors, .. } | Piece::Write { at, sectors, read: true, .. } => {
                    let Some(buffer) = self.buffers.pop() else { break };
                    let flight = match piece {
                        Piece::Read { .. } => Flight::Read(piece, buffer),
                        _ => Flight::Before(piece, buffer),
                    };
                    let op = Op::Read { file: 0, offset: at, span: Span::whole(buffer, sectors) };
                    self.fly(number, request, flight, op)?;
                }
                Piece::Write { .. } => {
                    let Some(buffer) = self.buffers.pop() else { break };
                    self.write_out(number, request, piece, buffer)?;
                }
            }
        }
        Ok(false)
    }

    /// Writes a piece's sectors out of a buffer, in which what is to stay of them stands.
    fn write_out(&mut self, number: u64, request: &mut Request<'a>, piece: Piece, buffer: u32) -> Result<()> {
        let Piece::Write { at, sectors, read, run, from } = piece else { return Err(broken()) };
        let engine = self.engine.as_mut().ok_or_else(broken)?;
        let bytes = &mut engine.buffer_mut(buffer)[..sectors as usize];
        if !read {
            bytes.fill(0);
        }
        fill(bytes, at, run, request.memory, from);
        if let Some(witness) = &self.witness {
            witness.write(Bda::new(at), bytes);
        }
        let op = Op::Write { file: 0, offset: at, span: Span::whole(buffer, sectors) };
        self.fly(number, request, Flight::Write(buffer), op)
    }

    fn fly(&mut self, number: u64, request: &mut Request<'a>, flight: Flight, op: Op) -> Result<()> {
        let engine = self.engine.as_mut().ok_or_else(broken)?;
        // The engine has as many places.
        let place = self.flights.iter().position(Option::is_none).ok_or_else(broken)?;
        engine.submit(place as u64, op)?;
        self.flights[place] = Some((number, flight));
        request.in_flight += 1;
        Ok(())
    }

    /// Takes an I/O that is complete.
    fn land(&mut self, completion: Completion) {
        #[allow(clippy::cast_possible_truncation, reason = "tags are indices")]
        let Some((number, flight)) = self.flights.get_mut(completion.tag as usize).and_then(Option::take) else {
            return;
        };
        if let Flight::Look(buffer) = flight {
            return self.land_look(buffer, completion.result);
        }
        if let Flight::Flush = flight {
            return self.flushes.end(completion.result);
        }
        let Some(mut request) = self.requests.remove(&number) else { return };
        request.in_flight -= 1;
        let mut outcome = completion.result;
        let buffer = match flight {
            Flight::Direct => None,
            Flight::Before(piece, buffer) if outcome.is_ok() && request.failed.is_none() => {
                outcome = self.write_out(number, &mut request, piece, buffer);
                outcome.is_err().then_some(buffer)
            }
            Flight::Read(piece, buffer) => {
                if let (Ok(()), Piece::Read { skip, from, len, .. }, Some(engine)) = (&outcome, piece, &self.engine) {
                    let bytes = &engine.buffer(buffer)[skip as usize..][..len as usize];
                    let into = request.memory.part(from, len).start();
                    // SAFETY: who lent the memory promised that it is there for this alone.
                    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), into.as_ptr(), bytes.len()) };
                }
                Some(buffer)
            }
            Flight::Before(_, buffer) | Flight::Write(buffer) | Flight::Look(buffer) => Some(buffer),
            Flight::Flush => None,
        };
        self.buffers.extend(buffer);
        if let Err(error) = outcome {
            request.fail(error);
        }
        self.requests.insert(number, request);
    }
}

impl Request<'_> {
    /// Whether all of it that there is to do is with the device.
    fn is_in_flight(&self) -> bool {
        matches!(self.stage, Stage::Moving) && self.pieces.is_empty() && self.in_flight > 0
    }

    /// Lets it end with an error, once nothing of it is in flight.
    fn fail(&mut self, error: Error) {
        self.failed.get_or_insert(error);
        self.pieces.clear();
        self.stage = Stage::Moving;
    }
}

/// Something that cannot be, said instead of a panic.
fn broken() -> Error {
    Error::new(ErrorKind::Io, "the engine failed before")
}

/// The caller's memory, if it is any.
fn lend(start: *mut u8, len: usize) -> Result<Option<Lent>> {
    let Some(len) = u32::try_from(len).ok().filter(|len| u64::from(*len) <= IO_MAX) else {
        return Err(Error::io(format!("cannot move {len} bytes at once"), Errno::EINVAL));
    };
    // SAFETY: the callers wait for what they started on the memory they borrow.
    Ok(NonNull::new(start).filter(|_| len > 0).map(|start| unsafe { Lent::new(start, len) }))
}
