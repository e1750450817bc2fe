//! `provision` on this machine, as a user runs it.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod place;

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use place::{Place, kills, steps_of};

#[test]
fn a_disk_for_each_node_comes_and_goes_with_the_cluster() {
    tests::needs_postgresql!();
    tests::needs_root!();
    let place = Place::new();
    let mounted = |node: &str| {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let point = place.node(node).join("disk");
        mounts
            .lines()
            .any(|line| line.starts_with("/dev/loop") && line.contains(&format!(" {} ext4 ", point.display())))
    };
    place.ok(&["up", "--storage", "image", "--disk-size", "256MiB"]);
    assert!(mounted("primary") && mounted("replica1"));
    assert_eq!(place.devices().len(), 2);
    let data = place.sql("primary", "SHOW data_directory");
    assert_eq!(data, place.node("primary").join("disk/data").to_str().unwrap());
    place.sql("primary", "CREATE TABLE t AS SELECT 42 AS n");

    // Down gives the disks back, and up brings them back with what is on them.
    place.ok(&["down"]);
    assert!(!mounted("primary") && !mounted("replica1"));
    place.assert_gives_back();
    place.ok(&["up"]);
    assert_eq!(place.sql("primary", "SELECT n FROM t"), "42");

    // As after a reboot: nothing runs, and nothing is mounted.
    for command in ["start", "repair"] {
        place.ok(&["stop"]);
        for node in ["primary", "replica1"] {
            let point = place.node(node).join("disk");
            assert!(Command::new("umount").arg(&point).status().unwrap().success());
        }
        place.assert_gives_back();
        place.ok(&[command]);
        assert!(mounted("primary") && mounted("replica1"));
        assert_eq!(place.sql("replica1", "SELECT pg_is_in_recovery()"), "t");
    }
    place.refused(&["up", "--disk-size", "512MiB"], 3, "exists with another disk_size");
    place.gone();

    // A disk that is full says so, and so do those that cannot be.
    let (code, _, err) = place.run(&["up", "--storage", "image", "--disk-size", "40MiB", "--replicas", "0"]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("No space left on device") && err.contains("likely cause: the disk is full"), "{err}");
    place.gone();
    place.refused(
        &["up", "--storage", "image", "--runtime", "docker"],
        2,
        "are for nodes that are processes of this machine",
    );
    place.refused(&["up", "--storage", "image", "--disk-size", "1000TiB"], 3, "new nodes take about");
}

