//! Connections and the processes that have them: one more than there can be, and who leaves before its children.
//!
//! It is a program of its own, with one thread: processes are forked from it.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]
#![allow(clippy::print_stdout, reason = "a test says so when it passes")]

mod common;

use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::thread::sleep;
use std::time::Duration;

use common::daemon::{Daemon, Kind};
use common::forked::spawn;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use pfs::client::Client;
use pfs::proto::{MountFlags, OpenFlags};

/// How many databases can be connected.
const CONNECTIONS: i32 = 7;

const CREATE: OpenFlags = OpenFlags(libc::O_CREAT | libc::O_RDWR);

/// A way to tell another process something, and to hear it.
fn channel() -> (PipeWriter, PipeReader) {
    let (reader, writer) = pipe().unwrap();
    (writer, reader)
}

/// Tells another process that it is time.
fn tell(mut writer: &PipeWriter) {
    writer.write_all(&[1]).unwrap();
}

/// Waits until another process has told that it is time.
fn heard(mut reader: &PipeReader) {
    reader.read_exact(&mut [0]).unwrap();
}

fn ended_well(pid: Pid) {
    assert_eq!(waitpid(pid, None).unwrap(), WaitStatus::Exited(pid, 0));
}

/// Whoever comes when there is no room is told so; the original never answers, and lets nobody in any more. Once somebody has
/// left, there is room.
fn one_more_than_there_can_be(daemon: Daemon) {
    let ((connected, is_connected), (go, may_go)) = (channel(), channel());
    let children: Vec<Pid> = (1..=CONNECTIONS)
        .map(|host| {
            spawn(|| {
                let client = Client::connect(&daemon.disk, &daemon.options(host, MountFlags::READ_WRITE)).unwrap();
                tell(&connected);
                heard(&may_go);
                client.umount().unwrap();
            })
        })
        .collect();
    children.iter().for_each(|_| heard(&is_connected));
    let last = daemon.options(CONNECTIONS + 1, MountFlags::READ_WRITE);
    let error = Client::connect(&daemon.disk, &last).unwrap_err();
    assert_eq!(error.errno(), Some(libc::ECONNREFUSED), "{error}");
    // Tools have connections of their own.
    let tool = daemon.options(0, MountFlags::READ_WRITE.with(MountFlags::TOOL));
    Client::connect(&daemon.disk, &tool).unwrap().umount().unwrap();
    tell(&go);
    let first = waitpid(None, None).unwrap();
    assert!(matches!(first, WaitStatus::Exited(_, 0)), "{first:?}");
    Client::connect(&daemon.disk, &last).unwrap().umount().unwrap();
    for _ in 1..children.len() {
        tell(&go);
    }
    children.into_iter().filter(|child| Some(*child) != first.pid()).for_each(ended_well);
    daemon.end();
}

/// The connection lasts as long as any process has it, and who leaves waits for the others.
fn who_leaves_waits_for_its_children(daemon: Daemon) {
    let client = daemon.connect();
    let file = client.open(daemon.path("file"), CREATE, 0o644).unwrap();
    let child = spawn(|| {
        sleep(Duration::from_millis(300));
        client.pwrite(&file, 0, &[1; 8192]).unwrap();
    });
    client.umount().unwrap();
    assert_eq!(waitpid(child, Some(WaitPidFlag::WNOHANG)).unwrap(), WaitStatus::Exited(child, 0));
    let client = daemon.connect();
    let mut read = [0; 8192];
    let file = client.open(daemon.path("file"), OpenFlags(0), 0).unwrap();
    assert_eq!(client.pread(&file, 0, &mut read).unwrap(), 8192);
    assert_eq!(read, [1; 8192]);
    client.umount().unwrap();
    daemon.end();
}

/// A database that stops at once does not wait: what its children ask from then on fails.
fn who_leaves_by_force_does_not_wait(daemon: Daemon) {
    let client = daemon.connect();
    let file = client.open(daemon.path("file"), CREATE, 0o644).unwrap();
    let ((left, has_left), (wrote, has_written)) = (channel(), channel());
    let child = spawn(|| {
        client.pwrite(&file, 0, &[1; 8192]).unwrap();
        tell(&wrote);
        heard(&has_left);
        client.pwrite(&file, 0, &[2; 8192]).unwrap_err();
    });
    heard(&has_written);
    client.umount_force().unwrap();
    assert_eq!(waitpid(child, Some(WaitPidFlag::WNOHANG)).unwrap(), WaitStatus::StillAlive);
    tell(&left);
    ended_well(child);
    daemon.end();
}

fn run(name: &str, kinds: &[Kind], test: fn(Daemon)) {
    for kind in kinds {
        match kind.missing() {
            Some(why) => tests::say_skipped(&format!("forks: {name}, {kind}"), why),
            None => {
                test(Daemon::new(*kind, 2));
                println!("test {name}, {kind} ... ok");
            }
        }
    }
}

fn main() {
    let both = [Kind::Ours, Kind::Original];
    run("one_more_than_there_can_be", &[Kind::Ours], one_more_than_there_can_be);
    run("who_leaves_waits_for_its_children", &both, who_leaves_waits_for_its_children);
    run("who_leaves_by_force_does_not_wait", &both, who_leaves_by_force_does_not_wait);
}
