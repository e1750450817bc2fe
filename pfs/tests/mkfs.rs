//! Volumes that ours makes and grows, byte for byte those that the original made and grew.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use blockdev::ui::{Progress, Silent};
use blockdev::{ByteSize, Cancel, Error, ErrorKind, loopdev};
use nix::fcntl::{FcntlArg, fcntl};
use pfs::check::check;
use pfs::format::{LEADER_AT, SECTOR_SIZE};
use pfs::growfs::{GrowfsOptions, growfs};
use pfs::mkfs::{Made, MkfsOptions, journal_for, mkfs};
use pfs::volume::{Device, HostLock, Region, Volume};

/// Where the metadata of a chunk end.
const METADATA: usize = 0xD_1000;
const CHUNK: u64 = 10 << 30;
const BLOCK: u64 = 4 << 20;
const INODE: usize = 0x9_1000;

/// A sparse file that is to become a volume.
struct Disk {
    path: PathBuf,
    directory: tempfile::TempDir,
}

impl Disk {
    fn new(gib: u64) -> Self {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = directory.path().join("disk.img");
        File::create(&path).unwrap().set_len(gib << 30).unwrap();
        Self { path, directory }
    }

    fn mkfs(&self, options: &MkfsOptions) -> Result<Made, Error> {
        mkfs(&self.path, options, &mut Silent, &Cancel::new())
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        OpenOptions::new().write(true).open(&self.path).unwrap().write_all_at(bytes, at).unwrap();
    }

    fn grow_to(&self, gib: u64) {
        OpenOptions::new().write(true).open(&self.path).unwrap().set_len(gib << 30).unwrap();
    }
}

fn small() -> MkfsOptions {
    MkfsOptions { journal: Some(ByteSize::mib(32)), ..MkfsOptions::default() }
}

fn bytes(path: &Path, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    File::open(path).unwrap().read_exact_at(&mut bytes, at).unwrap();
    bytes
}

/// The metadata of a chunk. The times of the three inodes that have any, and their checksums, are cleared.
fn metadata(path: &Path, chunk: u64) -> Vec<u8> {
    let mut bytes = bytes(path, chunk * CHUNK, METADATA);
    if chunk == 0 {
        for inode in bytes[INODE..INODE + 3 * 128].chunks_mut(128) {
            inode[36..40].fill(0);
            inode[80..112].fill(0);
        }
    }
    bytes
}

fn assert_same(path: &Path, original: &Path, chunks: impl Iterator<Item = u64>) {
    for chunk in chunks {
        let (ours, theirs) = (metadata(path, chunk), metadata(original, chunk));
        let differs = ours.iter().zip(&theirs).position(|(ours, theirs)| ours != theirs);
        assert_eq!(differs, None, "chunk {chunk}");
    }
}

#[test]
fn a_volume_is_the_originals_to_the_byte() {
    for (name, gib, options) in [("fresh-10g", 10, small()), ("fresh-20g-default", 20, MkfsOptions::default())] {
        let disk = Disk::new(gib);
        let made = disk.mkfs(&options).unwrap();
        assert_eq!((made.chunks, made.size, made.unused), ((gib / 10) as u32, ByteSize::gib(gib), ByteSize::ZERO));
        let original = common::image(name);
        assert_same(&disk.path, &original, 0..gib / 10);
        let leader = |path| bytes(path, LEADER_AT.bytes(), BLOCK as usize);
        assert!(leader(&disk.path) == leader(&original), "{name}: .pfs-paxos");
        let report = check(&mut Device::open(&disk.path).unwrap()).unwrap();
        assert!(report.complete && report.findings.is_empty(), "{name}: {:?}", report.findings);
    }
}

