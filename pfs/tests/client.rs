//! The client against a pfsd: every request, its errors, and what the original makes of it. Each test runs with our pfsd, and
//! with the original's where that is installed.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::io::SeekFrom;
use std::time::{Duration, Instant};

use common::daemon::{Daemon, with_both};
use nix::sys::signal::Signal;
use pfs::client::{self, Client, ConnectOptions, File};
use pfs::proto::request::FileId;
use pfs::proto::response::{FileType, Reply};
use pfs::proto::{ConnectionId, IO_MAX, MountFlags, MountId, OpenFlags, Request, Whence};

with_both! {
    files_are_opened_made_and_emptied
    bytes_come_back_as_they_were_written
    large_transfers_are_cut_or_refused
    offsets_are_kept
    files_are_made_longer_and_shorter
    blocks_are_given
    names_come_and_go
    names_are_changed
    directories_of_any_size_are_listed
    what_is_removed_is_gone
    relative_paths_start_where_it_was_said
    other_disks_are_refused
    appends_go_to_the_end
    requests_that_there_are_not_are_answered
    threads_share_a_connection
    a_daemon_that_is_started_anew_is_not_noticed
    a_daemon_that_is_gone_is_noticed
    a_replica_reads_and_is_promoted
    who_only_reads_cannot_write
    mounts_that_cannot_be_are_refused
    without_a_daemon_there_is_no_connection
}

fn errno<T: Debug>(outcome: blockdev::Result<T>) -> i32 {
    let error = outcome.unwrap_err();
    error.errno().unwrap_or_else(|| panic!("no errno: {error:?}"))
}

const CREATE: OpenFlags = OpenFlags(libc::O_CREAT | libc::O_RDWR);

fn make(client: &Client, path: &str) -> File {
    client.open(path, CREATE, 0o644).unwrap()
}

fn files_are_opened_made_and_emptied(daemon: Daemon) {
    let client = daemon.connect();
    assert_eq!((client.id(), client.mount_id()), (ConnectionId::new(2).unwrap(), MountId(0)));
    let (path, read_only) = (daemon.path("file"), OpenFlags(libc::O_RDONLY));
    assert_eq!(errno(client.open(&path, read_only, 0)), libc::ENOENT);
    let file = make(&client, &path);
    let again = client.open(&path, read_only, 0).unwrap();
    assert_eq!((again.id(), again.kind()), (file.id(), FileType::OTHER));
    // Whoever opened it for reading may write.
    assert_eq!(client.pwrite(&again, 0, b"text").unwrap(), 4);
    assert_eq!(client.fstat(&file).unwrap().size, 4);
    assert_eq!(errno(client.open(&path, OpenFlags(libc::O_CREAT | libc::O_EXCL), 0o644)), libc::EEXIST);
    client.open(&path, OpenFlags(libc::O_CREAT), 0o644).unwrap();
    assert_eq!(client.fstat(&file).unwrap().size, 4);
    let emptied = client.create(&path).unwrap();
    assert_eq!((emptied.id(), client.fstat(&file).unwrap().size), (file.id(), 0));

    // A directory is opened like a file, as long as nothing is to be made or emptied.
    client.mkdir(daemon.path("dir")).unwrap();
    let directory = client.open(daemon.path("dir"), read_only, 0).unwrap();
    assert_eq!(client.fstat(&directory).unwrap().mode, 0o040_777);
    for flags in [libc::O_CREAT, libc::O_TRUNC] {
        assert_eq!(errno(client.open(daemon.path("dir"), OpenFlags(flags), 0o644)), libc::EISDIR, "{flags:#o}");
    }
    assert_eq!(errno(client.open(daemon.path("none/file"), CREATE, 0o644)), libc::ENOENT);
    assert_eq!(errno(client.open(daemon.path("file/file"), CREATE, 0o644)), libc::ENOTDIR);
    assert_eq!(errno(client.open(daemon.path(&"n".repeat(256)), CREATE, 0o644)), libc::ENAMETOOLONG);
    assert_eq!(errno(client.open(daemon.path(&"n/".repeat(3000)), CREATE, 0o644)), libc::ENAMETOOLONG);

    // Kinds of files, for statistics.
    client.mkdir(daemon.path("data")).unwrap();
    client.mkdir(daemon.path("data/pg_wal")).unwrap();
    assert_eq!(make(&client, &daemon.path("data/pg_wal/1")).kind(), FileType(8));
    client.umount().unwrap();
    daemon.end();
}

