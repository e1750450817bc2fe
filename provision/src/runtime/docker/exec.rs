//! Commands in a container.
//!
//! Docker keeps a command's arguments, not its environment, and forgets both when the daemon is restarted under running
//! containers. So the label of a command stands in both: the first finds it at once, the second in any case.

use std::io::{self, IsTerminal, Read, Write};
use std::time::Duration;

use blockdev::{Cancel, Error, ErrorKind, Result};
use bollard::container::LogOutput;
use bollard::exec::{CreateExecOptions, ResizeExecOptions, StartExecOptions, StartExecResults};
use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;

use super::client::Client;
use crate::runtime::Command;
use crate::runtime::local::LABEL;

/// Runs its arguments; the label is its name.
const RUN: &str = "exec \"$@\"";
/// Runs its arguments but the first, which is the log they print to.
const RUN_INTO_LOG: &str = "log=$1; shift; exec \"$@\" >>\"$log\" 2>&1 </dev/null";
/// Prints the process ids whose label is $0, as the container counts them. Those of other users cannot be looked into.
const FIND: &str = "grep -lzxF \"$1=$0\" /proc/[0-9]*/environ 2>/dev/null | cut -d / -f 3 | sort -n";

/// A command in a container.
pub(super) struct Exec<'a> {
    /// The container.
    pub container: &'a str,
    /// Whose it is: `<cluster>/<node>/<what>`.
    pub label: &'a str,
    /// Whom it runs as.
    pub user: &'a str,
    /// Where it runs, and its HOME.
    pub home: &'a str,
    /// What it is.
    pub command: &'a Command,
}

/// What a command printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Output,
    Error,
}

