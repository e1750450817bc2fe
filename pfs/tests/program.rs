//! The program `pfs` as a person uses it: names, outputs, errors, copies.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pfs::format::{LEADER_AT, LogOffset, LogPosition, Lsn, SECTOR_SIZE, Txid};
use pfs::volume::Volume;
use serde_json::Value;

fn pfs(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pfs")).args(args).env("TZ", "UTC").output().unwrap()
}

fn stdout(args: &[&str]) -> String {
    let output = pfs(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What a command that fails says, and its exit code.
fn failure(args: &[&str]) -> (String, i32) {
    let output = pfs(args);
    assert!(output.stdout.is_empty(), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
    (String::from_utf8(output.stderr).unwrap(), output.status.code().unwrap())
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&stdout(&[&["--output", "json"], args].concat())).unwrap()
}

fn image(name: &str) -> String {
    common::image(name).to_str().unwrap().to_owned()
}

#[test]
fn a_volume_is_named_as_a_file() {
    let image = image("tree-10g");
    let listing = stdout(&["ls", &format!("{image}:/cli")]);
    assert!(listing.starts_with("  File  1     10000             Sun Nov 22 17:21:58 2026  written\n"), "{listing}");
    assert!(listing.ends_with("\ntotal 32768 (unit: 512Bytes)\n"), "{listing}");
    // Names are any bytes, and printed as they are.
    let tree = pfs(&["tree", &format!("{image}:/")]).stdout;
    assert!(tree.ends_with(b"\n22 directories, 339 files\n"));
    let odd = b"\n |-bad-utf8-\xff\xfe";
    assert!(tree.windows(odd.len()).any(|part| part == odd));
    // Below the root, one slash is enough.
    let usage = stdout(&["du", "-a", "-d", "1", &format!("{image}:/cli/")]);
    assert_eq!(usage.lines().next().unwrap(), format!("128\t{image}:/cli/written"));
    assert_eq!(usage.lines().last().unwrap(), format!("8448\t{image}:/cli/"));
    let data = pfs(&["read", "-o", "0x0a", "-l", "5", &format!("{image}:/cli/written")]).stdout;
    let whole = pfs(&["read", &format!("{image}:/cli/written")]).stdout;
    assert_eq!((data.as_slice(), whole.len()), (&whole[10..15], 10_000));
    assert!(stdout(&["map", &format!("{image}:/sizes/s0")]).ends_with("bda\t\tcka\n"));
}

#[test]
fn a_listing_of_all_directories_is_that_of_each() {
    let image = image("tree-10g");
    let all = pfs(&["ls", "-R", &format!("{image}:/")]).stdout;
    let listings = json(&["ls", "-R", &format!("{image}:/")]);
    let listings = listings.as_array().unwrap();
    assert_eq!(listings.len(), 23);
    let mut expected = Vec::new();
    for listing in listings {
        let directory = listing["directory"].as_str().unwrap();
        assert_eq!(listing["entries"], json(&["ls", &format!("{image}:{directory}")]), "{directory}");
        expected.push([directory.as_bytes(), b":\n", &pfs(&["ls", &format!("{image}:{directory}")]).stdout].concat());
    }
    assert!(all == expected.join(&b'\n'));
    assert!(listings.iter().map(|listing| listing["entries"].as_array().unwrap().len()).sum::<usize>() == 361);
}

#[test]
fn info_says_what_a_person_asks() {
    let expected = "\
size        20 GiB (2 chunks of 10 GiB)
version     2
hosts       up to 30
journal     129.75 KiB of 16 MiB: 193 transactions, the last is 193
blocks      68 of 5120 used (19.73 GiB free)
  chunk 0    34 of 2560 used (9.87 GiB free)
  chunk 1    34 of 2560 used (9.87 GiB free)
direntries  57 of 4096 used
  chunk 0    29 of 2048 used
  chunk 1    28 of 2048 used
inodes      55 of 4096 used
  chunk 0    28 of 2048 used
  chunk 1    27 of 2048 used
";
    assert_eq!(stdout(&["info", "-d", "2", &image("grown-20g")]), expected);
}

#[test]
fn everything_that_reports_does_so_in_json() {
    let (image, flushed) = (image("tree-10g"), image("tree-10g-flushed"));
    let at = |path: &str| format!("{image}:{path}");
    let listing = json(&["ls", &at("/cli")]);
    assert_eq!(
        (&listing[0]["name"], &listing[0]["kind"], &listing[0]["size"]),
        (&"written".into(), &"file".into(), &10_000.into())
    );
    assert_eq!(json(&["tree", &at("/")]).as_array().unwrap().len(), 361);
    assert_eq!(json(&["stat", &at("/sizes")])["kind"], "directory");
    assert_eq!(json(&["du", "-d", "0", &at("/cli")])[0]["bytes"], 8448 << 10);
    let info = json(&["info", &image]);
    assert_eq!((&info["version"], &info["journal"]["head_txid"]), (&2.into(), &956.into()));
    assert_eq!(info["objects"][2]["kind"], "inode");
    let map = json(&["map", &at("/sizes/hole9m")]);
    assert_eq!(
        (&map["size"], &map["blocks"][0]["index"], &map["blocks"][0]["hole"]),
        (&9_437_184.into(), &2.into(), &1_048_576.into())
    );
    assert_eq!(json(&["usedinfo", "-t", "i", &image])[0]["used"].as_array().unwrap().len(), 362);
    let dump = json(&["dumpfs", &image]);
    assert_eq!((&dump["chunks"][0]["fields"]["ck_nchunk"], &dump["counts"][0]["used"]), (&1.into(), &6.into()));
    let object = json(&["dumpfs", "-m", "-t", "inode", "-o", "0", &image]);
    assert_eq!(object[0]["in_type"], 2);
    assert_eq!(json(&["dumple", "-t", "1", &image])[0]["de_name"], "cli");
    let report = json(&["check", &image]);
    assert_eq!((&report["complete"], &report["findings"]), (&true.into(), &Value::Array(Vec::new())));
    assert_eq!(json(&["diff", &image, &flushed]), Value::Array(Vec::new()));
}

#[test]
fn what_is_wrong_with_the_command_line_is_said() {
    let image = image("tree-10g");
    let missing = format!("{image}-missing");
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let empty = directory.path().join("empty");
    File::create(&empty).unwrap();
    let empty = empty.to_str().unwrap();
    let at = |path: &str| format!("{image}:{path}");
    for (args, code, says) in [
        (vec!["ls", &image], 2, "names no path in a volume"),
        (vec!["ls", &at("/nothere")], 1, "cannot find \"/nothere\": there is no \"nothere\""),
        (vec!["ls", &at("/sizes/s1")], 1, "inode 353 is no directory"),
        (vec!["ls", &at(&format!("/{}", "x".repeat(256)))], 1, "a name in it is too long"),
        (vec!["read", &at("/sizes")], 1, "is a directory"),
        (vec!["map", &at("/sizes")], 1, "is a directory"),
        (vec!["map", "-o", "1", &at("/sizes/s1")], 2, "there is no byte 1 in"),
        (vec!["info", "-d", "0", &image], 2, "levels are counted from 1"),
        (vec!["dumpfs", "-m", "-t", "file", &image], 2, "there is no kind \"file\" of objects"),
        (vec!["dumpfs", "-m", "-t", "3", "-o", "2048", &image], 2, "a chunk has no inode of index 2048"),
        (vec!["dumpfs", "-m", "-c", "1", &image], 2, "the volume has no chunk 1"),
        (vec!["dumpfs", "-c", "1", &image], 2, "and so no chunk 1"),
        (vec!["info", &missing], 1, "cannot open"),
        (vec!["info", directory.path().to_str().unwrap()], 2, "is neither a file nor a block device"),
        (vec!["info", empty], 2, "too little for a volume"),
        (vec!["check", empty], 2, "too little for a volume"),
        (vec!["read", "-l", "-1", &at("/sizes/s1")], 2, "unexpected argument"),
        (vec!["read", "-l", "ten", &at("/sizes/s1")], 2, "invalid digit"),
        (vec!["-H", "31", "info", &image], 2, "there can be no host 31"),
        (vec!["cp", &at("/sizes"), "x"], 1, "`cp -r` copies directories"),
    ] {
        let (text, found) = failure(&args);
        assert!(text.contains(says) && found == code, "{args:?}: {found}: {text}");
    }
}

#[test]
fn the_original_ends_as_it_always_did() {
    let disks = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    symlink(image("tree-10g"), disks.path().join("nvme1n1")).unwrap();
    fs::create_dir(disks.path().join("mapper")).unwrap();
    symlink(image("tree-10g"), disks.path().join("mapper/x")).unwrap();
    let zero = disks.path().join("zero");
    File::create(&zero).unwrap().set_len(10 << 30).unwrap();
    let run = |args: &[&str]| {
        let output = pfs(&[&["-C", "disk", "--devices", disks.path().to_str().unwrap()], args].concat());
        (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.code().unwrap())
    };
    let failed = |text: &str, code: i32| (text.to_owned(), code);
    assert_eq!(run(&["stat", "/nvme1n1/nothere"]), failed("stat failed: No such file or directory\n", 255));
    assert_eq!(run(&["read", "/nvme1n1/sizes"]), failed("read failed: Is a directory\n", 255));
    assert_eq!(run(&["ls", "/nvme1n1/sizes/s1"]), failed("ls failed: Not a directory\n", 255));
    assert_eq!(run(&["map", "-o", "1", "/nvme1n1/sizes/s1"]), failed("map failed: impl specific\n", 234));
    assert_eq!(run(&["info", "-d", "0", "nvme1n1"]), failed("info failed: impl specific\n", 255));
    assert_eq!(run(&["cp", "-S", "disk", "/nvme1n1/sizes", "/tmp"]), failed("cp failed: impl specific\n", 235));
    assert_eq!(run(&["dumpfs", "-m", "-t", "inode", "nvme1n1"]), failed("", 0));
    assert_eq!(run(&["ls", "/nvme1n1"]), failed("", 22));
    assert_eq!(run(&["ls", "nvme1n1/"]), failed("", 255));
    assert_eq!(run(&["ls", &format!("/{}/", "x".repeat(64))]), failed("", 36));
    assert_eq!(run(&["ls", "/missing/"]), failed("", 255));
    assert_eq!(run(&["info", "zero"]), failed("", 5));
    assert_eq!(run(&["-H", "31", "ls", "/nvme1n1/"]), failed("", 255));
    assert_eq!(run(&["frobnicate", "x"]), failed("", 1));
    assert_eq!(run(&["ls"]), failed("", 255));
    assert_eq!(run(&["du", "-d", "-1", "/nvme1n1/"]), failed("", 255));
    assert!(run(&["ls", "//nvme1n1//sizes/"]).0.ends_with("(unit: 512Bytes)\n"));
    assert_eq!(run(&["du", "-d", "0", "/mapper_x/cli"]), failed("8448\t/mapper_x/cli\n", 0));
    let wrong = pfs(&["-C", "polarstore", "ls", "/nvme1n1/"]);
    assert_eq!((wrong.stdout.len(), wrong.status.code()), (0, Some(255)));
}

#[test]
fn damage_is_told_with_its_address() {
    let (path, _directory) = common::copy("tree-10g-flushed");
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[1], 0x9_1000 + 353 * 128 + 80).unwrap();
    let path = path.to_str().unwrap();
    let (text, code) = failure(&["ls", &format!("{path}:/")]);
    assert!(text.contains("the volume is damaged\n  because: inode 353 at 0x9c080: mo_checksum: 0x"), "{text}");
    assert_eq!((text.contains("hint: `pfs check` lists everything"), code), (true, 5));
    let output = pfs(&["check", path]);
    let report = String::from_utf8(output.stdout).unwrap();
    assert!(report.starts_with("damage: inode 353 at 0x9c080: mo_checksum: 0x"), "{report}");
    assert_eq!(report.lines().count(), 2);
    assert_eq!(output.status.code(), Some(5));
    assert!(String::from_utf8(output.stderr).unwrap().ends_with("is damaged in one place\n"));
    // What is damaged can be looked at all the same.
    assert!(stdout(&["dumpfs", "-m", "-t", "3", "-o", "353", path]).contains("\n  in_atime   1\n"));
}

#[test]
fn two_volumes_are_compared() {
    let (fresh, tree) = (image("fresh-10g"), image("tree-10g"));
    let output = pfs(&["diff", &fresh, &tree]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("/.pfs-journal: size: 33554432 | 16777216\n"), "{text}");
    assert!(text.contains("\n/sizes/s1: exists: no | yes\n"), "{text}");
    assert_eq!(output.status.code(), Some(5));
    assert_eq!(stdout(&["diff", "--objects", "--times", &tree, &tree]), "");
}

/// The names below a directory, with the sizes of files.
fn found(directory: &Path) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type().unwrap().is_dir() {
            found.push((format!("{name}/"), 0));
            found.extend(self::found(&entry.path()).into_iter().map(|(inner, size)| (format!("{name}/{inner}"), size)));
        } else {
            found.push((name, entry.metadata().unwrap().len()));
        }
    }
    found.sort();
    found
}

