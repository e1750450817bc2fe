//! Nodes as Docker containers, one each, without privileges (`bollard` speaks to the daemon; no `docker` program is needed).
//!
//! A container's first process only sleeps; what a node does is run in it by exec. So a node's programs come and go while
//! its place stays, and a place that was restarted is found empty and filled again. Its files lie in a volume: the container
//! can be made anew around it.

mod client;
mod container;
mod endpoint;
mod exec;
mod files;
mod findings;
mod guest;
mod program;
mod service;
mod transport;
mod trial;

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use blockdev::{ByteSize, Cancel, Context, Error, ErrorKind, Result};
use nix::sys::signal::Signal;

use crate::config::Config;
use crate::doctor::Finding;
use crate::engine::Engine;
use crate::runtime::{Command, Devices, Network, Runtime, Service, quote};
use crate::state::{ClusterDirectory, Record};
use crate::step::Step;
use crate::topology::{Name, Node, Topology};
use client::Client;
use container::Limits;
use exec::{Exec, Stream};

pub use endpoint::{Endpoint, Transport};
pub use findings::UNUSABLE;
pub use guest::{Guest, Heard};

/// Where a node's files are in its container.
const HOME: &str = "/var/lib/onedisk";
/// Where a node's port is published unless somebody says otherwise: nobody but this machine comes in.
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// In a container: it is ready. It is written last, and goes with the container.
const READY: &str = "/etc/onedisk";
/// Where a kernel says which boot of which machine it is: containers see their own kernel's.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// The label of commands that run to their end.
const SETUP: &str = "setup";
/// Whom the database runs as unless somebody says otherwise; the images that hold one have that user.
const USER: &str = "postgres";
/// How large /dev/shm is unless somebody says otherwise: Docker's 64 MB are too few for a database.
const SHM_SIZE: ByteSize = ByteSize::gib(1);
/// How long Docker may take to make a container that nobody waits for any more.
const MAKING: Duration = Duration::from_secs(10);
/// How often to look whether something has changed.
const INTERVAL: Duration = Duration::from_millis(20);

