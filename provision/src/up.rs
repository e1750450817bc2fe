//! From settings to a cluster that stands: what is asked for and what exists become one topology, which is then made.

use std::collections::HashSet;

use blockdev::{Cancel, Error, Result};

use crate::cluster::{Cluster, pin};
use crate::config::{Layers, Wanted};
use crate::doctor::{Finding, refuse_errors};
use crate::engine::Loss;
use crate::plan::Observer;
use crate::runtime::local::ports;
use crate::state::{Lock, Record, StateDirectory};
use crate::topology::{Name, Node, NodeSpec, Role, Topology, check_specs};

/// An `up` that is possible: everything was looked at, and nothing was changed yet.
#[derive(Debug)]
pub struct Up {
    cluster: Cluster,
    lock: Option<Lock>,
    elsewhere: HashSet<u16>,
    /// What the person should know.
    pub notices: Vec<String>,
}

impl Up {
    /// Looks at what is asked for, what exists and what this machine lacks.
    ///
    /// # Errors
    /// When it cannot be done: then nothing was changed.
    pub fn prepare(state: &StateDirectory, layers: Layers, cancel: &Cancel) -> Result<Self> {
        let up = Self::intend(state, layers, cancel)?;
        refuse_errors(&up.cluster.findings()?)?;
        Ok(up)
    }

    /// What this machine lacks for what is asked for.
    ///
    /// # Errors
    /// When what is asked for cannot be, or it cannot be found out.
    pub fn examine(state: &StateDirectory, layers: Layers, cancel: &Cancel) -> Result<Vec<Finding>> {
        Self::intend(state, layers, cancel)?.cluster.all_findings()
    }

    fn intend(state: &StateDirectory, mut layers: Layers, cancel: &Cancel) -> Result<Self> {
        let name = layers.config()?.name;
        let directory = state.cluster(&name);
        let lock = directory.lock()?;
        let made = directory.record()?;
        if let Some(made) = &made {
            layers.add_made(&made.config);
        }
        let mut config = layers.config()?;
        let wanted = layers.nodes()?;
        let elsewhere = ports_of_others(state, &name);
        let mut notices = Vec::new();
        let record = match made {
            Some(mut made) => {
                config.check_unchanged(&made.config, |key| layers.origin(key).to_string())?;
                let (topology, surplus) = grow(&made.topology, wanted, &elsewhere)?;
                if !surplus.is_empty() {
                    notices.push(format!(
                        "{} stays, though it is not asked for any more: `provision replica remove` takes a replica away",
                        surplus.join(", ")
                    ));
                }
                (made.config, made.topology) = (config, topology);
                made
            }
            None => {
                pin(&mut config)?;
                let specs = specs(wanted, config.port)?;
                Record::new(config, assign_ports(&[], specs, &elsewhere)?)?
            }
        };
        let mut cluster = Cluster::new(directory, record, cancel)?;
        // Of an `up` that was interrupted. Where it cannot be found out, the findings say why.
        let moved = cluster.move_away(&elsewhere).unwrap_or_default();
        notices.extend(moved.iter().map(ToString::to_string));
        Ok(Self { cluster, lock, elsewhere, notices })
    }

    /// Lets the shared disk be formatted although it holds something.
    ///
    /// # Errors
    /// When what it holds is the database of this very cluster.
    pub fn allow_reformat(&mut self) -> Result<()> {
        self.cluster.allow_reformat()
    }

    /// The shell commands that would do the same, in order.
    ///
    /// # Errors
    /// When the database's programs are not there.
    pub fn as_shell_script(&self) -> Result<String> {
        Ok(self.cluster.plan(Loss::Refuse)?.as_shell_script())
    }

    /// Makes what is missing, starts what does not run, and proves that it replicates.
    ///
    /// # Errors
    /// That of the step that failed; `up` goes on from there.
    pub fn run(self, observer: &mut dyn Observer) -> Result<Cluster> {
        let Self { mut cluster, lock, elsewhere, .. } = self;
        let lock = match lock {
            Some(lock) => lock,
            None => {
                let lock = cluster.directory.create()?;
                if cluster.directory.record()?.is_some() {
                    return Err(Error::refused("another command has just made this cluster").with_hint("run it again"));
                }
                lock
            }
        };
        cluster.directory.save(&cluster.record, &lock)?;
        cluster.converge_somewhere(&elsewhere, &lock, observer)?;
        Ok(cluster)
    }
}

/// The ports of the nodes of all clusters but the one called `name`.
pub fn ports_of_others(state: &StateDirectory, name: &Name) -> HashSet<u16> {
    let others = state.records().into_iter().filter(|record| record.config.name != *name);
    others.flat_map(|record| record.topology.nodes().iter().map(|node| node.port).collect::<Vec<_>>()).collect()
}

fn replica_name(number: usize) -> Result<Name> {
    format!("replica{number}").parse()
}

