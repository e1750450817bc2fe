//! Where it takes place: a disk, an agent for each pfsd that is to serve it, and the same disk without them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use blockdev::engine::Choice;
use blockdev::{ByteOffset, ByteRange, ByteSize, Cancel, Context, Error, FileId, Result, usage};
use provision::runtime::docker::Endpoint;

use super::agent::{self, Assignment, DATA, Disk, Service};
use super::medium::{self, Medium};
use super::session::Session;
use super::which::{Kind, Pfsd};
use super::work::{Rw, Work};
use super::{Options, note, room};
use crate::disk::{self, Caching, Target};
use crate::load::Pattern;
use crate::report::{Finding, Run, Severity};

/// What a disk of our own is called where it needs no name in /dev.
const DISK: &str = "scratch";

/// A disk, and who serves it.
pub(super) struct Stage {
    /// What it is on.
    pub(super) name: String,
    /// Whether that is memory, so that nobody asks whether numbers are a disk's.
    pub(super) in_memory: bool,
    // Ended in this order.
    pub(super) sessions: Vec<Session>,
    /// The same disk without a pfsd.
    pub(super) targets: Vec<Target>,
    /// Where the file is on it that all read and write.
    place: Option<ByteRange>,
    /// Whether the blocks of that file may be written past the pfsd: on a disk of our own.
    is_ours: bool,
    /// The agents' directory in the volume.
    directory: String,
    /// Where the disk is opened here.
    disk: Option<PathBuf>,
    // Dropped last.
    _medium: Option<Medium>,
}

/// How many there are.
pub(super) fn count(options: &Options) -> usize {
    match options.pfsd {
        super::Which::Container(_) => 1,
        _ => options.scratch.len(),
    }
}

impl Stage {
    /// Sets the scene number `index`.
    ///
    /// # Errors
    /// When the disk cannot be made or an agent not be started, or the disk or its pfsd are in use.
    pub(super) fn set(options: &Options, pfsds: &[Pfsd], index: usize, run: &mut Run, cancel: &Cancel) -> Result<Self> {
        match &pfsds[0].kind {
            Kind::Container(name) => Self::in_container(options, name, run, cancel),
            _ => Self::of_our_own(options, pfsds, &options.scratch[index], run, cancel),
        }
    }

    fn of_our_own(options: &Options, pfsds: &[Pfsd], scratch: &Path, run: &mut Run, cancel: &Cancel) -> Result<Self> {
        let medium = Medium::make(scratch, room(&options.sweep, options.common.size), cancel)?;
        let directory = directory();
        let mut sessions = Vec::new();
        for pfsd in pfsds {
            let service = match &pfsd.kind {
                Kind::Ours(program) => {
                    let (program, device) = (program.clone(), medium.path().to_owned());
                    Service::Ours { program, disk: DISK.to_owned(), device }
                }
                Kind::Original(program) => Service::Original { program: program.clone(), disk: medium.device_name()? },
                Kind::Container(_) => unreachable!("there is no other beside it"),
            };
            let assignment = Assignment { service, directory: directory.clone(), tidy: false, unlink: false };
            let mut session = Session::local(&options.program, &assignment)?;
            session.look(cancel)?;
            sessions.push(session);
        }
        run.findings.extend(medium.findings.iter().cloned());
        let targets = medium.targets()?;
        run.environment.targets.extend(targets.iter().map(Target::facts));
        if medium.in_memory {
            let text = format!("{} is memory: figures on it are those of pfsd, not of a disk.", medium.name);
            run.findings.push(note("in-memory", text));
        }
        Ok(Self {
            name: medium.name.clone(),
            in_memory: medium.in_memory,
            sessions,
            targets,
            place: None,
            is_ours: true,
            directory,
            disk: Some(medium.path().to_owned()),
            _medium: Some(medium),
        })
    }

    fn in_container(options: &Options, container: &str, run: &mut Run, cancel: &Cancel) -> Result<Self> {
        let endpoint = Endpoint::find(options.docker.as_deref())?;
        let directory = directory();
        let service = Service::Here { disk: options.disk.clone() };
        let assignment = Assignment { service, directory: directory.clone(), tidy: true, unlink: true };
        let program = &options.container_program;
        let mut session = Session::in_container(&endpoint, container, program, &assignment, cancel)?;
        let disk = session.look(cancel)?;
        let device = seen_here(&disk);
        match &device {
            Ok(device) => refuse_if_used(device, &disk.name)?,
            Err(why) => {
                let text = format!(
                    "The disk {} cannot be looked at from here ({why}): what it could do by itself is not measured, nor                      whether anybody else writes to it.",
                    disk.name
                );
                run.findings.push(Finding::new(Severity::Warning, "disk-not-seen", text));
            }
        }
        let writes = |rw: &Rw| rw.pattern().is_some_and(Pattern::writes);
        if device.is_ok() && options.sweep.rw.iter().any(writes) {
            let text = "What the disk could write by itself is not measured: the volume on it is not ours to write past its pfsd.";
            run.findings.push(note("no-write-ceiling", text));
        }
        let targets = match &device {
            Ok(device) => vec![Target::open(device, Caching::Auto)?],
            Err(_) => Vec::new(),
        };
        run.environment.targets.extend(targets.iter().map(Target::facts));
        Ok(Self {
            name: disk.name,
            in_memory: false,
            sessions: vec![session],
            targets,
            place: None,
            is_ours: false,
            directory,
            disk: device.ok(),
            _medium: None,
        })
    }

