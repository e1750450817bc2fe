//! A cluster: what is known of it, where it runs and what runs there.

use std::collections::HashSet;
use std::path::PathBuf;

use blockdev::{Cancel, Error, ErrorKind, Result};
use serde::Serialize;

use crate::config::{Build, Config, EngineKind, RuntimeKind, Storage};
use crate::disk::SharedDisk;
use crate::doctor::Finding;
use crate::engine::polardb::{PolarDb, WORKERS_DEFAULT};
use crate::engine::postgres::{Postgres, SUPERUSER};
use crate::engine::{Engine, Loss};
use crate::plan::{Event, Observer, Plan, PortMoved};
use crate::runtime::docker::{Docker, Endpoint, UNUSABLE};
use crate::runtime::local::{Local, ports};
use crate::runtime::{Devices, Runtime};
use crate::state::{ClusterDirectory, Lock, Note, Record, StateDirectory};
use crate::topology::{Name, Node, Role, Topology};

/// A cluster that exists, or is about to be made.
pub struct Cluster {
    /// Where it is noted.
    pub directory: ClusterDirectory,
    /// What is known of it.
    pub record: Record,
    runtime: Box<dyn Runtime>,
    engine: Box<dyn Engine>,
    shared_disk: Option<SharedDisk>,
    may_reformat: bool,
    cancel: Cancel,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("directory", &self.directory)
            .field("record", &self.record)
            .finish_non_exhaustive()
    }
}

impl Cluster {
    /// The cluster that `record` describes.
    ///
    /// # Errors
    /// When nothing can run as it says.
    pub fn new(directory: ClusterDirectory, record: Record, cancel: &Cancel) -> Result<Self> {
        if record.config.storage == Storage::Image && record.config.runtime != RuntimeKind::Local {
            return Err(Error::invalid("disks of the nodes' own are for nodes that are processes of this machine")
                .with_hint("runtime = \"local\", or storage = \"directory\""));
        }
        if record.config.build != Build::No && record.config.engine != EngineKind::Polardb {
            return Err(Error::invalid("PolarDB is built, and no other engine")
                .with_hint("engine = \"polardb\", or build = false"));
        }
        let engine = engine_of(&record.config);
        let runtime: Box<dyn Runtime> = match record.config.runtime {
            RuntimeKind::Local => Box::new(Local::new(&directory, &record, cancel)?),
            RuntimeKind::Docker => Box::new(Docker::new(&directory, &record, &*engine, cancel)),
        };
        let shared_disk = match record.config.engine {
            EngineKind::Postgres => None,
            EngineKind::Polardb => Some(SharedDisk::new(&directory, &record.config, cancel)?),
        };
        Ok(Self { directory, record, runtime, engine, shared_disk, may_reformat: false, cancel: cancel.clone() })
    }

    /// The cluster called `name`.
    ///
    /// # Errors
    /// When there is none; the hint names those that are.
    pub fn open(state: &StateDirectory, name: &Name, cancel: &Cancel) -> Result<Self> {
        let directory = state.cluster(name);
        match directory.record()? {
            Some(record) => Self::new(directory, record, cancel),
            None => Err(missing(state, name)),
        }
    }

    /// The cluster called `name`, and the right to change it.
    ///
    /// # Errors
    /// When there is none, or another command works on it.
    pub fn open_to_change(state: &StateDirectory, name: &Name, cancel: &Cancel) -> Result<(Self, Lock)> {
        // Read under the lock: what was read before may have been changed meanwhile.
        let lock = state.cluster(name).lock()?.ok_or_else(|| missing(state, name))?;
        Ok((Self::open(state, name, cancel)?, lock))
    }

    /// Where it runs.
    #[must_use]
    pub fn runtime(&self) -> &dyn Runtime {
        &*self.runtime
    }

    /// What runs there.
    #[must_use]
    pub fn engine(&self) -> &dyn Engine {
        &*self.engine
    }

    /// The disk that its nodes share.
    ///
    /// # Errors
    /// When its engine has a disk for each node.
    pub fn shared_disk(&self) -> Result<&SharedDisk> {
        self.shared_disk.as_ref().ok_or_else(|| Error::invalid("the nodes of this cluster share no disk"))
    }

    /// Lets the shared disk be formatted although it holds something.
    ///
    /// # Errors
    /// When there is none, or what it holds is the database of this very cluster.
    pub fn allow_reformat(&mut self) -> Result<()> {
        let disk = self.shared_disk()?;
        if self.directory.is_noted(Note::Formatted) {
            return Err(Error::refused(format!("{} holds a database of this cluster", disk.path().display()))
                .with_hint("`provision down --purge` gives it up"));
        }
        self.may_reformat = true;
        Ok(())
    }

    /// Whether the shared disk may be formatted although it holds something.
    #[must_use]
    pub fn may_reformat(&self) -> bool {
        self.may_reformat
    }

    /// Whether somebody asks to stop.
    #[must_use]
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// What this machine lacks for it.
    ///
    /// # Errors
    /// When it cannot be found out.
    pub fn findings(&self) -> Result<Vec<Finding>> {
        let mut findings = self.runtime.findings(&self.record.topology)?;
        // Where the nodes are out of reach, nothing there can be asked.
        if !findings.iter().any(|finding| UNUSABLE.contains(&finding.id)) {
            findings.extend(self.engine.findings(self)?);
        }
        Ok(findings)
    }

