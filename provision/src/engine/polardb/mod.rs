//! PolarDB for PostgreSQL 15: all nodes on one shared disk, with PolarFS on it.
//!
//! Every node has a pfsd, through which its database reads the shared disk, and on the primary writes it. What is a node's
//! own, its configuration and what it may lose, is in its data directory; replicas follow the primary through a slot, but
//! copy nothing: the log tells them what has changed on the disk that they see, too.

mod build;
mod conf;
mod explain;
mod pfsd;
mod steps;

use blockdev::{ByteSize, Result};

use super::postgres::{Kind, Postgres, heartbeat};
use super::{Engine, Loss, NodeStatus};
use crate::cluster::Cluster;
use crate::config::{Build, Pfsd, RuntimeKind};
use crate::doctor::Finding;
use crate::runtime::{Command, Device, NodeLog, Service};
use crate::step::Step;
use crate::topology::{Name, Node};

/// How many workers a pfsd has where nobody says: as in the recipe.
pub const WORKERS_DEFAULT: u16 = 1;

/// How PolarDB differs from stock PostgreSQL.
const KIND: Kind = Kind {
    signal: steps::SIGNAL,
    parameters: conf::parameters,
    where_absent: conf::WHERE_ABSENT,
    likely_cause: explain::likely_cause,
};

/// PolarDB for PostgreSQL 15.
#[derive(Debug)]
pub struct PolarDb {
    postgres: Postgres,
    workers: u16,
    pfsd: Pfsd,
    build: Build,
}

impl PolarDb {
    /// With this pfsd where a node has none of its own, and so many workers for each; the database is in the image, or built.
    #[must_use]
    pub fn new(workers: u16, pfsd: Pfsd, build: Build) -> Self {
        Self { postgres: Postgres::of_kind(&KIND), workers, pfsd, build }
    }

    /// The pfsd that `node` is to run.
    fn pfsd_of<'a>(&'a self, node: &'a Node) -> &'a Pfsd {
        node.pfsd.as_ref().unwrap_or(&self.pfsd)
    }

    /// As which host each node runs that answers.
    fn host_ids(&self, cluster: &Cluster) -> Vec<(Name, String)> {
        let nodes = cluster.record.topology.nodes().iter();
        nodes.filter_map(|node| Some((node.name.clone(), Postgres::setting(cluster, node, conf::HOST_ID)?))).collect()
    }

    /// Whether there is a database that can be asked, or is to be by now.
    fn is_built(&self, cluster: &Cluster) -> Result<bool> {
        match self.build {
            Build::No => Ok(true),
            Build::From(_) => build::is_complete(cluster, cluster.record.topology.primary()),
        }
    }

    fn finding_of_workers(&self) -> Option<Finding> {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        (usize::from(self.workers) > cpus).then(|| {
            Finding::warning(
                "many-workers",
                format!(
                    "each pfsd gets {} workers, and this machine has {cpus} CPUs: they keep each other waiting",
                    self.workers
                ),
                format!("give them --workers {cpus} or fewer"),
            )
        })
    }
}

impl Engine for PolarDb {
    fn findings(&self, cluster: &Cluster) -> Result<Vec<Finding>> {
        let mut findings = if self.is_built(cluster)? {
            self.postgres.findings(cluster)?
        } else {
            Postgres::findings_of_settings(cluster)
        };
        findings.extend(conf::findings(&cluster.record.config));
        findings.extend(cluster.shared_disk()?.findings()?);
        for node in cluster.record.topology.nodes() {
            // Of a program that several nodes want it is said once.
            if let Some(finding) = pfsd::finding(self.pfsd_of(node))
                && !findings.contains(&finding)
            {
                findings.push(finding);
            }
        }
        if cluster.shared_disk()?.is_image() && !cluster.runtime().has_this_kernel(cluster.record.topology.primary())? {
            findings.push(Finding::error(
                "other-kernel",
                "Docker has another kernel than this program (it is in a virtual machine, or on another one): an image that \
                 is attached here is no device there",
                "run provision where Docker runs; or name a block device that is there with --device",
            ));
        }
        findings.extend(self.finding_of_workers());
        if cluster.record.config.runtime == RuntimeKind::Local {
            findings.push(Finding::error(
                "local-polardb",
                "PolarDB runs in containers: pfsd and its tools have fixed places, which every node needs for itself",
                "--runtime docker",
            ));
        }
        Ok(findings)
    }

