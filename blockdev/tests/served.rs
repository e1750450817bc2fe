//! A served disk from outside: `vdisk serve`, what can be done to it meanwhile, and what is left when it is killed.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod nbd_client;
mod server;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use server::{MIB, Server, scratch, socket, vdisk};

#[test]
fn layers_are_set_and_taken_away_while_it_is_used() {
    let dir = scratch();
    let server = Server::start(dir.path(), &["--latency", "read=1us", "--cache", "1M"]);
    let mut client = server.client("disk");
    assert_eq!(client.write(0, &[1; 512]), 0);
    let status = server.ctl(&["status"]);
    assert_eq!((&status["dirty"], &status["power"], &status["size"]), (&512.into(), &true.into(), &(8 * MIB).into()));
    assert_eq!(status["layers"]["cache"], MIB);
    server.ctl(&["flush"]);
    assert_eq!(server.ctl(&["status"])["dirty"], 0);
    server.ctl(&["set", "latency", "100ms"]);
    let began = Instant::now();
    assert_eq!(client.write(0, &[2; 512]), 0);
    assert!(began.elapsed() >= Duration::from_millis(100));
    server.ctl(&["set", "latency", "off"]);
    server.ctl(&["set", "faults", "eio,op=write,count=1", "enospc,op=write,count=1"]);
    assert_eq!((client.write(0, &[3; 512]), client.write(0, &[3; 512]), client.write(0, &[3; 512])), (5, 28, 0));
    assert_eq!(server.ctl(&["status"])["faults"], serde_json::json!([1, 1]));
    let layers = server.ctl(&["set", "faults", "off"]);
    assert_eq!(layers["faults"], serde_json::json!([]));
    // Bad input changes nothing.
    for bad in [&["set", "latency", "fast"][..], &["set", "queue-depth", "0"], &["set", "cache", "1", "2"]] {
        let out = server.try_ctl(bad);
        assert_eq!(out.status.code(), Some(2), "{bad:?}: {}", String::from_utf8_lossy(&out.stderr));
    }
    assert_eq!(server.ctl(&["status"])["layers"], layers);
    let view = vdisk(&["top", server.image.to_str().unwrap(), "--interval", "0.05", "--output", "json"]);
    let view: Value = serde_json::from_slice(&view.stdout).unwrap();
    assert_eq!(
        (&view["hosts"][0]["host"], &view["hosts"][0]["activity"][1]["operation"]),
        (&"disk".into(), &"write".into())
    );
    let text = vdisk(&["top", server.image.to_str().unwrap(), "--interval", "0.05"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("HOST") && text.contains("volatile cache  1 MiB") && !text.contains('\x1b'), "{text}");
}

#[test]
fn the_power_goes_and_comes_back() {
    let dir = scratch();
    let server = Server::start(dir.path(), &["--cache", "1M"]);
    let mut client = server.client("disk");
    assert_eq!(client.write(0, &[1; 4096]), 0);
    assert_eq!(client.ask(nbd_client::FLUSH, 0, 0, 0, &[]), 0);
    assert_eq!(client.write(0, &[2; 4096]), 0);
    let loss = server.ctl(&["power-cut", "--keep", "none"]);
    assert_eq!(loss, serde_json::json!({"unflushed": 1, "kept": 0, "torn": 0, "lost": 1}));
    assert_eq!(client.read(0, 4096), Err(5));
    assert_eq!(server.ctl(&["status"])["power"], false);
    server.ctl(&["power-on"]);
    assert_eq!(client.read(0, 4096), Ok(vec![1; 4096]));
}

#[test]
fn a_fenced_host_does_not_write_also_after_a_restart() {
    let dir = scratch();
    let hosts = ["--host", "a", "--host", "b"];
    let mut server = Server::start(dir.path(), &hosts);
    let (mut a, mut b) = (server.client("a"), server.client("b"));
    assert_eq!((a.write(0, &[1; 512]), b.write(512, &[2; 512])), (0, 0));
    let state = server.ctl(&["fence", "a"]);
    assert_eq!(state["fenced"], serde_json::json!(["a"]));
    assert_eq!((a.write(0, &[3; 512]), b.write(512, &[4; 512]), a.read(0, 512)), (1, 0, Ok(vec![1; 512])));
    assert_eq!(server.try_ctl(&["fence", "c"]).status.code(), Some(1), "nobody of that name");
    server.ctl(&["register", "b", "--key", "0x2"]);
    assert_eq!(server.try_ctl(&["register", "a", "--key", "1"]).status.code(), Some(3), "it was fenced");
    assert_eq!(server.try_ctl(&["reserve", "b", "--key", "3"]).status.code(), Some(3), "that is not its key");
    server.ctl(&["reserve", "b", "--key", "2"]);
    server.ctl(&["unfence", "a"]);
    assert_eq!(a.write(0, &[3; 512]), 1, "the other has reserved it");
    server.ctl(&["stop"]);
    assert_eq!(server.wait(), Some(0));
    assert!(!server.socket.exists());
    let server = Server::start(dir.path(), &hosts);
    assert_eq!((server.client("a").write(0, &[3; 512]), server.client("b").write(0, &[3; 512])), (1, 0));
    server.ctl(&["preempt", "b", "--key", "2", "--victim", "2"]);
    server.ctl(&["clear", "b", "--key", "2"]);
    assert_eq!(server.client("a").write(0, &[3; 512]), 0);
}

#[test]
fn what_is_in_the_cache_is_durable_after_an_orderly_end_and_lost_when_killed() {
    let dir = scratch();
    let mut server = Server::start(dir.path(), &["--cache", "1M"]);
    assert_eq!(server.client("disk").write(0, &[1; 512]), 0);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait(), Some(0));
    assert_eq!(fs::read(&server.image).unwrap()[..512], [1; 512]);
    let mut server = Server::start(dir.path(), &["--cache", "1M"]);
    let mut client = server.client("disk");
    assert_eq!(client.write(0, &[2; 512]), 0);
    server.signal(Signal::SIGKILL);
    server.wait();
    assert!(client.is_cut_off());
    assert_eq!(fs::read(&server.image).unwrap()[..512], [1; 512]);
    // The next command finds what it left behind, and says so.
    assert!(server.socket.exists());
    let out = vdisk(&["list"]);
    let said = String::from_utf8(out.stderr).unwrap();
    // Other tests look as well, and then theirs is the word.
    assert!(said.is_empty() || said.contains("was killed; it had left behind"), "{said}");
    assert!(!server.socket.exists());
    assert_eq!(server.try_ctl(&["status"]).status.code(), Some(1), "nobody serves it any more");
}

