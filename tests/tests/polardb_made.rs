//! `provision` with the real PolarDB on a device that is there already, and out of its source: needs root, Docker, and an image
//! that `ONEDISK_POLARDB_IMAGE` names.
//!
//! What `--build` does is tried on stand-ins: an image with git, a repository in it, and a `build.sh` there that brings the
//! image's own PolarDB. The real one takes a registry, a git host and ten minutes.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]
#![allow(clippy::print_stdout, reason = "with --nocapture, what is printed is the transcript of a real run")]

mod polar;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use polar::{Place, docker};

/// One cluster at a time: two cores have enough to do with one.
static ALONE: Mutex<()> = Mutex::new(());

/// Nobody else's cluster is called so.
const NAME: &str = "polardb_made_test";

/// Every node reads what was written before it is asked, once it has replayed that.
fn all_read(place: &Place, replicas: &[&str], expected: &str) {
    place.all_replay("primary", replicas);
    for replica in replicas {
        assert_eq!(place.sql(replica, "SELECT string_agg(n::text, ',' ORDER BY n) FROM t"), expected);
    }
}

/// Everything but what is there before there is a cluster is gone.
fn assert_nothing_left(place: &Place, before: &BTreeSet<String>) {
    let clusters = place.root().join("clusters").display().to_string();
    let left: BTreeSet<String> = place.everything().into_iter().filter(|left| *left != clusters).collect();
    assert_eq!(left, *before);
}

#[test]
fn a_device_that_is_there_is_shared_and_stays() {
    let Some(image) = polar::image("polardb --device") else { return };
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let place = Place::new(image, NAME);
    // What stands for a disk in a network: nobody but this test has made it.
    let file = place.root().join("san.img");
    fs::File::create(&file).unwrap().set_len(10 << 30).unwrap();
    let san = blockdev::loopdev::attach(&file, &blockdev::loopdev::Options::default()).unwrap().keep().unwrap();
    let before = place.everything();
    let device = san.path.display().to_string();
    let up = ["up", "--engine", "polardb", "--image", &place.image, "--device", &device];

    place.refused(&[&up[..], &["--disk-size", "10GiB"]].concat(), 2, "the shared disk is given twice");
    place.ok(&up);
    place.sql("primary", "CREATE TABLE t AS SELECT 1 AS n");
    all_read(&place, &["replica1"], "1");
    // As after a reboot of the nodes' machine: the disk is there, and nothing runs.
    let containers = place.containers();
    docker(&[&["restart", "-t", "1"][..], &containers.iter().map(String::as_str).collect::<Vec<_>>()].concat());
    place.ok(&["repair"]);
    place.sql("primary", "INSERT INTO t VALUES (2)");
    all_read(&place, &["replica1"], "1,2");
    assert!(place.status()[0]["shared_disk_usage"].as_u64().unwrap() > 1 << 30);

    // It goes on being what it was: attached, and with a volume that nobody formats by mistake.
    place.ok(&["down", "--purge", "--yes"]);
    assert_nothing_left(&place, &before);
    let (code, _, err) = place.run(&up);
    assert_eq!(code, Some(3), "{err}");
    assert!(err.contains("holds a PolarFS volume"), "{err}");
    place.ok(&[&up[..], &["--reformat"]].concat());
    assert_eq!(place.sql("replica1", "SELECT to_regclass('t') IS NULL"), "t");
    place.ok(&["down", "--purge", "--yes"]);
    assert_nothing_left(&place, &before);
    blockdev::loopdev::detach(&san).unwrap();
}

/// An image made of another one, which is gone in the end.
struct Image(String);

impl Image {
    /// Runs `script` in a container of `from`, with the files of `directory` in /stand-in.
    fn made(from: &str, directory: &Path, script: &str) -> Self {
        let (name, image) = ("onedisk-polardb-stand-in", "onedisk-polardb-stand-in:test".to_owned());
        docker(&["create", "--name", name, "--user", "root", "--network", "none", from, "sh", "-ec", script]);
        let copied = format!("{name}:/stand-in");
        docker(&["cp", directory.to_str().unwrap(), &copied]);
        docker(&["start", "--attach", name]);
        docker(&["commit", name, &image]);
        docker(&["rm", name]);
        Self(image)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["image", "rm", "--force", &self.0]).output();
    }
}

/// Takes a moment, and wants what the recipe gives it, an empty place among it.
const BUILD: &str = r#"#!/bin/sh -e
for argument; do
    case $argument in
    --prefix=*) prefix=${argument#*=} ;;
    --ec=--with-pfsd) pfsd=1 ;;
    --ni) ni=1 ;;
    esac
