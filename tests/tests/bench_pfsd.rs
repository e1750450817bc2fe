//! `bench pfsd`, as a user runs it: on our own pfsd, on the original where it is installed, and in a container.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bench::report::{Cell, Run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Where the original is where it is installed.
const ORIGINAL: &str = "/usr/local/polarstore/pfsd/bin/pfsdaemon";

/// One at a time: each measures times.
static ALONE: Mutex<()> = Mutex::new(());

/// A directory for images, in which nothing is left at the end.
struct Place {
    dir: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Place {
    fn new() -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        Self { dir: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap(), _alone: alone }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = tests::program("bench");
        command.arg("pfsd").args(arguments).current_dir(self.path()).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// A run that succeeds.
    fn measured(&self, arguments: &[&str]) -> Run {
        let out = self.run(&[arguments, &["--output", "json"]].concat());
        assert!(out.status.success(), "bench pfsd {arguments:?}: {}", stderr(&out));
        Run::parse(&out.stdout, "standard output").unwrap()
    }

    fn start(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Nothing is left of what `bench` made: no file, loop device, process or shared memory.
    fn assert_nothing_left(&self) {
        let left = || {
            let files = tests::names_in(self.path()).into_iter().filter(|name| !name.contains('.'));
            let devices =
                blockdev::loopdev::list().into_iter().filter(|device| device.backing_file.starts_with(self.path()));
            let devices = devices.map(|device| device.path.display().to_string());
            files.chain(devices).chain(processes_at(self.path())).collect::<Vec<String>>()
        };
        // A device goes when the last who looks at it has it closed.
        let deadline = Instant::now() + Duration::from_secs(30);
        while !left().is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(left(), Vec::<String>::new());
    }
}

/// Processes whose working directory is `directory`: a pfsd has that of the `bench` that started it.
fn processes_at(directory: &Path) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let there = |process: &PathBuf| fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(directory));
    processes.filter(there).map(|process| format!("process {}", process.display())).collect()
}

fn stderr(out: &Output) -> &str {
    std::str::from_utf8(&out.stderr).unwrap()
}

fn figure(cell: &Cell, name: &str) -> f64 {
    cell.figures.get(name).unwrap_or_else(|| panic!("{} has no {name}: {:?}", cell.name, cell.figures.keys())).value
}

fn group<'a>(run: &'a Run, starts: &str) -> Vec<&'a Cell> {
    run.cells.iter().filter(|cell| cell.group.starts_with(starts)).collect()
}

fn ids(run: &Run) -> Vec<&str> {
    run.findings.iter().map(|finding| finding.id.as_str()).collect()
}

const SHORT: [&str; 4] = ["--runtime=600ms", "--warmup=50ms", "--idle=200ms", "--size=64M"];

#[test]
fn without_a_pfsd_of_yours_it_measures_ours_and_says_how_many_workers_to_use() {
    let place = Place::new();
    let sweep = ["--workers=1,2", "--clients=1,4", "--rw=randread,write,append,meta", "--rounds=2"];
    let kept = ["--save=run.json", "--report=page.html"];
    let run = place.measured(&[&sweep[..], &SHORT, &kept].concat());
    assert!(run.completed);
    for (starts, cells) in [("randread 8 KiB", 4), ("write 4 MiB", 4), ("append 8 KiB", 4), ("meta", 4), ("Idle", 2)] {
        let found = group(&run, starts);
        assert_eq!(found.len(), cells, "{starts}");
        for cell in found {
            let measure = if starts == "Idle" { "idle_cpu" } else { "iops" };
            assert_eq!(cell.figures[measure].samples.len(), 2, "{}", cell.name);
            assert_eq!((cell.errors, cell.params["pfsd"].clone()), (0, "pfsd".into()), "{}", cell.name);
        }
    }
    for cell in group(&run, "randread") {
        assert!(figure(cell, "iops") > 0.0 && figure(cell, "of_disk") > 0.0 && figure(cell, "pfsd_cpu_per_op") > 0.0);
        assert_eq!(cell.latencies[0].name, "service");
    }
    for cell in group(&run, "meta") {
        let names: Vec<&str> = cell.latencies.iter().map(|latency| latency.name.as_str()).collect();
        assert_eq!(names, ["service", "create", "stat", "rename", "unlink"]);
        assert!(figure(cell, "creates") > 0.0 && !cell.figures.contains_key("bandwidth"));
    }
    assert!(group(&run, "Idle").iter().all(|cell| figure(cell, "memory") > 0.0));
    // The image, and as root the loop device on it: reads and writes, with 1 and 4 in flight.
    assert_eq!(group(&run, "The disk below").len(), if tests::is_root() { 8 } else { 4 });
    assert!(ids(&run).contains(&"workers"), "{:?}", run.findings);
    assert_eq!(ids(&run).contains(&"no-loop-device"), !tests::is_root());
    let page = fs::read_to_string(place.path().join("page.html")).unwrap();
    for expected in ["IOPS against workers", "p99 against workers", "4 in flight", "of a core, against workers"] {
        assert!(page.contains(expected), "{expected}");
    }
    assert_eq!(Run::load(&place.path().join("run.json")).unwrap(), run);
    place.assert_nothing_left();
}

