//! What else goes on on the writer meanwhile: load, and a heartbeat.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use blockdev::{Error, Result};
use tokio::task::JoinSet;
use tokio_postgres::{Client, Statement};

use super::clock::Timer;
use super::nodes::Endpoint;
use super::runtime;
use super::scratch::SCHEMA;
use super::session::{Shared, patiently};
use super::writer::until;

/// Accounts, tellers and branches of the load's bank.
const ACCOUNTS: usize = 10_000;
const TELLERS: usize = 100;
const BRANCHES: usize = 10;

/// A kind of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Load {
    /// What pgbench does: three updates, a select and an insert in each transaction.
    Pgbench,
    /// Inserts of 1 KB, which extend a table.
    Insert,
    /// Updates of one row where it stands.
    Update,
}

impl Load {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Pgbench, Self::Insert, Self::Update];

    /// Its name: what [`FromStr`] takes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pgbench => "pgbench-like",
            Self::Insert => "insert",
            Self::Update => "update",
        }
    }

    /// The statements of one transaction.
    fn statements(self) -> Vec<String> {
        let account = format!("UPDATE {SCHEMA}.accounts SET balance = balance + 1 WHERE id = $1");
        let entry = format!("INSERT INTO {SCHEMA}.history (account, filler) VALUES ($1, repeat('x', 1000))");
        match self {
            Self::Pgbench => vec![
                account,
                format!("SELECT balance FROM {SCHEMA}.accounts WHERE id = $1"),
                format!("UPDATE {SCHEMA}.tellers SET balance = balance + 1 WHERE id = $1 % {TELLERS}"),
                format!("UPDATE {SCHEMA}.branches SET balance = balance + 1 WHERE id = $1 % {BRANCHES}"),
                format!("INSERT INTO {SCHEMA}.history (account, filler) VALUES ($1, 'as short as that of pgbench')"),
            ],
            Self::Insert => vec![entry],
            Self::Update => vec![account],
        }
    }
}

impl FromStr for Load {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|load| load.name() == text).ok_or_else(|| {
            Error::invalid(format!("{text:?} is no kind of load")).with_hint("pgbench-like, insert or update")
        })
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The tables of the heartbeat and of the load.
pub(super) fn tables() -> String {
    let bank = [("accounts", ACCOUNTS), ("tellers", TELLERS), ("branches", BRANCHES)].map(|(name, rows)| {
        // Room for updates in place.
        format!(
            "CREATE TABLE {SCHEMA}.{name} (id int PRIMARY KEY, balance int NOT NULL, filler text) WITH (fillfactor = 50);
             INSERT INTO {SCHEMA}.{name} SELECT id, 0, repeat('x', 80) FROM generate_series(0, {rows} - 1) id;"
        )
    });
    format!(
        "CREATE TABLE {SCHEMA}.heartbeat (beat bigint NOT NULL) WITH (fillfactor = 10);
         INSERT INTO {SCHEMA}.heartbeat VALUES (0);
         CREATE TABLE {SCHEMA}.history (account int, filler text);
         {}",
        bank.concat()
    )
}

/// What goes on beside what is measured.
#[derive(Debug, Clone)]
pub(super) enum Background {
    /// Transactions in an open loop, due at these times in nanoseconds, shared by so many connections.
    Load { load: Load, due: Vec<u64>, connections: usize },
    /// A tiny update, and a pause of this length, again and again.
    Heartbeat(Duration),
}

/// How it went.
#[derive(Debug, Default)]
pub(super) struct Went {
    /// How many transactions were due by the end.
    pub(super) due: usize,
    /// How many of them were sent.
    pub(super) sent: usize,
    /// Why it ended before its time.
    pub(super) error: Option<Error>,
}

/// Goes on until everything that is measured is written, or a stop.
///
/// # Errors
/// When it cannot begin.
pub(super) fn run(writer: &Endpoint, shared: &Arc<Shared>) -> Result<Went> {
    runtime()?.block_on(async {
        match &shared.session.background {
            Some(Background::Load { load, due, connections }) => {
                serve_all(writer, *load, due, *connections, shared).await
            }
            Some(Background::Heartbeat(pause)) => beat(writer, *pause, shared).await,
            None => Ok(Went::default()),
        }
    })
}

