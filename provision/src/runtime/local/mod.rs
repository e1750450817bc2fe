//! Nodes as processes of this machine (Linux only).
//!
//! A node's home belongs to whoever runs `provision`, so that root never follows a name that the database's user has put
//! there; the directories in it in which the database writes belong to the database's user.

mod account;
mod findings;
pub mod ports;
mod process;
mod volume;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use blockdev::{ByteSize, Cancel, Context, Error, ErrorKind, Result};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::config::Storage;
use crate::doctor::Finding;
use crate::runtime::{Command, Devices, Network, Runtime, Service, words};
use crate::state::{ClusterDirectory, Record, write_atomically};
use crate::step::{Log, Step};
use crate::topology::{Node, Topology};

pub use account::Account;
pub(super) use findings::NEW_NODE;
pub use process::{LABEL, Process, labelled};
use volume::{Kind, Volume};

/// In a node's home: the id of the cluster that made it.
const MARK: &str = ".onedisk";
/// `CLOSE_RANGE_CLOEXEC` of close_range(2), which takes it as a signed number.
const CLOSE_ON_EXEC: libc::c_int = libc::CLOSE_RANGE_CLOEXEC as libc::c_int;
/// The label of commands that run to their end.
const SETUP: &str = "setup";

/// Nodes as processes of this machine.
#[derive(Debug)]
pub struct Local {
    id: String,
    account: Account,
    directory: ClusterDirectory,
    nodes: PathBuf,
    /// What each node's own disk is like, if it has one.
    disks: Option<Kind>,
    cancel: Cancel,
}

impl Local {
    /// The nodes of the cluster that `record` describes and `directory` belongs to.
    ///
    /// # Errors
    /// When the user whom they run as does not exist, or cannot be used.
    pub fn new(directory: &ClusterDirectory, record: &Record, cancel: &Cancel) -> Result<Self> {
        Ok(Self {
            id: record.id.clone(),
            account: Account::find(record.config.user.as_deref())?,
            directory: directory.clone(),
            nodes: record.config.directory.clone().unwrap_or_else(|| directory.nodes()),
            disks: match record.config.storage {
                Storage::Directory => None,
                Storage::Image => Some(Kind::new(record.config.disk_size, record.config.prealloc)),
            },
            cancel: cancel.clone(),
        })
    }

    /// Whom the nodes run as.
    #[must_use]
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// Where the nodes' files are.
    #[must_use]
    pub fn nodes_directory(&self) -> &Path {
        &self.nodes
    }

    /// What is made for `node`: its home, or with a disk of its own what holds that.
    fn root(&self, node: &Node) -> PathBuf {
        self.nodes.join(node.name.as_str())
    }

    fn volume(&self, node: &Node) -> Option<Volume> {
        self.disks.map(|kind| Volume::new(kind, &self.root(node)))
    }

    /// The steps that make and mount a node's own disk.
    fn volume_steps<'a>(&'a self, node: &'a Node) -> Vec<Step<'a>> {
        let volume = || self.volume(node);
        let (Some(to_make), Some(making), Some(to_mount), Some(mounting)) = (volume(), volume(), volume(), volume())
        else {
            return Vec::new();
        };
        let (shell_make, shell_mount) = (to_make.shell_make(), to_mount.shell_mount());
        vec![
            Step::new(
                format!("make a disk for {}", node.name),
                move || Ok(to_make.exists()),
                move || making.make(&self.cancel),
            )
            .shell(shell_make),
            Step::new(
                format!("mount the disk of {}", node.name),
                move || to_mount.is_mounted(),
                move || mounting.mount(),
            )
            .shell([shell_mount]),
        ]
    }

    /// Whether this cluster made the directory of `node`.
    ///
    /// # Errors
    /// When something is there that it did not make.
    pub fn has_home(&self, node: &Node) -> Result<bool> {
        let home = self.root(node);
        match fs::read_to_string(home.join(MARK)) {
            Ok(id) if id == self.id => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !home.exists() => Ok(false),
            _ => Err(Error::refused(format!("{} exists, and this cluster did not make it", home.display()))
                .with_hint("move it away, or name another directory with --directory")),
        }
    }

