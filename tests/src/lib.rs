//! What the tests of the whole system share: finding the programs, and saying loudly what is skipped.

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
    // Unlike `eprintln!`, this is not captured.
    let _ = writeln!(std::io::stderr().lock(), "SKIPPED {test}: {why}");
    if let Some(path) = std::env::var_os("ONEDISK_SKIPPED")
        && let Ok(mut file) = File::options().create(true).append(true).open(path)
    {
        let _ = writeln!(file, "{test}: {why}");
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
