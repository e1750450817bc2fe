//! `bench lag` on a real cluster of this machine, as a user runs it.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]
#![allow(clippy::print_stdout, reason = "with --nocapture, what a calibration found is read")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bench::report::{Cell, Run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// One cluster at a time: each measures times.
static ALONE: Mutex<()> = Mutex::new(());

/// A primary and a replica, which are gone at the end.
struct Cluster {
    root: PathBuf,
    dir: Option<tempfile::TempDir>,
    _alone: MutexGuard<'static, ()>,
}

impl Cluster {
    fn up() -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        // The path of a socket has 107 bytes: short names. Root's database runs as another user, who must be able to get here.
        let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let open = target.ancestors().all(|dir| fs::metadata(dir).is_ok_and(|metadata| metadata.mode() & 0o001 != 0));
        let parent = if open && target.as_os_str().len() < 60 { target } else { Path::new("/var/tmp") };
        let dir = tempfile::Builder::new().prefix("l").rand_bytes(4).tempdir_in(parent).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let cluster = Self { root: dir.path().to_owned(), dir: Some(dir), _alone: alone };
        cluster.provision(&["up"]);
        cluster
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = tests::program(program);
        // What is set for the person who runs the tests is not meant for them.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") || name.to_string_lossy().starts_with("PROVISION_") {
                command.env_remove(name);
            }
        }
        command.env("PROVISION_STATE_DIR", &self.root).args(args).current_dir(&self.root).stdin(Stdio::null());
        command
    }

    fn provision(&self, args: &[&str]) -> String {
        let (code, out, err) = said(&mut self.command("provision", args));
        assert_eq!(code, Some(0), "provision {args:?}\n{out}\n{err}");
        out
    }

    fn lag(&self, args: &[&str]) -> (Option<i32>, String, String) {
        said(&mut self.bench(args))
    }

    fn bench(&self, args: &[&str]) -> Command {
        let mut command = self.command("bench", &["lag"]);
        command.args(args);
        command
    }

    /// A run that succeeds.
    fn measured(&self, args: &[&str]) -> Run {
        let (code, out, err) = self.lag(&[args, &["--output", "json"]].concat());
        assert_eq!(code, Some(0), "bench lag {args:?}\n{err}");
        serde_json::from_str(&out).unwrap()
    }

    fn sql(&self, node: &str, statement: &str) -> String {
        self.provision(&["psql", node, "--", "-AtXqc", statement]).trim().to_owned()
    }

    /// The connection strings that `up` prints, the writer's first.
    fn connection_strings(&self) -> Vec<String> {
        let out = self.provision(&["up"]);
        let strings = out.lines().filter_map(|line| line.split_once("  host=").map(|(_, rest)| format!("host={rest}")));
        strings.collect()
    }

    /// A run in its midst: it has written something.
    fn in_its_midst(&self, args: &[&str]) -> Child {
        let mut command = self.bench(&[args, &["--output", "json"]].concat());
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let begun = "SELECT to_regclass('onedisk_lag.slots') IS NOT NULL";
        while self.sql("primary", begun) != "t" {
            assert!(Instant::now() < deadline);
        }
        while self.sql("primary", "SELECT max(number) > 0 FROM onedisk_lag.slots") != "t" {
            assert!(Instant::now() < deadline);
        }
        child
    }

    fn assert_nothing_left(&self) {
        let schemas = self.sql("primary", "SELECT count(*) FROM pg_namespace WHERE nspname = 'onedisk_lag'");
        assert_eq!(schemas, "0");
    }

    fn process_id(&self, node: &str) -> Pid {
        let nodes: Value = serde_json::from_str(&self.provision(&["status", "--output", "json"])).unwrap();
        let node = nodes.as_array().unwrap().iter().find(|found| found["node"] == node).unwrap();
        Pid::from_raw(i32::try_from(node["process_id"].as_i64().unwrap()).unwrap())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = said(&mut self.command("provision", &["down", "--purge", "--yes"]));
        let _ = self.dir.take().map(tempfile::TempDir::close);
    }
}

fn said(command: &mut Command) -> (Option<i32>, String, String) {
    texts(command.output().unwrap())
}

fn texts(Output { status, stdout, stderr }: Output) -> (Option<i32>, String, String) {
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn ended(child: Child) -> (Option<i32>, Run, String) {
    let (code, out, err) = texts(child.wait_with_output().unwrap());
    (code, serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}\n{err}")), err)
}

fn figure(cell: &Cell, name: &str) -> f64 {
    cell.figures.get(name).unwrap_or_else(|| panic!("{} has no {name}", cell.name)).value
}

fn count(cell: &Cell, latency: &str) -> u64 {
    cell.latencies.iter().find(|found| found.name == latency).unwrap().histogram.count()
}

fn group<'a>(run: &'a Run, starts: &str) -> Vec<&'a Cell> {
    run.cells.iter().filter(|cell| cell.group.starts_with(starts)).collect()
}