    fn make_home(&self, node: &Node) -> Result<()> {
        let home = self.root(node);
        let new = self.nodes.join(format!("{}.new", node.name));
        let failed = || format!("cannot make the node's directory {}", home.display());
        // Others may pass through it, to the directories that are theirs.
        let make = |path: &Path| DirBuilder::new().recursive(true).mode(0o755).create(path).context(failed);
        make(&self.nodes)?;
        self.remove_tree(&new)?;
        make(&new)?;
        fs::write(new.join(MARK), &self.id).context(failed)?;
        fs::rename(&new, &home).context(failed)
    }

    fn make_shared_directories(&self) -> Result<()> {
        let (sockets, logs) = (self.directory.sockets(), self.directory.logs());
        for path in [&sockets, &logs] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(path)
                .context(|| format!("cannot make the directory {}", path.display()))?;
        }
        self.give(&sockets)
    }

    fn give(&self, path: &Path) -> Result<()> {
        if self.account.switch {
            chown(path, Some(self.account.uid.as_raw()), Some(self.account.gid.as_raw()))
                .context(|| format!("cannot give {} to {}", path.display(), self.account.name))?;
        }
        Ok(())
    }

    #[allow(clippy::unused_self, reason = "removes only what this runtime made")]
    fn remove_tree(&self, path: &Path) -> Result<()> {
        let removed = match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            outcome => outcome.context(|| format!("cannot remove {}", path.display())),
        }
    }

    fn label(&self, node: &Node, name: &str) -> String {
        format!("{}/{}/{name}", self.id, node.name)
    }

    /// `command` as the node's user, with nothing of our environment: what a PGPORT there would do to it nobody knows.
    fn prepare(&self, node: &Node, label: &str, command: &Command) -> std::process::Command {
        let mut prepared = std::process::Command::new(&command.program);
        prepared
            .args(&command.args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into()))
            .env("HOME", self.home(node))
            // Logs are read by people and by `explain`: in one language.
            .env("LC_ALL", "C")
            .env(LABEL, self.label(node, label))
            .envs(command.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(self.home(node));
        if self.account.switch && !command.as_root {
            prepared.uid(self.account.uid.as_raw()).gid(self.account.gid.as_raw());
        }
        prepared
    }

    fn open_log(path: &Path) -> Result<File> {
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .context(|| format!("cannot open the log {}", path.display()))
    }

    fn wait(&self, command: &Command, mut child: Child) -> Result<ExitStatus> {
        const INTERVAL: Duration = Duration::from_millis(2);
        loop {
            if let Some(status) = child.try_wait().context(|| format!("cannot wait for `{command}`"))? {
                return Ok(status);
            }
            if let Err(interrupted) = self.cancel.check(&format!("`{command}`")) {
                if let Ok(group) = i32::try_from(child.id()) {
                    // It has a process group of its own; that it has just ended is no error.
                    let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
                }
                let _ = child.wait();
                return Err(interrupted);
            }
            std::thread::sleep(INTERVAL);
        }
    }
}

impl Runtime for Local {
    fn findings(&self, topology: &Topology) -> Result<Vec<Finding>> {
        findings::all(self, topology)
    }

    fn is_port_taken(&self, node: &Node) -> Result<bool> {
        if ports::is_free(node.port) {
            return Ok(false);
        }
        let holder = ports::holding_process(node.port);
        let ours = labelled(&self.label(node, ""))?;
        Ok(!ours.iter().any(|process| Some(process.id) == holder))
    }

    fn shared_steps<'a>(&'a self, _topology: &'a Topology) -> Vec<Step<'a>> {
        Vec::new()
    }