    /// The same for whoever has the time to wait for it.
    ///
    /// # Errors
    /// When it cannot be found out.
    pub fn all_findings(&self) -> Result<Vec<Finding>> {
        let mut findings = self.findings()?;
        if !findings.iter().any(|finding| UNUSABLE.contains(&finding.id)) {
            findings.extend(self.engine.slow_findings(self)?);
        }
        Ok(findings)
    }

    /// Everything from nothing to a cluster whose replication is proven.
    ///
    /// # Errors
    /// When the database's programs are not there.
    pub fn plan(&self, loss: Loss) -> Result<Plan<'_>> {
        let mut plan = Plan::new();
        self.shared_disk.iter().flat_map(SharedDisk::steps).for_each(|step| plan.push(step));
        self.runtime.shared_steps(&self.record.topology).into_iter().for_each(|step| plan.push(step));
        for node in self.record.topology.nodes() {
            let find = Box::new(move || self.engine.devices(self, node));
            let devices = Devices { find, shell: self.engine.shell_devices(self, node) };
            self.runtime.node_steps(node, devices).into_iter().for_each(|step| plan.push(step));
        }
        self.engine.steps(self, loss)?.into_iter().for_each(|step| plan.push(step));
        Ok(plan)
    }

    /// Makes what is missing, starts what does not run, and proves that it replicates.
    ///
    /// # Errors
    /// That of the step that failed.
    pub fn converge(&self, loss: Loss, observer: &mut dyn Observer) -> Result<()> {
        // Of commands that were killed: they would write into what we make.
        self.runtime.end_stragglers()?;
        self.plan(loss)?.run(observer, &self.cancel)
    }

    /// The same, where a port that may change may be taken by somebody else meanwhile: then its node gets another, which is none
    /// of `avoid`. In the end all ports stay.
    ///
    /// # Errors
    /// That of the step that failed.
    pub fn converge_somewhere(&mut self, avoid: &HashSet<u16>, lock: &Lock, observer: &mut dyn Observer) -> Result<()> {
        const TRIES: u32 = 5;
        let mut tries = 1;
        while let Err(error) = self.converge(Loss::Refuse, observer) {
            let may_help = error.kind() != ErrorKind::Interrupted && tries < TRIES;
            let moved = if may_help { self.move_away(avoid)? } else { Vec::new() };
            if moved.is_empty() {
                return Err(error);
            }
            self.directory.save(&self.record, lock)?;
            moved.iter().try_for_each(|moved| observer.event(&Event::PortMoved(moved.clone())))?;
            tries += 1;
        }
        let settled = self.record.topology.settled();
        if settled != self.record.topology {
            self.record.topology = settled;
            self.directory.save(&self.record, lock)?;
        }
        Ok(())
    }

    /// Gives nodes whose port may change and is somebody else's by now another, which is none of `avoid`.
    pub(crate) fn move_away(&mut self, avoid: &HashSet<u16>) -> Result<Vec<PortMoved>> {
        let mut moved = Vec::new();
        for node in self.record.topology.clone().nodes() {
            if !node.port_may_change || !self.runtime.is_port_taken(node)? {
                continue;
            }
            let ours = self.record.topology.nodes().iter().map(|node| node.port);
            let port = ports::pick(None, &avoid.iter().copied().chain(ours).collect())?;
            self.record.topology = self.record.topology.with_port(&node.name, port)?;
            moved.push(PortMoved { node: node.name.clone(), from: node.port, to: port });
        }
        Ok(moved)
    }

    /// Starts these nodes.
    ///
    /// # Errors
    /// When one is not complete, or that of the step that failed.
    pub fn start(&self, nodes: &[&Node], observer: &mut dyn Observer) -> Result<()> {
        nodes.iter().try_for_each(|node| self.runtime.wake(node))?;
        let mut plan = Plan::new();
        self.engine.start_steps(self, nodes)?.into_iter().for_each(|step| plan.push(step));
        plan.run(observer, &self.cancel)
    }

    /// Stops these nodes so that nothing is lost. The primary goes first: it sends its replicas everything before it ends.
    ///
    /// # Errors
    /// When one does not stop.
    pub fn stop(&self, nodes: &[&Node]) -> Result<()> {
        let (primary, replicas): (Vec<&Node>, Vec<&Node>) = nodes.iter().partition(|node| node.role == Role::Primary);
        primary.iter().chain(&replicas).try_for_each(|node| self.engine.stop(self, node))
    }

    /// Takes it down: everything that runs ends. With `purge` its data, its secrets and its record go, too.
    ///
    /// # Errors
    /// When something cannot be ended or removed; a second attempt goes on.
    pub fn down(self, lock: Lock, purge: bool) -> Result<()> {
        self.runtime.end_stragglers()?;
        let nodes: Vec<&Node> = self.record.topology.nodes().iter().collect();
        if purge {
            nodes.iter().try_for_each(|node| self.engine.abandon(&self, node))?;
        } else {
            self.stop(&nodes)?;
        }
        nodes.iter().try_for_each(|node| self.runtime.remove_node(node, purge))?;
        if let Some(disk) = &self.shared_disk {
            disk.release(purge)?;
        }
        if purge {
            self.runtime.remove_shared(&self.record.topology)?;
            self.directory.remove(lock)?;
        }
        Ok(())
    }

    /// Adds a replica, and makes it. A port that was picked for it may be taken meanwhile: then it gets another, which is none
    /// of `avoid`.
    ///
    /// # Errors
    /// When the name or the port is used already, or that of the step that failed: `up` goes on then.
    pub fn add_replica(
        mut self,
        replica: Node,
        avoid: &HashSet<u16>,
        lock: &Lock,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let mut nodes = self.record.topology.nodes().to_vec();
        nodes.push(replica);
        self.record.topology = Topology::new(nodes)?;
        crate::doctor::refuse_errors(&self.findings()?)?;
        self.directory.save(&self.record, lock)?;
        self.converge_somewhere(avoid, lock, observer)?;
        Ok(self)
    }

    /// Stops a replica, drops its slot, and removes its files.
    ///
    /// # Errors
    /// When it is the primary, or the primary does not answer.
    pub fn remove_replica(mut self, name: &str, lock: &Lock) -> Result<()> {
        let node = self.record.topology.node(name)?.clone();
        if node.role == Role::Primary {
            return Err(Error::refused(format!("{name} is the primary: its data are the cluster's"))
                .with_hint("`provision down --purge` takes the whole cluster away"));
        }
        self.runtime.end_stragglers()?;
        self.engine.stop(&self, &node)?;
        self.engine.forget_replica(&self, &node)?;
        self.runtime.remove_node(&node, true)?;
        self.directory.forget(&node.name)?;
        let rest = self.record.topology.nodes().iter().filter(|other| other.name != node.name).cloned().collect();
        self.record.topology = Topology::new(rest)?;
        self.directory.save(&self.record, lock)
    }

    /// How to connect to each node, the primary first.
    #[must_use]
    pub fn connections(&self) -> Vec<Connection> {
        let passwords = (!self.record.config.trust).then(|| self.directory.passwords());
        let nodes = self.record.topology.nodes().iter();
        nodes
            .map(|node| Connection {
                node: node.name.clone(),
                role: node.role,
                host: node.address.map_or_else(|| "127.0.0.1".to_owned(), |address| address.to_string()),
                port: node.port,
                user: SUPERUSER,
                database: "postgres",
                password_file: passwords.clone(),
                log: self.runtime.log(crate::runtime::Service { node, name: self.engine.service() }),
            })
            .collect()
    }
}

