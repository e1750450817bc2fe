//! One request: a slot is claimed, filled, posted, waited for, and given back.

use std::process;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use blockdev::{Error, ErrorKind};
use nix::errno::Errno;

use super::{Client, is_served};
use crate::proto::response::{self, Answer, FileType, Reply};
use crate::proto::{ChannelNo, Header, MountId, Owner, RegionNo, Request, Slot, slot};

/// How long to sleep before looking again, where nobody woke us and where no slot was free.
const SLEEP: Duration = Duration::from_secs(1);
const NO_SLOT: Duration = Duration::from_micros(10);

/// What the original says when there is no room for another file, directory or block tag.
const TOO_MANY_FILES: i32 = 1001;

/// Why there is no answer, or not the one hoped for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// What pfsd or the library say: an errno.
    Errno(i32),
    /// The pfsd is gone, and did not come back.
    Gone,
    /// Somebody took the slot away: the connection was closed.
    Closed,
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno as i32)
    }
}

impl Failure {
    /// As an error, of which `what` says what was tried on what.
    pub(super) fn error(self, client: &Client, what: impl Into<String>) -> Error {
        let (what, disk) = (what.into(), &client.disk);
        match self {
            Self::Errno(errno) => {
                let error = Error::io(what, std::io::Error::from_raw_os_error(errno));
                match errno {
                    TOO_MANY_FILES => error
                        .with_kind(ErrorKind::NoSpace)
                        .with_hint("the volume has no room for another name or file: grow it"),
                    libc::ESTALE => error.with_hint(
                        "pfsd was started anew meanwhile; whether the end of the file was written before is not known",
                    ),
                    libc::EROFS => error.with_hint(format!("this client mounted {disk} for reading only")),
                    _ => error,
                }
            }
            Self::Gone => {
                let seconds = client.options.patience.as_secs();
                Error::io(format!("{what}: the pfsd of {disk} is gone for {seconds} s"), Errno::ETIMEDOUT)
                    .with_hint("start it: clients go on where they were. Whether this was done before is not known")
            }
            Self::Closed => {
                Error::io(format!("{what}: the connection to the pfsd of {disk} was closed"), Errno::ENOTCONN)
                    .with_hint("this process, or the one whose child it is, has left")
            }
        }
    }
}

/// For how long to wait for a pfsd that may be gone.
struct Patience<'a> {
    client: &'a Client,
    looked: Instant,
    gone: Option<Instant>,
}

impl<'a> Patience<'a> {
    fn new(client: &'a Client) -> Self {
        Self { client, looked: Instant::now(), gone: None }
    }

    /// Whether to go on waiting. Looks no more often than once a second, and only at the end of its patience at one that
    /// it knows to be gone: looking is in the way of one that starts.
    fn go_on(&mut self) -> bool {
        let now = Instant::now();
        let due = self.gone.map_or(self.looked + SLEEP, |gone| gone + self.client.options.patience);
        if now < due {
            return true;
        }
        self.looked = now;
        if is_served(&self.client.options.places, &self.client.disk) {
            self.gone = None;
            return true;
        }
        let gone = *self.gone.get_or_insert(now);
        now < gone + self.client.options.patience
    }
}

impl Client {
    /// Asks, and returns what pfsd answers. `kind` is what the file is counted as.
    ///
    /// For who wants to ask what no other method asks. What goes into the buffer of a read or write is up to those:
    /// [`pread`](Self::pread), [`pwrite`](Self::pwrite).
    ///
    /// # Errors
    /// The errno, when pfsd answers with one; when it is gone.
    pub fn request(&self, request: &Request, kind: FileType) -> blockdev::Result<Reply> {
        let failed = |failure: Failure| failure.error(self, format!("{} on {} failed", request.name(), self.disk));
        self.call(request, kind, |_| {}, |_, reply| reply).map_err(failed)
    }

