//! A disk served over NBD: to clients that nobody here wrote, and to one that says what no decent client would.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod nbd_client;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use blockdev::ByteSize;
use blockdev::emulate::nbd::Address;
use blockdev::emulate::{Counts, DiskOptions, Keep, Options, Served};
use blockdev::engine::Choice;
use nbd_client::{BLOCK_STATUS, Client, DISC, FLUSH, FUA, READ, TRIM, WRITE, WRITE_ZEROES};

const MIB: u64 = 1 << 20;

/// An image of 16 MiB that is served, and everything that goes with it.
struct Fixture {
    served: Option<Served>,
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new(disk: DiskOptions) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let socket = socket();
        let image = dir.path().join("disk.img");
        File::create(&image).unwrap().set_len(16 * MIB).unwrap();
        let options = Options { disk, nbd: vec![Address::Unix(socket)], ..Options::default() };
        let served = Some(Served::start(&image, &options).unwrap());
        Self { served, dir }
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("disk.img")
    }

    fn socket(&self) -> PathBuf {
        let uri = self.uri();
        PathBuf::from(uri.split_once("socket=").unwrap().1)
    }

    fn uri(&self) -> String {
        self.served.as_ref().unwrap().exports()[0].at.clone()
    }

    fn client(&self) -> Client {
        Client::at(&self.socket(), "disk")
    }

    fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        File::open(self.image()).unwrap().read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }
}

/// A name that nothing has. A socket's is short, whatever that of the test's directory is.
fn socket() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("onedisk-nbd-{}-{count}.sock", std::process::id()))
}

/// A process that does not outlive its test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Every way to carry the I/O.
fn each_way(test: impl Fn(&Fixture)) {
    for engine in [Choice::Uring, Choice::Threads] {
        for direct_io in [false, true] {
            let fixture = Fixture::new(DiskOptions { engine, direct_io, ..DiskOptions::default() });
            test(&fixture);
        }
    }
}

/// Runs a program that must succeed; its output. Nothing where it is not installed, which is said.
fn run(test: &str, program: &str, arguments: &[&str]) -> Option<String> {
    match Command::new(program).args(arguments).output() {
        Ok(out) => {
            let said = String::from_utf8_lossy(&out.stdout).into_owned();
            assert!(out.status.success(), "{program} {arguments:?}: {said}{}", String::from_utf8_lossy(&out.stderr));
            Some(said)
        }
        Err(_) => {
            tests::skip(test, &format!("needs {program}: apt-get install nbdkit libnbd-bin qemu-utils fio"));
            None
        }
    }
}

#[test]
fn every_command_does_what_it_says() {
    each_way(|fixture| {
        let mut client = fixture.client();
        let data = vec![7; 8192];
        assert_eq!(client.write(4096, &data), 0);
        assert_eq!(client.read(4096, 8192), Ok(data.clone()));
        assert_eq!(fixture.bytes(4096, 8192), data);
        assert_eq!(client.ask(FLUSH, 0, 0, 0, &[]), 0);
        assert_eq!(client.ask(WRITE, FUA, 512, 512, &[9; 512]), 0);
        assert_eq!(client.ask(WRITE_ZEROES, 0, 4096, 4096, &[]), 0);
        assert_eq!(fixture.bytes(4096, 4096), vec![0; 4096]);
        assert_eq!(client.ask(WRITE_ZEROES, 2 | FUA, 8192, 4096, &[]), 0, "NO_HOLE");
        assert_eq!(fixture.bytes(8192, 4096), vec![0; 4096]);
        assert_eq!(client.ask(TRIM, FUA, 0, 1 << 20, &[]), 0);
        assert_eq!(fixture.bytes(512, 512), vec![0; 512]);
        // A large one goes straight into its place, also when it comes in drops.
        let large: Vec<u8> = (0..3u32 << 20).map(|index| index.to_le_bytes()[1]).collect();
        assert_eq!(client.write(MIB, &large), 0);
        assert_eq!(client.read(MIB, 3 << 20), Ok(large));
        client.send(DISC, 0, 0, 0, &[]);
        assert!(client.is_cut_off());
    });
}

