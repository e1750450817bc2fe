//! A file system on a served disk: slow, with a volatile cache, and without power at times.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod nbd_client;
mod server;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use server::{MIB, Server, eventually, scratch};

/// Runs a program that administers disks; nothing where it is not installed, which is said.
fn run(program: &str, arguments: &[&str]) -> Option<Output> {
    // Debian keeps them out of an ordinary user's path.
    let path = std::env::var("PATH").unwrap() + ":/usr/local/sbin:/usr/sbin:/sbin";
    let out = Command::new(program).args(arguments).env("PATH", path).output().ok();
    if out.is_none() {
        let test = thread::current().name().unwrap_or("a test").to_owned();
        tests::skip(&test, &format!("needs {program}: apt-get install e2fsprogs fio"));
    }
    out
}

fn succeed(program: &str, arguments: &[&str]) -> Option<()> {
    let out = run(program, arguments)?;
    let said = [out.stdout, out.stderr].concat();
    assert!(out.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&said));
    Some(())
}

/// An ext4 on the device of a server.
struct Ext4 {
    server: Server,
    dir: tempfile::TempDir,
}

impl Ext4 {
    /// Nothing where it cannot be made.
    fn new(arguments: &[&str]) -> Option<Self> {
        let dir = scratch();
        File::create(dir.path().join("disk.img")).unwrap().set_len(256 * MIB).unwrap();
        fs::create_dir(dir.path().join("mount")).unwrap();
        let server = Server::start(dir.path(), &[&["--attach"], arguments].concat());
        let ext4 = Self { server, dir };
        succeed("mkfs.ext4", &["-q", &ext4.device()])?;
        Some(ext4)
    }

    fn device(&self) -> String {
        self.server.export("disk", "device").to_str().unwrap().to_owned()
    }

    fn mount(&self) -> Mounted {
        let at = self.dir.path().join("mount");
        succeed("mount", &["-t", "ext4", &self.device(), at.to_str().unwrap()]).unwrap();
        Mounted(at)
    }

    /// Whether there is nothing to repair.
    fn is_in_order(&self) -> Result<(), String> {
        let out = run("e2fsck", &["-fn", &self.device()]).unwrap();
        if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stdout).into_owned()) }
    }
}

struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let out = run("umount", &[self.0.to_str().unwrap()]).unwrap();
        assert!(out.status.success() || thread::panicking(), "{}", String::from_utf8_lossy(&out.stderr));
    }
}

/// A process that does not outlive its test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn fio(directory: &Path, arguments: &[&str]) -> Command {
    let mut fio = Command::new("fio");
    fio.args(["--name=stress", "--verify_state_save=0", "--ioengine=libaio", "--iodepth=16", "--bs=4k", "--numjobs=2"]);
    fio.arg(format!("--directory={}", directory.display())).args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    fio
}

/// What is in file `number`.
fn content(number: usize) -> Vec<u8> {
    format!("this is file {number}\n").repeat(300).into_bytes()
}

/// Makes files, each of them durable before the next, until it fails. Returns how many there are.
fn make_files(directory: &Path, first: usize) -> usize {
    let make = |number: usize| -> std::io::Result<()> {
        let mut file = File::create(directory.join(number.to_string()))?;
        file.write_all(&content(number))?;
        file.sync_all()?;
        File::open(directory)?.sync_all()
    };
    (first..).find(|number| make(*number).is_err()).unwrap()
}

/// The first of `count` files that is not as it was made.
fn first_lost(directory: &Path, count: usize) -> Option<usize> {
    (0..count).find(|number| fs::read(directory.join(number.to_string())).ok() != Some(content(*number)))
}

#[test]
fn a_file_system_on_a_slow_disk_with_a_volatile_cache() {
    tests::needs_root!();
    let Some(ext4) = Ext4::new(&["--latency", "read=50us,write=200us,flush=1ms", "--cache", "8M"]) else { return };
    let mounted = ext4.mount();
    let options = ["--rw=randwrite", "--size=24m", "--fsync=32", "--verify=crc32c", "--do_verify=1"];
    for direct in ["--direct=0", "--direct=1"] {
        let Ok(done) = fio(&mounted.0, &[&options[..], &[direct]].concat()).status() else {
            return tests::skip("a_file_system_on_a_slow_disk", "needs fio");
        };
        assert!(done.success(), "{direct}");
    }
    // Discards come through as well.
    let _ = succeed("fstrim", &[mounted.0.to_str().unwrap()]);
    drop(mounted);
    ext4.is_in_order().unwrap();
}

#[test]
fn what_was_durable_survives_power_cuts() {
    tests::needs_root!();
    let Some(ext4) = Ext4::new(&["--latency", "flush=500us", "--cache", "32M"]) else { return };
    let mut count = 0;
    for seed in 0..4 {
        let mounted = ext4.mount();
        assert_eq!(first_lost(&mounted.0, count), None, "seed {seed}");
        let writes =
            ["--rw=randwrite", "--size=16m", "--fsync=64", "--time_based", "--runtime=600", "--fallocate=none"];
        let Ok(load) = fio(&mounted.0, &writes).spawn() else {
            return tests::skip("what_was_durable_survives", "needs fio");
        };
        let mut load = Process(load);
        let at = mounted.0.clone();
        let files = thread::spawn(move || make_files(&at, count));
        let wanted = mounted.0.join((count + 20).to_string());
        eventually("files are made", || wanted.exists());
        let loss = ext4.server.ctl(&["power-cut", "--keep", "random", "--seed", &seed.to_string()]);
        let before = count;
        count = files.join().unwrap();
        assert!(count >= before + 20, "{loss}");
        load.0.wait().unwrap();
        drop(mounted);
        ext4.server.ctl(&["power-on"]);
        // The journal is replayed, and then there is nothing to repair.
        drop(ext4.mount());
        if let Err(said) = ext4.is_in_order() {
            panic!("seed {seed}, {loss}: {said}");
        }
    }
    assert_eq!(first_lost(&ext4.mount().0, count), None);
}

#[test]
fn a_disk_that_lies_about_flushes_loses_what_was_durable() {
    tests::needs_root!();
    let Some(ext4) = Ext4::new(&["--cache", "64M"]) else { return };
    ext4.server.ctl(&["flush"]);
    ext4.server.ctl(&["set", "faults", "lost,op=flush"]);
    let mounted = ext4.mount();
    let at = mounted.0.clone();
    let files = thread::spawn(move || make_files(&at, 0));
    let wanted = mounted.0.join("20");
    eventually("files are made", || wanted.exists());
    ext4.server.ctl(&["power-cut", "--keep", "none"]);
    let count = files.join().unwrap();
    drop(mounted);
    ext4.server.ctl(&["power-on"]);
    let mounted = ext4.mount();
    assert!(count >= 20 && first_lost(&mounted.0, count).is_some(), "all {count} files are there");
}
