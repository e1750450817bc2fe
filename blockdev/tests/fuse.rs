//! A served disk as files and as block devices of this machine: `vdisk serve --fuse --attach`.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod nbd_client;
mod server;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use blockdev::loopdev;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::signal::Signal;
use server::{MIB, Server, eventually, scratch, vdisk};

/// Serves the disk in `files` of the test's directory, and as devices.
fn serve(dir: &Path, arguments: &[&str]) -> Server {
    let files = dir.join("files");
    Server::start(dir, &[&["--fuse", files.to_str().unwrap(), "--attach"], arguments].concat())
}

fn open(path: &Path, flags: i32) -> File {
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).unwrap()
}

/// What direct I/O takes: a page.
#[repr(align(4096))]
struct Page([u8; 4096]);

/// Writes a page to a device, past its cache.
fn write_page(device: &File, offset: u64, byte: u8) -> std::io::Result<()> {
    device.write_all_at(&Page([byte; 4096]).0, offset)
}

fn read_page(device: &File, offset: u64) -> std::io::Result<[u8; 4096]> {
    let mut page = Page([0xee; 4096]);
    device.read_exact_at(&mut page.0, offset).map(|()| page.0)
}

fn errno<T: std::fmt::Debug>(outcome: std::io::Result<T>) -> i32 {
    outcome.unwrap_err().raw_os_error().unwrap()
}

fn is_mounted(at: &Path) -> bool {
    fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&format!(" {} ", at.display()))
}

/// fio, which must be there.
fn fio(target: &Path, arguments: &[&str]) -> Command {
    let mut fio = Command::new("fio");
    fio.args(["--name=v", "--verify_state_save=0", "--output-format=terse", "--bs=4k", "--iodepth=32"]);
    fio.arg(format!("--filename={}", target.display())).args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    fio
}

#[test]
fn a_file_a_device_and_a_client_are_the_same_disk() {
    tests::needs_root!();
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    let mut client = server.client("disk");
    let file = open(&server.export("disk", "file"), 0);
    let device = open(&server.export("disk", "device"), libc::O_DIRECT);
    assert_eq!(client.write(4096, &[1; 4096]), 0);
    assert_eq!(read_page(&device, 4096).unwrap(), [1; 4096]);
    let mut some = [0; 1000];
    // Any part of it can be read, also over its end.
    file.read_exact_at(&mut some, 4001).unwrap();
    assert_eq!((some[..95].iter().max(), some[95..].iter().min()), (Some(&0), Some(&1)));
    assert_eq!((file.read_at(&mut some, 8 * MIB - 10).unwrap(), file.read_at(&mut some, 8 * MIB).unwrap()), (10, 0));
    write_page(&device, 8192, 2).unwrap();
    assert_eq!(client.read(8192, 4096), Ok(vec![2; 4096]));
    file.write_all_at(&[3; 512], 512).unwrap();
    assert_eq!(client.read(0, 1024), Ok([[0; 512], [3; 512]].concat()));
    // A large one, which the kernel sends in parts, from memory that begins anywhere.
    let large: Vec<u8> = (0..3u32 << 20).map(|index| index.to_le_bytes()[1]).collect();
    for skipped in [0, 1, 4095] {
        let memory = [&vec![0; skipped][..], &large].concat();
        file.write_all_at(&memory[skipped..], MIB).unwrap();
        assert!(client.read(MIB, 3 << 20) == Ok(large.clone()), "{skipped}");
        let mut back = vec![0; memory.len()];
        file.read_exact_at(&mut back[skipped..], MIB).unwrap();
        assert!(back[skipped..] == large, "{skipped}");
    }
    // Holes and zeroes, as far as the size stays.
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, punch, 4096, 4096).unwrap();
    fallocate(&file, FallocateFlags::FALLOC_FL_ZERO_RANGE, 8192, 4096).unwrap();
    assert_eq!(client.read(4096, 8192), Ok(vec![0; 8192]));
    file.sync_all().unwrap();
    device.sync_all().unwrap();
    let counts = server.ctl(&["status"])["hosts"][0]["counts"].clone();
    let flushes = counts.as_array().unwrap().iter().find(|count| count["operation"] == "flush").unwrap();
    assert!(flushes["operations"].as_u64() >= Some(2), "{counts}");
}

