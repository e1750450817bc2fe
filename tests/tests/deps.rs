//! `make deps` on machines that lack something, played by a path of our own making.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A program that is still open for writing, if only in a child that another test is starting, cannot be run: so one
/// machine at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// A machine that has only what the script itself needs, a new Rust, and the programs added to it.
struct Machine {
    dir: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let machine = Self { dir, _alone: ALONE.lock().unwrap_or_else(PoisonError::into_inner) };
        let path = std::env::var_os("PATH").unwrap();
        for tool in ["bash", "cat", "cut", "dirname", "echo", "env", "sed", "sh", "sort", "xargs"] {
            let real = std::env::split_paths(&path).map(|dir| dir.join(tool)).find(|path| path.exists());
            symlink(real.unwrap(), machine.dir.path().join(tool)).unwrap();
        }
        machine.with("cargo", "true").with("rustc", "echo rustc 1.999.0").with("id", "echo 1000")
    }

    fn with(self, name: &str, script: &str) -> Self {
        let path = self.dir.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    fn deps(&self, purposes: &[&str]) -> (Option<i32>, String) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.ci/deps");
        let Output { status, stderr, stdout } = Command::new(script)
            .args(purposes)
            .env_clear()
            .envs([("PATH", self.dir.path()), ("HOME", self.dir.path())])
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        (status.code(), String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap())
    }
}

#[test]
fn nothing_is_done_when_all_is_there() {
    let machine = Machine::new().with("cc", "true").with("apt-get", "echo called");
    assert_eq!(machine.deps(&["build"]), (Some(0), "deps: all there to build\n".to_owned()));
}

#[test]
fn the_exact_line_is_said_when_root_cannot_be_asked() {
    for (manager, line) in [
        ("apt-get", "--no-install-recommends -o DPkg::Lock::Timeout=300 gcc libc6-dev'"),
        ("dnf", "please run: sudo sh -c 'dnf install -y gcc glibc-devel'"),
        ("pacman", "please run: sudo sh -c 'pacman -Sy --needed --noconfirm gcc'"),
    ] {
        let (code, said) = Machine::new().with(manager, "echo called").deps(&["build"]);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("deps: missing: cc; installing with: "), "{said}");
        assert!(said.contains("deps: this needs root, please run: sudo sh -c '") && said.contains(line), "{said}");
        assert!(!said.contains("called"), "{said}");
    }
}

#[test]
fn sudo_is_used_where_it_does_not_ask() {
    let install = "echo '#!/bin/sh' > \"$HOME/cc\"; /bin/chmod +x \"$HOME/cc\"; echo \"installed $*\"";
    let machine = Machine::new().with("sudo", r#"[ "$1" = -n ] || exec "$@""#).with("dnf", install);
    let (code, said) = machine.deps(&["build"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("installed install -y gcc glibc-devel\n"), "{said}");
    assert!(said.ends_with("deps: all there to build\n"), "{said}");
}

#[test]
fn a_package_that_brings_no_tool_is_no_success() {
    let (code, said) = Machine::new().with("brew", "true").deps(&["build"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.ends_with("deps: still missing: cc\n"), "{said}");
}

#[test]
fn without_a_package_manager_it_says_what_to_install() {
    let (code, said) = Machine::new().deps(&["build"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("missing: cc; there is no apt-get, dnf, pacman or brew here"), "{said}");
}

#[test]
fn a_rust_too_old_is_replaced_by_rustup() {
    let install = "echo 'echo echo rustc 1.999.0 > \"$HOME/rustc\"; echo \"installer $*\"'";
    let machine = Machine::new().with("cc", "true").with("rustc", "echo rustc 1.63.0").with("curl", install);
    let (code, said) = machine.deps(&["build"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("Rust is missing or too old; installing it for this user with rustup"), "{said}");
    assert!(said.contains("installer -y --no-modify-path --profile minimal --default-toolchain none\n"), "{said}");
}