    /// Writes the file that all read and write, and finds out where it is.
    ///
    /// # Errors
    /// When it cannot be written, or not be found where it should be.
    pub(super) fn prepare(&mut self, size: ByteSize, cancel: &Cancel, elapsed: &mut dyn FnMut(Duration)) -> Result<()> {
        let session = &mut self.sessions[0];
        session.serve(1, cancel)?;
        session.prepare(size, cancel, elapsed)?;
        session.rest(cancel)?;
        if let Some(device) = &self.disk {
            self.place = Some(medium::place_of(device, &format!("{}/{DATA}", self.directory))?);
        }
        Ok(())
    }

    /// The load on `target` that is the ceiling of `work`, where there is one.
    pub(super) fn ceiling(&self, target: &Target, work: &Work) -> Option<disk::Spec> {
        let writes = work.rw.pattern()?.writes();
        let region = aligned(self.place.filter(|_| self.is_ours || !writes)?, work.block)?;
        let work = work.on_disk(region)?;
        work.check().ok()?;
        if !work.block.is_multiple_of(target.alignment()) {
            return None;
        }
        let name = format!("{} {}, {} in flight", work.pattern, work.block, work.depth);
        Some(disk::Spec { group: "", name, target: 0, engine: Choice::Auto, work })
    }

    /// Why the numbers of `work` would not be those of a disk.
    ///
    /// # Errors
    /// When the extents cannot be looked at.
    pub(super) fn why_not_disk(&self, work: &Work) -> Result<Option<String>> {
        let Some(target) = self.targets.last().filter(|_| !self.in_memory) else { return Ok(None) };
        // Whatever is done to names or ends of files is done to the same disk.
        let work = Work { rw: if work.rw.pattern().is_some() { work.rw } else { Rw::RandWrite }, ..work.clone() };
        let Some(region) = self.place else { return Ok(None) };
        work.on_disk(region).map_or(Ok(None), |work| target.why_not_disk(&work))
    }

    /// Takes everything away again.
    ///
    /// # Errors
    /// When something could not be given back.
    pub(super) fn strike(mut self) -> Result<()> {
        self.sessions.drain(..).map(Session::finish).fold(Ok(()), Result::and)
    }
}

/// The agents' directory in the volume.
fn directory() -> String {
    format!("onedisk-bench-{}", std::process::id())
}

/// Where the disk of an agent in a container is here; or why it is not.
fn seen_here(disk: &Disk) -> Result<PathBuf, String> {
    if disk.boot != agent::boot() {
        return Err("it is on another machine".to_owned());
    }
    if !nix::unistd::geteuid().is_root() {
        return Err("that needs root".to_owned());
    }
    let number = disk.number.ok_or("it is no block device there")?;
    let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
    let link = format!("/sys/dev/block/{major}:{minor}");
    let name = std::fs::read_link(&link).ok().and_then(|path| Some(path.file_name()?.to_owned()));
    name.map(|name| Path::new("/dev").join(name)).filter(|path| path.exists()).ok_or(format!("{link} leads nowhere"))
}

/// Refuses a disk that somebody has open: they may be writing to it.
fn refuse_if_used(device: &Path, disk: &str) -> Result<()> {
    let metadata = std::fs::metadata(device).context(|| format!("cannot look at {}", device.display()))?;
    let uses = usage::uses_of(FileId::of(&metadata));
    if uses.is_empty() {
        return Ok(());
    }
    let message = format!("{disk}, which is {} here, is in use: {}", device.display(), usage::describe(&uses));
    Err(Error::refused(message).with_hint("stop what uses it: two that write to one volume destroy it"))
}

/// What of `range` is whole blocks.
fn aligned(range: ByteRange, block: ByteSize) -> Option<ByteRange> {
    let block = block.bytes();
    let start = range.start.bytes().checked_next_multiple_of(block)?;
    let end = range.end().bytes() / block * block;
    let len = end.checked_sub(start).filter(|len| *len > 0)?;
    Some(ByteRange { start: ByteOffset::new(start), len: ByteSize::new(len) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ceiling_is_measured_in_whole_blocks_of_the_file() {
        let range = |start: u64, len: u64| ByteRange { start: ByteOffset::new(start), len: ByteSize::new(len) };
        let block = ByteSize::kib(24);
        assert_eq!(aligned(range(4 << 20, 4 << 20), block), Some(range(171 * 24576, 170 * 24576)));
        assert_eq!(aligned(range(4 << 20, 4 << 20), ByteSize::kib(8)), Some(range(4 << 20, 4 << 20)));
        assert_eq!(aligned(range(100, 20_000), block), None);
    }
}