/// The nodes of a new cluster; `port` is the primary's.
fn specs(wanted: Wanted, port: Option<u16>) -> Result<Vec<NodeSpec>> {
    const DEFAULT_REPLICAS: u16 = 1;
    let count = match wanted {
        Wanted::Nodes(mut nodes) => {
            if let Some(primary) = nodes.iter_mut().find(|node| node.role == Role::Primary) {
                primary.port = primary.port.or(port);
            }
            return Ok(nodes);
        }
        Wanted::Replicas(count) => count,
        Wanted::Unsaid => DEFAULT_REPLICAS,
    };
    let mut nodes = vec![NodeSpec::new("primary".parse()?, Role::Primary, port)];
    for number in 1..=count {
        let port = match port {
            None => None,
            Some(first) => Some(first.checked_add(number).ok_or_else(|| {
                Error::invalid(format!("there are no {count} ports after {first}")).with_hint("name a lower --port")
            })?),
        };
        nodes.push(NodeSpec::new(replica_name(usize::from(number))?, Role::Replica, port));
    }
    Ok(nodes)
}

/// The nodes that are there as they are, and new ones, each with a port of its own.
fn assign_ports(kept: &[Node], added: Vec<NodeSpec>, elsewhere: &HashSet<u16>) -> Result<Topology> {
    let asked = added.iter().map(|spec| (&spec.name, spec.role, spec.port));
    check_specs(kept.iter().map(|node| (&node.name, node.role, Some(node.port))).chain(asked))?;
    let given = kept.iter().map(|node| node.port).chain(added.iter().filter_map(|spec| spec.port));
    let mut used: HashSet<u16> = given.chain(elsewhere.iter().copied()).collect();
    let new = added.into_iter().map(|NodeSpec { name, role, port, docker, address, pfsd }| {
        let port_may_change = port.is_none();
        let port = port.map_or_else(|| ports::pick(None, &used), Ok)?;
        used.insert(port);
        Ok(Node { port_may_change, docker, address, pfsd, ..Node::new(name, role, port) })
    });
    Topology::new(kept.iter().cloned().map(Ok).chain(new).collect::<Result<_>>()?)
}

/// What exists and what is asked for as one: nodes are added, never taken away. Beside them the names of those that are not
/// asked for any more.
fn grow(existing: &Topology, wanted: Wanted, elsewhere: &HashSet<u16>) -> Result<(Topology, Vec<String>)> {
    let known = |name: &Name| existing.node(name.as_str()).is_ok();
    let mut kept = existing.nodes().to_vec();
    let (added, surplus): (Vec<NodeSpec>, Vec<String>) = match wanted {
        Wanted::Unsaid => (Vec::new(), Vec::new()),
        Wanted::Replicas(count) => {
            let have = existing.replicas().len();
            let missing = usize::from(count).saturating_sub(have);
            let mut names = (1..).map(replica_name).filter(|name| name.as_ref().is_ok_and(|name| !known(name)));
            let added =
                (0..missing).filter_map(|_| names.next()).map(|name| Ok(NodeSpec::new(name?, Role::Replica, None)));
            let surplus = existing.replicas().iter().skip(usize::from(count)).map(|node| node.name.to_string());
            (added.collect::<Result<_>>()?, surplus.collect())
        }
        Wanted::Nodes(specs) => {
            for spec in &specs {
                check_same(existing, spec)?;
                // What may change.
                if let Some(node) = kept.iter_mut().find(|node| node.name == spec.name) {
                    node.pfsd.clone_from(&spec.pfsd);
                }
            }
            let surplus = existing.nodes().iter().filter(|node| specs.iter().all(|spec| spec.name != node.name));
            let surplus = surplus.map(|node| node.name.to_string()).collect();
            (specs.into_iter().filter(|spec| !known(&spec.name)).collect(), surplus)
        }
    };
    Ok((assign_ports(&kept, added, elsewhere)?, surplus))
}

fn check_same(existing: &Topology, spec: &NodeSpec) -> Result<()> {
    let Ok(node) = existing.node(spec.name.as_str()) else { return Ok(()) };
    let changed = if node.role != spec.role {
        format!("{} is a {}, and {} is asked for", node.name, node.role, spec.role)
    } else if spec.port.is_some_and(|port| port != node.port) {
        format!("{} has port {}, and another is asked for", node.name, node.port)
    } else if spec.docker.is_some() && spec.docker != node.docker {
        format!("{} is in another Docker than the one that is asked for", node.name)
    } else if spec.address.is_some() && spec.address != node.address {
        format!("{} is at another address than the one that is asked for", node.name)
    } else {
        return Ok(());
    };
    Err(Error::refused(changed).with_hint("a node keeps what it was made with; remove it and add it anew"))
}