/// What makes a container ready: directories, and the database's programs on the path. $1 is the user, $2 the home, $3 the
/// mark; DIRECTORIES are patterns of directories of programs, for the container's own shell to resolve.
const PREPARE: &str = "\
id -u \"$1\" >/dev/null || exit 2
[ \"$(id -u \"$1\")\" != 0 ] || { echo \"$1 is root\" >&2; exit 2; }
chmod 755 \"$2\" && mkdir -p \"$2/run\" \"$2/log\" && chown \"$1:\" \"$2/run\" \"$2/log\" && chmod 700 \"$2/log\" || exit 1
mark=$3; set -- DIRECTORIES
for directory; do [ ! -d \"$directory\" ] || ln -sf \"$directory\"/* /usr/local/bin/ || exit 1; done
: >\"$mark\"";

/// Nodes as Docker containers.
pub struct Docker {
    id: String,
    name: Name,
    image: String,
    user: String,
    limits: Limits,
    endpoint: Option<String>,
    program_directories: Vec<String>,
    shared_directory: Option<&'static str>,
    directory: ClusterDirectory,
    cancel: Cancel,
    clients: RefCell<HashMap<String, Rc<Client>>>,
}

impl Docker {
    /// The nodes of the cluster that `record` describes and `directory` belongs to. Docker is not asked yet.
    #[must_use]
    pub fn new(directory: &ClusterDirectory, record: &Record, engine: &dyn Engine, cancel: &Cancel) -> Self {
        let Config { name, image, docker, shm_size, memory, cpus, user, bin_directory, .. } = &record.config;
        let mut program_directories: Vec<String> =
            engine.program_directories().iter().map(|directory| (*directory).to_owned()).collect();
        // The one that is asked for counts more than any that is found.
        program_directories.extend(bin_directory.as_ref().map(|bin| quote(&bin.to_string_lossy())));
        Self {
            id: record.id.clone(),
            name: name.clone(),
            image: image.clone().unwrap_or_else(|| engine.image().to_owned()),
            user: user.clone().unwrap_or_else(|| USER.to_owned()),
            limits: Limits { shm_size: shm_size.unwrap_or(SHM_SIZE), memory: *memory, cpus: *cpus },
            endpoint: docker.clone(),
            program_directories,
            shared_directory: engine.shared_directory(),
            directory: directory.clone(),
            cancel: cancel.clone(),
            clients: RefCell::default(),
        }
    }

    fn endpoint(&self, node: &Node) -> Result<Endpoint> {
        Endpoint::find(node.docker.as_deref().or(self.endpoint.as_deref()))
    }

    /// The daemon of `node`, connected to once.
    fn client(&self, node: &Node) -> Result<Rc<Client>> {
        let endpoint = self.endpoint(node)?;
        if let Some(client) = self.clients.borrow().get(&endpoint.to_string()) {
            return Ok(Rc::clone(client));
        }
        let client = Rc::new(Client::connect(&endpoint)?);
        self.clients.borrow_mut().insert(endpoint.to_string(), Rc::clone(&client));
        Ok(client)
    }

    /// A node on each of the daemons.
    fn one_per_daemon<'a>(&self, topology: &'a Topology) -> Result<Vec<&'a Node>> {
        let mut seen = Vec::new();
        let mut nodes = Vec::new();
        for node in topology.nodes() {
            let endpoint = self.endpoint(node)?;
            if !seen.contains(&endpoint) {
                seen.push(endpoint);
                nodes.push(node);
            }
        }
        Ok(nodes)
    }

    fn label(&self, node: &Node, what: &str) -> String {
        format!("{}/{}/{what}", self.id, node.name)
    }

    fn user_of(&self, command: &Command) -> &str {
        if command.as_root { "root" } else { &self.user }
    }

    /// Runs a command of `node` with `input` to its end; gives its exit code and what it printed.
    fn run_with(&self, node: &Node, command: &Command, input: &[u8]) -> Result<(i64, Vec<u8>, Vec<u8>)> {
        let client = self.client(node)?;
        let (container, label) = (self.container_name(node), self.label(node, SETUP));
        let exec = Exec { container: &container, label: &label, user: self.user_of(command), home: HOME, command };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = exec.run(&client, input, &self.cancel, |stream, bytes| {
            if stream == Stream::Output {
                out.extend_from_slice(bytes)
            } else {
                err.extend_from_slice(bytes)
            }
            Ok(())
        })?;
        Ok((code, out, err))
    }

    /// Runs a shell script as the container's root, with `args` as $1, $2, ...; `what` says what it is for.
    fn script(
        &self,
        node: &Node,
        script: &str,
        args: &[&str],
        input: &[u8],
        what: impl FnOnce() -> String,
    ) -> Result<()> {
        let command = Command::new("sh").args(["-c", script, "sh"]).args(args.iter().copied()).as_root();
        let (code, out, err) = self.run_with(node, &command, input)?;
        if code == 0 {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&[out, err].concat()).trim().to_owned();
        let full = said.contains("No space left on device");
        let kind = if full { ErrorKind::NoSpace } else { ErrorKind::Io };
        Err(Error::new(kind, format!("{} of {}: {said}", what(), node.name)))
    }

    /// Whether the node's container is there, runs, and is ready.
    fn is_ready(&self, node: &Node, devices: &Devices<'_>) -> Result<bool> {
        let client = self.client(node)?;
        let Some(container) = self.container(&client, node)? else { return Ok(false) };
        let ready = container.running && container.is_as_wanted(node, &(devices.find)()?);
        Ok(ready
            && self.has_volume(&client, &self.container_name(node))?
            && self.stat(node, Path::new(READY))?.is_some())
    }

    fn make_ready(&self, node: &Node, devices: &Devices<'_>) -> Result<()> {
        let client = self.client(node)?;
        let devices = (devices.find)()?;
        if !self.has_volume(&client, &self.container_name(node))? {
            self.make_volume(&client, node)?;
        }
        let found = self.container(&client, node)?;
        let outdated = found.as_ref().is_some_and(|container| !container.is_as_wanted(node, &devices));
        if outdated {
            self.remove_container(&client, node)?;
        }
        if found.is_none() || outdated {
            self.make_container(&client, node, &devices)?;
        }
        self.start_container(&client, node)?;
        if self.stat(node, Path::new(READY))?.is_some() {
            return Ok(());
        }
        let prepare = self.prepare_script();
        self.script(node, &prepare, &[&self.user, HOME, READY], &[], || "cannot prepare the container".to_owned())
            .map_err(|error| {
                error.with_hint(format!(
                    "the image {} must have a user {}; name another with --user",
                    self.image, self.user
                ))
            })
    }

    fn prepare_script(&self) -> String {
        PREPARE.replace("DIRECTORIES", &self.program_directories.join(" "))
    }

    fn stat(&self, node: &Node, path: &Path) -> Result<Option<files::Stat>> {
        files::stat(&*self.client(node)?, &self.container_name(node), path)
    }

    /// `docker`, and to which daemon.
    fn shell_docker(&self, node: &Node) -> String {
        let Ok(endpoint) = self.endpoint(node) else { return "docker".to_owned() };
        // What Docker's own client would use needs not be said.
        if Endpoint::find(None).is_ok_and(|default| default == endpoint) {
            return "docker".to_owned();
        }
        let endpoint = endpoint.to_string();
        if endpoint.contains("://") {
            format!("docker --host {endpoint}")
        } else {
            format!("docker --context {endpoint}")
        }
    }

    fn shell_exec(&self, node: &Node, options: &str, command: &Command) -> String {
        let user = self.user_of(command);
        let environment: String = command
            .environment
            .iter()
            .map(|(name, value)| format!("-e {} ", quote(&format!("{name}={value}"))))
            .collect();
        let bare = Command { environment: Vec::new(), ..command.clone() };
        format!("{} exec {options}-u {user} {environment}{} {bare}", self.shell_docker(node), self.container_name(node))
    }

    fn root_script(script: &str, args: &[&str]) -> Command {
        Command::new("sh").args(["-c", script, "sh"]).args(args.iter().copied()).as_root()
    }

    fn open_setup_log(&self, node: &Node) -> Result<std::fs::File> {
        let path = self.setup_log(node);
        let failed = || format!("cannot open the log {}", path.display());
        std::fs::create_dir_all(self.directory.logs()).context(failed)?;
        OpenOptions::new().create(true).append(true).mode(0o600).open(&path).context(failed)
    }
}

