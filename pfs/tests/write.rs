//! The commands that write, as a person and as a script of the original uses them.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use blockdev::ui::Silent;
use blockdev::{ByteSize, Cancel, loopdev};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pfs::check::check;
use pfs::mkfs::{MkfsOptions, mkfs};
use pfs::volume::{Device, Holder, Lease, LeaseOptions};
use serde_json::Value;

/// A volume to write, and a directory of the host beside it.
struct Disk {
    path: PathBuf,
    directory: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = directory.path().join("disk.img");
        File::create(&path).unwrap().set_len(10 << 30).unwrap();
        let options = MkfsOptions { journal: Some(ByteSize::mib(32)), ..MkfsOptions::default() };
        mkfs(&path, &options, &mut Silent, &Cancel::new()).unwrap();
        Self { path, directory }
    }

    fn of(name: &str) -> Self {
        let (path, directory) = common::copy(name);
        Self { path, directory }
    }

    fn at(&self, path: &str) -> String {
        format!("{}:{path}", self.path.display())
    }

    fn host(&self, path: &str) -> String {
        self.directory.path().join(path).to_str().unwrap().to_owned()
    }

    /// All that tells whether anything was changed: metadata, leader record, leases, the start of the journal.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; 9 << 20];
        File::open(&self.path).unwrap().read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn assert_sound(&self) {
        let report = check(&mut Device::open(&self.path).unwrap()).unwrap();
        assert!(report.complete && report.findings.is_empty(), "{:?}", report.findings);
        assert_eq!(Holder::find(&mut Device::open(&self.path).unwrap()).unwrap(), None);
    }

    /// Everything in it, with sizes.
    fn listing(&self) -> Vec<(String, u64)> {
        let tree: Value = serde_json::from_str(&stdout(&["--output", "json", "tree", &self.at("/")])).unwrap();
        let entry = |entry: &Value| (entry["name"].as_str().unwrap().to_owned(), entry["size"].as_u64().unwrap());
        tree.as_array().unwrap().iter().map(entry).filter(|(name, _)| !name.starts_with(".pfs-")).collect()
    }
}

