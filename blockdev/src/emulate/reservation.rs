//! Who may write: persistent reservations, as SCSI (SPC-4, 5.12) and NVMe (Base Specification 2.0, 8.19) define them, and
//! fencing, by which somebody else decides.
//!
//! A host registers with a key. A registered host may reserve the disk: then only it may write (write exclusive), or only
//! registered hosts may (write exclusive, registrants only). A registered host may preempt another by its key: that loses its
//! registration, and the reservation if it had it. What a host has lost it learns from its next write, which fails. All of it
//! outlives the server, in a file beside the image.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::host::HostName;
use crate::error::{Context, Error, ErrorKind, Result};

/// The key of a registration; 0 is none.
pub type Key = u64;

/// What a reservation reserves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ReservationKind {
    /// Only its holder may write.
    #[default]
    WriteExclusive,
    /// Only registered hosts may write.
    WriteExclusiveRegistrantsOnly,
}

/// A reservation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// Whose it is.
    pub holder: HostName,
    /// What it reserves.
    pub kind: ReservationKind,
}

/// Who is registered, who holds a reservation, and who was fenced.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reservations {
    /// How often registrations have changed, and whether they were preempted or cleared: PRgeneration in SCSI.
    pub generation: u32,
    /// The keys of registered hosts.
    pub registrants: BTreeMap<HostName, Key>,
    /// The reservation, if there is one.
    pub reservation: Option<Reservation>,
    /// Hosts that may not write, whatever the reservation.
    pub fenced: BTreeSet<HostName>,
}

/// Something a host does about reservations; or, to fence, somebody who looks after the hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum Action {
    /// Registers the host with a key.
    Register {
        /// Who.
        host: HostName,
        /// Its key, which is not 0.
        key: Key,
        /// Whether it may have another key already, which this replaces.
        #[serde(default)]
        replace: bool,
    },
    /// Takes its registration back, and with it its reservation.
    Unregister {
        /// Who.
        host: HostName,
        /// Its key.
        key: Key,
    },
    /// Reserves the disk.
    Reserve {
        /// Who, a registered host.
        host: HostName,
        /// Its key.
        key: Key,
        /// What it reserves.
        #[serde(default)]
        kind: ReservationKind,
    },
    /// Gives its reservation back; done, if it has none.
    Release {
        /// Who, a registered host.
        host: HostName,
        /// Its key.
        key: Key,
    },
    /// Takes away the registrations that have a key, and the reservation, if one of them had it.
    Preempt {
        /// Who, a registered host.
        host: HostName,
        /// Its key.
        key: Key,
        /// The key of who loses.
        victim: Key,
        /// What it reserves, if it takes the reservation over.
        #[serde(default)]
        kind: ReservationKind,
    },
    /// Takes away all registrations and the reservation.
    Clear {
        /// Who, a registered host.
        host: HostName,
        /// Its key.
        key: Key,
    },
    /// Keeps a host from writing, whatever it believes, until it is let in again. It loses its registration.
    Fence {
        /// Who.
        host: HostName,
    },
    /// Lets a fenced host write again, as far as a reservation does.
    Unfence {
        /// Who.
        host: HostName,
    },
}

impl Action {
    /// Whom it is about: who does it, or is fenced.
    #[must_use]
    pub fn host(&self) -> &HostName {
        match self {
            Self::Register { host, .. }
            | Self::Unregister { host, .. }
            | Self::Reserve { host, .. }
            | Self::Release { host, .. }
            | Self::Preempt { host, .. }
            | Self::Clear { host, .. }
            | Self::Fence { host }
            | Self::Unfence { host } => host,
        }
    }
}

impl Reservations {
    /// Whether `host` may write.
    #[must_use]
    pub fn lets_write(&self, host: &HostName) -> bool {
        let reserved = match &self.reservation {
            None => true,
            Some(Reservation { holder, kind: ReservationKind::WriteExclusive }) => holder == host,
            Some(Reservation { kind: ReservationKind::WriteExclusiveRegistrantsOnly, .. }) => {
                self.registrants.contains_key(host)
            }
        };
        reserved && !self.fenced.contains(host)
    }