fn bytes_come_back_as_they_were_written(daemon: Daemon) {
    let client = daemon.connect();
    let file = make(&client, &daemon.path("file"));
    let mut random = fastrand::Rng::with_seed(1);
    let mut model = vec![0; 9 << 20];
    let mut end = 0;
    // Lengths around those of the buffers that there are, at places of any alignment.
    let units = [4096, 8192, 16384, 65536, 262_144, 1 << 20, IO_MAX];
    for unit in units.into_iter().chain([1, 512]) {
        for (len, offset) in [(unit, 0), (unit - 1, 4096), (unit, 777), (1.max(unit / 2 + 1), 4_194_000)] {
            let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(len).collect();
            if len == 0 {
                continue;
            }
            assert_eq!(client.pwrite(&file, offset as u64, &bytes).unwrap(), len);
            model[offset..offset + len].copy_from_slice(&bytes);
            end = end.max(offset + len);
            assert_eq!(client.fstat(&file).unwrap().size, i64::try_from(end).unwrap());
        }
    }
    let mut buffer = vec![0; IO_MAX];
    for _ in 0..200 {
        let unit = units[random.usize(..units.len())];
        let len = random.usize(1..=unit);
        let offset = random.usize(..end + 1000);
        let expected = &model[offset.min(end)..end.min(offset + len)];
        let count = client.pread(&file, offset as u64, &mut buffer[..len]).unwrap();
        assert!(buffer[..count] == *expected, "{len} bytes at {offset}: {count}, {} expected", expected.len());
    }
    // What was never written reads as zeroes.
    let sparse = make(&client, &daemon.path("sparse"));
    client.pwrite(&sparse, 12 << 20, b"end").unwrap();
    let mut hole = [1; 5000];
    assert_eq!(client.pread(&sparse, 5 << 20, &mut hole).unwrap(), 5000);
    assert_eq!(hole, [0; 5000]);
    assert_eq!(client.pread(&sparse, (12 << 20) - 4997, &mut hole).unwrap(), 5000);
    assert_eq!((&hole[..4997], &hole[4997..]), (&[0; 4997][..], &b"end"[..]));
    assert_eq!(client.pread(&sparse, 1 << 40, &mut hole).unwrap(), 0);
    client.umount().unwrap();
    daemon.end();
}

fn large_transfers_are_cut_or_refused(daemon: Daemon) {
    let client = daemon.connect();
    let file = make(&client, &daemon.path("file"));
    let mut bytes = vec![3; IO_MAX + 1];
    assert_eq!(errno(client.pwrite(&file, 0, &bytes)), libc::EFBIG);
    assert_eq!(client.fstat(&file).unwrap().size, 0);
    assert_eq!(client.pwrite(&file, 0, &bytes[..IO_MAX]).unwrap(), IO_MAX);
    assert_eq!(client.pwrite(&file, IO_MAX as u64, &bytes[IO_MAX..]).unwrap(), 1);
    assert_eq!(client.pread(&file, 0, &mut bytes).unwrap(), IO_MAX);
    // Nothing is asked for no bytes, and nothing is written for none.
    assert_eq!(client.pwrite(&file, 1 << 40, b"").unwrap(), 0);
    assert_eq!(client.pread(&file, 0, &mut []).unwrap(), 0);
    assert_eq!(client.fstat(&file).unwrap().size, 4_194_305);
    assert_eq!(errno(client.pread(&file, u64::MAX, &mut bytes)), libc::EINVAL);
    assert_eq!(errno(client.pwrite(&file, u64::MAX, b"x")), libc::EINVAL);
    // What the original's library does not let through, its daemon does not carry out either.
    let request = Request::Read { file: file.id(), offset: -1, len: 10 };
    assert_eq!(errno(client.request(&request, file.kind())), libc::EINVAL);
    let request = Request::Read { file: FileId { inode: -1, ..file.id() }, offset: 0, len: 10 };
    let none = if daemon.is_original() { libc::EINVAL } else { libc::ENOENT };
    assert_eq!(errno(client.request(&request, file.kind())), none);
    client.umount().unwrap();
    daemon.end();
}