#[test]
fn a_tree_is_copied_out() {
    let image = image("tree-10g");
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let target = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let copied = json(&["cp", "-r", &format!("{image}:/"), &target("all")]);
    assert_eq!((copied["files"].as_array().unwrap().len(), &copied["directories"]), (337, &23.into()));
    let names = found(&directory.path().join("all"));
    assert_eq!(names.len(), 337 + 22);
    // Every byte, against what `read` prints.
    for path in ["cli/written", "sizes/hole9m", "sizes/s4194305", "mv/b/target", "deep/level2/level3/level4/leaf4"] {
        let host = fs::read(directory.path().join("all").join(path)).unwrap();
        assert_eq!(host, pfs(&["read", &format!("{image}:/{path}")]).stdout, "{path}");
    }
    let hole = fs::metadata(directory.path().join("all/sizes/hole9m")).unwrap();
    assert!(hole.len() == 9_437_184 && hole.blocks() * 512 < 4 << 20, "{} blocks", hole.blocks());

    // Into a directory that exists; again over itself; a single file.
    fs::create_dir(target("in")).unwrap();
    assert_eq!(
        stdout(&["cp", "-r", &format!("{image}:/cli"), &target("in")]),
        "copied 4 files and 5 directories: 14.65 KiB of data\n"
    );
    assert!(directory.path().join("in/cli/p/q/r").is_dir());
    stdout(&["cp", "-r", &format!("{image}:/cli"), &target("in")]);
    stdout(&["cp", &format!("{image}:/cli/written"), &target("in")]);
    stdout(&["cp", &format!("{image}:/cli/written"), &target("renamed")]);
    assert_eq!(fs::read(target("in/written")).unwrap(), fs::read(target("renamed")).unwrap());

    // What is in the way stays as it is, and nothing is left behind.
    fs::write(target("renamed"), "mine").unwrap();
    fs::write(target("in/cli/p/q/r/x"), "mine").unwrap();
    let before = found(directory.path());
    let (text, code) = failure(&["cp", &format!("{image}:/cli/written"), &target("renamed")]);
    assert!(text.contains("exists") && text.contains("cp -f") && code == 3, "{text}");
    let (text, code) = failure(&["cp", "-f", &format!("{image}:/cli/written"), &target("missing/x")]);
    assert!(text.contains("cannot make") && code == 1, "{text}");
    let (text, code) = failure(&["cp", "-r", &format!("{image}:/cli"), &target("renamed")]);
    assert!(text.contains("exists, and is no directory") && code == 3, "{text}");
    assert_eq!(found(directory.path()), before);
    stdout(&["cp", "-f", &format!("{image}:/cli/written"), &target("renamed")]);
    assert_eq!(fs::metadata(target("renamed")).unwrap().len(), 10_000);
}

