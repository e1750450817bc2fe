//! A place for a cluster with the real PolarDB, in containers of an image that `ONEDISK_POLARDB_IMAGE` names.
#![allow(dead_code, reason = "every file of tests uses its own part of it")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use serde_json::Value;

/// The image, or a loud word that there is none for this test. It cannot be had from anywhere in CI, so this is no failure
/// there.
pub fn image(test: &str) -> Option<String> {
    let image = std::env::var("ONEDISK_POLARDB_IMAGE").ok().filter(|image| !image.is_empty());
    if image.is_none() {
        tests::say_skipped(test, "ONEDISK_POLARDB_IMAGE names no image with PolarDB 15 and pfsd");
    }
    image.filter(|_| tests::is_root())
}

/// A place for a cluster.
pub struct Place {
    /// The image of its nodes.
    pub image: String,
    name: &'static str,
    directory: tempfile::TempDir,
}

impl Place {
    /// For a cluster of this name, which nobody else's has.
    pub fn new(image: String, name: &'static str) -> Self {
        let directory = tempfile::Builder::new().prefix("polar").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        Self { image, name, directory }
    }

    pub fn root(&self) -> &Path {
        self.directory.path()
    }

    pub fn disk(&self) -> PathBuf {
        self.root().join("disk.img")
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = tests::program("provision");
        command
            .arg("--state-dir")
            .arg(self.root())
            .args(["--name", self.name])
            .args(args)
            .current_dir(self.root())
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let begin = Instant::now();
        let Output { status, stdout, stderr } = self.command(args).output().unwrap();
        let (out, err) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
        println!("$ provision {}\n{err}{out}({:.2} s)\n", args.join(" "), begin.elapsed().as_secs_f64());
        (status.code(), out, err)
    }

    pub fn ok(&self, args: &[&str]) -> String {
        let (code, out, err) = self.run(args);
        assert_eq!(code, Some(0), "provision {args:?}\n{out}\n{err}");
        out
    }

    pub fn refused(&self, args: &[&str], exit_code: i32, part: &str) {
        let before = self.everything();
        let (code, out, err) = self.run(args);
        assert!(err.contains(part), "provision {args:?} says\n{err}");
        assert_eq!((code, out.as_str()), (Some(exit_code), ""), "provision {args:?}\n{err}");
        assert_eq!(self.everything(), before, "provision {args:?} changed something");
    }

    pub fn up(&self, more: &[&str]) -> String {
        let disk = self.disk();
        let fixed = ["up", "--engine", "polardb", "--runtime", "docker", "--image", &self.image];
        let size = ["--disk", disk.to_str().unwrap(), "--disk-size", "10GiB", "--prealloc", "sparse"];
        self.ok(&[&fixed[..], &size, more].concat())
    }

    pub fn sql(&self, node: &str, statement: &str) -> String {
        self.ok(&["psql", node, "--", "-AtXqc", statement]).trim().to_owned()
    }

    pub fn status(&self) -> Vec<Value> {
        let (_, out, err) = self.run(&["status", "--output", "json"]);
        serde_json::from_str(&out).unwrap_or_else(|_| panic!("{err}"))
    }

    pub fn states(&self) -> Vec<String> {
        self.status().iter().map(|node| node["state"].as_str().unwrap().to_owned()).collect()
    }

    /// Waits until these replicas have replayed what was written on `primary` before this is asked.
    pub fn all_replay(&self, primary: &str, replicas: &[&str]) {
        let lsn = self.sql(primary, "SELECT pg_current_wal_lsn()");
        for replica in replicas {
            let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'");
            let begin = Instant::now();
            while self.sql(replica, &replayed) != "t" {
                assert!(begin.elapsed().as_secs() < 30, "{replica} does not come to {lsn}");
            }
        }
    }

    /// What the cluster has on this machine, and would have to take away: containers, networks, volumes, loop devices,
    /// files. Other clusters come and go meanwhile.
    pub fn everything(&self) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        let label = format!("label=onedisk.name={}", self.name);
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

    pub fn containers(&self) -> Vec<String> {
        docker(&["container", "ls", "--quiet", "--filter", &format!("label=onedisk.name={}", self.name)])
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.command(&["down", "--purge", "--yes"]).output();
        }
    }
}

pub fn docker(args: &[&str]) -> Vec<String> {
    let output = Command::new("docker").args(args).output().unwrap();
    assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}