#[test]
fn after_up_it_needs_no_argument_and_every_bad_one_is_refused() {
    tests::needs_postgresql!();
    let cluster = Cluster::up();
    let run = cluster.measured(&["--runtime=2s", "--warmup=0", "--singles=2", "--save=run.json", "--report=run.html"]);
    assert!(run.completed);
    let busy = group(&run, "Busy");
    assert_eq!(busy.len(), 1);
    // Exactly what was asked for, each timed twice.
    assert_eq!((count(busy[0], "lag"), count(busy[0], "intended")), (200, 200));
    assert_eq!((figure(busy[0], "rate_kept"), figure(busy[0], "lost"), figure(busy[0], "timed_out")), (1.0, 0.0, 0.0));
    // What is sent a moment late at the end is not in it.
    assert!((95.0..101.0).contains(&figure(busy[0], "sent_rate")), "{:?}", busy[0].figures);
    assert!(figure(busy[0], "intended_p50") >= figure(busy[0], "p50"));
    assert!(figure(busy[0], "poll_p50") > 0.0 && figure(busy[0], "resolution") >= figure(busy[0], "poll_p50"));
    let quiet = group(&run, "Quiet");
    assert_eq!(quiet.iter().map(|cell| count(cell, "lag")).collect::<Vec<_>>(), [2, 2, 2, 2]);
    let view = group(&run, "Replication");
    assert!(view.iter().any(|cell| cell.figures.contains_key("replay_lag")), "{view:?}");
    let page = fs::read_to_string(cluster.root.join("run.html")).unwrap();
    assert!(page.contains("Lag percentiles") && page.contains("Median lag over time"));
    assert_eq!(Run::load(&cluster.root.join("run.json")).unwrap(), run);
    cluster.assert_nothing_left();

    let ids = |run: &Run, id: &str| run.findings.iter().filter(|finding| finding.id == id).count();
    let run = cluster.measured(&["--observer-effect", "--runtime=300ms", "--warmup=100ms"]);
    assert_eq!((group(&run, "Observer").len(), ids(&run, "observer-effect")), (2, 1));
    let loads = ["--load=pgbench-like,insert,update", "--load-rate=50", "--rate=50", "--runtime=300ms"];
    let run = cluster.measured(&[&loads[..], &["--singles=2", "--silence=10ms", "--heartbeat=10ms"]].concat());
    assert_eq!((group(&run, "Busy").len(), group(&run, "Quiet").len(), ids(&run, "heartbeat")), (3, 8, 4));
    // More than one connection can send. All that was due is counted, sent or not.
    let run = cluster.measured(&["--busy", "--rate=20000", "--connections=1", "--runtime=500ms", "--warmup=0"]);
    let busy = group(&run, "Busy")[0];
    assert!(figure(busy, "rate_kept") < 0.99 && ids(&run, "rate-not-kept") == 1, "{:?}", busy.figures);
    assert_eq!(count(busy, "intended"), 10_000);

    // The same by its connection strings, password file and all.
    let strings = cluster.connection_strings();
    let [writer, reader] = [0, 1].map(|index| strings[index].as_str());
    let run = cluster.measured(&[writer, reader, "--busy", "--runtime=500ms", "--warmup=0", "--rate=50,100"]);
    assert_eq!(group(&run, "Busy").iter().map(|cell| count(cell, "lag")).collect::<Vec<_>>(), [25, 50]);
    assert_eq!(ids(&run, "knee"), 1);

    let refused = |args: &[&str], code: i32, part: &str| {
        let (exit, out, err) = cluster.lag(args);
        assert!(err.contains(part), "bench lag {args:?} says\n{err}");
        assert_eq!((exit, out.as_str()), (Some(code), ""), "bench lag {args:?}\n{err}");
    };
    refused(&[writer], 2, "one connection string is not enough");
    refused(&[reader, writer], 2, "is a replica: it cannot be written to");
    refused(&[writer, writer], 2, "is given twice");
    refused(&[writer, "host=127.0.0.1 port=1 user=postgres"], 1, "cannot connect to 127.0.0.1:1");
    let wrong = format!("{writer} password=wrong");
    refused(&[&wrong, reader], 6, "look at the user and the password");
    refused(&[writer, "host=127.0.0.1 prot=1"], 2, "connection string 2 cannot be used");
    refused(&["--load=tpcc"], 2, "\"tpcc\" is no kind of load");
    refused(&["--calibrate=10s"], 2, "10s is not in 1ms to 5s");
    refused(&["--rate=0"], 2, "a rate of 0 a second");
    refused(&["--cluster=nobody"], 1, "there is no cluster called nobody");
    cluster.provision(&["up", "--name", "other", "--replicas", "0"]);
    refused(&["--cluster=other"], 3, "has no replica that could lag");
    let other = cluster.provision(&["up", "--name", "other"]);
    let other =
        other.lines().find_map(|line| line.split_once("  host=").map(|(_, rest)| format!("host={rest}"))).unwrap();
    refused(&[&other, reader], 2, "are of different clusters");
    refused(&[writer, &other], 2, "are of different clusters");
    cluster.provision(&["down", "--name", "other", "--purge", "--yes"]);

    cluster.sql("primary", "CREATE SCHEMA onedisk_lag");
    refused(&[], 3, "has a schema onedisk_lag that bench did not make");
    cluster.sql("primary", "DROP SCHEMA onedisk_lag");
}