    /// What is after `action`.
    ///
    /// # Errors
    /// [`Refused`](ErrorKind::Refused) where a device would answer with a reservation conflict; then nothing has changed.
    pub fn after(&self, action: &Action) -> Result<Self> {
        let mut after = self.clone();
        match action {
            Action::Register { host, key, replace } => {
                if *key == 0 {
                    return Err(Error::invalid("a key is not 0"));
                }
                if self.fenced.contains(host) {
                    return Err(conflict(format!("{host} was fenced")).with_hint(format!("first: unfence {host}")));
                }
                match self.registrants.get(host) {
                    Some(known) if known != key && !replace => {
                        return Err(conflict(format!("{host} is registered with another key")));
                    }
                    _ => after.registrants.insert(host.clone(), *key),
                };
                after.generation = after.generation.wrapping_add(1);
            }
            Action::Unregister { host, key } => {
                self.check(host, *key)?;
                after.forget(host);
            }
            Action::Reserve { host, key, kind } => {
                self.check(host, *key)?;
                let wanted = Reservation { holder: host.clone(), kind: *kind };
                if let Some(held) = self.reservation.as_ref().filter(|held| **held != wanted) {
                    return Err(conflict(format!("{} has reserved the disk", held.holder)));
                }
                after.reservation = Some(wanted);
            }
            Action::Release { host, key } => {
                self.check(host, *key)?;
                after.reservation = after.reservation.filter(|held| held.holder != *host);
            }
            Action::Preempt { host, key, victim, kind } => {
                self.check(host, *key)?;
                let victims: Vec<HostName> =
                    self.registrants.iter().filter(|(_, key)| *key == victim).map(|(host, _)| host.clone()).collect();
                if victims.is_empty() {
                    return Err(conflict(format!("nobody is registered with key {victim:#x}")));
                }
                let held = self.reservation.as_ref().is_some_and(|held| victims.contains(&held.holder));
                after.registrants.retain(|other, key| key != victim || other == host);
                if held {
                    after.reservation = Some(Reservation { holder: host.clone(), kind: *kind });
                }
                after.generation = after.generation.wrapping_add(1);
            }
            Action::Clear { host, key } => {
                self.check(host, *key)?;
                after.registrants.clear();
                after.reservation = None;
                after.generation = after.generation.wrapping_add(1);
            }
            Action::Fence { host } => {
                if after.fenced.insert(host.clone()) && self.registrants.contains_key(host) {
                    after.forget(host);
                }
            }
            Action::Unfence { host } => {
                after.fenced.remove(host);
            }
        }
        Ok(after)
    }

    /// Takes the registration of `host` away, and its reservation.
    fn forget(&mut self, host: &HostName) {
        self.registrants.remove(host);
        self.reservation.take_if(|held| held.holder == *host);
        self.generation = self.generation.wrapping_add(1);
    }

    fn check(&self, host: &HostName, key: Key) -> Result<()> {
        match self.registrants.get(host) {
            Some(known) if *known == key => Ok(()),
            Some(_) => Err(conflict(format!("{host} is registered with another key"))),
            None => Err(conflict(format!("{host} is not registered"))),
        }
    }

    /// Where those of `image` are kept.
    #[must_use]
    pub fn path_for(image: &Path) -> PathBuf {
        let mut name = image.as_os_str().to_owned();
        name.push(".reservations");
        name.into()
    }

    /// Those kept at `path`; none where there is no file.
    pub(super) fn load(path: &Path) -> Result<Self> {
        let what = || format!("cannot read the reservations in {}", path.display());
        let text = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            outcome => outcome.context(what)?,
        };
        serde_json::from_slice(&text).map_err(|source| {
            Error::new(ErrorKind::VerifyFailed, what())
                .with_source(source)
                .with_hint("who may write is not known; once you know, mend the file or remove it")
        })
    }

    /// Keeps them at `path`, durably.
    pub(super) fn store(&self, path: &Path) -> Result<()> {
        let what = || format!("cannot keep the reservations in {}", path.display());
        let text =
            serde_json::to_vec_pretty(self).map_err(|source| Error::new(ErrorKind::Io, what()).with_source(source))?;
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let mut file = File::create(&new).context(what)?;
        file.write_all(&text).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&new, path)).context(what)?;
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(directory).and_then(|directory| directory.sync_all()).context(what)
    }
}

