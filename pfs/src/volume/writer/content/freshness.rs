//! What a reader's threads do so that what another host wrote counts: looks at the leader record, one for many requests.

use std::time::Instant;

use blockdev::engine::{Op, Span};
use blockdev::{Error, ErrorKind, Result};

use crate::format::{LEADER_AT, LEADER_SIZE, LeaderBytes, SECTOR_SIZE};

use super::super::super::reader::CatchUp;
use super::{Content, Flight, Side};

/// How new what is known of a volume that another host writes must be, and is. Looks at the leader record are numbered: what
/// was asked for while one was under way waits for the next.
#[derive(Debug, Default)]
pub(super) struct Freshness {
    wanted: u64,
    begun: u64,
    /// All looks up to this one are over, and what they found is known.
    done: u64,
    in_flight: Option<Instant>,
    catching_up: Option<(u64, CatchUp)>,
    /// The look that failed last, and why.
    failed: Option<(u64, String)>,
}

/// A moment from which on what another host wrote is to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fresh(u64);

impl Content<'_> {
    /// Asks for all that another host's writer made count up to now. For a reader: a writer knows.
    pub fn refresh(&mut self) -> Fresh {
        // One that is under way may have read before.
        self.freshness.wanted = self.freshness.begun + 1;
        self.advance_look();
        Fresh(self.freshness.wanted)
    }

    /// Whether that is known. It becomes so only by [`complete`](Self::complete).
    ///
    /// # Errors
    /// Why it cannot be known.
    pub fn is_fresh(&self, since: Fresh) -> Result<bool> {
        match &self.freshness.failed {
            Some((look, why)) if self.freshness.done >= since.0 && *look >= since.0 => {
                Err(Error::new(ErrorKind::Io, why.clone()))
            }
            _ => Ok(self.freshness.done >= since.0),
        }
    }

    /// Begins a look at the leader record, and ends one. Returns whether anything went on.
    pub(super) fn advance_look(&mut self) -> bool {
        let Side::Reader(reader) = self.side else {
            self.freshness.done = self.freshness.wanted;
            return false;
        };
        let mut went_on = false;
        if let Some((look, catching_up)) = self.freshness.catching_up {
            let outcome = reader.has_caught_up(catching_up);
            if !matches!(outcome, Ok(false)) {
                self.freshness.catching_up = None;
                self.end_look(look, outcome.map(|_| ()));
                went_on = true;
            }
        }
        let idle = self.freshness.in_flight.is_none() && self.freshness.catching_up.is_none();
        if idle && self.freshness.wanted > self.freshness.begun {
            let Some(buffer) = self.buffers.pop() else { return went_on };
            let engine = self.engine.as_mut().filter(|engine| engine.room() > 0);
            let (Some(engine), Some(place)) = (engine, self.flights.iter().position(Option::is_none)) else {
                self.buffers.push(buffer);
                return went_on;
            };
            #[allow(clippy::cast_possible_truncation, reason = "a sector")]
            let span = Span::whole(buffer, SECTOR_SIZE as u32);
            self.freshness.begun += 1;
            match engine.submit(place as u64, Op::Read { file: 0, offset: LEADER_AT.bytes(), span }) {
                Ok(()) => {
                    self.flights[place] = Some((u64::MAX, Flight::Look(buffer)));
                    self.freshness.in_flight = Some(Instant::now());
                }
                Err(error) => {
                    self.buffers.push(buffer);
                    self.end_look(self.freshness.begun, Err(error));
                }
            }
            went_on = true;
        }
        went_on
    }

    /// Takes what a look at the leader record found.
    pub(super) fn land_look(&mut self, buffer: u32, outcome: Result<()>) {
        let (look, started) = (self.freshness.begun, self.freshness.in_flight.take());
        self.buffers.push(buffer);
        let (Side::Reader(reader), Some(started), Some(engine)) = (self.side, started, &self.engine) else { return };
        if outcome.is_err() {
            return self.end_look(look, outcome);
        }
        let mut found: LeaderBytes = [0; LEADER_SIZE];
        found.copy_from_slice(&engine.buffer(buffer)[..LEADER_SIZE]);
        if reader.is_newest(&found, started) {
            self.end_look(look, Ok(()));
        } else {
            self.freshness.catching_up = Some((look, reader.catch_up()));
        }
    }

    fn end_look(&mut self, look: u64, outcome: Result<()>) {
        self.freshness.done = look;
        if let Err(error) = outcome {
            self.freshness.failed = Some((look, error.to_string()));
        }
    }
}