fn offsets_are_kept(daemon: Daemon) {
    let client = daemon.connect();
    let file = make(&client, &daemon.path("file"));
    assert_eq!(client.write(&file, b"0123456789").unwrap(), 10);
    assert_eq!((client.write(&file, b"abc").unwrap(), file.offset()), (3, 13));
    assert_eq!(client.lseek(&file, SeekFrom::Start(8)).unwrap(), 8);
    let mut bytes = [0; 4];
    assert_eq!(client.read(&file, &mut bytes).unwrap(), 4);
    assert_eq!((&bytes, file.offset()), (b"89ab", 12));
    assert_eq!((client.read(&file, &mut bytes).unwrap(), file.offset()), (1, 13));
    assert_eq!(client.read(&file, &mut bytes).unwrap(), 0);
    assert_eq!(client.lseek(&file, SeekFrom::Current(-3)).unwrap(), 10);
    assert_eq!(client.lseek(&file, SeekFrom::End(0)).unwrap(), 13);
    assert_eq!(client.lseek(&file, SeekFrom::End(-5)).unwrap(), 8);
    assert_eq!(client.lseek(&file, SeekFrom::End(5)).unwrap(), 18);
    assert_eq!(errno(client.lseek(&file, SeekFrom::Current(-19))), libc::EINVAL);
    assert_eq!(errno(client.lseek(&file, SeekFrom::Current(i64::MAX))), libc::EOVERFLOW);
    assert_eq!(errno(client.lseek(&file, SeekFrom::End(-14))), libc::EINVAL);
    assert_eq!(file.offset(), 18);
    // The daemon knows the end alone.
    let seek = |whence| Request::Lseek { file: file.id(), offset: 0, whence: Whence(whence) };
    assert_eq!(client.request(&seek(libc::SEEK_END), file.kind()).unwrap(), Reply::End(13));
    client.umount().unwrap();
    daemon.end();
}

fn files_are_made_longer_and_shorter(daemon: Daemon) {
    let client = daemon.connect();
    let path = daemon.path("file");
    let file = make(&client, &path);
    client.pwrite(&file, 0, &[9; 10_000]).unwrap();
    client.ftruncate(&file, 5000).unwrap();
    assert_eq!(client.stat(&path).unwrap().size, 5000);
    client.truncate(&path, 9_000_000).unwrap();
    let stat = client.fstat(&file).unwrap();
    assert_eq!(stat.size, 9_000_000);
    let mut bytes = [1; 8000];
    assert_eq!(client.pread(&file, 4000, &mut bytes).unwrap(), 8000);
    // What was cut off is gone, also when the file grows again.
    assert_eq!((&bytes[..1000], &bytes[1000..]), (&[9; 1000][..], &[0; 7000][..]));
    client.ftruncate(&file, 0).unwrap();
    let stat = client.fstat(&file).unwrap();
    assert_eq!((stat.size, stat.blocks), (0, 0));
    assert_eq!(errno(client.ftruncate(&file, u64::MAX)), libc::EINVAL);
    assert_eq!(errno(client.truncate(daemon.path("none"), 0)), libc::ENOENT);
    client.mkdir(daemon.path("dir")).unwrap();
    assert_eq!(errno(client.truncate(daemon.path("dir"), 0)), libc::EISDIR);
    client.umount().unwrap();
    daemon.end();
}

fn blocks_are_given(daemon: Daemon) {
    let client = daemon.connect();
    let file = make(&client, &daemon.path("file"));
    client.fallocate(&file, 0, 0, 65536).unwrap();
    let stat = client.fstat(&file).unwrap();
    assert_eq!((stat.size, stat.blocks), (65536, 8192));
    client.fallocate(&file, 0, 5 << 20, 8 << 20).unwrap();
    let stat = client.fstat(&file).unwrap();
    assert_eq!((stat.size, stat.blocks), (13 << 20, 4 * 8192));
    client.fallocate(&file, libc::FALLOC_FL_KEEP_SIZE, 16 << 20, 1).unwrap();
    let kept = client.fstat(&file).unwrap();
    assert_eq!(kept.blocks, 5 * 8192);
    // The original takes no notice of it.
    assert_eq!(kept.size, if daemon.is_original() { (16 << 20) + 1 } else { 13 << 20 });
    let mut bytes = [1; 100];
    assert_eq!(client.pread(&file, 6 << 20, &mut bytes).unwrap(), 100);
    assert_eq!(bytes, [0; 100]);
    assert_eq!(errno(client.fallocate(&file, 0, 0, 0)), libc::EINVAL);
    assert_eq!(errno(client.fallocate(&file, 0, u64::MAX, 1)), libc::EINVAL);
    assert_eq!(errno(client.fallocate(&file, 0, 0, 1 << 40)), libc::ENOSPC);
    client.umount().unwrap();
    daemon.end();
}