fn conflict(why: impl std::fmt::Display) -> Error {
    Error::refused(format!("reservation conflict: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn host(name: &str) -> HostName {
        name.parse().unwrap()
    }

    fn register(name: &str, key: Key) -> Action {
        Action::Register { host: host(name), key, replace: false }
    }

    fn reserve(name: &str, key: Key, kind: ReservationKind) -> Action {
        Action::Reserve { host: host(name), key, kind }
    }

    /// What is after `actions`, each of which must be granted.
    fn after(actions: &[Action]) -> Reservations {
        actions.iter().fold(Reservations::default(), |state, action| state.after(action).unwrap())
    }

    fn writers(state: &Reservations) -> String {
        ["a", "b", "c"].into_iter().filter(|name| state.lets_write(&host(name))).collect()
    }

    #[test]
    fn only_the_holder_writes_or_only_who_is_registered() {
        use ReservationKind::{WriteExclusive, WriteExclusiveRegistrantsOnly};
        let registered = [register("a", 1), register("b", 2)];
        let state = after(&registered);
        assert_eq!((writers(&state).as_str(), state.generation), ("abc", 2));
        let exclusive = state.after(&reserve("a", 1, WriteExclusive)).unwrap();
        assert_eq!((writers(&exclusive).as_str(), exclusive.generation), ("a", 2));
        let shared = state.after(&reserve("a", 1, WriteExclusiveRegistrantsOnly)).unwrap();
        assert_eq!(writers(&shared), "ab");
        // To reserve again is no harm; otherwise, or by another, it is.
        assert_eq!(exclusive.after(&reserve("a", 1, WriteExclusive)).unwrap(), exclusive);
        for action in [
            reserve("a", 1, WriteExclusiveRegistrantsOnly),
            reserve("b", 2, WriteExclusive),
            reserve("b", 1, WriteExclusive),
            reserve("c", 3, WriteExclusive),
            register("a", 9),
            Action::Release { host: host("c"), key: 3 },
            Action::Preempt { host: host("b"), key: 2, victim: 7, kind: WriteExclusive },
        ] {
            let error = exclusive.after(&action).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Refused, "{action:?}: {error}");
        }
        let released = exclusive.after(&Action::Release { host: host("b"), key: 2 }).unwrap();
        assert_eq!(released, exclusive, "it had nothing to release");
        let released = exclusive.after(&Action::Release { host: host("a"), key: 1 }).unwrap();
        assert_eq!((writers(&released).as_str(), released.registrants.len()), ("abc", 2));
        let left = exclusive.after(&Action::Unregister { host: host("a"), key: 1 }).unwrap();
        assert_eq!((writers(&left).as_str(), left.reservation), ("abc", None));
    }

    #[test]
    fn who_is_preempted_loses_everything() {
        use ReservationKind::WriteExclusive;
        let state = after(&[register("a", 1), register("b", 2), register("c", 3), reserve("a", 1, WriteExclusive)]);
        let preempt = |victim| Action::Preempt { host: host("b"), key: 2, victim, kind: WriteExclusive };
        let taken = state.after(&preempt(1)).unwrap();
        assert_eq!((writers(&taken).as_str(), taken.generation), ("b", 4));
        assert!(!taken.registrants.contains_key(&host("a")) && taken.registrants.contains_key(&host("c")));
        // Somebody else's registration is taken away, and the reservation stays.
        let other = state.after(&preempt(3)).unwrap();
        assert_eq!((writers(&other).as_str(), other.registrants.len()), ("a", 2));
        let cleared = state.after(&Action::Clear { host: host("c"), key: 3 }).unwrap();
        assert_eq!((writers(&cleared).as_str(), cleared.registrants.len(), cleared.generation), ("abc", 0, 4));
    }

    #[test]
    fn who_is_fenced_does_not_write_and_does_not_come_back_by_itself() {
        use ReservationKind::WriteExclusive;
        let state = after(&[register("a", 1), reserve("a", 1, WriteExclusive), Action::Fence { host: host("a") }]);
        assert_eq!(writers(&state), "bc");
        assert_eq!(state.after(&register("a", 1)).unwrap_err().kind(), ErrorKind::Refused);
        assert_eq!(state.after(&Action::Fence { host: host("a") }).unwrap(), state);
        let back = state.after(&Action::Unfence { host: host("a") }).unwrap();
        assert_eq!(writers(&back), "abc");
    }

    #[test]
    fn they_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = Reservations::path_for(&dir.path().join("disk.img"));
        assert_eq!(Reservations::load(&path).unwrap(), Reservations::default());
        let state = after(&[register("a", u64::MAX), Action::Fence { host: host("b") }]);
        state.store(&path).unwrap();
        assert_eq!(Reservations::load(&path).unwrap(), state);
        fs::write(&path, "{").unwrap();
        assert_eq!(Reservations::load(&path).unwrap_err().kind(), ErrorKind::VerifyFailed);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    proptest! {
        #[test]
        fn a_holder_is_always_registered(actions in prop::collection::vec((0u8..8, 0usize..3, 0u64..4, 0u64..4), 0..40)) {
            let mut state = Reservations::default();
            for (what, who, key, victim) in actions {
                let (host, kind) = (host(["a", "b", "c"][who]), ReservationKind::WriteExclusive);
                let action = match what {
                    0 => Action::Register { host, key, replace: victim == 0 },
                    1 => Action::Unregister { host, key },
                    2 => Action::Reserve { host, key, kind },
                    3 => Action::Release { host, key },
                    4 => Action::Preempt { host, key, victim, kind },
                    5 => Action::Clear { host, key },
                    6 => Action::Fence { host },
                    _ => Action::Unfence { host },
                };
                if let Ok(after) = state.after(&action) {
                    state = after;
                }
                if let Some(held) = &state.reservation {
                    prop_assert!(state.registrants.contains_key(&held.holder), "{state:?}");
                    prop_assert!(state.lets_write(&held.holder), "{state:?}");
                }
                prop_assert!(state.registrants.keys().all(|host| !state.fenced.contains(host)), "{state:?}");
            }
        }
    }
}
