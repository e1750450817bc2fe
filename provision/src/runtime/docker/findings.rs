//! What Docker lacks for the nodes.

use std::path::Path;

use blockdev::{ByteSize, ErrorKind, Result};
use bollard::models::SystemInfo;

use super::Docker;
use super::client::Client;
use super::container::Limits;
use crate::doctor::Finding;
use crate::runtime::local::{NEW_NODE, ports};
use crate::topology::{Node, Topology};

pub(super) fn all(docker: &Docker, topology: &Topology) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut reachable = true;
    for node in docker.one_per_daemon(topology)? {
        match docker.client(node) {
            Ok(client) => {
                findings.extend(of_machine(docker, &client, topology)?);
                findings.extend(foreign("foreign-network", docker.has_network(&client)));
                if docker.shared_directory.is_some() {
                    findings.extend(foreign("foreign-volume", docker.has_volume(&client, &docker.shared_volume())));
                }
                findings.extend(image(docker, &client)?);
            }
            Err(error) => {
                reachable = false;
                findings.push(Finding::from_error(unusable(error.kind()), &error));
            }
        }
    }
    findings.extend(without_address(docker, topology)?);
    if reachable {
        for node in topology.nodes() {
            findings.extend(of_node(docker, node)?);
        }
    }
    Ok(findings)
}

/// What a Docker is that cannot be used at all.
pub const UNUSABLE: [&str; 3] = ["docker-permission", "docker-old", "docker-unreachable"];

fn unusable(kind: ErrorKind) -> &'static str {
    let [permission, old, unreachable] = UNUSABLE;
    match kind {
        ErrorKind::Permission => permission,
        ErrorKind::Unsupported => old,
        _ => unreachable,
    }
}

fn of_machine(docker: &Docker, client: &Client, topology: &Topology) -> Result<Vec<Finding>> {
    let info = client.call(|| "cannot ask Docker about its machine".to_owned(), async |docker| docker.info().await)?;
    let memory = info.mem_total.and_then(|bytes| u64::try_from(bytes).ok()).map(ByteSize::new);
    let mut findings = limits(docker.limits, memory, info.memory_limit);
    if let Some(root) = info.docker_root_dir.as_ref().filter(|_| is_this_machine(&info)) {
        let mut new_nodes = 0;
        for node in
            topology.nodes().iter().filter(|node| docker.client(node).is_ok_and(|of| of.endpoint == client.endpoint))
        {
            // One that is somebody else's is told elsewhere.
            new_nodes += u64::from(!docker.has_volume(client, &docker.container_name(node)).unwrap_or(true));
        }
        // A directory that this user may not look at, or that is Docker's own in some other way.
        let statistics = nix::sys::statvfs::statvfs(root.as_str());
        let free = statistics.map(|found| ByteSize::new(found.blocks_available() * found.fragment_size()));
        findings.extend(free.ok().and_then(|free| disk_space(root, free, new_nodes)));
    }
    Ok(findings)
}

/// Whether a daemon that says so of itself runs here, and not in a virtual machine or elsewhere.
pub(super) fn is_this_machine(info: &SystemInfo) -> bool {
    let is = |said: &Option<String>, name: &str| {
        let here = std::fs::read_to_string(Path::new("/proc/sys/kernel").join(name));
        here.is_ok_and(|here| said.as_deref() == Some(here.trim_end()))
    };
    is(&info.name, "hostname") && is(&info.kernel_version, "osrelease")
}

/// What new nodes take of where Docker has its images and volumes.
fn disk_space(root: &str, free: ByteSize, new_nodes: u64) -> Option<Finding> {
    let needed = ByteSize::new(NEW_NODE.bytes() * new_nodes);
    (free < needed).then(|| {
        Finding::error(
            "docker-disk-space",
            format!("{root}, where Docker has its images and volumes, has {free} free; {new_nodes} new nodes take about {needed}"),
            "make room there: docker system df says what takes it, docker system prune removes what nobody uses",
        )
    })
}