#[test]
fn the_original_says_each_file_it_copies() {
    let disks = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    symlink(image("tree-10g"), disks.path().join("nvme1n1")).unwrap();
    let target = disks.path().join("target");
    let options = ["-C", "disk", "--devices", disks.path().to_str().unwrap()];
    let out = stdout(&[&options[..], &["cp", "-r", "/nvme1n1/deep", target.to_str().unwrap()]].concat());
    let line = format!("copy file from /nvme1n1/deep/leaf1 to {}/leaf1 succeeded", target.display());
    let copied: Vec<&str> = out.lines().collect();
    assert_eq!(copied.len(), found(&target).iter().filter(|(name, _)| !name.ends_with('/')).count());
    assert!(
        copied.iter().all(|line| line.starts_with("copy file from /nvme1n1/deep/") && line.ends_with(" succeeded")),
        "{line}: {out}"
    );
}

#[test]
fn a_copy_that_fails_leaves_nothing_half() {
    let (path, _directory) = common::copy("tree-10g-flushed");
    // The second block of the file is somebody else's.
    let volume = Volume::open(&path).unwrap();
    let inode = volume.metadata().lookup(&pfs::volume::VolumePath::new("/sizes/s4194305")).unwrap().number;
    let last = volume.metadata().file_map(inode).unwrap().blocks().last().unwrap().1.tag;
    let slot = pfs::format::Number::slot(last).start().bytes();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[9, 0, 0, 0], slot + 40).unwrap();
    file.write_all_at(&[0; 4], slot + 36).unwrap();
    let target = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let to = target.path().join("s");
    fs::write(&to, "mine").unwrap();
    let from = format!("{}:/sizes/s4194305", path.display());
    let (text, code) = failure(&["cp", "-f", &from, to.to_str().unwrap()]);
    assert!(text.contains("bt_ino: 9, but it is in the list of inode 366") && code == 5, "{text}");
    assert_eq!(found(target.path()), [("s".to_owned(), 4)]);
}