    fn slow_findings(&self, cluster: &Cluster) -> Result<Vec<Finding>> {
        let programs = self.postgres.programs(cluster)?;
        let primary = cluster.record.topology.primary();
        let ask = |command: &Command| cluster.runtime().ask_beforehand(primary, command);
        let missing = match self.build {
            Build::No => steps::missing_program(self.pfsd_of(primary), &programs, ask)?,
            Build::From(_) => build::missing_program(self.pfsd_of(primary), ask)?,
        };
        let mut findings: Vec<Finding> =
            missing.map(|what| Finding::error("no-polardb", what, "name another --image")).into_iter().collect();
        findings.extend(conf::same_host_id(&self.host_ids(cluster)));
        Ok(findings)
    }

    fn steps<'a>(&'a self, cluster: &'a Cluster, loss: Loss) -> Result<Vec<Step<'a>>> {
        steps::all(self, cluster, loss)
    }

    fn start_steps<'a>(&'a self, cluster: &'a Cluster, nodes: &[&'a Node]) -> Result<Vec<Step<'a>>> {
        steps::start(self, cluster, nodes)
    }

    fn stop(&self, cluster: &Cluster, node: &Node) -> Result<()> {
        // The database first: without its pfsd it would not fail but hang.
        self.postgres.stop(cluster, node)?;
        pfsd::stop(cluster, node)
    }

    fn abandon(&self, cluster: &Cluster, node: &Node) -> Result<()> {
        if pfsd::running(cluster, node)?.is_some() {
            self.postgres.abandon(cluster, node)?;
        } else {
            // It would wait for its pfsd, whatever it is told.
            self.postgres.kill(cluster, node)?;
        }
        pfsd::abandon(cluster, node)
    }

    fn forget_replica(&self, cluster: &Cluster, replica: &Node) -> Result<()> {
        self.postgres.forget_replica(cluster, replica)
    }

    fn status(&self, cluster: &Cluster) -> Result<Vec<NodeStatus>> {
        let mut nodes = self.postgres.status(cluster)?;
        // A volume that cannot be read has no usage; that something is wrong with it shows in the nodes.
        let shared: Option<ByteSize> = cluster.shared_disk()?.used().ok();
        for (status, node) in nodes.iter_mut().zip(cluster.record.topology.nodes()) {
            let running = pfsd::running(cluster, node)?;
            status.pfsd_workers = Some(running.as_ref().map_or(0, |running| running.workers));
            status.pfsd = running.map(|running| running.program);
            status.shared_disk_usage = shared;
        }
        Ok(nodes)
    }

    fn client(&self, cluster: &Cluster, node: &Node) -> Command {
        self.postgres.client(cluster, node)
    }

    fn with_environment(&self, cluster: &Cluster, node: &Node, command: Command) -> Command {
        self.postgres.with_environment(cluster, node, command)
    }

    fn services(&self) -> &'static [&'static str] {
        &["postgres", pfsd::SERVICE, heartbeat::SERVICE]
    }

    fn log<'a>(&self, cluster: &'a Cluster, service: Service<'a>) -> NodeLog<'a> {
        // What a pfsd prints is little; what it does it writes into a log of its own.
        if service.name == pfsd::SERVICE {
            pfsd::own_log(cluster, service.node)
        } else {
            self.postgres.log(cluster, service)
        }
    }

    fn image(&self) -> &'static str {
        match self.build {
            Build::No => "polardb/polardb_pg_binary:15",
            Build::From(_) => build::IMAGE,
        }
    }

    fn shared_directory(&self) -> Option<&'static str> {
        match self.build {
            Build::No => None,
            Build::From(_) => Some(build::DIRECTORY),
        }
    }

    fn program_directories(&self) -> &'static [&'static str] {
        // Where the recipe has them, the published image, and what is built here.
        &["/home/postgres/tmp_polardb_pg_15_base/bin", "/u01/polardb_pg/bin", build::PROGRAMS]
    }

    fn devices(&self, cluster: &Cluster, _node: &Node) -> Result<Vec<Device>> {
        Ok(vec![Device { path: cluster.shared_disk()?.attached_device()?, on_node: on_node().into() }])
    }

    fn shell_devices(&self, cluster: &Cluster, _node: &Node) -> Vec<String> {
        cluster.shared_disk().map(|disk| format!("{}:{}", disk.shell_device(), on_node())).into_iter().collect()
    }
}

/// Where a node sees the shared disk.
fn on_node() -> String {
    format!("/dev/{}", pfsd::DISK)
}