/// How to connect to a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Connection {
    /// The node.
    pub node: Name,
    /// What it does.
    pub role: Role,
    /// Where it listens.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Whom to connect as.
    pub user: &'static str,
    /// Which database to connect to.
    pub database: &'static str,
    /// Where the password is, unless everybody is trusted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// Where the node's log is, as the node sees it.
    pub log: PathBuf,
}

impl Connection {
    /// As a connection string for libpq and what understands the same.
    #[must_use]
    pub fn string(&self) -> String {
        let Self { host, port, user, database, .. } = self;
        let passwords = self.password_file.as_ref().map(|path| format!(" passfile={}", path.display()));
        format!("host={host} port={port} user={user} dbname={database}{}", passwords.unwrap_or_default())
    }
}

fn missing(state: &StateDirectory, name: &Name) -> Error {
    let mut names: Vec<String> = state.records().iter().map(|record| record.config.name.to_string()).collect();
    names.sort();
    let hint = if names.is_empty() {
        "`provision up` makes one".to_owned()
    } else {
        format!("there is: {}; name one with --name", names.join(", "))
    };
    Error::new(ErrorKind::NotFound, format!("there is no cluster called {name}")).with_hint(hint)
}

fn engine_of(config: &Config) -> Box<dyn Engine> {
    match config.engine {
        EngineKind::Postgres => Box::new(Postgres::new(config.bin_directory.clone())),
        EngineKind::Polardb => {
            let workers = config.workers.unwrap_or(WORKERS_DEFAULT);
            Box::new(PolarDb::new(workers, config.pfsd.clone(), config.build.clone()))
        }
    }
}

/// Fills in what a new cluster keeps from its first `up` on, whatever is installed or set on this machine later.
pub(crate) fn pin(config: &mut Config) -> Result<()> {
    match config.runtime {
        RuntimeKind::Local => {
            if config.bin_directory.is_none() {
                // Where there is none yet, `findings` says so.
                config.bin_directory =
                    crate::engine::postgres::Installation::find(None).ok().map(|installation| installation.bin);
            }
            config.user = Some(crate::runtime::local::Account::find(config.user.as_deref())?.name);
        }
        RuntimeKind::Docker => {
            config.docker = Some(Endpoint::find(config.docker.as_deref())?.to_string());
            if config.image.is_none() {
                config.image = Some(engine_of(config).image().to_owned());
            }
        }
    }
    Ok(())
}