fn names_come_and_go(daemon: Daemon) {
    let client = daemon.connect();
    let (dir, file) = (daemon.path("dir"), daemon.path("dir/file"));
    client.mkdir(&dir).unwrap();
    assert_eq!(errno(client.mkdir(&dir)), libc::EEXIST);
    assert_eq!(errno(client.mkdir(daemon.path("none/dir"))), libc::ENOENT);
    make(&client, &file);
    assert_eq!(errno(client.mkdir(&file)), libc::EEXIST);
    assert_eq!(errno(client.mkdir(daemon.path("dir/file/dir"))), libc::ENOTDIR);
    for mode in [libc::F_OK, libc::R_OK, libc::W_OK, libc::X_OK] {
        client.access(&file, mode).unwrap();
        client.access(&dir, mode).unwrap();
        let missing = if mode == libc::F_OK { libc::ENOENT } else { libc::EACCES };
        assert_eq!(errno(client.access(daemon.path("none"), mode)), missing);
    }
    assert_eq!(errno(client.access(&file, 64)), libc::EINVAL);
    let stat = client.stat(&dir).unwrap();
    assert_eq!((stat.mode, stat.links), (0o040_777, 1));
    let stat = client.stat(&file).unwrap();
    assert_eq!((stat.mode, stat.links, stat.size, stat.blocks), (0o100_777, 1, 0, 0));
    assert_eq!(errno(client.stat(daemon.path("none"))), libc::ENOENT);
    assert_eq!(errno(client.rmdir(&dir)), libc::ENOTEMPTY);
    assert_eq!(errno(client.rmdir(&file)), libc::ENOTDIR);
    assert_eq!(errno(client.unlink(&dir)), libc::EISDIR);
    client.unlink(&file).unwrap();
    assert_eq!(errno(client.unlink(&file)), libc::ENOENT);
    client.rmdir(&dir).unwrap();
    assert_eq!(errno(client.rmdir(&dir)), libc::ENOENT);
    client.growfs().unwrap();
    client.umount().unwrap();
    daemon.end();
}

fn names_are_changed(daemon: Daemon) {
    let client = daemon.connect();
    let path = |name: &str| daemon.path(name);
    for name in ["a", "b"] {
        let file = make(&client, &path(name));
        client.pwrite(&file, 0, name.as_bytes()).unwrap();
    }
    client.mkdir(path("dir")).unwrap();
    client.mkdir(path("empty")).unwrap();
    let a = client.open(path("a"), OpenFlags(0), 0).unwrap();
    client.rename(path("a"), path("dir/c")).unwrap();
    assert_eq!(errno(client.stat(path("a"))), libc::ENOENT);
    // It is the same file.
    assert_eq!(client.fstat(&a).unwrap(), client.stat(path("dir/c")).unwrap());
    // What was called so is replaced.
    client.rename(path("b"), path("dir/c")).unwrap();
    let mut bytes = [0];
    let c = client.open(path("dir/c"), OpenFlags(0), 0).unwrap();
    client.pread(&c, 0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"b");
    assert_eq!(errno(client.fstat(&a)), libc::ENOENT);
    assert_eq!(errno(client.rename(path("none"), path("x"))), libc::ENOENT);
    assert_eq!(errno(client.rename(path("dir/c"), path("none/x"))), libc::ENOENT);
    assert_eq!(errno(client.rename(path("dir/c"), path("empty"))), libc::EISDIR);
    assert_eq!(errno(client.rename(path("dir"), path("dir/d"))), libc::EINVAL);
    assert_eq!(errno(client.rename(path("empty"), path("dir"))), libc::ENOTEMPTY);
    assert_eq!(errno(client.rename(path("empty"), path("dir/c"))), libc::ENOTDIR);
    client.rename(path("dir"), path("empty")).unwrap();
    assert_eq!(client.stat(path("empty/c")).unwrap().size, 1);
    client.umount().unwrap();
    daemon.end();
}

