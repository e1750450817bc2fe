//! The client against a pfsd: the original's, where `ONEDISK_PFS_ORIGINAL` names the directory in which it is.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;

use std::io::SeekFrom;

use common::daemon::Daemon;
use pfs::client::Client;
use pfs::proto::{MountFlags, OpenFlags};

macro_rules! needs_original {
    ($workers:expr) => {{
        tests::needs_root!();
        let Some(daemon) = Daemon::original($workers) else {
            tests::say_skipped("client", "needs the original pfsd: ONEDISK_PFS_ORIGINAL=DIR, DIR/polarstore/pfsd");
            return;
        };
        daemon
    }};
}

#[test]
fn files_are_made_written_read_and_listed() {
    let daemon = needs_original!(1);
    let client = Client::connect(&daemon.disk, &daemon.options(1, MountFlags::READ_WRITE)).unwrap();
    assert_eq!(client.id().raw(), 2);
    client.mkdir(daemon.path("dir")).unwrap();
    let file = client.open(daemon.path("dir/file"), OpenFlags(libc::O_CREAT | libc::O_RDWR), 0o644).unwrap();
    client.fallocate(&file, 0, 0, 65536).unwrap();
    assert_eq!(client.pwrite(&file, 16384, &[7; 8192]).unwrap(), 8192);
    let mut read = [0; 9000];
    assert_eq!(client.pread(&file, 16384, &mut read).unwrap(), 9000);
    assert_eq!((&read[..8192], &read[8192..]), (&[7; 8192][..], &[0; 808][..]));
    assert_eq!(client.fstat(&file).unwrap().size, 65536);
    assert_eq!(client.stat(daemon.path("dir")).unwrap().mode, 0o040_777);
    assert_eq!(client.lseek(&file, SeekFrom::End(-1)).unwrap(), 65535);
    for index in 0..200 {
        client.create(daemon.path(&format!("dir/{index}"))).unwrap();
    }
    let names = client.readdir(daemon.path("dir")).unwrap();
    assert_eq!(names.len(), 201);
    assert!(names.iter().any(|entry| entry.name == b"199" && !entry.is_directory));
    client.umount().unwrap();
    assert_eq!(daemon.clients(), [""; 0]);
}