    fn node_steps<'a>(&'a self, node: &'a Node, _devices: Devices<'a>) -> Vec<Step<'a>> {
        // A process of this machine has this machine's devices.
        let home = self.root(node);
        let make = Step::new(
            format!("make a directory for {}", node.name),
            || Ok(self.directory.sockets().is_dir() && self.directory.logs().is_dir() && self.has_home(node)?),
            move || {
                self.make_shared_directories()?;
                if self.has_home(node)? { Ok(()) } else { self.make_home(node) }
            },
        )
        .shell([
            format!("mkdir -p {} {}", quoted(&self.directory.logs()), quoted(&home)),
            format!(
                "[ -d {0} ] || {1}",
                quoted(&self.directory.sockets()),
                self.shell_make_directory(node, &self.directory.sockets())
            ),
        ]);
        std::iter::once(make).chain(self.volume_steps(node)).collect()
    }

    fn is_this_machine(&self) -> bool {
        true
    }

    fn wake(&self, node: &Node) -> Result<()> {
        match self.volume(node) {
            Some(volume) if volume.exists() && !volume.is_mounted()? => volume.mount(),
            _ => Ok(()),
        }
    }

    fn home(&self, node: &Node) -> PathBuf {
        self.volume(node).map_or_else(|| self.root(node), |volume| volume.point)
    }

    fn files(&self) -> String {
        self.nodes.display().to_string()
    }

    fn logs(&self) -> String {
        self.directory.logs().display().to_string()
    }

    fn sockets(&self, _node: &Node) -> PathBuf {
        self.directory.sockets()
    }

    fn address(&self, node: &Node) -> (String, u16) {
        (self.directory.sockets().to_string_lossy().into_owned(), node.port)
    }

    fn peer_address(&self, node: &Node) -> (String, u16) {
        ("127.0.0.1".to_owned(), node.port)
    }

    fn network(&self, _topology: &Topology) -> Network {
        Network { listen: "127.0.0.1", clients: "127.0.0.1/32" }
    }

    fn shell(&self, _node: &Node, command: &Command) -> String {
        if self.account.switch && !command.as_root {
            let name = &self.account.name;
            format!("setpriv --reuid={name} --regid={} --clear-groups {command}", self.account.gid)
        } else {
            command.to_string()
        }
    }

    fn shell_with_input(&self, node: &Node, command: &Command) -> String {
        self.shell(node, command)
    }

    fn shell_make_directory(&self, _node: &Node, path: &Path) -> String {
        if self.account.switch {
            format!("install -d -m 700 -o {} -g {} {}", self.account.name, self.account.gid, quoted(path))
        } else {
            format!("mkdir -m 700 {}", quoted(path))
        }
    }

    fn shell_write(&self, _node: &Node, path: &Path, source: &str) -> String {
        let path = quoted(path);
        let write = format!("(umask 077; ({source}) >{path})");
        if self.account.switch {
            format!("{write} && chown {}:{} {path}", self.account.name, self.account.gid)
        } else {
            write
        }
    }

    fn shell_bring(&self, _node: &Node, _program: &Path) -> Result<Option<String>> {
        Ok(None)
    }

    fn shell_start(&self, service: Service<'_>, command: &Command) -> String {
        format!("{} >>{} 2>&1 &", self.shell(service.node, command), quoted(&self.log(service)))
    }

    fn run(&self, node: &Node, command: &Command) -> Result<()> {
        let failed = || format!("cannot run `{command}`");
        let mut log = Self::open_log(&self.setup_log(node))?;
        writeln!(log, "$ {command}").context(failed)?;
        let (out, err) = (log.try_clone().context(failed)?, log);
        let mut prepared = self.prepare(node, SETUP, command);
        // Its own group: Ctrl-C reaches us alone, and we end it.
        prepared.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0);
        let parent = nix::unistd::getpid();
        // SAFETY: prctl and getppid are async-signal-safe, and nothing is allocated.
        unsafe {
            prepared.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                // Who died before that was set sends nothing.
                if nix::unistd::getppid() == parent { Ok(()) } else { Err(io::ErrorKind::Interrupted.into()) }
            });
        }
        let child = prepared.spawn().context(failed)?;
        let status = self.wait(command, child)?;
        if status.success() {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::Io, format!("`{command}` ended with {status}")))
        }
    }

    fn ask(&self, node: &Node, command: &Command) -> Result<Option<Output>> {
        let mut prepared = self.prepare(node, SETUP, command);
        // This machine can be asked before the node has a home.
        prepared.current_dir("/").stdin(Stdio::null()).output().map(Some).context(|| format!("cannot run `{command}`"))
    }

    fn exec(&self, node: &Node, command: &Command) -> Result<ExitStatus> {
        self.prepare(node, "exec", command).status().context(|| format!("cannot run `{command}`"))
    }

    fn setup_log(&self, node: &Node) -> PathBuf {
        self.directory.logs().join(format!("{}.setup.log", node.name))
    }

    fn make_directory(&self, _node: &Node, path: &Path) -> Result<()> {
        self.remove_tree(path)?;
        DirBuilder::new()
            .mode(0o700)
            .create(path)
            .context(|| format!("cannot make the directory {}", path.display()))?;
        self.give(path)
    }

    fn write(&self, _node: &Node, path: &Path, content: &[u8]) -> Result<()> {
        let mut new = path.as_os_str().to_owned();
        new.push(".given");
        let new = PathBuf::from(new);
        write_atomically(&new, content, 0o600)?;
        self.give(&new)?;
        fs::rename(&new, path).context(|| format!("cannot write {}", path.display()))
    }

    fn read(&self, _node: &Node, path: &Path) -> Result<Option<Vec<u8>>> {
        match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            content => content.map(Some).context(|| format!("cannot read {}", path.display())),
        }
    }

    fn length(&self, _node: &Node, path: &Path) -> Result<Option<u64>> {
        path.to_owned().length()
    }

    fn read_from(&self, _node: &Node, path: &Path, start: u64) -> Result<Vec<u8>> {
        Log::read(&path.to_owned(), start)
    }

    fn modified(&self, _node: &Node, path: &Path) -> Result<Option<SystemTime>> {
        match fs::symlink_metadata(path).and_then(|metadata| metadata.modified()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            time => time.map(Some).context(|| format!("cannot look at {}", path.display())),
        }
    }

    fn remove(&self, _node: &Node, path: &Path) -> Result<()> {
        self.remove_tree(path)
    }

    fn complete(&self, _node: &Node, from: &Path, to: &Path) -> Result<()> {
        let store = |path: &Path| -> io::Result<()> {
            let directory = File::open(path)?;
            // SAFETY: the descriptor is open.
            if unsafe { libc::syncfs(directory.as_raw_fd()) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
        };
        store(from).context(|| format!("cannot bring {} to stable storage", from.display()))?;
        let failed = || format!("cannot rename {} to {}", from.display(), to.display());
        fs::rename(from, to).context(failed)?;
        match to.parent() {
            Some(parent) => File::open(parent).and_then(|parent| parent.sync_all()).context(failed),
            None => Ok(()),
        }
    }

    fn start(&self, service: Service<'_>, command: &Command) -> Result<()> {
        let failed = || format!("cannot start `{command}`");
        let log = Self::open_log(&self.log(service))?;
        let mut prepared = self.prepare(service.node, service.name, command);
        prepared.stdin(Stdio::null()).stdout(log.try_clone().context(failed)?).stderr(log);
        // SAFETY: both calls are async-signal-safe, and nothing is allocated.
        unsafe {
            prepared.pre_exec(|| {
                // What our caller has open, a lock or a pipe, is not the database's to keep. An older kernel cannot, and a
                // descriptor too many harms less than no database.
                libc::close_range(libc::STDERR_FILENO as libc::c_uint + 1, libc::c_uint::MAX, CLOSE_ON_EXEC);
                Ok(nix::unistd::setsid().map(drop)?)
            });
        }
        // Not waited for: it outlives us. What ends before us has no environment any more, and is not found.
        prepared.spawn().map(drop).context(failed)
    }

    fn place_of(&self, program: &Path) -> Result<PathBuf> {
        Ok(program.to_owned())
    }

    fn bring(&self, _node: &Node, _program: &Path) -> Result<()> {
        Ok(())
    }

    fn process_id(&self, service: Service<'_>) -> Result<Option<u32>> {
        let label = self.label(service.node, service.name);
        // Its own children may carry it, too; the first is their parent.
        let ids = labelled(&label)?.into_iter().filter(|process| process.label == label).map(|process| process.id);
        Ok(ids.min())
    }

    fn command_line(&self, service: Service<'_>) -> Result<Option<Vec<String>>> {
        let Some(id) = self.process_id(service)? else { return Ok(None) };
        // It may have ended meanwhile.
        let cmdline = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        Ok((!cmdline.is_empty()).then(|| words(&cmdline)))
    }

    fn stop(&self, service: Service<'_>, signal: Signal, patience: Duration) -> Result<()> {
        let label = self.label(service.node, service.name);
        let deadline = Instant::now() + patience;
        // Again, until there is none: one that has just been looked past may have started another.
        loop {
            let mut processes = labelled(&label)?;
            processes.retain(|process| process.label == label);
            if processes.is_empty() {
                return Ok(());
            }
            processes.iter().try_for_each(|process| process.signal(signal))?;
            for process in processes {
                if !process.wait(deadline.saturating_duration_since(Instant::now()), &self.cancel)? {
                    let (name, node, id) = (service.name, &service.node.name, process.id);
                    let patience = patience.as_secs();
                    return Err(Error::new(
                        ErrorKind::Io,
                        format!("{name} of {node} (process {id}) still runs {patience} s after {signal}"),
                    )
                    .with_hint(format!("see {}", self.log(service).display())));
                }
            }
        }
    }

    fn log(&self, service: Service<'_>) -> PathBuf {
        self.directory.logs().join(format!("{}.{}.log", service.node.name, service.name))
    }

    fn disk_usage(&self, node: &Node) -> ByteSize {
        tree_usage(&self.home(node))
    }

    fn end_stragglers(&self) -> Result<()> {
        for process in labelled(&format!("{}/", self.id))? {
            if process.label.ends_with(&format!("/{SETUP}")) {
                process.kill()?;
            }
        }
        Ok(())
    }

    fn remove_node(&self, node: &Node, purge: bool) -> Result<()> {
        let label = format!("{}/{}/", self.id, node.name);
        // Again, until there is none: one that has just been looked past may have started another.
        while let processes = labelled(&label)?
            && !processes.is_empty()
        {
            processes.iter().try_for_each(Process::kill)?;
        }
        if let Some(volume) = self.volume(node) {
            volume.unmount()?;
        }
        if purge {
            self.remove_tree(&self.nodes.join(format!("{}.new", node.name)))?;
            if self.has_home(node)? {
                // The mark goes last: what it marks can be removed by a second attempt.
                let home = self.root(node);
                let failed = || format!("cannot remove {}", home.display());
                for entry in fs::read_dir(&home).context(failed)? {
                    let path = entry.context(failed)?.path();
                    if path.file_name().is_some_and(|name| name != MARK) {
                        self.remove_tree(&path)?;
                    }
                }
                self.remove_tree(&home)?;
            }
        }
        Ok(())
    }

    fn remove_shared(&self, _topology: &Topology) -> Result<()> {
        // It lies in the cluster's own directory, and goes with that.
        Ok(())
    }
}

fn quoted(path: &Path) -> String {
    crate::runtime::quote(&path.to_string_lossy())
}

/// The blocks that the files below `path` take. Files come and go meanwhile, and are not counted.
fn tree_usage(path: &Path) -> ByteSize {
    const BLOCK: u64 = 512;
    let Ok(metadata) = fs::symlink_metadata(path) else { return ByteSize::ZERO };
    let own = ByteSize::new(metadata.blocks() * BLOCK);
    if !metadata.is_dir() {
        return own;
    }
    let Ok(entries) = fs::read_dir(path) else { return own };
    own + entries.filter_map(|entry| Some(tree_usage(&entry.ok()?.path()))).sum()
}
