//! `vdisk serve` against other programs that serve a disk from user space: over NBD, and through FUSE with a loop device.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use bench::report::vocabulary::{IOPS, PROGRAM, QUEUE_DEPTH, RW};
use bench::report::{Cell, Finding};
use blockdev::{Cancel, Context, Error, ErrorKind, Result, ui};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::child;
use crate::contest::LEAD;
use crate::programs::{self, Programs};
use crate::random::Attached;
use crate::target::{Target, Wanted};

/// What fio asks of each: pattern and queue depth, 4 KiB at a time.
const LOADS: [(&str, u32); 4] = [("randread", 1), ("randwrite", 1), ("randread", 32), ("randwrite", 32)];

/// How long a server may take to be there.
const START_MAX: Duration = Duration::from_secs(10);

/// How the disk is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Over NBD on a Unix socket, to fio's own client; the image through the page cache.
    Nbd,
    /// As a file with a loop device on it; the image past the page cache, as the loop device alone has it.
    Fuse,
}

/// Who serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Server {
    Ours,
    Nbdkit,
    QemuNbd,
    StorageDaemon,
    /// Nobody: the loop device is on the image itself.
    Kernel,
}

impl Server {
    fn name(self) -> &'static str {
        match self {
            Self::Ours => "vdisk serve",
            Self::Nbdkit => "nbdkit",
            Self::QemuNbd => "qemu-nbd",
            Self::StorageDaemon => "qemu-storage-daemon",
            Self::Kernel => "the bare loop device",
        }
    }

    /// What has to be installed for it.
    fn program(self) -> Option<&'static str> {
        match self {
            Self::Ours | Self::Kernel => None,
            Self::Nbdkit | Self::QemuNbd | Self::StorageDaemon => Some(self.name()),
        }
    }

    /// What ours is to reach of it under a load.
    fn wanted(self, depth: u32) -> Option<f64> {
        match self {
            Self::Nbdkit => Some(1.2),
            Self::QemuNbd | Self::StorageDaemon => Some(1.0),
            Self::Kernel => (depth > 1).then_some(0.5),
            Self::Ours => None,
        }
    }
}

/// The servers, which take turns at one image.
pub(crate) struct Job<'a> {
    pub(crate) programs: &'a Programs,
    pub(crate) image: &'a Path,
    /// Where sockets and files are made.
    pub(crate) scratch: &'a Path,
    pub(crate) way: Way,
    pub(crate) rounds: u32,
    pub(crate) runtime: &'a str,
}