#[test]
fn what_lay_there_before_is_gone_and_nothing_else_is_touched() {
    let disk = Disk::new(10);
    disk.write(0, &vec![0xAA; 64 << 20]);
    disk.mkfs(&MkfsOptions { force: true, ..small() }).unwrap();
    assert_same(&disk.path, &common::image("fresh-10g"), 0..1);
    let journal_end = 2 * BLOCK + (32 << 20);
    let found = bytes(&disk.path, 0, 64 << 20);
    let all = |range: std::ops::Range<u64>, byte: u8| {
        found[range.start as usize..range.end as usize].iter().all(|found| *found == byte)
    };
    assert!(all(METADATA as u64..BLOCK, 0xAA));
    assert!(all(BLOCK + 264..journal_end, 0));
    assert!(all(journal_end..64 << 20, 0xAA));
}

#[test]
fn the_rest_of_a_disk_is_left_over() {
    let disk = Disk::new(10);
    OpenOptions::new().write(true).open(&disk.path).unwrap().set_len((10 << 30) + (7 << 20)).unwrap();
    let made = disk.mkfs(&MkfsOptions { journal: None, hosts: 7, ..small() }).unwrap();
    assert_eq!((made.chunks, made.unused, made.journal), (1, ByteSize::mib(7), ByteSize::mib(32)));
    let volume = Volume::open(&disk.path).unwrap();
    assert_eq!((volume.leader().hosts, volume.leader().log_size), (7, 32 << 20));
    assert_eq!(journal_for(20), ByteSize::new(20 * 6656 * 512));
    assert_eq!(journal_for(1000), ByteSize::gib(1));
}

/// What is said when a volume is not made; nothing may have changed.
fn refused(disk: &Disk, options: &MkfsOptions) -> (ErrorKind, String) {
    let look = |path: &Path| bytes(path, 0, (9 << 20).min(std::fs::metadata(path).unwrap().len() as usize));
    let before = look(&disk.path);
    let error = disk.mkfs(options).unwrap_err();
    assert!(look(&disk.path) == before, "{error}: but something was written");
    (error.kind(), error.to_string().replace(disk.path.to_str().unwrap(), "DISK"))
}

#[test]
fn nothing_is_overwritten_by_accident() {
    let disk = Disk::new(10);
    disk.mkfs(&small()).unwrap();
    assert_eq!(refused(&disk, &small()), (ErrorKind::Refused, "DISK holds a PolarFS volume of 10 GiB".to_owned()));
    disk.write(8, &[1]);
    assert_eq!(refused(&disk, &small()), (ErrorKind::Refused, "DISK holds a damaged PolarFS volume".to_owned()));
    disk.write(0, &[0; SECTOR_SIZE]);
    disk.write(510, &[0x55, 0xaa]);
    assert_eq!(refused(&disk, &small()), (ErrorKind::Refused, "DISK holds: MBR partition table".to_owned()));
    let open = Command::new("sleep").arg("1000").stdin(File::open(&disk.path).unwrap()).spawn();
    let mut open = open.unwrap();
    let said = format!("DISK holds: MBR partition table; is open in sleep (pid {})", open.id());
    assert_eq!(refused(&disk, &small()), (ErrorKind::Refused, said));
    disk.mkfs(&MkfsOptions { force: true, ..small() }).unwrap();
    open.kill().unwrap();
    open.wait().unwrap();
    assert!(check(&mut Device::open(&disk.path).unwrap()).unwrap().findings.is_empty());
}

