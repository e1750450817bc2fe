//! Volumes of the original as directories of the host.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pfs::format::Number;
use pfs::volume::{Volume, VolumePath};
use sha2::{Digest, Sha256};

/// A volume that is mounted by the program.
struct Mounted {
    child: Child,
    point: PathBuf,
    _directory: tempfile::TempDir,
}

impl Mounted {
    fn new(image: &Path) -> Self {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let point = directory.path().join("point");
        fs::create_dir(&point).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_pfs"));
        let mut child = command.arg("mount").arg(image).arg(&point).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut said).unwrap();
        assert!(said.contains(" is in "), "{said}");
        Self { child, point, _directory: directory }
    }

    fn ends(mut self) {
        assert!(self.child.wait().unwrap().success());
        assert_eq!(fs::read_dir(&self.point).unwrap().count(), 0, "it is still mounted");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A test that fails has said so; what is left of it goes with its directory.
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

macro_rules! needs_fuse {
    () => {
        tests::needs_root!();
        if !Path::new("/dev/fuse").exists() {
            tests::skip(std::thread::current().name().unwrap(), "needs FUSE: /dev/fuse");
            return;
        }
    };
}

#[test]
fn every_file_is_there() {
    needs_fuse!();
    for name in ["tree-10g", "grown-20g", "dirty-10g"] {
        let mounted = Mounted::new(&common::image(name));
        let sums = String::from_utf8(common::recorded(name, "files.sha256").unwrap()).unwrap();
        for line in sums.lines() {
            let (sum, path) = line.split_once("  ").unwrap();
            let path = mounted.point.join(OsStr::from_bytes(&common::path(path)));
            let mut bytes = Vec::new();
            File::open(&path).unwrap().read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes.len() as u64, fs::metadata(&path).unwrap().len());
            let found: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(found, sum, "{name}: {}", path.display());
        }
        kill(Pid::from_raw(mounted.child.id().cast_signed()), Signal::SIGINT).unwrap();
        mounted.ends();
    }
}

#[test]
fn ordinary_programs_look_inside() {
    needs_fuse!();
    let mounted = Mounted::new(&common::image("tree-10g"));
    let at = |path: &str| mounted.point.join(path);
    let listed = Command::new("find").arg(&mounted.point).args(["-mindepth", "1", "-printf", "%y"]).output().unwrap();
    let kinds = String::from_utf8(listed.stdout).unwrap();
    assert_eq!((kinds.matches('d').count(), kinds.matches('f').count()), (22, 339));
    let stat = fs::metadata(at("sizes/hole9m")).unwrap();
    assert_eq!((stat.len(), stat.blocks(), stat.blksize(), stat.mode() & 0o777), (9 << 20, 8192, 4 << 20, 0o444));
    let volume = Volume::open(&common::image("tree-10g")).unwrap();
    let inode = volume.metadata().lookup(&VolumePath::new("/sizes/hole9m")).unwrap();
    assert_eq!((stat.mtime() as u64, stat.ino()), (inode.mtime.0, inode.number.raw() + 1));
    let mut end = [1; 10];
    File::open(at("sizes/hole9m")).unwrap().read_exact_at(&mut end, 4 << 20).unwrap();
    assert_eq!(end, [0; 10]);
    for outcome in [
        OpenOptions::new().write(true).open(at("sizes/s1")).map(drop),
        File::create(at("new")).map(drop),
        fs::remove_file(at("sizes/s1")),
        fs::create_dir(at("directory")),
    ] {
        assert_eq!(outcome.unwrap_err().raw_os_error(), Some(libc::EROFS));
    }
    assert_eq!(File::open(at("sizes/nothere")).unwrap_err().raw_os_error(), Some(libc::ENOENT));
    assert!(Command::new("umount").arg(&mounted.point).status().unwrap().success());
    mounted.ends();
}

#[test]
fn what_another_writes_is_seen() {
    needs_fuse!();
    let (image, _directory) = common::copy("tree-10g");
    let mounted = Mounted::new(&image);
    let pfs = |args: &[&str]| {
        let place = format!("{}:/{}", image.display(), args.last().unwrap());
        let args = args[..args.len() - 1].iter().copied().chain([place.as_str()]);
        assert!(Command::new(env!("CARGO_BIN_EXE_pfs")).args(args).status().unwrap().success());
    };
    let file = mounted.point.join("sizes/s4097");
    assert_eq!(fs::metadata(&file).unwrap().len(), 4097);
    pfs(&["truncate", "-l", "10", "sizes/s4097"]);
    assert_eq!(fs::read(&file).unwrap().len(), 10);
    pfs(&["mkdir", "made"]);
    assert!(fs::metadata(mounted.point.join("made")).unwrap().is_dir());
    pfs(&["rm", "sizes/s4097"]);
    assert!(!file.exists());
}

#[test]
fn what_cannot_be_mounted_says_why() {
    let run = |args: &[&Path]| {
        let output = Command::new(env!("CARGO_BIN_EXE_pfs")).arg("mount").args(args).output().unwrap();
        (String::from_utf8(output.stderr).unwrap(), output.status.code().unwrap())
    };
    let (image, missing) = (common::image("tree-10g"), Path::new("/nothere/at/all"));
    let (said, code) = run(&[missing, Path::new("/tmp")]);
    assert_eq!((said.contains("cannot open /nothere/at/all"), code), (true, 1), "{said}");
    let (said, code) = run(&[&image, missing]);
    assert_eq!((said.contains("on /nothere/at/all"), code), (true, 1), "{said}");
}
