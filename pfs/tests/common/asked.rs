//! A pfsd in this process, and a client that asks it for anything at all: the body of the fuzz target `request`, which
//! `tests/fuzz.rs` runs on random bytes.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use blockdev::engine::Choice;
use blockdev::ui::Silent;
use blockdev::{ByteSize, Cancel};
use pfs::check::check;
use pfs::client::{Client, ConnectOptions};
use pfs::daemon::{self, Claim};
use pfs::mkfs::{MkfsOptions, mkfs};
use pfs::proto::request::FileId;
use pfs::proto::response;
use pfs::proto::slot;
use pfs::proto::{ChannelNo, Header, OpenFlags, Owner, Places, RegionNo, Request, Whence};
use pfs::volume::Device;

const DISK: &str = "fuzz";

/// Bytes of the input for one request.
const ASKED: usize = 20;

/// Most requests of one input.
const REQUESTS: usize = 12;

/// How long an answer may take, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

const PATHS: [&str; 12] = ["a", "b", "d", "d/a", "d/d", "d/d/a", "", "..", "a/", "a/b", "d/../a", "\u{e9}"];
const OFFSETS: [i64; 12] = [0, 1, 4095, 4096, 8192, 4 << 20, 10 << 30, 1 << 40, i64::MAX, i64::MIN, -1, -2];
const LENGTHS: [u64; 12] = [0, 1, 511, 512, 4096, 8192, 65_537, 4 << 20, (4 << 20) + 1, 1 << 33, 1 << 63, u64::MAX];
const FLAGS: [i32; 6] =
    [0, libc::O_CREAT, libc::O_CREAT | libc::O_EXCL, libc::O_TRUNC, libc::O_APPEND, libc::O_CREAT | libc::O_TRUNC];

/// What nobody asks for anything about.
const SENTINEL: &str = "nobody's";

/// A pfsd that is asked for anything. Dropped, it ends, and its volume must be sound.
pub struct Asked {
    client: Option<Client>,
    daemon: Option<JoinHandle<blockdev::Result<()>>>,
    cancel: Cancel,
    device: PathBuf,
}

fn path(name: &str) -> Vec<u8> {
    format!("/{DISK}/{name}").into_bytes()
}

impl Asked {
    /// Serves a new volume in an empty directory.
    pub fn new(directory: &Path) -> Self {
        let (places, device) = (Places::below(directory), directory.join("disk.img"));
        File::create_new(&device).unwrap().set_len(ByteSize::gib(10).bytes()).unwrap();
        let (cancel, journal) = (Cancel::new(), Some(ByteSize::mib(16)));
        mkfs(&device, &MkfsOptions { journal, ..MkfsOptions::default() }, &mut Silent, &cancel).unwrap();
        let options = daemon::Options {
            disk: DISK.to_owned(),
            device: device.clone(),
            places: places.clone(),
            workers: 2,
            busy_poll: false,
            durable: false,
            engine: Choice::Auto,
            echo: false,
            metrics: None,
        };
        let (ready, is_ready) = mpsc::channel();
        let stop = cancel.clone();
        let daemon = std::thread::spawn(move || {
            let claim = Claim::take(&options.places, DISK)?;
            daemon::serve(&options, claim, &stop, || ready.send(()).unwrap())
        });
        is_ready.recv().unwrap();
        let client = Client::connect(DISK, &ConnectOptions { places, ..ConnectOptions::default() }).unwrap();
        client.pwrite(&client.create(path(SENTINEL)).unwrap(), 0, &[7; 8192]).unwrap();
        Self { client: Some(client), daemon: Some(daemon), cancel, device }
    }

    /// Asks for whatever the input says. Each request is answered, others are served as before, and the volume stays sound.
    pub fn ask(&self, data: &[u8]) {
        let client = self.client.as_ref().unwrap();
        let file = client.open(path("a"), OpenFlags(libc::O_CREAT), 0o644).unwrap().id();
        for asked in data.chunks_exact(ASKED).take(REQUESTS) {
            ask(client, file, asked.try_into().unwrap());
        }
        let mut read = [0; 8192];
        let sentinel = client.open(path(SENTINEL), OpenFlags(0), 0).unwrap();
        assert_eq!(client.pread(&sentinel, 0, &mut read).unwrap(), read.len());
        assert_eq!(read, [7; 8192]);
        clear(client);
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        self.client.take().unwrap().umount().unwrap();
        self.cancel.cancel();
        self.daemon.take().unwrap().join().unwrap().unwrap();
        assert_eq!(check(&mut Device::open(&self.device).unwrap()).unwrap().findings, []);
    }
}

