//! A schema of our own on the writer, while it is measured.

use std::time::{Duration, Instant};

use blockdev::{Cancel, Error, ErrorKind, Result};
use tokio::runtime::Runtime;
use tokio_postgres::Client;

use super::background;
use super::nodes::{Endpoint, Nodes};
use super::probe::Probe;
use super::{PATIENCE, runtime};

/// What it is called.
pub(super) const SCHEMA: &str = "onedisk_lag";
/// Its comment, which tells it from somebody else's of the same name.
const MARK: &str = "made by bench lag, which drops it when it ends";
/// What asks for its number, which is the same on all servers of a cluster.
const ID: &str = "SELECT oid FROM pg_namespace WHERE nspname = $1";
/// An advisory lock: who holds it measures. The number is the name's first eight bytes.
const LOCK: i64 = i64::from_be_bytes(*b"onedisk_");

/// The schema. Dropped, it is gone, also on the writer.
pub(super) struct Scratch {
    runtime: Runtime,
    client: Client,
    writer: Endpoint,
    removed: bool,
}

impl Scratch {
    /// Makes the schema on the writer, and waits until every reader sees it.
    ///
    /// # Errors
    /// When somebody else measures, it cannot be made, or a reader does not see it.
    pub(super) fn make(nodes: &Nodes, slots: usize, cancel: &Cancel) -> Result<Self> {
        let runtime = runtime()?;
        let writer = nodes.writer.clone();
        let client = runtime.block_on(writer.connect())?;
        runtime.block_on(may_make(&client, &writer))?;
        // From here on, whatever happens, it is removed again.
        let scratch = Self { runtime, client, writer, removed: false };
        let make = format!(
            "BEGIN; DROP SCHEMA IF EXISTS {SCHEMA} CASCADE; CREATE SCHEMA {SCHEMA}; COMMENT ON SCHEMA {SCHEMA} IS '{MARK}';
             {} {} COMMIT",
            Probe::tables(slots),
            background::tables()
        );
        let made = scratch.runtime.block_on(scratch.client.batch_execute(&make));
        made.map_err(|error| scratch.writer.failed("cannot make a schema on", error))?;
        let id = scratch.runtime.block_on(scratch.client.query_one(ID, &[&SCHEMA]));
        let id: u32 = id.map_err(|error| scratch.writer.failed("cannot find a schema on", error))?.get(0);
        for reader in &nodes.readers {
            scratch.runtime.block_on(arrived(id, reader, &scratch.writer, cancel))?;
        }
        Ok(scratch)
    }

    /// Removes it.
    ///
    /// # Errors
    /// When the writer is gone.
    pub(super) fn remove(mut self) -> Result<()> {
        self.drop_schema()
    }

    fn drop_schema(&mut self) -> Result<()> {
        self.removed = true;
        let statement = format!("DROP SCHEMA IF EXISTS {SCHEMA} CASCADE");
        let (runtime, writer) = (&self.runtime, &self.writer);
        let mut outcome = runtime.block_on(self.client.batch_execute(&statement));
        if outcome.is_err() && self.client.is_closed() {
            // It may have been started anew meanwhile.
            if let Ok(client) = runtime.block_on(writer.connect()) {
                outcome = runtime.block_on(client.batch_execute(&statement));
            }
        }
        outcome.map_err(|error| {
            writer
                .failed(&format!("cannot drop the schema {SCHEMA} on"), error)
                .with_hint(format!("DROP SCHEMA {SCHEMA} CASCADE does, or the next `bench lag`"))
        })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.removed {
            // On the way out with another error, which is the one to be told.
            let _ = self.drop_schema();
        }
    }
}

/// Takes the lock, and looks whether the schema's name is free or of a run that was killed.
async fn may_make(client: &Client, writer: &Endpoint) -> Result<()> {
    let failed = |error| writer.failed("cannot look for other runs on", error);
    let locked: bool = client.query_one("SELECT pg_try_advisory_lock($1)", &[&LOCK]).await.map_err(failed)?.get(0);
    if !locked {
        return Err(Error::refused(format!("another `bench lag` measures {} right now", writer.name))
            .with_hint("each would see the other's load: wait until it is done"));
    }
    let existing = client
        .query_opt("SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = $1", &[&SCHEMA])
        .await
        .map_err(failed)?;
    match existing {
        Some(row) if row.get::<_, Option<&str>>(0) != Some(MARK) => {
            Err(Error::refused(format!("{} has a schema {SCHEMA} that bench did not make", writer.name))
                .with_hint("rename or drop it"))
        }
        _ => Ok(()),
    }
}

/// Waits until `reader` sees the schema: by its number, as one of the same name may be left of a run that was killed.
async fn arrived(id: u32, reader: &Endpoint, writer: &Endpoint, cancel: &Cancel) -> Result<()> {
    let client = reader.connect().await?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let row = client.query_opt(ID, &[&SCHEMA]).await.map_err(|error| reader.failed("cannot read from", error))?;
        if row.is_some_and(|row| row.get::<_, u32>(0) == id) {
            return Ok(());
        }
        cancel.check("bench lag")?;
        if Instant::now() >= deadline {
            return Err(Error::new(
                ErrorKind::VerifyFailed,
                format!(
                    "{} has not seen within {} s what {} wrote: it does not follow",
                    reader.name,
                    PATIENCE.as_secs(),
                    writer.name
                ),
            )
            .with_hint("`provision status`, or pg_stat_replication on the primary, tells more"));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
