//! `provision` with the real PolarDB and the real pfsd, in containers: needs root, Docker, and an image that holds both,
//! which `ONEDISK_POLARDB_IMAGE` names.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]
#![allow(clippy::print_stdout, reason = "with --nocapture, what is printed is the transcript of a real run")]

mod polar;

use std::collections::BTreeSet;
use std::fs;

use polar::{Place, docker};

/// Every node reads what was written before it is asked, once it has replayed that.
fn all_read(place: &Place, replicas: &[&str], expected: &str) {
    place.all_replay("primary", replicas);
    for replica in replicas {
        assert_eq!(place.sql(replica, "SELECT string_agg(n::text, ',' ORDER BY n) FROM t"), expected);
    }
}

#[test]
fn one_writer_and_two_readers_on_one_disk() {
    let Some(image) = polar::image("polardb") else { return };
    let place = Place::new(image, "polardb_test");
    let before = place.everything();
    let nodes = ["replica1", "replica2"];

    place.up(&["--replicas", "2", "--workers", "2"]);
    place.sql("primary", "CREATE TABLE t AS SELECT 1 AS n");
    all_read(&place, &nodes, "1");
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
    all_read(&place, &nodes, "1,2");

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
    all_read(&place, &nodes, "1,2,3");

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
    all_read(&place, &nodes, "1,2,3,4");

    place.ok(&["replica", "remove", "replica1"]);
    assert_eq!(place.sql("primary", "SELECT string_agg(slot_name, ',') FROM pg_replication_slots"), "replica2");
    place.ok(&["replica", "add", "third"]);
    place.sql("primary", "INSERT INTO t VALUES (5)");
    all_read(&place, &["replica2", "third"], "1,2,3,4,5");
    assert_eq!(place.sql("third", "SHOW polar_hostid"), "2");
    assert_eq!(place.sql("replica2", "SHOW polar_hostid"), "3");

    // Down keeps the disk, and up brings the cluster back.
    place.ok(&["down"]);
    assert!(blockdev::loopdev::find(&disk).is_err());
    place.ok(&["up"]);
    all_read(&place, &["replica2", "third"], "1,2,3,4,5");

    place.ok(&["down", "--purge", "--yes"]);
    let clusters = place.root().join("clusters");
    let left: BTreeSet<String> =
        place.everything().into_iter().filter(|left| *left != clusters.display().to_string()).collect();
    assert_eq!(left, before);
}
