//! A pfsd on a volume of its own: the original's, or ours.

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use blockdev::loopdev::{self, Attachment};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pfs::check::check;
use pfs::client::{self, Client, ConnectOptions};
use pfs::proto::slot::{SlotState, SlotWord};
use pfs::proto::{ChannelNo, Memory, MountFlags, Places};
use pfs::volume::Device;

/// Whose daemon it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ours,
    /// The original's: `bin/pfsdaemon` in `polarstore/pfsd` of the directory where it is installed.
    Original,
}

/// Where the original's is, if it is here.
fn original() -> Option<PathBuf> {
    let directory = tests::original_pfs()?.join("polarstore/pfsd");
    Some(directory).filter(|directory| directory.join("bin/pfsdaemon").exists())
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ours => "our pfsd",
            Self::Original => "the original pfsd",
        })
    }
}

impl Kind {
    /// Why there can be none of it here, if so.
    #[must_use]
    pub fn missing(self) -> Option<&'static str> {
        match self {
            Self::Ours => None,
            Self::Original if original().is_none() => {
                Some("needs the original pfsd: ONEDISK_PFS_ORIGINAL=DIR, DIR/polarstore/pfsd/bin/pfsdaemon")
            }
            Self::Original if !tests::is_root() => Some("needs root for a real loop device"),
            Self::Original => None,
        }
    }
}

