//! Requests and replies of one client: as many in flight as it likes, up to a bound, on one thread.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::handshake::{Agreement, PAYLOAD_MAX};
use super::stream::Stream;
use super::wire::{self, Header, chunk, command, command_flag};
use crate::emulate::memory::{Budget, Chunk, Pool};
use crate::emulate::port::Port;
use crate::emulate::request::{Answer, Outcome, Request};
use crate::engine::Interest;
use crate::error::{Error, Result};
use crate::units::{ByteOffset, ByteRange, ByteSize};

/// How many requests of one client are taken before it has replies.
pub(super) const IN_FLIGHT_MAX: u32 = 128;

/// How much is received at once, in bytes; larger data goes where it belongs directly.
const INPUT: usize = 64 << 10;

/// How many pieces are sent at once.
const PIECES_MAX: usize = 64;

/// How many extents one reply has.
const EXTENTS_MAX: usize = 1024;

/// For how long at most to look for the next request again and again before the kernel is asked to wake us: waking takes
/// about as long, and the next request of a client that waits for each reply comes sooner.
const SPIN_MAX: Duration = Duration::from_micros(40);

/// How long a client may leave a request half sent, or replies lying about, while others wait for the memory.
const STALL_MAX: Duration = Duration::from_secs(10);

/// How often to look whether there is memory now.
const SHORT_OF_MEMORY: Duration = Duration::from_millis(2);

/// One client.
#[derive(Debug)]
pub(super) struct Transmission {
    // Dropped first: it waits for what is lent from `flights`.
    port: Port,
    stream: Stream,
    agreement: Agreement,
    pool: Pool,
    input: Input,
    /// A write whose data is still coming.
    receiving: Option<Receiving>,
    /// A request that waits for memory, or for others to be answered.
    waiting: Option<Header>,
    /// A write that is refused, whose data is still coming.
    skipping: Option<Skipping>,
    /// By tag: what is being done.
    flights: Vec<Option<Flight>>,
    free: Vec<u32>,
    output: Output,
    answers: Vec<Answer>,
    /// Whether the client has said, or shown, that no more will come.
    leaving: bool,
    spin: Duration,
    /// When something came or went last.
    moved: Instant,
}

/// A request on its way to the disk.
#[derive(Debug)]
struct Flight {
    header: Header,
    memory: Option<Chunk>,
}

#[derive(Debug)]
struct Receiving {
    header: Header,
    memory: Chunk,
    filled: usize,
}

#[derive(Debug, Clone, Copy)]
struct Skipping {
    header: Header,
    left: u32,
    errno: Errno,
}

/// What was received and not looked at yet.
#[derive(Debug)]
struct Input {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Input {
    fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Takes up to `max` bytes.
    fn take(&mut self, max: usize) -> &[u8] {
        let taken = max.min(self.end - self.start);
        self.start += taken;
        &self.bytes[self.start - taken..self.start]
    }
}

/// Replies on their way to the client.
#[derive(Debug, Default)]
struct Output {
    pieces: VecDeque<Piece>,
    /// How much of the first one is sent.
    sent: usize,
}

/// The first bytes of a reply, and the data that follows.
#[derive(Debug)]
struct Piece {
    head: Vec<u8>,
    data: Option<(Chunk, usize)>,
}

impl Piece {
    fn len(&self) -> usize {
        self.head.len() + self.data.as_ref().map_or(0, |(_, len)| *len)
    }
}

impl Transmission {
    pub(super) fn new(port: Port, stream: Stream, agreement: Agreement, budget: Arc<Budget>) -> Self {
        Self {
            port,
            stream,
            agreement,
            pool: Pool::new(budget),
            input: Input { bytes: vec![0; INPUT].into(), start: 0, end: 0 },
            receiving: None,
            waiting: None,
            skipping: None,
            flights: (0..IN_FLIGHT_MAX).map(|_| None).collect(),
            free: (0..IN_FLIGHT_MAX).rev().collect(),
            output: Output::default(),
            answers: Vec::new(),
            leaving: false,
            spin: Duration::ZERO,
            moved: Instant::now(),
        }
    }

    /// Serves until the client goes, and everything it asked for is done.
    ///
    /// # Errors
    /// When the connection breaks, the client breaks the protocol, or the engine fails.
    pub(super) fn run(mut self) -> Result<()> {
        loop {
            let mut moved = self.send()?;
            moved |= self.receive()?;
            self.port.poll(&mut self.answers)?;
            moved |= self.reply();
            if moved {
                self.moved = Instant::now();
            } else if self.leaving && self.port.pending() == 0 && self.output.pieces.is_empty() {
                return Ok(());
            } else {
                self.wait()?;
            }
        }
    }

