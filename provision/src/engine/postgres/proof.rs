//! The proof: every replica streams, and reads a row that the primary has just written.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use blockdev::{Error, ErrorKind, Result};
use postgres::{Client, NoTls};

use super::Postgres;
use super::explain::likely_cause;
use super::sql::{self, OnNode};
use super::steps::psql;
use crate::cluster::Cluster;
use crate::engine::{Engine, wait_for};
use crate::runtime::{NodeLog, Service};
use crate::state::random_hex;
use crate::step::{Log, Step, tail};
use crate::topology::Node;

/// A table of our own, for a moment.
const TABLE: &str = "onedisk_proof";

pub(in crate::engine) fn step(cluster: &Cluster) -> Step<'_> {
    let primary = cluster.record.topology.primary();
    let shell = |node: &Node, statement: &str| psql(cluster, node, statement);
    let mut shown = vec![
        shell(primary, "SELECT application_name, state FROM pg_stat_replication"),
        shell(primary, &format!("CREATE TABLE {TABLE} AS SELECT 'proof' AS token")),
    ];
    let replicas = cluster.record.topology.replicas();
    shown.extend(replicas.iter().map(|node| {
        // A moment later than the primary.
        format!("until {}; do sleep 0.1; done", shell(node, &format!("SELECT token FROM {TABLE}")))
    }));
    shown.push(shell(primary, &format!("DROP TABLE {TABLE}")));
    Step::new(
        "prove that every replica reads what the primary writes",
        // Yesterday's proof proves nothing today.
        || Ok(false),
        move || keeping_awake(cluster, primary, || prove(cluster, primary)),
    )
    .verify(|| Ok(()))
    .shell(shown)
}

fn prove(cluster: &Cluster, primary: &Node) -> Result<()> {
    let token = random_hex(8)?;
    let writer = std::cell::RefCell::new(sql::connect(cluster, primary)?);
    let replicas = cluster.record.topology.replicas();
    for replica in replicas {
        let streaming = || streams(&mut writer.borrow_mut(), primary, replica);
        wait_for(cluster, &format!("{} follows {}", replica.name, primary.name), streaming)
            .map_err(|error| explained(cluster, replica, error))?;
    }
    let mut writer = writer.into_inner();
    writer
        .batch_execute(&format!(
            "BEGIN; DROP TABLE IF EXISTS {TABLE}; CREATE TABLE {TABLE} AS SELECT '{token}'::text AS token; COMMIT"
        ))
        .on(primary, "cannot write to")?;
    let outcome = replicas.iter().try_for_each(|replica| {
        let reader = std::cell::RefCell::new(sql::connect(cluster, replica)?);
        wait_for(cluster, &format!("{} reads what {} wrote", replica.name, primary.name), || {
            Ok((read_token(&mut reader.borrow_mut(), replica)?.as_ref() == Some(&token)).then_some(()))
        })
    });
    writer.batch_execute(&format!("DROP TABLE {TABLE}")).on(primary, "cannot write to")?;
    outcome
}

/// Does `work` while the primary writes something every few milliseconds. A replica of PolarDB sleeps for up to a second over
/// what it has received, unless more comes; and a primary that makes a table waits for its replicas.
fn keeping_awake<T>(cluster: &Cluster, primary: &Node, work: impl FnOnce() -> Result<T>) -> Result<T> {
    const INTERVAL: Duration = Duration::from_millis(5);
    let config = sql::connection(cluster, primary)?;
    let (working, done) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // That it cannot be connected to, or asked, is for `work` to say.
            let Ok(mut client) = config.connect(NoTls) else { return };
            while done.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout)
                && client.batch_execute("SELECT pg_logical_emit_message(true, 'onedisk', '')").is_ok()
            {}
        });
        let outcome = work();
        drop(working);
        outcome
    })
}

fn streams(writer: &mut Client, primary: &Node, replica: &Node) -> Result<Option<()>> {
    let streaming = writer
        .query_opt(
            "SELECT FROM pg_stat_replication WHERE application_name = $1 AND state = 'streaming'",
            &[&replica.name.as_str()],
        )
        .on(primary, "cannot ask who follows")?;
    Ok(streaming.map(drop))
}

fn read_token(reader: &mut Client, replica: &Node) -> Result<Option<String>> {
    let exists: bool =
        reader.query_one("SELECT to_regclass($1::text) IS NOT NULL", &[&TABLE]).on(replica, "cannot read from")?.get(0);
    if !exists {
        return Ok(None);
    }
    let row = reader.query_opt(&format!("SELECT token FROM {TABLE}"), &[]).on(replica, "cannot read from")?;
    Ok(row.map(|row| row.get(0)))
}

/// Why a replica does not follow stands in its log.
fn explained(cluster: &Cluster, replica: &Node, error: Error) -> Error {
    if error.kind() != ErrorKind::VerifyFailed {
        return error;
    }
    let service = Service { node: replica, name: Engine::service(&Postgres::new(None)) };
    let log = NodeLog::of(cluster.runtime(), service);
    let last = tail(&log, 0, 4);
    let cause = likely_cause(&last.join("\n")).unwrap_or("its log says more");
    Error::new(ErrorKind::VerifyFailed, format!("{error}; it says:\n    {}", last.join("\n    ")))
        .with_hint(format!("likely cause: {cause}; see {}", log.place()))
}
