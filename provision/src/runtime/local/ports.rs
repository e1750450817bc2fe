//! Ports of this machine: which are free, and who has those that are not.

use std::collections::HashSet;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};

use blockdev::{Error, Result};

use crate::doctor::Finding;
use crate::topology::Node;

/// The first port that is tried; above those of databases that stand alone.
const FIRST: u16 = 5500;

/// Whether nobody listens on this port of 127.0.0.1.
#[must_use]
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// The lowest free port from `from` on (or a good place to start) that is not in `avoid`.
///
/// # Errors
/// When there is none.
pub fn pick(from: Option<u16>, avoid: &HashSet<u16>) -> Result<u16> {
    let from = from.unwrap_or(FIRST);
    (from..=u16::MAX).find(|port| !avoid.contains(port) && is_free(*port)).ok_or_else(|| {
        Error::refused(format!("no port from {from} to {} of 127.0.0.1 is free", u16::MAX))
            .with_hint("name a lower one with --port")
    })
}

/// The finding that a port which `node` needs is taken.
#[must_use]
pub fn taken(node: &Node) -> Finding {
    let holder = holder(node.port).unwrap_or_else(|| "another program".to_owned());
    Finding::error(
        "port-taken",
        format!("port {} of 127.0.0.1, which {} needs, is taken by {holder}", node.port, node.name),
        "stop that, or name another port (--port, --node) for a new cluster",
    )
}

/// Who listens on this port, as far as one may know: `process 123 (nginx)`.
#[must_use]
pub fn holder(port: u16) -> Option<String> {
    let id = holding_process(port)?;
    let command = fs::read_to_string(format!("/proc/{id}/comm")).ok()?;
    Some(format!("process {id} ({})", command.trim()))
}

/// The id of the process that listens on this port, as far as one may know.
pub(super) fn holding_process(port: u16) -> Option<u32> {
    let inode = listening_inode(&fs::read_to_string("/proc/net/tcp").ok()?, port)
        .or_else(|| listening_inode(&fs::read_to_string("/proc/net/tcp6").ok()?, port))?;
    let socket = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(|id: &u32| {
        let mut descriptors = fs::read_dir(format!("/proc/{id}/fd")).into_iter().flatten().flatten();
        descriptors.any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target.as_os_str() == socket.as_str()))
    })
}

/// The inode of the socket that listens on `port` in a table as /proc/net/tcp prints it (proc(5)).
fn listening_inode(table: &str, port: u16) -> Option<u64> {
    const LISTEN: &str = "0A";
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, local_port) = fields.get(1)?.rsplit_once(':')?;
        let matches = u16::from_str_radix(local_port, 16) == Ok(port) && *fields.get(3)? == LISTEN;
        if matches { fields.get(9)?.parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_passed_over_and_its_holder_named() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let taken = listener.local_addr().unwrap().port();
        assert!(!is_free(taken));
        assert!(pick(Some(taken), &HashSet::new()).is_ok_and(|port| port > taken));
        let holder = holder(taken).unwrap();
        assert!(holder.starts_with(&format!("process {} (", std::process::id())), "{holder}");
        drop(listener);
        assert!(pick(Some(taken), &[taken].into()).is_ok_and(|port| port != taken));
    }

    #[test]
    fn only_listening_sockets_hold_a_port() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                     0: 0100007F:157C 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 111 1\n\
                     1: 0100007F:157C 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 222 1\n";
        assert_eq!(listening_inode(table, 5500), Some(222));
        assert_eq!(listening_inode(table, 5501), None);
        assert_eq!(listening_inode("", 5500), None);
    }
}