/// One request: a sensible one that the first bytes choose, of which the last may change any word.
fn ask(client: &Client, file: FileId, data: [u8; ASKED]) {
    let [number, which, from, to, offset, len, flags, patch, at, how, word @ ..] = data;
    let pick = |byte: u8, count: usize| usize::from(byte) % count;
    let file = match which % 4 {
        0 => FileId { btime: file.btime + 1, ..file },
        1 => FileId { inode: i64::from(which), ..file },
        _ => file,
    };
    let [from, to] = [from, to].map(|byte| path(PATHS[pick(byte, PATHS.len())]));
    let offset = OFFSETS[pick(offset, OFFSETS.len())];
    let len = LENGTHS[pick(len, LENGTHS.len())];
    let flags = OpenFlags(FLAGS[pick(flags, FLAGS.len())]);
    let (path, mode, signed) = (from.clone(), 0o644, len.cast_signed());
    let request = match number % 18 {
        0 => Request::Open { path, flags, mode },
        1 => Request::Read { file, offset, len },
        2 => Request::Write { file, offset: (offset != -2).then_some(offset), len, flags },
        3 => Request::Ftruncate { file, len: signed },
        4 => Request::Truncate { path, len: signed },
        5 => Request::Unlink { path },
        6 => Request::Fstat { file },
        7 => Request::Stat { path },
        8 => Request::Fallocate { file, offset, len: signed, mode: i32::from(how % 4) },
        9 => Request::Chdir { path },
        10 => Request::Mkdir { path, mode },
        11 => Request::Rmdir { path },
        12 => Request::Opendir { path },
        13 => Request::Readdir { directory: i64::from(which % 8), entry: i64::from(at), index: u64::from(how) },
        14 => Request::Access { path, mode: 0 },
        15 => Request::Rename { from, to },
        16 => Request::Lseek { file, offset, whence: Whence(i32::from(how % 5)) },
        _ => Request::Growfs { disk: DISK.to_owned() },
    };
    let region = RegionNo::for_bytes(request.buffer_size()).next().or(RegionNo::all().last()).unwrap();
    let channel = client.memory().channel(ChannelNo::of(region, usize::from(number)));
    let owner = Owner { connection: client.id().raw().into(), pid: std::process::id().cast_signed() };
    let started = Instant::now();
    let slot = loop {
        let word = |slot| channel.slot(slot).word();
        match slot::claim(channel.bitmap(), channel.number().slots(), word, owner) {
            Some(slot) => break channel.slot(slot),
            None => assert!(started.elapsed() < PATIENCE, "no slot is free"),
        }
    };
    slot.set_epoch(channel.epoch());
    slot.semaphore().init();
    request.put(Header { mount: client.mount_id(), file_type: 0 }, slot);
    if patch % 2 == 1 {
        let mut bytes = slot.request();
        let at = usize::from(at) % 32 * 8;
        bytes[at..at + 8].copy_from_slice(&word[..8]);
        slot.put_request(&bytes);
    }
    if patch % 16 == 2 {
        // A path that has no end.
        slot.copy_to_buffer(0, &vec![b'x'; region.unit().min(8192)]);
    }
    assert!(slot::post(slot.word(), owner));
    while !slot::is_answered(slot.word(), owner) {
        assert!(started.elapsed() < PATIENCE, "{request:?} with {data:?} is not answered");
        slot.semaphore().wait(Duration::from_millis(10));
    }
    let _ = response::get(&request, slot);
    assert!(slot::release(slot.word(), channel.bitmap(), slot.number(), owner));
}

/// Removes whatever was made.
fn clear(client: &Client) {
    for name in ["d/d/a", "d/a", "d/d", "d", "a", "b", "\u{e9}"] {
        if client.unlink(path(name)).is_err() {
            let _ = client.rmdir(path(name));
        }
    }
}