#[test]
fn what_cannot_be_a_volume_is_refused() {
    let disk = Disk::new(9);
    let (kind, text) = refused(&disk, &small());
    assert_eq!(kind, ErrorKind::NoSpace);
    assert_eq!(original(&disk, "pfs -C disk mkfs PBD").status.code(), Some(libc::EIO));
    assert_eq!(text, "DISK has 9 GiB, too little for a volume, which has 10 GiB or more");
    let disk = Disk::new(10);
    for (options, kind, text) in [
        (
            MkfsOptions { journal: Some(ByteSize::new((1 << 20) + 100)), ..small() },
            ErrorKind::InvalidInput,
            "a journal cannot be 1048676 bytes: it must be a multiple of 512",
        ),
        (
            MkfsOptions { journal: Some(ByteSize::new(512)), ..small() },
            ErrorKind::InvalidInput,
            "a journal cannot be 512 bytes: a transaction may need 1 MiB",
        ),
        (
            MkfsOptions { journal: Some(ByteSize::gib(10)), ..small() },
            ErrorKind::NoSpace,
            "a journal of 10 GiB does not fit: the volume has room for 9.99 GiB",
        ),
        (
            MkfsOptions { hosts: 0, ..small() },
            ErrorKind::InvalidInput,
            "0 hosts cannot share a volume: it is for 1 to 254",
        ),
        (
            MkfsOptions { hosts: 255, ..small() },
            ErrorKind::InvalidInput,
            "255 hosts cannot share a volume: it is for 1 to 254",
        ),
    ] {
        assert_eq!(refused(&disk, &options), (kind, text.to_owned()));
    }
    let missing = disk.directory.path().join("missing");
    let error = mkfs(&missing, &small(), &mut Silent, &Cancel::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error = mkfs(disk.directory.path(), &small(), &mut Silent, &Cancel::new()).unwrap_err();
    assert!(error.to_string().ends_with("is neither a file nor a block device"), "{error}");
}

/// Interrupts what it is told of.
struct Amid(Cancel);

impl Progress for Amid {
    fn begin(&mut self, _phase: &str, _total_bytes: u64) {}
    fn advance(&mut self, bytes: u64) {
        // Not the first sector, but amid the journal.
        if bytes > SECTOR_SIZE as u64 {
            self.0.cancel();
        }
    }
    fn end(&mut self) {}
}

#[test]
fn what_was_interrupted_is_no_volume() {
    let disk = Disk::new(10);
    disk.mkfs(&small()).unwrap();
    let mut amid = Amid(Cancel::new());
    let (force, cancel) = (MkfsOptions { force: true, ..small() }, amid.0.clone());
    let error = mkfs(&disk.path, &force, &mut amid, &cancel).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    let error = Volume::open(&disk.path).err().unwrap();
    assert!(error.to_string().ends_with("holds no PolarFS volume"), "{error}");
    disk.mkfs(&small()).unwrap();
    Volume::open(&disk.path).unwrap();
}

/// Names what the other process is to lock.
const LOCKED: &str = "LOCKED_FILE";

fn lock_file(device: &Path) -> PathBuf {
    PathBuf::from(format!("/var/run/pfs/{}-paxos-hostid", device.file_name().unwrap().to_str().unwrap()))
}

#[test]
#[ignore = "it is what a test here starts as another process"]
#[allow(clippy::print_stdout, reason = "to whoever started it")]
fn a_process_of_the_original() {
    let file = OpenOptions::new().read(true).write(true).open(std::env::var_os(LOCKED).unwrap()).unwrap();
    let host = libc::flock { l_type: libc::F_WRLCK as i16, l_whence: 0, l_start: 30 * 1024, l_len: 1024, l_pid: 0 };
    fcntl(&file, FcntlArg::F_SETLK(&host)).unwrap();
    println!("locked");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn what_is_in_use_is_refused_even_by_force() {
    tests::needs_root!();
    let disk = Disk::new(10);
    let attachment = loopdev::attach(&disk.path, &loopdev::Options::default()).unwrap();
    let device = attachment.device().path.clone();
    let force = MkfsOptions { force: true, ..small() };
    let said = format!("DISK is held by {}", device.display());
    assert_eq!(refused(&disk, &force), (ErrorKind::Refused, said));

    let on_device = |options: &MkfsOptions| mkfs(&device, options, &mut Silent, &Cancel::new());
    on_device(&small()).unwrap();
    assert_same(&disk.path, &common::image("fresh-10g"), 0..1);

    // As a pfsd holds it, or a command of the original.
    let mut other = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_process_of_the_original", "--ignored", "--nocapture"])
        .env(LOCKED, lock_file(&device))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(other.stdout.take().unwrap()).lines().map(Result::unwrap);
    lines.find(|line| line.contains("locked")).unwrap();
    let error = on_device(&force).unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::Refused, Some(libc::EAGAIN)));
    assert!(error.to_string().contains(&format!("(pid {})", other.id())), "{error}");
    HostLock::take(&device, Region::Host(30)).unwrap_err();
    let lock = HostLock::take(&device, Region::Host(29)).unwrap();
    drop(other.stdin.take());
    lines.for_each(drop);
    other.wait().unwrap();
    // The original's own kind of lock would be forgotten here.
    drop(File::open(lock_file(&device)).unwrap());
    HostLock::take(&device, Region::Host(29)).unwrap_err();
    HostLock::take(&device, Region::Host(30)).unwrap();
    on_device(&force).unwrap_err();
    drop(lock);
    on_device(&force).unwrap();
    attachment.detach().unwrap();
}