impl Job<'_> {
    /// Measures those that are here, and holds ours against them.
    pub(crate) fn run(&self, cancel: &Cancel) -> Result<(Vec<Cell>, Vec<Finding>)> {
        let others = match self.way {
            Way::Nbd => [Server::Nbdkit, Server::QemuNbd, Server::StorageDaemon].as_slice(),
            Way::Fuse => &[Server::StorageDaemon, Server::Kernel],
        };
        let (here, missing): (Vec<Server>, Vec<Server>) =
            others.iter().partition(|server| server.program().is_none_or(programs::is_installed));
        let missing = missing.iter().map(|server| {
            let text = format!("{} is not installed: vdisk serve NOT compared with it", server.name());
            crate::missing(&format!("no-{}", server.name()), text).with_hint("make deps, or the packages of QEMU")
        });
        let mut findings: Vec<Finding> = missing.collect();
        let servers = [vec![Server::Ours], here].concat();
        // By server, by load: IOPS in each round.
        let mut rates = vec![vec![Vec::new(); LOADS.len()]; servers.len()];
        for round in 1..=self.rounds {
            for (server, rates) in servers.iter().zip(&mut rates) {
                let serving = self.serve(*server, cancel)?;
                for ((rw, depth), rates) in LOADS.iter().zip(rates) {
                    let fio = child::run(self.fio(&serving.target, rw, *depth), cancel)?;
                    let iops = iops(&fio.stdout)?;
                    let who = server.name();
                    ui::notice(&format!(
                        "round {round} of {}: {who}, {rw}, {depth} in flight: {iops:.0} IOPS",
                        self.rounds
                    ));
                    rates.push(iops);
                }
            }
        }
        let mut cells = Vec::new();
        for (server, own) in servers.iter().zip(&rates) {
            for ((load, rates), ours) in LOADS.iter().zip(own).zip(&rates[0]) {
                let cell = self.cell(*server, *load, rates, ours);
                let lead = cell.figures.get(&*LEAD.name).map(|figure| figure.value);
                findings.extend(judge(self.way, *server, *load, lead));
                cells.push(cell);
            }
        }
        Ok((cells, findings))
    }

    fn cell(&self, server: Server, (rw, depth): (&str, u32), rates: &[f64], ours: &[f64]) -> Cell {
        let group = match self.way {
            Way::Nbd => "Served over NBD",
            Way::Fuse => "Served as a block device",
        };
        // What disturbed the machine in a round disturbed both.
        let lead = ours.iter().zip(rates).map(|(ours, theirs)| ours / theirs).collect();
        Cell::new(group, format!("{group}: {}, {rw}, queue depth {depth}", server.name()))
            .with_param(&PROGRAM, server.name())
            .with_param(&RW, rw)
            .with_param(&QUEUE_DEPTH, depth)
            .with_figure(&IOPS, rates.to_vec())
            .with_figure(&LEAD, lead)
    }

    fn fio(&self, target: &str, rw: &str, depth: u32) -> Command {
        let mut fio = Command::new("fio");
        fio.args(["--name=peer", "--bs=4k", "--norandommap", "--randrepeat=0", "--time_based", "--ramp_time=500ms"]);
        fio.arg(format!("--rw={rw}")).arg(format!("--iodepth={depth}")).arg(format!("--runtime={}", self.runtime));
        match self.way {
            Way::Nbd => fio.arg("--ioengine=nbd").arg(format!("--uri={target}")),
            Way::Fuse => fio.args(["--ioengine=io_uring", "--direct=1"]).arg(format!("--filename={target}")),
        };
        fio.arg("--output-format=json");
        fio
    }

    /// Starts a server, and waits until it serves.
    fn serve(&self, server: Server, cancel: &Cancel) -> Result<Serving<'_>> {
        let image = self.image.display();
        // The name of a socket is short.
        let socket = std::env::temp_dir().join(format!("onedisk-peers-{}.sock", std::process::id()));
        let listens = || UnixStream::connect(&socket).is_ok();
        let uri = |export: &str| format!("nbd+unix:///{export}?socket={}", socket.display());
        let (uris, unix) = ([uri(""), uri("disk")], socket.display());
        match (server, self.way) {
            (Server::Ours, Way::Nbd) => self.ours(&["--nbd", &format!("unix:{unix}")]),
            (Server::Ours, Way::Fuse) => self.ours(&["--direct", "--attach"]),
            (Server::Nbdkit, _) => {
                let mut nbdkit = Command::new("nbdkit");
                nbdkit.args(["--foreground", "--unix"]).arg(&socket).arg("file").arg(self.image);
                start(nbdkit, Some(socket.clone()), listens).map(|serving| serving.at(&uris[0]))
            }
            (Server::QemuNbd, _) => {
                let mut qemu = Command::new("qemu-nbd");
                qemu.args(["--persistent", "--format=raw", "--shared=0", "--cache=writeback"]);
                qemu.arg(format!("--socket={unix}")).arg(self.image);
                start(qemu, Some(socket.clone()), listens).map(|serving| serving.at(&uris[0]))
            }
            (Server::StorageDaemon, Way::Nbd) => {
                let mut daemon = Command::new("qemu-storage-daemon");
                daemon.arg("--blockdev").arg(format!("driver=file,node-name=image,filename={image}"));
                daemon.arg("--nbd-server").arg(format!("addr.type=unix,addr.path={unix},max-connections=0"));
                daemon.args(["--export", "type=nbd,id=export,node-name=image,name=disk,writable=on"]);
                start(daemon, Some(socket.clone()), listens).map(|serving| serving.at(&uris[1]))
            }
            (Server::StorageDaemon, Way::Fuse) => {
                let file = self.scratch.join("export");
                std::fs::File::create(&file).context(|| format!("cannot make {}", file.display()))?;
                let mut daemon = Command::new("qemu-storage-daemon");
                let node = format!("driver=file,node-name=image,filename={image},cache.direct=on,aio=io_uring");
                let export = format!("type=fuse,id=export,node-name=image,mountpoint={},writable=on", file.display());
                daemon.arg("--blockdev").arg(node).arg("--export").arg(export);
                let mounted = || file.metadata().is_ok_and(|metadata| metadata.len() > 0);
                let mut serving = start(daemon, None, mounted)?;
                let attached = Attached::new(self.programs, &file, cancel)?;
                serving.target = attached.device.display().to_string();
                serving.attached = Some(attached);
                Ok(serving)
            }
            (Server::Kernel, _) => {
                let attached = Attached::new(self.programs, self.image, cancel)?;
                let target = attached.device.display().to_string();
                Ok(Serving { target, attached: Some(attached), child: None, socket: None })
            }
        }
    }

    /// Ours says where the disk is as soon as it is there.
    fn ours(&self, arguments: &[&str]) -> Result<Serving<'_>> {
        let mut vdisk = self.programs.vdisk();
        vdisk.arg("serve").arg(self.image).args(arguments).stdout(Stdio::piped());
        let mut serving = start(vdisk, None, || true)?;
        let said = serving.child.as_mut().and_then(|child| child.stdout.take());
        let mut line = String::new();
        if let Some(said) = said {
            BufReader::new(said).read_line(&mut line).context(|| "cannot read where vdisk serve serves")?;
        }
        if line.is_empty() {
            return Err(Error::new(ErrorKind::Io, "vdisk serve ended before it served anything"));
        }
        Ok(serving.at(line.trim_end()))
    }
}