#[test]
fn clients_may_be_processes_and_come_when_they_please() {
    let place = Place::new();
    let fixed = ["--workers=2", "--rounds=1", "--idle=0"];
    let processes = ["--processes", "--clients=3", "--rw=randrw,append,meta", "--rwmixread=70"];
    let run = place.measured(&[&fixed[..], &processes, &SHORT[..2], &SHORT[3..]].concat());
    for cell in run.cells.iter().filter(|cell| cell.params.contains_key("clients")) {
        assert!(figure(cell, "iops") > 0.0, "{}", cell.name);
    }
    assert!(ids(&run).iter().all(|id| !id.starts_with("workers")), "there is no choice: {:?}", run.findings);

    let rate = ["--rate=200", "--clients=4", "--rw=randread", "--runtime=1s", "--warmup=0", "--size=64M"];
    let run = place.measured(&[&fixed[..], &rate].concat());
    let cell = group(&run, "randread 8 KiB, 200 arrivals/s")[0];
    let names: Vec<&str> = cell.latencies.iter().map(|latency| latency.name.as_str()).collect();
    assert_eq!(names, ["service", "response"]);
    // A Poisson process of 200: no more than six of its standard deviations away.
    let count = cell.latencies[1].histogram.count();
    assert!((115..285).contains(&count), "{count}");
    assert!(!cell.figures.contains_key("of_disk"), "it does what it is told");
    place.assert_nothing_left();
}

#[test]
fn memory_is_a_medium_beside_the_disk() {
    let memory = Path::new("/dev/shm");
    if !memory.is_dir() {
        return tests::skip("memory_is_a_medium", "there is no /dev/shm");
    }
    let place = Place::new();
    let sweep = ["--workers=1", "--clients=2", "--rw=randread", "--rounds=1", "--scratch=.,/dev/shm"];
    let run = place.measured(&[&sweep[..], &SHORT].concat());
    let media: Vec<_> = group(&run, "randread").iter().map(|cell| cell.params["medium"].clone()).collect();
    assert_eq!((media.len(), media[1].clone()), (2, "tmpfs".into()));
    assert!(ids(&run).contains(&"in-memory") && group(&run, "randread").iter().all(|cell| cell.not_disk.is_none()));
    let ours = |name: &String| name.starts_with("onedisk-") && name.ends_with(&std::process::id().to_string());
    assert!(!tests::names_in(memory).iter().any(ours));
    place.assert_nothing_left();
}

