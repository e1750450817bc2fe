//! PolarFS on a node: the volume, and the pfsd through which the node's database uses it.
//!
//! `pfsdaemon` is run by itself and in the foreground. `start_pfsd.sh` beside it reports success for a disk that is missing
//! or not formatted, and takes a pfsd of another container for its own.

use std::time::Duration;

use blockdev::{Error, ErrorKind, Result};
use nix::sys::signal::Signal;

use super::explain::likely_cause;
use crate::cluster::Cluster;
use crate::disk::SharedDisk;
use crate::engine::wait_for;
use crate::runtime::{Command, NodeLog, Service};
use crate::state::Note;
use crate::step::{Log, Step};
use crate::topology::Node;

/// What the shared disk is called on every node: a device of /dev, and the first part of every path on it.
pub(super) const DISK: &str = "nvme1n1";
/// The kind of storage, as pfsd has it: a local block device.
pub(super) const STORAGE: &str = "disk";
/// What the process of a node's pfsd is called.
pub(super) const SERVICE: &str = "pfsd";

const PFS: &str = "/usr/local/bin/pfs";
const PFSDAEMON: &str = "/usr/local/polarstore/pfsd/bin/pfsdaemon";
const LOGGER: &str = "/usr/local/polarstore/pfsd/conf/pfsd_logger.conf";
/// The log that a pfsd keeps by itself, beside what it prints.
const LOG: &str = "/var/log/pfsd-nvme1n1/pfsd.log";
/// Where pfsd, its tools and its clients, of whatever user, find each other.
const MEETING_PLACES: [&str; 3] = ["/var/run/pfs", "/var/run/pfsd", "/dev/shm/pfsd"];
/// How long the tools wait for a pfsd before they open the disk themselves, in seconds.
const TOOL_PATIENCE: &str = "20";
/// How long a pfsd may take to end: it finishes the requests that it has begun.
const PATIENCE: Duration = Duration::from_secs(30);
/// What pfsd writes into its log when it begins, and once it takes clients.
const BEGINS: &str = "starting pfsd[";
const LISTENS: &str = "listen thread start working";

/// The programs of PolarFS that a node must have.
pub(super) const PROGRAMS: [&str; 2] = [PFS, PFSDAEMON];

/// A command of the `pfs` tool.
pub(super) fn pfs<'a>(args: impl IntoIterator<Item = &'a str>) -> Command {
    Command::new(PFS).args(["-C", STORAGE, "-t", TOOL_PATIENCE]).args(args).as_root()
}

pub(super) fn service(node: &Node) -> Service<'_> {
    Service { node, name: SERVICE }
}

/// Makes a volume on the shared disk: once, never while somebody has the disk open, and over what it holds only if somebody
/// said so.
pub(super) fn format<'a>(cluster: &'a Cluster, disk: &'a SharedDisk, node: &'a Node) -> Step<'a> {
    let runtime = cluster.runtime();
    let directories = meeting_places();
    let shown = [runtime.shell(node, &directories), runtime.shell(node, &mkfs(cluster.may_reformat()))];
    Step::new(
        "make a PolarFS volume on the shared disk",
        move || {
            let (noted, formatted) = (cluster.directory.is_noted(Note::Formatted), disk.is_formatted()?);
            if noted && !formatted {
                return Err(Error::new(
                    ErrorKind::VerifyFailed,
                    format!("there was a PolarFS volume on {}, and it is gone", disk.path().display()),
                )
                .with_hint("bring it back; or give the data up with `provision down --purge`"));
            }
            Ok(noted)
        },
        move || {
            // Begun and cut short, it is ours to begin again.
            let again = cluster.may_reformat() || cluster.directory.is_noted(Note::Formatting);
            disk.refuse_to_format(again)?;
            cluster.directory.note(Note::Formatting)?;
            runtime.run(node, &directories)?;
            runtime.run(node, &mkfs(again))?;
            if !disk.is_formatted()? {
                return Err(Error::new(ErrorKind::VerifyFailed, "mkfs succeeded, and there is no volume"));
            }
            cluster.directory.note(Note::Formatted)
        },
    )
    .shell(shown)
    .log(runtime.setup_log(node), likely_cause)
}

fn mkfs(force: bool) -> Command {
    let mkfs = Command::new(PFS).args(["-C", STORAGE, "mkfs"]).as_root();
    if force { mkfs.arg("-f") } else { mkfs }.arg(DISK)
}

/// Starts the pfsd of a node with so many workers, and waits until it takes clients. One that runs with another number is
/// started anew: its clients wait for it.
pub(super) fn start<'a>(cluster: &'a Cluster, node: &'a Node, workers: u16) -> Step<'a> {
    let runtime = cluster.runtime();
    let directories = meeting_places();
    let daemon = daemon(workers);
    let shown = [runtime.shell(node, &directories), runtime.shell_start(service(node), &daemon)];
    Step::new(
        format!("start the pfsd of {}", node.name),
        move || Ok(running_workers(cluster, node)? == Some(workers)),
        move || {
            stop(cluster, node)?;
            runtime.run(node, &directories)?;
            let log_start = own_log(cluster, node).length()?.unwrap_or(0);
            runtime.start(service(node), &daemon)?;
            wait_until_it_listens(cluster, node, log_start)
        },
    )
    .shell(shown)
    .log(own_log(cluster, node), likely_cause)
}

