//! `provision` with the real PolarDB and the real pfsd, in containers: needs root, Docker, and an image that holds both,
//! which `ONEDISK_POLARDB_IMAGE` names.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]
#![allow(clippy::print_stdout, reason = "with --nocapture, what is printed is the transcript of a real run")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use serde_json::Value;

/// The image, or a loud word that there is none. It cannot be had from anywhere in CI, so this is no failure there.
fn image() -> Option<String> {
    let image = std::env::var("ONEDISK_POLARDB_IMAGE").ok().filter(|image| !image.is_empty());
    if image.is_none() {
        tests::say_skipped("polardb", "ONEDISK_POLARDB_IMAGE names no image with PolarDB 15 and pfsd");
    }
    image.filter(|_| tests::is_root())
}

/// A place for a cluster.
struct Place {
    directory: tempfile::TempDir,
    image: String,
}

/// Nobody else's cluster is called so.
const NAME: &str = "polardb_test";

impl Place {
    fn new(image: String) -> Self {
        let directory = tempfile::Builder::new().prefix("polar").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        Self { directory, image }
    }

    fn root(&self) -> &Path {
        self.directory.path()
    }

    fn disk(&self) -> PathBuf {
        self.root().join("disk.img")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = tests::program("provision");
        command
            .arg("--state-dir")
            .arg(self.root())
            .args(["--name", NAME])
            .args(args)
            .current_dir(self.root())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let begin = Instant::now();
        let Output { status, stdout, stderr } = self.command(args).output().unwrap();
        let (out, err) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
        println!("$ provision {}\n{err}{out}({:.2} s)\n", args.join(" "), begin.elapsed().as_secs_f64());
        (status.code(), out, err)
    }

    fn ok(&self, args: &[&str]) -> String {
        let (code, out, err) = self.run(args);
        assert_eq!(code, Some(0), "provision {args:?}\n{out}\n{err}");
        out
    }

    fn refused(&self, args: &[&str], exit_code: i32, part: &str) {
        let before = self.everything();
        let (code, out, err) = self.run(args);
        assert!(err.contains(part), "provision {args:?} says\n{err}");
        assert_eq!((code, out.as_str()), (Some(exit_code), ""), "provision {args:?}\n{err}");
        assert_eq!(self.everything(), before, "provision {args:?} changed something");
    }

    fn up(&self, more: &[&str]) -> String {
        let disk = self.disk();
        let fixed = ["up", "--engine", "polardb", "--runtime", "docker", "--image", &self.image];
        let size = ["--disk", disk.to_str().unwrap(), "--disk-size", "10GiB", "--prealloc", "sparse"];
        self.ok(&[&fixed[..], &size, more].concat())
    }

    fn sql(&self, node: &str, statement: &str) -> String {
        self.ok(&["psql", node, "--", "-AtXqc", statement]).trim().to_owned()
    }

    fn status(&self) -> Vec<Value> {
        let (_, out, err) = self.run(&["status", "--output", "json"]);
        serde_json::from_str(&out).unwrap_or_else(|_| panic!("{err}"))
    }

    fn states(&self) -> Vec<String> {
        self.status().iter().map(|node| node["state"].as_str().unwrap().to_owned()).collect()
    }

    /// Every node reads what was written before it is asked, once it has replayed that.
    fn all_read(&self, replicas: &[&str], expected: &str) {
        let lsn = self.sql("primary", "SELECT pg_current_wal_lsn()");
        for replica in replicas {
            let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'");
            let begin = Instant::now();
            while self.sql(replica, &replayed) != "t" {
                assert!(begin.elapsed().as_secs() < 30, "{replica} does not come to {lsn}");
            }
            assert_eq!(self.sql(replica, "SELECT string_agg(n::text, ',' ORDER BY n) FROM t"), expected);
        }
    }

    /// What the cluster has on this machine, and would have to take away: containers, networks, volumes, loop devices,
    /// files. Other clusters come and go meanwhile.
    fn everything(&self) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        let label = format!("label=onedisk.name={NAME}");
        for list in [&["container", "ls", "--all"][..], &["network", "ls"], &["volume", "ls"]] {
            let ids = docker(&[list, &["--quiet", "--filter", &label]].concat());
            all.extend(ids.into_iter().map(|id| format!("{} {id}", list[0])));
        }
        let devices =
            blockdev::loopdev::list().into_iter().filter(|device| device.backing_file.starts_with(self.root()));
        all.extend(devices.map(|device| format!("{} on {}", device.path.display(), device.backing_file.display())));
        let files =
            fs::read_dir(self.root()).unwrap().chain(fs::read_dir(self.root().join("clusters")).into_iter().flatten());
        all.extend(files.map(|entry| entry.unwrap().path().display().to_string()));
        all
    }

    fn containers(&self) -> Vec<String> {
        docker(&["container", "ls", "--quiet", "--filter", &format!("label=onedisk.name={NAME}")])
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.command(&["down", "--purge", "--yes"]).output();
        }
    }
}