#[test]
fn nobody_reads_on_into_a_closed_pipe() {
    let (path, _directory) = common::copy("tree-10g-flushed");
    // A file of 4 EiB, nearly all hole: printed to its end it would take years.
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let inode = 0x9_1000 + 366 * 128;
    file.write_all_at(&(1u64 << 62).to_le_bytes(), inode + 72).unwrap();
    file.write_all_at(&[0; 4], inode + 36).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_pfs"))
        .args(["read", "-o", "5000000", &format!("{}:/sizes/s4194305", path.display())])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut bytes = [0xff; 1000];
    child.stdout.take().unwrap().read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, [0; 1000]);
    assert!(child.wait().unwrap().success());
}

#[test]
fn tail_prints_what_is_appended() {
    // /cli/written grows from nothing to 10,000 bytes within the first transactions of this journal.
    let (path, _directory) = common::copy("tree-10g");
    let latest = Volume::open(&path).unwrap().leader().clone();
    let write = |sector: [u8; SECTOR_SIZE]| {
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&sector, LEADER_AT.bytes()).unwrap();
        file.sync_data().unwrap();
    };
    // The state after a number of transactions, of which each entry's number is known from the journal.
    let dump = json(&["dumple", path.to_str().unwrap()]);
    let state = |txid: u64| {
        let entries =
            dump.as_array().unwrap().iter().filter(|entry| entry["le_txid"].as_u64().unwrap() <= txid).count() as u64;
        let head = LogPosition { txid: Txid::new(txid).unwrap(), offset: LogOffset::new(entries * 256).unwrap() };
        pfs::format::LeaderRecord { head, head_lsn: Lsn::new(entries).unwrap(), ..latest.clone() }.write()
    };
    let inode = dump.as_array().unwrap().iter().find(|entry| entry["de_name"] == "written").unwrap()["de_ino"].clone();
    let sizes: Vec<(u64, u64)> = dump
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| entry["mo_type"] == "inode" && entry["mo_number"] == inode)
        .map(|entry| (entry["le_txid"].as_u64().unwrap(), entry["in_size"].as_u64().unwrap()))
        .collect();
    let made = sizes[0].0;
    let whole = sizes.iter().find(|(_, size)| *size == 10_000).unwrap().0;
    let (before, after) = (state(made), state(whole));
    write(before);
    let place = format!("{}:/cli/written", path.display());
    let mut child = Command::new(env!("CARGO_BIN_EXE_pfs"))
        .args(["tail", "--interval", "1", &place])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut bytes = vec![0; 10_000];
    let seen = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Over and over: when it looks for the first time is not known.
        scope.spawn(|| {
            while !seen.load(Ordering::Relaxed) {
                write(before);
                std::thread::sleep(Duration::from_millis(50));
                write(after);
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let outcome = out.read_exact(&mut bytes);
        seen.store(true, Ordering::Relaxed);
        outcome.unwrap();
    });
    assert_eq!(bytes, pfs(&["read", &format!("{}:/cli/written", image("tree-10g"))]).stdout);
    // SAFETY: the process is ours, and still there: nobody has waited for it.
    unsafe { libc::kill(i32::try_from(child.id()).unwrap(), libc::SIGINT) };
    // Its output stays open until it has gone: a closed pipe would end it otherwise.
    assert_eq!(child.wait().unwrap().code(), Some(130));
    drop(out);
}

/// A loop device on a file; it goes with this.
struct Loop(String);

impl Loop {
    fn attach(image: &Path) -> Self {
        let args = ["--find", "--show", "--read-only", "--direct-io=on"];
        let output = Command::new("losetup").args(args).arg(image).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self(String::from_utf8(output.stdout).unwrap().trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // A test that failed already has its own report.
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn a_real_device_is_a_volume_too() {
    tests::needs_root!();
    let device = Loop::attach(&common::image("grown-20g"));
    let listing = stdout(&["tree", &format!("{}:/", device.0)]);
    assert!(listing.ends_with("\n3 directories, 51 files\n"), "{listing}");
    let disk = device.0.strip_prefix("/dev/").unwrap();
    assert_eq!(stdout(&["-C", "disk", "tree", &format!("/{disk}/")]), listing);
}

#[test]
fn completions_and_the_man_page_are_printed() {
    assert!(stdout(&["completions", "bash"]).contains("_pfs()"));
    assert!(stdout(&["completions", "man"]).contains(".TH pfs 1"));
    assert_eq!(pfs(&["--help"]).status.code(), Some(0));
    assert_eq!(pfs(&["-C", "disk", "--help"]).status.code(), Some(0));
}