/// Makes $1, empty, the directory of user $2.
const MAKE_DIRECTORY: &str = "rm -rf \"$1\" && mkdir -m 700 \"$1\" && chown \"$2:\" \"$1\"";
/// Writes what it reads, $3 bytes, to $1, the file of user $2.
const WRITE: &str = "umask 077; new=$1.given; head -c \"$3\" >\"$new\" && [ \"$(wc -c <\"$new\")\" -eq \"$3\" ] && \
    chown \"$2:\" \"$new\" && sync \"$new\" && mv -f \"$new\" \"$1\"";
/// Stores all of $1, and renames it to $2.
const COMPLETE: &str = "sync -f \"$1\" && mv -T \"$1\" \"$2\" && sync -f \"$2\"";

impl Runtime for Docker {
    fn findings(&self, topology: &Topology) -> Result<Vec<Finding>> {
        findings::all(self, topology)
    }

    fn is_port_taken(&self, node: &Node) -> Result<bool> {
        let client = self.client(node)?;
        let container = self.container(&client, node)?;
        Ok(self.is_port_of_another(&client, node, container.as_ref()))
    }

    fn shared_steps<'a>(&'a self, topology: &'a Topology) -> Vec<Step<'a>> {
        // A place that cannot be found has been told of by then.
        let nodes = self.one_per_daemon(topology).unwrap_or_default();
        let several = nodes.len() > 1;
        let mut steps = Vec::new();
        for node in nodes {
            let place = if several { format!(" for {}", node.name) } else { String::new() };
            let docker = self.shell_docker(node);
            let image = quote(&self.image);
            steps.push(
                Step::new(
                    format!("have the image {}{place}", self.image),
                    move || self.has_image(&*self.client(node)?),
                    move || self.fetch_image(&*self.client(node)?),
                )
                .shell([format!("{docker} image inspect {image} >/dev/null 2>&1 || {docker} pull {image}")]),
            );
            steps.push(
                Step::new(
                    format!("make a network{place}"),
                    move || self.has_network(&*self.client(node)?),
                    move || self.make_network(&*self.client(node)?),
                )
                .shell([self.shell_make_network(&docker)]),
            );
            if self.shared_directory.is_some() {
                steps.push(
                    Step::new(
                        format!("make a volume that all nodes share{place}"),
                        move || self.has_volume(&*self.client(node)?, &self.shared_volume()),
                        move || self.make_shared_volume(&*self.client(node)?),
                    )
                    .shell([self.shell_make_shared_volume(&docker)]),
                );
            }
        }
        steps
    }

