//! A volume as a directory of the host, read-only, so that ordinary programs can look inside.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, UNIX_EPOCH};

use blockdev::ui::needs_root;
use blockdev::{Cancel, Context, Error, ErrorKind, Result};
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyOpen, ReplyStatfs,
    Request,
};

use crate::format::{BLOCK_SIZE, InodeNo, Kind, NAME_MAX, Number};
use crate::volume::{Entry, FileKind, FileMap, Name, Stat, Volume};

/// How long the kernel may believe an answer: another host may be writing.
const VALID: Duration = Duration::ZERO;

/// How often to look whether it is to end.
const TICK: Duration = Duration::from_millis(100);

/// Shows the volume on the file or device at `path` in the directory `point`, until `cancel` is set or somebody unmounts it.
/// Whatever another host writes meanwhile is seen. `ready` is called once it can be used.
///
/// # Errors
/// When the volume cannot be opened, or not be mounted there.
pub fn mount(path: &Path, point: &Path, cancel: &Cancel, ready: impl FnOnce()) -> Result<()> {
    let volume = path.to_owned();
    let (requests, reader) = serve(move || Volume::open(&volume))?;
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::RO,
        MountOption::NoDev,
        MountOption::NoSuid,
        MountOption::NoExec,
        MountOption::DefaultPermissions,
        MountOption::FSName(path.display().to_string()),
        MountOption::Subtype("pfs".to_owned()),
    ];
    let what = || format!("cannot mount {} on {}", path.display(), point.display());
    let session = needs_root(fuser::spawn_mount(Mounted { requests }, point, &config).context(what))?;
    ready();
    let outcome = until_it_ends(session, cancel).context(|| format!("cannot unmount {}", point.display()));
    // The session had the other end of the channel, so the reader ends too.
    reader.join().map_err(|_| Error::new(ErrorKind::Io, "the reader of the volume panicked"))?;
    outcome
}

fn until_it_ends(session: BackgroundSession, cancel: &Cancel) -> std::io::Result<()> {
    while !cancel.is_cancelled() {
        if session.guard.is_finished() {
            return session.join();
        }
        thread::sleep(TICK);
    }
    session.umount_and_join()
}

/// Something to be done with the volume.
type Job = Box<dyn FnOnce(&mut Reader) + Send>;

/// Starts the thread that has the volume: its I/O stays on one thread.
fn serve(open: impl FnOnce() -> Result<Volume> + Send + 'static) -> Result<(mpsc::Sender<Job>, JoinHandle<()>)> {
    let (requests, jobs) = mpsc::channel::<Job>();
    let (tell, opened) = mpsc::channel();
    let work = move || match open() {
        Ok(volume) => {
            // Whoever opens waits for this.
            let _ = tell.send(Ok(()));
            let mut reader = Reader { volume, maps: HashMap::new() };
            jobs.into_iter().for_each(|job| job(&mut reader));
        }
        Err(error) => drop(tell.send(Err(error))),
    };
    let thread = thread::Builder::new().name("volume".to_owned()).spawn(work).context(|| "cannot start a thread")?;
    opened.recv().map_err(|_| Error::new(ErrorKind::Io, "the reader of the volume panicked"))??;
    Ok((requests, thread))
}

/// The volume, and where the files lie that were read.
struct Reader {
    volume: Volume,
    maps: HashMap<InodeNo, FileMap>,
}

impl Reader {
    /// Sees what another host wrote.
    fn refresh(&mut self) -> Result<(), Errno> {
        if self.volume.refresh().map_err(|error| errno(&error))? {
            self.maps.clear();
        }
        Ok(())
    }

    fn stat(&mut self, inode: INodeNo) -> Result<FileAttr, Errno> {
        self.refresh()?;
        attributes(&self.volume.metadata().stat(number(inode)?).map_err(|error| errno(&error))?)
    }

    fn lookup(&mut self, parent: INodeNo, name: &OsStr) -> Result<(FileAttr, Generation), Errno> {
        self.refresh()?;
        let name = Name::new(name.as_bytes()).map_err(|why| Errno::from_i32(why.errno() as i32))?;
        let entries = self.volume.metadata().entries(number(parent)?).map_err(|error| errno(&error))?;
        let found = entries.into_iter().find(|entry| entry.name == name).ok_or(Errno::ENOENT)?;
        let inode = self.volume.metadata().named(found.number, found.inode).map_err(|_| Errno::EIO)?;
        let stat = Stat::of(&inode).ok_or(Errno::ENOENT)?;
        Ok((attributes(&stat)?, Generation(stat.btime.0)))
    }