#[test]
fn a_mounted_device_is_refused_even_by_force() {
    tests::needs_root!();
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (image, point) = (directory.path().join("image"), directory.path().join("point"));
    let mounted = tests::Mounted::ext4(64, &[], &image, &point);
    let device = loopdev::users_of(&File::open(&image).unwrap()).unwrap()[0].path.clone();
    let force = MkfsOptions { force: true, ..small() };
    let error = mkfs(&device, &force, &mut Silent, &Cancel::new()).unwrap_err();
    let said = format!("{} is mounted on {}", device.display(), point.canonicalize().unwrap().display());
    assert_eq!((error.kind(), error.to_string()), (ErrorKind::Refused, said));
    drop(mounted);
}

#[test]
fn a_volume_grows_as_the_originals() {
    let disk = Disk::new(10);
    disk.mkfs(&MkfsOptions { journal: Some(ByteSize::mib(16)), ..small() }).unwrap();
    let look = || [metadata(&disk.path, 0), bytes(&disk.path, 0, SECTOR_SIZE)];
    let before = look();
    for (from, to) in [(None, None), (Some(1), Some(2)), (Some(2), Some(3)), (Some(1), Some(1))] {
        let error = growfs(&disk.path, &GrowfsOptions { from, to, ..GrowfsOptions::default() }).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().ends_with("it has 1 chunks of 10 GiB, and there is 10 GiB, room for 1"), "{error}");
    }
    assert!(look() == before);
    disk.grow_to(27);
    let error = growfs(&disk.path, &GrowfsOptions { to: Some(3), ..GrowfsOptions::default() }).unwrap_err();
    assert!(error.to_string().ends_with("there is 27 GiB, room for 2"), "{error}");
    assert!(look() == before);
    let grown = growfs(&disk.path, &GrowfsOptions::default()).unwrap();
    assert_eq!((grown.from, grown.to, grown.size, grown.unused), (1, 2, ByteSize::gib(20), ByteSize::gib(7)));
    // Nothing was ever flushed there: the sectors are those that the original's mkfs and growfs wrote.
    assert_same(&disk.path, &common::image("grown-20g"), 0..2);
    let report = check(&mut Device::open(&disk.path).unwrap()).unwrap();
    assert!(report.complete && report.findings.is_empty() && report.chunks == 2, "{:?}", report.findings);
}

#[test]
fn growing_that_was_interrupted_is_begun_anew() {
    let disk = Disk::new(10);
    disk.mkfs(&small()).unwrap();
    let before = bytes(&disk.path, 0, SECTOR_SIZE);
    disk.grow_to(20);
    growfs(&disk.path, &GrowfsOptions::default()).unwrap();
    // As far as it was: chunk 1 is there, but chunk 0 says that it is the only one.
    disk.write(0, &before);
    let error = growfs(&disk.path, &GrowfsOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().ends_with("the first new one, has been formatted before"), "{error}");
    growfs(&disk.path, &GrowfsOptions { force: true, ..GrowfsOptions::default() }).unwrap();
    assert_eq!(Volume::open(&disk.path).unwrap().metadata().headers().len(), 2);
}

