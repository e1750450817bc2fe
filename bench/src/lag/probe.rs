//! The transactions whose way to the readers is timed, and the look that tells a reader has one.

use std::fmt;
use std::str::FromStr;

use blockdev::{Error, Result};
use tokio_postgres::{Client, Statement};

use super::scratch::SCHEMA;

/// Rows of a bulk insert.
const BULK_ROWS: u32 = 500;
/// Bytes of text in each; with its header, its key and that key's place in the index, 500 of them make 200 KB of WAL.
const BULK_ROW_BYTES: u32 = 280;

/// A kind of transaction. Each carries a number that a reader can see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Probe {
    /// Updates one row where it stands.
    Update,
    /// Inserts one row.
    Insert,
    /// Inserts 500 rows, which are 200 KB of WAL.
    Bulk,
    /// Creates a table.
    Ddl,
}

impl Probe {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Update, Self::Insert, Self::Bulk, Self::Ddl];

    /// Its name: what [`FromStr`] takes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Update => "update",
            Self::Insert => "insert",
            Self::Bulk => "bulk",
            Self::Ddl => "ddl",
        }
    }

    /// What it is, for people.
    #[must_use]
    pub fn description(self) -> &'static str {
        match self {
            Self::Update => "update in place",
            Self::Insert => "one-row insert",
            Self::Bulk => "bulk insert, 500 rows",
            Self::Ddl => "create table",
        }
    }

    /// The tables that the probes need, with `slots` rows for updates.
    pub(super) fn tables(slots: usize) -> String {
        // Room beside every row, so that an update stays on its page.
        format!(
            "CREATE TABLE {SCHEMA}.slots (slot int PRIMARY KEY, number bigint NOT NULL) WITH (fillfactor = 10);
             INSERT INTO {SCHEMA}.slots SELECT slot, 0 FROM generate_series(0, {slots} - 1) slot;
             CREATE TABLE {SCHEMA}.singles (number bigint PRIMARY KEY, content text);
             CREATE TABLE {SCHEMA}.bulk (number bigint, row int, content text, PRIMARY KEY (number, row));"
        )
    }

    /// What asks a reader for the newest number of each slot, in the order of the slots.
    pub(super) fn look(self) -> String {
        match self {
            Self::Update => format!("SELECT number FROM {SCHEMA}.slots ORDER BY slot"),
            Self::Insert => format!("SELECT coalesce(max(number), 0) FROM {SCHEMA}.singles"),
            Self::Bulk => format!("SELECT coalesce(max(number), 0) FROM {SCHEMA}.bulk"),
            Self::Ddl => format!(
                "SELECT coalesce(max(substr(relname, 5)::bigint), 0) FROM pg_class \
                 WHERE relname >= 'ddl_' AND relname < 'ddl`' AND relnamespace = '{SCHEMA}'::regnamespace"
            ),
        }
    }

    fn statement(self) -> Option<String> {
        match self {
            Self::Update => Some(format!("UPDATE {SCHEMA}.slots SET number = $1 WHERE slot = $2")),
            Self::Insert => Some(format!("INSERT INTO {SCHEMA}.singles VALUES ($1, 'a row of its own')")),
            Self::Bulk => Some(format!(
                "INSERT INTO {SCHEMA}.bulk SELECT $1, row, repeat('x', {BULK_ROW_BYTES}) \
                 FROM generate_series(1, {BULK_ROWS}) row"
            )),
            Self::Ddl => None,
        }
    }
}

impl FromStr for Probe {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|probe| probe.name() == text).ok_or_else(|| {
            Error::invalid(format!("{text:?} is no kind of transaction")).with_hint("update, insert, bulk or ddl")
        })
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A probe on a connection to the writer.
pub(super) struct Prepared {
    client: Client,
    probe: Probe,
    statement: Option<Statement>,
    slot: i32,
}

impl Prepared {
    /// `probe` on `client`, whose transactions are those of `slot`.
    pub(super) async fn new(
        probe: Probe,
        client: Client,
        slot: i32,
    ) -> std::result::Result<Self, tokio_postgres::Error> {
        let statement = match probe.statement() {
            Some(text) => Some(client.prepare(&text).await?),
            None => None,
        };
        Ok(Self { client, probe, statement, slot })
    }

    /// Commits the transaction that carries `number`.
    pub(super) async fn commit(&self, number: i64) -> std::result::Result<(), tokio_postgres::Error> {
        match (&self.statement, self.probe) {
            (Some(statement), Probe::Update) => self.client.execute(statement, &[&number, &self.slot]).await.map(drop),
            (Some(statement), _) => self.client.execute(statement, &[&number]).await.map(drop),
            (None, _) => self.client.batch_execute(&format!("CREATE TABLE {SCHEMA}.ddl_{number:019} ()")).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_and_shown() {
        for probe in Probe::ALL {
            assert_eq!(probe.to_string().parse::<Probe>().unwrap(), probe);
        }
        let error = "delete".parse::<Probe>().unwrap_err();
        assert_eq!(error.to_string(), "\"delete\" is no kind of transaction");
        assert_eq!(error.hint(), Some("update, insert, bulk or ddl"));
    }
}