#[test]
fn bad_input_is_refused_and_leaves_nothing() {
    let place = Place::new();
    fs::write(place.path().join("no.program"), "").unwrap();
    for (arguments, code, why) in [
        (&["--workers=0"][..], 2, "0 workers are not in 1 to 128"),
        (&["--workers=1,129"], 2, "129 workers are not in 1 to 128"),
        (&["--clients=0"], 2, "0 clients are not in 1 to 256"),
        (&["--clients=300"], 2, "300 clients are not in 1 to 256"),
        (&["--rw=trim"], 2, "\"trim\" is no access pattern"),
        (&["--bs=8M"], 2, "a block of 8 MiB is not in 512 B to 4 MiB"),
        (&["--bs=1000"], 2, "a block of 1000 B is not in 512 B to 4 MiB"),
        (&["--size=4k"], 2, "a file of 4 KiB has no room for a block of 8 KiB of each of 1 clients"),
        (&["--rwmixread=101"], 2, "101 % reads are more than all"),
        (&["--rate=0"], 2, "a rate of 0 operations per second is not above 0"),
        (&["--runtime=1ms"], 2, "a runtime of 1ms is below 10ms"),
        (&["--rounds=0"], 2, "0 is not in 1..=1000"),
        (&["--size=1000T"], 4, "not enough space in ."),
        (&["--scratch=nowhere"], 1, "cannot make the scratch directory nowhere/onedisk-scratch-"),
        (&["--pfsd=/no/such/pfsd"], 1, "there is no pfsd at /no/such/pfsd"),
        (&["--pfsd=no.program"], 2, "no.program is no program"),
        (&["--against=/no/such/pfsdaemon"], 1, "there is no pfsd at /no/such/pfsdaemon"),
        (&["--against=ours"], 2, "ours against itself has nothing to compare"),
        (&["--pfsd=container:"], 2, "container: names no container"),
        (&["--against=container:x"], 2, "a pfsd in a container serves the disk of that container"),
        (&["--disk=nvme1n1"], 2, "--disk and --docker are for a pfsd in a container"),
        (&["--pfsd=container:x", "--docker=ftp://x"], 2, "\"ftp://x\" is no place of Docker"),
        (&["--pfsd=container:x", "--docker=unix:///no/such.sock"], 1, "there is no Docker at unix:///no/such.sock"),
    ] {
        let out = place.run(arguments);
        assert_eq!(out.status.code(), Some(code), "{arguments:?}: {}", stderr(&out));
        assert!(stderr(&out).contains(why), "{arguments:?}: {}", stderr(&out));
        assert!(out.stdout.is_empty(), "{arguments:?}");
    }
    // A program that is no pfsd: what it said is told.
    let out = place.run(&[&["--pfsd=/bin/false"][..], &SHORT].concat());
    let (code, why) = if tests::is_root() {
        (1, "/bin/false has ended by itself (exit status: 1)")
    } else {
        (6, "serves block devices alone: that needs root")
    };
    assert!(out.status.code() == Some(code) && stderr(&out).contains(why), "{}", stderr(&out));
    place.assert_nothing_left();
}

/// Waits until a pfsd of the run in `place` is there.
fn wait_for_pfsd(place: &Place) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let serves = |process: &String| {
        let program = process.trim_start_matches("process ");
        fs::read_link(format!("{program}/exe")).is_ok_and(|exe| exe.ends_with("pfsd"))
    };
    while !processes_at(place.path()).iter().any(serves) {
        assert!(Instant::now() < deadline, "no pfsd appeared");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

const LONG: [&str; 6] = ["--workers=1", "--clients=4", "--rounds=100", "--runtime=600ms", "--idle=0", "--size=64M"];

#[test]
fn ctrl_c_keeps_what_was_measured_and_removes_the_rest() {
    let place = Place::new();
    let child = place.start(&[&LONG[..], &["--output=json"]].concat());
    wait_for_pfsd(&place);
    std::thread::sleep(Duration::from_secs(6));
    signal(&child, Signal::SIGINT);
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(130), "{}", stderr(&out));
    let run = Run::parse(&out.stdout, "standard output").unwrap();
    assert!(!run.completed && !run.cells.is_empty());
    place.assert_nothing_left();
}

#[test]
fn a_run_that_is_killed_leaves_nothing_that_runs() {
    let place = Place::new();
    let mut child = place.start(&LONG);
    wait_for_pfsd(&place);
    std::thread::sleep(Duration::from_millis(500));
    signal(&child, Signal::SIGKILL);
    child.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !processes_at(place.path()).is_empty() {
        assert!(Instant::now() < deadline, "{:?}", processes_at(place.path()));
        std::thread::sleep(Duration::from_millis(50));
    }
    // The image stays, and goes with the next run.
    assert_eq!(tests::names_in(place.path()).len(), 1);
    let sweep = ["--workers=1", "--clients=1", "--rw=randread", "--rounds=1"];
    let run = place.measured(&[&sweep[..], &SHORT].concat());
    assert!(ids(&run).contains(&"leftover"), "{:?}", run.findings);
    place.assert_nothing_left();
}

