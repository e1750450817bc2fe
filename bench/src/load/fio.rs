//! The same load through fio, to be compared with our own in the same run.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use blockdev::{Cancel, Context, Error, ErrorKind, Result, engine};
use serde::Deserialize;

use super::{Cpu, Measured, Pattern, Tally, Work};
use crate::report::Histogram;

/// How often it looks whether somebody asked to stop.
const WATCH: Duration = Duration::from_millis(50);

/// Which fio is installed: `fio-3.33`.
///
/// # Errors
/// When there is none, with how to install it.
pub fn version() -> Result<String> {
    let output = Command::new("fio").arg("--version").output().map_err(|source| {
        let error = Error::io("cannot run fio, to compare with it", source);
        if error.kind() == ErrorKind::NotFound {
            error.with_hint("install it: `make deps`, or apt install fio, dnf install fio, pacman -S fio")
        } else {
            error
        }
    })?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs `work` on the file or device at `path` through fio: io_uring with registered buffers and files, and direct I/O if
/// `direct`, as our own engine does. What was measured before `cancel` was set is returned.
///
/// # Errors
/// When the work is an open loop, which fio cannot time from the intended start; when fio is missing or fails.
pub fn run(work: &Work, path: &Path, direct: bool, cancel: &Cancel) -> Result<Measured> {
    work.check()?;
    let mut fio = Command::new("fio");
    fio.args(arguments(work, path, direct)?).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = fio.spawn().context(|| "cannot run fio")?;
    let (status, output, complaint) = watch(&mut child, cancel).context(|| "cannot talk to fio")?;
    if !status.success() && !cancel.is_cancelled() {
        let complaint = complaint.lines().last().unwrap_or("it says nothing").to_owned();
        return Err(Error::new(ErrorKind::Io, format!("fio failed on {} ({status}): {complaint}", path.display())));
    }
    measured(&output, cancel.is_cancelled())
}

/// Waits for fio, and asks it to end early once cancelled. Returns what it printed and what it complained of.
fn watch(child: &mut Child, cancel: &Cancel) -> io::Result<(std::process::ExitStatus, String, String)> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        let output = scope.spawn(|| read(stdout));
        let complaint = scope.spawn(|| read(stderr));
        let mut asked = false;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if cancel.is_cancelled() && !asked {
                // fio ends its jobs and prints what it has. It may have ended meanwhile, and had the same signal from the terminal.
                let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT);
                asked = true;
            }
            thread::sleep(WATCH);
        };
        let text = |bytes: thread::Result<io::Result<Vec<u8>>>| {
            let bytes = bytes.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            Ok::<_, io::Error>(String::from_utf8_lossy(&bytes).into_owned())
        };
        Ok((status, text(output.join())?, text(complaint.join())?))
    })
}

