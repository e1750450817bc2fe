//! A place for clusters of `provision`, which proves at its end that nothing of them is left.
#![allow(dead_code, reason = "every file of tests uses its own part of it")]

pub mod kills;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use blockdev::loopdev::LoopDevice;
use serde_json::Value;

/// One cluster at a time: two cores have enough to do with one, and ports that are free stay free.
static ALONE: Mutex<()> = Mutex::new(());

/// A place for clusters, and at its end the proof that nothing of them is left.
pub struct Place {
    /// The directory for clusters.
    pub root: PathBuf,
    /// What the cluster is called.
    pub name: String,
    /// What every command has in its environment.
    pub environment: Vec<(&'static str, String)>,
    dir: Option<tempfile::TempDir>,
    _alone: MutexGuard<'static, ()>,
}

impl Place {
    pub fn new() -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        // The path of a socket has 107 bytes: short names. Root's database runs as another user, who must be able to get here.
        let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let open = target.ancestors().all(|dir| fs::metadata(dir).is_ok_and(|metadata| metadata.mode() & 0o001 != 0));
        let parent = if open && target.as_os_str().len() < 60 { target } else { Path::new("/var/tmp") };
        let dir = tempfile::Builder::new().prefix("p").rand_bytes(4).tempdir_in(parent).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let (root, name) = (dir.path().to_owned(), "default".to_owned());
        Self { root, name, environment: Vec::new(), dir: Some(dir), _alone: alone }
    }

    /// The same for clusters in containers of `docker`, under a name that nobody else there has.
    pub fn in_docker(docker: &tests::docker::Docker) -> Self {
        let mut place = Self::new();
        place.name = format!("test_{}", place.root.file_name().unwrap().to_str().unwrap().to_lowercase());
        place.environment = vec![
            ("PROVISION_NAME", place.name.clone()),
            ("PROVISION_RUNTIME", "docker".to_owned()),
            ("PROVISION_IMAGE", tests::docker::IMAGE.to_owned()),
            ("DOCKER_HOST", docker.host.clone()),
        ];
        place
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = tests::program("provision");
        command.arg("--state-dir").arg(&self.root).args(args).current_dir(&self.root).stdin(Stdio::null());
        // What is set for the person who runs the tests is not meant for them.
        for (name, _) in std::env::vars_os() {
            if ["PG", "PROVISION_", "DOCKER_"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    pub fn run(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let Output { status, stdout, stderr } = self.command(args).output().unwrap();
        (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
    }

    pub fn ok(&self, args: &[&str]) -> String {
        let (code, out, err) = self.run(args);
        assert_eq!(code, Some(0), "provision {args:?}\n{out}\n{err}");
        out
    }

    /// What fails must say `part`, and change nothing.
    pub fn refused(&self, args: &[&str], exit_code: i32, part: &str) {
        let before = self.files();
        let (code, out, err) = self.run(args);
        assert!(err.contains(part), "provision {args:?} says\n{err}");
        assert_eq!((code, out.as_str()), (Some(exit_code), ""), "provision {args:?}\n{err}");
        assert_eq!(self.files(), before, "provision {args:?} changed something");
    }

    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(args)).unwrap()
    }

    pub fn sql(&self, node: &str, statement: &str) -> String {
        self.ok(&["psql", node, "--", "-AtXqc", statement]).trim().to_owned()
    }

    /// The states of the nodes, however good or bad.
    pub fn states(&self) -> Vec<String> {
        let (_, out, err) = self.run(&["status", "--output", "json"]);
        let nodes: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{err}"));
        nodes.as_array().unwrap().iter().map(|node| node["state"].as_str().unwrap().to_owned()).collect()
    }

    pub fn cluster(&self) -> PathBuf {
        self.root.join("clusters").join(&self.name)
    }

    pub fn node(&self, name: &str) -> PathBuf {
        self.cluster().join("nodes").join(name)
    }

    /// Everything that is here but what a running database writes by itself.
    pub fn files(&self) -> BTreeSet<PathBuf> {
        fn walk(path: &Path, found: &mut BTreeSet<PathBuf>) {
            for entry in fs::read_dir(path).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.file_name().is_some_and(|name| name == "data") {
                    continue;
                }
                if path.is_dir() {
                    walk(&path, found);
                }
                found.insert(path);
            }
        }
        let mut found = BTreeSet::new();
        walk(&self.root, &mut found);
        found
    }

    /// The processes that have to do with this place: by their arguments or their working directory.
    pub fn processes(&self) -> Vec<String> {
        let root = self.root.to_str().unwrap();
        let all = fs::read_dir("/proc").unwrap().flatten();
        all.filter_map(|entry| {
            let cmdline = fs::read(entry.path().join("cmdline")).ok()?;
            let text = String::from_utf8_lossy(&cmdline).replace('\0', " ");
            let cwd = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
            (text.contains(root) || cwd.starts_with(root))
                .then(|| format!("{} {text} in {}", entry.file_name().display(), cwd.display()))
        })
        .collect()
    }

    /// The loop devices on files of this place.
    pub fn devices(&self) -> Vec<LoopDevice> {
        let here = |device: &LoopDevice| device.backing_file.starts_with(&self.root);
        blockdev::loopdev::list().into_iter().filter(here).collect()
    }

    /// The kernel detaches a device when the last one closes it, and that may be somebody who only looks at all devices.
    pub fn assert_gives_back(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.devices().is_empty() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        assert!(self.devices().is_empty(), "{:?}", self.devices());
    }

    pub fn assert_nothing_left(&self) {
        let left: BTreeSet<PathBuf> =
            self.files().into_iter().filter(|path| *path != self.root.join("clusters")).collect();
        assert!(left.is_empty(), "{left:?}");
        assert!(self.processes().is_empty(), "{:?}", self.processes());
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(self.root.to_str().unwrap()), "{mounts}");
        self.assert_gives_back();
    }

    /// Whoever is killed before anything was noted leaves an empty directory, which the next `up` takes.
    pub fn remove_what_was_not_begun(&self) {
        let cluster = self.cluster();
        if cluster.exists() {
            let left = self.files();
            let ours = [self.root.join("clusters"), cluster.clone(), cluster.join("lock")];
            assert!(left.iter().all(|path| ours.contains(path)), "{left:?}");
            fs::remove_dir_all(cluster).unwrap();
        }
    }

    pub fn gone(&self) {
        self.ok(&["down", "--purge", "--yes"]);
        self.assert_nothing_left();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.command(&["down", "--purge", "--yes"]).output();
        }
        let _ = self.dir.take().map(tempfile::TempDir::close);
    }
}

/// `text` without what differs from one machine or run to another.
pub fn steps_of(err: &str) -> Vec<&str> {
    err.lines()
        .filter_map(|line| line.split_once("s ").and_then(|(_, rest)| rest.trim_start().split_once("s ")))
        .map(|(_, step)| step)
        .collect()
}