#[test]
fn a_delay_that_is_known_is_found_again_and_taken_back() {
    tests::needs_postgresql!();
    let cluster = Cluster::up();
    let delay = || cluster.sql("replica1", "SHOW recovery_min_apply_delay");
    let ms = 1e6;
    // A machine that is busy with something else delays more than it is asked to, and never less.
    let recovered = (0..10).any(|_| {
        let run = cluster.measured(&["--calibrate", "--rate=50", "--runtime=2s", "--warmup=500ms"]);
        assert_eq!(delay(), "0");
        let cell = group(&run, "Calibration")[0];
        let mean = cell.latencies.iter().find(|latency| latency.name == "lag").unwrap().histogram.mean();
        let (found, apart) = (figure(cell, "found") / ms, figure(cell, "resolution") / ms);
        let (lag, replay) = (mean / ms, figure(group(&run, "Replication")[0], "replay_lag") / ms);
        println!("50 ms found as {found:.2} ms, known to {apart:.2} ms; lag {lag:.2} ms, replay_lag {replay:.2} ms");
        assert!(found + apart >= 50.0);
        found <= 52.0 && (0.5..2.0).contains(&(lag / replay))
    });
    assert!(recovered);

    // Ctrl-C takes it back, too.
    let child = cluster.in_its_midst(&["--calibrate=100ms", "--runtime=60s"]);
    assert_eq!(delay(), "100ms");
    let (code, _, err) = cluster.lag(&["--calibrate"]);
    assert_eq!(code, Some(3), "{err}");
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    assert_eq!(ended(child).0, Some(130));
    assert_eq!(delay(), "0");
    cluster.assert_nothing_left();
}

#[test]
fn what_breaks_a_run_is_said_and_what_was_measured_is_kept() {
    tests::needs_postgresql!();
    let cluster = Cluster::up();
    let long = ["--runtime=60s", "--warmup=0"];

    // One at a time; and Ctrl-C leaves nothing.
    let child = cluster.in_its_midst(&long);
    let (code, _, err) = cluster.lag(&[]);
    assert_eq!(code, Some(3), "{err}");
    assert!(err.contains("another `bench lag` measures primary right now"), "{err}");
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    let (code, run, err) = ended(child);
    assert_eq!(code, Some(130), "{err}");
    assert!(!run.completed && count(group(&run, "Busy")[0], "lag") > 0);
    cluster.assert_nothing_left();

    // What a killed run leaves, the next one removes.
    let mut child = cluster.in_its_midst(&long);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(cluster.sql("primary", "SELECT count(*) FROM pg_namespace WHERE nspname = 'onedisk_lag'"), "1");
    assert!(cluster.measured(&["--busy", "--runtime=200ms", "--warmup=0"]).completed);
    cluster.assert_nothing_left();

    let broken = |child: Child, part: &str| {
        let (code, run, err) = ended(child);
        assert_eq!(code, Some(1), "{err}");
        let finding = run.findings.iter().find(|finding| finding.id == "run-broken").unwrap();
        assert!(finding.text.contains(part) && err.contains(&finding.text), "{}\n{err}", finding.text);
        assert!(!run.completed && count(group(&run, "Busy")[0], "lag") > 0);
        run
    };
    let child = cluster.in_its_midst(&long);
    kill(cluster.process_id("replica1"), Signal::SIGQUIT).unwrap();
    broken(child, "lost the reader replica1");
    cluster.assert_nothing_left();
    cluster.provision(&["repair"]);

    let child = cluster.in_its_midst(&long);
    kill(cluster.process_id("primary"), Signal::SIGQUIT).unwrap();
    let run = broken(child, "lost the writer primary");
    assert!(run.findings.iter().any(|finding| finding.id == "schema-left"), "{:?}", run.findings);
    cluster.provision(&["repair"]);

    let child = cluster.in_its_midst(&long);
    cluster.sql("replica1", "SELECT pg_promote()");
    broken(child, "replica1 is no replica any more: somebody promoted it");
    cluster.assert_nothing_left();
}
