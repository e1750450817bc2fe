//! The disk as files of this machine, through FUSE; and as block devices, with a loop device on each file.
//!
//! A directory holds a file for each host, which is the disk as that host sees it. Nothing of it is cached by the kernel: files
//! are read and written past the page cache, so that they agree with every other export. A loop device, with direct I/O on such
//! a file, is a block device like any other, whose every request comes here.
//!
//! The kernel's requests are taken by a thread for each processor, which has a [port](crate::emulate::Port) of its own. The loop
//! of the crate `fuser` calls a function for each request, which either answers before the next is read, or hands it to another
//! thread; and it leaves no say in how the kernel cuts writes, which then end within sectors. So the protocol is spoken here.
//!
//! **Who serves a disk must never wait for it.** A thread of this process that waits for the disk cannot be killed while it
//! waits; with it the process keeps its descriptors, and the kernel waits for answers that nobody gives any more. So what
//! touches the files or the devices from here is done [apart](devices), by a thread without the descriptors.

mod abi;
mod devices;
mod files;
mod worker;

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};

use nix::mount::{MsFlags, mount};

use super::disk::{Disk, Shared};
use super::mailbox::Letter;
use super::release;
use crate::cancel::Cancel;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::loopdev::LoopDevice;
use crate::ui::needs_root;
use abi::{HEAD, HEADER, Header, opcode};
use files::Files;
use worker::{IN_FLIGHT_MAX, TRANSFER_MAX, Worker};

/// Where the kernel is met.
const DEVICE: &str = "/dev/fuse";

/// How many pages of memory a request may be about: twice as many as it needs, so that one whose memory begins within a page is
/// not cut within a sector.
const PAGES_MAX: u16 = 256;

/// linux/prctl.h, since 5.6.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// Most threads: more than that do not make a disk quicker.
const THREADS_MAX: usize = 8;

/// A directory that a disk is to be mounted on.
#[derive(Debug)]
pub(super) struct Point {
    path: PathBuf,
    /// Whether it has to be made, or was.
    is_new: bool,
    made: bool,
}

impl Point {
    /// The directory at `path`, whether it is there or not.
    ///
    /// # Errors
    /// When there is no directory for it to be in.
    pub(super) fn at(path: &Path) -> Result<Self> {
        let what = || format!("cannot mount a disk on {}", path.display());
        let is_new = fs::symlink_metadata(path).is_err();
        let path = match (is_new, path.file_name()) {
            (true, Some(name)) => {
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
                fs::canonicalize(parent).context(what)?.join(name)
            }
            _ => fs::canonicalize(path).context(what)?,
        };
        Ok(Self { path, is_new, made: false })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it has to be made for the mount, or was.
    pub(super) fn is_new(&self) -> bool {
        self.is_new
    }

    /// Makes it, if it is not there.
    fn make(&mut self) -> Result<()> {
        let what = || format!("cannot mount a disk on {}", self.path.display());
        if self.is_new {
            fs::DirBuilder::new().mode(0o700).create(&self.path).context(what)?;
            self.made = true;
        } else if fs::read_dir(&self.path).context(what)?.next().is_some() {
            return Err(Error::refused(format!("{} is not empty: what is in it would be hidden", self.path.display()))
                .with_hint("name an empty directory, or one that is not there yet"));
        }
        Ok(())
    }
}

impl Drop for Point {
    fn drop(&mut self) {
        if self.made {
            // Somebody may have removed it.
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// The disk in a directory, until this is dropped.
#[derive(Debug)]
pub(super) struct Server {
    disk: Arc<Disk>,
    /// By host; none of those that are not attached.
    devices: Vec<LoopDevice>,
    threads: Vec<Thread>,
    ending: Arc<AtomicBool>,
    point: Point,
}

/// A thread that serves.
#[derive(Debug)]
struct Thread {
    port: Arc<Shared>,
    handle: Option<JoinHandle<Result<()>>>,
}

impl Server {
    /// Mounts `disk` on `point`. If a thread cannot go on, the file system is gone and `failed` is set.
    ///
    /// # Errors
    /// When there is no FUSE here, or the caller may not mount.
    pub(super) fn start(disk: &Arc<Disk>, mut point: Point, failed: &Cancel) -> Result<Self> {
        if !Path::new(DEVICE).exists() {
            return Err(Error::new(ErrorKind::Unsupported, format!("no FUSE here: there is no {DEVICE}"))
                .with_hint("load the kernel module with `modprobe fuse`, or export the disk with --nbd"));
        }
        point.make()?;
        let device = needs_root(mount_at(&point.path, disk.path()))?;
        let ending = Arc::new(AtomicBool::new(false));
        let mut server = Self { disk: Arc::clone(disk), devices: Vec::new(), threads: Vec::new(), ending, point };
        let what = || format!("cannot serve files in {}", server.point.path.display());
        agree(&device).context(what)?;
        let count = thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
        let files = Arc::new(Files::new(disk));
        for _ in 0..count {
            let own = clone_device(device.as_fd()).context(what)?;
            let thread = server.start_thread(own, &files, count, failed)?;
            server.threads.push(thread);
        }
        Ok(server)
    }

    fn start_thread(&self, device: File, files: &Arc<Files>, count: usize, failed: &Cancel) -> Result<Thread> {
        let (disk, files, ending) = (Arc::clone(&self.disk), Arc::clone(files), Arc::clone(&self.ending));
        // Few.
        let count = u32::try_from(count).unwrap_or(1);
        let (tell, opened) = mpsc::channel();
        let alarm = Alarm { point: self.point.path.clone(), failed: failed.clone(), armed: true };
        let work = move || {
            let mut alarm = alarm;
            let outcome = open_and_run(&disk, device, files, ending, count, &tell);
            alarm.armed = outcome.is_err();
            outcome
        };
        let handle = thread::Builder::new().name("fuse".to_owned()).spawn(work).context(|| "cannot start a thread")?;
        match opened.recv() {
            Ok(port) => Ok(Thread { port, handle: Some(handle) }),
            // It has ended without.
            Err(_) => Err(joined(handle).err().unwrap_or_else(|| Error::new(ErrorKind::Io, "a thread has ended"))),
        }
    }

    /// The file of the host called `name`.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.point.path.join(name)
    }

    /// Attaches a loop device to the file of each host.
    ///
    /// # Errors
    /// When there are no loop devices here, or the caller may not.
    pub(super) fn attach(&mut self) -> Result<()> {
        let options = self.disk.options();
        for host in &options.hosts {
            let file = self.point.path.join(host.as_str());
            self.devices.push(devices::attach(&file, options.sector_size, options.read_only)?);
        }
        Ok(())
    }

    /// The device of the host called `name`.
    pub(super) fn device(&self, name: &str) -> Option<&Path> {
        let index = self.disk.options().hosts.iter().position(|host| host.as_str() == name)?;
        self.devices.get(index).map(|device| &*device.path)
    }

    /// Detaches the devices.
    ///
    /// # Errors
    /// [`Refused`](ErrorKind::Refused) when somebody uses one, which then stays as it is.
    pub(super) fn detach(&mut self) -> Result<()> {
        while let Some(device) = self.devices.last() {
            match devices::detach(device) {
                // The user was quicker.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                outcome => outcome?,
            }
            self.devices.pop();
        }
        Ok(())
    }

    /// Ends it, and says what went wrong with it.
    ///
    /// # Errors
    /// When a thread could not go on.
    pub(super) fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        for device in self.devices.drain(..) {
            // Who still uses it finds that the disk is gone.
            devices::abandon(&device);
        }
        release::mount(&self.point.path);
        self.ending.store(true, Ordering::Release);
        self.threads.iter().for_each(|thread| thread.port.mailbox.send(Letter::Look));
        let handles = self.threads.iter_mut().filter_map(|thread| thread.handle.take());
        handles.map(joined).fold(Ok(()), Result::and)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Who wants to know stops it.
        let _ = self.end();
    }
}

fn open_and_run(
    disk: &Arc<Disk>,
    device: File,
    files: Arc<Files>,
    ending: Arc<AtomicBool>,
    count: u32,
    tell: &Sender<Arc<Shared>>,
) -> Result<()> {
    // When memory is short, the kernel writes back what is in the page cache over this disk, and must not wait for that to get
    // us memory. Without the right to say so it may.
    // SAFETY: takes no pointer.
    unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1usize, 0usize, 0usize, 0usize) };
    let port = disk.open_port(IN_FLIGHT_MAX.div_ceil(count))?;
    let shared = port.shared();
    let worker = Worker::new(port, device, files, ending, count)?;
    // Whoever starts us waits for this.
    let _ = tell.send(shared);
    worker.run()
}

