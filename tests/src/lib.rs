//! What the tests of the whole system share: finding the programs, and saying loudly what is skipped.

pub mod docker;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The program `name` of this workspace, built first if it is not up to date.
///
/// # Panics
/// When it cannot be built.
#[must_use]
pub fn program(name: &str) -> Command {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| {
        // target/<profile>/deps/<test>-<hash>: the programs are two levels up.
        let test = std::env::current_exe().expect("a running test has a path");
        let profile =
            test.parent().and_then(Path::parent).expect("cargo puts tests into target/<profile>/deps").to_owned();
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--workspace", "--bins"]).current_dir(env!("CARGO_MANIFEST_DIR"));
        if profile.ends_with("release") {
            build.arg("--release");
        }
        // What cargo tells a test of its package: to the build scripts that look at it everything would be new, each time.
        for (name, _) in std::env::vars_os() {
            if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                build.env_remove(name);
            }
        }
        assert!(build.status().expect("cargo runs").success(), "the programs of the workspace build");
        profile
    });
    Command::new(directory.join(name))
}

/// Whether this process is root.
#[must_use]
pub fn is_root() -> bool {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Says that a test is skipped and why, past the test runner's capture, and notes it in the file that `ONEDISK_SKIPPED`
/// names, which `make test` prints at its end. In CI, where everything can be installed, skipping is a failure.
///
/// # Panics
/// When `CI` is set.
pub fn skip(test: &str, why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{test} may not be skipped in CI: {why}");
    say_skipped(test, why);
}

/// Says and notes that a test is skipped, as [`skip`] does, also in CI: for what cannot be had there.
pub fn say_skipped(test: &str, why: &str) {
    // Unlike `eprintln!`, this is not captured.
    let line = format!("{test}: {why}\n");
    // In one piece each: tests run side by side.
    let _ = std::io::stderr().write_all(format!("SKIPPED {line}").as_bytes());
    if let Some(path) = std::env::var_os("ONEDISK_SKIPPED")
        && let Ok(mut file) = File::options().create(true).append(true).open(path)
    {
        let _ = file.write_all(line.as_bytes());
    }
}

/// Skips the enclosing test, loudly, unless it runs as root.
#[macro_export]
macro_rules! needs_root {
    () => {
        if !$crate::is_root() {
            let name = std::thread::current().name().unwrap_or("a test").to_owned();
            $crate::skip(&name, "needs root for real loop devices and mounts");
            return;
        }
    };
}

/// Where the original PolarFS is installed, if it is: a directory with `bin/pfs`, and `polarstore/pfsd` with its daemon. That is
/// what `ONEDISK_PFS_ORIGINAL` names, or `/usr/local`, where its own script puts it.
#[must_use]
pub fn original_pfs() -> Option<PathBuf> {
    let directory = std::env::var_os("ONEDISK_PFS_ORIGINAL").map_or_else(|| PathBuf::from("/usr/local"), PathBuf::from);
    let program = directory.join("bin/pfs");
    // Ours, put in its place, knows its version.
    let is_ours = || Command::new(&program).arg("--version").output().is_ok_and(|output| output.status.success());
    let is_there = program.exists() && !is_ours();
    is_there.then_some(directory)
}

/// The names in a directory, sorted.
///
/// # Panics
/// When it cannot be read, or a name is not UTF-8.
#[must_use]
pub fn names_in(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("a test's directory can be read");
    let name = |entry: std::fs::DirEntry| entry.file_name().into_string().expect("tests name their files in UTF-8");
    let mut names: Vec<String> = entries.map(|entry| name(entry.expect("a test's directory can be read"))).collect();
    names.sort();
    names
}

/// A file system that is mounted for a test. Needs root.
#[derive(Debug)]
pub struct Mounted(PathBuf);

impl Mounted {
    /// Makes the directory `at`, and mounts there what `mount ARGUMENTS at` does.
    ///
    /// # Panics
    /// When it cannot be mounted.
    #[must_use]
    pub fn new(arguments: &[&str], at: &Path) -> Self {
        std::fs::create_dir_all(at).expect("a directory to mount on can be made");
        run("mount", &[arguments, &[text(at)]].concat());
        Self(at.to_owned())
    }

    /// Makes a file of `mebibytes` at `image`, an ext4 in it with the options of mkfs.ext4, and mounts it at `at`.
    ///
    /// # Panics
    /// When it cannot be made or mounted.
    #[must_use]
    pub fn ext4(mebibytes: u64, options: &[&str], image: &Path, at: &Path) -> Self {
        File::create(image).and_then(|file| file.set_len(mebibytes << 20)).expect("a sparse file can be made");
        run("mkfs.ext4", &[&["-q", "-F"], options, &[text(image)]].concat());
        Self::new(&["-t", "ext4", "-o", "loop", text(image)], at)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let done = try_to_run("umount", &[text(&self.0)]);
        // A test that fails has said so, and may well hold something open.
        assert!(done || std::thread::panicking(), "{} can be unmounted", self.0.display());
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("tests name their files in UTF-8")
}

fn run(program: &str, arguments: &[&str]) {
    assert!(try_to_run(program, arguments), "{program} {arguments:?} succeeds");
}

fn try_to_run(program: &str, arguments: &[&str]) -> bool {
    // Debian keeps what administers disks out of an ordinary user's path.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/local/sbin:/usr/sbin:/sbin";
    Command::new(program).args(arguments).env("PATH", path).status().is_ok_and(|status| status.success())
}

/// Skips the enclosing test, loudly, unless PostgreSQL is installed.
#[macro_export]
macro_rules! needs_postgresql {
    () => {
        if !$crate::has_postgresql() {
            let name = std::thread::current().name().unwrap_or("a test").to_owned();
            $crate::skip(&name, "needs PostgreSQL: apt-get install postgresql");
            return;
        }
    };
}

/// Whether PostgreSQL is installed, where Debian puts it or on the path.
#[must_use]
pub fn has_postgresql() -> bool {
    let debian = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = debian.map(|entry| entry.path().join("bin")).chain(std::env::split_paths(&path));
    places.any(|bin| bin.join("initdb").is_file())
}