#[test]
fn a_volume_with_a_damaged_header_does_not_grow() {
    let disk = Disk::new(20);
    disk.mkfs(&small()).unwrap();
    disk.grow_to(30);
    disk.write(CHUNK + 8, &[1]);
    let before = metadata(&disk.path, 0);
    let error = growfs(&disk.path, &GrowfsOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::VerifyFailed);
    assert!(metadata(&disk.path, 0) == before);
    let no_volume = Disk::new(20);
    let error = growfs(&no_volume.path, &GrowfsOptions::default()).unwrap_err();
    assert!(error.to_string().ends_with("holds no PolarFS volume"), "{error}");
}

fn original(disk: &Disk, command: &str) -> Output {
    let devices = disk.directory.path();
    let link = devices.join("PBD");
    if !link.exists() {
        symlink(&disk.path, &link).unwrap();
    }
    let words = command.strip_prefix("pfs ").unwrap().split_whitespace();
    let words = words.take_while(|word| !word.starts_with('('));
    let devices = ["--devices", devices.to_str().unwrap()];
    Command::new(env!("CARGO_BIN_EXE_pfs")).args(devices).args(words).output().unwrap()
}

#[test]
fn the_program_says_what_the_original_says() {
    for (name, gib) in [("fresh-10g", 10), ("fresh-20g-default", 20)] {
        let disk = Disk::new(gib);
        for (command, output, code) in common::transcript(&format!("{name}/mkfs.txt")) {
            let found = original(&disk, &command);
            assert_eq!(String::from_utf8_lossy(&found.stdout), output, "{command}");
            assert_eq!(found.status.code(), Some(code), "{command}");
        }
        assert_same(&disk.path, &common::image(name), 0..gib / 10);
    }
    let disk = Disk::new(10);
    disk.mkfs(&small()).unwrap();
    for (command, output, code) in common::transcript("grown-20g/growfs.txt") {
        // Only the first time it was not grown yet.
        let found = original(&disk, &command);
        assert_eq!(String::from_utf8_lossy(&found.stdout), output, "{command}");
        assert_eq!(found.status.code(), Some(code), "{command}");
        disk.grow_to(20);
    }
}

#[test]
fn the_program_by_its_own_names() {
    let disk = Disk::new(21);
    let path = disk.path.to_str().unwrap();
    let pfs = |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_pfs")).args(args).output().unwrap();
    let made = pfs(&["mkfs", "--journal", "32M", "--hosts", "5", path]);
    let text = String::from_utf8(made.stdout).unwrap();
    assert!(text.starts_with(&format!("made a volume of 20 GiB (2 chunks) on {path} in ")), "{text}");
    assert!(
        text.ends_with(
            " s: a journal of 32 MiB, up to 5 hosts\nthe last 1 GiB are left over: a volume consists of whole chunks of 10 GiB\n"
        ),
        "{text}"
    );
    let again = pfs(&["mkfs", path]);
    assert_eq!(again.status.code(), Some(3));
    let said = String::from_utf8(again.stderr).unwrap();
    assert_eq!(
        said,
        format!(
            "pfs: {path} holds a PolarFS volume of 20 GiB\n  hint: --force makes a volume there all the same; what is there is lost\n"
        )
    );
    disk.grow_to(30);
    let grown = pfs(&["--output", "json", "growfs", path]);
    let json: serde_json::Value = serde_json::from_slice(&grown.stdout).unwrap();
    assert_eq!((&json["from"], &json["to"], &json["unused"]), (&2.into(), &3.into(), &0.into()));
    let info = pfs(&["info", path]);
    assert!(String::from_utf8(info.stdout).unwrap().starts_with("size        30 GiB (3 chunks of 10 GiB)\n"));
}