#[test]
fn what_no_disk_does_is_refused() {
    tests::needs_root!();
    let dir = scratch();
    let server = serve(dir.path(), &["--host", "a", "--host", "b"]);
    let files = dir.path().join("files");
    assert_eq!(tests::names_in(&files), ["a", "b"]);
    let file = open(&files.join("a"), 0);
    assert_eq!(file.metadata().unwrap().len(), 8 * MIB);
    assert_eq!(errno(file.write_at(&[1; 512], 8 * MIB)), libc::ENOSPC);
    assert_eq!(errno(file.write_at(&[1; 100], 0)), libc::EINVAL);
    assert_eq!(errno(file.write_at(&[1; 512], 100)), libc::EINVAL);
    assert_eq!(errno(file.set_len(0)), libc::EPERM);
    file.set_len(8 * MIB).unwrap();
    let grows = fallocate(&file, FallocateFlags::empty(), 0, 16 * 1024 * 1024);
    assert!(grows.is_err(), "it does not grow");
    assert!(File::create(files.join("c")).is_err());
    assert!(fs::remove_file(files.join("a")).is_err() && fs::rename(files.join("a"), files.join("c")).is_err());
    assert!(fs::hard_link(files.join("a"), files.join("c")).is_err() && fs::create_dir(files.join("c")).is_err());
    assert_eq!(server.client("a").read(0, 8192), Ok(vec![0; 8192]), "nothing of all that was done");
}

#[test]
fn a_disk_that_is_only_read_is_not_written() {
    tests::needs_root!();
    let dir = scratch();
    let server = serve(dir.path(), &["--read-only"]);
    let (file, device) = (server.export("disk", "file"), server.export("disk", "device"));
    assert_eq!(errno(OpenOptions::new().write(true).open(&file)), libc::EROFS);
    let device = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(device).unwrap();
    assert_eq!(read_page(&device, 0).unwrap(), [0; 4096]);
    assert!(loopdev::list().iter().any(|device| device.backing_file == file && device.read_only));
}

#[test]
fn much_is_in_flight_and_arrives() {
    tests::needs_root!();
    let dir = scratch();
    for arguments in [&[][..], &["--direct", "--latency", "1ms"], &["--engine", "threads", "--cache", "1M"]] {
        let server = serve(dir.path(), arguments);
        for (kind, engine) in
            [("file", "--ioengine=psync"), ("device", "--ioengine=libaio"), ("file", "--ioengine=libaio")]
        {
            let options = [engine, "--direct=1", "--rw=randwrite", "--size=8m", "--verify=crc32c", "--do_verify=1"];
            let done = fio(&server.export("disk", kind), &options).status();
            let Ok(done) = done else { return tests::skip("much_is_in_flight_and_arrives", "needs fio") };
            assert!(done.success(), "{arguments:?} {kind} {engine}");
        }
        let top = vdisk(&["top", server.image.to_str().unwrap(), "--interval", "0.05"]);
        let top = String::from_utf8(top.stdout).unwrap();
        assert!(top.contains(server.export("disk", "device").to_str().unwrap()), "{top}");
    }
}

#[test]
fn many_writes_are_on_their_way_to_a_slow_disk_at_once() {
    tests::needs_root!();
    let dir = scratch();
    let server = serve(dir.path(), &["--latency", "write=500ms"]);
    let mut done = Vec::new();
    for kind in ["file", "device"] {
        let options = ["--ioengine=libaio", "--direct=1", "--rw=write", "--size=128k", "--iodepth=32"];
        let began = Instant::now();
        let outcome = fio(&server.export("disk", kind), &options).status();
        let Ok(outcome) = outcome else { return tests::skip("many_writes_are_on_their_way", "needs fio") };
        assert!(outcome.success());
        done.push(began.elapsed());
    }
    // One after the other, 32 take 16 s.
    assert!(done.iter().all(|time| *time < Duration::from_secs(12)), "{done:?}");
}

#[test]
fn a_fenced_host_writes_neither_its_file_nor_its_device() {
    tests::needs_root!();
    let dir = scratch();
    let server = serve(dir.path(), &["--host", "a", "--host", "b"]);
    let of = |host| {
        let device = open(&server.export(host, "device"), libc::O_DIRECT);
        (open(&server.export(host, "file"), 0), device)
    };
    let ((a, a_device), (b, b_device)) = (of("a"), of("b"));
    a.write_all_at(&[1; 4096], 0).unwrap();
    write_page(&a_device, 4096, 1).unwrap();
    server.ctl(&["fence", "a"]);
    assert_eq!(errno(a.write_at(&[2; 4096], 0)), libc::EBADE);
    assert_eq!(errno(write_page(&a_device, 4096, 2)), libc::EBADE);
    assert_eq!((read_page(&a_device, 0).unwrap(), read_page(&a_device, 4096).unwrap()), ([1; 4096], [1; 4096]));
    b.write_all_at(&[3; 4096], 0).unwrap();
    write_page(&b_device, 4096, 3).unwrap();
    server.ctl(&["unfence", "a"]);
    write_page(&a_device, 0, 4).unwrap();
    assert_eq!(read_page(&b_device, 0).unwrap(), [4; 4096]);
}

