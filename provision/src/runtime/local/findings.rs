//! What this machine lacks for nodes that are its own processes.

use std::path::Path;

use blockdev::{ByteSize, Context, Result};

use super::{Local, ports, volume};
use crate::doctor::Finding;
use crate::runtime::Runtime;
use crate::topology::Topology;

/// The longest path of a Unix socket: `sun_path` of unix(7) without its NUL.
const SOCKET_PATH_MAX: usize = 107;
/// What a new node takes, rounded up: an empty cluster of 40 MB, and WAL segments of 16 MB.
pub(in crate::runtime) const NEW_NODE: ByteSize = ByteSize::mib(100);

pub(super) fn all(local: &Local, topology: &Topology) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let nodes = local.nodes_directory();
    findings.extend(closed_directory(local, nodes));
    findings.extend(long_socket_path(&local.directory.sockets()));
    if local.nodes != local.directory.nodes() && !local.nodes.is_dir() {
        findings.push(Finding::error(
            "no-directory",
            format!("{} is no directory", nodes.display()),
            "make it first: it is yours, and stays when the cluster goes",
        ));
    }
    let mut new_nodes = 0;
    for node in topology.nodes() {
        match local.has_home(node) {
            Ok(true) => {}
            Ok(false) => new_nodes += 1,
            Err(error) => findings.push(Finding::from_error("foreign-directory", &error)),
        }
        findings.extend(local.is_port_taken(node)?.then(|| ports::taken(node)));
    }
    let each = local.disks.map_or(NEW_NODE, |disks| disks.space(NEW_NODE));
    findings.extend(disk_space(nodes, new_nodes, each)?);
    findings.extend(local.disks.and_then(|_| no_disks()));
    Ok(findings)
}

/// What nodes with disks of their own need.
fn no_disks() -> Option<Finding> {
    if !nix::unistd::geteuid().is_root() {
        return Some(Finding::error(
            "no-root",
            "disks of the nodes' own take root: they are loop devices, and are mounted",
            format!("{}; or --storage directory", blockdev::ui::sudo_line()),
        ));
    }
    (!volume::can_make_file_systems()).then(|| {
        Finding::error(
            "no-mkfs",
            "mkfs.ext4 is not installed: disks of the nodes' own need it",
            "apt-get install e2fsprogs",
        )
    })
}

fn closed_directory(local: &Local, nodes: &Path) -> Option<Finding> {
    let account = local.account();
    let paths = [nodes.to_owned(), local.directory.sockets()];
    let closed = paths.iter().find_map(|path| account.barred_from(path))?;
    Some(Finding::error(
        "closed-directory",
        format!("the database runs as {}, who may not enter {}", account.name, closed.display()),
        format!("choose another place with --state-dir or --directory, or: chmod a+x {}", closed.display()),
    ))
}

fn long_socket_path(sockets: &Path) -> Option<Finding> {
    let longest = sockets.join(".s.PGSQL.65535");
    let length = longest.as_os_str().len();
    (length > SOCKET_PATH_MAX).then(|| {
        Finding::error(
            "long-socket-path",
            format!(
                "the sockets' path {} would be {length} bytes long; the kernel takes {SOCKET_PATH_MAX}",
                longest.display()
            ),
            "choose a shorter place with --state-dir",
        )
    })
}

fn disk_space(nodes: &Path, new_nodes: u64, each: ByteSize) -> Result<Option<Finding>> {
    let existing = nodes.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let statistics = nix::sys::statvfs::statvfs(existing)
        .context(|| format!("cannot ask for the free space at {}", existing.display()))?;
    let free = ByteSize::new(statistics.blocks_available() * statistics.fragment_size());
    let needed = ByteSize::new(each.bytes() * new_nodes);
    Ok((free < needed).then(|| {
        Finding::error(
            "disk-space",
            format!("{} has {free} free; {new_nodes} new nodes take about {needed}", existing.display()),
            "make room, or choose another place with --directory",
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_path_has_an_end() {
        let fits = "/".to_owned() + &"x".repeat(SOCKET_PATH_MAX - 1 - "/.s.PGSQL.65535".len());
        assert_eq!(long_socket_path(Path::new(&fits)), None);
        let finding = long_socket_path(Path::new(&(fits + "x"))).unwrap();
        assert_eq!(finding.id, "long-socket-path");
        assert!(finding.message.ends_with("would be 108 bytes long; the kernel takes 107"));
    }
}