#[test]
fn zeroes_that_are_to_be_allocated_are_written() {
    let fixture = Fixture::new(DiskOptions::default());
    let mut client = fixture.client();
    assert_eq!(client.ask(WRITE_ZEROES, 2, 0, 1 << 20, &[]), 0);
    assert_eq!(client.ask(FLUSH, 0, 0, 0, &[]), 0);
    assert!(fs::metadata(fixture.image()).unwrap().blocks() * 512 >= MIB);
    let summary = blockdev::extents::summarize_path(&fixture.image()).unwrap();
    assert_eq!(summary.written, ByteSize::mib(1), "{summary}");
}

#[test]
fn many_requests_are_in_flight_at_once() {
    each_way(|fixture| {
        let mut client = fixture.client();
        // More than the server takes at once, and their replies are not read meanwhile.
        let mut waiting = std::collections::BTreeMap::new();
        for index in 0..300u64 {
            let byte = u8::try_from(index % 250).unwrap() + 1;
            let cookie = client.send(WRITE, 0, index * 4096, 4096, &[byte; 4096]);
            waiting.insert(cookie, byte);
        }
        while !waiting.is_empty() {
            let (cookie, error) = client.reply();
            assert_eq!(error, 0);
            assert!(waiting.remove(&cookie).is_some());
        }
        let cookies: Vec<u64> = (0..300).map(|index| client.send(READ, 0, index * 4096, 4096, &[])).collect();
        for _ in &cookies {
            let (cookie, error) = client.reply();
            let index = cookie - cookies[0];
            let mut data = [0; 4096];
            std::io::Read::read_exact(&mut client.stream, &mut data).unwrap();
            assert_eq!((error, data), (0, [u8::try_from(index % 250).unwrap() + 1; 4096]), "block {index}");
        }
    });
}

#[test]
fn what_is_wrong_is_refused_and_the_connection_goes_on() {
    const EPERM: u32 = 1;
    const EINVAL: u32 = 22;
    const ENOSPC: u32 = 28;
    let fixture = Fixture::new(DiskOptions::default());
    let mut client = fixture.client();
    let end = 16 * MIB;
    for (command, flags, offset, len, data, error) in [
        (READ, 0, end, 512, 0, EINVAL),
        (READ, 0, end - 512, 1024, 0, EINVAL),
        (READ, 0, u64::MAX - 511, 512, 0, EINVAL),
        (READ, 0, 1, 512, 0, EINVAL),
        (READ, 0, 0, 511, 0, EINVAL),
        (READ, 0, 0, 0, 0, EINVAL),
        (READ, 0, 0, u32::MAX, 0, EINVAL),
        (READ, 1 << 9, 0, 512, 0, EINVAL),
        (WRITE, 0, end, 512, 512, ENOSPC),
        (WRITE, 0, 1, 512, 512, EINVAL),
        (WRITE, 1 << 9, 0, 4096, 4096, EINVAL),
        (TRIM, 0, end, 512, 0, EINVAL),
        (WRITE_ZEROES, 0, end - 512, 1024, 0, ENOSPC),
        (WRITE_ZEROES, 1 << 4, 0, 512, 0, EINVAL),
        (FLUSH, 0, 0, 512, 0, EINVAL),
        (BLOCK_STATUS, 0, 0, 512, 0, EINVAL),
        (99, 0, 0, 512, 0, EINVAL),
    ] {
        let data = vec![1; data];
        assert_eq!(client.ask(command, flags, offset, len, &data), error, "{command} {flags} {offset} {len}");
    }
    // A write that is too long for anybody is read to its end, and refused.
    let long = vec![1; (32 << 20) + 512];
    assert_eq!(client.write(0, &long), EINVAL);
    assert_eq!(client.read(0, 512), Ok(vec![0; 512]), "nothing of all that was written");

    let fixture = Fixture::new(DiskOptions { read_only: true, ..DiskOptions::default() });
    let mut client = fixture.client();
    assert_eq!(client.write(0, &[1; 512]), EPERM);
    assert_eq!(client.ask(TRIM, 0, 0, 512, &[]), EPERM);
    assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
}

