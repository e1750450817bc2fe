//! What replication says of itself meanwhile, by its own clocks: `pg_stat_replication` on the writer, and how far each
//! reader has come.

use std::sync::Arc;
use std::time::Duration;

use blockdev::{Error, ErrorKind, Result};
use tokio_postgres::{Client, Row, Statement};

use super::nodes::{Endpoint, Nodes};
use super::runtime;
use super::session::{Shared, patiently};
use crate::report::Histogram;

/// How often it asks: ten times a second costs nobody anything.
const INTERVAL: Duration = Duration::from_millis(100);

/// What each follower of a primary is behind: times as the primary's own clock has them, from its own flush of some WAL
/// until the follower reported it written, flushed and replayed.
const FOLLOWERS: &str = "SELECT r.application_name, s.slot_name::text, \
     extract(epoch FROM r.write_lag)::float8, extract(epoch FROM r.flush_lag)::float8, \
     extract(epoch FROM r.replay_lag)::float8, pg_wal_lsn_diff(pg_current_wal_lsn(), r.replay_lsn)::float8 \
     FROM pg_stat_replication r LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid";

/// What replication said of one reader.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// How long until it had written what the writer had flushed.
    pub(super) write: Histogram,
    /// How long until it had flushed that.
    pub(super) flush: Histogram,
    /// How long until it had replayed that.
    pub(super) replay: Histogram,
    /// Bytes of WAL that it had not replayed, each time it was asked.
    pub(super) behind: Vec<f64>,
    /// Of these, bytes that it had received.
    pub(super) received: Vec<f64>,
    /// On PolarDB: bytes that are replayed where somebody asked for the page, and not yet in the background.
    pub(super) background: Vec<f64>,
    /// What it said last: it says so until it has something new to say.
    last: Option<[Option<f64>; 3]>,
}

impl Said {
    fn note_times(&mut self, times: [Option<f64>; 3]) {
        if self.last == Some(times) {
            return;
        }
        self.last = Some(times);
        for (histogram, time) in [&mut self.write, &mut self.flush, &mut self.replay].into_iter().zip(times) {
            if let Some(seconds) = time {
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it saturates")]
                histogram.record((seconds * 1e9) as u64);
            }
        }
    }
}

/// What replication said, and what it did not.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// Of each reader.
    pub(super) readers: Vec<Said>,
    /// Why it could not be asked.
    pub(super) deaf: Option<Error>,
    /// A reader that is none any more.
    pub(super) failover: Option<Error>,
}

/// Asks until the session is over. That it cannot be asked is told in what it returns: it breaks no measurement.
pub(super) fn run(nodes: &Nodes, shared: &Arc<Shared>) -> Result<Heard> {
    let mut heard = Heard { readers: nodes.readers.iter().map(|_| Said::default()).collect(), ..Heard::default() };
    if let Err(error) = runtime()?.block_on(listen(nodes, shared, &mut heard)) {
        heard.deaf = Some(error);
    }
    Ok(heard)
}

/// A connection with the one question that it is for.
struct Asked {
    client: Client,
    question: Statement,
}

impl Asked {
    async fn new(endpoint: &Endpoint, client: Client, question: &str) -> Result<Self> {
        let prepared = client.prepare(question).await;
        let question = prepared.map_err(|error| endpoint.failed("cannot ask for the replication of", error))?;
        Ok(Self { client, question })
    }

    /// The answer; none when nobody waits for it any more.
    async fn rows(&self, endpoint: &Endpoint, shared: &Shared) -> Result<Option<Vec<Row>>> {
        match patiently(self.client.query(&self.question, &[]), &shared.over).await {
            Ok(rows) => Ok(Some(rows)),
            Err(silence) => silence.into_error(endpoint, "cannot ask for the replication of").map_or(Ok(None), Err),
        }
    }
}

async fn listen(nodes: &Nodes, shared: &Shared, heard: &mut Heard) -> Result<()> {
    let writer = Asked::new(&nodes.writer, nodes.writer.connect().await?, FOLLOWERS).await?;
    let mut readers = Vec::new();
    for reader in &nodes.readers {
        readers.push(reader_questions(reader).await?);
    }
    while !shared.over.is_cancelled() {
        let Some(followers) = writer.rows(&nodes.writer, shared).await? else { return Ok(()) };
        for ((reader, (slot, asked)), said) in nodes.readers.iter().zip(&readers).zip(&mut heard.readers) {
            let alone = nodes.readers.len() == 1 && followers.len() == 1;
            let is_reader = |row: &&Row| {
                alone
                    || (slot.is_some() && *slot == row.get::<_, Option<String>>(1))
                    || row.get::<_, Option<&str>>(0) == Some(&reader.name)
            };
            if let Some(row) = followers.iter().find(is_reader) {
                said.note_times([row.get(2), row.get(3), row.get(4)]);
                said.behind.extend(row.get::<_, Option<f64>>(5));
            }
            let Some(rows) = asked.rows(reader, shared).await? else { return Ok(()) };
            let Some(row) = rows.first() else { continue };
            if !row.get::<_, bool>(0) {
                let text = format!("{} is no replica any more: somebody promoted it", reader.name);
                heard.failover = Some(Error::new(ErrorKind::Io, text));
                shared.stop.cancel();
                return Ok(());
            }
            said.received.extend(row.get::<_, Option<f64>>(1));
            said.background.extend(row.get::<_, Option<f64>>(2));
        }
        tokio::time::sleep(INTERVAL).await;
    }
    Ok(())
}

/// The slot through which `reader` follows, and the question how far it has come.
async fn reader_questions(reader: &Endpoint) -> Result<(Option<String>, Asked)> {
    let client = reader.connect().await?;
    let failed = |error| reader.failed("cannot ask for the replication of", error);
    let row = client.query_opt("SELECT slot_name FROM pg_stat_wal_receiver", &[]).await.map_err(failed)?;
    let slot = row.and_then(|row| row.get::<_, Option<String>>(0));
    let is_polar = client
        .query_opt("SELECT FROM pg_proc WHERE proname = 'polar_replica_bg_replay_lsn'", &[])
        .await
        .map_err(failed)?
        .is_some();
    let background = if is_polar {
        "pg_wal_lsn_diff(pg_last_wal_replay_lsn(), polar_replica_bg_replay_lsn())::float8"
    } else {
        "NULL::float8"
    };
    let question = format!(
        "SELECT pg_is_in_recovery(), pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())::float8, \
         {background}"
    );
    Ok((slot, Asked::new(reader, client, &question).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_only_repeated_counts_once() {
        let mut said = Said::default();
        said.note_times([Some(0.001), Some(0.002), Some(0.003)]);
        said.note_times([Some(0.001), Some(0.002), Some(0.003)]);
        said.note_times([None, None, None]);
        said.note_times([Some(0.001), Some(0.002), Some(0.005)]);
        assert_eq!((said.write.count(), said.flush.count(), said.replay.count()), (2, 2, 2));
        assert_eq!(said.replay.max() / 100_000, 50);
    }
}