fn docker(args: &[&str]) -> Vec<String> {
    let output = Command::new("docker").args(args).output().unwrap();
    assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn one_writer_and_two_readers_on_one_disk() {
    let Some(image) = image() else { return };
    let place = Place::new(image);
    let before = place.everything();
    let nodes = ["replica1", "replica2"];

    place.up(&["--replicas", "2", "--workers", "2"]);
    place.sql("primary", "CREATE TABLE t AS SELECT 1 AS n");
    place.all_read(&nodes, "1");
    let status = place.status();
    for (node, host_id) in status.iter().zip(1..) {
        assert_eq!((&node["state"], &node["pfsd_workers"]), (&"running".into(), &2.into()), "{node}");
        // Four WAL segments of 1 GiB are there from the beginning.
        assert!(node["shared_disk_usage"].as_u64().unwrap() > 1 << 30, "{node}");
        assert_eq!(place.sql(node["node"].as_str().unwrap(), "SHOW polar_hostid"), host_id.to_string());
    }
    assert!(place.ok(&["status"]).contains("PFSD WORKERS"));

    // What is done is found done.
    let (code, _, err) = place.run(&["up"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(
        !err.contains("start primary: done") && err.contains("make a PolarFS volume on the shared disk: already done")
    );
    // A pfsd with another number of workers takes the place of the old one, under databases that run.
    let began = place.sql("replica1", "SELECT pg_postmaster_start_time()");
    place.ok(&["up", "--workers", "1"]);
    assert_eq!(place.status()[1]["pfsd_workers"], 1);
    assert_eq!(place.sql("replica1", "SELECT pg_postmaster_start_time()"), began);
    place.sql("primary", "INSERT INTO t VALUES (2)");
    place.all_read(&nodes, "1,2");

    // Nobody else's disk, and no disk that is in use, is formatted or taken.
    let disk = place.disk();
    let other = ["up", "--name", "other_test", "--engine", "polardb", "--runtime", "docker", "--image", &place.image];
    place.refused(&[&other[..], &["--disk", disk.to_str().unwrap()]].concat(), 3, "this cluster did not make it");
    place.refused(&[&other[..], &["--disk-size", "15GiB"]].concat(), 2, "PolarFS divides it into chunks of 10 GiB");
    place.refused(&["up", "--reformat"], 3, "holds a database of this cluster");

    place.ok(&["stop"]);
    assert_eq!(place.states(), ["stopped"; 3]);
    place.ok(&["start"]);
    place.sql("primary", "INSERT INTO t VALUES (3)");
    place.all_read(&nodes, "1,2,3");

    // As after a reboot: no process runs, and no image is attached.
    let containers = place.containers();
    docker(&[&["restart", "-t", "1"][..], &containers.iter().map(String::as_str).collect::<Vec<_>>()].concat());
    let attached = blockdev::loopdev::find(&disk).unwrap();
    blockdev::loopdev::detach(&attached[0]).unwrap();
    assert_eq!(place.states(), ["stopped"; 3]);
    // The device that it had is somebody else's by now.
    let file = place.root().join("foreign.img");
    fs::File::create(&file).unwrap().set_len(1 << 20).unwrap();
    let foreign = blockdev::loopdev::attach(&file, &blockdev::loopdev::Options::default()).unwrap();
    assert_eq!(foreign.device().number, attached[0].number);
    place.ok(&["repair"]);
    assert_ne!(blockdev::loopdev::find(&disk).unwrap()[0].number, attached[0].number);
    foreign.detach().unwrap();
    fs::remove_file(file).unwrap();
    place.sql("primary", "INSERT INTO t VALUES (4)");
    place.all_read(&nodes, "1,2,3,4");

    place.ok(&["replica", "remove", "replica1"]);
    assert_eq!(place.sql("primary", "SELECT string_agg(slot_name, ',') FROM pg_replication_slots"), "replica2");
    place.ok(&["replica", "add", "third"]);
    place.sql("primary", "INSERT INTO t VALUES (5)");
    place.all_read(&["replica2", "third"], "1,2,3,4,5");
    assert_eq!(place.sql("third", "SHOW polar_hostid"), "2");
    assert_eq!(place.sql("replica2", "SHOW polar_hostid"), "3");

    // Down keeps the disk, and up brings the cluster back.
    place.ok(&["down"]);
    assert!(blockdev::loopdev::find(&disk).is_err());
    place.ok(&["up"]);
    place.all_read(&["replica2", "third"], "1,2,3,4,5");

    place.ok(&["down", "--purge", "--yes"]);
    let clusters = place.root().join("clusters");
    let left: BTreeSet<String> =
        place.everything().into_iter().filter(|left| *left != clusters.display().to_string()).collect();
    assert_eq!(left, before);
}