fn directories_of_any_size_are_listed(daemon: Daemon) {
    let client = daemon.connect();
    let names = |path: &str| -> BTreeSet<String> {
        let entries = client.readdir(path).unwrap();
        let count = entries.len();
        let names: BTreeSet<String> = entries.into_iter().map(|entry| String::from_utf8(entry.name).unwrap()).collect();
        assert_eq!(names.len(), count, "a name is there twice");
        names
    };
    // 73 come with one answer.
    for count in [0, 1, 72, 73, 74, 147, 400] {
        let dir = daemon.path(&format!("dir{count}"));
        client.mkdir(&dir).unwrap();
        let expected: BTreeSet<String> = (0..count).map(|index| format!("file{index}")).collect();
        for name in &expected {
            make(&client, &format!("{dir}/{name}"));
        }
        assert_eq!(names(&dir), expected);
    }
    let long = daemon.path(&format!("dir1/{}", "n".repeat(255)));
    client.mkdir(&long).unwrap();
    let entries = client.readdir(daemon.path("dir1")).unwrap();
    let entry = entries.iter().find(|entry| entry.is_directory).unwrap();
    assert_eq!((entry.name.len(), entry.inode), (255, client.stat(&long).unwrap().inode));
    // With and without a slash it is the root directory, in which nobody sees the file system's own files.
    let root = format!("/{}", daemon.disk);
    assert_eq!(names(&root), names(&daemon.path("")));
    assert!(names(&root).contains("dir400"));
    assert_eq!(errno(client.readdir(daemon.path("none"))), libc::ENOENT);
    assert_eq!(errno(client.readdir(daemon.path("dir1/file0"))), libc::ENOTDIR);
    // What is removed meanwhile, with that at which the listing is, may be missed; nothing else is.
    let dir = daemon.path("dir147");
    let mut listing = client.opendir(&dir).unwrap();
    let first: Vec<_> = listing.by_ref().take(73).map(|entry| entry.unwrap().name).collect();
    for name in first.iter().take(10) {
        client.unlink(format!("{dir}/{}", String::from_utf8_lossy(name))).unwrap();
    }
    let rest: BTreeSet<_> = listing.map(|entry| entry.unwrap().name).collect();
    assert_eq!(rest.len(), 74);
    assert!(first.iter().all(|name| !rest.contains(name)));
    client.umount().unwrap();
    daemon.end();
}

fn what_is_removed_is_gone(daemon: Daemon) {
    let client = daemon.connect();
    let path = daemon.path("file");
    let file = make(&client, &path);
    client.pwrite(&file, 0, b"text").unwrap();
    client.unlink(&path).unwrap();
    let mut bytes = [0; 4];
    assert_eq!(errno(client.pread(&file, 0, &mut bytes)), libc::ENOENT);
    assert_eq!(errno(client.pwrite(&file, 0, b"text")), libc::ENOENT);
    assert_eq!(errno(client.fstat(&file)), libc::ENOENT);
    assert_eq!(errno(client.ftruncate(&file, 1)), libc::ENOENT);
    assert_eq!(errno(client.fallocate(&file, 0, 0, 1)), libc::ENOENT);
    assert_eq!(errno(client.lseek(&file, SeekFrom::End(0))), libc::ENOENT);
    // Whoever has its inode now is somebody else.
    let next = make(&client, &path);
    assert_eq!(next.id().inode, file.id().inode);
    assert_ne!(next.id().btime, file.id().btime);
    assert_eq!(errno(client.pread(&file, 0, &mut bytes)), libc::ENOENT);
    assert_eq!(client.pread(&next, 0, &mut bytes).unwrap(), 0);
    client.umount().unwrap();
    daemon.end();
}

fn relative_paths_start_where_it_was_said(daemon: Daemon) {
    let client = daemon.connect();
    assert_eq!(errno(client.stat("file")), libc::ENOENT);
    client.mkdir(daemon.path("a")).unwrap();
    client.mkdir(daemon.path("a/b")).unwrap();
    client.chdir(daemon.path("a")).unwrap();
    assert_eq!(client.getcwd().unwrap(), daemon.path("a").into_bytes());
    make(&client, "file");
    assert_eq!(client.stat(daemon.path("a/file")).unwrap(), client.stat("file").unwrap());
    client.chdir("b").unwrap();
    assert_eq!(client.getcwd().unwrap(), daemon.path("a/b").into_bytes());
    client.chdir(format!("/{}", daemon.disk)).unwrap();
    assert_eq!(client.getcwd().unwrap(), daemon.path("").into_bytes());
    client.stat("a/b").unwrap();
    assert_eq!(errno(client.chdir("none")), libc::ENOENT);
    assert_eq!(errno(client.chdir("a/file")), libc::ENOTDIR);
    assert_eq!(errno(client.stat("")), libc::EINVAL);
    client.umount().unwrap();
    daemon.end();
}

