//! `vdisk attach`, `list` and `detach`, as a user runs them.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// A file of 1 MiB, whose device is given back at the end of the test.
struct Image {
    path: PathBuf,
}

impl Image {
    fn new(dir: &Path, name: &str) -> Self {
        let path = dir.join(name);
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        Self { path }
    }

    fn text(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// What `vdisk list` knows of its device.
    fn listed(&self) -> Option<Value> {
        let out = vdisk(&["list", "--output", "json"]);
        let Value::Array(devices) = serde_json::from_slice(&out.stdout).unwrap() else { panic!("a list") };
        devices.into_iter().find(|device| device["backing_file"] == self.text())
    }

    /// Whether its device has gone, or goes as soon as somebody who only looks at it has it closed.
    fn is_given_back(&self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.listed().is_some() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        self.listed().is_none()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = tests::program("vdisk").arg("detach").arg(&self.path).output();
    }
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn vdisk(arguments: &[&str]) -> Output {
    tests::program("vdisk").args(arguments).output().unwrap()
}

fn stdout(out: &Output) -> &str {
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    std::str::from_utf8(&out.stdout).unwrap().trim_end()
}

fn stderr(out: &Output) -> &str {
    std::str::from_utf8(&out.stderr).unwrap()
}

#[test]
fn a_file_is_attached_listed_and_detached() {
    tests::needs_root!();
    let dir = scratch();
    let image = Image::new(dir.path(), "disk");
    let name = format!("onedisk-test-{}", std::process::id());
    let out = vdisk(&["attach", image.text(), "--name", &name, "--block-size", "4096"]);
    let device = stdout(&out);
    assert!(device.starts_with("/dev/loop"), "{device}");

    let listed = image.listed().unwrap();
    assert_eq!(listed["path"], device);
    assert_eq!(listed["names"], serde_json::json!([name]));
    assert_eq!((&listed["direct_io"], &listed["logical_block_size"]), (&Value::Bool(true), &Value::from(4096)));
    assert_eq!(listed["is_ours"], false);
    let table = vdisk(&["list"]);
    let row = stdout(&table).lines().find(|line| line.contains(image.text())).unwrap();
    let cells = [device, &name, "1", "MiB", "4096", "direct", "rw", "other", image.text()];
    assert_eq!(row.split_whitespace().collect::<Vec<_>>(), cells);

    let again = vdisk(&["attach", image.text(), "--block-size", "4096", "--output", "json"]);
    let again: Value = serde_json::from_str(stdout(&again)).unwrap();
    assert_eq!((&again["path"], &again["is_new"]), (&Value::from(device), &Value::Bool(false)));

    let refused = vdisk(&["attach", image.text()]);
    assert_eq!(refused.status.code(), Some(3));
    assert!(stderr(&refused).contains("a second device would be a second cache over one disk"), "{}", stderr(&refused));

    assert_eq!(stdout(&vdisk(&["detach", &name])), device);
    assert_eq!(image.listed(), None);
    assert!(fs::symlink_metadata(Path::new("/dev").join(name)).is_err());
}

#[test]
fn a_name_that_is_taken_leaves_nothing_attached() {
    tests::needs_root!();
    let dir = scratch();
    let image = Image::new(dir.path(), "disk");
    let out = vdisk(&["attach", image.text(), "--name", "null"]);
    assert_eq!(out.status.code(), Some(3));
    let expected = "vdisk: /dev/null exists, and is not a link that onedisk made\n  hint: choose another --name\n";
    assert_eq!(stderr(&out), expected);
    assert!(image.is_given_back());
}

#[test]
fn one_that_is_in_use_keeps_no_other_from_being_detached() {
    tests::needs_root!();
    let dir = scratch();
    let (busy, idle) = (Image::new(dir.path(), "busy"), Image::new(dir.path(), "idle"));
    let devices = [&busy, &idle].map(|image| stdout(&vdisk(&["attach", image.text()])).to_owned());
    let open = File::open(&devices[0]).unwrap();
    let out = vdisk(&["detach", busy.text(), idle.text()]);
    assert_eq!(out.status.code(), Some(3));
    assert_eq!(String::from_utf8_lossy(&out.stdout).trim_end(), devices[1]);
    assert!(stderr(&out).contains(&format!("{} cannot be detached: open in ", devices[0])), "{}", stderr(&out));
    assert!(stderr(&out).contains(&format!("(pid {})", std::process::id())), "{}", stderr(&out));
    drop(open);
    assert!(idle.listed().is_none() && busy.listed().is_some());
}

/// Runs the program in a root directory that holds it, the system's libraries, and of all images only those in `visible`:
/// `--all` would otherwise detach what tests beside this one have attached.
fn vdisk_in_a_root_of_its_own(visible: &Path, arguments: &str) -> Output {
    let script = format!(
        "set -e; root=$1; vdisk=$2; visible=$3
        mount -t tmpfs tmpfs $root
        for dir in /usr /lib /lib64 /bin /dev /proc /sys $visible; do
            [ -d $dir ] || continue
            mkdir -p $root$dir; mount --rbind $dir $root$dir
        done
        cp $vdisk $root/vdisk
        exec chroot $root /vdisk {arguments}"
    );
    let root = tempfile::tempdir().unwrap();
    Command::new("unshare")
        .args(["--mount", "sh", "-c", &script, "sh"])
        .args([root.path().as_os_str(), tests::program("vdisk").get_program(), visible.as_os_str()])
        .output()
        .unwrap()
}

#[test]
fn all_detaches_what_onedisk_made_and_nothing_else() {
    tests::needs_root!();
    let (dir, elsewhere) = (scratch(), scratch());
    let ours = Image::new(dir.path(), "ours");
    let foreign = Image::new(dir.path(), "foreign");
    let unseen = Image::new(elsewhere.path(), "unseen");
    for image in [&ours, &unseen] {
        blockdev::mark::set(&File::options().write(true).open(&image.path).unwrap()).unwrap();
    }
    let devices = [&ours, &foreign, &unseen].map(|image| stdout(&vdisk(&["attach", image.text()])).to_owned());
    assert_eq!(ours.listed().unwrap()["is_ours"], true);

    let out = vdisk_in_a_root_of_its_own(dir.path(), "detach --all");
    assert_eq!(stdout(&out), devices[0]);
    assert!(ours.listed().is_none() && foreign.listed().is_some());
    assert!(unseen.listed().is_some(), "in doubt, a device is left alone");

    let out = vdisk_in_a_root_of_its_own(dir.path(), "detach --all");
    assert_eq!(stdout(&out), "");
    assert_eq!(stderr(&out), "no loop device is attached to a file that onedisk made\n");
}

#[test]
fn a_missing_node_is_made() {
    tests::needs_root!();
    let dir = scratch();
    let image = Image::new(dir.path(), "disk");
    // As in a container: a /dev of its own, without nodes of loop devices.
    let script = "set -e; vdisk=$1; image=$2
        mount -t tmpfs tmpfs /dev; mknod /dev/loop-control c 10 237; mknod /dev/null c 1 3
        device=$($vdisk attach $image); test -b $device; echo $device
        rm $device; $vdisk list; test -b $device
        rm $device; $vdisk detach $image";
    let out = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .args([tests::program("vdisk").get_program(), image.path.as_os_str()])
        .output()
        .unwrap();
    let lines: Vec<&str> = stdout(&out).lines().collect();
    assert_eq!(lines.first(), lines.last());
    assert!(lines[0].starts_with("/dev/loop"));
    assert_eq!(image.listed(), None);
}

#[test]
fn without_privilege_the_sudo_line_is_told() {
    tests::needs_root!();
    // Where everybody may go, unlike perhaps the directory of this repository.
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let program = dir.path().join("vdisk");
    fs::copy(tests::program("vdisk").get_program(), &program).unwrap();
    let image = Image::new(dir.path(), "a disk");
    fs::set_permissions(&image.path, Permissions::from_mode(0o666)).unwrap();
    let as_nobody = |command: &str, argument: &str| {
        Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&program)
            .args([command, argument])
            .output()
            .unwrap()
    };
    let (typed, text) = (program.display(), image.text());

    let out = as_nobody("attach", text);
    assert_eq!(out.status.code(), Some(6));
    let expected = format!(
        "vdisk: cannot open /dev/loop-control\n  because: Permission denied (os error 13)\n  hint: sudo {typed} attach '{text}'\n"
    );
    assert_eq!(stderr(&out), expected);

    let device = stdout(&vdisk(&["attach", text])).to_owned();
    let out = as_nobody("detach", &device);
    assert_eq!(out.status.code(), Some(6));
    assert!(stderr(&out).ends_with(&format!("hint: sudo {typed} detach {device}\n")), "{}", stderr(&out));
    assert!(stdout(&as_nobody("list", "--output=json")).contains(text), "looking needs no privilege");
    assert!(image.listed().is_some());
}

#[test]
fn bad_arguments_are_told() {
    for (arguments, why) in [
        (&["attach", "x", "--block-size", "1024"][..], "[possible values: 512, 4096]"),
        (&["attach", "x", "--name", "a/b"], "it contains a slash"),
        (&["detach"], "required"),
        (&["detach", "--all", "x"], "cannot be used with"),
    ] {
        let out = vdisk(arguments);
        assert_eq!(out.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&out).contains(why), "{arguments:?}: {}", stderr(&out));
    }
}