/// A replica to add to `cluster`: `name`, or the first free one; `port`, or a free one.
///
/// # Errors
/// When no port is free.
pub fn new_replica(state: &StateDirectory, cluster: &Cluster, name: Option<Name>, port: Option<u16>) -> Result<Node> {
    let existing = &cluster.record.topology;
    let name = match name {
        Some(name) => name,
        None => {
            let unused = (1..)
                .map(replica_name)
                .find(|name| name.as_ref().map_or(true, |name| existing.node(name.as_str()).is_err()));
            unused.unwrap_or_else(|| replica_name(0))?
        }
    };
    let mut used = ports_of_others(state, &cluster.record.config.name);
    used.extend(existing.nodes().iter().map(|node| node.port));
    let port_may_change = port.is_none();
    let port = port.map_or_else(|| ports::pick(None, &used), Ok)?;
    Ok(Node { port_may_change, ..Node::new(name, Role::Replica, port) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(topology: &Topology) -> Vec<&str> {
        topology.nodes().iter().map(|node| node.name.as_str()).collect()
    }

    fn picked(topology: &Topology) -> Vec<&str> {
        topology.nodes().iter().filter(|node| node.port_may_change).map(|node| node.name.as_str()).collect()
    }

    fn nodes(specs: &[&str]) -> Wanted {
        Wanted::Nodes(specs.iter().map(|spec| spec.parse().unwrap()).collect())
    }

    fn made(wanted: Wanted, port: Option<u16>) -> Topology {
        assign_ports(&[], specs(wanted, port).unwrap(), &HashSet::new()).unwrap()
    }

    #[test]
    fn with_nothing_said_there_is_a_primary_and_a_replica() {
        assert_eq!(names(&made(Wanted::Unsaid, None)), ["primary", "replica1"]);
        let topology = made(Wanted::Replicas(2), Some(6000));
        assert_eq!(topology.nodes().iter().map(|node| node.port).collect::<Vec<_>>(), [6000, 6001, 6002]);
        let topology = made(nodes(&["r=replica:7000", "w=primary"]), Some(6000));
        assert_eq!((topology.primary().port, topology.replicas()[0].port), (6000, 7000));
        assert_eq!(
            specs(Wanted::Replicas(2), Some(u16::MAX - 1)).unwrap_err().to_string(),
            "there are no 2 ports after 65534"
        );
    }

    #[test]
    fn picked_ports_are_nobodys() {
        let first = made(Wanted::Unsaid, None);
        let taken: HashSet<u16> = first.nodes().iter().map(|node| node.port).collect();
        let second = assign_ports(&[], specs(Wanted::Unsaid, None).unwrap(), &taken).unwrap();
        assert!(second.nodes().iter().all(|node| !taken.contains(&node.port)));
    }

    #[test]
    fn a_cluster_grows_and_never_shrinks() {
        let none = HashSet::new();
        let existing = made(Wanted::Replicas(2), Some(6000));
        assert_eq!(grow(&existing, Wanted::Unsaid, &none).unwrap(), (existing.clone(), Vec::new()));
        let (grown, _) = grow(&existing, Wanted::Replicas(3), &none).unwrap();
        assert_eq!(names(&grown), ["primary", "replica1", "replica2", "replica3"]);
        assert_eq!(picked(&grown), ["replica3"]);
        let (kept, surplus) = grow(&existing, Wanted::Replicas(1), &none).unwrap();
        assert_eq!((kept, surplus), (existing.clone(), vec!["replica2".to_owned()]));
        let wanted = nodes(&["primary=primary", "extra=replica", "x=replica:7"]);
        let (grown, surplus) = grow(&existing, wanted, &none).unwrap();
        assert_eq!(names(&grown), ["primary", "replica1", "replica2", "extra", "x"]);
        assert_eq!(surplus, ["replica1", "replica2"]);
        assert_eq!(picked(&grown), ["extra"]);
    }

    #[test]
    fn a_node_that_exists_may_get_another_pfsd() {
        let none = HashSet::new();
        let mut existing = made(Wanted::Replicas(1), Some(6000));
        for pfsd in [Some("/p".parse().unwrap()), None] {
            let specs = existing.nodes().iter().map(|node| {
                let pfsd = pfsd.clone().filter(|_| node.role == Role::Replica);
                NodeSpec { pfsd, ..NodeSpec::new(node.name.clone(), node.role, None) }
            });
            existing = grow(&existing, Wanted::Nodes(specs.collect()), &none).unwrap().0;
            assert_eq!(existing.nodes().iter().map(|node| node.pfsd.clone()).collect::<Vec<_>>(), [None, pfsd]);
            assert_eq!(grow(&existing, Wanted::Replicas(1), &none).unwrap().0, existing);
        }
    }

    #[test]
    fn what_exists_is_not_changed() {
        let existing = made(Wanted::Replicas(1), Some(6000));
        for (spec, message) in [
            ("primary=replica", "primary is a primary, and replica is asked for"),
            ("replica1=replica:7", "replica1 has port 6001, and another is asked for"),
        ] {
            let error = grow(&existing, nodes(&[spec]), &HashSet::new()).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }
}
