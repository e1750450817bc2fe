//! Where a node runs, and how to reach into it. An [`Engine`](crate::engine::Engine) says what to run; a [`Runtime`] runs
//! it there, keeps its log, and finds it again by a label that nothing else carries.

pub mod docker;
pub mod local;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output};
use std::time::{Duration, SystemTime};

use blockdev::{ByteSize, Result};
use nix::sys::signal::Signal;

use crate::doctor::Finding;
use crate::step::{Log, Step};
use crate::topology::{Node, Topology};

/// A command on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The program, as a path or to be found on the path.
    pub program: String,
    /// Its arguments. They are shown in messages and by `ps`: no secret may be among them.
    pub args: Vec<String>,
    /// Variables it gets beside the few that every command on a node has.
    pub environment: Vec<(String, String)>,
    /// Whether it runs as the node's administrator (whoever runs `provision`, root in a container) instead of as the
    /// database's user.
    pub as_root: bool,
}

impl Command {
    /// A command without arguments.
    pub fn new(program: impl Into<String>) -> Self {
        Self { program: program.into(), args: Vec::new(), environment: Vec::new(), as_root: false }
    }

    /// The same with one more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// The same with more arguments.
    #[must_use]
    pub fn args<T: Into<String>>(mut self, args: impl IntoIterator<Item = T>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// The same with a variable in its environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// The same as the node's administrator.
    #[must_use]
    pub fn as_root(mut self) -> Self {
        self.as_root = true;
        self
    }
}

impl fmt::Display for Command {
    /// As one would type it in a shell.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.environment {
            write!(f, "{name}={} ", quote(value))?;
        }
        f.write_str(&quote(&self.program))?;
        self.args.iter().try_for_each(|arg| write!(f, " {}", quote(arg)))
    }
}

/// `text` as one word of a shell.
#[must_use]
pub fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// A process of a node that runs until it is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Service<'a> {
    /// The node it belongs to.
    pub node: &'a Node,
    /// What it is, such as `postgres`; also names its log.
    pub name: &'a str,
}

/// A log on a node.
#[derive(Clone)]
pub struct NodeLog<'a> {
    /// Where the node runs.
    pub runtime: &'a dyn Runtime,
    /// The node.
    pub node: &'a Node,
    /// Where it is there.
    pub path: PathBuf,
}

impl<'a> NodeLog<'a> {
    /// What `service` prints.
    pub fn of(runtime: &'a dyn Runtime, service: Service<'a>) -> Self {
        Self { runtime, node: service.node, path: runtime.log(service) }
    }
}

impl Log for NodeLog<'_> {
    fn place(&self) -> String {
        let path = self.path.display();
        if self.runtime.is_this_machine() { path.to_string() } else { format!("{path} on {}", self.node.name) }
    }

    fn length(&self) -> Result<Option<u64>> {
        self.runtime.length(self.node, &self.path)
    }

    fn read(&self, start: u64) -> Result<Vec<u8>> {
        // Shorter than it was: it was begun anew, and all of it is new.
        let begun_anew = self.length()?.is_some_and(|length| length < start);
        self.runtime.read_from(self.node, &self.path, if begun_anew { 0 } else { start })
    }
}

/// A disk that a node is to have, and how the node is to see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The block device where the node runs, such as `/dev/loop3`.
    pub path: PathBuf,
    /// Where the node sees it, such as `/dev/nvme1n1`.
    pub on_node: PathBuf,
}

/// The disks of a node.
pub struct Devices<'a> {
    /// Asked for when the node is made: earlier they need not be there yet.
    pub find: Box<dyn Fn() -> Result<Vec<Device>> + 'a>,
    /// The same for a shell that makes the node, each as `PATH:ON_NODE`.
    pub shell: Vec<String>,
}

/// From where a node may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// The addresses a service of the node listens on, as `listen_addresses` takes them.
    pub listen: &'static str,
    /// The addresses that its clients and peers come from, as pg_hba.conf takes them.
    pub clients: &'static str,
}

/// Where nodes run.
pub trait Runtime {
    /// What this machine lacks for these nodes.
    ///
    /// # Errors
    /// When it cannot be looked at.
    fn findings(&self, topology: &Topology) -> Result<Vec<Finding>>;

    /// Whether somebody else has the port of a node.
    ///
    /// # Errors
    /// When it cannot be found out.
    fn is_port_taken(&self, node: &Node) -> Result<bool>;

    /// The steps that make what all nodes share.
    fn shared_steps<'a>(&'a self, topology: &'a Topology) -> Vec<Step<'a>>;