#[test]
fn without_power_a_device_has_only_errors() {
    tests::needs_root!();
    let dir = scratch();
    let server = serve(dir.path(), &["--cache", "1M"]);
    let device = open(&server.export("disk", "device"), libc::O_DIRECT);
    write_page(&device, 0, 1).unwrap();
    device.sync_all().unwrap();
    write_page(&device, 0, 2).unwrap();
    assert_eq!(server.ctl(&["power-cut", "--keep", "none"])["lost"], 1);
    assert_eq!((errno(write_page(&device, 0, 3)), errno(read_page(&device, 0))), (libc::EIO, libc::EIO));
    server.ctl(&["power-on"]);
    assert_eq!(read_page(&device, 0).unwrap(), [1; 4096]);
}

#[test]
fn an_end_waits_for_who_uses_a_device_and_leaves_nothing() {
    tests::needs_root!();
    let dir = scratch();
    let mut server = serve(dir.path(), &["--cache", "1M"]);
    let files = dir.path().join("files");
    let path = server.export("disk", "device");
    // Through the page cache: it is written when the device goes at the latest.
    let device = open(&path, 0);
    device.write_all_at(&[7; 4096], 0).unwrap();
    server.signal(Signal::SIGTERM);
    eventually("it says who uses it", || server.said().contains("cannot be detached"));
    let said = server.said();
    assert!(said.contains(&format!("(pid {})", std::process::id())), "{said}");
    assert!(server.child.try_wait().unwrap().is_none() && is_mounted(&files));
    device.write_all_at(&[8; 4096], 4096).unwrap();
    drop(device);
    assert_eq!(server.wait(), Some(0), "{}", server.said());
    let image = fs::read(&server.image).unwrap();
    assert_eq!((&image[..4096], &image[4096..8192]), (&[7; 4096][..], &[8; 4096][..]));
    assert!(!is_mounted(&files) && !files.exists());
    assert!(!loopdev::list().iter().any(|device| device.backing_file.starts_with(dir.path())));
    // A directory that was there before stays.
    fs::create_dir(&files).unwrap();
    let mut server = serve(dir.path(), &[]);
    server.ctl(&["stop"]);
    assert_eq!(server.wait(), Some(0), "{}", server.said());
    assert!(!is_mounted(&files) && files.exists());
}

#[test]
fn impatience_ends_it_at_once() {
    tests::needs_root!();
    let dir = scratch();
    let mut server = serve(dir.path(), &[]);
    let device = open(&server.export("disk", "device"), libc::O_DIRECT);
    server.signal(Signal::SIGINT);
    eventually("it says who uses it", || server.said().contains("cannot be detached"));
    std::thread::sleep(Duration::from_millis(1100));
    server.signal(Signal::SIGINT);
    assert_eq!(server.wait(), Some(130));
    assert_eq!(errno(read_page(&device, 0)), libc::EIO);
}