    /// Whether another request may be read.
    fn is_open(&self) -> bool {
        !self.leaving && self.waiting.is_none() && !self.free.is_empty()
    }

    /// Waits until something can go on.
    fn wait(&mut self) -> Result<()> {
        let open = self.is_open() || self.receiving.is_some() || self.skipping.is_some();
        let blocked = !self.output.pieces.is_empty() || !self.stream.flush().map_err(broken)?;
        let began = Instant::now();
        if open && !blocked && self.port.pending() == 0 && self.spins()? {
            return Ok(());
        }
        let interest = match (open, blocked) {
            (true, true) => Some(Interest::Both),
            (true, false) => Some(Interest::Readable),
            (false, true) => Some(Interest::Writable),
            (false, false) => None,
        };
        let short = self.waiting.is_some() && !self.free.is_empty();
        let stalled = self.receiving.is_some() || blocked;
        let timeout = if short { Some(SHORT_OF_MEMORY) } else { stalled.then_some(STALL_MAX) };
        let watched = interest.map(|interest| (self.stream.socket().as_fd(), interest));
        self.port.wait(watched, timeout, &mut self.answers)?;
        self.reply();
        self.spin = if began.elapsed() < SPIN_MAX { SPIN_MAX } else { Duration::ZERO };
        if short {
            self.serve_waiting()?;
        }
        if stalled && self.pool.is_short() && self.moved.elapsed() >= STALL_MAX {
            return Err(Error::io(
                "the client stalls, and others need the memory",
                io::Error::from(io::ErrorKind::TimedOut),
            ));
        }
        Ok(())
    }

    /// Looks for a request for a while. Returns whether one came.
    fn spins(&mut self) -> Result<bool> {
        let began = Instant::now();
        while began.elapsed() < self.spin {
            if self.receive()? {
                self.moved = Instant::now();
                return Ok(true);
            }
            std::hint::spin_loop();
        }
        Ok(false)
    }

    /// Takes what has come from the client. Returns whether anything has.
    fn receive(&mut self) -> Result<bool> {
        let mut moved = false;
        if self.is_open() && !self.input.filled().is_empty() {
            // What came while there was no room for more.
            let before = self.input.start;
            self.take_in()?;
            moved = self.input.start > before;
        }
        while self.is_open() || self.receiving.is_some() || self.skipping.is_some() {
            let (room, got) = match self.receive_once() {
                Ok((_, 0)) => {
                    // What it did not send whole never happened.
                    (self.leaving, self.receiving, self.skipping) = (true, None, None);
                    return Ok(true);
                }
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(moved),
                Err(error) => return Err(broken(error)),
            };
            self.take_in()?;
            moved = true;
            if got < room {
                // That was all there was.
                break;
            }
        }
        Ok(moved)
    }

    /// Receives into the place of a write's data, where much of it is missing, and into the input otherwise. Returns how much
    /// there was room for, and how much came.
    fn receive_once(&mut self) -> io::Result<(usize, usize)> {
        if let Some(Receiving { header, memory, filled }) = &mut self.receiving
            && header.len as usize - *filled >= INPUT
        {
            let room = &mut memory.bytes()[*filled..header.len as usize];
            let got = self.stream.receive(room)?;
            *filled += got;
            return Ok((room.len(), got));
        }
        let input = &mut self.input;
        input.bytes.copy_within(input.start..input.end, 0);
        (input.start, input.end) = (0, input.end - input.start);
        let room = &mut input.bytes[input.end..];
        let got = self.stream.receive(room)?;
        input.end += got;
        Ok((room.len(), got))
    }

    /// Makes requests of what was received.
    fn take_in(&mut self) -> Result<()> {
        loop {
            if let Some(Skipping { header, left, errno }) = self.skipping.take() {
                let skipped = self.input.take(left as usize).len();
                // No more than `left`.
                let left = left - u32::try_from(skipped).unwrap_or(left);
                if left > 0 {
                    self.skipping = Some(Skipping { header, left, errno });
                    return Ok(());
                }
                self.refuse(&header, errno);
            } else if let Some(mut receiving) = self.receiving.take() {
                let len = receiving.header.len as usize;
                let came = self.input.take(len - receiving.filled);
                receiving.memory.bytes()[receiving.filled..][..came.len()].copy_from_slice(came);
                receiving.filled += came.len();
                if receiving.filled < len {
                    self.receiving = Some(receiving);
                    return Ok(());
                }
                self.fly(receiving.header, Some(receiving.memory));
            } else if self.is_open() {
                let Some(bytes) = self.input.filled().first_chunk() else { return Ok(()) };
                let Some(header) = Header::parse(bytes) else {
                    return Err(broken(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "its request has the wrong magic number",
                    )));
                };
                self.input.take(wire::REQUEST_LEN);
                self.request(header)?;
            } else {
                return Ok(());
            }
        }
    }