    fn node_steps<'a>(&'a self, node: &'a Node, devices: Devices<'a>) -> Vec<Step<'a>> {
        let devices = Rc::new(devices);
        let docker = self.shell_docker(node);
        let shown = self.shell_make_container(&docker, node, &devices.shell);
        let prepare = Self::root_script(&self.prepare_script(), &[&self.user, HOME, READY]);
        let wanted = Rc::clone(&devices);
        let make = Step::new(
            format!("make a container for {}", node.name),
            move || self.is_ready(node, &wanted),
            move || self.make_ready(node, &devices),
        )
        .shell(shown)
        .shell([self.shell(node, &prepare)]);
        vec![make]
    }

    fn is_this_machine(&self) -> bool {
        false
    }

    fn has_this_kernel(&self, node: &Node) -> Result<bool> {
        self.has_kernel(node, Path::new(BOOT_ID))
    }

    fn home(&self, _node: &Node) -> PathBuf {
        HOME.into()
    }

    fn files(&self) -> String {
        format!("{HOME} of each container, in the volumes onedisk-{}-*", self.name)
    }

    fn logs(&self) -> String {
        format!("{HOME}/log of each container")
    }

    fn sockets(&self, _node: &Node) -> PathBuf {
        Path::new(HOME).join("run")
    }

    fn address(&self, node: &Node) -> (String, u16) {
        (node.address.unwrap_or(LOOPBACK).to_string(), node.port)
    }

    fn peer_address(&self, node: &Node) -> (String, u16) {
        // On one machine by the name that its network knows, from any other by its address.
        (node.address.map_or_else(|| node.name.to_string(), |address| address.to_string()), node.port)
    }

    fn network(&self, topology: &Topology) -> Network {
        // What comes through a port of 127.0.0.1 comes from the network's own gateway; from other machines it comes from
        // anywhere.
        let elsewhere = topology.nodes().iter().any(|node| node.address.is_some());
        Network { listen: "*", clients: if elsewhere { "all" } else { "samenet" } }
    }

    fn shell(&self, node: &Node, command: &Command) -> String {
        self.shell_exec(node, "", command)
    }

    fn shell_with_input(&self, node: &Node, command: &Command) -> String {
        self.shell_exec(node, "-i ", command)
    }

    fn shell_make_directory(&self, node: &Node, path: &Path) -> String {
        self.shell(node, &Self::root_script(MAKE_DIRECTORY, &[&path.to_string_lossy(), &self.user]))
    }

    fn shell_write(&self, node: &Node, path: &Path, source: &str) -> String {
        let write = "umask 077; cat >\"$1\" && chown \"$2:\" \"$1\"";
        let write = Self::root_script(write, &[&path.to_string_lossy(), &self.user]);
        format!("({source}) | {}", self.shell_with_input(node, &write))
    }

    fn shell_bring(&self, node: &Node, program: &Path) -> Result<Option<String>> {
        self.shell_bring_program(node, program).map(Some)
    }

    fn shell_start(&self, service: Service<'_>, command: &Command) -> String {
        let log = self.log(service);
        let start = format!("exec \"$@\" >>{} 2>&1", quote(&log.to_string_lossy()));
        let mut started =
            Command::new("sh").args(["-c", &start, service.name, &command.program]).args(command.args.clone());
        started.environment.clone_from(&command.environment);
        started.as_root = command.as_root;
        self.shell_exec(service.node, "-d ", &started)
    }

    fn run(&self, node: &Node, command: &Command) -> Result<()> {
        let client = self.client(node)?;
        let mut log = self.open_setup_log(node)?;
        let failed = |source| Error::io("cannot write the setup log", source);
        writeln!(log, "$ {command}").map_err(failed)?;
        let (container, label) = (self.container_name(node), self.label(node, SETUP));
        let exec = Exec { container: &container, label: &label, user: self.user_of(command), home: HOME, command };
        match exec.run(&client, &[], &self.cancel, |_, bytes| log.write_all(bytes).map_err(failed))? {
            0 => Ok(()),
            code => Err(Error::new(ErrorKind::Io, format!("`{command}` ended with exit status: {code}"))),
        }
    }

    fn ask(&self, node: &Node, command: &Command) -> Result<Option<Output>> {
        let client = self.client(node)?;
        if !self.container(&client, node)?.is_some_and(|container| container.running) {
            return Ok(None);
        }
        let (code, stdout, stderr) = self.run_with(node, command, &[])?;
        Ok(Some(Output { status: exit_status(code), stdout, stderr }))
    }

    fn ask_beforehand(&self, node: &Node, command: &Command) -> Result<Option<Output>> {
        match self.ask(node, command)? {
            None => self.try_image(&*self.client(node)?, command),
            answer => Ok(answer),
        }
    }

    fn exec(&self, node: &Node, command: &Command) -> Result<ExitStatus> {
        let client = self.client(node)?;
        let (container, label) = (self.container_name(node), self.label(node, &format!("exec-{}", std::process::id())));
        let exec = Exec { container: &container, label: &label, user: self.user_of(command), home: HOME, command };
        exec.on_terminal(&client, &self.cancel).map(exit_status)
    }

    fn setup_log(&self, node: &Node) -> PathBuf {
        self.directory.logs().join(format!("{}.setup.log", node.name))
    }

    fn make_directory(&self, node: &Node, path: &Path) -> Result<()> {
        let what = || format!("cannot make the directory {}", path.display());
        self.script(node, MAKE_DIRECTORY, &[&path.to_string_lossy(), &self.user], &[], what)
    }

    fn write(&self, node: &Node, path: &Path, content: &[u8]) -> Result<()> {
        let what = || format!("cannot write {}", path.display());
        let length = content.len().to_string();
        self.script(node, WRITE, &[&path.to_string_lossy(), &self.user, &length], content, what)
    }

    fn read(&self, node: &Node, path: &Path) -> Result<Option<Vec<u8>>> {
        files::read(&*self.client(node)?, &self.container_name(node), path)
    }

    fn read_all(&self, node: &Node, paths: &[&Path]) -> Result<Vec<Option<Vec<u8>>>> {
        // One command for all: for each archive Docker starts a process of its own.
        let printed = self.ask(node, &files::print_all(paths))?.filter(|answer| answer.status.success());
        let contents = printed.and_then(|answer| files::printed(&answer.stdout, paths.len()));
        contents.map_or_else(|| paths.iter().map(|path| self.read(node, path)).collect(), Ok)
    }

    fn length(&self, node: &Node, path: &Path) -> Result<Option<u64>> {
        Ok(self.stat(node, path)?.map(|stat| stat.length))
    }

    fn read_from(&self, node: &Node, path: &Path, start: u64) -> Result<Vec<u8>> {
        let tail = Command::new("tail").args(["-c", &format!("+{}", start + 1), &path.to_string_lossy()]).as_root();
        if let Some(answer) = self.ask(node, &tail)? {
            return Ok(answer.stdout);
        }
        // A container that is stopped runs nothing, but has its files.
        let whole = self.read(node, path)?.unwrap_or_default();
        Ok(whole.get(usize::try_from(start).unwrap_or(usize::MAX)..).unwrap_or_default().to_vec())
    }

    fn modified(&self, node: &Node, path: &Path) -> Result<Option<SystemTime>> {
        Ok(self.stat(node, path)?.map(|stat| stat.modified))
    }

    fn remove(&self, node: &Node, path: &Path) -> Result<()> {
        let what = || format!("cannot remove {}", path.display());
        if self.stat(node, path)?.is_none() {
            return Ok(());
        }
        self.script(node, "rm -rf \"$1\"", &[&path.to_string_lossy()], &[], what)
    }

    fn complete(&self, node: &Node, from: &Path, to: &Path) -> Result<()> {
        let what = || format!("cannot bring {} to stable storage as {}", from.display(), to.display());
        self.script(node, COMPLETE, &[&from.to_string_lossy(), &to.to_string_lossy()], &[], what)
    }

    fn place_of(&self, program: &Path) -> Result<PathBuf> {
        program::place_of(program)
    }

    fn bring(&self, node: &Node, program: &Path) -> Result<()> {
        self.bring_program(node, program)
    }

    fn start(&self, service: Service<'_>, command: &Command) -> Result<()> {
        self.start_service(service, command)
    }

    fn process_id(&self, service: Service<'_>) -> Result<Option<u32>> {
        Ok(self.find_service(service)?.map(|(process_id, _)| process_id))
    }

    fn command_line(&self, service: Service<'_>) -> Result<Option<Vec<String>>> {
        self.words_of_service(service)
    }

    fn stop(&self, service: Service<'_>, signal: Signal, patience: Duration) -> Result<()> {
        self.stop_service(service, signal, patience)
    }

    fn log(&self, service: Service<'_>) -> PathBuf {
        Path::new(HOME).join("log").join(format!("{}.log", service.name))
    }

    fn disk_usage(&self, node: &Node) -> ByteSize {
        let usage = Command::new("du").args(["-sk", HOME]).as_root();
        let answer = self.ask(node, &usage).ok().flatten().map(|answer| answer.stdout).unwrap_or_default();
        let text = String::from_utf8_lossy(&answer);
        ByteSize::kib(text.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0))
    }

    fn end_stragglers(&self) -> Result<()> {
        let nodes = self.directory.record()?.map(|record| record.topology);
        for node in nodes.iter().flat_map(Topology::nodes) {
            let client = self.client(node)?;
            let Some(container) = self.container(&client, node)?.filter(|container| container.running) else {
                continue;
            };
            let name = self.container_name(node);
            for running in exec::running(&client, &name, &container.commands)? {
                if running.label == self.label(node, SETUP) {
                    exec::signal(&client, &name, &running.label, &running.user, "KILL")?;
                }
            }
        }
        Ok(())
    }

    fn remove_node(&self, node: &Node, purge: bool) -> Result<()> {
        let client = self.client(node)?;
        if !purge {
            return self.stop_container(&client, node);
        }
        let started = Instant::now();
        loop {
            self.remove_container(&client, node)?;
            match self.remove_volume(&client, &self.container_name(node)) {
                // Who was killed while Docker made the container has left that to Docker: it has the volume already, and
                // can be seen, and removed, once it is made.
                Err(error) if error.kind() == ErrorKind::Refused && started.elapsed() < MAKING => {
                    std::thread::sleep(INTERVAL);
                }
                outcome => return outcome,
            }
        }
    }

    fn remove_shared(&self, topology: &Topology) -> Result<()> {
        for node in self.one_per_daemon(topology)? {
            let client = self.client(node)?;
            self.remove_network(&client)?;
            if self.shared_directory.is_some() {
                self.remove_volume(&client, &self.shared_volume())?;
            }
        }
        Ok(())
    }
}

fn exit_status(code: i64) -> ExitStatus {
    ExitStatus::from_raw((i32::try_from(code).unwrap_or(i32::from(u8::MAX)) & 0xff) << 8)
}