#[test]
fn control_is_for_its_user_and_survives_nonsense() {
    let dir = scratch();
    let server = Server::start(dir.path(), &[]);
    let status = server.ctl(&["status"]);
    assert_eq!(status["pid"], server.child.id());
    // Where it is, its user and root may know.
    let registry = if tests::is_root() {
        PathBuf::from("/run/onedisk")
    } else {
        std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).unwrap().join("onedisk")
    };
    let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&server.image).unwrap());
    let own = fs::read_dir(registry).unwrap().flatten().map(|entry| entry.path());
    let own = own.into_iter().find(|path| path.to_string_lossy().ends_with(&format!("-{inode:x}"))).unwrap();
    let control = own.join("control");
    assert_eq!(fs::metadata(&control).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(&own).unwrap().permissions().mode() & 0o777, 0o700);
    for nonsense in ["\n", "{}\n", "[1,2]\n", "{\"command\":\"status\",\"x\":1}\n", "\u{0}\u{ffff}\n"] {
        let mut stream = UnixStream::connect(&control).unwrap();
        stream.write_all(nonsense.as_bytes()).unwrap();
        let mut answer = String::new();
        BufReader::new(&stream).read_line(&mut answer).unwrap();
        assert!(answer.starts_with("{\"error\":") || answer.starts_with("{\"ok\":"), "{nonsense:?}: {answer}");
    }
    let mut endless = UnixStream::connect(&control).unwrap();
    // Until it has had enough of it.
    let _ = (0..64).try_for_each(|_| endless.write_all(&[b'x'; 65536]));
    let idle: Vec<_> = (0..100).map(|_| UnixStream::connect(&control)).collect();
    drop((idle, endless));
    let began = Instant::now();
    while !server.try_ctl(&["status"]).status.success() && began.elapsed() < Duration::from_secs(20) {}
    let socket = control.to_str().unwrap();
    assert!(vdisk(&["ctl", socket, "status"]).status.success(), "the socket itself is as good as the image");
}

#[test]
fn an_image_is_served_once() {
    let dir = scratch();
    let server = Server::start(dir.path(), &[]);
    let second = vdisk(&["serve", server.image.to_str().unwrap(), "--nbd", &format!("unix:{}", socket().display())]);
    assert_eq!(second.status.code(), Some(3));
    // It is as if the first had the disk alone: nothing of it is touched.
    assert_eq!(server.client("disk").write(0, &[1; 512]), 0);
}