    fn serve_waiting(&mut self) -> Result<()> {
        if let Some(header) = self.waiting.take() {
            self.request(header)?;
            if self.waiting.is_none() {
                self.take_in()?;
            }
        }
        Ok(())
    }

    /// Begins what a request asks for. There is room for one more.
    fn request(&mut self, header: Header) -> Result<()> {
        match header.command {
            command::READ | command::WRITE => {
                let writes = header.command == command::WRITE;
                let refusal = self.refusal(&header);
                if let Some(errno) = refusal {
                    if writes && header.len > 0 {
                        self.skipping = Some(Skipping { header, left: header.len, errno });
                    } else {
                        self.refuse(&header, errno);
                    }
                    return Ok(());
                }
                match self.pool.take(header.len as usize) {
                    None => self.waiting = Some(header),
                    Some(memory) if writes => self.receiving = Some(Receiving { header, memory, filled: 0 }),
                    Some(memory) => self.fly(header, Some(memory)),
                }
            }
            command::DISC => self.leaving = true,
            command::FLUSH | command::TRIM | command::WRITE_ZEROES => match self.refusal(&header) {
                Some(errno) => self.refuse(&header, errno),
                None => self.fly(header, None),
            },
            command::BLOCK_STATUS if self.agreement.allocation => match self.refusal(&header) {
                Some(errno) => self.refuse(&header, errno),
                None => self.block_status(&header),
            },
            _ => self.refuse(&header, Errno::EINVAL),
        }
        Ok(())
    }

    /// What the protocol says is wrong with a request, beyond what the disk would say.
    fn refusal(&self, header: &Header) -> Option<Errno> {
        let known = match header.command {
            command::WRITE | command::TRIM | command::FLUSH => command_flag::FUA,
            command::WRITE_ZEROES => command_flag::FUA | command_flag::NO_HOLE,
            command::READ if self.agreement.structured => command_flag::FUA | command_flag::DF,
            command::BLOCK_STATUS => command_flag::FUA | command_flag::REQ_ONE,
            _ => command_flag::FUA,
        };
        if header.flags & !known != 0 {
            return Some(Errno::EINVAL);
        }
        if header.command == command::FLUSH {
            return (header.offset != 0 || header.len != 0).then_some(Errno::EINVAL);
        }
        let disk = self.port.disk();
        let changes = matches!(header.command, command::WRITE | command::TRIM | command::WRITE_ZEROES);
        if changes && disk.options().read_only {
            return Some(Errno::EPERM);
        }
        let moves = matches!(header.command, command::READ | command::WRITE);
        if header.len == 0 || (moves && header.len > PAYLOAD_MAX) {
            return Some(Errno::EINVAL);
        }
        let inside = header.offset.checked_add(u64::from(header.len)).is_some_and(|end| end <= disk.size().bytes());
        if !inside {
            // So the protocol wants it.
            return Some(if matches!(header.command, command::WRITE | command::WRITE_ZEROES) {
                Errno::ENOSPC
            } else {
                Errno::EINVAL
            });
        }
        None
    }

    /// Submits a request, with the memory that it reads into or writes from.
    fn fly(&mut self, header: Header, mut memory: Option<Chunk>) {
        let fua = header.flags & command_flag::FUA != 0;
        let offset = ByteOffset::new(header.offset);
        let range = ByteRange { start: offset, len: ByteSize::new(u64::from(header.len)) };
        // SAFETY: the chunk stays in `flights`, untouched, until the port has answered; the port is dropped before it.
        let lent = memory.as_mut().map(|memory| unsafe { memory.lend(header.len) });
        let request = match (header.command, lent) {
            (command::READ, Some(memory)) => Request::Read { offset, memory },
            (command::WRITE, Some(memory)) => Request::Write { offset, memory, fua },
            (command::TRIM, _) => Request::Trim { range, fua },
            (command::WRITE_ZEROES, _) => {
                Request::WriteZeroes { range, allocate: header.flags & command_flag::NO_HOLE != 0, fua }
            }
            _ => Request::Flush,
        };
        let Some(tag) = self.free.pop() else { unreachable!("requests are taken while there is room") };
        self.flights[tag as usize] = Some(Flight { header, memory });
        self.port.submit(self.agreement.host, u64::from(tag), request);
    }

    /// Makes replies of answers. Returns whether there were any.
    fn reply(&mut self) -> bool {
        let mut answers = std::mem::take(&mut self.answers);
        let any = !answers.is_empty();
        for answer in answers.drain(..) {
            // Tags are indices.
            let tag = usize::try_from(answer.tag).unwrap_or(usize::MAX);
            let Some(flight) = self.flights.get_mut(tag).and_then(Option::take) else { continue };
            self.free.push(u32::try_from(tag).unwrap_or(u32::MAX));
            self.reply_to(flight, answer.outcome);
        }
        self.answers = answers;
        any
    }