/// A server that serves, until this is dropped.
struct Serving<'a> {
    /// Where, as fio takes it.
    target: String,
    // Nobody's disk goes while the device is there.
    attached: Option<Attached<'a>>,
    child: Option<Child>,
    socket: Option<PathBuf>,
}

impl Serving<'_> {
    fn at(mut self, target: &str) -> Self {
        target.clone_into(&mut self.target);
        self
    }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        drop(self.attached.take());
        if let Some(child) = &mut self.child {
            // It has not been waited for, so the number is still its own; and if it is gone, there is nothing to end.
            let _ = i32::try_from(child.id()).map(|pid| kill(Pid::from_raw(pid), Signal::SIGTERM));
            let _ = child.wait();
        }
        if let Some(socket) = &self.socket {
            // Some remove it themselves.
            let _ = std::fs::remove_file(socket);
        }
    }
}

/// Starts a server and waits until it is `ready`.
fn start<'a>(mut command: Command, socket: Option<PathBuf>, ready: impl Fn() -> bool) -> Result<Serving<'a>> {
    let line = child::line_of(&command);
    let child = command.stdin(Stdio::null()).spawn().context(|| format!("cannot run {line}"))?;
    let mut serving = Serving { target: String::new(), attached: None, child: Some(child), socket };
    let started = Instant::now();
    while !ready() {
        let ended = serving.child.as_mut().is_some_and(|child| child.try_wait().is_ok_and(|status| status.is_some()));
        if ended || started.elapsed() > START_MAX {
            return Err(Error::new(ErrorKind::Io, format!("{line} does not serve")));
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(serving)
}

/// Holds ours against `server` under a load, if something is asked of it there.
fn judge(way: Way, server: Server, (rw, depth): (&str, u32), lead: Option<f64>) -> Option<Finding> {
    let (lead, wanted) = (lead?, server.wanted(depth)?);
    let (id, way) = match way {
        Way::Nbd => ("served-nbd", "over NBD"),
        Way::Fuse => ("served-fuse", "as a loop device"),
    };
    let what = format!("IOPS of vdisk serve over those of {}, {way}, {rw}, {depth} in flight", server.name());
    Some(Target { id, what, wanted: Wanted::AtLeast(wanted) }.judge(lead))
}

/// The I/Os in a second that fio reports.
fn iops(json: &str) -> Result<f64> {
    let unexpected = || Error::new(ErrorKind::VerifyFailed, "fio's JSON is not as expected: no iops");
    // Notices may come before the document.
    let document = json.find('{').map_or("", |start| &json[start..]);
    let value: serde_json::Value = serde_json::from_str(document).map_err(|source| unexpected().with_source(source))?;
    let of = |direction: &str| value["jobs"][0][direction]["iops"].as_f64().filter(|iops| *iops > 0.0);
    of("read").or_else(|| of("write")).ok_or_else(unexpected)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bench::report::Severity;

    #[test]
    fn what_fio_did_is_found_whatever_it_was() {
        let json = "note\n{\"jobs\": [{\"read\": {\"iops\": 0}, \"write\": {\"iops\": 1234.5}}]}";
        assert_eq!(iops(json).unwrap(), 1234.5);
        assert!(iops("{\"jobs\": [{\"read\": {\"iops\": 0}}]}").is_err() && iops("").is_err());
    }

    #[test]
    fn each_peer_is_held_to_its_own() {
        let judge =
            |server, depth, lead| judge(Way::Fuse, server, ("randread", depth), lead).map(|finding| finding.severity);
        assert_eq!(judge(Server::Kernel, 32, Some(0.6)), Some(Severity::Note));
        assert_eq!(judge(Server::Kernel, 32, Some(0.4)), Some(Severity::Warning));
        assert_eq!(judge(Server::Kernel, 1, Some(0.4)), None);
        assert_eq!(judge(Server::Nbdkit, 1, Some(1.1)), Some(Severity::Warning));
        assert_eq!(judge(Server::StorageDaemon, 1, Some(1.1)), Some(Severity::Note));
        assert_eq!((judge(Server::Ours, 1, Some(1.0)), judge(Server::QemuNbd, 1, None)), (None, None));
    }
}
