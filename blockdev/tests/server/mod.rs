//! `vdisk serve` as a process of its own, for a test.
#![allow(dead_code, reason = "each test file uses some of it")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::nbd_client::Client;

pub const MIB: u64 = 1 << 20;

/// A name that nothing has. A socket's is short, whatever that of the test's directory is.
pub fn socket() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("onedisk-served-{}-{count}.sock", std::process::id()))
}

/// A server of `disk.img` in the test's directory, which has 8 MiB if it was not there before.
pub struct Server {
    pub child: Child,
    pub image: PathBuf,
    pub socket: PathBuf,
}

impl Server {
    /// Serves it over NBD, and as `arguments` say.
    pub fn start(dir: &Path, arguments: &[&str]) -> Self {
        let (image, socket) = (dir.join("disk.img"), socket());
        if !image.exists() {
            File::create(&image).unwrap().set_len(8 * MIB).unwrap();
        }
        let mut child = Command::new(env!("CARGO_BIN_EXE_vdisk"))
            .args(["serve", image.to_str().unwrap(), "--nbd", &format!("unix:{}", socket.display())])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(File::create(dir.join("said")).unwrap())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let said = || fs::read_to_string(dir.join("said")).unwrap();
        assert!(ready.starts_with("nbd+unix:///"), "{ready}{}", said());
        Self { child, image, socket }
    }

    pub fn client(&self, host: &str) -> Client {
        Client::at(&self.socket, host)
    }

    /// Where `host` finds it as a `kind`.
    pub fn export(&self, host: &str, kind: &str) -> PathBuf {
        let status = self.ctl(&["status"]);
        let exports = status["exports"].as_array().unwrap();
        let export = exports.iter().find(|export| export["host"] == host && export["kind"] == kind).unwrap();
        PathBuf::from(export["at"].as_str().unwrap())
    }

    pub fn try_ctl(&self, arguments: &[&str]) -> Output {
        vdisk(&[&["ctl", self.image.to_str().unwrap(), "--output", "json"], arguments].concat())
    }

    pub fn ctl(&self, arguments: &[&str]) -> Value {
        let out = self.try_ctl(arguments);
        assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    pub fn wait(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    /// What it has said on standard error until now.
    pub fn said(&self) -> String {
        fs::read_to_string(self.image.with_file_name("said")).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.socket);
        vdisk(&["list"]);
    }
}

pub fn vdisk(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vdisk")).args(arguments).output().unwrap()
}

pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Waits until it is so; how long that may take says nothing about the machine.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