/// What is asked for and cannot be had of a machine with so much memory.
fn limits(limits: Limits, memory: Option<ByteSize>, enforced: Option<bool>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let (Some(asked), Some(there)) = (limits.memory, memory)
        && asked > there
    {
        findings.push(Finding::error(
            "little-memory",
            format!("each node is to have {asked} of memory; Docker's machine has {there}"),
            "ask for less with --memory",
        ));
    }
    if limits.memory.is_some() && enforced == Some(false) {
        findings.push(Finding::warning(
            "cgroup-memory",
            "Docker's machine does not limit memory: its kernel has no memory cgroup",
            "boot it with cgroup_enable=memory, or leave --memory out",
        ));
    }
    let most = limits.memory.or(memory);
    if let Some(most) = most.filter(|most| limits.shm_size > *most) {
        findings.push(Finding::warning(
            "large-shm",
            format!("/dev/shm of a node may grow to {}, and a node has {most} of memory", limits.shm_size),
            "ask for less with --shm-size",
        ));
    }
    findings
}

/// Nodes on several machines, or on another one than this, reach each other by address.
fn without_address(docker: &Docker, topology: &Topology) -> Result<Option<Finding>> {
    let several = docker.one_per_daemon(topology)?.len() > 1;
    let mut missing = Vec::new();
    for node in topology.nodes() {
        if node.address.is_none() && (several || !docker.endpoint(node)?.is_here()) {
            missing.push(node.name.as_str());
        }
    }
    Ok((!missing.is_empty()).then(|| {
        Finding::error(
            "no-address",
            format!("not all nodes are on this machine, and nobody says at which address of its machine one reaches {}", missing.join(", ")),
            "give each node its address: address = \"10.0.0.5\" below [[node]], or --address for a replica that is added",
        )
    }))
}

fn of_node(docker: &Docker, node: &Node) -> Result<Vec<Finding>> {
    let client = docker.client(node)?;
    let mut findings = Vec::new();
    let container = docker.container(&client, node);
    let taken = matches!(&container, Ok(found) if docker.is_port_of_another(&client, node, found.as_ref()));
    findings.extend(foreign("foreign-container", container));
    findings.extend(foreign("foreign-volume", docker.has_volume(&client, &docker.container_name(node))));
    findings.extend(taken.then(|| ports::taken(node)));
    Ok(findings)
}

fn foreign<T>(id: &'static str, looked: Result<T>) -> Option<Finding> {
    looked.err().map(|error| Finding::from_error(id, &error))
}

/// An image that is not here has to come from its registry.
fn image(docker: &Docker, client: &Client) -> Result<Option<Finding>> {
    if docker.has_image(client)? {
        return Ok(None);
    }
    match docker.ask_registry(client) {
        Err(error) if error.kind() == ErrorKind::Interrupted => Err(error),
        outcome => Ok(outcome.err().map(|error| Finding::from_error("image-missing", &error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_new_nodes_take_is_there_or_told() {
        assert_eq!(disk_space("/d", NEW_NODE, 1), None);
        assert_eq!(disk_space("/d", ByteSize::ZERO, 0), None);
        let finding = disk_space("/d", ByteSize::mib(150), 2).unwrap();
        assert_eq!(finding.id, "docker-disk-space");
        let said = "/d, where Docker has its images and volumes, has 150 MiB free; 2 new nodes take about 200 MiB";
        assert_eq!(finding.message, said);
    }

    #[test]
    fn the_machine_is_known_by_its_name_and_its_kernel() {
        let here = |name: &str| {
            let text = std::fs::read_to_string(Path::new("/proc/sys/kernel").join(name)).unwrap();
            Some(text.trim_end().to_owned())
        };
        let info = SystemInfo { name: here("hostname"), kernel_version: here("osrelease"), ..SystemInfo::default() };
        assert!(is_this_machine(&info));
        assert!(!is_this_machine(&SystemInfo { kernel_version: Some("6.10.14-linuxkit".to_owned()), ..info.clone() }));
        assert!(!is_this_machine(&SystemInfo { name: Some("docker-desktop".to_owned()), ..info }));
    }

    #[test]
    fn what_the_machine_does_not_have_is_told() {
        let ids = |memory: Option<u64>, there: u64, enforced: bool| {
            let asked = Limits { shm_size: ByteSize::gib(1), memory: memory.map(ByteSize::gib), cpus: None };
            let found = limits(asked, Some(ByteSize::gib(there)), Some(enforced));
            found.iter().map(|finding| finding.id).collect::<Vec<_>>()
        };
        assert_eq!(ids(None, 4, false), [""; 0]);
        assert_eq!(ids(Some(2), 4, true), [""; 0]);
        assert_eq!(ids(Some(8), 4, true), ["little-memory"]);
        assert_eq!(ids(Some(2), 4, false), ["cgroup-memory"]);
        assert_eq!(ids(Some(0), 4, true), ["large-shm"]);
    }
}
