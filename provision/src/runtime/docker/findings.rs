//! What Docker lacks for the nodes.

use blockdev::{ErrorKind, Result};

use super::Docker;
use super::client::Client;
use crate::doctor::Finding;
use crate::runtime::local::ports;
use crate::topology::{Node, Topology};

pub(super) fn all(docker: &Docker, topology: &Topology) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for node in docker.one_per_daemon(topology)? {
        match docker.client(node) {
            Ok(client) => {
                findings.extend(foreign("network", docker.has_network(&client)));
                findings.extend(image(docker, &client)?);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
            Err(error) => findings.push(Finding::from_error("docker-unreachable", &error)),
        }
    }
    if !findings.iter().any(|finding| finding.id == "docker-unreachable") {
        for node in topology.nodes() {
            findings.extend(of_node(docker, node)?);
        }
    }
    Ok(findings)
}

fn of_node(docker: &Docker, node: &Node) -> Result<Vec<Finding>> {
    let client = docker.client(node)?;
    let mut findings = Vec::new();
    let mut runs = false;
    match docker.container(&client, node) {
        Ok(container) => runs = container.is_some_and(|container| container.running),
        Err(error) => findings.extend(foreign("container", Err(error))),
    }
    findings.extend(foreign("volume", docker.has_volume(&client, node)));
    if client.endpoint.is_here() && !runs && !ports::is_free(node.port) {
        findings.push(ports::taken(node));
    }
    Ok(findings)
}

fn foreign(what: &'static str, looked: Result<bool>) -> Option<Finding> {
    let id = match what {
        "network" => "foreign-network",
        "volume" => "foreign-volume",
        _ => "foreign-container",
    };
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