    /// Asks until it is not for another mount. What is written is put into the buffer by `fill`, and what was read is taken
    /// from there by `drain`.
    pub(super) fn call<T>(
        &self,
        request: &Request,
        kind: FileType,
        mut fill: impl FnMut(Slot<'_>),
        mut drain: impl FnMut(Slot<'_>, Reply) -> T,
    ) -> Result<T, Failure> {
        loop {
            let header = Header { mount: self.mount_id(), file_type: kind.0 };
            let slot = self.claim(request)?;
            request.put(header, slot.slot);
            fill(slot.slot);
            slot.post()?;
            let slot = slot.wait()?;
            let answer = response::get(request, slot.slot);
            match self.is_another_mount(request, header.mount, &answer, slot.slot) {
                Some(mount) => self.mount_id.store(mount.0, Ordering::Relaxed),
                None => return answer.map(|reply| drain(slot.slot, reply)).map_err(Failure::Errno),
            }
        }
    }

    /// The mount to ask on, where a pfsd was started anew that has another.
    fn is_another_mount(&self, request: &Request, asked: MountId, answer: &Answer, slot: Slot<'_>) -> Option<MountId> {
        match answer {
            // What went to the end of the file before may go there again.
            Err(libc::ESTALE) if matches!(request, Request::Write { offset: None, .. }) => {
                self.mount_id.store(slot.mount().0, Ordering::Relaxed);
                None
            }
            Err(libc::ESTALE) => Some(slot.mount()),
            // Nothing of this process was underway then, so nobody told it.
            Err(libc::ENODEV) => self.connection.last_ack().ok().map(|ack| ack.mount).filter(|mount| *mount != asked),
            _ => None,
        }
    }

    /// Who asks. A child of the process that connected is another.
    fn owner(&self) -> Owner {
        Owner { connection: i16::from(self.id.raw()), pid: process::id().cast_signed() }
    }

    /// Takes a slot whose buffer is large enough, of the smallest that are.
    fn claim(&self, request: &Request) -> Result<Claimed<'_>, Failure> {
        let regions = || RegionNo::for_bytes(request.buffer_size());
        if regions().next().is_none() {
            return Err(Errno::EFBIG.into());
        }
        self.take_back_abandoned();
        let owner = self.owner();
        let mut patience = Patience::new(self);
        loop {
            for region in regions() {
                // Children go on from where their parent was, so this alone would lead all of them to the same channels.
                let first = self.next.fetch_add(1, Ordering::Relaxed).wrapping_add(owner.pid.cast_unsigned() as usize);
                for index in 0..usize::from(region.channels()) {
                    let number = ChannelNo::of(region, first.wrapping_add(index));
                    let channel = self.memory.channel(number);
                    let word = |slot| channel.slot(slot).word();
                    if let Some(slot) = slot::claim(channel.bitmap(), number.slots(), word, owner) {
                        let slot = channel.slot(slot);
                        slot.set_epoch(channel.epoch());
                        slot.semaphore().init();
                        return Ok(Claimed { client: self, slot, owner, held: true });
                    }
                }
            }
            if !patience.go_on() {
                return Err(Failure::Gone);
            }
            thread::sleep(NO_SLOT);
        }
    }

    /// Ends what a child of this process had asked that died: what no pfsd has begun is taken back, what one has is waited for,
    /// and the slots are freed. Until then what it wrote may still come over what others write. pfsd finds those slots by
    /// itself, too, but takes its time.
    ///
    /// # Errors
    /// When the pfsd is gone that had begun something.
    pub fn abort(&self, pid: u32) -> blockdev::Result<()> {
        let owner = Owner { pid: pid.cast_signed(), ..self.owner() };
        let mut patience = Patience::new(self);
        for channel in ChannelNo::all().map(|number| self.memory.channel(number)) {
            for slot in channel.number().slots().map(|number| channel.slot(number)) {
                let word = slot.word();
                while slot::is_owned(word, owner) {
                    slot::withdraw(word, owner);
                    if slot::abandon(word, channel.bitmap(), slot.number(), owner) {
                        break;
                    }
                    if !patience.go_on() {
                        let what = format!("cannot end what process {pid} asked on {}", self.disk);
                        return Err(Failure::Gone.error(self, what));
                    }
                    slot.semaphore().wait(NO_SLOT);
                }
            }
        }
        Ok(())
    }

    /// Frees the slots of what was given up and has been answered meanwhile.
    fn take_back_abandoned(&self) {
        if !self.has_abandoned.load(Ordering::Relaxed) {
            return;
        }
        let mut abandoned = self.abandoned.lock().unwrap_or_else(PoisonError::into_inner);
        abandoned.retain(|(channel, number), owner| {
            let channel = self.memory.channel(*channel);
            let word = channel.slot(*number).word();
            let answered = slot::is_answered(word, *owner);
            if answered {
                slot::release(word, channel.bitmap(), *number, *owner);
            }
            !answered && slot::is_owned(word, *owner)
        });
        self.has_abandoned.store(!abandoned.is_empty(), Ordering::Relaxed);
    }
}

/// A slot that is ours. Dropped, it is given back.
struct Claimed<'a> {
    client: &'a Client,
    slot: Slot<'a>,
    owner: Owner,
    /// Whether it is ours to give back.
    held: bool,
}

impl Claimed<'_> {
    /// Says that it is filled.
    fn post(&self) -> Result<(), Failure> {
        if slot::post(self.slot.word(), self.owner) { Ok(()) } else { Err(Failure::Closed) }
    }

    /// Waits for the answer.
    fn wait(mut self) -> Result<Self, Failure> {
        let word = self.slot.word();
        let mut patience = Patience::new(self.client);
        while !slot::is_answered(word, self.owner) {
            if !slot::is_owned(word, self.owner) {
                self.held = false;
                return Err(Failure::Closed);
            }
            if !patience.go_on() {
                return self.give_up();
            }
            self.slot.semaphore().wait(SLEEP);
        }
        Ok(self)
    }

    /// What no pfsd has taken is taken back. What one took that is gone is left to the next.
    fn give_up(mut self) -> Result<Self, Failure> {
        let word = self.slot.word();
        if slot::withdraw(word, self.owner) {
            return Err(Failure::Gone);
        }
        if slot::is_answered(word, self.owner) {
            return Ok(self);
        }
        self.held = false;
        let key = (self.slot.channel().number(), self.slot.number());
        self.client.abandoned.lock().unwrap_or_else(PoisonError::into_inner).insert(key, self.owner);
        self.client.has_abandoned.store(true, Ordering::Relaxed);
        Err(Failure::Gone)
    }
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        if self.held {
            slot::release(self.slot.word(), self.slot.channel().bitmap(), self.slot.number(), self.owner);
        }
    }
}