    fn entries(&mut self, directory: INodeNo) -> Result<Vec<(Entry, FileKind)>, Errno> {
        self.refresh()?;
        let metadata = self.volume.metadata();
        let with_kind = |entry: Entry| {
            let kind = metadata.stat(entry.inode)?.kind;
            Ok((entry, kind))
        };
        let entries = metadata.entries(number(directory)?).map_err(|error| errno(&error))?;
        entries.into_iter().map(with_kind).collect::<Result<_>>().map_err(|error| errno(&error))
    }

    fn read(&mut self, inode: INodeNo, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        self.refresh()?;
        let inode = number(inode)?;
        if !self.maps.contains_key(&inode) {
            self.maps.insert(inode, self.volume.metadata().file_map(inode).map_err(|error| errno(&error))?);
        }
        let Some(map) = self.maps.get(&inode) else { return Err(Errno::EIO) };
        let mut bytes = vec![0; size as usize];
        let count = self.volume.read(map, offset, &mut bytes).map_err(|error| errno(&error))?;
        bytes.truncate(count);
        Ok(bytes)
    }

    fn statfs(&mut self) -> Result<[(u64, u64); 2], Errno> {
        self.refresh()?;
        let metadata = self.volume.metadata();
        let chunks = || metadata.headers().map(|header| header.id);
        let blocks: usize = chunks().map(|id| metadata.used::<crate::format::BlktagNo>(id).count()).sum();
        let inodes: usize = chunks().map(|id| metadata.used::<InodeNo>(id).count()).sum();
        let of = |kind, used| (metadata.count(kind), metadata.count(kind) - used as u64);
        Ok([of(Kind::Blktag, blocks), of(Kind::Inode, inodes)])
    }
}

/// What the kernel talks to.
#[derive(Debug)]
struct Mounted {
    requests: mpsc::Sender<Job>,
}

impl Mounted {
    fn ask(&self, job: impl FnOnce(&mut Reader) + Send + 'static) {
        // A reader that is gone leaves the request unanswered, which fuser turns into an error.
        let _ = self.requests.send(Box::new(job));
    }
}

impl Filesystem for Mounted {
    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.ask(move |reader| match reader.lookup(parent, &name) {
            Ok((attributes, generation)) => reply.entry(&VALID, &attributes, generation),
            Err(errno) => reply.error(errno),
        });
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        self.ask(move |reader| match reader.stat(inode) {
            Ok(attributes) => reply.attr(&VALID, &attributes),
            Err(errno) => reply.error(errno),
        });
    }

    fn open(&self, _request: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // Without FOPEN_KEEP_CACHE what was read before is forgotten: each opening sees what is there.
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn read(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.ask(move |reader| match reader.read(inode, offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(errno) => reply.error(errno),
        });
    }

    fn readdir(&self, _request: &Request, inode: INodeNo, _handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.ask(move |reader| match reader.entries(inode) {
            Ok(entries) => {
                let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
                for (next, (entry, kind)) in (1..).zip(entries).skip(skipped) {
                    if reply.add(
                        INodeNo(entry.inode.raw() + 1),
                        next,
                        file_type(kind),
                        OsStr::from_bytes(entry.name.as_bytes()),
                    ) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        });
    }

    fn statfs(&self, _request: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        self.ask(move |reader| match reader.statfs() {
            Ok([(blocks, free), (inodes, unused)]) => {
                #[allow(clippy::cast_possible_truncation, reason = "4 MiB, and 255")]
                let (block, name) = (BLOCK_SIZE.bytes() as u32, NAME_MAX as u32);
                reply.statfs(blocks, free, free, inodes, unused, block, name, block);
            }
            Err(errno) => reply.error(errno),
        });
    }
}

/// To the kernel 0 is no inode; ours are one more.
fn number(inode: INodeNo) -> Result<InodeNo, Errno> {
    inode.0.checked_sub(1).and_then(InodeNo::from_raw).ok_or(Errno::ENOENT)
}

fn errno(error: &Error) -> Errno {
    Errno::from_i32(error.errno().unwrap_or(libc::EIO))
}

fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
    }
}

/// Whoever mounts it may read everything: a volume knows no owners and no permissions.
fn attributes(stat: &Stat) -> Result<FileAttr, Errno> {
    let time = |seconds: u64| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).ok_or(Errno::EIO);
    Ok(FileAttr {
        ino: INodeNo(stat.inode.raw() + 1),
        size: stat.size,
        blocks: stat.blocks,
        atime: time(stat.atime.0)?,
        mtime: time(stat.mtime.0)?,
        ctime: time(stat.ctime.0)?,
        crtime: UNIX_EPOCH,
        kind: file_type(stat.kind),
        perm: if stat.kind == FileKind::Directory { 0o555 } else { 0o444 },
        nlink: 1,
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        rdev: 0,
        #[allow(clippy::cast_possible_truncation, reason = "4 MiB")]
        blksize: BLOCK_SIZE.bytes() as u32,
        flags: 0,
    })
}
