//! This machine and its processes: whether whoever left a record is still there.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use blockdev::{Context, Error, ErrorKind, Result};
use nix::time::{ClockId, clock_gettime};

use crate::format::ProcessId;

/// The inode of the pid namespace of the machine itself, in which every process has an id (Linux, `PROC_PID_INIT_INO`).
const FIRST_NAMESPACE: u64 = 0xEFFF_FFFC;

/// What tells this boot of this machine from all others.
pub(super) fn boot() -> Result<[u8; 16]> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text = fs::read_to_string(PATH).context(|| format!("cannot read {PATH}"))?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16)
        .map(u128::to_be_bytes)
        .map_err(|source| Error::new(ErrorKind::Io, format!("{PATH} holds no id")).with_source(source))
}

/// How long ago this machine was booted, time asleep included.
pub(super) fn since_boot() -> Result<Duration> {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).context(|| "cannot read the clock")
}

/// This process.
pub(super) fn this() -> Result<ProcessId> {
    let pid = std::process::id();
    let proc = Path::new("/proc/self");
    let found = namespace(proc).zip(running_since(proc));
    let (namespace, started) = found.ok_or_else(|| Error::new(ErrorKind::Io, "cannot find this process in /proc"))?;
    Ok(ProcessId { pid, namespace, started })
}

/// Whether a process of this very boot is known to have ended. One in a container that cannot be seen from here is not.
pub(super) fn has_ended(process: ProcessId) -> bool {
    let Some(here) = namespace(Path::new("/proc/self")) else { return false };
    let same = |proc: &Path| running_since(proc) == Some(process.started);
    if process.namespace == here {
        return !same(&Path::new("/proc").join(process.pid.to_string()));
    }
    if here != FIRST_NAMESPACE || !nix::unistd::geteuid().is_root() {
        return false;
    }
    let Ok(all) = fs::read_dir("/proc") else { return false };
    !all.flatten().map(|entry| entry.path()).any(|proc| {
        same(&proc) && namespace(&proc) == Some(process.namespace) && innermost_id(&proc) == Some(process.pid)
    })
}

/// When the process of a directory in /proc started, in clock ticks since boot, if it runs (proc_pid_stat(5)).
fn running_since(proc: &Path) -> Option<u64> {
    let stat = fs::read_to_string(proc.join("stat")).ok()?;
    // The name, in parentheses, may contain anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    // The state is field 3, the start field 22.
    let started = fields.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X" | "x")).then_some(started)
}

fn namespace(proc: &Path) -> Option<u64> {
    fs::metadata(proc.join("ns/pid")).ok().map(|metadata| metadata.ino())
}

/// The id of a process in its own namespace.
fn innermost_id(proc: &Path) -> Option<u32> {
    let status = fs::read_to_string(proc.join("status")).ok()?;
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    ids.split_whitespace().last()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn this_process_runs() {
        let this = this().unwrap();
        assert!(!has_ended(this));
        assert!(has_ended(ProcessId { started: this.started + 1, ..this }), "another process had that id before");
        assert_eq!(boot().unwrap(), boot().unwrap());
    }

    #[test]
    fn a_process_has_ended_before_its_parent_asks() {
        let mut child = Command::new("true").spawn().unwrap();
        let proc = Path::new("/proc").join(child.id().to_string());
        let zombie = || fs::read_to_string(proc.join("stat")).unwrap().contains(") Z ");
        while !zombie() {
            std::thread::yield_now();
        }
        assert!(has_ended(ProcessId { pid: child.id(), ..this().unwrap() }));
        child.wait().unwrap();
    }
}