fn read(pipe: Option<impl Read>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        pipe.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// fio's options for `work`, for what [`run`] does with ours.
fn arguments(work: &Work, path: &Path, direct: bool) -> Result<Vec<String>> {
    if work.rate.is_some() {
        return Err(Error::invalid("fio cannot measure response times from the intended start of an operation")
            .with_hint("leave --rate or --against away"));
    }
    if work.once {
        return Err(Error::invalid("the load that touches every block once is not one that fio is asked for"));
    }
    let name =
        path.to_str().ok_or_else(|| Error::invalid(format!("{} is no name for fio's options", path.display())))?;
    let region = work.region;
    let sequential_share = region.len.bytes() / work.block.bytes() / u64::from(work.jobs) * work.block.bytes();
    let mut arguments = vec![
        "--name=onedisk".to_owned(),
        // A colon separates files.
        format!("--filename={}", name.replace(':', "\\:")),
        format!("--rw={}", work.pattern),
        format!("--bs={}", work.block.bytes()),
        format!("--offset={}", region.start.bytes()),
        format!("--iodepth={}", work.depth),
        format!("--numjobs={}", work.jobs),
        format!("--randseed={}", work.seed),
        format!("--runtime={}ms", work.runtime.as_millis()),
        format!("--ramp_time={}ms", work.warmup.as_millis()),
        format!("--direct={}", u8::from(direct)),
        "--time_based".to_owned(),
        "--thread".to_owned(),
        "--norandommap".to_owned(),
        "--random_generator=tausworthe64".to_owned(),
        "--ioengine=io_uring".to_owned(),
        "--fixedbufs=1".to_owned(),
        "--registerfiles=1".to_owned(),
        // Ours are filled once, too.
        "--refill_buffers=0".to_owned(),
        "--scramble_buffers=0".to_owned(),
        "--allow_file_create=0".to_owned(),
        "--lat_percentiles=1".to_owned(),
        "--clat_percentiles=0".to_owned(),
        "--output-format=json+".to_owned(),
    ];
    if work.pattern.is_random() {
        arguments.push(format!("--size={}", region.len.bytes()));
    } else {
        arguments.push(format!("--size={sequential_share}"));
        arguments.push(format!("--offset_increment={sequential_share}"));
    }
    if work.pattern == Pattern::RandRw {
        arguments.push(format!("--rwmixread={}", work.read_percent));
    }
    if work.fdatasync > 0 {
        arguments.push(format!("--fdatasync={}", work.fdatasync));
    }
    Ok(arguments)
}

/// fio's JSON, as much of it as is looked at. The names are fio's.
#[derive(Debug, Deserialize)]
struct Output {
    jobs: Vec<Job>,
}

#[derive(Debug, Deserialize)]
struct Job {
    error: i32,
    read: Direction,
    write: Direction,
    sync: Sync,
    /// Milliseconds.
    job_runtime: u64,
    /// Per cent of `job_runtime`.
    usr_cpu: f64,
    /// Per cent of `job_runtime`.
    sys_cpu: f64,
}

#[derive(Debug, Deserialize)]
struct Direction {
    /// Milliseconds.
    runtime: u64,
    lat_ns: Latency,
}

#[derive(Debug, Deserialize)]
struct Sync {
    lat_ns: Latency,
}

#[derive(Debug, Deserialize)]
struct Latency {
    /// Nanoseconds and how often they were seen.
    #[serde(default)]
    bins: BTreeMap<String, u64>,
}

impl Latency {
    fn add_to(&self, histogram: &mut Histogram) {
        for (nanoseconds, count) in &self.bins {
            if let Ok(nanoseconds) = nanoseconds.parse() {
                histogram.record_n(nanoseconds, *count);
            }
        }
    }
}

/// What fio printed, as what we would have measured.
fn measured(json: &str, interrupted: bool) -> Result<Measured> {
    let unreadable = |why: &str| Error::new(ErrorKind::Io, format!("fio's results cannot be read: {why}"));
    // It prints notes before its JSON.
    let start = json.find('{').ok_or_else(|| unreadable("it printed none"))?;
    let output: Output = serde_json::Deserializer::from_str(&json[start..])
        .into_iter()
        .next()
        .ok_or_else(|| unreadable("it printed none"))?
        .map_err(|source| unreadable("not the JSON that is known").with_source(source))?;
    let mut measured = Measured {
        window: Duration::ZERO,
        interrupted,
        reads: Tally::new(),
        writes: Tally::new(),
        syncs: Tally::new(),
        intervals: Vec::new(),
        cpu: Cpu::default(),
        waiting: 0,
        engine: engine::Kind::Uring,
        notices: Vec::new(),
    };
    for job in &output.jobs {
        if job.error != 0 {
            return Err(Error::io("fio's I/O failed", io::Error::from_raw_os_error(job.error)));
        }
        measured.window = measured.window.max(Duration::from_millis(job.read.runtime.max(job.write.runtime)));
        job.read.lat_ns.add_to(&mut measured.reads.service);
        job.write.lat_ns.add_to(&mut measured.writes.service);
        job.sync.lat_ns.add_to(&mut measured.syncs.service);
        let share = |percent: f64| Duration::from_millis(job.job_runtime).mul_f64(percent.max(0.0) / 100.0);
        measured.cpu.user += share(job.usr_cpu);
        measured.cpu.system += share(job.sys_cpu);
    }
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockdev::{ByteOffset, ByteRange, ByteSize};

    fn work() -> Work {
        let region = ByteRange::new(ByteOffset::new(1 << 20), ByteSize::mib(64)).unwrap();
        Work { seed: 7, ..Work::new(Pattern::RandRead, ByteSize::kib(8), 16, region) }
    }

    fn arguments_of(work: &Work) -> Vec<String> {
        arguments(work, Path::new("/dev/disk:1"), true).unwrap()
    }

    #[test]
    fn the_same_load_in_its_words() {
        let random = arguments_of(&work());
        for expected in [
            "--filename=/dev/disk\\:1",
            "--rw=randread",
            "--bs=8192",
            "--offset=1048576",
            "--size=67108864",
            "--iodepth=16",
            "--numjobs=1",
            "--runtime=10000ms",
            "--ramp_time=1000ms",
            "--direct=1",
            "--fixedbufs=1",
            "--registerfiles=1",
        ] {
            assert!(random.iter().any(|argument| argument == expected), "{expected} in {random:?}");
        }
        assert!(!random.iter().any(|argument| argument.starts_with("--offset_increment")));

        let sequential = arguments_of(&Work { pattern: Pattern::Write, jobs: 4, fdatasync: 8, ..work() });
        for expected in ["--rw=write", "--size=16777216", "--offset_increment=16777216", "--fdatasync=8"] {
            assert!(sequential.iter().any(|argument| argument == expected), "{expected} in {sequential:?}");
        }
        let mixed = arguments_of(&Work { pattern: Pattern::RandRw, read_percent: 70, ..work() });
        assert!(mixed.iter().any(|argument| argument == "--rwmixread=70"));
    }

    #[test]
    fn an_open_loop_is_beyond_it_and_touching_once_is_not_translated() {
        let error = arguments(&Work { rate: Some(100.0), ..work() }, Path::new("/x"), true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert_eq!(error.hint(), Some("leave --rate or --against away"));
        let error = arguments(&Work { once: true, ..work() }, Path::new("/x"), true).unwrap_err();
        assert!(error.to_string().contains("touches every block once"), "{error}");
    }

    #[test]
    fn its_results_become_ours() {
        let json = r#"fio: a note
            {"fio version": "fio-3.33", "jobs": [
              {"error": 0, "job_runtime": 2000, "usr_cpu": 5.0, "sys_cpu": 20.0, "extra": 1,
               "read": {"runtime": 2000, "iops": 1.5, "lat_ns": {"min": 1, "bins": {"100000": 2, "200000": 1}}},
               "write": {"runtime": 0, "lat_ns": {"min": 0}}, "sync": {"lat_ns": {"bins": {"5000": 4}}}},
              {"error": 0, "job_runtime": 2000, "usr_cpu": 0.0, "sys_cpu": 10.0,
               "read": {"runtime": 1990, "lat_ns": {"bins": {"100000": 1}}},
               "write": {"runtime": 0, "lat_ns": {}}, "sync": {"lat_ns": {}}}]}
            trailing notes"#;
        let measured = measured(json, false).unwrap();
        assert_eq!(measured.window, Duration::from_secs(2));
        assert_eq!((measured.reads.ios(), measured.writes.ios(), measured.syncs.ios()), (4, 0, 4));
        assert!((measured.iops() - 2.0).abs() < 1e-9);
        assert_eq!((measured.cpu.user, measured.cpu.system), (Duration::from_millis(100), Duration::from_millis(600)));
        assert!(measured.reads.service.percentile(50.0).abs_diff(100_000) < 200);
    }

    #[test]
    fn what_is_no_result_is_said() {
        let failed = r#"{"jobs": [{"error": 5, "job_runtime": 0, "usr_cpu": 0, "sys_cpu": 0,
            "read": {"runtime": 0, "lat_ns": {}}, "write": {"runtime": 0, "lat_ns": {}}, "sync": {"lat_ns": {}}}]}"#;
        for (json, why) in [
            ("fio: no such file", "fio's results cannot be read: it printed none"),
            ("{\"jobs\": 3}", "fio's results cannot be read: not the JSON that is known"),
            ("{\"jobs\": [", "fio's results cannot be read: not the JSON that is known"),
            (failed, "fio's I/O failed"),
        ] {
            assert_eq!(measured(json, false).unwrap_err().to_string(), why);
        }
    }
}