fn other_disks_are_refused(daemon: Daemon) {
    let client = daemon.connect();
    assert_eq!(errno(client.stat("/other/file")), libc::ENODEV);
    assert_eq!(errno(client.open("/other/file", CREATE, 0)), libc::ENODEV);
    assert_eq!(errno(client.rename(daemon.path("a"), "/other/a")), libc::ENODEV);
    assert_eq!(errno(client.stat("/")), libc::EINVAL);
    // The daemon says the same.
    let request = Request::Stat { path: b"/other/file".to_vec() };
    assert_eq!(errno(client.request(&request, FileType::OTHER)), libc::ENODEV);
    client.umount().unwrap();
    daemon.end();
}

fn appends_go_to_the_end(daemon: Daemon) {
    if daemon.is_original() {
        // It aborts: what its authors' compiler made of it, newer ones do not.
        return;
    }
    let client = daemon.connect();
    let path = daemon.path("log");
    let file = make(&client, &path);
    assert_eq!(client.append(&file, b"one").unwrap(), 0);
    assert_eq!(client.append(&file, b"two").unwrap(), 3);
    let appending = client.open(&path, OpenFlags(libc::O_APPEND | libc::O_WRONLY), 0).unwrap();
    // Wherever it is to be written.
    assert_eq!(client.pwrite(&appending, 1, b"three").unwrap(), 5);
    assert_eq!((client.write(&appending, b"4").unwrap(), appending.offset()), (1, 12));
    let mut bytes = [0; 20];
    assert_eq!(client.pread(&file, 0, &mut bytes).unwrap(), 12);
    assert_eq!(&bytes[..12], b"onetwothree4");
    // Nobody's bytes are lost when several do it at once.
    std::thread::scope(|scope| {
        for byte in b'a'..b'e' {
            let (client, file) = (&client, &file);
            scope.spawn(move || (0..50).for_each(|_| assert!(client.append(file, &[byte; 100]).is_ok())));
        }
    });
    assert_eq!(client.fstat(&file).unwrap().size, 12 + 4 * 50 * 100);
    let mut all = vec![0; 20_000];
    client.pread(&file, 12, &mut all).unwrap();
    let (records, _) = all.as_chunks::<100>();
    assert!(records.iter().all(|record| *record == [record[0]; 100]));
    for byte in b'a'..b'e' {
        assert_eq!(records.iter().filter(|record| record[0] == byte).count(), 50);
    }
    client.umount().unwrap();
    daemon.end();
}

/// Anything may stand in a slot: it is answered, or at least given back, and the next is answered as ever.
fn requests_that_there_are_not_are_answered(daemon: Daemon) {
    let client = daemon.connect();
    let file = make(&client, &daemon.path("file"));
    for number in [0, 19, 99, -1, i32::MIN] {
        common::raw::ask(&client, |slot| {
            let mut bytes = slot.request();
            bytes[4..8].copy_from_slice(&number.to_le_bytes());
            slot.put_request(&bytes);
        });
        client.fstat(&file).unwrap();
    }
    // Another mount than there is.
    assert_eq!(common::raw::ask_on(&client, MountId(77), &Request::Fstat { file: file.id() }), libc::ENODEV);
    client.umount().unwrap();
    daemon.end();
}

fn threads_share_a_connection(daemon: Daemon) {
    let client = daemon.connect();
    std::thread::scope(|scope| {
        for thread in 0..16u8 {
            let (client, daemon) = (&client, &daemon);
            scope.spawn(move || {
                let path = daemon.path(&format!("file{thread}"));
                let file = make(client, &path);
                let mut random = fastrand::Rng::with_seed(thread.into());
                let mut model = vec![0; 100_000];
                client.pwrite(&file, 0, &model).unwrap();
                let mut bytes = vec![0; model.len()];
                for _ in 0..60 {
                    let (start, len) = (random.usize(..90_000), random.usize(1..10_000));
                    let byte = random.u8(..);
                    model[start..start + len].fill(byte);
                    client.pwrite(&file, start as u64, &vec![byte; len]).unwrap();
                    let (start, len) = (random.usize(..90_000), random.usize(1..10_000));
                    assert_eq!(client.pread(&file, start as u64, &mut bytes[..len]).unwrap(), len);
                    assert!(bytes[..len] == model[start..start + len]);
                    client.stat(&path).unwrap();
                }
                client.rename(&path, daemon.path(&format!("done{thread}"))).unwrap();
            });
        }
    });
    assert_eq!(
        client.readdir(daemon.path("")).unwrap().iter().filter(|entry| entry.name.starts_with(b"done")).count(),
        16
    );
    client.umount().unwrap();
    daemon.end();
}

