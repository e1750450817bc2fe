//! What runs on the nodes.

pub mod polardb;
pub mod postgres;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use blockdev::{ByteSize, Error, ErrorKind, Result};
use serde::Serialize;

use crate::cluster::Cluster;
use crate::doctor::Finding;
use crate::runtime::{Command, Device, NodeLog, Service};
use crate::step::Step;
use crate::topology::{Name, Node, Role};

/// A database with a primary and replicas.
pub trait Engine {
    /// What it needs and does not have.
    ///
    /// # Errors
    /// When it cannot be found out.
    fn findings(&self, cluster: &Cluster) -> Result<Vec<Finding>>;

    /// What it needs and does not have, where finding that out takes longer than `up` wants to wait: it finds out itself, later.
    ///
    /// # Errors
    /// When it cannot be found out.
    fn slow_findings(&self, _cluster: &Cluster) -> Result<Vec<Finding>> {
        Ok(Vec::new())
    }

    /// The steps from nodes on which nothing runs to a cluster whose replication is proven.
    ///
    /// # Errors
    /// When the database's programs are not there.
    fn steps<'a>(&'a self, cluster: &'a Cluster, loss: Loss) -> Result<Vec<Step<'a>>>;

    /// The steps that start these nodes, which are complete.
    ///
    /// # Errors
    /// When the database's programs are not there, or a node is not complete.
    fn start_steps<'a>(&'a self, cluster: &'a Cluster, nodes: &[&'a Node]) -> Result<Vec<Step<'a>>>;

    /// Stops a node so that nothing that was committed is lost.
    ///
    /// # Errors
    /// When it does not stop.
    fn stop(&self, cluster: &Cluster, node: &Node) -> Result<()>;

    /// Ends a node whose data nobody needs any more.
    ///
    /// # Errors
    /// When it does not end.
    fn abandon(&self, cluster: &Cluster, node: &Node) -> Result<()>;

    /// Makes the primary forget a replica.
    ///
    /// # Errors
    /// When the primary does not answer, or the replica still follows it.
    fn forget_replica(&self, cluster: &Cluster, replica: &Node) -> Result<()>;

    /// How the nodes are, in order.
    ///
    /// # Errors
    /// When it cannot be found out whether they run; that one does not answer is a status.
    fn status(&self, cluster: &Cluster) -> Result<Vec<NodeStatus>>;

    /// The database's own client, connected to a node: where nodes are this machine for whoever calls it here, otherwise
    /// for the node itself.
    fn client(&self, cluster: &Cluster, node: &Node) -> Command;

    /// `command` with what the database's programs on the node want to find in their environment.
    fn with_environment(&self, cluster: &Cluster, node: &Node, command: Command) -> Command;

    /// What the long-running process of a node is called.
    fn service(&self) -> &'static str {
        self.services()[0]
    }

    /// What may run on a node for a long time, the database first.
    fn services(&self) -> &'static [&'static str];

    /// The log of one of these [services](Self::services).
    fn log<'a>(&self, cluster: &'a Cluster, service: Service<'a>) -> NodeLog<'a> {
        NodeLog::of(cluster.runtime(), service)
    }

    /// The container image that holds it, where none is named.
    fn image(&self) -> &'static str;

    /// Where an image may hold its programs: patterns of directories as a shell takes them, later ones and later matches
    /// of one first.
    fn program_directories(&self) -> &'static [&'static str];

    /// A directory that the nodes of one machine share, for what is made once for all of them; it goes with the cluster.
    fn shared_directory(&self) -> Option<&'static str> {
        None
    }

    /// The disks that a node needs, which are there by the time the node is made.
    ///
    /// # Errors
    /// When a disk is not there.
    fn devices(&self, cluster: &Cluster, node: &Node) -> Result<Vec<Device>>;

    /// The same for a shell, which finds them when it makes the node: each as `PATH:ON_NODE`.
    fn shell_devices(&self, cluster: &Cluster, node: &Node) -> Vec<String>;
}

/// How long a database may take to stop or to start before something is wrong.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks again and again until there is an answer.
fn wait_for<T>(cluster: &Cluster, what: &str, ask: impl Fn() -> Result<Option<T>>) -> Result<T> {
    const INTERVAL: Duration = Duration::from_millis(5);
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        cluster.cancel().check(&format!("waiting until {what}"))?;
        if Instant::now() >= deadline {
            return Err(Error::new(
                ErrorKind::VerifyFailed,
                format!("waited {} s until {what}, in vain", PATIENCE.as_secs()),
            ));
        }
        std::thread::sleep(INTERVAL);
    }
}

/// What to do about data that were complete once and are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Say so.
    Refuse,
    /// Copy those of a replica from the primary anew. The primary's own cannot be had again.
    CopyReplicas,
}

/// What a node does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Its data are not complete.
    Missing,
    /// It does not run.
    Stopped,
    /// It runs and does not answer yet.
    Starting,
    /// It answers; a replica follows its primary.
    Running,
    /// It answers, but does not follow its primary.
    NotFollowing,
    /// It runs as what it should not be: a replica that was promoted, a primary that is a replica.
    WrongRole,
}

/// How a node is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeStatus {
    /// Its name.
    pub node: Name,
    /// What it should do.
    pub role: Role,
    /// What it does.
    pub state: NodeState,
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// Its process.
    pub process_id: Option<u32>,
    /// How far it has come: what is written on the primary, what is replayed on a replica.
    pub lsn: Option<String>,
    /// How much the primary has written that a replica has not replayed yet.
    pub lag_bytes: Option<u64>,
    /// How long ago the primary wrote what a replica replays now, ms; 0 when it has replayed everything.
    pub lag_ms: Option<f64>,
    /// How much storage its files take.
    pub disk_usage: ByteSize,
    /// With how many workers its pfsd runs, 0 when it does not; nothing where no pfsd is needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pfsd_workers: Option<u16>,
    /// The program that its pfsd is, as the node sees it, when it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pfsd: Option<PathBuf>,
    /// How often the heart of a primary beats that is to have a heartbeat, ms; 0 when it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_ms: Option<u64>,
    /// How much of the shared disk is taken, by all nodes together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_disk_usage: Option<ByteSize>,
}