    /// The steps that make a node: a place with a home for its files, in which nothing runs yet.
    fn node_steps<'a>(&'a self, node: &'a Node, devices: Devices<'a>) -> Vec<Step<'a>>;

    /// Makes the files of a node that is made reachable again, after a reboot for instance.
    ///
    /// # Errors
    /// When they cannot be.
    fn wake(&self, _node: &Node) -> Result<()> {
        Ok(())
    }

    /// Whether a node is this very machine, with its files, programs and users. Otherwise what is used on a node runs on
    /// it.
    fn is_this_machine(&self) -> bool;

    /// Whether the kernel under a node is the one under this process: what is attached to a loop device here is one there, too.
    ///
    /// # Errors
    /// When it cannot be found out.
    fn has_this_kernel(&self, _node: &Node) -> Result<bool> {
        Ok(true)
    }

    /// The directory for the node's files, as the node sees it. What runs on the node can make nothing in it, only in the
    /// directories that [`make_directory`](Self::make_directory) gives it.
    fn home(&self, node: &Node) -> PathBuf;

    /// Where the nodes' files are, for a person.
    fn files(&self) -> String;

    /// Where the nodes' logs are, for a person.
    fn logs(&self) -> String;

    /// The directory for the node's sockets, as the node sees it.
    fn sockets(&self, node: &Node) -> PathBuf;

    /// Where this machine reaches the node: host, or the directory of its socket, and port.
    fn address(&self, node: &Node) -> (String, u16);

    /// Where the other nodes reach this one: host and port.
    fn peer_address(&self, node: &Node) -> (String, u16);

    /// From where these nodes may be reached.
    fn network(&self, topology: &Topology) -> Network;

    /// `command` as one would type it here, outside of the node.
    fn shell(&self, node: &Node, command: &Command) -> String;

    /// `command`, which reads its input, as one would type it after a pipe.
    fn shell_with_input(&self, node: &Node, command: &Command) -> String;

    /// What [`make_directory`](Self::make_directory) does, as one would type it.
    fn shell_make_directory(&self, node: &Node, path: &Path) -> String;

    /// What [`write`](Self::write) does with the output of `source`, as one would type it.
    fn shell_write(&self, node: &Node, path: &Path, source: &str) -> String;

    /// What [`bring`](Self::bring) does, as one would type it, if anything.
    ///
    /// # Errors
    /// When the program cannot be read.
    fn shell_bring(&self, node: &Node, program: &Path) -> Result<Option<String>>;

    /// What [`start`](Self::start) does, as one would type it.
    fn shell_start(&self, service: Service<'_>, command: &Command) -> String;

    /// Runs `command` to its end; its output goes to the [setup log](Self::setup_log).
    ///
    /// # Errors
    /// When it cannot be started, fails, or somebody asks to stop: then it is ended first.
    fn run(&self, node: &Node, command: &Command) -> Result<()>;

    /// Runs `command`, which takes a moment and changes nothing, and keeps what it prints; nothing where the node is not
    /// there to be asked.
    ///
    /// # Errors
    /// When it cannot be started. That it fails is for the caller to see.
    fn ask(&self, node: &Node, command: &Command) -> Result<Option<Output>>;

    /// The same; where the node is not there, something of its kind is asked that is made for that alone, if it can be.
    ///
    /// # Errors
    /// When it cannot be made or started.
    fn ask_beforehand(&self, node: &Node, command: &Command) -> Result<Option<Output>> {
        self.ask(node, command)
    }

    /// Runs `command` on this terminal and waits for its end.
    ///
    /// # Errors
    /// When it cannot be started.
    fn exec(&self, node: &Node, command: &Command) -> Result<ExitStatus>;

    /// Where [`run`](Self::run) puts what its commands print, on this machine.
    fn setup_log(&self, node: &Node) -> PathBuf;

    /// Makes an empty directory below the home that belongs to what runs on the node, instead of what is at `path`.
    ///
    /// # Errors
    /// When it cannot be made.
    fn make_directory(&self, node: &Node, path: &Path) -> Result<()>;

    /// Writes a file below the home, whole or not at all, that only what runs on the node can read.
    ///
    /// # Errors
    /// When it cannot be written.
    fn write(&self, node: &Node, path: &Path, content: &[u8]) -> Result<()>;

    /// What is in a file on the node; nothing if there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&self, node: &Node, path: &Path) -> Result<Option<Vec<u8>>>;

    /// The same of several, in their order.
    ///
    /// # Errors
    /// When one cannot be read.
    fn read_all(&self, node: &Node, paths: &[&Path]) -> Result<Vec<Option<Vec<u8>>>> {
        paths.iter().map(|path| self.read(node, path)).collect()
    }

    /// How many bytes a file on the node has; nothing if there is none.
    ///
    /// # Errors
    /// When it cannot be looked at.
    fn length(&self, node: &Node, path: &Path) -> Result<Option<u64>>;

    /// What is in a file on the node from byte `start` on, also when it is large.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read_from(&self, node: &Node, path: &Path, start: u64) -> Result<Vec<u8>>;

    /// When what is at `path` on the node was last written; nothing if it does not exist.
    ///
    /// # Errors
    /// When it cannot be looked at.
    fn modified(&self, node: &Node, path: &Path) -> Result<Option<SystemTime>>;

    /// Removes what is at `path` below the home, if anything.
    ///
    /// # Errors
    /// When it cannot be removed.
    fn remove(&self, node: &Node, path: &Path) -> Result<()>;

    /// Renames once everything in `from` is on stable storage: `to` is complete, or does not exist.
    ///
    /// # Errors
    /// When it cannot be stored or renamed.
    fn complete(&self, node: &Node, from: &Path, to: &Path) -> Result<()>;

    /// Where a node has `program`, a file of this machine, once it was [brought](Self::bring) there. Another program, also
    /// one that takes its place here, has another place there.
    ///
    /// # Errors
    /// When it cannot be read.
    fn place_of(&self, program: &Path) -> Result<PathBuf>;

    /// Brings `program`, a file of this machine that says `--version`, to [its place](Self::place_of) on the node unless it
    /// is there.
    ///
    /// # Errors
    /// When it cannot be brought, or does not run there.
    fn bring(&self, node: &Node, program: &Path) -> Result<()>;

    /// Starts a process that outlives this one; what it prints goes to its [log](Self::log).
    ///
    /// # Errors
    /// When it cannot be started.
    fn start(&self, service: Service<'_>, command: &Command) -> Result<()>;

    /// The process id of a service, if it runs: by its label, never by a number kept somewhere. It is that of the kernel
    /// under the node, which the node itself may count otherwise.
    ///
    /// # Errors
    /// When it cannot be found out.
    fn process_id(&self, service: Service<'_>) -> Result<Option<u32>>;

    /// The words of the command that a service runs as, the program first, if it runs.
    ///
    /// # Errors
    /// When it cannot be found out.
    fn command_line(&self, service: Service<'_>) -> Result<Option<Vec<String>>>;

    /// Sends `signal` to a service and waits until it is gone; what does not run is stopped.
    ///
    /// # Errors
    /// When it still runs after `patience`.
    fn stop(&self, service: Service<'_>, signal: Signal, patience: Duration) -> Result<()>;

    /// Where what a service prints is kept, as the node sees it.
    fn log(&self, service: Service<'_>) -> PathBuf;

    /// How much storage the node's files take.
    fn disk_usage(&self, node: &Node) -> ByteSize;

    /// Ends what an earlier, killed command left running on any node on its way to somewhere else.
    ///
    /// # Errors
    /// When it does not end.
    fn end_stragglers(&self) -> Result<()>;

    /// Takes away the node: everything of this cluster that still runs on it, and with `purge` its files.
    ///
    /// # Errors
    /// When something cannot be ended or removed.
    fn remove_node(&self, node: &Node, purge: bool) -> Result<()>;

    /// Removes what all nodes shared, once they are gone.
    ///
    /// # Errors
    /// When something cannot be removed.
    fn remove_shared(&self, topology: &Topology) -> Result<()>;
}

/// The words of a command as /proc has them.
fn words(cmdline: &[u8]) -> Vec<String> {
    let ended = cmdline.strip_suffix(b"\0").unwrap_or(cmdline);
    ended.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_command_reads_as_typed() {
        let command = Command::new("/bin/echo").args(["a b", "it's", "", "x=1"]).env("LC_ALL", "C");
        assert_eq!(command.to_string(), r"LC_ALL=C /bin/echo 'a b' 'it'\''s' '' x=1");
    }

    #[test]
    fn the_words_of_a_process_are_told_apart() {
        assert_eq!(words(b"/bin/pfsd\0-p\0\0a b\0"), ["/bin/pfsd", "-p", "", "a b"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_shell_reads_back_what_was_quoted(text in "[^\0]{0,20}") {
            let output = std::process::Command::new("sh").arg("-c").arg(format!("printf %s {}", quote(&text))).output().unwrap();
            prop_assert_eq!(String::from_utf8(output.stdout).unwrap(), text);
        }
    }
}
