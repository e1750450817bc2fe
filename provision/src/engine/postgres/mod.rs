//! Stock PostgreSQL: a primary, and replicas that follow it by physical streaming replication, each through a slot of its
//! own name.

mod conf;
mod explain;
pub(super) mod heartbeat;
mod install;
pub(super) mod proof;
mod secret;
mod sql;
mod status;
pub(super) mod steps;

use std::path::PathBuf;
use std::sync::OnceLock;

use blockdev::{Error, ErrorKind, Result};
use nix::sys::signal::Signal;

use super::{Engine, Loss, NodeStatus, PATIENCE, wait_for};
use crate::cluster::Cluster;
use crate::doctor::Finding;
use crate::runtime::{Command, Device, Service};
use crate::step::Step;
use crate::topology::{Node, Role};
pub(super) use explain::likely_cause;
pub(super) use install::Programs;
use sql::OnNode;

pub use heartbeat::APPLICATION as HEARTBEAT_APPLICATION;
pub use install::{Installation, VERSION_MIN};
pub use secret::{REPLICATOR, SUPERUSER};
pub use sql::connection;

/// What one kind of PostgreSQL has that another has not.
#[derive(Debug)]
pub(super) struct Kind {
    /// The file in a data directory that makes its server a replica.
    pub(super) signal: &'static str,
    /// What a node's configuration needs beside what every PostgreSQL does.
    pub(super) parameters: fn(&Node) -> Vec<(&'static str, String)>,
    /// And what it needs where the node lacks something.
    pub(super) where_absent: &'static [Absent],
    /// What is likely to have gone wrong when a log ends like that.
    pub(super) likely_cause: fn(&str) -> Option<&'static str>,
}

/// A parameter for nodes that do not have a file.
#[derive(Debug)]
pub(super) struct Absent {
    /// The file.
    pub(super) path: &'static str,
    /// The parameter.
    pub(super) parameter: &'static str,
    /// Its value.
    pub(super) value: &'static str,
}

const STOCK: Kind = Kind {
    signal: "standby.signal",
    parameters: |_| Vec::new(),
    where_absent: &[],
    likely_cause: explain::likely_cause,
};

/// Stock PostgreSQL.
#[derive(Debug)]
pub struct Postgres {
    kind: &'static Kind,
    bin_directory: Option<PathBuf>,
    installation: OnceLock<Installation>,
}

impl Postgres {
    /// The PostgreSQL whose programs are in `bin_directory`, or the newest that is installed.
    #[must_use]
    pub fn new(bin_directory: Option<PathBuf>) -> Self {
        Self { kind: &STOCK, bin_directory, installation: OnceLock::new() }
    }

    /// One of another kind, whose programs are on the nodes' path.
    pub(super) fn of_kind(kind: &'static Kind) -> Self {
        Self { kind, ..Self::new(None) }
    }

    /// Where the programs are on the nodes. Looked for when it is needed: a cluster can be taken down after its PostgreSQL
    /// was.
    pub(super) fn programs(&self, cluster: &Cluster) -> Result<Programs> {
        if cluster.runtime().is_this_machine() { Ok(self.installation()?.programs()) } else { Ok(Programs::on_path()) }
    }

    /// What `name` is set to on a node that answers.
    pub(super) fn setting(cluster: &Cluster, node: &Node, name: &str) -> Option<String> {
        let mut client = sql::try_connect(cluster, node).ok()??;
        client.query_one("SELECT current_setting($1, true)", &[&name]).ok()?.get(0)
    }

    /// What is wrong with what is asked for, as far as that needs no database.
    pub(super) fn findings_of_settings(cluster: &Cluster) -> Vec<Finding> {
        let mut findings = conf::findings(&cluster.record.config);
        let passwords = cluster.directory.passwords();
        if passwords.exists()
            && let Err(error) = secret::Passwords::read(&passwords)
        {
            findings.push(Finding::from_error("password-file", &error));
        }
        findings
    }

    /// The one of this machine.
    fn installation(&self) -> Result<&Installation> {
        if self.installation.get().is_none() {
            let found = Installation::find(self.bin_directory.as_deref())?;
            return Ok(self.installation.get_or_init(|| found));
        }
        self.installation.get().ok_or_else(|| Error::new(ErrorKind::NotFound, "no PostgreSQL is installed here"))
    }

    fn service<'a>(&self, node: &'a Node) -> Service<'a> {
        Service { node, name: Engine::service(self) }
    }

    pub(super) fn data(cluster: &Cluster, node: &Node) -> PathBuf {
        cluster.runtime().home(node).join("data")
    }

    /// Waits until `node` answers; not longer than it runs.
    fn wait_until_it_answers(&self, cluster: &Cluster, node: &Node) -> Result<postgres::Client> {
        wait_for(cluster, &format!("{} answers", node.name), || {
            if let Some(client) = sql::try_connect(cluster, node)? {
                return Ok(Some(client));
            }
            if cluster.runtime().process_id(self.service(node))?.is_none() {
                return Err(Error::new(ErrorKind::Io, format!("{} ended before it answered", node.name)));
            }
            Ok(None)
        })
    }

    /// Ends a node at once, whatever it waits for.
    pub(super) fn kill(&self, cluster: &Cluster, node: &Node) -> Result<()> {
        cluster.runtime().stop(self.service(node), Signal::SIGKILL, PATIENCE)
    }
}