async fn beat(writer: &Endpoint, pause: Duration, shared: &Shared) -> Result<Went> {
    let client = writer.connect().await?;
    let statement = client.prepare(&format!("UPDATE {SCHEMA}.heartbeat SET beat = beat + 1")).await;
    let statement = statement.map_err(|error| writer.failed("cannot write to", error))?;
    let timer = Timer::new()?;
    let mut went = Went::default();
    while !shared.is_written() {
        timer.sleep(pause).await?;
        went.due += 1;
        went.sent += 1;
        if let Err(silence) = patiently(client.execute(&statement, &[]), &shared.stop).await {
            went.error = silence.into_error(writer, "lost the writer");
            shared.stop.cancel();
            return Ok(went);
        }
    }
    Ok(went)
}

async fn serve_all(
    writer: &Endpoint,
    load: Load,
    due: &[u64],
    connections: usize,
    shared: &Arc<Shared>,
) -> Result<Went> {
    let mut clients = Vec::new();
    for _ in 0..connections {
        let client = writer.connect().await?;
        let mut statements = Vec::new();
        for text in load.statements() {
            let statement = client.prepare_typed(&text, &[tokio_postgres::types::Type::INT4]).await;
            statements.push(statement.map_err(|error| writer.failed("cannot write to", error))?);
        }
        clients.push((client, statements));
    }
    let began = shared.clock.now();
    let due: Arc<Vec<u64>> = Arc::new(due.iter().map(|offset| began + offset).collect());
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for (client, statements) in clients {
        let (writer, due, next, shared, timer) =
            (writer.clone(), Arc::clone(&due), Arc::clone(&next), Arc::clone(shared), Timer::new()?);
        tasks.spawn(async move { serve(&writer, &client, &statements, &due, &next, &shared, &timer).await });
    }
    let mut went = Went::default();
    let mut ended = u64::MAX;
    while let Some(served) = tasks.join_next().await {
        ended = ended.min(shared.clock.now());
        let (sent, outcome) = served.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()));
        went.sent += sent;
        if let Err(error) = outcome {
            went.error.get_or_insert(error);
        }
    }
    // What came due while the last ones were answered is nobody's any more.
    went.due = due.partition_point(|due| *due < ended);
    Ok(went)
}

/// One connection: how many transactions it sent, and why it ended before its time.
async fn serve(
    writer: &Endpoint,
    client: &Client,
    statements: &[Statement],
    due: &[u64],
    next: &AtomicUsize,
    shared: &Shared,
    timer: &Timer,
) -> (usize, Result<()>) {
    let mut sent = 0;
    while !shared.is_written() {
        let index = next.fetch_add(1, Ordering::AcqRel);
        let Some(due) = due.get(index) else { break };
        if let Err(error) = until(*due, timer, shared).await {
            return (sent, Err(error));
        }
        if shared.is_written() {
            break;
        }
        sent += 1;
        // Spread over all accounts: the multiplier has no factor in common with their number.
        let account = i32::try_from(index * 7919 % ACCOUNTS).unwrap_or(0);
        if let Err(silence) = patiently(transaction(client, statements, account), &shared.stop).await {
            shared.stop.cancel();
            let error = silence.into_error(writer, "lost the writer");
            return (sent, error.map_or(Ok(()), Err));
        }
    }
    (sent, Ok(()))
}

async fn transaction(
    client: &Client,
    statements: &[Statement],
    account: i32,
) -> std::result::Result<(), tokio_postgres::Error> {
    if let [statement] = statements {
        return client.execute(statement, &[&account]).await.map(drop);
    }
    client.batch_execute("BEGIN").await?;
    for statement in statements {
        client.query(statement, &[&account]).await?;
    }
    client.batch_execute("COMMIT").await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_and_shown() {
        for load in Load::ALL {
            assert_eq!(load.to_string().parse::<Load>().unwrap(), load);
        }
        let error = "tpcc".parse::<Load>().unwrap_err();
        assert_eq!(error.to_string(), "\"tpcc\" is no kind of load");
        assert_eq!(error.hint(), Some("pgbench-like, insert or update"));
    }
}