fn joined(handle: JoinHandle<Result<()>>) -> Result<()> {
    handle.join().unwrap_or_else(|_| Err(Error::new(ErrorKind::Io, "a thread that serves files panicked")))
}

/// Takes the file system away when a thread cannot go on: what it has taken, or would have to take, is answered with an error.
#[derive(Debug)]
struct Alarm {
    point: PathBuf,
    failed: Cancel,
    armed: bool,
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if self.armed {
            release::abort(&self.point);
            self.failed.cancel();
        }
    }
}

/// Mounts files at `point`, which whoever has the descriptor that is returned serves. They are this user's alone.
fn mount_at(point: &Path, image: &Path) -> Result<File> {
    let what = || format!("cannot mount {} on {}", image.display(), point.display());
    let device = OpenOptions::new().read(true).write(true).open(DEVICE).context(what)?;
    let options = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions,max_read={TRANSFER_MAX},subtype=onedisk",
        device.as_raw_fd(),
        nix::unistd::geteuid(),
        nix::unistd::getegid(),
    );
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(Some(image), point, Some("fuse"), flags, Some(&*options)).context(what)?;
    Ok(device)
}

/// Comes to an agreement with the kernel.
fn agree(mut device: &File) -> io::Result<()> {
    // As much as the kernel wants room for, at least.
    let mut request = [0; 8192];
    let len = device.read(&mut request)?;
    let Some((head, _)) = request[..len].split_first_chunk::<HEAD>() else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let header = Header::parse(head);
    if header.opcode != opcode::INIT {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let in_flight = u16::try_from(IN_FLIGHT_MAX).unwrap_or(u16::MAX);
    let reply = abi::init_reply(&request[HEADER..len], TRANSFER_MAX, PAGES_MAX, in_flight);
    let data = reply.as_deref().unwrap_or_default();
    let head = abi::reply_header(header.unique, data.len(), reply.as_ref().map(|_| ()).map_err(|errno| *errno));
    let _ = device.write_vectored(&[IoSlice::new(&head), IoSlice::new(data)])?;
    reply.map(|_| ()).map_err(io::Error::from)
}

/// A descriptor of its own for the file system that `device` is of, which never waits.
fn clone_device(device: BorrowedFd<'_>) -> io::Result<File> {
    let own = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEVICE)?;
    let mut number = device.as_raw_fd().cast_unsigned();
    // SAFETY: the kernel reads a number, and writes nothing.
    unsafe { abi::clone_device(own.as_raw_fd(), &raw mut number) }?;
    Ok(own)
}
