//! Another program, run to its end and measured.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use blockdev::{Cancel, Context, Error, ErrorKind, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::sys::time::TimeValLike;
use nix::unistd::Pid;

/// How long it listens to a child before it looks whether somebody asked to stop.
const GLANCE_MS: u8 = 100;

/// What a program took, and what it said on standard output.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// From before its start to after its end.
    pub(crate) elapsed: Duration,
    /// Processor time, user and system, of it and of the children it waited for.
    pub(crate) cpu: Duration,
    /// Its standard output.
    pub(crate) stdout: String,
}

impl Outcome {
    /// Processor time as a share of one core.
    pub(crate) fn cpu_share(&self) -> f64 {
        self.cpu.as_secs_f64() / self.elapsed.as_secs_f64()
    }
}

/// Runs `command` to its end. Only one may run at a time: processor time is the difference of what all children took.
///
/// # Errors
/// When it cannot be run, does not succeed, or was interrupted: then it was, too, and had the time to clean up.
pub(crate) fn run(mut command: Command, cancel: &Cancel) -> Result<Outcome> {
    let line = line_of(&command);
    let mut stderr = tempfile::tempfile().context(|| "cannot make a temporary file")?;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr.try_clone().context(|| "cannot share a temporary file")?)
        // Out of reach of the terminal's Ctrl-C: our programs take a second signal for impatience, so they get one, from us.
        .process_group(0);
    let cpu_before = cpu_of_children()?;
    let started = Instant::now();
    let mut child = command.spawn().context(|| format!("cannot run {line}"))?;
    let said = listen(&mut child, cancel);
    let status = child.wait().context(|| format!("cannot wait for {line}"))?;
    let elapsed = started.elapsed();
    let cpu = cpu_of_children()?.saturating_sub(cpu_before);
    cancel.check(&line)?;
    let stdout = said.context(|| format!("cannot read what {line} says"))?;
    if !status.success() {
        let why = text_of(&mut stderr).context(|| format!("cannot read the complaints of {line}"))?;
        return Err(Error::new(ErrorKind::Io, format!("{line} failed ({status}): {}", why.trim())));
    }
    Ok(Outcome { elapsed, cpu, stdout })
}

/// The command as one would type it.
pub(crate) fn line_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Reads the child's standard output to its end, passing on that somebody asked to stop.
fn listen(child: &mut Child, cancel: &Cancel) -> std::io::Result<String> {
    let Some(mut stdout): Option<ChildStdout> = child.stdout.take() else { return Ok(String::new()) };
    let mut said = Vec::new();
    let mut chunk = [0; 65536];
    let mut told = false;
    loop {
        if cancel.is_cancelled() && !told {
            // It has not been waited for, so the number is still its own.
            let pid = Pid::from_raw(i32::try_from(child.id()).map_err(std::io::Error::other)?);
            // Not SIGINT, which whoever runs in the background may have been told to ignore.
            kill(pid, Signal::SIGTERM)?;
            told = true;
        }
        match poll(&mut [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)], PollTimeout::from(GLANCE_MS)) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => continue,
            outcome => outcome?,
        };
        match stdout.read(&mut chunk)? {
            0 => return Ok(String::from_utf8_lossy(&said).into_owned()),
            got => said.extend_from_slice(&chunk[..got]),
        }
    }
}

fn text_of(file: &mut File) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Processor time of all children that were waited for.
fn cpu_of_children() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context(|| "cannot ask for processor time")?;
    let microseconds = (usage.user_time() + usage.system_time()).num_microseconds();
    Ok(Duration::from_micros(microseconds.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    // One test, for processor time is that of all children of this process.
    #[test]
    fn a_child_is_measured_heard_blamed_and_stopped() {
        let cancel = Cancel::new();
        let outcome = run(shell("i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo $i"), &cancel).unwrap();
        assert_eq!(outcome.stdout, "100000\n");
        assert!(outcome.cpu > Duration::ZERO && outcome.cpu_share() > 0.0, "{outcome:?}");

        let error = run(shell("echo no room >&2; exit 4"), &cancel).unwrap_err();
        let expected = "sh -c echo no room >&2; exit 4 failed (exit status: 4): no room";
        assert_eq!(error.to_string(), expected);
        let error = run(Command::new("/no/such/program"), &cancel).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::NotFound, "cannot run /no/such/program"));

        let dir = tempfile::tempdir().unwrap();
        let cleaned = dir.path().join("cleaned");
        let script = format!("trap 'touch {}; exit 130' TERM; echo; while :; do sleep 0.01; done", cleaned.display());
        let stopper = {
            let cancel = cancel.clone();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(300));
                cancel.cancel();
            })
        };
        assert_eq!(run(shell(&script), &cancel).unwrap_err().kind(), ErrorKind::Interrupted);
        stopper.join().unwrap();
        assert!(cleaned.exists());
    }
}