fn a_daemon_that_is_started_anew_is_not_noticed(mut daemon: Daemon) {
    let client = daemon.connect();
    let id = client.id();
    let file = make(&client, &daemon.path("file"));
    let stop = std::sync::atomic::AtomicBool::new(false);
    let acknowledged = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4u64)
            .map(|thread| {
                let (client, file, stop) = (&client, &file, &stop);
                scope.spawn(move || {
                    let mut count = 0;
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        count += 1;
                        let mark = [thread, count, thread ^ count, 7].map(u64::to_le_bytes).concat();
                        assert_eq!(client.pwrite(file, thread * 8192, &mark.repeat(256)).unwrap(), 8192);
                    }
                    count
                })
            })
            .collect();
        for signal in [Signal::SIGKILL, Signal::SIGINT, Signal::SIGKILL] {
            std::thread::sleep(Duration::from_millis(300));
            daemon.stop(signal);
            std::thread::sleep(Duration::from_millis(200));
            daemon.start();
        }
        std::thread::sleep(Duration::from_millis(500));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        writers.into_iter().map(|writer| writer.join().unwrap()).collect::<Vec<u64>>()
    });
    assert_eq!(client.id(), id);
    for (thread, count) in (0..).zip(acknowledged) {
        let mut bytes = vec![0; 8192];
        client.pread(&file, thread * 8192, &mut bytes).unwrap();
        let mark = [thread, count, thread ^ count, 7].map(u64::to_le_bytes).concat();
        assert!(bytes == mark.repeat(256), "thread {thread}: not what was acknowledged last");
    }
    client.umount().unwrap();
    daemon.end();
}

fn a_daemon_that_is_gone_is_noticed(mut daemon: Daemon) {
    let options = ConnectOptions { patience: Duration::from_millis(1500), ..daemon.options(1, MountFlags::READ_WRITE) };
    let client = Client::connect(&daemon.disk, &options).unwrap();
    let file = make(&client, &daemon.path("file"));
    client.pwrite(&file, 0, b"before").unwrap();
    daemon.stop(Signal::SIGKILL);
    assert!(!client::is_served(&daemon.places, &daemon.disk));
    let started = Instant::now();
    let error = client.pwrite(&file, 0, b"during").unwrap_err();
    assert_eq!(error.errno(), Some(libc::ETIMEDOUT), "{error}");
    assert!(error.to_string().contains("is gone"), "{error}");
    assert!(started.elapsed() >= options.patience);
    assert_eq!(daemon.used_slots(), [], "what was given up is taken back");
    // It comes back, and all goes on.
    daemon.start();
    let mut bytes = [0; 6];
    assert_eq!(client.pread(&file, 0, &mut bytes).unwrap(), 6);
    assert_eq!(&bytes, b"before");
    client.pwrite(&file, 0, b"after.").unwrap();
    client.umount().unwrap();
    daemon.end();
}

fn a_replica_reads_and_is_promoted(daemon: Daemon) {
    let primary = daemon.connect();
    let file = make(&primary, &daemon.path("file"));
    primary.pwrite(&file, 0, b"text").unwrap();
    primary.umount().unwrap();

    let replica = Client::connect(&daemon.disk, &daemon.options(2, MountFlags::READ_ONLY)).unwrap();
    let file = replica.open(daemon.path("file"), OpenFlags(0), 0).unwrap();
    let mut bytes = [0; 10];
    assert_eq!(replica.pread(&file, 0, &mut bytes).unwrap(), 4);
    for flags in [MountFlags::READ_ONLY, MountFlags::READ_WRITE.with(MountFlags::TOOL)] {
        assert_eq!(errno(replica.remount(flags)), libc::EINVAL, "{flags:?}");
    }
    let id = replica.id();
    replica.remount(MountFlags::READ_WRITE.with(MountFlags::FORCE)).unwrap();
    assert_eq!(replica.id(), id);
    assert!(replica.flags().has(MountFlags::WRITE));
    // What was open stays open.
    assert_eq!(replica.pwrite(&file, 4, b" more").unwrap(), 5);
    make(&replica, &daemon.path("new"));
    assert_eq!(errno(replica.remount(MountFlags::READ_WRITE)), libc::EINVAL);
    replica.umount().unwrap();
    daemon.end();
}

