//! The program `pfs` on a volume that a pfsd serves, ours or the original's: the same commands do and print the same as on the
//! disk itself.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::daemon::{Daemon, Kind, with_both};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pfs::client::Client;
use pfs::proto::MountFlags;

with_both! {
    after_c_everything_is_as_on_the_disk
    what_is_named_as_a_device_is_written_through_it
    tools_take_turns
}

fn start(args: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pfs"));
    command.args(args).env("TZ", "UTC").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It need not read all of it.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

/// What says where the daemon is, if that is not where everybody looks.
fn root(daemon: &Daemon) -> Vec<String> {
    match daemon.kind {
        Kind::Ours => vec!["--root".to_owned(), daemon.directory().to_str().unwrap().to_owned()],
        Kind::Original => Vec::new(),
    }
}

/// Runs `pfs` where it finds the daemon. Returns what it printed and said, and how it ended.
fn pfs(daemon: &Daemon, args: &[&str], input: &[u8]) -> (Vec<u8>, String, i32) {
    let root = root(daemon);
    let all: Vec<&str> = root.iter().map(String::as_str).chain(["--verbose"]).chain(args.iter().copied()).collect();
    let output = start(&all, input);
    (output.stdout, String::from_utf8_lossy(&output.stderr).into_owned(), output.status.code().unwrap())
}

/// Without what differs from one second to the next.
fn without_times(printed: &[u8]) -> String {
    let text = String::from_utf8_lossy(printed);
    let lines = text.lines().map(|line| {
        if ["access: ", "modify: ", "change: "].iter().any(|start| line.starts_with(start)) {
            return line[..8].to_owned();
        }
        // Sun Nov 22 17:21:58 2026
        let times: Vec<usize> = line.match_indices(" 20").map(|(at, _)| at + 5).filter(|end| *end >= 24).collect();
        let mut line = line.to_owned();
        for end in times.into_iter().rev() {
            if line.is_char_boundary(end) && line.as_bytes()[end - 8] == b':' {
                line.replace_range(end - 24..end, "TIME");
            }
        }
        line
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// What is done, in this order: arguments, in which `@` stands for the disk, and standard input.
fn commands(host: &Path) -> Vec<(Vec<String>, Vec<u8>)> {
    let large: Vec<u8> = (0..9_500_000u32).map(|index| (index % 251) as u8).collect();
    let from = host.join("from");
    fs::create_dir_all(from.join("below")).unwrap();
    fs::write(from.join("large"), &large).unwrap();
    fs::write(from.join("below/small"), b"small").unwrap();
    let from = from.to_str().unwrap();
    let to = host.join("to");
    let to = to.to_str().unwrap();
    let plain = [
        "ls @/",
        "mkdir @/a",
        "mkdir @/a",
        "mkdir -p @/a/b/c",
        "mkdir @/none/x",
        "touch @/a/file",
        "touch @/a/b",
        "write @/a/file < text",
        "write -o 100000 -l 50000 @/a/file < large",
        "read @/a/file",
        "read -o 3 -l 4 @/a/file",
        "read @/a",
        "read @/none",
        "stat @/a/file",
        "stat @/a",
        "stat @/none",
        "ls @/a",
        "ls @/a/file",
        "ls @/none",
        "tree @/",
        "tree -v @/a",
        "truncate -l 5 @/a/file",
        "truncate @/a/file",
        "truncate -l 5 @/a/b",
        "fallocate -o 0 -l 5000000 @/a/file",
        "fallocate -l 0 @/a/file",
        "stat @/a/file",
        "write @/.pfs-journal < text",
        "rm @/.pfs-paxos",
        "rename @/a/file @/a/b/file",
        "rename @/none @/x",
        "rename @/a @/a/b/c",
        "rmdir @/a/b",
        "rm @/a/b",
        "touch @/a/x1",
        "touch @/a/x2",
        "touch @/a/y1",
        "rm -w @/a/x*",
        "ls @/a",
        "rm @/none",
        "rmdir @/a/b/c",
        "rm -r @/a",
        "ls @/",
        "cp -r FROM @/copy",
        "cp FROM/large @/copy/large",
        "cp -f FROM/large @/copy/large",
        "cp FROM @/copy2",
        "tree @/copy",
        "read -o 9000000 @/copy/large",
        "cp -r @/copy TO",
        "cp @/copy/large @/copy/again",
        "du -a @/copy",
    ];
    let expand = |word: &str| word.replace("FROM", from).replace("TO", to);
    plain
        .iter()
        .map(|line| {
            let (line, input) = line.split_once(" < ").unwrap_or((line, ""));
            let input = if input == "large" { large.clone() } else { input.as_bytes().to_vec() };
            (line.split(' ').map(expand).collect(), input)
        })
        .collect()
}

fn after_c_everything_is_as_on_the_disk(daemon: Daemon) {
    let (image, directory) = common::copy("fresh-10g");
    // The same disk, as far as names go, of which no pfsd knows.
    let devices = directory.path().join("devices");
    fs::create_dir(&devices).unwrap();
    std::os::unix::fs::symlink(&image, devices.join(&daemon.disk)).unwrap();
    let devices = devices.to_str().unwrap();
    // What is only read is read on the disk, which has to be found by its name.
    let own = daemon.directory().join("devices");
    fs::create_dir(&own).unwrap();
    std::os::unix::fs::symlink(daemon.device(), own.join(&daemon.disk)).unwrap();
    let own = own.to_str().unwrap();
    let host = daemon.directory().join("host");
    for (args, input) in commands(&host) {
        let disk = format!("/{}", daemon.disk);
        let args: Vec<String> = args.iter().map(|arg| arg.replace('@', &disk)).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let _ = fs::remove_dir_all(host.join("to"));
        let (printed, said, code) =
            pfs(&daemon, &[&["-C", "disk", "--devices", own], args.as_slice()].concat(), &input);
        let _ = fs::remove_dir_all(host.join("to"));
        let direct = start(&[&["-C", "disk", "--devices", devices, "-E", "0"], args.as_slice()].concat(), &input);
        assert_eq!(Some(code), direct.status.code(), "{args:?}: {said}");
        assert_eq!(without_times(&printed), without_times(&direct.stdout), "{args:?}: {said}");
        if !["cp", "du"].contains(&args[0]) {
            let through = format!("through the pfsd of {}", daemon.disk);
            assert!(said.contains(&through), "{args:?}: {said}");
        }
    }
    daemon.end();
}

fn what_is_named_as_a_device_is_written_through_it(mut daemon: Daemon) {
    let device = daemon.device().to_str().unwrap().to_owned();
    let client = daemon.connect();
    let through = format!("through the pfsd of {}", daemon.disk);
    let written = |daemon: &Daemon, path: &str| {
        let (_, said, code) = pfs(daemon, &["mkdir", &format!("{device}:{path}")], b"");
        assert_eq!(code, 0, "{said}");
        said
    };
    assert!(written(&daemon, "/a").contains(&through));
    client.stat(daemon.path("a")).unwrap();
    // Reading disturbs nobody, and sees it.
    let (printed, said, code) = pfs(&daemon, &["ls", &format!("{device}:/")], b"");
    assert_eq!((code, String::from_utf8_lossy(&printed).contains("  a\n")), (0, true), "{said}");
    assert!(said.contains(&format!("on {device}")), "{said}");
    // So does copying, which is written in several pieces.
    let source = daemon.directory().join("source");
    let bytes: Vec<u8> = (0..13_000_000u32).map(|index| (index % 253) as u8).collect();
    fs::write(&source, &bytes).unwrap();
    let (_, said, code) = pfs(&daemon, &["cp", source.to_str().unwrap(), &format!("{device}:/a/file")], b"");
    assert_eq!((code, said.contains(&through)), (0, true), "{said}");
    assert!(pfs(&daemon, &["read", &format!("{device}:/a/file")], b"").0 == bytes);
    client.umount().unwrap();
    // Without a daemon it goes on by itself.
    daemon.stop(Signal::SIGINT);
    assert!(!written(&daemon, "/b").contains("through"));
    daemon.start();
    let client = daemon.connect();
    client.stat(daemon.path("b")).unwrap();
    if !daemon.is_original() {
        // Who does not want the daemon that writes to be asked is refused.
        let (_, said, code) = pfs(&daemon, &["-E", "0", "mkdir", &format!("{device}:/c")], b"");
        assert_eq!(code, 3, "{said}");
    }
    client.umount().unwrap();
    daemon.end();
}

fn tools_take_turns(mut daemon: Daemon) {
    let client = Client::connect(&daemon.disk, &daemon.options(1, MountFlags::READ_WRITE)).unwrap();
    std::thread::scope(|scope| {
        for index in 0..8 {
            let daemon = &daemon;
            scope.spawn(move || {
                let path = daemon.path(&format!("{index}"));
                let (_, said, code) = pfs(daemon, &["-t", "60", "-C", "disk", "mkdir", &path], b"");
                assert_eq!(code, 0, "{said}");
            });
        }
    });
    let made = client.readdir(daemon.path("")).unwrap();
    assert_eq!(made.iter().filter(|entry| entry.is_directory).count(), 8);
    client.umount().unwrap();
    // One that appears in time is waited for, by who says so.
    daemon.stop(Signal::SIGINT);
    let mut args = root(&daemon);
    args.extend(["--verbose", "-C", "disk", "-t", "60", "mkdir"].map(str::to_owned));
    args.push(daemon.path("late"));
    let waiting = std::thread::spawn(move || start(&args.iter().map(String::as_str).collect::<Vec<_>>(), b""));
    std::thread::sleep(Duration::from_millis(300));
    daemon.start();
    let output = waiting.join().unwrap();
    assert!(output.status.success() && String::from_utf8_lossy(&output.stderr).contains("through"), "{output:?}");
    daemon.end();
}

/// Who follows a file through a daemon is in nobody's way.
#[test]
fn tail_follows_through_a_daemon() {
    let daemon = Daemon::new(Kind::Ours, 1);
    let client = daemon.connect();
    let path = daemon.path("log");
    let file = client.create(&path).unwrap();
    let mut args = root(&daemon);
    args.extend(["--verbose", "-C", "disk", "tail", "--interval", "5", &path].map(str::to_owned));
    let mut command = Command::new(env!("CARGO_BIN_EXE_pfs"));
    let child = command.args(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It is connected as soon as it has a file.
    let started = Instant::now();
    while daemon.clients().len() < 2 {
        assert!(started.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(500));
    for line in ["one\n", "two\n", "three\n"] {
        client.append(&file, line.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        // Others write meanwhile.
        let (_, said, code) = pfs(&daemon, &["-C", "disk", "touch", &daemon.path("other")], b"");
        assert_eq!(code, 0, "{said}");
    }
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.stdout.starts_with(b"one\ntwo\nthree\n"), "{output:?}");
    client.umount().unwrap();
    daemon.end();
}
