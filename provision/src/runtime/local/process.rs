//! Processes of this machine, known by a label in their environment as containers are by theirs.
//!
//! A process id says nothing: it is used again as soon as the process is gone. So none is ever kept. What is ours carries
//! the variable [`LABEL`], which is looked for in /proc, and what is found is held by a pidfd before its label is read:
//! a signal through that can reach no other process.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use blockdev::{Cancel, Context, Error, ErrorKind, Result};
use nix::errno::Errno;
use nix::sys::signal::Signal;

/// The variable that says whose a process is: `<cluster id>/<node>/<service>`.
pub const LABEL: &str = "ONEDISK_PROCESS";

/// A running process that carries a label.
#[derive(Debug)]
pub struct Process {
    /// Its process id.
    pub id: u32,
    /// Its label.
    pub label: String,
    pidfd: OwnedFd,
}

/// The running processes whose label starts with `prefix`.
///
/// # Errors
/// When /proc cannot be read.
pub fn labelled(prefix: &str) -> Result<Vec<Process>> {
    let entries = fs::read_dir("/proc").context(|| "cannot list the processes in /proc")?;
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(ids.filter_map(|id| Process::with_id(id).filter(|process| process.label.starts_with(prefix))).collect())
}

impl Process {
    /// The process with this id if it carries a label. Those whose environment may not be read are somebody else's.
    fn with_id(id: u32) -> Option<Self> {
        // Opening a pidfd for each process would cost more than reading.
        label_of(id)?;
        let pidfd = pidfd_open(id).ok()?;
        // Read again: only now is it certain that the label is that of the process which the pidfd holds.
        let label = label_of(id)?;
        Some(Self { id, label, pidfd })
    }

    /// Sends it `signal`. That it is gone meanwhile is no error.
    ///
    /// # Errors
    /// When it may not be signalled.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        // SAFETY: the descriptor is open; a null pointer stands for the plain information of kill(2).
        let outcome = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                signal as libc::c_int,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        match Errno::result(outcome) {
            Ok(_) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => {
                Err(errno).context(|| format!("cannot send {signal} to process {} ({})", self.id, self.label))
            }
        }
    }

    /// Waits until it has ended; false if it has not within `patience`.
    ///
    /// # Errors
    /// When somebody asks to stop, or it cannot be waited for.
    pub fn wait(&self, patience: Duration, cancel: &Cancel) -> Result<bool> {
        const INTERVAL_MS: libc::c_int = 100;
        let deadline = Instant::now() + patience;
        loop {
            let mut poll = libc::pollfd { fd: self.pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one valid pollfd.
            let ready = unsafe { libc::poll(&raw mut poll, 1, INTERVAL_MS) };
            match Errno::result(ready) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(true),
                Err(errno) => return Err(errno).context(|| format!("cannot wait for process {}", self.id)),
            }
            cancel.check("waiting for a process to end")?;
            if Instant::now() >= deadline {
                return Ok(false);
            }
        }
    }

    /// Ends it at once, and waits until it is gone.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill(&self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        // Killed processes end, unless the kernel holds them in an I/O; whoever asks to stop wants them to end, too.
        if self.wait(Duration::from_secs(30), &Cancel::new())? {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::Io, format!("process {} ({}) does not end", self.id, self.label))
                .with_hint("it hangs in the kernel, see its stack in /proc"))
        }
    }
}

fn label_of(id: u32) -> Option<String> {
    let environment = fs::read(format!("/proc/{id}/environ")).ok()?;
    environment.split(|byte| *byte == 0).find_map(|variable| {
        let label = variable.strip_prefix(LABEL.as_bytes())?.strip_prefix(b"=")?;
        String::from_utf8(label.to_owned()).ok()
    })
}

fn pidfd_open(id: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes two numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, id, 0) };
    let fd = libc::c_int::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened it for us alone, close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    fn sleeper(label: &str) -> Child {
        Command::new("sleep").arg("1000").env(LABEL, label).spawn().unwrap()
    }

    /// The child has its label once it has executed its program.
    fn wait_for_label(prefix: &str, count: usize) -> Vec<Process> {
        for _ in 0..1000 {
            let found = labelled(prefix).unwrap();
            if found.len() == count {
                return found;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("{count} processes labelled {prefix}");
    }

    #[test]
    fn only_what_carries_the_label_is_found_and_ended() {
        let mine = crate::state::random_hex(8).unwrap();
        let (mut one, mut two) = (sleeper(&format!("{mine}/a/postgres")), sleeper(&format!("{mine}/b/postgres")));
        wait_for_label(&format!("{mine}/"), 2);
        let found = wait_for_label(&format!("{mine}/a/"), 1);
        assert_eq!((found[0].id, found[0].label.as_str()), (one.id(), format!("{mine}/a/postgres").as_str()));

        assert!(!found[0].wait(Duration::ZERO, &Cancel::new()).unwrap());
        found[0].signal(Signal::SIGTERM).unwrap();
        assert!(found[0].wait(Duration::from_secs(10), &Cancel::new()).unwrap());
        one.wait().unwrap();
        // Gone, and its number free for others: the signal reaches nobody.
        found[0].signal(Signal::SIGTERM).unwrap();
        assert!(labelled(&format!("{mine}/a/")).unwrap().is_empty());
        assert!(two.try_wait().unwrap().is_none());
        wait_for_label(&format!("{mine}/b/"), 1)[0].kill().unwrap();
        two.wait().unwrap();
    }
}
