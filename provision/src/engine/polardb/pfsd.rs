//! PolarFS on a node: the volume, and the pfsd through which the node's database uses it: the original's, or ours.
//!
//! It is run by itself and in the foreground. `start_pfsd.sh` beside it reports success for a disk that is missing
//! or not formatted, and takes a pfsd of another container for its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use blockdev::{Error, ErrorKind, Result};
use nix::sys::signal::Signal;

use super::explain::likely_cause;
use crate::cluster::Cluster;
use crate::config::Pfsd;
use crate::disk::SharedDisk;
use crate::doctor::Finding;
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
/// What the original writes into its log when it begins, and once it takes clients.
const BEGINS: &str = "starting pfsd[";
const LISTENS: &str = "listen thread start working";

/// The option that says how many workers there are.
const WORKERS: &str = "-w";

/// The programs of PolarFS that the image of a node with this pfsd must have.
pub(super) fn programs(pfsd: &Pfsd) -> &'static [&'static str] {
    match pfsd {
        Pfsd::Image => &[PFS, PFSDAEMON],
        Pfsd::File(_) => &[PFS],
    }
}

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

/// Starts the pfsd of a node with so many workers, and waits until it takes clients. Another one, or one with another number
/// of workers, makes way for it: its clients wait meanwhile.
pub(super) fn start<'a>(cluster: &'a Cluster, node: &'a Node, wanted: &'a Pfsd, workers: u16) -> Result<Step<'a>> {
    let runtime = cluster.runtime();
    let directories = meeting_places();
    let daemon = daemon(&program(cluster, wanted)?, workers);
    let mut shown = Vec::new();
    if let Pfsd::File(program) = wanted {
        shown.extend(runtime.shell_bring(node, program)?);
    }
    shown.extend([runtime.shell(node, &directories), runtime.shell_start(service(node), &daemon)]);
    // The original keeps a log and prints little. Ours prints what it logs, and before it has a log what keeps it from that.
    let log = match wanted {
        Pfsd::Image => own_log(cluster, node),
        Pfsd::File(_) => NodeLog::of(runtime, service(node)),
    };
    let wanted_words: Vec<String> = std::iter::once(&daemon.program).chain(&daemon.args).cloned().collect();
    let step = Step::new(
        format!("start the pfsd of {}", node.name),
        move || Ok(runtime.command_line(service(node))?.is_some_and(|words| words == wanted_words)),
        move || {
            if let Pfsd::File(program) = wanted {
                runtime.bring(node, program)?;
            }
            stop(cluster, node)?;
            runtime.run(node, &directories)?;
            let log_start = own_log(cluster, node).length()?.unwrap_or(0);
            runtime.start(service(node), &daemon)?;
            wait_until_it_listens(cluster, node, || match wanted {
                Pfsd::Image => Ok(listens(&String::from_utf8_lossy(&own_log(cluster, node).read(log_start)?))),
                Pfsd::File(_) => answers(cluster, node, &daemon.program),
            })
        },
    );
    Ok(step.shell(shown).log(log, likely_cause))
}

/// The program that is `pfsd`, as the nodes see it.
fn program(cluster: &Cluster, pfsd: &Pfsd) -> Result<String> {
    match pfsd {
        Pfsd::Image => Ok(PFSDAEMON.to_owned()),
        Pfsd::File(program) => Ok(cluster.runtime().place_of(program)?.to_string_lossy().into_owned()),
    }
}

fn meeting_places() -> Command {
    // mkdir's own -m would not change one that is there.
    let list = MEETING_PLACES.join(" ");
    Command::new("sh").args(["-c".to_owned(), format!("mkdir -p {list} && chmod 777 {list}")]).as_root()
}

/// Ours takes the options of the original.
fn daemon(program: &str, workers: u16) -> Command {
    Command::new(program).args(["-f", "-p", DISK, WORKERS, &workers.to_string(), "-c", LOGGER]).as_root()
}

/// A pfsd that runs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Running {
    /// Its program, as the node sees it.
    pub program: PathBuf,
    /// With how many workers it was started.
    pub workers: u16,
}