#[test]
fn the_original_is_measured_in_turns_and_every_cell_has_its_ratio() {
    if !Path::new(ORIGINAL).exists() || !tests::is_root() {
        // It cannot be had in CI.
        return tests::say_skipped(
            "the_original_is_measured_in_turns",
            "needs root and the original's pfsdaemon in /usr/local",
        );
    }
    let place = Place::new();
    let sweep = ["--workers=1,2", "--clients=1,2", "--rw=randread,meta", "--rounds=2", "--against", ORIGINAL];
    let run = place.measured(&[&sweep[..], &SHORT].concat());
    let ours = |cell: &&Cell| cell.params.get("pfsd") == Some(&"pfsd".into());
    for cell in run.cells.iter().filter(ours) {
        let ratios: &[&str] = if cell.group.starts_with("Idle") {
            &["idle_ratio", "memory_ratio"]
        } else {
            &["iops_ratio", "p50_ratio", "p99_ratio", "cpu_ratio"]
        };
        for ratio in ratios {
            assert!(figure(cell, ratio) > 0.0, "{}", cell.name);
        }
    }
    assert_eq!(run.cells.iter().filter(ours).count(), 10);
    let against = run.findings.iter().find(|finding| finding.id == "against").unwrap();
    assert!(against.text.starts_with("Against pfsdaemon under the same load"), "{}", against.text);
    place.assert_nothing_left();
}

/// A container with a volume on a disk of its own and our pfsd beside it; all of it goes in the end.
struct Container<'a> {
    docker: &'a tests::docker::Docker,
    name: String,
    device: String,
    image: PathBuf,
}

impl<'a> Container<'a> {
    fn new(docker: &'a tests::docker::Docker, place: &Place) -> Self {
        let image = place.path().join("disk.img");
        let done = |program: &str, arguments: &[&str]| {
            let out = tests::program(program).args(arguments).arg(&image).output().unwrap();
            assert!(out.status.success(), "{program} {arguments:?}: {}", stderr(&out));
            String::from_utf8(out.stdout).unwrap().trim().to_owned()
        };
        done("vdisk", &["create", "--size=10G", "--prealloc=sparse"]);
        done("pfs", &["mkfs", "--journal=32M"]);
        let device = done("vdisk", &["attach"]);
        let name = format!("onedisk-test-bench-pfsd-{}", std::process::id());
        let mapped = format!("{device}:/dev/nvme1n1");
        let fixed = ["run", "--detach", "--network=none", "--shm-size=512m", "--name", &name, "--device", &mapped];
        docker.output(&[&fixed[..], &[tests::docker::IMAGE, "sleep", "infinity"]].concat());
        let container = Self { docker, name, device, image };
        let pfsd = tests::program("pfsd").get_program().to_str().unwrap().to_owned();
        docker.output(&["cp", &pfsd, &format!("{}:/usr/local/bin/pfsd", container.name)]);
        container
    }

    fn exec(&self, words: &[&str]) -> String {
        self.docker.output(&[&["exec", &self.name], words].concat())
    }

    fn exec_in_background(&self, words: &[&str]) {
        self.docker.output(&[&["exec", "--detach", &self.name], words].concat());
    }

    /// The command lines of its pfsds.
    fn pfsds(&self) -> String {
        let script =
            "for p in /proc/[0-9]*; do case $(readlink $p/exe) in */pfsd) tr '\\0' ' ' <$p/cmdline; echo;; esac; done";
        self.exec(&["sh", "-c", script])
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let _ = self.docker.command(&["rm", "--force", &self.name]).output();
        let _ = tests::program("vdisk").args(["detach", &self.device]).output();
        let _ = fs::remove_file(&self.image);
    }
}