    fn reply_to(&mut self, flight: Flight, outcome: Outcome) {
        let Flight { header, memory } = flight;
        let reads = header.command == command::READ;
        if reads
            && outcome.is_ok()
            && let Some(memory) = memory
        {
            let head = if self.agreement.structured {
                let head = wire::chunk_header(chunk::DONE, chunk::OFFSET_DATA, header.cookie, header.len + 8);
                [&head[..], &header.offset.to_be_bytes()].concat()
            } else {
                wire::simple_reply(0, header.cookie).to_vec()
            };
            self.output.pieces.push_back(Piece { head, data: Some((memory, header.len as usize)) });
            return;
        }
        if let Some(memory) = memory {
            self.pool.give_back(memory);
        }
        match outcome {
            Ok(()) => self.say(wire::simple_reply(0, header.cookie).to_vec()),
            Err(errno) => self.refuse(&header, errno),
        }
    }

    fn refuse(&mut self, header: &Header, errno: Errno) {
        let number = wire::error_number(errno);
        // Only what has data to give may not be answered simply.
        let chunked = self.agreement.structured && matches!(header.command, command::READ | command::BLOCK_STATUS);
        let reply = if chunked {
            let why = errno.desc();
            let len = u16::try_from(why.len()).unwrap_or(0);
            let head = wire::chunk_header(chunk::DONE, chunk::ERROR, header.cookie, 6 + u32::from(len));
            [&head[..], &number.to_be_bytes(), &len.to_be_bytes(), &why.as_bytes()[..usize::from(len)]].concat()
        } else {
            wire::simple_reply(number, header.cookie).to_vec()
        };
        self.say(reply);
    }

    fn block_status(&mut self, header: &Header) {
        let range = ByteRange { start: ByteOffset::new(header.offset), len: ByteSize::new(u64::from(header.len)) };
        let max = if header.flags & command_flag::REQ_ONE != 0 { 1 } else { EXTENTS_MAX };
        let parts = match self.port.disk().allocation(range, max) {
            Ok(parts) => parts,
            Err(error) => {
                return self.refuse(header, error.raw_os_error().map_or(Errno::EIO, Errno::from_raw));
            }
        };
        // At most EXTENTS_MAX.
        let len = 4 + 8 * u32::try_from(parts.len()).unwrap_or(0);
        let mut reply = wire::chunk_header(chunk::DONE, chunk::BLOCK_STATUS, header.cookie, len).to_vec();
        reply.extend(wire::BASE_ALLOCATION_ID.to_be_bytes());
        for part in parts {
            // The range is of 32 bits.
            reply.extend(u32::try_from(part.len).unwrap_or(u32::MAX).to_be_bytes());
            reply.extend(if part.hole { wire::STATE_HOLE | wire::STATE_ZERO } else { 0 }.to_be_bytes());
        }
        self.say(reply);
    }

    /// Sends a reply that has no data, together with others of its kind.
    fn say(&mut self, reply: Vec<u8>) {
        match self.output.pieces.back_mut() {
            Some(Piece { head, data: None }) if head.len() < INPUT => head.extend(reply),
            _ => self.output.pieces.push_back(Piece { head: reply, data: None }),
        }
    }

    /// Sends what there is room for. Returns whether anything went.
    fn send(&mut self) -> Result<bool> {
        let mut moved = false;
        while !self.output.pieces.is_empty() {
            let mut skip = self.output.sent;
            let mut parts = Vec::with_capacity(2 * PIECES_MAX);
            for piece in self.output.pieces.iter().take(PIECES_MAX) {
                let data = piece.data.as_ref().map_or(&[][..], |(memory, len)| memory.part(*len));
                for part in [&piece.head[..], data] {
                    let skipped = skip.min(part.len());
                    skip -= skipped;
                    if skipped < part.len() {
                        parts.push(IoSlice::new(&part[skipped..]));
                    }
                }
            }
            match self.stream.send(&parts) {
                Ok(sent) => self.sent(sent),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(broken(error)),
            }
            moved = true;
        }
        Ok(moved)
    }

    fn sent(&mut self, count: usize) {
        self.output.sent += count;
        while let Some(first) = self.output.pieces.front()
            && first.len() <= self.output.sent
        {
            self.output.sent -= first.len();
            if let Some(Piece { data: Some((memory, _)), .. }) = self.output.pieces.pop_front() {
                self.pool.give_back(memory);
            }
        }
    }
}

fn broken(source: io::Error) -> Error {
    Error::io("the connection to a client broke", source)
}
