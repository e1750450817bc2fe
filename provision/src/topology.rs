//! Nodes and their roles: who writes, who reads, and what they are called.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use blockdev::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::config::Pfsd;

/// What a node does in a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Writes. A cluster has exactly one.
    Primary,
    /// Follows the primary, and reads.
    Replica,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Primary => "primary",
            Self::Replica => "replica",
        })
    }
}

/// The longest name: a replication slot's, without the terminating NUL.
const NAME_LENGTH_MAX: usize = 63;

/// A name of a cluster or a node: lower-case letters, digits and underscores, starting with a letter, at most 63 of them.
/// It also names a directory, a replication slot and a host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let valid = text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.len() <= NAME_LENGTH_MAX
            && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::invalid(format!("{text:?} is no name for a cluster or a node")).with_hint(format!(
                "use up to {NAME_LENGTH_MAX} lower-case letters, digits and underscores, a letter first: \
                 it also names a directory and a replication slot"
            )))
        }
    }
}

impl TryFrom<String> for Name {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A node as it is asked for; on the command line `NAME=ROLE` or `NAME=ROLE:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSpec {
    /// What it is called.
    pub name: Name,
    /// What it does.
    pub role: Role,
    /// Its port on 127.0.0.1; a free one is picked where none is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Where its Docker is, if not where that of the others is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub docker: Option<String>,
    /// The address of its Docker's machine at which everybody reaches it; 127.0.0.1 where none is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Which pfsd it runs, if not the one that the others do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pfsd: Option<Pfsd>,
}

impl NodeSpec {
    /// A node of which no more is said.
    #[must_use]
    pub fn new(name: Name, role: Role, port: Option<u16>) -> Self {
        Self { name, role, port, docker: None, address: None, pfsd: None }
    }
}

impl FromStr for NodeSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: &str| {
            Error::invalid(format!("{text:?} describes no node: {why}"))
                .with_hint("write NAME=ROLE or NAME=ROLE:PORT, such as reader=replica:5501")
        };
        let (name, rest) = text.split_once('=').ok_or_else(|| bad("it has no '='"))?;
        let (role, port) = match rest.split_once(':') {
            Some((role, port)) => {
                let port = port.parse().ok().filter(|port| *port > 0);
                (role, Some(port.ok_or_else(|| bad("its port is not a number from 1 to 65535"))?))
            }
            None => (rest, None),
        };
        let role = match role {
            "primary" => Role::Primary,
            "replica" => Role::Replica,
            _ => return Err(bad("its role is neither primary nor replica")),
        };
        Ok(Self::new(name.parse()?, role, port))
    }
}

/// A node of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// What it is called.
    pub name: Name,
    /// What it does.
    pub role: Role,
    /// Its port, on 127.0.0.1 or at its address.
    pub port: u16,
    /// Whether another would do: this one was picked, and nobody has been told of it yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub port_may_change: bool,
    /// Where its Docker is, if not where that of the others is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub docker: Option<String>,
    /// The address of its Docker's machine at which everybody reaches it, where it is not 127.0.0.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Which pfsd it runs, if not the one that the others do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pfsd: Option<Pfsd>,
    /// Which of the hosts of a shared disk it is, from 1; [`UNNUMBERED`](Self::UNNUMBERED) until it is in a topology.
    #[serde(default)]
    pub host_id: u16,
}

impl Node {
    /// The host id of a node that is in no topology yet.
    pub const UNNUMBERED: u16 = 0;

    /// A node that is in no topology yet.
    #[must_use]
    pub fn new(name: Name, role: Role, port: u16) -> Self {
        Self {
            name,
            role,
            port,
            port_may_change: false,
            docker: None,
            address: None,
            pfsd: None,
            host_id: Self::UNNUMBERED,
        }
    }
}

/// Nodes that make a cluster: exactly one primary, no name and no port twice. The primary comes first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Node>", into = "Vec<Node>")]
pub struct Topology(Vec<Node>);

impl Topology {
    /// These nodes, the primary moved to the front. Those that have no host id yet get the lowest that nobody has.
    ///
    /// # Errors
    /// When there is not exactly one primary, or a name, a port or a host id is used twice.
    pub fn new(mut nodes: Vec<Node>) -> Result<Self> {
        check_specs(nodes.iter().map(|node| (&node.name, node.role, Some(node.port))))?;
        nodes.sort_by_key(|node| node.role != Role::Primary);
        let mut used = HashSet::new();
        for node in nodes.iter().filter(|node| node.host_id != Node::UNNUMBERED) {
            if !used.insert(node.host_id) {
                return Err(Error::invalid(format!("two nodes are host {} of the shared disk", node.host_id))
                    .with_hint("two hosts with one id would lock each other out, or write as one"));
            }
        }
        for node in nodes.iter_mut().filter(|node| node.host_id == Node::UNNUMBERED) {
            // There are fewer nodes than ports.
            node.host_id = (1..).find(|id| used.insert(*id)).unwrap_or(u16::MAX);
        }
        Ok(Self(nodes))
    }

    /// The nodes, the primary first.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.0
    }

    /// The node that writes.
    #[must_use]
    pub fn primary(&self) -> &Node {
        // `new` has put it there.
        &self.0[0]
    }

    /// The nodes that read, in the order in which they joined.
    #[must_use]
    pub fn replicas(&self) -> &[Node] {
        &self.0[1..]
    }

    /// The same with another port for the node called `name`.
    ///
    /// # Errors
    /// When another node has that port.
    pub fn with_port(&self, name: &Name, port: u16) -> Result<Self> {
        let moved = |node: &Node| Node { port: if node.name == *name { port } else { node.port }, ..node.clone() };
        Self::new(self.0.iter().map(moved).collect())
    }

    /// The same with ports that stay.
    #[must_use]
    pub fn settled(&self) -> Self {
        Self(self.0.iter().map(|node| Node { port_may_change: false, ..node.clone() }).collect())
    }

    /// The node called `name`.
    ///
    /// # Errors
    /// When there is none; the hint names those that are.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.0.iter().find(|node| node.name.as_str() == name).ok_or_else(|| {
            let names: Vec<&str> = self.0.iter().map(|node| node.name.as_str()).collect();
            Error::invalid(format!("there is no node called {name:?}"))
                .with_hint(format!("the nodes are {}", names.join(", ")))
        })
    }
}

impl TryFrom<Vec<Node>> for Topology {
    type Error = Error;

    fn try_from(nodes: Vec<Node>) -> Result<Self> {
        Self::new(nodes)
    }
}

impl From<Topology> for Vec<Node> {
    fn from(topology: Topology) -> Self {
        topology.0
    }
}

/// Checks what is asked for before any port is picked.
///
/// # Errors
/// When there is not exactly one primary, or a name or a port is used twice.
pub fn check_specs<'a>(nodes: impl Iterator<Item = (&'a Name, Role, Option<u16>)>) -> Result<()> {
    let (mut names, mut ports, mut primaries) = (HashSet::new(), HashSet::new(), 0);
    for (name, role, port) in nodes {
        if !names.insert(name) {
            return Err(Error::invalid(format!("two nodes are called {name}")).with_hint("give each node its own name"));
        }
        if let Some(port) = port
            && !ports.insert(port)
        {
            return Err(Error::invalid(format!("two nodes use port {port}"))
                .with_hint("give each node its own port, or none: free ones are picked"));
        }
        primaries += usize::from(role == Role::Primary);
    }
    match primaries {
        1 => Ok(()),
        0 => Err(Error::invalid("no node is a primary").with_hint("give one node the role primary")),
        _ => Err(Error::invalid(format!("{primaries} nodes are primaries; one disk has one writer"))
            .with_hint("give one node the role primary and the others the role replica")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(name: &str, role: Role, port: u16) -> Node {
        Node::new(name.parse().unwrap(), role, port)
    }

    #[test]
    fn a_host_id_is_kept_and_never_given_twice() {
        let ids = |topology: &Topology| topology.nodes().iter().map(|node| node.host_id).collect::<Vec<_>>();
        let mut nodes = vec![node("r", Role::Replica, 2), node("s", Role::Replica, 3), node("p", Role::Primary, 1)];
        let topology = Topology::new(nodes.clone()).unwrap();
        assert_eq!(ids(&topology), [1, 2, 3]);
        // One goes, and another comes: those that stay keep theirs.
        let mut rest: Vec<Node> = topology.into();
        rest.remove(1);
        rest.extend([node("t", Role::Replica, 4), node("u", Role::Replica, 5)]);
        assert_eq!(ids(&Topology::new(rest).unwrap()), [1, 3, 2, 4]);
        nodes.iter_mut().for_each(|node| node.host_id = 7);
        assert_eq!(Topology::new(nodes).unwrap_err().to_string(), "two nodes are host 7 of the shared disk");
    }

    #[test]
    fn the_primary_comes_first() {
        let topology =
            Topology::new(vec![node("r", Role::Replica, 2), node("p", Role::Primary, 1), node("s", Role::Replica, 3)])
                .unwrap();
        assert_eq!(topology.primary().name.as_str(), "p");
        assert_eq!(topology.replicas().iter().map(|node| node.name.as_str()).collect::<Vec<_>>(), ["r", "s"]);
        let error = topology.node("q").unwrap_err();
        assert_eq!(error.to_string(), "there is no node called \"q\"");
        assert_eq!(error.hint(), Some("the nodes are p, r, s"));
    }

    #[test]
    fn a_topology_that_cannot_be_says_why() {
        for (nodes, message) in [
            (vec![], "no node is a primary"),
            (vec![node("a", Role::Replica, 1)], "no node is a primary"),
            (vec![node("a", Role::Primary, 1), node("a", Role::Replica, 2)], "two nodes are called a"),
            (vec![node("a", Role::Primary, 1), node("b", Role::Replica, 1)], "two nodes use port 1"),
            (
                vec![node("a", Role::Primary, 1), node("b", Role::Primary, 2)],
                "2 nodes are primaries; one disk has one writer",
            ),
        ] {
            assert_eq!(Topology::new(nodes).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn nodes_on_the_command_line() {
        let spec: NodeSpec = "reader_2=replica:5501".parse().unwrap();
        assert_eq!((spec.name.as_str(), spec.role, spec.port), ("reader_2", Role::Replica, Some(5501)));
        assert_eq!("w=primary".parse::<NodeSpec>().unwrap().port, None);
        for (text, why) in [
            ("reader", "it has no '='"),
            ("reader=standby", "its role is neither primary nor replica"),
            ("reader=replica:0", "its port is not a number from 1 to 65535"),
            ("reader=replica:70000", "its port is not a number from 1 to 65535"),
        ] {
            let error = text.parse::<NodeSpec>().unwrap_err();
            assert_eq!(error.to_string(), format!("{text:?} describes no node: {why}"));
        }
        assert!("Reader=replica".parse::<NodeSpec>().unwrap_err().to_string().contains("is no name"));
    }

    proptest! {
        #[test]
        fn a_name_is_safe_as_a_path_and_in_sql(text in ".{0,70}") {
            if let Ok(name) = text.parse::<Name>() {
                prop_assert!(name.as_str().bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
                prop_assert!(!name.as_str().is_empty() && name.as_str().len() <= 63);
            }
        }

        #[test]
        fn every_good_name_is_taken(text in "[a-z][a-z0-9_]{0,62}") {
            let name: Name = text.parse().unwrap();
            prop_assert_eq!(name.as_str(), text);
        }
    }
}