#[test]
fn structured_replies_and_block_status() {
    let fixture = Fixture::new(DiskOptions::default());
    let mut client = Client::connect(&fixture.socket());
    let query = |name: &str, contexts: &[&str]| {
        let string = |text: &str| [&u32::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat();
        let count = u32::try_from(contexts.len()).unwrap().to_be_bytes().to_vec();
        [string(name), count, contexts.iter().flat_map(|context| string(context)).collect()].concat()
    };
    // Before structured replies, there are no contexts.
    assert_eq!(
        client.option(10, &query("disk", &["base:allocation"])),
        [(1 << 31 | 3, b"first: structured replies".to_vec())]
    );
    assert_eq!(client.option(8, &[]), [(1, vec![])]);
    let context = [&1u32.to_be_bytes()[..], b"base:allocation"].concat();
    let listed = [&0u32.to_be_bytes()[..], b"base:allocation"].concat();
    for queries in [&[][..], &["base:"], &["base:allocation", "qemu:x"]] {
        assert_eq!(client.option(9, &query("disk", queries)), [(4, listed.clone()), (1, vec![])]);
    }
    assert_eq!(client.option(10, &query("nobody", &["base:allocation"]))[0].0, 1 << 31 | 6);
    assert_eq!(client.option(10, &query("disk", &["base:allocation", "x:y"])), [(4, context), (1, vec![])]);
    client.go("disk");

    client.send(WRITE, 0, 8192, 4096, &[5; 4096]);
    assert_eq!(client.reply().1, 0, "a write's reply has no data and may be simple");
    let cookie = client.send(READ, 0, 8192, 512, &[]);
    let data = [&8192u64.to_be_bytes()[..], &[5; 512]].concat();
    assert_eq!(client.chunk(), (1, 1, cookie, data));
    let cookie = client.send(READ, 0, 16 * MIB, 512, &[]);
    let (flags, kind, answered, payload) = client.chunk();
    assert_eq!((flags, kind, answered, &payload[..4]), (1, 1 << 15 | 1, cookie, &22u32.to_be_bytes()[..]));
    assert_eq!(payload.len(), 6 + usize::from(u16::from_be_bytes([payload[4], payload[5]])));

    let extents = |payload: &[u8]| -> Vec<(u32, u32)> {
        let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
        payload[4..].chunks(8).map(|extent| (number(&extent[..4]), number(&extent[4..]))).collect()
    };
    client.send(BLOCK_STATUS, 0, 0, 1 << 20, &[]);
    let (_, kind, _, payload) = client.chunk();
    assert_eq!((kind, extents(&payload)), (5, vec![(8192, 3), (4096, 0), ((1 << 20) - 12288, 3)]));
    client.send(BLOCK_STATUS, 1 << 3, 0, 1 << 20, &[]);
    assert_eq!(extents(&client.chunk().3), [(8192, 3)], "one only");
}

#[test]
fn options_are_answered_by_the_book() {
    let disk = DiskOptions { hosts: vec!["a".parse().unwrap(), "b".parse().unwrap()], ..DiskOptions::default() };
    let fixture = Fixture::new(disk);
    let mut client = Client::connect(&fixture.socket());
    let entry = |name: &str| (2, [&u32::try_from(name.len()).unwrap().to_be_bytes()[..], name.as_bytes()].concat());
    assert_eq!(client.option(3, &[]), [entry("a"), entry("b"), (1, vec![])]);
    assert_eq!(client.option(3, &[1])[0].0, 1 << 31 | 3);
    assert_eq!(client.option(5, &[])[0].0, 1 << 31 | 1, "no TLS without certificates");
    assert_eq!(client.option(77, b"whatever")[0].0, 1 << 31 | 1);
    assert_eq!(client.option(77, &vec![0; 100_000])[0].0, 1 << 31 | 9);
    for malformed in [&[][..], &[0, 0, 0, 9, b'a', 0, 0], &[0, 0, 0, 1, b'a', 0, 1], &[255; 4]] {
        assert_eq!(client.option(6, malformed)[0].0, 1 << 31 | 3, "{malformed:?}");
    }
    assert_eq!(client.option(6, &[0, 0, 0, 1, b'c', 0, 0])[0].0, 1 << 31 | 6);
    assert_eq!(client.option(6, &[0; 6])[0].0, 1 << 31 | 6, "of two exports, none is the default");
    // Size, flags and block sizes, and the name if asked for.
    let replies = client.option(6, &[0, 0, 0, 1, b'b', 0, 1, 0, 1]);
    let info = |kind: u16, content: &[u8]| (3, [&kind.to_be_bytes()[..], content].concat());
    let sizes = [512u32, 4096, 32 << 20].map(u32::to_be_bytes).concat();
    let export = [&(16 * MIB).to_be_bytes()[..], &0b1_0110_1101u16.to_be_bytes()].concat();
    assert_eq!(replies, [info(1, b"b"), info(3, &sizes), info(0, &export), (1, vec![])]);
    client.go("b");
    assert_eq!(client.write(0, &[3; 512]), 0);
    // The oldest way in, and what one host writes the other reads.
    let mut other = Client::connect(&fixture.socket());
    other.send_option(1, b"a");
    let mut answer = [0; 10];
    std::io::Read::read_exact(&mut other.stream, &mut answer).unwrap();
    assert_eq!(answer[..8], (16 * MIB).to_be_bytes());
    assert_eq!(other.read(0, 512), Ok(vec![3; 512]));
    let mut leaving = Client::connect(&fixture.socket());
    assert_eq!(leaving.option(2, &[]), [(1, vec![])]);
    assert!(leaving.is_cut_off());
}

#[test]
fn without_power_there_are_only_errors() {
    each_way(|fixture| {
        let disk = fixture.served.as_ref().unwrap().disk();
        let mut client = fixture.client();
        assert_eq!(client.write(0, &[1; 4096]), 0);
        disk.cut_power(Keep::None, 0).unwrap();
        assert_eq!(
            (client.write(0, &[2; 4096]), client.read(0, 4096), client.ask(FLUSH, 0, 0, 0, &[])),
            (5, Err(5), 5)
        );
        disk.restore_power();
        assert_eq!(client.read(0, 4096), Ok(vec![1; 4096]));
        let activity = disk.counts()[0].since(&Counts::default());
        let [read, write] = [&activity[0], &activity[1]];
        assert_eq!((read.operations, read.errors, read.bytes), (2, 1, 4096));
        assert_eq!((write.operations, write.errors, write.bytes), (2, 1, 4096));
        assert!(read.p50_ns.is_some_and(|ns| ns > 0));
    });
}

#[test]
fn nonsense_ends_the_connection_and_nothing_else() {
    let fixture = Fixture::new(DiskOptions::default());
    let mut decent = fixture.client();
    assert_eq!(decent.write(0, &[1; 4096]), 0);
    let mut client = fixture.client();
    client.stream.write_all(&[0xff; 64]).unwrap();
    assert!(client.is_cut_off());
    let mut client = Client::connect(&fixture.socket());
    client.stream.write_all(&[0xff; 64]).unwrap();
    assert!(client.is_cut_off());
    let mut client = Client::connect(&fixture.socket());
    client.send_option(1, b"no such export");
    assert!(client.is_cut_off());
    // What was not sent whole never happened.
    let mut client = fixture.client();
    client.send(WRITE, 0, 0, 4096, &[2; 4000]);
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(client.is_cut_off());
    assert_eq!(decent.read(0, 4096), Ok(vec![1; 4096]));
}

#[test]
fn a_thousand_clients_that_say_nothing_disturb_nobody() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (image, socket) = (dir.path().join("disk.img"), socket());
    File::create(&image).unwrap().set_len(16 * MIB).unwrap();
    // As a process of its own, whose memory is nobody else's.
    let mut server = Command::new(env!("CARGO_BIN_EXE_vdisk"));
    let server = server
        .args(["serve", image.to_str().unwrap(), "--nbd", &format!("unix:{}", socket.display())])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut server = Process(server);
    let mut ready = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(server.0.stdout.take().unwrap()), &mut ready).unwrap();
    let memory = || {
        let status = fs::read_to_string(format!("/proc/{}/status", server.0.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = memory();
    let silent: Vec<_> = (0..500).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    // These have agreed on everything, and some stop in the middle of what they say.
    let idle: Vec<Client> = (0..500)
        .map(|index| {
            let mut client = Client::at(&socket, "disk");
            match index % 3 {
                0 => {}
                1 => client.stream.write_all(&[0x25, 0x60]).unwrap(),
                _ => drop(client.send(WRITE, 0, 0, 16 << 20, &[1; 100])),
            }
            client
        })
        .collect();
    let mut client = Client::at(&socket, "disk");
    for index in 0..100 {
        assert_eq!(client.write(index * 4096, &[8; 4096]), 0);
        assert_eq!(client.read(index * 4096, 4096), Ok(vec![8; 4096]));
    }
    let grown = memory().saturating_sub(before);
    assert!(grown < 256 << 10, "a thousand clients took {grown} KiB");
    drop((silent, idle));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(server.0.id().cast_signed()), nix::sys::signal::Signal::SIGTERM)
        .unwrap();
    assert!(server.0.wait().unwrap().success());
    assert!(!socket.exists());
}

#[test]
fn nothing_is_left_when_the_server_ends() {
    let mut fixture = Fixture::new(DiskOptions::default());
    let socket = fixture.socket();
    let (mut idle, mut half) = (fixture.client(), Client::connect(&socket));
    let mut busy = fixture.client();
    busy.send(WRITE, FUA, 0, 4096, &[6; 4096]);
    // It was taken, so it is answered.
    assert_eq!(busy.reply().1, 0);
    drop(fixture.served.take());
    assert!(!socket.exists());
    assert!(idle.is_cut_off() && half.is_cut_off() && busy.is_cut_off());
    assert_eq!(fixture.bytes(0, 4096), vec![6; 4096]);
    let locked = blockdev::lock::exclusive(&fixture.image()).unwrap();
    assert!(locked.is_some(), "the image is free again");
}

#[test]
fn an_image_is_served_once_and_not_attached_beside() {
    tests::needs_root!();
    let fixture = Fixture::new(DiskOptions::default());
    let image = fixture.dir.path().join("other.img");
    File::create(&image).unwrap().set_len(MIB).unwrap();
    let attached = blockdev::loopdev::attach(&image, &blockdev::loopdev::Options::default()).unwrap();
    let options = Options { nbd: vec![Address::Unix(fixture.dir.path().join("s"))], ..Options::default() };
    let error = Served::start(&image, &options).unwrap_err();
    assert_eq!(error.kind(), blockdev::ErrorKind::Refused);
    assert!(error.to_string().contains("two caches"), "{error}");
    attached.detach().unwrap();
}

#[test]
fn foreign_clients_find_it_in_order() {
    const TEST: &str = "foreign_clients_find_it_in_order";
    each_way(|fixture| {
        let uri = fixture.uri();
        let Some(info) = run(TEST, "nbdinfo", &["--json", &uri]) else { return };
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        let export = &info["exports"][0];
        assert_eq!((&export["export-size"], &export["can_multi_conn"]), (&(16 * MIB).into(), &true.into()), "{info}");
        assert_eq!(export["can_zero"], true);
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        // There and back, over several connections.
        let (there, back) = (fixture.dir.path().join("there"), fixture.dir.path().join("back"));
        let content: Vec<u8> = (0..16 * MIB).map(|index| (index / 4096 * 31 + index % 251).to_le_bytes()[0]).collect();
        fs::write(&there, &content).unwrap();
        run(TEST, "nbdcopy", &["--connections=4", "--requests=32", &text(&there), &uri]);
        assert_eq!(fs::read(fixture.image()).unwrap(), content);
        run(TEST, "nbdcopy", &["--connections=4", "--flush", &uri, &text(&back)]);
        assert_eq!(fs::read(&back).unwrap(), content);
        run(TEST, "qemu-img", &["compare", "-f", "raw", "-F", "raw", &uri, &text(&there)]);
        let script = [
            "write -P 0x11 0 64k",
            "write -f -P 0x22 64k 4k",
            "write -z 128k 64k",
            "write -zu 256k 64k",
            "discard 512k 64k",
            "flush",
            "read -P 0x11 0 64k",
            "read -P 0x22 64k 4k",
            "read -P 0 128k 64k",
            "aio_write -P 0x33 1M 1M",
            // What is in flight at once may be done in any order.
            "aio_flush",
            "aio_read -P 0x33 1M 1M",
            "aio_flush",
            "map",
        ];
        let arguments: Vec<&str> =
            ["-f", "raw"].into_iter().chain(script.iter().flat_map(|line| ["-c", line])).collect();
        let said = run(TEST, "qemu-io", &[&arguments[..], &[&uri]].concat());
        assert!(said.is_none_or(|said| !said.contains("verification failed")));
        run(TEST, "qemu-img", &["map", "--output=json", "-f", "raw", &uri]);
        run(TEST, "qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", "-W", "-m", "8", &text(&there), &uri]);
        run(TEST, "nbdinfo", &["--map", &uri]);
        let options = [
            "--rw=randwrite",
            "--bs=4k",
            "--iodepth=16",
            "--verify=crc32c",
            "--do_verify=1",
            // Otherwise fio leaves a file where it runs.
            "--verify_state_save=0",
            "--size=16m",
            "--numjobs=1",
        ];
        let target = format!("--uri={uri}");
        run(TEST, "fio", &[&["--name=v", "--ioengine=nbd", &target, "--output-format=json"], &options[..]].concat());
    });
}
