//! A pfsd on a volume of its own: the original's, or ours.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use blockdev::loopdev::{self, Attachment};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pfs::client::{self, ConnectOptions};
use pfs::proto::{MountFlags, Places};

/// The directory of the original, as `ONEDISK_PFS_ORIGINAL` names it, if its pfsd is there.
#[must_use]
pub fn original() -> Option<PathBuf> {
    let directory = PathBuf::from(std::env::var_os("ONEDISK_PFS_ORIGINAL")?).join("polarstore/pfsd");
    Some(directory).filter(|directory| directory.join("bin/pfsdaemon").exists())
}

/// A pfsd that runs, on a loop device. Dropped, all of it goes.
pub struct Daemon {
    pub places: Places,
    /// What the disk is called.
    pub disk: String,
    pub workers: u32,
    original: PathBuf,
    child: Option<Child>,
    attachment: Option<Attachment>,
    directory: tempfile::TempDir,
}

impl Daemon {
    /// Makes an empty volume, attaches it, and lets the original's pfsd serve it.
    #[must_use]
    pub fn original(workers: u32) -> Option<Self> {
        let original = original()?;
        let (image, directory) = super::copy("fresh-10g");
        let attachment = loopdev::attach(&image, &loopdev::Options::default()).unwrap();
        let disk = attachment.device().path.file_name().unwrap().to_str().unwrap().to_owned();
        let places = Places::default();
        // As its own script does.
        for directory in [&places.run, &places.locks, &places.shm] {
            fs::create_dir_all(directory).unwrap();
            fs::set_permissions(directory, fs::Permissions::from_mode(0o777)).unwrap();
        }
        let mut daemon = Self { places, disk, workers, original, child: None, attachment: Some(attachment), directory };
        daemon.start();
        Some(daemon)
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Path {
        &self.attachment.as_ref().unwrap().device().path
    }

    /// Starts it, and waits until it is there.
    pub fn start(&mut self) {
        let output = File::options().create(true).append(true).open(self.directory.path().join("output")).unwrap();
        let mut command = Command::new(self.original.join("bin/pfsdaemon"));
        command.args(["-f", "-p", &self.disk, "-w", &self.workers.to_string(), "-c"]);
        command.arg(self.original.join("conf/pfsd_logger.conf"));
        let both = (output.try_clone().unwrap(), output);
        let child = command.stdin(Stdio::null()).stdout(both.0).stderr(both.1).spawn().unwrap();
        self.child = Some(child);
        let started = Instant::now();
        while !client::is_served(&self.places, &self.disk) {
            assert!(started.elapsed() < Duration::from_secs(30), "{}", self.output());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What it said.
    fn output(&self) -> String {
        fs::read_to_string(self.directory.path().join("output")).unwrap_or_default()
    }

    /// Ends it, as `kill -SIGNAL` does.
    pub fn stop(&mut self, signal: Signal) {
        let mut child = self.child.take().unwrap();
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        child.wait().unwrap();
    }

    /// How to connect to it.
    #[must_use]
    pub fn options(&self, host: i32, flags: MountFlags) -> ConnectOptions {
        ConnectOptions { places: self.places.clone(), host, flags, ..ConnectOptions::default() }
    }

    /// The files of its clients.
    #[must_use]
    pub fn clients(&self) -> Vec<String> {
        tests::names_in(&self.places.clients(&self.disk))
    }

    /// A path on its disk.
    #[must_use]
    pub fn path(&self, path: &str) -> String {
        format!("/{}/{path}", self.disk)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.stop(Signal::SIGKILL);
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(self.places.logs(&self.disk).join("pfsd.log")).unwrap_or_default();
            let lines: Vec<_> = log.lines().rev().take(30).collect();
            let log = lines.into_iter().rev().collect::<Vec<_>>().join("\n");
            let _ = writeln!(std::io::stderr(), "the daemon said:\n{}{log}", self.output());
        }
        let _ = fs::remove_file(self.places.daemon(&self.disk));
        let _ = fs::remove_dir_all(self.places.clients(&self.disk));
        let _ = fs::remove_dir_all(self.places.logs(&self.disk));
        let _ = fs::remove_file(self.places.locks.join(format!("{}-paxos-hostid", self.disk)));
        for region in pfs::proto::RegionNo::all() {
            let _ = fs::remove_file(self.places.region(&self.disk, region));
        }
        if let Some(attachment) = self.attachment.take() {
            let _ = attachment.detach();
        }
    }
}