/// Each of these functions as a test, with both daemons.
#[allow(unused_macros, reason = "not every test has both")]
macro_rules! with_both {
    ($($test:ident)*) => {
        mod ours {
            $(#[test] fn $test() { $crate::common::daemon::run($crate::common::daemon::Kind::Ours, super::$test); })*
        }
        mod the_originals {
            $(#[test] fn $test() { $crate::common::daemon::run($crate::common::daemon::Kind::Original, super::$test); })*
        }
    };
}
#[allow(unused_imports, reason = "as above")]
pub(crate) use with_both;

/// Runs a test with a daemon, or says that there is none.
pub fn run(kind: Kind, test: fn(Daemon)) {
    match kind.missing() {
        Some(why) => tests::say_skipped(std::thread::current().name().unwrap(), why),
        None => test(Daemon::new(kind, 2)),
    }
}

/// A pfsd that runs on a volume. Dropped, all of it goes.
pub struct Daemon {
    pub kind: Kind,
    pub places: Places,
    /// What the disk is called.
    pub disk: String,
    workers: u32,
    child: Option<Child>,
    /// The original knows devices only.
    attachment: Option<Attachment>,
    image: PathBuf,
    directory: tempfile::TempDir,
}

impl Daemon {
    /// Makes an empty volume and lets a pfsd serve it.
    #[must_use]
    pub fn new(kind: Kind, workers: u32) -> Self {
        let (image, directory) = super::copy("fresh-10g");
        let (places, attachment) = match kind {
            Kind::Ours => (Places::below(directory.path()), None),
            Kind::Original => (Places::default(), Some(loopdev::attach(&image, &loopdev::Options::default()).unwrap())),
        };
        let disk = match &attachment {
            None => "nvme0n1".to_owned(),
            Some(attachment) => attachment.device().path.file_name().unwrap().to_str().unwrap().to_owned(),
        };
        for directory in [&places.run, &places.locks, &places.shm] {
            fs::create_dir_all(directory).unwrap();
            fs::set_permissions(directory, fs::Permissions::from_mode(0o777)).unwrap();
        }
        let mut daemon = Self { kind, places, disk, workers, child: None, attachment, image, directory };
        daemon.start();
        daemon
    }

    /// A directory of its own, in which all of ours is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Whether it is the original's.
    #[must_use]
    pub fn is_original(&self) -> bool {
        self.kind == Kind::Original
    }

    /// The image of the volume, or the device that it is attached to.
    #[must_use]
    pub fn device(&self) -> &Path {
        self.attachment.as_ref().map_or(&self.image, |attachment| &attachment.device().path)
    }

    /// Lets the device grow.
    pub fn grow(&self, len: u64) {
        File::options().write(true).open(&self.image).unwrap().set_len(len).unwrap();
        if let Some(attachment) = &self.attachment {
            attachment.device().refresh_size().unwrap();
        }
    }

    /// Starts it, and waits until it is there. It lets clients in some time after.
    pub fn start(&mut self) {
        let output = File::options().create(true).append(true).open(self.directory.path().join("output")).unwrap();
        let mut command = match self.kind {
            Kind::Ours => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_pfsd"));
                command.arg("--root").arg(self.directory.path()).arg("--device").arg(&self.image);
                command
            }
            Kind::Original => {
                let original = original().unwrap();
                let mut command = Command::new(original.join("bin/pfsdaemon"));
                command.arg("-c").arg(original.join("conf/pfsd_logger.conf"));
                command
            }
        };
        command.args(["-f", "-p", &self.disk, "-w", &self.workers.to_string()]);
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        self.child = Some(command.spawn().unwrap());
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

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.as_ref().unwrap().id().cast_signed())
    }

    /// Ends it, as `kill -SIGNAL` does.
    pub fn stop(&mut self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
        self.child.take().unwrap().wait().unwrap();
    }

    /// How to connect to it.
    #[must_use]
    pub fn options(&self, host: i32, flags: MountFlags) -> ConnectOptions {
        ConnectOptions { places: self.places.clone(), host, flags, ..ConnectOptions::default() }
    }

    /// Connects to it as a primary does.
    #[must_use]
    pub fn connect(&self) -> Client {
        Client::connect(&self.disk, &self.options(1, MountFlags::READ_WRITE)).unwrap()
    }

    /// A path on its disk.
    #[must_use]
    pub fn path(&self, path: &str) -> String {
        format!("/{}/{path}", self.disk)
    }

    /// The files of its clients.
    #[must_use]
    pub fn clients(&self) -> Vec<String> {
        tests::names_in(&self.places.clients(&self.disk))
    }

    /// The slots that are not free, or not said to be.
    #[must_use]
    pub fn used_slots(&self) -> Vec<(ChannelNo, usize, SlotWord)> {
        let memory = Memory::open(|region| self.places.region(&self.disk, region)).unwrap();
        let mut used = Vec::new();
        for number in ChannelNo::all() {
            let channel = memory.channel(number);
            let free = channel.bitmap().load(std::sync::atomic::Ordering::Acquire);
            for slot in number.slots() {
                let word = channel.slot(slot).state();
                if word.state() != Some(SlotState::Free) || free & slot.bit() == 0 {
                    used.push((number, slot.index(), word));
                }
            }
        }
        used
    }

    /// Sees that nobody is connected, that no slot is used, and, once it was asked to end, that the volume is sound.
    pub fn end(mut self) {
        assert_eq!(self.clients(), [""; 0]);
        assert_eq!(self.used_slots(), []);
        self.stop(Signal::SIGINT);
        let report = check(&mut Device::open(self.device()).unwrap()).unwrap();
        assert_eq!(report.findings, []);
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
            let _ = writeln!(std::io::stderr(), "{} said:\n{}{log}", self.kind, self.output());
        }
        if self.kind == Kind::Original {
            let _ = fs::remove_file(self.places.daemon(&self.disk));
            let _ = fs::remove_dir_all(self.places.clients(&self.disk));
            let _ = fs::remove_dir_all(self.places.logs(&self.disk));
            let _ = fs::remove_file(self.places.locks.join(format!("{}-paxos-hostid", self.disk)));
            for region in pfs::proto::RegionNo::all() {
                let _ = fs::remove_file(self.places.region(&self.disk, region));
            }
        }
        if let Some(attachment) = self.attachment.take() {
            let _ = attachment.detach();
        }
    }
}