impl Exec<'_> {
    fn options(&self, script: &str, before: &[&str]) -> CreateExecOptions<String> {
        let mut words = vec!["sh".to_owned(), "-c".to_owned(), script.to_owned(), self.label.to_owned()];
        words.extend(before.iter().map(|word| (*word).to_owned()));
        words.push(self.command.program.clone());
        words.extend(self.command.args.iter().cloned());
        let mut environment =
            vec![format!("{LABEL}={}", self.label), format!("HOME={}", self.home), "LC_ALL=C".to_owned()];
        environment.extend(self.command.environment.iter().map(|(name, value)| format!("{name}={value}")));
        CreateExecOptions {
            cmd: Some(words),
            env: Some(environment),
            user: Some(self.user.to_owned()),
            working_dir: Some(self.home.to_owned()),
            ..CreateExecOptions::default()
        }
    }

    fn what(&self) -> String {
        format!("cannot run `{}` in the container {}", self.command, self.container)
    }

    /// Starts it, and leaves it running; what it prints goes to the file `log` of the container.
    pub(super) fn start(&self, client: &Client, log: &str) -> Result<()> {
        client.call(
            || self.what(),
            async |docker| {
                let id = docker.create_exec(self.container, self.options(RUN_INTO_LOG, &[log])).await?.id;
                docker.start_exec(&id, Some(StartExecOptions { detach: true, ..StartExecOptions::default() })).await?;
                Ok(())
            },
        )
    }

    /// Runs it to its end with `input`, gives `print` what it prints, and returns its exit code.
    ///
    /// # Errors
    /// When it cannot be run, or somebody asks to stop: then it is ended first.
    pub(super) fn run(
        &self,
        client: &Client,
        input: &[u8],
        cancel: &Cancel,
        mut print: impl FnMut(Stream, &[u8]) -> Result<()>,
    ) -> Result<i64> {
        let options = CreateExecOptions {
            attach_stdin: Some(!input.is_empty()),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            ..self.options(RUN, &[])
        };
        let docker = client.docker();
        let id =
            client.call(|| self.what(), async |docker| Ok(docker.create_exec(self.container, options).await?.id))?;
        let running = async {
            let described = |error| client.described(self.what(), error);
            let started = docker.start_exec(&id, None::<StartExecOptions>).await.map_err(described)?;
            let StartExecResults::Attached { mut output, input: mut stdin } = started else { return Ok(()) };
            if !input.is_empty() {
                let given = async {
                    stdin.write_all(input).await?;
                    stdin.flush().await?;
                    stdin.shutdown().await
                };
                given.await.map_err(|source| Error::io(self.what(), source))?;
            }
            while let Some(piece) = output.next().await {
                match piece.map_err(described)? {
                    LogOutput::StdErr { message } => print(Stream::Error, &message)?,
                    other => print(Stream::Output, &other.into_bytes())?,
                }
            }
            Ok(())
        };
        match client.wait(running, &format!("`{}`", self.command), cancel) {
            Ok(outcome) => outcome.and_then(|()| exit_code(client, &id, || self.what())),
            Err(interrupted) => {
                signal(client, self.container, self.label, self.user, "KILL")?;
                Err(interrupted)
            }
        }
    }

    /// Runs it on this terminal, or on what stands for it, and returns its exit code.
    ///
    /// # Errors
    /// When it cannot be run.
    pub(super) fn on_terminal(&self, client: &Client, cancel: &Cancel) -> Result<i64> {
        let tty = io::stdin().is_terminal() && io::stdout().is_terminal();
        let options = CreateExecOptions {
            attach_stdin: Some(true),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            tty: Some(tty),
            ..self.options(RUN, &[])
        };
        let docker = client.docker();
        let id =
            client.call(|| self.what(), async |docker| Ok(docker.create_exec(self.container, options).await?.id))?;
        let _raw = if tty { Some(RawTerminal::enter()?) } else { None };
        let (sender, mut typed) = tokio::sync::mpsc::unbounded_channel();
        // It ends with the process: a read of a terminal cannot be interrupted otherwise.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = io::stdin().read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
        let running = async {
            let described = |error| client.described(self.what(), error);
            let started = docker.start_exec(&id, None::<StartExecOptions>).await.map_err(described)?;
            let StartExecResults::Attached { mut output, input: mut stdin } = started else { return Ok(()) };
            let mut size = None;
            let mut open = true;
            loop {
                if tty && size != window_size() {
                    size = window_size();
                    if let Some((height, width)) = size {
                        // A terminal of another size still works.
                        let _ = docker.resize_exec(&id, ResizeExecOptions { height, width }).await;
                    }
                }
                tokio::select! {
                    piece = output.next() => match piece {
                        None => return Ok(()),
                        Some(piece) => show(&piece.map_err(described)?)?,
                    },
                    bytes = typed.recv(), if open => match bytes {
                        // That it no longer reads is no error: it may end before its input does.
                        Some(bytes) => {
                            let _ = stdin.write_all(&bytes).await;
                            let _ = stdin.flush().await;
                        }
                        None => {
                            open = false;
                            let _ = stdin.shutdown().await;
                        }
                    },
                    () = tokio::time::sleep(Duration::from_millis(250)) => {}
                }
            }
        };
        match client.wait(running, &format!("`{}`", self.command), cancel) {
            Ok(outcome) => outcome.and_then(|()| exit_code(client, &id, || self.what())),
            Err(interrupted) => {
                signal(client, self.container, self.label, self.user, "INT")?;
                Err(interrupted)
            }
        }
    }
}

fn show(piece: &LogOutput) -> Result<()> {
    let shown = match piece {
        LogOutput::StdErr { message } => io::stderr().lock().write_all(message),
        LogOutput::StdOut { message } | LogOutput::Console { message } | LogOutput::StdIn { message } => {
            let mut out = io::stdout().lock();
            out.write_all(message).and_then(|()| out.flush())
        }
    };
    shown.map_err(|source| Error::io("cannot show what the command prints", source))
}

