//! How a command reaches a volume: through the pfsd that serves it, or on its disk.
//!
//! As the original, after `-C`: commands that the original lets a pfsd do ask one first, and where there is none go to the
//! disk. In its own way it reads on the disk always, which is in nobody's way and shows what is newest, and writes through the
//! pfsd that writes the volume, if one does: there is only one writer.

use std::path::Path;
use std::time::{Duration, Instant};

use blockdev::{Cancel, Error, ui};
use pfs::client::{ConnectOptions, Served, is_served};
use pfs::daemon::launch;
use pfs::proto::{MountFlags, Places};

use crate::changing::Changing;
use crate::reading::Reading;
use crate::session::{Failure, Place, Session};

/// For how long the original waits for a pfsd.
const TIMEOUT: Duration = Duration::from_secs(2);

/// How often to look whether one is there by now.
const LOOK: Duration = Duration::from_millis(10);

impl Session<'_> {
    fn places(&self) -> Places {
        self.root.map_or_else(Places::default, Places::below)
    }

    /// Says how a volume is reached, if that was asked for.
    fn say(&self, how: &str) {
        if self.verbose {
            ui::notice(&format!("pfs: {how}"));
        }
    }

    /// Opens the volume of a place for reading.
    pub(crate) fn reading(&self, place: &Place) -> Result<Reading, Failure> {
        if self.compatible
            && let Some(disk) = self.server(place)
        {
            match self.connect(&disk, MountFlags::READ_ONLY) {
                Ok(served) => return Ok(Reading::Pfsd(Box::new(served))),
                // Nobody minds who only reads.
                Err(error) => self.say(&format!("not through the pfsd of {disk}: {error}")),
            }
        }
        let volume = self.open(&place.volume)?;
        self.say(&format!("on {}", place.volume.display()));
        Ok(Reading::Disk(Box::new(volume)))
    }

    /// Opens the volume of a place for writing.
    pub(crate) fn changing(&self, place: &Place, cancel: &Cancel) -> Result<Changing, Failure> {
        self.original.known_cluster().map_err(Failure::Mount)?;
        if let Some(disk) = self.server(place).filter(|_| !self.take_over) {
            // Beside it nobody may write. The original does, where it is refused, and ruins the volume.
            let served = self.connect(&disk, MountFlags::READ_WRITE).map_err(Failure::Mount)?;
            return Ok(Changing::Pfsd(Box::new(served)));
        }
        let writer = self.writer(&place.volume, cancel)?;
        self.say(&format!("on {}", place.volume.display()));
        Ok(Changing::Disk(Box::new(writer)))
    }

    /// By what name the pfsd calls the disk that serves the volume of a place, if one does.
    pub(crate) fn server(&self, place: &Place) -> Option<String> {
        if self.original.enable_pfsd == Some(0) {
            return None;
        }
        let places = self.places();
        let Some(disk) = &place.disk else { return launch::serving(&places, &place.volume) };
        // Who says how long to wait waits for one that is about to start.
        let patience = self.original.timeout.map_or(Duration::ZERO, Duration::from_secs);
        let started = Instant::now();
        while !is_served(&places, disk) {
            if started.elapsed() >= patience {
                return None;
            }
            std::thread::sleep(LOOK);
        }
        Some(disk.clone())
    }

    /// Connects as a tool to the pfsd that calls the disk so.
    pub(crate) fn connect(&self, disk: &str, flags: MountFlags) -> Result<Served, Error> {
        let options = ConnectOptions {
            places: self.places(),
            host: self.original.hostid.into(),
            flags: flags.with(MountFlags::TOOL),
            timeout: self.original.timeout.map_or(TIMEOUT, Duration::from_secs),
            ..ConnectOptions::default()
        };
        let served = Served::connect(disk, &options)?;
        self.say(&format!("through the pfsd of {disk}, as connection {}", served.client().id()));
        Ok(served)
    }

    /// Tells the pfsd that serves a volume, if one does, that it has grown. Returns which one.
    pub(crate) fn tell_grown(&self, volume: &Path) -> Result<Option<String>, Error> {
        let Some(disk) = launch::serving(&self.places(), volume) else { return Ok(None) };
        let served = self.connect(&disk, MountFlags::READ_ONLY)?;
        served.client().growfs()?;
        served.close()?;
        Ok(Some(disk))
    }
}