#[test]
fn from_nothing_to_a_replica_and_back_to_nothing() {
    tests::needs_postgresql!();
    let place = Place::new();
    let (code, out, err) = place.run(&["up"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(
        out.starts_with("cluster default is up\n  writer  primary ") && out.contains("\n  reader  replica1 "),
        "{out}"
    );
    assert_eq!(steps_of(&err).last(), Some(&"prove that every replica reads what the primary writes: done"), "{err}");

    place.sql("primary", "CREATE TABLE t AS SELECT 42 AS n");
    let deadline = Instant::now() + Duration::from_secs(30);
    while place.sql("replica1", "SELECT to_regclass('t') IS NOT NULL") != "t" {
        assert!(Instant::now() < deadline);
    }
    assert_eq!(place.sql("replica1", "SELECT n FROM t"), "42");
    assert_eq!(place.sql("primary", "SELECT state FROM pg_stat_replication"), "streaming");
    assert_eq!(place.sql("primary", "SELECT slot_name, active FROM pg_replication_slots"), "replica1|t");
    assert_eq!(place.sql("primary", "SHOW fsync"), "on");

    // What is done is found done, and only proven anew.
    let (code, _, err) = place.run(&["up"]);
    assert_eq!(code, Some(0), "{err}");
    let (proof, others) = steps_of(&err).split_last().map(|(last, rest)| (*last, rest.to_vec())).unwrap();
    assert!(proof.ends_with(": done") && others.iter().all(|step| step.ends_with(": already done")), "{err}");

    // A password is needed, kept in a file for its owner alone, and on no command line.
    let passwords = fs::read_to_string(place.cluster().join("pgpass")).unwrap();
    assert_eq!(fs::metadata(place.cluster().join("pgpass")).unwrap().mode() & 0o777, 0o600);
    let secrets: Vec<&str> = passwords.lines().map(|line| line.rsplit_once(':').unwrap().1).collect();
    assert_eq!(secrets.len(), 2);
    for text in
        place.processes().iter().chain([&place.ok(&["logs", "primary"]), &place.ok(&["logs", "primary", "--setup"])])
    {
        assert!(secrets.iter().all(|secret| !text.contains(secret)), "{text}");
    }
    let without = ["exec", "primary", "--", "env", "-u", "PGPASSFILE", "psql", "-wXc", "SELECT 1"];
    let (code, _, err) = place.run(&without);
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("no password supplied"), "{err}");

    assert_eq!(place.ok(&["exec", "replica1", "--", "psql", "-AtXc", "SELECT pg_is_in_recovery()"]), "t\n");
    assert_eq!(place.run(&["exec", "primary", "--", "sh", "-c", "exit 7"]).0, Some(7));
    assert!(place.ok(&["logs", "primary"]).contains("ready to accept connections"));
    let findings = place.json(&["doctor", "--output", "json"]);
    assert_eq!(findings, serde_json::json!([]));

    place.ok(&["stop"]);
    assert_eq!(place.states(), ["stopped", "stopped"]);
    assert_eq!(place.run(&["status"]).0, Some(1));
    assert!(place.processes().is_empty(), "{:?}", place.processes());
    place.ok(&["start"]);
    assert_eq!(place.sql("replica1", "SELECT n FROM t"), "42");

    // Down keeps the data, and up brings them back.
    place.ok(&["down"]);
    assert!(place.processes().is_empty(), "{:?}", place.processes());
    let events: Vec<Value> =
        place.ok(&["up", "--output", "json"]).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ready = events.last().unwrap();
    assert_eq!((&ready["event"], &ready["nodes"][1]["role"]), (&"ready".into(), &"replica".into()));
    assert!(events.iter().filter(|event| event["event"] == "step_done").count() > 8);
    assert_eq!(place.sql("primary", "SELECT n FROM t"), "42");
    place.refused(&["down", "--purge"], 3, "nobody is there to ask whether the data may be removed");
    place.gone();
}

#[test]
fn replicas_come_and_go_with_their_slots() {
    tests::needs_postgresql!();
    let place = Place::new();
    place.ok(&["up", "--node", "w=primary", "--node", "r=replica", "--trust"]);
    place.ok(&["replica", "add"]);
    place.ok(&["replica", "add", "second"]);
    assert_eq!(place.states(), ["running"; 4]);
    assert_eq!(
        place.sql("w", "SELECT string_agg(slot_name, ',' ORDER BY slot_name) FROM pg_replication_slots"),
        "r,replica1,second"
    );
    place.refused(&["replica", "add", "r"], 2, "two nodes are called r");
    place.refused(&["replica", "remove", "w"], 3, "w is the primary");
    place.refused(&["replica", "remove", "x"], 2, "there is no node called \"x\"");
    place.ok(&["replica", "remove", "r"]);
    assert_eq!(place.sql("w", "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'r'"), "0");
    assert!(!place.node("r").exists());
    // What is not asked for any more stays, and is told.
    let (code, _, err) = place.run(&["up", "--replicas", "1"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(err.starts_with("second stays, though it is not asked for any more"), "{err}");
    place.ok(&["up", "--replicas", "3"]);
    assert_eq!(place.states(), ["running"; 4]);

    // Parameters reach every node, with a restart where one is needed.
    place.ok(&["up", "--parameter", "work_mem=7MB", "--parameter", "max_connections=77"]);
    for node in ["w", "replica1", "second"] {
        assert_eq!(place.sql(node, "SELECT current_setting('work_mem'), current_setting('max_connections')"), "7MB|77");
    }
    place.gone();
}

#[test]
fn bad_input_changes_nothing() {
    tests::needs_postgresql!();
    let place = Place::new();
    let file = place.root.join("cluster.toml");
    let with_file = |text: &str, code: i32, part: &str| {
        fs::write(&file, text).unwrap();
        place.refused(&["up"], code, part);
        fs::remove_file(&file).unwrap();
    };
    with_file("replcas = 2\n", 2, "unknown field `replcas`");
    with_file("name = \"My Cluster\"\n", 2, "\"My Cluster\" is no name for a cluster or a node");
    with_file(
        "[[node]]\nname = \"a\"\nrole = \"primary\"\n[[node]]\nname = \"a\"\nrole = \"replica\"\n",
        2,
        "two nodes are called a",
    );
    with_file("replicas = 1\nnode = [{ name = \"a\", role = \"primary\" }]\n", 2, "the nodes are given twice");
    with_file("[parameters]\nwork_mem = \"lots\"\n", 3, "invalid value for parameter \"work_mem\": \"lots\"");
    with_file("[parameters]\nwork_men = \"1MB\"\n", 3, "unrecognized configuration parameter \"work_men\"");
    with_file("[parameters]\nport = \"1\"\n", 3, "the parameter port is set by provision itself");
    with_file("bin_directory = \"nowhere\"\n", 3, "there is no postgres in");
    with_file("user = \"root\"\n", 2, "a database does not run as root");
    with_file("user = \"no-such-user\"\n", 2, "there is no user called");
    with_file("directory = \"nowhere\"\n", 3, "is no directory");
    place.refused(&["up", "--config", "none.toml"], 2, "cannot read the cluster file none.toml");
    place.refused(&["status"], 1, "there is no cluster called default");
    place.refused(&["down"], 1, "`provision up` makes one");

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    place.refused(
        &["up", "--port", &port.to_string()],
        3,
        &format!("port {port} of 127.0.0.1, which primary needs, is taken by process {}", std::process::id()),
    );
    let long = place.root.join("x".repeat(80));
    place.refused(&["up", "--state-dir", long.to_str().unwrap()], 3, "the kernel takes 107");

    // Somebody else's directory is not adopted.
    let srv = place.root.join("srv");
    fs::create_dir_all(srv.join("replica1")).unwrap();
    place.refused(&["up", "--directory", srv.to_str().unwrap()], 3, "exists, and this cluster did not make it");
    assert!(!place.cluster().exists());
}

#[test]
fn a_cluster_that_exists_is_not_made_into_another() {
    tests::needs_postgresql!();
    let place = Place::new();
    place.ok(&["up", "--replicas", "0"]);
    place.refused(&["up", "--trust"], 3, "cluster default exists with another trust, and --trust asks to change it");
    place.refused(&["up", "--port", "7"], 3, "exists with another port, and --port asks to change it");
    place.refused(&["up", "--parameter", "work_mem=lots"], 3, "invalid value for parameter");
    assert_eq!(place.sql("primary", "SHOW work_mem"), "4MB");
    let shown = place.json(&["config", "show", "--replicas", "3", "--output", "json"]);
    assert_eq!(
        (&shown["trust"]["origin"], &shown["replicas"]["origin"]),
        (&"made with it".into(), &"--replicas".into())
    );

    let passwords = place.cluster().join("pgpass");
    fs::set_permissions(&passwords, fs::Permissions::from_mode(0o644)).unwrap();
    place.refused(&["up"], 3, "has mode 0644: others can read or change it");
    let (code, out, _) = place.run(&["doctor", "--output", "json"]);
    let findings: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (code, &findings[0]["id"], &findings[0]["severity"]),
        (Some(5), &"password-file".into(), &"error".into())
    );
    fs::set_permissions(&passwords, fs::Permissions::from_mode(0o600)).unwrap();
    place.gone();
}

#[test]
fn two_commands_do_not_work_on_one_cluster() {
    tests::needs_postgresql!();
    let place = Place::new();
    let mut first = place.command(&["up"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !place.cluster().join("cluster.json").exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    for args in [&["up"][..], &["stop"], &["down", "--purge", "--yes"], &["replica", "add"]] {
        let (code, _, err) = place.run(args);
        assert_eq!(code, Some(3), "{err}");
        assert!(err.contains(&format!("process {} is at work on this cluster", first.id())), "{err}");
    }
    assert!(first.wait().unwrap().success());
    place.gone();
}

#[test]
fn a_replica_that_cannot_reach_its_primary_says_why() {
    tests::needs_postgresql!();
    let place = Place::new();
    let (code, _, err) = place.run(&["up", "--parameter", "max_wal_senders=0", "--parameter", "wal_level=minimal"]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("cannot make a replication slot for replica1"), "{err}");
    // Mended, it goes on from there.
    place.ok(&["up", "--parameter", "max_wal_senders=5", "--parameter", "wal_level=replica"]);
    // With its primary gone a replica answers, but does not follow.
    place.ok(&["stop", "primary"]);
    let deadline = Instant::now() + Duration::from_secs(30);
    while place.states() != ["stopped", "not_following"] {
        assert!(Instant::now() < deadline, "{:?}", place.states());
    }
    let (code, _, err) = place.run(&["replica", "remove", "replica1"]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("the primary keeps a slot for the replica; start it"), "{err}");
    place.ok(&["repair"]);
    assert_eq!(place.states(), ["running", "running"]);
    place.gone();
}

#[test]
fn lost_data_are_told_and_a_replica_is_copied_anew() {
    tests::needs_postgresql!();
    let place = Place::new();
    place.ok(&["up"]);
    place.sql("primary", "CREATE TABLE t AS SELECT 42 AS n");
    place.ok(&["stop"]);
    fs::remove_dir_all(place.node("replica1").join("data")).unwrap();
    let (code, _, err) = place.run(&["up"]);
    assert_eq!(code, Some(5), "{err}");
    assert!(err.contains("the data of replica1 were complete once, and are gone"), "{err}");
    assert!(err.contains("`provision repair` copies them from the primary anew"), "{err}");
    place.ok(&["repair"]);
    assert_eq!(place.sql("replica1", "SELECT n FROM t"), "42");

    // A replica that was promoted is not started as a second primary.
    place.ok(&["stop", "replica1"]);
    fs::remove_file(place.node("replica1").join("data/standby.signal")).unwrap();
    let (code, _, err) = place.run(&["up"]);
    assert_eq!(code, Some(3), "{err}");
    assert!(err.contains("replica1 is no replica any more"), "{err}");
    place.ok(&["replica", "remove", "replica1"]);

    place.ok(&["stop"]);
    fs::rename(place.node("primary").join("data"), place.root.join("saved")).unwrap();
    for command in ["up", "repair"] {
        let (code, _, err) = place.run(&[command]);
        assert_eq!(code, Some(5), "{err}");
        assert!(err.contains("the data of primary were complete once, and are gone"), "{err}");
    }
    fs::rename(place.root.join("saved"), place.node("primary").join("data")).unwrap();
    place.ok(&["up"]);
    assert_eq!(place.sql("primary", "SELECT n FROM t"), "42");
    place.gone();
}

/// A process that has nothing to do with any of this.
struct Stranger(Child);

impl Stranger {
    fn of(uid: u32) -> Self {
        Self(Command::new("sleep").arg("1000").uid(uid).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_process_id_that_was_used_again_is_nobody() {
    tests::needs_postgresql!();
    let place = Place::new();
    place.ok(&["up", "--replicas", "0"]);
    let pid_file = place.node("primary").join("data/postmaster.pid");
    let postmaster = fs::read_to_string(&pid_file).unwrap();
    let id: i32 = postmaster.lines().next().unwrap().parse().unwrap();
    let owner = fs::metadata(&pid_file).unwrap();
    // SAFETY: sends a signal to the database that this test has just made.
    assert_eq!(unsafe { libc::kill(id, libc::SIGKILL) }, 0);
    let deadline = Instant::now() + Duration::from_secs(30);
    while !place.processes().is_empty() {
        assert!(Instant::now() < deadline, "{:?}", place.processes());
        std::thread::sleep(Duration::from_millis(10));
    }
    // The number in the file now belongs to somebody else, of the same user: PostgreSQL itself would not start.
    let mut stranger = Stranger::of(owner.uid());
    fs::write(&pid_file, postmaster.replacen(&id.to_string(), &stranger.0.id().to_string(), 1)).unwrap();
    assert_eq!(place.states(), ["stopped"]);
    place.ok(&["stop"]);
    place.ok(&["up"]);
    assert_eq!(place.sql("primary", "SELECT 1"), "1");
    place.gone();
    assert!(stranger.0.try_wait().unwrap().is_none(), "the stranger was left alone");
}

#[test]
fn interrupted_it_goes_on_or_goes_away() {
    tests::needs_postgresql!();
    let place = Place::new();
    for after_ms in [20, 300, 900] {
        let child = place.command(&["up"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(after_ms));
        // SAFETY: sends a signal to a child that is not waited for yet.
        assert_eq!(unsafe { libc::kill(i32::try_from(child.id()).unwrap(), libc::SIGINT) }, 0);
        let output = child.wait_with_output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        // Before its handler stood, the signal itself ended it.
        if let Some(code) = output.status.code() {
            assert_eq!(code, 130, "{err}");
            assert!(err.contains("`provision up` goes on from here, `provision down` takes it away"), "{err}");
        }
    }
    if place.cluster().join("cluster.json").exists() {
        place.gone();
    }
    place.ok(&["up"]);
    place.gone();
}

/// Tries again and again until it is so.
fn soon(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_heartbeat_goes_on_until_it_is_stopped() {
    tests::needs_postgresql!();
    let place = Place::new();
    let kept = |ms: Option<u64>| {
        let (_, out, err) = place.run(&["status", "--output", "json"]);
        let nodes: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{err}"));
        assert_eq!(nodes[0]["heartbeat_ms"], serde_json::json!(ms), "{nodes}");
    };
    // The primary writes, and it is nobody else.
    let beats = || {
        let position = || place.sql("primary", "SELECT pg_current_wal_flush_lsn()");
        let before = position();
        soon("the heart beats", || {
            place.sql("primary", &format!("SELECT pg_current_wal_flush_lsn() > '{before}'")) == "t"
        });
    };
    let process = |program: &str| {
        let beating = place.processes().into_iter().filter(|process| process.contains("heartbeat.sql"));
        beating
            .filter_map(|text| text.split_once(' ').map(|(id, rest)| (id.to_owned(), rest.to_owned())))
            .find(|(_, command)| command.starts_with(program))
            .map(|(id, _)| id.parse::<i32>().unwrap())
    };
    place.ok(&["up", "--replicas", "0", "--heartbeat", "10ms"]);
    beats();
    kept(Some(10));
    let (code, _, err) = place.run(&["up"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains("keep a heartbeat of primary every 10ms: already done"), "{err}");

    // A psql that dies is replaced; when the shell dies that would do it, that is missed, and repaired.
    let kill = |id: i32| {
        // SAFETY: sends a signal to a process of the cluster that this test has made.
        assert_eq!(unsafe { libc::kill(id, libc::SIGKILL) }, 0);
    };
    let psql = process("psql").unwrap();
    kill(psql);
    soon("another psql beats", || process("psql").is_some_and(|id| id != psql));
    kill(process("sh ").unwrap());
    kill(process("psql").unwrap());
    soon("nothing beats", || process("psql").is_none());
    let (code, out, err) = place.run(&["status"]);
    assert_eq!(code, Some(1), "{err}");
    assert!(out.contains("stopped") && err.contains("primary has no heartbeat"), "{out}{err}");
    place.ok(&["repair"]);
    beats();

    // It goes and comes with its server, and changes its pace under it.
    place.ok(&["stop"]);
    assert!(place.processes().is_empty(), "{:?}", place.processes());
    place.ok(&["start"]);
    beats();
    place.ok(&["up", "--parameter", "max_connections=77"]);
    beats();
    place.ok(&["up", "--heartbeat", "50ms"]);
    kept(Some(50));
    beats();
    assert!(place.ok(&["logs", "primary", "--service", "heartbeat"]).contains("Killed"));
    place.refused(&["logs", "primary", "--service", "pfsd"], 2, "nothing called \"pfsd\" runs on the nodes");
    place.ok(&["up", "--heartbeat", "off"]);
    kept(None);
    assert_eq!((process("psql"), process("sh ")), (None, None));
    place.refused(&["up", "--heartbeat", "10m"], 2, "it is not in 1ms to 5s");
    place.ok(&["up", "--heartbeat", "1ms"]);
    place.gone();
}

#[test]
fn a_port_that_was_picked_and_is_taken_meanwhile_is_no_obstacle() {
    tests::needs_postgresql!();
    let place = Place::new();
    // Somebody takes the port between the moment when it is picked and that when the database wants it.
    let taken = |args: &[&str]| {
        let record = place.cluster().join("cluster.json");
        let up = place.command(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        soon("there is a record", || record.exists());
        let record: Value = serde_json::from_str(&fs::read_to_string(record).unwrap()).unwrap();
        let port = u16::try_from(record["topology"][0]["port"].as_u64().unwrap()).unwrap();
        let _somebody = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        let output = up.wait_with_output().unwrap();
        (port, output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (port, code, err) = taken(&["up"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains(&format!("port {port} of primary was taken by somebody else meanwhile: it gets ")), "{err}");
    assert_ne!(place.sql("primary", "SHOW port"), port.to_string());
    assert_eq!(place.states(), ["running", "running"]);
    place.gone();

    // Nor is it where `up` was killed before anything could have it.
    let record = place.cluster().join("cluster.json");
    let mut up = place.command(&["up"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    soon("there is a record", || record.exists());
    up.kill().unwrap();
    up.wait().unwrap();
    let noted: Value = serde_json::from_str(&fs::read_to_string(record).unwrap()).unwrap();
    let port = u16::try_from(noted["topology"][1]["port"].as_u64().unwrap()).unwrap();
    let somebody = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let (code, _, err) = place.run(&["up"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(err.starts_with(&format!("port {port} of replica1 was taken by somebody else meanwhile")), "{err}");
    assert_eq!(place.states(), ["running", "running"]);
    drop(somebody);
    place.gone();

    // One that was asked for is what is wanted.
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = socket.local_addr().unwrap().port().to_string();
    drop(socket);
    let (_, code, err) = taken(&["up", "--replicas", "0", "--port", &port]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("likely cause: another program has taken the port"), "{err}");
    place.ok(&["up"]);
    assert_eq!(place.sql("primary", "SHOW port"), port);
    place.gone();
}

/// The full series: `ONEDISK_KILLS=50`.
#[test]
fn killed_at_any_moment_it_converges_and_leaves_nothing() {
    tests::needs_postgresql!();
    let place = Place::new();
    kills::series(&place, &["up"], 1, || place.assert_nothing_left());
}

#[test]
fn killed_at_any_moment_it_gives_back_the_disks_of_its_nodes() {
    tests::needs_postgresql!();
    tests::needs_root!();
    let place = Place::new();
    let up = ["up", "--storage", "image", "--disk-size", "256MiB"];
    kills::series(&place, &up, 1, || place.assert_nothing_left());
}

#[test]
fn the_dry_run_is_the_recipe() {
    tests::needs_postgresql!();
    let place = Place::new();
    let script = place.ok(&["up", "--dry-run", "--replicas", "2"]);
    assert!(place.files().is_empty());
    let titles: Vec<&str> = script
        .lines()
        .filter(|line| line.starts_with("# ") && line.contains(". "))
        .filter_map(|line| line.split_once(". "))
        .map(|(_, title)| title)
        .collect();
    assert_eq!(
        titles,
        [
            "make a directory for primary",
            "make a directory for replica1",
            "make a directory for replica2",
            "make the passwords",
            "initialize the database of primary",
            "configure primary",
            "start primary",
            "let replicas log in to primary",
            "make a replication slot for replica1",
            "copy primary to replica1",
            "configure replica1",
            "start replica1",
            "make a replication slot for replica2",
            "copy primary to replica2",
            "configure replica2",
            "start replica2",
            "prove that every replica reads what the primary writes",
        ]
    );
    // The shell takes it as it is, and a cluster stands.
    let mut shell = Command::new("sh")
        .arg("-e")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    shell.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = shell.wait_with_output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    let postmasters: Vec<String> = ["primary", "replica1", "replica2"]
        .iter()
        .filter_map(|node| fs::read_to_string(place.node(node).join("data/postmaster.pid")).ok())
        .collect();
    for postmaster in &postmasters {
        let id = postmaster.lines().next().unwrap().parse().unwrap();
        // SAFETY: sends a signal to a database that this test has just made.
        unsafe { libc::kill(id, libc::SIGQUIT) };
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    while !place.processes().is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(output.status.success(), "{out}");
    assert_eq!((postmasters.len(), out.matches("\n proof\n").count()), (3, 2), "{out}");
}
