//! The parameters of PolarDB on a shared disk, as the published recipe has them.

use std::path::Path;

use blockdev::ByteSize;

use super::pfsd::{DISK, STORAGE};
use crate::config::Config;
use crate::doctor::Finding;
use crate::engine::postgres::Absent;
use crate::topology::{Name, Node};

/// The directory of the database on the shared disk; what ends in a slash is a directory to `polar-initdb.sh`.
pub(super) const SHARED_DATA: &str = "/nvme1n1/shared_data/";
/// Where PolarDB looks for how much memory its node uses. It is there on cgroup v1 alone.
const MEMORY_STAT: &str = "/sys/fs/cgroup/memory/memory.stat";
/// The parameter that makes it look there.
const RESOURCE_MANAGER: &str = "polar_resource_manager.enable_resource_manager";

/// The parameter that says which host of the shared disk a node is.
pub(super) const HOST_ID: &str = "polar_hostid";
/// What the shared memory of pfsd and of the databases' way to it comes to at least.
const SHM_MIN: ByteSize = ByteSize::mib(512);

/// Without that it would warn twice a second that it does not find it.
pub(super) const WHERE_ABSENT: &[Absent] = &[Absent { path: MEMORY_STAT, parameter: RESOURCE_MANAGER, value: "off" }];

/// The parameters that tie a node to the shared disk, and are not to be set by hand.
const OWNED: [&str; 6] = [
    "polar_datadir",
    "polar_disk_name",
    "polar_enable_shared_storage_mode",
    HOST_ID,
    "polar_storage_cluster_name",
    "polar_vfs.localfs_mode",
];

/// What PolarDB needs beside what every PostgreSQL does.
pub(super) fn parameters(node: &Node) -> Vec<(&'static str, String)> {
    let host_id = node.host_id.to_string();
    let parameters = [
        (HOST_ID, host_id.as_str()),
        ("polar_enable_shared_storage_mode", "on"),
        ("polar_disk_name", DISK),
        ("polar_datadir", SHARED_DATA),
        ("polar_vfs.localfs_mode", "off"),
        ("polar_storage_cluster_name", STORAGE),
        ("shared_preload_libraries", "$libdir/polar_vfs,$libdir/polar_worker"),
        ("huge_pages", "off"),
        ("max_connections", "200"),
        // Without these a replica cannot be promoted.
        ("polar_logindex_mem_size", "64MB"),
        ("polar_xlog_queue_buffers", "64MB"),
        ("polar_xlog_page_buffers", "64MB"),
        // PolarFS writes a page whole or not at all.
        ("full_page_writes", "off"),
        ("polar_has_partial_write", "off"),
    ];
    parameters.into_iter().map(|(name, value)| (name, value.to_owned())).collect()
}

/// Nodes that run as one host of the shared disk, whatever their configuration is meant to say.
pub(super) fn same_host_id(ids: &[(Name, String)]) -> Option<Finding> {
    let with = |id: &str| -> Vec<&str> {
        ids.iter().filter(|(_, other)| other == id).map(|(name, _)| name.as_str()).collect()
    };
    let (_, id) = ids.iter().find(|(_, id)| with(id).len() > 1)?;
    let names = with(id);
    Some(Finding::error(
        "same-host-id",
        format!(
            "{} all run as host {id} of the shared disk: they lock each other out, or write as one",
            names.join(", ")
        ),
        format!("ALTER SYSTEM RESET {HOST_ID} on each of them; then `provision stop` and `provision up`"),
    ))
}

/// Parameters that are not to be set by hand, and where PolarDB does not find the memory it uses.
pub(super) fn findings(config: &Config) -> Vec<Finding> {
    let owned = config.parameters.keys().filter(|name| OWNED.contains(&name.as_str()));
    let mut findings: Vec<Finding> = owned
        .map(|name| {
            Finding::error(
                "owned-parameter",
                format!("the parameter {name} is set by provision itself"),
                format!("take {name} out of the parameters"),
            )
        })
        .collect();
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() && !config.parameters.contains_key(RESOURCE_MANAGER) {
        findings.push(Finding::warning(
            "memory-accounting",
            format!(
                "on this kernel's cgroup v2 there is no {MEMORY_STAT}, and PolarDB would warn of it twice a second"
            ),
            format!("nothing: provision sets {RESOURCE_MANAGER} = off"),
        ));
    }
    findings.extend(config.shm_size.filter(|size| *size < SHM_MIN).map(|size| {
        Finding::warning(
            "small-shm",
            format!("/dev/shm of a node may have {size}, of which pfsd and the database's way to it alone take up to {SHM_MIN}"),
            format!("give it more with --shm-size, {SHM_MIN} and what the database needs"),
        )
    }));
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Layers, Origin, Settings};
    use crate::topology::Role;

    #[test]
    fn every_node_is_another_host_of_the_same_disk() {
        let node = |host_id| Node { host_id, ..Node::new("n".parse().unwrap(), Role::Replica, 1) };
        let (first, second) = (parameters(&node(1)), parameters(&node(2)));
        let differing: Vec<_> = first.iter().zip(&second).filter(|(a, b)| a != b).map(|(a, _)| a.0).collect();
        assert_eq!(differing, ["polar_hostid"]);
        assert!(OWNED.iter().all(|owned| first.iter().any(|(name, _)| name == owned)));
    }

    #[test]
    fn two_nodes_that_run_as_one_host_are_told() {
        let ids = |ids: [&str; 3]| -> Vec<(Name, String)> {
            ["p", "r", "s"].iter().zip(ids).map(|(name, id)| (name.parse().unwrap(), id.to_owned())).collect()
        };
        assert_eq!(same_host_id(&ids(["1", "2", "3"])), None);
        let finding = same_host_id(&ids(["1", "2", "1"])).unwrap();
        assert_eq!(finding.id, "same-host-id");
        assert!(finding.message.starts_with("p, s all run as host 1 of the shared disk"), "{}", finding.message);
    }

    #[test]
    fn what_pfsd_needs_of_shared_memory_is_told() {
        let small = |size: &str| {
            let mut layers = Layers::default();
            let text = format!("shm_size = {size:?}");
            layers.add(Settings::parse(&text, Path::new("t")).unwrap(), |_| Origin::File("t".into()));
            findings(&layers.config().unwrap()).iter().any(|finding| finding.id == "small-shm")
        };
        assert!(small("511MiB") && !small("512MiB"));
    }

    #[test]
    fn what_ties_a_node_to_the_disk_is_not_set_by_hand() {
        let mut layers = Layers::default();
        let text = "parameters = { polar_hostid = \"3\", work_mem = \"1MB\" }";
        layers.add(Settings::parse(text, Path::new("t")).unwrap(), |_| Origin::File("t".into()));
        let findings = findings(&layers.config().unwrap());
        let owned: Vec<_> = findings.iter().filter(|finding| finding.id == "owned-parameter").collect();
        assert_eq!(owned.len(), 1);
        assert_eq!(owned[0].message, "the parameter polar_hostid is set by provision itself");
    }
}
