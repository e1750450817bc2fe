//! A heartbeat: the primary writes something tiny again and again, so that no replica falls asleep.
//!
//! A replica of PolarDB that has replayed what it could sleeps for up to a second, unless more comes; `bench lag --heartbeat`
//! measures what a beat buys. It is psql that beats (`\watch`), in a loop of the shell that starts it again when the server
//! was: both are on every node. A beat is a message in the log, which no table holds: there is nothing to clean up.

use std::path::PathBuf;
use std::time::Duration;

use blockdev::Result;
use nix::sys::signal::Signal;

use super::explain::likely_cause;
use super::sql::{self, OnNode};
use super::steps::here;
use crate::cluster::Cluster;
use crate::config::Heartbeat;
use crate::engine::wait_for;
use crate::runtime::{Command, NodeLog, Service};
use crate::state::Note;
use crate::step::Step;
use crate::topology::Node;

/// What its process is called.
pub(in crate::engine) const SERVICE: &str = "heartbeat";
/// What it calls itself to the server.
pub const APPLICATION: &str = "onedisk heartbeat";
/// Beats for as long as there is a file $1 that says how, and a server.
const LOOP: &str = "while [ -e \"$1\" ]; do pg_isready -q && psql -Xqw -o /dev/null -f \"$1\"; sleep 1; done";
/// How long a shell and a psql may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// The step that gives the primary the heartbeat that is asked for; none where none is, and none was.
pub(in crate::engine) fn step(cluster: &Cluster) -> Option<Step<'_>> {
    let primary = cluster.record.topology.primary();
    match cluster.record.config.heartbeat {
        Heartbeat::Every(time) => Some(keep(cluster, primary, time)),
        Heartbeat::Off if cluster.directory.is_noted(Note::Heartbeat) => Some(Step::new(
            format!("stop the heartbeat of {}", primary.name),
            || Ok(!cluster.directory.is_noted(Note::Heartbeat)),
            move || {
                stop(cluster, primary)?;
                cluster.directory.forget_note(Note::Heartbeat)
            },
        )),
        Heartbeat::Off => None,
    }
}

fn keep<'a>(cluster: &'a Cluster, primary: &'a Node, time: Duration) -> Step<'a> {
    let runtime = cluster.runtime();
    let file = file(cluster, primary);
    let script =
        format!("SELECT pg_logical_emit_message(true, '{APPLICATION}', '') \\watch {:.3}\n", time.as_secs_f64());
    let beat = Command::new("sh").args(["-c", LOOP, SERVICE, &file.to_string_lossy()]);
    let beat = cluster.engine().with_environment(cluster, primary, beat).env("PGAPPNAME", APPLICATION);
    let shown = [runtime.shell_write(primary, &file, &here(&script)), runtime.shell_start(service(primary), &beat)];
    let (wanted, to_write) = (script.clone(), file.clone());
    Step::new(
        format!("keep a heartbeat of {} every {time:?}", primary.name),
        move || Ok(runs(cluster, primary)? && runtime.read(primary, &file)?.as_deref() == Some(wanted.as_bytes())),
        move || {
            stop(cluster, primary)?;
            cluster.directory.note(Note::Heartbeat)?;
            runtime.write(primary, &to_write, script.as_bytes())?;
            runtime.start(service(primary), &beat)?;
            wait_for(cluster, "the heart beats", || Ok(is_connected(cluster, primary)?.then_some(())))
        },
    )
    .shell(shown)
    .log(NodeLog::of(runtime, service(primary)), likely_cause)
}

/// Whether the heartbeat of the primary runs; it may be waiting for a server.
pub(in crate::engine) fn runs(cluster: &Cluster, primary: &Node) -> Result<bool> {
    Ok(cluster.runtime().process_id(service(primary))?.is_some())
}

/// Stops it, if it runs.
pub(in crate::engine) fn stop(cluster: &Cluster, primary: &Node) -> Result<()> {
    // First of all, so that nothing begins anew that nobody has seen yet.
    cluster.runtime().remove(primary, &file(cluster, primary))?;
    cluster.runtime().stop(service(primary), Signal::SIGTERM, PATIENCE)
}

fn service(primary: &Node) -> Service<'_> {
    Service { node: primary, name: SERVICE }
}

fn file(cluster: &Cluster, primary: &Node) -> PathBuf {
    cluster.runtime().home(primary).join("heartbeat.sql")
}

fn is_connected(cluster: &Cluster, primary: &Node) -> Result<bool> {
    let connected = sql::connect(cluster, primary)?
        .query_opt("SELECT FROM pg_stat_activity WHERE application_name = $1 LIMIT 1", &[&APPLICATION])
        .on(primary, "cannot ask who is connected to")?;
    Ok(connected.is_some())
}