done
[ -n "$pfsd" ] && [ -n "$ni" ] && [ ! -e "$prefix" ] || { echo "not so: $*"; exit 9; }
echo "Begin configure"
mkdir -p "$prefix/tmp_polardb_pg_15_base"
cp -r /opt/built/bin "$prefix/tmp_polardb_pg_15_base"
echo "Begin compile and install PolarDB"
sleep 3
cp -r /opt/built/* "$prefix/tmp_polardb_pg_15_base"
"#;

/// The stand-ins: `git` of this machine, a repository, and PolarDB where nobody looks for it.
fn workshop(from: &str, root: &Path) -> Option<Image> {
    let source = root.join("source");
    let files = root.join("files");
    fs::create_dir_all(&source).unwrap();
    fs::create_dir_all(&files).unwrap();
    fs::write(source.join("build.sh"), BUILD).unwrap();
    let git = |args: &[&str]| {
        let mut command = Command::new("git");
        command.args(["-c", "user.name=test", "-c", "user.email=test@localhost"]).args(args).current_dir(&source);
        command.output().is_ok_and(|output| output.status.success())
    };
    let bare = files.join("polardb.git");
    let made = git(&["init", "--quiet", "--initial-branch=stable"])
        && git(&["add", "--chmod=+x", "build.sh"])
        && git(&["commit", "--quiet", "--message=build"])
        && git(&["clone", "--quiet", "--bare", ".", bare.to_str().unwrap()]);
    if !made || fs::copy("/usr/bin/git", files.join("git")).is_err() {
        return None;
    }
    fs::remove_dir_all(source).unwrap();
    // Its libraries look for each other where they were.
    let script = "mv /u01/polardb_pg /opt/built; mkdir /u01/polardb_pg; ln -s /opt/built/lib /u01/polardb_pg; mv /stand-in/polardb.git /srv; mv /stand-in/git /usr/bin; \
                  ln -s git /usr/bin/git-upload-pack; printf '[safe]\n directory = *\n' >/etc/gitconfig; git --version";
    let image = Image::made(from, &files, script);
    fs::remove_dir_all(files).unwrap();
    Some(image)
}

#[test]
fn polardb_is_built_where_it_is_to_be_and_a_build_that_was_cut_is_begun_anew() {
    let Some(image) = polar::image("polardb --build") else { return };
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut place = Place::new(image, NAME);
    let before = place.everything();
    let Some(workshop) = workshop(&place.image, place.root()) else {
        return tests::say_skipped("polardb --build", "needs git in /usr/bin");
    };
    place.image.clone_from(&workshop.0);
    let disk = place.disk();
    let up = ["up", "--engine", "polardb", "--image", &place.image, "--build=file:///srv/polardb.git#stable"];
    let size = ["--disk", disk.to_str().unwrap(), "--disk-size", "10GiB", "--prealloc", "sparse"];
    let up = [&up[..], &size].concat();
    let outcomes = |output: &str| -> Vec<(String, String)> {
        let events = output.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let done = events.filter(|event| event["event"] == "step_done");
        done.map(|event| (event["title"].as_str().unwrap().to_owned(), event["outcome"].as_str().unwrap().to_owned()))
            .filter(|(title, _)| {
                title.starts_with("clone ") || title.starts_with("build ") || title.starts_with("put ")
            })
            .collect()
    };

    let json = [&up[..], &["--output", "json"]].concat();
    let mut cut = place.command(&json).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(cut.stdout.take().unwrap()).lines();
    let begun = lines.map_while(Result::ok).find(|line| line.contains("Begin compile"));
    assert!(begun.is_some_and(|line| line.contains("step_progress")), "progress is told");
    cut.kill().unwrap();
    cut.wait().unwrap();

    let of = |outcomes: &[(String, String)]| outcomes.iter().map(|(_, outcome)| outcome.clone()).collect::<Vec<_>>();
    assert_eq!(of(&outcomes(&place.ok(&json))), ["found", "done", "done", "done"]);
    assert_eq!(of(&outcomes(&place.ok(&json))), ["found"; 4]);
    for node in ["primary", "replica1"] {
        let program = place.ok(&["exec", node, "--", "readlink", "-f", "/usr/local/bin/postgres"]);
        assert_eq!(program, "/data/polardb/tmp_polardb_pg_15_base/bin/postgres\n");
    }
    // Kept whole, however much came after.
    let log = place.root().join("clusters").join(NAME).join("log/primary.setup.log");
    assert!(fs::read_to_string(log).unwrap().contains("Begin compile and install PolarDB"));
    place.sql("primary", "CREATE TABLE t AS SELECT 1 AS n");
    all_read(&place, &["replica1"], "1");
    // Whoever comes later has it from the beginning.
    place.ok(&["replica", "add"]);
    all_read(&place, &["replica2"], "1");
    place.ok(&["down", "--purge", "--yes"]);
    assert_nothing_left(&place, &before);
}