/// The pfsd of a node, if it runs.
pub(super) fn running(cluster: &Cluster, node: &Node) -> Result<Option<Running>> {
    Ok(cluster.runtime().command_line(service(node))?.and_then(|words| running_as(&words)))
}

fn running_as(words: &[String]) -> Option<Running> {
    let workers = words.iter().skip_while(|word| *word != WORKERS).nth(1)?;
    Some(Running { program: words.first()?.into(), workers: workers.parse().ok()? })
}

/// What is wrong with the pfsd that is wanted.
pub(super) fn finding(wanted: &Pfsd) -> Option<Finding> {
    let Pfsd::File(program) = wanted else { return None };
    let wrong = match fs::metadata(program) {
        Ok(file) if file.is_file() && file.permissions().mode() & 0o111 != 0 => return None,
        Ok(_) => "it is no program".to_owned(),
        Err(error) => error.to_string(),
    };
    let message = format!("the nodes cannot run {} as their pfsd: {wrong}", program.display());
    Some(Finding::error("no-pfsd", message, "name another with --pfsd, or the one of the image with --pfsd image"))
}

/// The log that the pfsd of a node keeps by itself.
pub(super) fn own_log<'a>(cluster: &'a Cluster, node: &'a Node) -> NodeLog<'a> {
    NodeLog { runtime: cluster.runtime(), node, path: LOG.into() }
}

fn wait_until_it_listens(cluster: &Cluster, node: &Node, listens: impl Fn() -> Result<bool>) -> Result<()> {
    wait_for(cluster, &format!("the pfsd of {} takes clients", node.name), || {
        let running = cluster.runtime().process_id(service(node))?.is_some();
        match (running, listens()?) {
            (true, true) => Ok(Some(())),
            (true, false) => Ok(None),
            (false, _) => {
                Err(Error::new(ErrorKind::Io, format!("the pfsd of {} ended before it took clients", node.name)))
            }
        }
    })
}

/// Whether ours answers questions about itself: it does once it takes clients.
fn answers(cluster: &Cluster, node: &Node, program: &str) -> Result<bool> {
    let ask = Command::new(program).args(["status", DISK]).as_root();
    Ok(cluster.runtime().ask(node, &ask)?.is_some_and(|answer| answer.status.success()))
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
    fn what_runs_is_known_by_its_command() {
        let words = |command: &Command| -> Vec<String> {
            std::iter::once(&command.program).chain(&command.args).cloned().collect()
        };
        for (program, workers) in [(PFSDAEMON, 1), ("/usr/local/lib/onedisk/pfsd-0", 128)] {
            let expected = Running { program: program.into(), workers };
            assert_eq!(running_as(&words(&daemon(program, workers))), Some(expected));
        }
        // Whoever starts it has not become it yet.
        assert_eq!(running_as(&["sh".to_owned(), "-c".to_owned()]), None);
    }

    #[test]
    fn what_cannot_be_a_pfsd_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("pfsd");
        let wanted = Pfsd::File(program.clone());
        assert!(finding(&wanted).is_some_and(|finding| finding.message.contains("No such file")));
        fs::write(&program, "").unwrap();
        assert!(finding(&wanted).is_some_and(|finding| finding.message.ends_with("it is no program")));
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(finding(&wanted), None);
        assert_eq!(finding(&Pfsd::Image), None);
    }

    #[test]
    fn the_commands_are_those_of_the_recipe() {
        assert_eq!(mkfs(false).to_string(), "/usr/local/bin/pfs -C disk mkfs nvme1n1");
        assert_eq!(mkfs(true).to_string(), "/usr/local/bin/pfs -C disk mkfs -f nvme1n1");
        assert_eq!(
            daemon(PFSDAEMON, 2).to_string(),
            "/usr/local/polarstore/pfsd/bin/pfsdaemon -f -p nvme1n1 -w 2 -c /usr/local/polarstore/pfsd/conf/pfsd_logger.conf"
        );
        assert!(LOG.contains(DISK));
    }
}