impl Engine for Postgres {
    fn findings(&self, cluster: &Cluster) -> Result<Vec<Finding>> {
        let mut findings = Self::findings_of_settings(cluster);
        match self.programs(cluster) {
            Err(error) => findings.push(Finding::from_error("no-postgresql", &error)),
            Ok(_) if cluster.record.config.parameters.is_empty() => {}
            Ok(programs) => findings.extend(conf::rejected(&programs, cluster)),
        }
        Ok(findings)
    }

    fn steps<'a>(&'a self, cluster: &'a Cluster, loss: Loss) -> Result<Vec<Step<'a>>> {
        steps::all(self, cluster, loss)
    }

    fn start_steps<'a>(&'a self, cluster: &'a Cluster, nodes: &[&'a Node]) -> Result<Vec<Step<'a>>> {
        steps::start(self, cluster, nodes)
    }

    fn stop(&self, cluster: &Cluster, node: &Node) -> Result<()> {
        if node.role == Role::Primary {
            heartbeat::stop(cluster, node)?;
        }
        // "Fast shutdown": sessions are ended, what is committed is kept, replicas are sent everything.
        cluster.runtime().stop(self.service(node), Signal::SIGINT, PATIENCE)
    }

    fn abandon(&self, cluster: &Cluster, node: &Node) -> Result<()> {
        // "Immediate shutdown": ends within a moment, and gives back shared memory, which a kill would not.
        cluster.runtime().stop(self.service(node), Signal::SIGQUIT, PATIENCE)
    }

    fn forget_replica(&self, cluster: &Cluster, replica: &Node) -> Result<()> {
        let primary = cluster.record.topology.primary();
        let mut client = sql::connect(cluster, primary).map_err(|error| {
            error.with_hint("the primary keeps a slot for the replica; start it, so that it can forget that")
        })?;
        let slot = replica.name.as_str();
        // The primary may not have noticed yet that the replica is gone.
        wait_for(cluster, &format!("{} no longer sends to {slot}", primary.name), || {
            let active = client_slot_active(cluster, primary, slot)?;
            Ok((active != Some(true)).then_some(()))
        })?;
        client
            .execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1",
                &[&slot],
            )
            .on(primary, "cannot drop a replication slot on")?;
        Ok(())
    }

    fn status(&self, cluster: &Cluster) -> Result<Vec<NodeStatus>> {
        status::all(self, cluster)
    }

    fn client(&self, cluster: &Cluster, node: &Node) -> Command {
        let runtime = cluster.runtime();
        let sockets = runtime.sockets(node);
        let passwords =
            if runtime.is_this_machine() { cluster.directory.passwords() } else { runtime.home(node).join("pgpass") };
        let psql = self.programs(cluster).unwrap_or(Programs::on_path()).program("psql");
        let command = Command::new(psql).args(["-h", &sockets.to_string_lossy(), "-p", &node.port.to_string()]);
        let command = command.args(["-U", SUPERUSER, "-d", "postgres"]);
        if cluster.record.config.trust { command } else { command.env("PGPASSFILE", passwords.to_string_lossy()) }
    }

    fn with_environment(&self, cluster: &Cluster, node: &Node, command: Command) -> Command {
        let runtime = cluster.runtime();
        let command = match self.programs(cluster) {
            Ok(Programs(Some(bin))) => {
                let path = std::env::var("PATH").unwrap_or_default();
                command.env("PATH", format!("{}:{path}", bin.display()))
            }
            _ => command,
        };
        command
            .env("PGDATA", Self::data(cluster, node).to_string_lossy())
            .env("PGHOST", runtime.sockets(node).to_string_lossy())
            .env("PGPORT", node.port.to_string())
            .env("PGUSER", SUPERUSER)
            .env("PGDATABASE", "postgres")
            .env("PGPASSFILE", runtime.home(node).join("pgpass").to_string_lossy())
    }

    fn services(&self) -> &'static [&'static str] {
        &["postgres", heartbeat::SERVICE]
    }

    fn image(&self) -> &'static str {
        "postgres:17"
    }

    fn program_directories(&self) -> &'static [&'static str] {
        &["/usr/pgsql-*/bin", "/usr/lib/postgresql/*/bin"]
    }

    fn devices(&self, _cluster: &Cluster, _node: &Node) -> Result<Vec<Device>> {
        Ok(Vec::new())
    }

    fn shell_devices(&self, _cluster: &Cluster, _node: &Node) -> Vec<String> {
        Vec::new()
    }
}

/// Whether somebody follows through the slot; nothing if there is no such slot.
fn client_slot_active(cluster: &Cluster, primary: &Node, slot: &str) -> Result<Option<bool>> {
    let mut client = sql::connect(cluster, primary)?;
    let row = client
        .query_opt("SELECT active FROM pg_replication_slots WHERE slot_name = $1 AND slot_type = 'physical'", &[&slot])
        .on(primary, "cannot list the replication slots of")?;
    Ok(row.map(|row| row.get(0)))
}
