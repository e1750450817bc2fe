//! Real loop devices.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs::{self, File, OpenOptions};
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Barrier, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use blockdev::loopdev::{self, Attachment, LoopDevice, Name, Options};
use blockdev::{ByteOffset, ByteSize, ErrorKind};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// A sparse file, in a directory that goes with it.
struct Image {
    path: PathBuf,
    dir: tempfile::TempDir,
}

impl Image {
    fn new(size: ByteSize) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = dir.path().join("disk");
        File::create(&path).unwrap().set_len(size.bytes()).unwrap();
        Self { path, dir }
    }

    fn attach(&self) -> Attachment {
        loopdev::attach(&self.path, &Options::default()).unwrap()
    }

    fn users(&self) -> Vec<LoopDevice> {
        loopdev::users_of(&File::open(&self.path).unwrap()).unwrap()
    }
}

/// Keeps the tests of this file apart. Loop devices belong to the whole machine: their numbers are given again, and a test
/// that lists them has those of the others open for a moment.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for `done`: whoever looks at all devices keeps one a moment longer.
fn wait_for(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A device that another program attached, given back at the end of the test.
struct Foreign(PathBuf);

impl Foreign {
    fn attach(file: &Path, options: &[&str]) -> Self {
        let out = Command::new("losetup").args(["--find", "--show"]).args(options).arg(file).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        Self(PathBuf::from(String::from_utf8(out.stdout).unwrap().trim()))
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn a_device_that_another_program_attached_is_described() {
    tests::needs_root!();
    let _alone = alone();
    let image = Image::new(ByteSize::mib(8));
    assert_eq!(image.users(), []);
    let options = ["--offset", "4096", "--sizelimit", "1048576", "--read-only", "--sector-size", "4096"];
    let foreign = Foreign::attach(&image.path, &options);
    let [device] = &image.users()[..] else { panic!("one device uses the file") };
    assert_eq!(device.path, foreign.0);
    assert_eq!(device.backing_file, image.path);
    assert_eq!(device.offset, ByteOffset::new(4096));
    assert_eq!(device.size_limit, Some(ByteSize::mib(1)));
    assert_eq!(device.size, ByteSize::mib(1));
    assert_eq!(device.logical_block_size, ByteSize::kib(4));
    assert!(device.read_only && !device.direct_io && !device.autoclear && !device.deleted);
    assert!(loopdev::list().contains(device));
}

#[test]
fn a_file_in_use_is_found_under_any_name() {
    tests::needs_root!();
    let _alone = alone();
    let image = Image::new(ByteSize::mib(1));
    let foreign = Foreign::attach(&image.path, &["--direct-io=on"]);
    let renamed = image.dir.path().join("renamed (deleted)");
    fs::rename(&image.path, &renamed).unwrap();
    let link = image.dir.path().join("link");
    fs::hard_link(&renamed, &link).unwrap();
    let open = File::open(&link).unwrap();
    let [device] = &loopdev::users_of(&open).unwrap()[..] else { panic!("found through a link") };
    assert_eq!((&device.path, &device.backing_file), (&foreign.0, &renamed));
    assert!(device.direct_io && !device.deleted);

    fs::write(&image.path, "another file under the old name").unwrap();
    assert_eq!(image.users(), []);

    fs::remove_file(&renamed).unwrap();
    fs::remove_file(&link).unwrap();
    let [device] = &loopdev::users_of(&open).unwrap()[..] else { panic!("found without any name") };
    assert_eq!((&device.path, &device.backing_file), (&foreign.0, &renamed));
    assert!(device.deleted);
}

#[test]
fn a_device_on_a_device_is_found_through_any_node() {
    tests::needs_root!();
    let _alone = alone();
    let image = Image::new(ByteSize::mib(1));
    let lower = Foreign::attach(&image.path, &[]);
    let upper = Foreign::attach(&lower.0, &[]);
    let node = image.dir.path().join("node");
    let number = nix::sys::stat::stat(&lower.0).unwrap().st_rdev;
    nix::sys::stat::mknod(&node, nix::sys::stat::SFlag::S_IFBLK, nix::sys::stat::Mode::S_IRUSR, number).unwrap();
    let users = loopdev::users_of(&File::open(&node).unwrap()).unwrap();
    assert_eq!(users.iter().map(|device| &device.path).collect::<Vec<_>>(), [&upper.0]);
}

fn run(program: &str, arguments: &[&str]) {
    let out = Command::new(program).args(arguments).output().unwrap();
    assert!(out.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// A file system mounted in a directory of its own, given back at the end of the test.
struct Mount {
    point: tempfile::TempDir,
}

impl Mount {
    fn new(arguments: &[&str]) -> Self {
        let point = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        run("mount", &[arguments, &[point.path().to_str().unwrap()]].concat());
        Self { point }
    }

    fn ext4(device: &Path) -> Self {
        let device = device.to_str().unwrap();
        run("mkfs.ext4", &["-q", device]);
        Self::new(&[device])
    }

    fn path(&self) -> &Path {
        self.point.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

/// A process that is ended at the end of the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A name in /dev that no other test has, and that is gone at the end of the test.
struct TestName(Name);

impl TestName {
    fn new(what: &str) -> Self {
        Self(format!("onedisk-test-{}-{what}", std::process::id()).parse().unwrap())
    }
}

impl Drop for TestName {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.0.path());
    }
}

#[test]
fn what_is_written_to_the_device_is_in_the_file() {
    tests::needs_root!();
    let _alone = alone();
    let image = Image::new(ByteSize::mib(1));
    let attachment = image.attach();
    let device = attachment.device();
    assert!(attachment.is_new());
    assert_eq!((device.size, device.logical_block_size), (ByteSize::mib(1), ByteSize::new(512)));
    assert!(device.direct_io && !device.read_only && device.autoclear);
    let node = OpenOptions::new().write(true).open(&device.path).unwrap();
    node.write_all_at(&[7; 4096], 8192).unwrap();
    node.sync_all().unwrap();
    assert_eq!(fs::read(&image.path).unwrap()[8192..][..4096], [7; 4096]);
}

#[test]
fn a_dropped_attachment_is_given_back_and_a_kept_one_stays() {
    tests::needs_root!();
    let _alone = alone();
    let image = Image::new(ByteSize::mib(1));
    drop(image.attach());
    wait_for("it is given back", || image.users().is_empty());
    let device = image.attach().keep().unwrap();
    assert!(!device.autoclear);
    assert_eq!(image.users(), std::slice::from_ref(&device));
    loopdev::detach(&device).unwrap();
    assert_eq!(image.users(), []);
    let error = loopdev::detach(&device).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(error.to_string(), format!("{} is not attached", device.path.display()));
}

#[test]
fn attaching_what_is_attached_gives_the_same_device() {
    tests::needs_root!();
    let _alone = alone();
    let image = Image::new(ByteSize::mib(1));
    let first = image.attach();
    let link = image.dir.path().join("link");
    symlink(&image.path, &link).unwrap();
    let second = loopdev::attach(&link, &Options::default()).unwrap();
    assert!(!second.is_new());
    assert_eq!(second.device(), first.device());
    drop(second);
    assert_eq!(image.users(), std::slice::from_ref(first.device()));
    let path = first.device().path.display().to_string();

    for (options, difference) in [
        (Options { logical_block_size: ByteSize::new(4096), ..Options::default() }, "with 512-byte blocks"),
        (Options { direct_io: false, ..Options::default() }, "with direct I/O"),
        (Options { read_only: true, ..Options::default() }, "for writing"),
    ] {
        let error = loopdev::attach(&image.path, &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        let text = error.to_string();
        assert!(text.contains(&format!("is attached to {path} already, {difference}; a second device")), "{text}");
        assert!(error.hint().unwrap().contains(&format!("vdisk detach {path}")));
    }
    first.detach().unwrap();
    assert_eq!(image.users(), []);
}

#[test]
fn a_second_device_on_a_part_of_the_file_is_refused() {
    tests::needs_root!();
    let _alone = alone();
    let image = Image::new(ByteSize::mib(1));
    let _foreign = Foreign::attach(&image.path, &["--offset", "4096", "--direct-io=on"]);
    let error = loopdev::attach(&image.path, &Options::default()).unwrap_err();
    assert!(error.to_string().contains("as a part of the file"), "{error}");
}

#[test]
fn blocks_of_4096_read_only_and_buffered() {
    tests::needs_root!();
    let _alone = alone();
    let image = Image::new(ByteSize::mib(1));
    let options = Options { logical_block_size: ByteSize::kib(4), direct_io: false, read_only: true };
    let attachment = loopdev::attach(&image.path, &options).unwrap();
    let device = attachment.device();
    assert!(device.read_only && !device.direct_io);
    assert_eq!(device.logical_block_size, ByteSize::kib(4));
    let written = OpenOptions::new().write(true).open(&device.path).and_then(|node| node.write_all_at(&[1; 4096], 0));
    assert!(written.is_err());
}

#[test]
fn sixteen_at_once_get_sixteen_devices() {
    tests::needs_root!();
    let _alone = alone();
    let images: Vec<Image> = (0..16).map(|_| Image::new(ByteSize::mib(1))).collect();
    let start = Barrier::new(images.len());
    let attachments: Vec<Attachment> = thread::scope(|scope| {
        let attach = |image| {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                Image::attach(image)
            })
        };
        let threads: Vec<_> = images.iter().map(attach).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut numbers: Vec<u32> = attachments.iter().map(|attachment| attachment.device().number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), images.len());
    for (image, attachment) in images.iter().zip(&attachments) {
        assert!(attachment.is_new());
        assert_eq!(image.users(), std::slice::from_ref(attachment.device()));
        assert_eq!(attachment.device().backing_file, image.path);
    }
}

#[test]
fn sixteen_who_attach_one_file_share_one_device() {
    tests::needs_root!();
    let _alone = alone();
    let image = Image::new(ByteSize::mib(1));
    let start = Barrier::new(16);
    let attachments: Vec<Attachment> = thread::scope(|scope| {
        let attach = || {
            start.wait();
            image.attach()
        };
        let threads: Vec<_> = (0..16).map(|_| scope.spawn(attach)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(attachments.iter().filter(|attachment| attachment.is_new()).count(), 1);
    assert!(attachments.iter().all(|attachment| attachment.device().number == attachments[0].device().number));
    assert_eq!(image.users().len(), 1);
}

#[test]
fn a_lock_of_somebody_else_is_waited_for() {
    tests::needs_root!();
    let _alone = alone();
    let image = Image::new(ByteSize::mib(1));
    let lock = Flock::lock(File::open(&image.path).unwrap(), FlockArg::LockExclusive).unwrap();
    thread::scope(|scope| {
        let attaching = scope.spawn(|| image.attach());
        thread::sleep(Duration::from_millis(50));
        assert!(!attaching.is_finished());
        drop(lock);
        assert!(attaching.join().unwrap().is_new());
    });
}

#[test]
fn a_mounted_device_is_refused_with_its_mount_point() {
    tests::needs_root!();
    let _alone = alone();
    let image = Image::new(ByteSize::mib(8));
    let device = image.attach().keep().unwrap();
    let mount = Mount::ext4(&device.path);
    let error = loopdev::detach(&device).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    let point = mount.path().display().to_string();
    assert_eq!(error.to_string(), format!("{} cannot be detached: mounted on {point}", device.path.display()));
    assert_eq!(error.hint(), Some(&*format!("first: sudo umount {point}")));
    assert_eq!(image.users(), std::slice::from_ref(&device), "and it is as it was");
    drop(mount);
    loopdev::detach(&device).unwrap();
}

#[test]
fn a_mount_in_another_namespace_is_seen() {
    tests::needs_root!();
    let _alone = alone();
    let image = Image::new(ByteSize::mib(8));
    let device = image.attach().keep().unwrap();
    run("mkfs.ext4", &["-q", device.path.to_str().unwrap()]);
    let point = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let script =
        format!("mount {} {} && echo mounted && exec sleep 1000", device.path.display(), point.path().display());
    let mut container =
        Process(Command::new("unshare").args(["-m", "sh", "-c", &script]).stdout(Stdio::piped()).spawn().unwrap());
    let mut mounted = [0; 8];
    std::io::Read::read_exact(container.0.stdout.as_mut().unwrap(), &mut mounted).unwrap();
    let error = loopdev::detach(&device).unwrap_err();
    assert!(error.to_string().contains(&format!("mounted on {}", point.path().display())), "{error}");
    drop(container);
    loopdev::detach(&device).unwrap();
}

#[test]
fn an_open_device_is_refused_with_the_process() {
    tests::needs_root!();
    let _alone = alone();
    let image = Image::new(ByteSize::mib(1));
    let device = image.attach().keep().unwrap();
    let process = Process(Command::new("sleep").arg("1000").stdin(File::open(&device.path).unwrap()).spawn().unwrap());
    let error = loopdev::detach(&device).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    let pid = process.0.id();
    assert_eq!(error.to_string(), format!("{} cannot be detached: open in sleep (pid {pid})", device.path.display()));
    assert_eq!(image.users(), std::slice::from_ref(&device), "and it is as it was");
    drop(process);
    loopdev::detach(&device).unwrap();
}

#[test]
fn a_user_that_cannot_be_seen_is_refused_and_the_device_is_as_it_was() {
    tests::needs_root!();
    let _alone = alone();
    let image = Image::new(ByteSize::mib(1));
    let device = image.attach().keep().unwrap();
    // A mapping keeps the device open, without a descriptor.
    let len = NonZeroUsize::new(4096).unwrap();
    let node = File::open(&device.path).unwrap();
    // SAFETY: nobody reads the mapping.
    let mapping = unsafe { mmap(None, len, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, &node, 0) }.unwrap();
    drop(node);
    let error = loopdev::detach(&device).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("in use by somebody who is not visible here"), "{error}");
    assert_eq!(image.users(), std::slice::from_ref(&device), "above all, the kernel will not detach it later");
    // SAFETY: it is ours, and nobody reads it.
    unsafe { munmap(mapping, len.get()) }.unwrap();
    loopdev::detach(&device).unwrap();
}

#[test]
fn swap_and_a_device_on_top_are_refused() {
    tests::needs_root!();
    let _alone = alone();
    let image = Image::new(ByteSize::mib(1));
    let device = image.attach().keep().unwrap();
    let path = device.path.to_str().unwrap();

    let above = Foreign::attach(&device.path, &[]);
    let error = loopdev::detach(&device).unwrap_err();
    assert!(error.to_string().contains(&format!("held by {}", above.0.display())), "{error}");
    drop(above);

    run("mkswap", &[path]);
    run("swapon", &[path]);
    let error = loopdev::detach(&device).unwrap_err();
    run("swapoff", &[path]);
    assert!(error.to_string().contains("used as swap"), "{error}");
    assert_eq!(error.hint(), Some(&*format!("first: sudo swapoff {path}")));
    loopdev::detach(&device).unwrap();
}

#[test]
fn a_name_leads_to_the_device_and_goes_with_it() {
    tests::needs_root!();
    let _alone = alone();
    let image = Image::new(ByteSize::mib(1));
    let name = TestName::new("a");
    let mut attachment = image.attach();
    attachment.give_name(&name.0).unwrap();
    attachment.give_name(&name.0).unwrap();
    let number = attachment.device().number;
    assert_eq!(fs::read_link(name.0.path()).unwrap(), PathBuf::from(format!("loop{number}")));
    assert_eq!(attachment.device().names, std::slice::from_ref(&name.0));
    drop(attachment);
    assert!(fs::symlink_metadata(name.0.path()).is_err(), "gone with the attachment");

    let mut attachment = image.attach();
    attachment.give_name(&name.0).unwrap();
    let device = attachment.keep().unwrap();
    for named in [&name.0.path(), Path::new(&name.0.to_string()), &device.path, &image.path] {
        assert_eq!(loopdev::find(named).unwrap(), std::slice::from_ref(&device), "{}", named.display());
    }
    loopdev::detach(&device).unwrap();
    assert!(fs::symlink_metadata(name.0.path()).is_err(), "gone with the device");
}

#[test]
fn a_name_that_is_not_ours_is_never_taken() {
    tests::needs_root!();
    let _alone = alone();
    let (image, other) = (Image::new(ByteSize::mib(1)), Image::new(ByteSize::mib(1)));
    let name = TestName::new("b");
    let path = name.0.path();
    let mut attachment = image.attach();

    fs::write(&path, "precious").unwrap();
    let error = attachment.give_name(&name.0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert_eq!(error.to_string(), format!("{} exists, and is not a link that onedisk made", path.display()));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    fs::remove_file(&path).unwrap();

    symlink("/dev/null", &path).unwrap();
    attachment.give_name(&name.0).unwrap_err();
    assert_eq!(fs::read_link(&path).unwrap(), Path::new("/dev/null"));
    fs::remove_file(&path).unwrap();

    // Ours, but in use.
    let mut second = other.attach();
    second.give_name(&name.0).unwrap();
    let error = attachment.give_name(&name.0).unwrap_err();
    assert!(error.to_string().contains("is the name of"), "{error}");
    assert!(error.to_string().contains(other.path.to_str().unwrap()), "{error}");
    second.detach().unwrap();

    // Ours, and left over from a device that went away without us.
    symlink("loop1048575", &path).unwrap();
    attachment.give_name(&name.0).unwrap();
    assert_eq!(fs::read_link(&path).unwrap(), PathBuf::from(format!("loop{}", attachment.device().number)));
}

#[test]
fn a_device_sees_that_its_file_has_grown() {
    tests::needs_root!();
    let _alone = alone();
    let image = Image::new(ByteSize::mib(1));
    let attachment = image.attach();
    OpenOptions::new().write(true).open(&image.path).unwrap().set_len(ByteSize::mib(3).bytes()).unwrap();
    assert_eq!(attachment.device().size, ByteSize::mib(1));
    assert_eq!(attachment.device().refresh_size().unwrap().size, ByteSize::mib(3));
}

#[test]
fn a_file_system_without_direct_io_is_named() {
    tests::needs_root!();
    let _alone = alone();
    let mount = Mount::new(&["-t", "ramfs", "ramfs"]);
    let path = mount.path().join("disk");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let error = loopdev::attach(&path, &Options::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let text = error.to_string();
    assert_eq!(text, format!("{} cannot be attached with direct I/O: ramfs has none", path.display()));
    assert!(error.hint().unwrap().contains("--buffered"));
    let file = File::open(&path).unwrap();
    wait_for("nothing stays behind", || loopdev::users_of(&file).unwrap().is_empty());
    let buffered = loopdev::attach(&path, &Options { direct_io: false, ..Options::default() }).unwrap();
    assert!(!buffered.device().direct_io);
}

#[test]
fn blocks_too_small_for_direct_io_are_named() {
    tests::needs_root!();
    let _alone = alone();
    let image = Image::new(ByteSize::mib(16));
    let options = Options { logical_block_size: ByteSize::kib(4), ..Options::default() };
    let below = loopdev::attach(&image.path, &options).unwrap();
    let mount = Mount::ext4(&below.device().path);
    let path = mount.path().join("disk");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let error = loopdev::attach(&path, &Options::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let text = error.to_string();
    assert!(text.ends_with("ext4 wants units of 4096 bytes, and the device has blocks of 512"), "{text}");
    assert_eq!(error.hint(), Some("--block-size 4096"));
    let attachment = loopdev::attach(&path, &options).unwrap();
    assert!(attachment.device().direct_io);
    drop(attachment);
    drop(mount);
    below.detach().unwrap();
}

#[test]
fn a_read_only_file_system_takes_a_read_only_device() {
    tests::needs_root!();
    let _alone = alone();
    let mount = Mount::new(&["-t", "tmpfs", "tmpfs"]);
    let path = mount.path().join("disk");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    run("mount", &["-o", "remount,ro", mount.path().to_str().unwrap()]);
    let options = Options { direct_io: false, ..Options::default() };
    let error = loopdev::attach(&path, &options).unwrap_err();
    assert_eq!(error.hint(), Some("attach it read-only: --read-only"));
    loopdev::attach(&path, &Options { read_only: true, ..options }).unwrap();
}

#[test]
fn what_cannot_be_attached_says_why() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = |name: &str, size| {
        let path = dir.path().join(name);
        File::create(&path).unwrap().set_len(size).unwrap();
        path
    };
    let pipe = dir.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
    for (path, kind, why) in [
        (dir.path().join("missing"), ErrorKind::NotFound, "cannot open"),
        (dir.path().to_owned(), ErrorKind::InvalidInput, "no regular file"),
        (pipe, ErrorKind::InvalidInput, "no regular file"),
        (file("empty", 0), ErrorKind::InvalidInput, "is empty"),
        (file("odd", 4097), ErrorKind::InvalidInput, "4097 bytes, which is not a whole number of 512-byte blocks"),
    ] {
        let error = loopdev::attach(&path, &Options::default()).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
    let options = Options { logical_block_size: ByteSize::kib(1), ..Options::default() };
    let error = loopdev::attach(&file("good", 4096), &options).unwrap_err();
    assert_eq!(error.to_string(), "a block size of 1 KiB asked for, 512 or 4096 possible");
}

#[test]
fn a_block_device_is_not_attached_once_more() {
    tests::needs_root!();
    let _alone = alone();
    let image = Image::new(ByteSize::mib(1));
    let attachment = image.attach();
    let error = loopdev::attach(&attachment.device().path, &Options::default()).unwrap_err();
    assert!(error.to_string().ends_with("is a block device already: use it as it is"), "{error}");
}

#[test]
fn what_is_not_attached_is_not_found() {
    let image = Image::new(ByteSize::mib(1));
    for (name, kind, why) in [
        (&*image.path, ErrorKind::NotFound, "no loop device is attached to"),
        (Path::new("/nowhere"), ErrorKind::NotFound, "cannot find /nowhere"),
        (Path::new("no-such-name"), ErrorKind::NotFound, "cannot find no-such-name"),
    ] {
        let error = loopdev::find(name).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().starts_with(why), "{error}");
    }
}
