//! What a process takes, as the kernel counts it.

use std::fs;
use std::time::Duration;

use blockdev::{ByteSize, Context, Error, ErrorKind, Result};
use nix::time::ClockId;
use nix::unistd::Pid;

/// Processor time that a process has taken so far, user and system, of all threads that it has or had, to the nanosecond.
///
/// # Errors
/// When there is no such process.
pub(super) fn cpu_time(pid: Pid) -> Result<Duration> {
    let time = ClockId::pid_cpu_clock_id(pid).and_then(ClockId::now);
    time.map(Duration::from).context(|| format!("cannot ask for the processor time of process {pid}"))
}

/// Memory that a process has beyond what it shares on purpose: what is resident, but for shared memory.
///
/// `smaps_rollup` would not tell: a page of shared memory that only one process has touched counts there as its own.
///
/// # Errors
/// When there is no such process.
pub(super) fn memory(pid: Pid) -> Result<ByteSize> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).context(|| format!("cannot read {path}"))?;
    beyond_shared(&status)
        .ok_or_else(|| Error::new(ErrorKind::Unsupported, format!("{path} does not say how much memory")))
}

fn beyond_shared(status: &str) -> Option<ByteSize> {
    let kib = |field: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    Some(ByteSize::kib(kib("VmRSS")?.saturating_sub(kib("RssShmem")?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn this_process_takes_time_and_memory() {
        let own = Pid::this();
        let (before, started) = (cpu_time(own).unwrap(), Instant::now());
        while started.elapsed() < Duration::from_millis(20) {}
        assert!(cpu_time(own).unwrap() > before);
        assert!(memory(own).unwrap() > ByteSize::kib(100));
    }

    #[test]
    fn shared_memory_is_not_counted() {
        let status =
            "Name:\tpfsd\nVmRSS:\t   20480 kB\nRssAnon:\t    3072 kB\nRssFile:\t    1024 kB\nRssShmem:\t   16384 kB\n";
        assert_eq!(beyond_shared(status), Some(ByteSize::mib(4)));
        assert_eq!(beyond_shared("Name:\tzombie\n"), None);
    }
}