/// The exit code of a command whose output has ended: Docker may take a moment longer to know it.
fn exit_code(client: &Client, id: &str, what: impl Fn() -> String) -> Result<i64> {
    const TRIES: u32 = 500;
    for _ in 0..TRIES {
        let seen = client.call(&what, async |docker| docker.inspect_exec(id).await)?;
        if let (Some(false), Some(code)) = (seen.running, seen.exit_code) {
            return Ok(code);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Err(Error::new(ErrorKind::Io, format!("{}: it has closed its output, but does not end", what())))
}

/// A running command that Docker knows.
pub(super) struct Running {
    /// Its process id, as the kernel under the container counts.
    pub process_id: Option<u32>,
    /// Its label.
    pub label: String,
    /// Whom it runs as.
    pub user: String,
}

/// The running commands of a container.
pub(super) fn running(client: &Client, container: &str, ids: &[String]) -> Result<Vec<Running>> {
    let mut found = Vec::new();
    for id in ids {
        let what = || format!("cannot look at what runs in the container {container}");
        let Some(seen) = client.look(what, async |docker| docker.inspect_exec(id).await)? else { continue };
        let Some(process) = seen.process_config.filter(|_| seen.running == Some(true)) else { continue };
        // sh -c SCRIPT LABEL ...
        let Some(label) = process.arguments.unwrap_or_default().into_iter().nth(2) else { continue };
        let process_id = seen.pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0);
        found.push(Running { process_id, label, user: process.user.unwrap_or_default() });
    }
    Ok(found)
}

fn script(script: &str, args: &[&str]) -> Command {
    Command::new("sh").args(["-c", script]).args(args.iter().copied())
}

/// The processes of `user` that carry `label`, as the container counts them.
pub(super) fn find(client: &Client, container: &str, label: &str, user: &str) -> Result<Vec<u32>> {
    // The searcher itself must not carry the label.
    let searcher = Exec { container, label: "search", user, home: "/", command: &script(FIND, &[label, LABEL]) };
    let mut printed = Vec::new();
    searcher.run(client, &[], &Cancel::new(), |_, bytes| {
        printed.extend_from_slice(bytes);
        Ok(())
    })?;
    Ok(String::from_utf8_lossy(&printed).lines().filter_map(|line| line.trim().parse().ok()).collect())
}

/// The command line of the first process of `user` that carries `label`, as /proc has it.
pub(super) fn cmdline(client: &Client, container: &str, label: &str, user: &str) -> Result<Vec<u8>> {
    let read = format!("{FIND} | head -n 1 | while read -r id; do cat \"/proc/$id/cmdline\" 2>/dev/null; done; true");
    let reader = Exec { container, label: "search", user, home: "/", command: &script(&read, &[label, LABEL]) };
    let mut printed = Vec::new();
    reader.run(client, &[], &Cancel::new(), |_, bytes| {
        printed.extend_from_slice(bytes);
        Ok(())
    })?;
    Ok(printed)
}

/// Sends `signal`, such as INT, to the processes of `user` that carry `label`.
pub(super) fn signal(client: &Client, container: &str, label: &str, user: &str, signal: &str) -> Result<()> {
    let kill = format!("{FIND} | while read -r id; do kill -s \"$2\" \"$id\" 2>/dev/null; done; true");
    let killer = Exec { container, label: "signal", user, home: "/", command: &script(&kill, &[label, LABEL, signal]) };
    killer.run(client, &[], &Cancel::new(), |_, _| Ok(())).map(drop)
}

/// The terminal passes every key on until this is dropped.
struct RawTerminal(nix::sys::termios::Termios);

impl RawTerminal {
    fn enter() -> Result<Self> {
        use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
        let failed = |errno| Error::io("cannot set up the terminal", io::Error::from(errno));
        let before = tcgetattr(io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw).map_err(failed)?;
        Ok(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = nix::sys::termios::tcsetattr(io::stdin(), nix::sys::termios::SetArg::TCSANOW, &self.0);
    }
}

/// Height and width of the terminal, in characters.
fn window_size() -> Option<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the call fills in the structure that it is given.
    let outcome = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    (outcome == 0 && size.ws_row > 0).then_some((size.ws_row, size.ws_col))
}