fn who_only_reads_cannot_write(daemon: Daemon) {
    let client = daemon.connect();
    let path = daemon.path("file");
    make(&client, &path);
    client.umount().unwrap();
    let client = Client::connect(&daemon.disk, &daemon.options(2, MountFlags::READ_ONLY)).unwrap();
    let file = client.open(&path, OpenFlags(libc::O_RDWR), 0).unwrap();
    assert_eq!(errno(client.pwrite(&file, 0, b"text")), libc::EROFS);
    assert_eq!(errno(client.create(daemon.path("new"))), libc::EROFS);
    assert_eq!(errno(client.mkdir(daemon.path("new"))), libc::EROFS);
    assert_eq!(errno(client.unlink(&path)), libc::EROFS);
    assert_eq!(errno(client.rename(&path, daemon.path("new"))), libc::EROFS);
    assert_eq!(errno(client.ftruncate(&file, 1)), libc::EROFS);
    assert_eq!(errno(client.fallocate(&file, 0, 0, 1)), libc::EROFS);
    client.umount().unwrap();
    daemon.end();
}

fn mounts_that_cannot_be_are_refused(daemon: Daemon) {
    let write = |host| daemon.options(host, MountFlags::READ_WRITE);
    let refuse = |options: ConnectOptions| {
        let error = Client::connect(&daemon.disk, &options).unwrap_err();
        assert!(error.hint().is_some(), "{error:?}");
        error.errno()
    };
    // There are thirty hosts, and one kind of storage. The original has errors of its own.
    let (no_host, no_cluster) = if daemon.is_original() { (228, libc::EIO) } else { (libc::EINVAL, libc::EINVAL) };
    assert_eq!(refuse(write(31)), Some(no_host));
    assert_eq!(refuse(write(255)), None);
    assert_eq!(refuse(ConnectOptions { cluster: "polarstore".to_owned(), ..write(1) }), Some(no_cluster));
    assert!(Client::connect("a/b", &write(1)).unwrap_err().to_string().contains("no name of a disk"));
    // Somebody else on this machine writes as this host, or makes a volume.
    let locks = &daemon.places.locks;
    let held = pfs::volume::HostLock::of_disk(locks, &daemon.disk, pfs::volume::Region::Host(1)).unwrap();
    assert_eq!(refuse(write(1)), Some(libc::EAGAIN));
    Client::connect(&daemon.disk, &write(2)).unwrap().umount().unwrap();
    drop(held);
    // A client that is refused leaves nothing behind, and the next is let in.
    let client = daemon.connect();
    assert_eq!(client.id().raw(), 2);
    client.umount().unwrap();
    // Tools have numbers of their own.
    let tool =
        Client::connect(&daemon.disk, &daemon.options(0, MountFlags::READ_WRITE.with(MountFlags::TOOL))).unwrap();
    assert_eq!(tool.id().raw(), 1);
    tool.umount_force().unwrap();
    daemon.end();
}

fn without_a_daemon_there_is_no_connection(mut daemon: Daemon) {
    daemon.stop(Signal::SIGKILL);
    let options = ConnectOptions { timeout: Duration::from_millis(300), ..daemon.options(1, MountFlags::READ_WRITE) };
    let error = Client::connect(&daemon.disk, &options).unwrap_err();
    assert_eq!(error.errno(), Some(libc::ETIMEDOUT));
    assert!(error.hint().unwrap().contains("no pfsd serves it"), "{error:?}");
    assert_eq!(daemon.clients(), [""; 0]);
    // One that appears in time is found.
    let options = daemon.options(1, MountFlags::READ_WRITE);
    let disk = daemon.disk.clone();
    let connecting = std::thread::spawn(move || Client::connect(&disk, &options));
    std::thread::sleep(Duration::from_millis(300));
    daemon.start();
    let client = connecting.join().unwrap().unwrap();
    client.mkdir(daemon.path("dir")).unwrap();
    // One that goes meanwhile is not waited for.
    daemon.stop(Signal::SIGKILL);
    client.umount().unwrap();
    assert_eq!(daemon.clients(), [""; 0]);
    daemon.start();
    daemon.end();
}