fn start(args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pfs"));
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn run(args: &[&str], input: &[u8]) -> Output {
    let mut child = start(args);
    // It may end without reading.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn stdout(args: &[&str]) -> String {
    let output = run(args, b"");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn silent(args: &[&str]) {
    assert_eq!(stdout(args), "", "{args:?}");
}

#[test]
fn the_program_says_what_the_original_says() {
    let disk = Disk::new();
    let devices = disk.directory.path();
    symlink(&disk.path, devices.join("PBD")).unwrap();
    for (command, output, code) in common::transcript("commands.txt") {
        let (input, command) = match command.split_once(" | ") {
            Some((_, command)) => (b"hello\n".as_slice(), command),
            None => (b"".as_slice(), command.as_str()),
        };
        let words = command.strip_prefix("pfs ").unwrap().split_whitespace();
        let args: Vec<&str> = ["--devices", devices.to_str().unwrap()].into_iter().chain(words).collect();
        let found = run(&args, input);
        assert_eq!(String::from_utf8_lossy(&found.stdout), output, "{command}");
        let said = String::from_utf8_lossy(&found.stderr);
        assert_eq!(found.status.code(), Some(code), "{command}: {said}");
        assert!(code == 0 || said.starts_with("pfs: "), "{command} said nothing: {said}");
    }
    disk.assert_sound();
    // What it finds out by itself.
    for (args, code) in
        [(["rm", "/PBD/a"].as_slice(), 255), (&["rm", "-r", "/PBD/"], 255), (&["rm", "/PBD/.pfs-paxos"], 255)]
    {
        silent(&["mkdir", "-p", &disk.at("/a")]);
        let args = [&["--devices", devices.to_str().unwrap(), "-C", "disk"], args].concat();
        let found = run(&args, b"");
        assert_eq!(
            (found.stdout.as_slice(), found.status.code()),
            (b"rm failed: impl specific\n".as_slice(), Some(code))
        );
    }
}

#[test]
fn files_and_directories_by_their_own_names() {
    let disk = Disk::new();
    silent(&["mkdir", "-p", &disk.at("/a/b/c")]);
    silent(&["touch", &disk.at("/a/b/empty")]);
    let text = run(&["write", &disk.at("/a/b/text")], b"some words");
    assert_eq!(text.stdout, b"wrote 10 bytes from byte 0 on\n");
    let more = run(&["--output", "json", "write", "-o", "5", "-l", "3", &disk.at("/a/b/text")], b"WORDS");
    let more: Value = serde_json::from_slice(&more.stdout).unwrap();
    assert_eq!((&more["offset"], &more["bytes"]), (&5.into(), &3.into()));
    assert_eq!(stdout(&["read", &disk.at("/a/b/text")]), "some WORds");
    silent(&["truncate", "-l", "4", &disk.at("/a/b/text")]);
    silent(&["truncate", "-l", "6", &disk.at("/a/b/text")]);
    assert_eq!(stdout(&["read", &disk.at("/a/b/text")]), "some\0\0");
    silent(&["fallocate", "-o", "4194304", "-l", "1", &disk.at("/a/b/text")]);
    silent(&["rename", &disk.at("/a/b"), &disk.at("/renamed")]);
    let all = [("a", 0), ("renamed", 384), ("c", 0), ("empty", 0), ("text", 4_194_305)];
    assert_eq!(disk.listing(), all.map(|(name, size)| (name.to_owned(), size)));
    silent(&["flushlog", disk.path.to_str().unwrap()]);
    let info: Value =
        serde_json::from_str(&stdout(&["--output", "json", "info", disk.path.to_str().unwrap()])).unwrap();
    assert_eq!(info["journal"]["head_txid"], info["journal"]["tail_txid"]);
    silent(&["rm", "-w", &disk.at("/renamed/[et]*")]);
    silent(&["rmdir", &disk.at("/a")]);
    silent(&["rm", "-r", &disk.at("/renamed")]);
    assert_eq!(disk.listing(), []);
    let told = stdout(&["fstrim", disk.path.to_str().unwrap()]);
    assert_eq!(told, "told the device of 2 free blocks, 8 MiB\n");
    disk.assert_sound();
}

/// A directory of the host with everything that is to be copied.
fn make_tree(root: &Path) {
    fs::create_dir_all(root.join("sub/deeper")).unwrap();
    fs::write(root.join("empty"), b"").unwrap();
    fs::write(root.join("small"), b"a few words").unwrap();
    fs::write(root.join(".hidden"), b"hidden").unwrap();
    let large: Vec<u8> = (0u32..15_000_000).flat_map(u32::to_le_bytes).collect();
    fs::write(root.join("sub/large"), &large).unwrap();
    fs::write(root.join("sub/deeper").join("x".repeat(255)), b"long name").unwrap();
}

fn assert_same(one: &str, other: &str) {
    let output = Command::new("diff").args(["-r", one, other]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn trees_go_in_from_volume_to_volume_and_out_again() {
    let (disk, other) = (Disk::new(), Disk::new());
    let tree = disk.host("tree");
    make_tree(Path::new(&tree));
    let copied = stdout(&["cp", "-r", &tree, &disk.at("/")]);
    assert_eq!(copied, "copied 5 files and 3 directories: 57.22 MiB of data\n");
    silent(&["mkdir", &other.at("/there")]);
    let copied = stdout(&["--output", "json", "cp", "-r", &disk.at("/tree"), &other.at("/there/again")]);
    let copied: Value = serde_json::from_str(&copied).unwrap();
    assert_eq!((copied["files"].as_array().unwrap().len(), &copied["directories"]), (5, &3.into()));
    stdout(&["cp", "-r", &other.at("/there/again"), &other.at("/there/within")]);
    stdout(&["cp", "-r", &other.at("/there/within"), &disk.host("out")]);
    assert_same(&tree, &disk.host("out"));
    // Over what is there: shorter, longer, and what is not there stays.
    fs::write(Path::new(&tree).join("small"), b"few").unwrap();
    fs::write(Path::new(&tree).join("empty"), b"no more").unwrap();
    silent(&["touch", &disk.at("/tree/own")]);
    stdout(&["cp", "-r", &tree, &disk.at("/")]);
    fs::write(Path::new(&tree).join("own"), b"").unwrap();
    stdout(&["cp", "-r", &disk.at("/tree"), &disk.host("out-again")]);
    assert_same(&tree, &disk.host("out-again"));
    disk.assert_sound();
    other.assert_sound();
}

#[test]
fn a_script_of_the_original_names_the_cluster_only_at_cp() {
    let disk = Disk::new();
    make_tree(Path::new(&disk.host("tree")));
    let devices = disk.directory.path();
    // The original knows a disk by how its name begins.
    symlink(&disk.path, devices.join("loop77")).unwrap();
    let devices = devices.to_str().unwrap();
    silent(&["mkdir", &disk.at("/shared")]);
    let tree = disk.host("tree");
    let copied = stdout(&["--devices", devices, "cp", "-D", "disk", "-r", &tree, "/loop77/shared/"]);
    let line = |name: &str| format!("copy file from {tree}{name} to /loop77/shared//tree{name} succeeded\n");
    let deepest = format!("/sub/deeper/{}", "x".repeat(255));
    assert_eq!(copied, [line("/empty"), line("/small"), line("/sub/large"), line(&deepest)].concat());
    let listing = stdout(&["--devices", devices, "-C", "disk", "ls", "/loop77/shared/tree"]);
    assert!(listing.starts_with("  File  1     0 ") && !listing.contains(".hidden"), "{listing}");
    disk.assert_sound();
}

#[test]
fn bad_input_is_named_and_changes_nothing() {
    let disk = Disk::of("tree-10g");
    make_tree(Path::new(&disk.host("tree")));
    let (image, tree, small) = (disk.path.to_str().unwrap(), disk.host("tree"), disk.host("tree/small"));
    let (missing, long) = (disk.host("missing"), format!("/{}", "x".repeat(256)));
    let before = disk.bytes();
    for (args, code, says) in [
        (vec!["touch", &disk.at(&long)], 1, "a name in it is too long"),
        (vec!["touch", &disk.at("/nothere/x")], 1, "there is no \"nothere\""),
        (vec!["touch", &disk.at("/sizes")], 1, "it is a directory"),
        (vec!["mkdir", &disk.at("/sizes/s1/x")], 1, "it goes on beyond a file"),
        (vec!["mkdir", &disk.at("/sizes")], 3, "it exists"),
        (vec!["mkdir", "-p", &disk.at("/sizes/s1")], 3, "it is a file"),
        (vec!["write", &disk.at("/sizes")], 1, "it is a directory"),
        (vec!["write", "-o", "9223372036854775807", &disk.at("/sizes/s1")], 4, "File too large"),
        (vec!["write", &disk.at("/.pfs-journal")], 6, "it is the file system's own"),
        (vec!["truncate", "-l", "0", &disk.at("/.pfs-paxos")], 6, "it is the file system's own"),
        (vec!["fallocate", "-l", "9000000", &disk.at("/.pfs-paxos")], 6, "it is the file system's own"),
        (vec!["cp", "-f", &small, &disk.at("/.pfs-journal")], 3, "is the file system's own"),
        (vec!["truncate", &disk.at("/sizes/s1")], 2, "no length was given"),
        (vec!["truncate", "-l", "9223372036854775808", &disk.at("/sizes/s1")], 4, "cannot make a file"),
        (vec!["truncate", "-l", "5", &disk.at("/sizes")], 1, "is a directory"),
        (vec!["fallocate", "-l", "0", &disk.at("/sizes/s1")], 1, "cannot allocate 0 bytes from 0"),
        (vec!["fallocate", "-l", "11811160064", &disk.at("/sizes/s1")], 4, "No space left on device"),
        (vec!["rename", &disk.at("/deep"), &disk.at("/deep/level2/x")], 1, "it would be below itself"),
        (vec!["rename", &disk.at("/sizes"), &disk.at("/deep")], 1, "there is something in it"),
        (vec!["rename", &disk.at("/sizes/s1"), &disk.at("/deep")], 1, "it is a directory"),
        (vec!["rename", &disk.at("/.pfs-journal"), &disk.at("/x")], 6, "it is the file system's own"),
        (vec!["rename", &disk.at("/sizes"), "other.img:/x"], 1, "that is another volume"),
        (vec!["rm", &disk.at("/sizes")], 1, "it is a directory"),
        (vec!["rm", "-r", &disk.at("/")], 6, "it is the root"),
        (vec!["rm", &disk.at("/.pfs-paxos")], 6, "it is the file system's own"),
        (vec!["rmdir", &disk.at("/sizes")], 1, "there is something in it"),
        (vec!["rmdir", &disk.at("/sizes/s1")], 1, "it is no directory"),
        (vec!["cp", &small, &tree], 2, "is in a volume"),
        (vec!["cp", &tree, &disk.at("/x")], 1, "is a directory"),
        (vec!["cp", &missing, &disk.at("/x")], 1, "cannot find"),
        (vec!["cp", &small, &disk.at("/sizes/s1")], 3, "exists"),
        (vec!["cp", "-f", &small, &disk.at("/sizes/s1/x")], 1, "it goes on beyond a file"),
        (vec!["cp", "-r", &tree, &disk.at("/sizes/s1")], 3, "exists, and is no directory"),
        (vec!["cp", "-r", &disk.at("/deep"), &disk.at("/deep/level2")], 1, "into itself"),
        (vec!["fstrim", "-b", "0", image], 6, "the whole volume"),
        (vec!["touch", &format!("{missing}:/x")], 1, "cannot open"),
        (vec!["flushlog", disk.directory.path().to_str().unwrap()], 2, "is neither a file nor a block device"),
        (vec!["touch", &format!("{small}:/x")], 2, "too little for a volume"),
    ] {
        let output = run(&args, b"words");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(says), "{args:?}: {said}");
        assert!(output.stdout.is_empty(), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
        assert!(disk.bytes() == before, "{args:?} changed something");
    }
}

/// Everything that writes, on what cannot be written.
fn read_only(disk: &Disk, volume: &Path, says: &str) {
    let at = |path: &str| format!("{}:{path}", volume.display());
    make_tree(Path::new(&disk.host("tree")));
    let (tree, volume) = (disk.host("tree"), volume.to_str().unwrap());
    let before = disk.bytes();
    for args in [
        vec!["touch", &at("/x")],
        vec!["mkdir", &at("/x")],
        vec!["write", &at("/sizes/s1")],
        vec!["truncate", "-l", "0", &at("/sizes/s1")],
        vec!["rename", &at("/sizes/s1"), &at("/x")],
        vec!["rm", "-r", &at("/sizes")],
        vec!["cp", "-r", &tree, &at("/")],
        vec!["cp", "-r", &at("/sizes"), &at("/x")],
        vec!["--take-over", "touch", &at("/x")],
        vec!["flushlog", volume],
        vec!["fstrim", volume],
        vec!["check", "--repair", volume],
        vec!["mkfs", "--force", volume],
    ] {
        let output = run(&args, b"words");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(6), "{args:?}: {said}");
        assert!(said.contains(&format!("cannot open {volume} for writing")) && said.contains(says), "{args:?}: {said}");
        assert!(output.stdout.is_empty() && disk.bytes() == before, "{args:?}");
    }
    // As the original, whose mount fails.
    let (devices, name) = (Path::new(volume).parent().unwrap(), Path::new(volume).file_name().unwrap());
    let path = format!("/{}/x", name.to_str().unwrap());
    let output = run(&["--devices", devices.to_str().unwrap(), "-C", "disk", "touch", &path], b"");
    assert_eq!((output.stdout.as_slice(), output.status.code()), (b"".as_slice(), Some(255)));
    assert!(disk.bytes() == before);
    stdout(&["check", volume]);
    stdout(&["stat", &at("/sizes")]);
}

#[test]
fn what_is_read_only_says_so_and_stays_as_it_is() {
    let disk = Disk::of("tree-10g");
    if !nix::unistd::geteuid().is_root() {
        fs::set_permissions(&disk.path, fs::Permissions::from_mode(0o444)).unwrap();
        return read_only(&disk, &disk.path, "Permission denied");
    }
    // Which root may write all the same, but not such a device.
    let options = loopdev::Options { read_only: true, ..loopdev::Options::default() };
    let attachment = loopdev::attach(&disk.path, &options).unwrap();
    read_only(&disk, &attachment.device().path, "the device is read-only");
    attachment.detach().unwrap();
}

#[test]
fn what_cannot_be_opened_for_writing_says_why() {
    let disk = Disk::of("fresh-10g");
    let patch = |at: u64, bytes: &[u8]| {
        OpenOptions::new().write(true).open(&disk.path).unwrap().write_all_at(bytes, at).unwrap();
    };
    let fails = |code: i32, says: &str| {
        let before = disk.bytes();
        let output = run(&["touch", &disk.at("/x")], b"");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(says), "{said}");
        assert!(disk.bytes() == before);
    };
    // An older version, and a newer: without a checksum, so that only that is wrong.
    patch(112, &[0; 4]);
    patch(0, &[0x49]);
    fails(6, "holds a volume of version 1; only 2 is written here");
    patch(0, &[0x4b]);
    fails(6, "holds a volume of version 3");
    patch(0, &[0x4a, 0]);
    fails(2, "holds no PolarFS volume");
    patch(0, &[0x4a, 0x43]);
    patch(40, &[2]);
    fails(5, "the volume is damaged");
}

#[test]
fn a_full_volume_says_so_and_stays_as_it_is() {
    let disk = Disk::of("full-10g");
    make_tree(Path::new(&disk.host("tree")));
    let small = disk.host("tree/small");
    let before = disk.bytes();
    let recorded = common::recorded("full-10g", "files.sha256").unwrap();
    let first = String::from_utf8(recorded).unwrap().lines().nth(1).unwrap().to_owned();
    let path = format!("/{}", first.split_whitespace().last().unwrap());
    for (args, says) in [
        (vec!["touch", &disk.at("/one-more")], "of the volume is free"),
        (vec!["mkdir", &disk.at("/one-more")], "of the volume is free"),
        (vec!["cp", &small, &disk.at("/one-more")], "of the volume is free"),
        (vec!["fallocate", "-l", "40000000", &disk.at(&path)], "No space left on device"),
    ] {
        let output = run(&args, b"");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{args:?}: {said}");
        assert!(said.contains(says), "{args:?}: {said}");
        assert!(disk.bytes() == before, "{args:?} changed something");
    }
    // What is seen not to fit is not begun, whatever was copied before.
    let disk = Disk::new();
    make_tree(Path::new(&disk.host("tree")));
    let large = disk.host("tree/too-large");
    File::create(&large).unwrap().set_len(11 << 30).unwrap();
    let output = run(&["cp", "-r", &disk.host("tree"), &disk.at("/")], b"");
    assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(disk.listing().contains(&("small".to_owned(), 11)));
    assert!(disk.listing().iter().all(|(name, _)| name != "too-large"));
    disk.assert_sound();
}

#[test]
fn another_writer_is_named_and_nothing_changes() {
    let disk = Disk::new();
    symlink(&disk.path, disk.directory.path().join("PBD")).unwrap();
    let lease = Lease::take(&disk.path, &LeaseOptions::default(), &Cancel::new()).unwrap();
    let info = stdout(&["info", disk.path.to_str().unwrap()]);
    let line = info.lines().find(|line| line.starts_with("writer ")).unwrap();
    assert!(line.contains(&format!("(pid {} on ", std::process::id())), "{info}");
    let leader = || disk.bytes()[..5 << 20].to_vec();
    let before = leader();
    let output = run(&["touch", &disk.at("/x")], b"");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3));
    assert!(
        said.contains("is being written by ") && said.contains(&format!("(pid {} on ", std::process::id())),
        "{said}"
    );
    let args = ["--devices", disk.directory.path().to_str().unwrap(), "-C", "disk", "touch", "/PBD/x"];
    let output = run(&args, b"");
    assert_eq!((output.stdout.as_slice(), output.status.code()), (b"".as_slice(), Some(255)));
    assert!(leader() == before);
    silent(&["--take-over", "touch", &disk.at("/x")]);
    // Where that was forgotten meanwhile, nobody holds it any more.
    drop(lease);
    assert_eq!(disk.listing(), [("x".to_owned(), 0)]);
    disk.assert_sound();
}

#[test]
fn whoever_is_interrupted_gives_the_volume_back() {
    let disk = Disk::new();
    let mut child = start(&["write", &disk.at("/x")]);
    // Open, so that more may come.
    let input = child.stdin.take();
    while Holder::find(&mut Device::open(&disk.path).unwrap()).unwrap().is_none() {
        std::thread::yield_now();
    }
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    drop(input);
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    disk.assert_sound();
    silent(&["touch", &disk.at("/y")]);
}