fn meeting_places() -> Command {
    // mkdir's own -m would not change one that is there.
    let list = MEETING_PLACES.join(" ");
    Command::new("sh").args(["-c".to_owned(), format!("mkdir -p {list} && chmod 777 {list}")]).as_root()
}

fn daemon(workers: u16) -> Command {
    Command::new(PFSDAEMON).args(["-f", "-p", DISK, "-w", &workers.to_string(), "-c", LOGGER]).as_root()
}

/// With how many workers the pfsd of a node runs; nothing if it does not.
pub(super) fn running_workers(cluster: &Cluster, node: &Node) -> Result<Option<u16>> {
    let runtime = cluster.runtime();
    if runtime.process_id(service(node))?.is_none() {
        return Ok(None);
    }
    // The newest line of a pfsd that began: it prints the number it took.
    let printed = runtime.read(node, &runtime.log(service(node)))?.unwrap_or_default();
    Ok(workers_in(&String::from_utf8_lossy(&printed)))
}

fn workers_in(printed: &str) -> Option<u16> {
    printed.lines().rev().find_map(|line| line.strip_prefix("option workers ")?.trim().parse().ok())
}

/// The log that the pfsd of a node keeps by itself.
pub(super) fn own_log<'a>(cluster: &'a Cluster, node: &'a Node) -> NodeLog<'a> {
    NodeLog { runtime: cluster.runtime(), node, path: LOG.into() }
}

fn wait_until_it_listens(cluster: &Cluster, node: &Node, log_start: u64) -> Result<()> {
    wait_for(cluster, &format!("the pfsd of {} takes clients", node.name), || {
        let running = cluster.runtime().process_id(service(node))?.is_some();
        let log = own_log(cluster, node).read(log_start)?;
        match (running, listens(&String::from_utf8_lossy(&log))) {
            (true, true) => Ok(Some(())),
            (true, false) => Ok(None),
            (false, _) => {
                Err(Error::new(ErrorKind::Io, format!("the pfsd of {} ended before it took clients", node.name)))
            }
        }
    })
}

/// Whether the pfsd that began last in this log takes clients.
fn listens(log: &str) -> bool {
    log.rfind(BEGINS).is_some_and(|begin| log[begin..].contains(LISTENS))
}

/// Stops the pfsd of a node, on which no database runs, or one that will find another pfsd in a moment.
pub(super) fn stop(cluster: &Cluster, node: &Node) -> Result<()> {
    cluster.runtime().stop(service(node), Signal::SIGINT, PATIENCE)
}

/// Ends the pfsd of a node whose data nobody needs any more.
pub(super) fn abandon(cluster: &Cluster, node: &Node) -> Result<()> {
    cluster.runtime().stop(service(node), Signal::SIGKILL, PATIENCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_pfsd_counts() {
        let began = "2024-12-16 15:37:27.899529|INFO |pfsd_main.cc:101|starting pfsd[36806] nvme1n1\n";
        let prepared = "2024-12-16 15:37:27.900253|INFO |pfsd_chnl_shm.cc:389|listen thread waiting to work.\n";
        let listening = "2024-12-16 15:37:27.900285|INFO |pfsd_chnl_shm.cc:391|listen thread start working.\n";
        assert!(listens(&[began, prepared, listening].concat()));
        assert!(!listens(&[began, prepared].concat()));
        assert!(!listens(&[began, prepared, listening, began].concat()));
        assert!(!listens(listening));
    }

    #[test]
    fn the_number_of_workers_is_what_the_last_pfsd_took() {
        let printed = "option workers 1\noption pbdname nvme1n1\noption workers 4\nstarting pfsd[7] nvme1n1\n";
        assert_eq!(workers_in(printed), Some(4));
        assert_eq!(workers_in("starting pfsd[7] nvme1n1\n"), None);
    }

    #[test]
    fn the_commands_are_those_of_the_recipe() {
        assert_eq!(mkfs(false).to_string(), "/usr/local/bin/pfs -C disk mkfs nvme1n1");
        assert_eq!(mkfs(true).to_string(), "/usr/local/bin/pfs -C disk mkfs -f nvme1n1");
        assert_eq!(
            daemon(2).to_string(),
            "/usr/local/polarstore/pfsd/bin/pfsdaemon -f -p nvme1n1 -w 2 -c /usr/local/polarstore/pfsd/conf/pfsd_logger.conf"
        );
        assert!(LOG.contains(DISK));
    }
}
