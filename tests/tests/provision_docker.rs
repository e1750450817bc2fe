//! `provision` in containers, as a user runs it.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod harbour;
mod place;

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use harbour::Harbour;
use place::{kills, steps_of};

#[test]
fn from_nothing_to_a_replica_and_back_to_nothing() {
    let harbour = Harbour::new(tests::needs_docker!());
    let (place, docker) = (&harbour.place, harbour.docker);
    assert_eq!(harbour.objects(), [""; 0]);
    let volumes_before = docker.output(&["volume", "ls", "--quiet"]);
    let (code, out, err) = place.run(&["up"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("\n  writer  primary ") && out.contains("\n  reader  replica1 "), "{out}");
    assert_eq!(steps_of(&err).last(), Some(&"prove that every replica reads what the primary writes: done"), "{err}");
    place.sql("primary", "CREATE TABLE t AS SELECT 42 AS n");
    let deadline = Instant::now() + Duration::from_secs(30);
    while place.sql("replica1", "SELECT to_regclass('t') IS NOT NULL") != "t" {
        assert!(Instant::now() < deadline);
    }
    assert_eq!(place.sql("replica1", "SELECT n FROM t"), "42");
    assert_eq!(place.sql("primary", "SELECT slot_name, active FROM pg_replication_slots"), "replica1|t");

    // What is done is found done, and only proven anew.
    let (code, _, err) = place.run(&["up"]);
    assert_eq!(code, Some(0), "{err}");
    let (proof, others) = steps_of(&err).split_last().map(|(last, rest)| (*last, rest.to_vec())).unwrap();
    assert!(proof.ends_with(": done") && others.iter().all(|step| step.ends_with(": already done")), "{err}");

    // No privilege, no capability, nothing of this machine but a port on 127.0.0.1 each; the database is not root.
    for node in ["primary", "replica1"] {
        let seen = harbour.inspect(node);
        let host = &seen["HostConfig"];
        assert_eq!((&host["Privileged"], &host["CapAdd"]), (&Value::Bool(false), &Value::Null));
        assert_eq!(host["SecurityOpt"], serde_json::json!(["no-new-privileges"]));
        assert_eq!(host["ShmSize"], serde_json::json!(1_u64 << 30));
        let mounts = seen["Mounts"].as_array().unwrap();
        assert_eq!((mounts.len(), &mounts[0]["Type"]), (1, &"volume".into()));
        let ports = host["PortBindings"].as_object().unwrap();
        assert!(ports.len() == 1 && ports.values().all(|port| port[0]["HostIp"] == "127.0.0.1"), "{ports:?}");
        assert_eq!(place.ok(&["exec", node, "--", "id", "-un"]), "postgres\n");
        assert_eq!(place.ok(&["exec", node, "--", "sh", "-c", "ps -o user= -C postgres | sort -u || true"]).trim(), "");
    }

    // A password is needed, and on no command line, in no environment and in no log.
    let passwords = fs::read_to_string(place.cluster().join("pgpass")).unwrap();
    let secrets: Vec<&str> = passwords.lines().map(|line| line.rsplit_once(':').unwrap().1).collect();
    assert_eq!(secrets.len(), 2);
    let arguments = docker.output(&[
        "exec",
        "--user",
        "postgres",
        &harbour.container("primary"),
        "sh",
        "-c",
        "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null || true",
    ]);
    let logs = [place.ok(&["logs", "primary"]), place.ok(&["logs", "primary", "--setup"])];
    for text in logs.iter().chain([&arguments, &harbour.inspect("primary").to_string()]) {
        assert!(secrets.iter().all(|secret| !text.contains(secret)), "{text}");
    }
    assert!(logs[0].contains("ready to accept connections"), "{}", logs[0]);
    let without = ["exec", "primary", "--", "env", "-u", "PGPASSFILE", "psql", "-wXc", "SELECT 1"];
    let (code, _, err) = place.run(&without);
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("no password supplied"), "{err}");

    // A command has its input, its output and its exit code.
    assert_eq!(
        place.run(&["exec", "primary", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]),
        (Some(7), "out\n".into(), "err\n".into())
    );
    let mut cat = place
        .command(&["exec", "replica1", "--", "wc", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    cat.stdin.take().unwrap().write_all(&[b'x'; 100_000]).unwrap();
    assert_eq!(String::from_utf8(cat.wait_with_output().unwrap().stdout).unwrap(), "100000\n");
    assert_eq!(place.json(&["doctor", "--output", "json"]), serde_json::json!([]));
    place.refused(&["up", "--parameter", "work_mem=lots"], 3, "invalid value for parameter \"work_mem\": \"lots\"");

    place.ok(&["stop"]);
    assert_eq!(place.states(), ["stopped", "stopped"]);
    place.ok(&["start"]);
    assert_eq!(place.sql("replica1", "SELECT n FROM t"), "42");

    // A restarted container is empty of processes, and repaired.
    docker.output(&["restart", "--time", "1", &harbour.container("primary"), &harbour.container("replica1")]);
    assert_eq!(place.states(), ["stopped", "stopped"]);
    assert!(place.ok(&["logs", "replica1", "-n", "1"]).lines().count() == 1);
    place.ok(&["repair"]);
    assert_eq!(place.states(), ["running", "running"]);

    place.ok(&["replica", "add"]);
    assert_eq!(place.sql("replica2", "SELECT n FROM t"), "42");
    place.ok(&["replica", "remove", "replica1"]);
    assert_eq!(place.sql("primary", "SELECT slot_name FROM pg_replication_slots"), "replica2");
    assert!(!harbour.objects().iter().any(|object| object.contains("replica1")), "{:?}", harbour.objects());

    // Down keeps the data, and so does a container that is made anew.
    place.ok(&["down"]);
    assert_eq!(place.states(), ["stopped", "stopped"]);
    assert!(place.ok(&["logs", "primary"]).contains("database system is shut down"));
    docker.output(&["rm", &harbour.container("primary")]);
    place.ok(&["up"]);
    assert_eq!(place.sql("replica2", "SELECT n FROM t"), "42");
    harbour.gone();
    assert_eq!(docker.output(&["volume", "ls", "--quiet"]), volumes_before);
}

#[test]
fn a_heartbeat_goes_on_until_it_is_stopped() {
    let harbour = Harbour::new(tests::needs_docker!());
    let (place, docker) = (&harbour.place, harbour.docker);
    let every_ms = || place.json(&["status", "--output", "json"])[0]["heartbeat_ms"].clone();
    let beats = || {
        let position = place.sql("primary", "SELECT pg_current_wal_flush_lsn()");
        let deadline = Instant::now() + Duration::from_secs(30);
        while place.sql("primary", &format!("SELECT pg_current_wal_flush_lsn() > '{position}'")) != "t" {
            assert!(Instant::now() < deadline);
        }
    };
    place.ok(&["up", "--replicas", "0", "--heartbeat", "10ms"]);
    beats();
    assert_eq!(every_ms(), 10);
    // It goes with its container, and comes back with its server.
    docker.output(&["restart", "--time", "1", &harbour.container("primary")]);
    place.ok(&["repair"]);
    beats();
    place.ok(&["stop"]);
    let processes = docker.output(&["top", &harbour.container("primary"), "-o", "pid,args"]);
    assert!(!processes.contains("heartbeat.sql"), "{processes}");
    place.ok(&["start"]);
    beats();
    place.ok(&["up", "--heartbeat", "off"]);
    assert_eq!(every_ms(), Value::Null);
    harbour.gone();
}

#[test]
fn what_the_database_does_not_take_and_what_does_not_fit_is_told_early() {
    let harbour = Harbour::new(tests::needs_docker!());
    let (place, docker) = (&harbour.place, harbour.docker);
    // Before there is a container nobody can be asked: with the first of them somebody is, and nothing else is done yet.
    let (code, _, err) = place.run(&["up", "--replicas", "0", "--parameter", "work_mem=lots"]);
    assert_eq!(code, Some(3), "{err}");
    assert!(err.contains("cannot try out the database's parameters"), "{err}");
    assert!(err.contains("invalid value for parameter \"work_mem\": \"lots\""), "{err}");
    assert!(!place.cluster().join("pgpass").exists());

    // A volume that is too small stands for a disk that is full.
    let (container, volume) = (harbour.container("primary"), harbour.container("primary"));
    let labels = docker.output(&["volume", "inspect", "--format", "{{json .Labels}}", &volume]);
    let labels: Value = serde_json::from_str(&labels).unwrap();
    let labels = labels.as_object().unwrap().iter();
    let labels: Vec<String> = labels.map(|(name, value)| format!("{name}={}", value.as_str().unwrap())).collect();
    docker.output(&["rm", "--force", &container]);
    docker.output(&["volume", "rm", &volume]);
    let mut make = vec!["volume", "create", "--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", "o=size=24m"];
    make.extend(labels.iter().flat_map(|label| ["--label", label]));
    docker.output(&[&make[..], &[&volume]].concat());
    let (code, _, err) = place.run(&["up", "--parameter", "work_mem=8MB"]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("cannot initialize the database of primary"), "{err}");
    assert!(err.contains("No space left on device") && err.contains("likely cause: the disk is full"), "{err}");
    // With room it goes on from there.
    docker.output(&["rm", "--force", &container]);
    docker.output(&["volume", "rm", &volume]);
    place.ok(&["up"]);
    assert_eq!(place.sql("primary", "SHOW work_mem"), "8MB");
    harbour.gone();
}

#[test]
fn a_port_that_was_picked_and_is_taken_meanwhile_is_no_obstacle() {
    let harbour = Harbour::new(tests::needs_docker!());
    let place = &harbour.place;
    let record = place.cluster().join("cluster.json");
    let up = place.command(&["up"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !record.exists() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(2));
    }
    let record: Value = serde_json::from_str(&fs::read_to_string(record).unwrap()).unwrap();
    // That of the replica: the primary's container may have its port already.
    let port = u16::try_from(record["topology"][1]["port"].as_u64().unwrap()).unwrap();
    let somebody = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let output = up.wait_with_output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{err}");
    assert!(err.contains(&format!("port {port} of replica1 was taken by somebody else meanwhile: it gets ")), "{err}");
    assert_eq!(place.states(), ["running", "running"]);
    drop(somebody);
    harbour.gone();
}

/// The full series: `ONEDISK_KILLS=20`.
#[test]
fn killed_at_any_moment_it_converges_and_leaves_nothing() {
    let harbour = Harbour::new(tests::needs_docker!());
    kills::series(&harbour.place, &["up"], 1, || harbour.assert_nothing_left());
}

#[test]
fn what_is_somebody_elses_is_refused_and_left_alone() {
    let harbour = Harbour::new(tests::needs_docker!());
    let (place, docker) = (&harbour.place, harbour.docker);
    let (container, network) = (harbour.container("primary"), format!("onedisk-{}", place.name));
    let image = tests::docker::IMAGE;
    for (id, make, remove) in [
        ("container", vec!["create", "--name", &container, image, "true"], vec!["rm", &container]),
        ("volume", vec!["volume", "create", &container], vec!["volume", "rm", &container]),
        ("network", vec!["network", "create", &network], vec!["network", "rm", &network]),
    ] {
        docker.output(&make);
        let before = harbour.objects();
        let name = if id == "network" { &network } else { &container };
        place.refused(&["up"], 3, &format!("the {id} {name} exists, and this cluster did not make it [foreign-{id}]"));
        assert_eq!(harbour.objects(), before);
        docker.output(&remove);
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let taken = format!("port {port} of 127.0.0.1, which primary needs, is taken by process {}", std::process::id());
    place.refused(&["up", "--port", &port.to_string()], 3, &taken);
    harbour.assert_nothing_left();
}

#[test]
fn without_docker_it_says_what_to_do_and_changes_nothing() {
    let harbour = Harbour::new(tests::needs_docker!());
    let place = &harbour.place;
    let nowhere = format!("unix://{}/no.sock", place.root.display());
    place.refused(&["up", "--docker", &nowhere], 3, &format!("there is no Docker at {nowhere} [docker-unreachable]"));
    place.refused(&["up", "--docker", &nowhere], 3, "hint: start it (systemctl start docker) or install it");
    let dead = place.root.join("dead.sock");
    drop(UnixListener::bind(&dead).unwrap());
    place.refused(&["up", "--docker", &format!("unix://{}", dead.display())], 3, "does not run [docker-unreachable]");
    fs::remove_file(dead).unwrap();
    for far in ["tcp://127.0.0.1:1", "ssh://nobody@127.0.0.1:1"] {
        place.refused(&["up", "--docker", far], 3, &format!("Docker at {far} does not answer"));
    }
    place.refused(&["up", "--docker", "no-such-context"], 2, "there is no Docker context called \"no-such-context\"");
    place.refused(&["up", "--docker", "ftp://x"], 2, "is no place of Docker: there is no such scheme");
    let missing = "onedisk.invalid/no-such-image:1";
    place.refused(&["up", "--image", missing], 3, &format!("the image {missing} is not here"));
    place.refused(&["up", "--image", missing], 3, "[image-missing]");
    place.refused(&["up", "--cpus", "none"], 2, "\"none\" is no number of CPUs");
    let build = ["up", "--engine", "postgres", "--build"];
    place.refused(&build, 2, "PolarDB is built, and no other engine");
    // What the image lacks is found before there is a node, in a container that is gone at once.
    for build in [&[][..], &["--build"]] {
        let doctor =
            ["doctor", "--engine", "polardb", "--disk-size", "10GiB", "--prealloc", "sparse", "--output", "json"];
        let (code, out, err) = place.run(&[&doctor[..], build].concat());
        let findings: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{err}"));
        let found = findings.as_array().unwrap().iter().find(|finding| finding["id"] == "no-polardb").unwrap();
        assert_eq!((code, &found["severity"]), (Some(5), &"error".into()));
        assert!(found["message"].as_str().unwrap().starts_with("the image has no PolarFS: "), "{found}");
    }
    harbour.assert_nothing_left();

    // Somebody who may not use Docker's socket.
    if tests::is_root() {
        let closed = place.root.join("closed.sock");
        let _listener = UnixListener::bind(&closed).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o600)).unwrap();
        let command = place.command(&[]);
        let program = place.root.join("provision");
        fs::copy(command.get_program(), &program).unwrap();
        let output = Command::new(program)
            .args(["--state-dir", "/nonexistent", "up", "--runtime", "docker", "--docker"])
            .arg(format!("unix://{}", closed.display()))
            .current_dir("/")
            .uid(65534)
            .gid(65534)
            .output()
            .unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert!(err.contains("this user may not use Docker at") && err.contains("usermod -aG docker"), "{err}");
        assert_eq!(output.status.code(), Some(3), "{err}");
    }
}

#[test]
fn the_dry_run_is_what_docker_takes() {
    let harbour = Harbour::new(tests::needs_docker!());
    let (place, docker) = (&harbour.place, harbour.docker);
    let script = place.ok(&["up", "--dry-run", "--memory", "512MiB", "--cpus", "1.5"]);
    assert!(place.files().is_empty());
    assert!(script.contains("--memory 536870912 --cpus 1.5") && !script.contains("--privileged"), "{script}");
    // The shell takes it as it is, and a cluster stands.
    fs::create_dir_all(place.cluster()).unwrap();
    let mut shell = Command::new("sh")
        .arg("-e")
        .env("DOCKER_HOST", &docker.host)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    shell.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = shell.wait_with_output().unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    let mut made = harbour.objects();
    made.sort_by_key(|object| !object.starts_with("container"));
    for object in &made {
        let (kind, name) = object.split_once(' ').unwrap();
        let force: &[&str] = if kind == "container" { &["--force"] } else { &[] };
        docker.output(&[&[kind, "rm"], force, &[name]].concat());
    }
    fs::remove_dir_all(place.cluster()).unwrap();
    assert!(output.status.success(), "{out}\n{err}");
    assert_eq!((made.len(), out.matches("\n proof\n").count()), (5, 1), "{out}");
    harbour.assert_nothing_left();
}