#[test]
fn in_a_container_the_pfsd_is_started_anew_and_in_the_end_as_it_was() {
    const TEST: &str = "in_a_container_the_pfsd_is_started_anew";
    tests::needs_root!();
    let docker = tests::needs_docker!();
    let place = Place::new();
    let container = Container::new(docker, &place);
    let which = format!("--pfsd=container:{}", container.name);
    let at = format!("--docker={}", docker.host);
    let sweep = ["--workers=1,2", "--clients=1,2", "--rw=randread,randwrite,meta", "--rounds=1"];
    let arguments = [&[&*which, &at][..], &sweep, &SHORT].concat();

    let out = place.run(&arguments);
    if stderr(&out).contains("is linked against libraries") {
        return tests::say_skipped(TEST, "what is built here does not run in the image of the tests");
    }
    assert_eq!(out.status.code(), Some(1), "{}", stderr(&out));
    assert!(stderr(&out).contains("no pfsd runs there, and no disk was named"), "{}", stderr(&out));

    container.exec(&["mkdir", "-p", "/var/run/pfsd", "/var/run/pfs", "/dev/shm/pfsd"]);
    container.exec_in_background(&["pfsd", "-f", "-p", "nvme1n1", "-w", "3"]);
    while !container.exec(&["ls", "/var/run/pfsd"]).contains("nvme1n1\n") {
        std::thread::sleep(Duration::from_millis(50));
    }
    let run = place.measured(&arguments);
    assert_eq!(group(&run, "randread 8 KiB").len(), 4);
    assert!(group(&run, "randread 8 KiB").iter().all(|cell| figure(cell, "of_disk") > 0.0), "the device is seen here");
    assert!(group(&run, "randwrite 8 KiB").iter().all(|cell| !cell.figures.contains_key("of_disk")), "and not written");
    assert!(ids(&run).contains(&"no-write-ceiling") && group(&run, "Idle").len() == 2, "{:?}", run.findings);
    // As it was, and nothing of ours is left there.
    assert!(container.pfsds().trim().ends_with("pfsd -f -p nvme1n1 -w 3"), "{}", container.pfsds());
    assert!(!container.exec(&["ls", "/"]).contains("onedisk"));
    let listed = tests::program("pfs").arg("ls").arg(format!("{}:/", container.device)).output().unwrap();
    assert!(listed.status.success() && !String::from_utf8_lossy(&listed.stdout).contains("onedisk"), "{listed:?}");

    // Who has the file of a client locked is a client.
    container.exec_in_background(&["flock", "/var/run/pfsd/nvme1n1/77.pid", "sleep", "1000"]);
    let deadline = Instant::now() + Duration::from_secs(10);
    while !container.exec(&["ls", "/var/run/pfsd/nvme1n1"]).contains("77.pid") {
        assert!(Instant::now() < deadline);
    }
    let out = place.run(&arguments);
    assert_eq!(out.status.code(), Some(3), "{}", stderr(&out));
    assert!(
        stderr(&out).contains("the pfsd of nvme1n1 is in use: it would have to be started anew under process 77"),
        "{}",
        stderr(&out)
    );
    container.exec(&["sh", "-c", "kill $(pidof sleep | tr ' ' '\\n' | sort -n | tail -1)"]);

    let open = fs::File::open(&container.device).unwrap();
    let out = place.run(&arguments);
    assert_eq!(out.status.code(), Some(3), "{}", stderr(&out));
    assert!(stderr(&out).contains("is in use: open in "), "{}", stderr(&out));
    drop(open);
    assert!(container.pfsds().trim().ends_with("pfsd -f -p nvme1n1 -w 3"), "{}", container.pfsds());

    let out = place.run(&["--pfsd=container:no-such", &at]);
    assert_eq!(out.status.code(), Some(1), "{}", stderr(&out));
    assert!(stderr(&out).contains("there is no container no-such"), "{}", stderr(&out));
    docker.output(&["stop", "--time", "1", &container.name]);
    let out = place.run(&[&*which, &at]);
    assert_eq!(out.status.code(), Some(3), "{}", stderr(&out));
    assert!(stderr(&out).contains("does not run"), "{}", stderr(&out));
    drop(container);
    place.assert_nothing_left();
}