#[test]
fn a_directory_with_something_in_it_is_refused() {
    tests::needs_root!();
    let dir = scratch();
    let (image, files) = (dir.path().join("disk.img"), dir.path().join("files"));
    File::create(&image).unwrap().set_len(MIB).unwrap();
    fs::create_dir(&files).unwrap();
    fs::write(files.join("precious"), "x").unwrap();
    let out = vdisk(&["serve", image.to_str().unwrap(), "--fuse", files.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(3), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(!is_mounted(&files) && files.join("precious").exists());
}

/// A process that does not outlive its test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The next command cleans up what a server has left that served the disk in `dir`. Other tests look as well, and then theirs is
/// the word, a moment later.
fn cleans_up(dir: &Path) {
    let said = String::from_utf8(vdisk(&["list"]).stderr).unwrap();
    assert!(said.is_empty() || said.contains("was killed; it had left behind"), "{said}");
    let files = dir.join("files");
    eventually("its devices are detached", || {
        !loopdev::list().iter().any(|device| device.backing_file.starts_with(&files))
    });
    eventually("its files are gone", || !is_mounted(&files) && !files.exists());
}

#[test]
fn a_server_that_is_killed_leaves_errors_and_the_next_command_cleans_up() {
    tests::needs_root!();
    let dir = scratch();
    // Somebody else's device, on a file of theirs.
    let theirs = dir.path().join("theirs.img");
    File::create(&theirs).unwrap().set_len(MIB).unwrap();
    let theirs = loopdev::attach(&theirs, &loopdev::Options::default()).unwrap();
    for arguments in [&["--latency", "1ms"][..], &["--cache", "4M"], &["--fault", "stuck,op=write,probability=0.01"]] {
        let mut server = serve(dir.path(), arguments);
        let (file, device) = (server.export("disk", "file"), server.export("disk", "device"));
        let endless = ["--ioengine=libaio", "--direct=1", "--rw=randrw", "--size=8m", "--time_based", "--runtime=600"];
        let users = [fio(&device, &endless), fio(&file, &endless)].map(|mut fio| fio.spawn());
        let [Ok(on_device), Ok(on_file)] = users else { return tests::skip("a_server_that_is_killed", "needs fio") };
        let mut users = [Process(on_device), Process(on_file)];
        // Pages that are not written yet when the server goes, and nobody who writes them afterwards.
        let cached = open(&device, 0);
        cached.write_all_at(&[9; 1 << 20], 0).unwrap();
        let counts = |server: &Server| server.ctl(&["status"])["hosts"][0]["counts"][1]["operations"].as_u64();
        eventually("there is I/O", || counts(&server) > Some(100));
        server.signal(Signal::SIGKILL);
        assert_eq!(server.wait(), None);
        // Nobody hangs: who has it open gets errors, and so ends.
        for user in &mut users {
            let mut status = None;
            eventually("fio ends", || {
                status = user.0.try_wait().unwrap();
                status.is_some()
            });
            assert!(!status.unwrap().success(), "{arguments:?}");
        }
        let direct = open(&device, libc::O_DIRECT);
        assert_eq!((errno(write_page(&direct, 0, 1)), errno(read_page(&direct, 4096))), (libc::EIO, libc::EIO));
        assert!(File::open(&file).is_err());
        drop((direct, cached));
        cleans_up(dir.path());
        assert!(loopdev::list().contains(theirs.device()), "that is none of ours");
    }
    theirs.detach().unwrap();
}

#[test]
fn a_server_that_is_killed_while_it_starts_leaves_nothing_either() {
    tests::needs_root!();
    let dir = scratch();
    let (image, files) = (dir.path().join("disk.img"), dir.path().join("files"));
    File::create(&image).unwrap().set_len(MIB).unwrap();
    let arguments = ["serve", image.to_str().unwrap(), "--attach", "--fuse", files.to_str().unwrap()];
    let mut served = 0;
    // Later and later, until some of them had attached something: when that is depends on the machine.
    for delay in (0u64..).map(|round| round * round / 20) {
        let mut server = Command::new(env!("CARGO_BIN_EXE_vdisk"));
        let mut server = server.args(arguments).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        served += i32::from(loopdev::list().iter().any(|device| device.backing_file.starts_with(&files)));
        server.kill().unwrap();
        server.wait().unwrap();
        cleans_up(dir.path());
        if served >= 5 {
            return;
        }
    }
}

#[test]
fn a_server_that_is_killed_while_it_waits_for_its_own_disk_is_gone() {
    tests::needs_root!();
    let dir = scratch();
    let (image, files) = (dir.path().join("disk.img"), dir.path().join("files"));
    File::create(&image).unwrap().set_len(MIB).unwrap();
    // Attaching flushes the file, which takes a minute.
    let arguments = ["serve", image.to_str().unwrap(), "--attach", "--fuse", files.to_str().unwrap()];
    let mut server = Command::new(env!("CARGO_BIN_EXE_vdisk"));
    let server = server.args(arguments).args(["--latency", "flush=60s"]).stdout(Stdio::null()).spawn().unwrap();
    let mut server = Process(server);
    eventually("it attaches its file", || {
        let tasks = fs::read_dir(format!("/proc/{}/task", server.0.id())).unwrap().flatten();
        tasks.into_iter().any(|task| {
            let waits = fs::read_to_string(task.path().join("wchan")).unwrap_or_default();
            fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name == "loop\n") && waits.contains("request")
        })
    });
    let began = Instant::now();
    server.0.kill().unwrap();
    server.0.wait().unwrap();
    assert!(began.elapsed() < Duration::from_secs(30), "it took {:?} to die", began.elapsed());
    cleans_up(dir.path());
}
