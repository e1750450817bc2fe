//! A reader, looked at again and again on a connection of its own.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;

use blockdev::{Error, Result};

use super::nodes::Endpoint;
use super::runtime;
use super::samples::Sighting;
use super::session::{Shared, patiently};
use crate::report::Histogram;

/// What a poller saw.
#[derive(Debug)]
pub(super) struct Looks {
    /// The first sight of each number, in the order of time.
    pub(super) sightings: Vec<Sighting>,
    /// How long each look took: no lag below that can be told.
    pub(super) round_trips: Histogram,
    /// When the last look was sent.
    pub(super) until: u64,
    /// Why the reader cannot be looked at any more.
    pub(super) error: Option<Error>,
}

/// Looks at `reader`, the one at `index`, until everything was seen that will be, or a stop; says `ready` once it looks.
///
/// # Errors
/// When it cannot begin.
pub(super) fn run(reader: &Endpoint, index: usize, shared: &Arc<Shared>, ready: Sender<()>) -> Result<Looks> {
    runtime()?.block_on(look(reader, index, shared, ready))
}

async fn look(reader: &Endpoint, index: usize, shared: &Shared, ready: Sender<()>) -> Result<Looks> {
    let session = &shared.session;
    let client = reader.connect().await?;
    let failed = |error| reader.failed("cannot read from", error);
    let statement = client.prepare(&session.probe.look()).await.map_err(failed)?;
    let mut known = vec![0; session.pace.slots()];
    let mut looks =
        Looks { sightings: Vec::new(), round_trips: Histogram::new(), until: shared.clock.now(), error: None };
    let mut ready = Some(ready);
    loop {
        let sent = shared.clock.now();
        let rows = match patiently(client.query(&statement, &[]), &shared.stop).await {
            Ok(rows) => rows,
            Err(silence) => {
                looks.error = silence.into_error(reader, "lost the reader");
                shared.stop.cancel();
                return Ok(looks);
            }
        };
        let seen = shared.clock.now();
        looks.round_trips.record(seen - sent);
        for (slot, (row, known)) in rows.iter().zip(&mut known).enumerate() {
            let number = u64::try_from(row.get::<_, i64>(0) - session.base).unwrap_or(0);
            if number > *known {
                *known = number;
                looks.sightings.push(Sighting { slot, number, missed: looks.until, seen });
            }
        }
        looks.until = sent;
        shared.seen[index].store(known[0], Ordering::Release);
        if let Some(ready) = ready.take() {
            // Whoever listened may have given up.
            let _ = ready.send(());
        }
        let arrived = shared.goal.get().is_some_and(|goal| {
            seen >= goal.deadline || known.iter().zip(&goal.numbers).all(|(known, wanted)| known >= wanted)
        });
        if arrived || shared.stop.is_cancelled() {
            return Ok(looks);
        }
        // Nothing else runs here that a sleeping thread could keep waiting.
        std::thread::sleep(session.pause);
    }
}
