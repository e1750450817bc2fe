//! The shared memory itself.
//!
//! Other processes change it at any moment, also those that should not. So nothing in it is ever borrowed: words are atomic,
//! everything else is copied out, or lent to the kernel as a place to move data to and from.

use std::fs::{self, File, OpenOptions};
use std::num::NonZeroUsize;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use blockdev::{Context, Error, ErrorKind, Result};
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use super::geometry::{
    BITMAP_AT, BUFFERS_AT, ChannelNo, MAGIC, RECORDS, REGIONS, REQUEST_SIZE, REQUESTS_AT, RESPONSE_SIZE, RESPONSES_AT,
    RegionNo, SlotNo,
};
use super::semaphore::Semaphore;
use super::slot::{Owner, SlotState, SlotWord};
use super::{Places, ShmEpoch, VERSION, shared};

/// What of a request's record says something: bytes 128 to 384.
pub(super) const REQUEST: std::ops::Range<usize> = 128..384;

/// What of a response's record says something: bytes 32 to 320.
pub(super) const RESPONSE: std::ops::Range<usize> = 32..320;

/// A copy of what a client asks.
pub type RequestBytes = [u8; REQUEST.end - REQUEST.start];

/// A copy of what a daemon answers.
pub type ResponseBytes = [u8; RESPONSE.end - RESPONSE.start];

/// Bytes in a huge page, where pages have 4096.
const HUGE: usize = 2 << 20;

/// The advice to make one huge page of many small ones: MADV_COLLAPSE, of Linux 6.1 (include/uapi/asm-generic/mman-common.h).
const COLLAPSE: libc::c_int = 25;

/// One region, mapped.
#[derive(Debug)]
pub struct Region {
    number: RegionNo,
    /// On the border of a huge page.
    start: NonNull<u8>,
    /// The addresses in which it lies.
    room: NonNull<u8>,
    /// Which huge pages were [gathered](Slot::gather), a bit each.
    gathered: AtomicU64,
}

// SAFETY: it is memory that other processes change besides; all access to it is atomic, or through what is lent to the kernel.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length; whatever borrows from it is gone.
        let _ = unsafe { munmap(self.room.cast(), self.number.size() + HUGE) };
    }
}

/// Whether a daemon found a region as an earlier one had left it.
enum Found {
    Ours,
    Foreign,
}

impl Region {
    /// Maps the file of a region that a daemon serves.
    ///
    /// # Errors
    /// When it cannot be opened, or is none of this shape.
    pub fn open(path: &Path, number: RegionNo) -> Result<Self> {
        let what = || format!("cannot map {}", path.display());
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(path).context(what)?;
        let region = Self::map(path, &file, number)?;
        match region.inspect() {
            Ok(Found::Ours) => Ok(region),
            Ok(Found::Foreign) => Err(bad(path, "it is of another version of the protocol")),
            Err(why) => Err(bad(path, why)),
        }
    }

    /// Makes the file of a region, or takes over what an earlier daemon left: requests in it stay there, of an earlier epoch
    /// than the one that comes.
    fn serve(path: &Path, number: RegionNo) -> Result<(Self, ShmEpoch)> {
        let what = || format!("cannot make {}", path.display());
        loop {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o664).custom_flags(libc::O_CLOEXEC);
            let file = options.open(path).context(what)?;
            let len = file.metadata().context(what)?.len();
            file.set_permissions(fs::Permissions::from_mode(0o777)).context(what)?;
            if len == 0 {
                file.set_len(number.size() as u64).context(what)?;
            }
            let region = Self::map(path, &file, number)?;
            if region.word32(0).load(Ordering::Acquire) != MAGIC {
                region.init();
                return Ok((region, ShmEpoch(0)));
            }
            match region.inspect() {
                Ok(Found::Ours) => {}
                Ok(Found::Foreign) => {
                    fs::remove_file(path).context(what)?;
                    continue;
                }
                Err(why) => return Err(bad(path, why)),
            }
            let epoch = region.word32(8).load(Ordering::Relaxed).wrapping_add(2);
            region.word32(8).store(epoch, Ordering::Relaxed);
            for channel in number.channel_numbers() {
                region.channel(channel).word32(0).store(epoch, Ordering::Release);
            }
            return Ok((region, ShmEpoch(epoch)));
        }
    }

    fn map(path: &Path, file: &File, number: RegionNo) -> Result<Self> {
        let what = || format!("cannot map {}", path.display());
        let len = file.metadata().context(what)?.len();
        if len != number.size() as u64 {
            return Err(bad(path, format!("it is {len} bytes long instead of {}", number.size())));
        }
        let sizes = [number.size(), number.size() + HUGE].map(NonZeroUsize::new);
        let [Some(size), Some(room_size)] = sizes else { unreachable!("no region is empty") };
        // SAFETY: new addresses, which are nobody else's.
        let room = unsafe {
            mmap_anonymous(None, room_size, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE)
        };
        let room = room.context(what)?.cast::<u8>();
        // SAFETY: there is room for what is skipped.
        let start = unsafe { room.add(room.as_ptr().align_offset(HUGE)) };
        // From here on it is unmapped when it is dropped.
        let region = Self { number, start, room, gathered: AtomicU64::new(0) };
        let (protection, flags) =
            (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED | MapFlags::MAP_FIXED);
        // SAFETY: over addresses that are this region's and hold nothing; the file is as long.
        unsafe { mmap(NonZeroUsize::new(start.as_ptr().addr()), size, protection, flags, file, 0) }.context(what)?;
        Ok(region)
    }

    /// Makes huge pages of what is between two bytes, once.
    fn gather(&self, from: usize, to: usize) {
        for page in from / HUGE..to.div_ceil(HUGE) {
            let (bit, at) = (1 << page, page * HUGE);
            if at + HUGE > self.number.size() || self.gathered.load(Ordering::Relaxed) & bit != 0 {
                continue;
            }
            if self.gathered.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
                for advice in [libc::MADV_POPULATE_WRITE, COLLAPSE] {
                    // SAFETY: inside the mapping. What is there stays; where it lies in memory is not seen from here.
                    let _ = unsafe { libc::madvise(self.start.add(at).as_ptr().cast(), HUGE, advice) };
                }
            }
        }
    }

    /// Whether its header says that it is what it should be.
    fn inspect(&self) -> Result<Found, String> {
        let field = |at| self.word32(at).load(Ordering::Acquire);
        if field(0) != MAGIC {
            return Err(format!("it begins with {:#x} instead of {MAGIC:#x}", field(0)));
        }
        if field(4) != VERSION {
            return Ok(Found::Foreign);
        }
        // After this comes the region's number, on which nobody relies: the original wipes it out as it makes the region, and
        // writes it when it takes the region over.
        let shape = (u64::from(field(16)) | u64::from(field(20)) << 32, field(24));
        let expected = (self.number.unit() as u64, u32::from(self.number.channels()));
        if shape == expected { Ok(Found::Ours) } else { Err(format!("its shape is {shape:?} instead of {expected:?}")) }
    }

    /// Makes a region of zeroes one that is free.
    fn init(&self) {
        let number = self.number;
        let put = |at, value| self.word32(at).store(value, Ordering::Relaxed);
        put(4, VERSION);
        put(8, 0);
        #[allow(clippy::cast_possible_truncation, reason = "no region is longer than 2^32 bytes")]
        {
            put(12, number.size() as u32);
            put(16, number.unit() as u32);
        }
        put(20, 0);
        put(24, u32::from(number.channels()));
        for channel in number.channel_numbers() {
            self.channel(channel).init();
        }
        // Whoever sees the magic sees all the rest.
        fence(Ordering::Release);
        self.word32(0).store(MAGIC, Ordering::Release);
    }

    /// A channel of it.
    ///
    /// # Panics
    /// When it is another region's.
    #[must_use]
    pub fn channel(&self, number: ChannelNo) -> Channel<'_> {
        assert_eq!(number.region(), self.number, "a channel of another region");
        // SAFETY: the channels of a region lie inside of it.
        Channel { region: self, number, start: unsafe { self.start.add(number.start()) } }
    }

    fn word32(&self, at: usize) -> &AtomicU32 {
        // SAFETY: in the header, which is mapped as long as `self` is borrowed, and aligned.
        unsafe { AtomicU32::from_ptr(self.start.add(at).as_ptr().cast()) }
    }
}

fn bad(path: &Path, why: impl std::fmt::Display) -> Error {
    let message = format!("{} is no shared memory of a pfsd of this kind: {why}", path.display());
    Error::new(ErrorKind::Unsupported, message)
        .with_hint("if no pfsd runs and nobody uses it, remove the file: the next pfsd makes it new")
}

/// A channel: a bitmap, and slots.
#[derive(Debug, Clone, Copy)]
pub struct Channel<'a> {
    region: &'a Region,
    number: ChannelNo,
    start: NonNull<u8>,
}

impl<'a> Channel<'a> {
    /// Which it is.
    #[must_use]
    pub fn number(self) -> ChannelNo {
        self.number
    }

    /// Which slots are worth a look for who wants a free one.
    #[must_use]
    pub fn bitmap(self) -> &'a AtomicU64 {
        self.word64(BITMAP_AT)
    }

    /// The epoch that a client is to put into what it asks.
    #[must_use]
    pub fn epoch(self) -> ShmEpoch {
        ShmEpoch(self.word32(0).load(Ordering::Acquire))
    }

    /// Says which epoch a client is to put into what it asks. For the daemon: it is not for clients to change.
    pub fn set_epoch(self, epoch: ShmEpoch) {
        self.word32(0).store(epoch.0, Ordering::Release);
    }

    /// A slot of it.
    ///
    /// # Panics
    /// When it has no such slot.
    #[must_use]
    pub fn slot(self, number: SlotNo) -> Slot<'a> {
        assert!(number.index() < usize::from(self.number.region().slots()), "{number:?} of {:?}", self.number);
        Slot { channel: self, number }
    }

    fn init(self) {
        let region = self.region.number;
        #[allow(clippy::cast_possible_truncation, reason = "all small")]
        for (at, value) in
            [(4, MAGIC), (8, self.number.index() as u32), (16, region.unit() as u32), (24, u32::from(region.slots()))]
        {
            self.word32(at).store(value, Ordering::Relaxed);
        }
        let free = SlotWord::new(Owner::NOBODY, SlotState::Free).raw();
        for record in 0..RECORDS {
            self.word64(REQUESTS_AT + record * REQUEST_SIZE + 64).store(free, Ordering::Relaxed);
        }
        self.bitmap().store(region.all_free(), Ordering::Relaxed);
    }

    fn word32(self, at: usize) -> &'a AtomicU32 {
        // SAFETY: callers keep `at` inside the channel and aligned; it is mapped for as long as the region is borrowed.
        unsafe { AtomicU32::from_ptr(self.start.add(at).as_ptr().cast()) }
    }

    fn word64(self, at: usize) -> &'a AtomicU64 {
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(self.start.add(at).as_ptr().cast()) }
    }

    /// Copies bytes out, eight at a time: `at` and their number are multiples of that.
    fn copy_out(self, at: usize, into: &mut [u8]) {
        for (index, word) in into.as_chunks_mut().0.iter_mut().enumerate() {
            *word = self.word64(at + 8 * index).load(Ordering::Relaxed).to_ne_bytes();
        }
    }

    /// Copies bytes in, eight at a time.
    fn copy_in(self, at: usize, from: &[u8]) {
        for (index, word) in from.as_chunks().0.iter().enumerate() {
            self.word64(at + 8 * index).store(u64::from_ne_bytes(*word), Ordering::Relaxed);
        }
    }
}

/// A slot: a word that says whose it is, a request, a response, a semaphore, a buffer.
#[derive(Debug, Clone, Copy)]
pub struct Slot<'a> {
    channel: Channel<'a>,
    number: SlotNo,
}

impl<'a> Slot<'a> {
    /// Which it is.
    #[must_use]
    pub fn number(self) -> SlotNo {
        self.number
    }

    /// Its channel.
    #[must_use]
    pub fn channel(self) -> Channel<'a> {
        self.channel
    }

    fn request_at(self) -> usize {
        REQUESTS_AT + self.number.index() * REQUEST_SIZE
    }

    fn response_at(self) -> usize {
        RESPONSES_AT + self.number.index() * RESPONSE_SIZE
    }

    /// Whose it is and how far.
    #[must_use]
    pub fn word(self) -> &'a AtomicU64 {
        self.channel.word64(self.request_at() + 64)
    }

    /// As [`word`](Self::word), read.
    #[must_use]
    pub fn state(self) -> SlotWord {
        SlotWord::from_raw(self.word().load(Ordering::Acquire))
    }

    /// Of which epoch its request is.
    #[must_use]
    pub fn epoch(self) -> ShmEpoch {
        ShmEpoch(self.channel.word32(self.request_at()).load(Ordering::Acquire))
    }

    /// Says of which epoch its request is.
    pub fn set_epoch(self, epoch: ShmEpoch) {
        self.channel.word32(self.request_at()).store(epoch.0, Ordering::Release);
    }

    /// A copy of the request as it stands there now.
    #[must_use]
    pub fn request(self) -> RequestBytes {
        let mut bytes = [0; REQUEST.end - REQUEST.start];
        self.channel.copy_out(self.request_at() + REQUEST.start, &mut bytes);
        bytes
    }

    /// Puts a request there.
    pub fn put_request(self, bytes: &RequestBytes) {
        self.channel.copy_in(self.request_at() + REQUEST.start, bytes);
    }

    /// A copy of the response as it stands there now.
    #[must_use]
    pub fn response(self) -> ResponseBytes {
        let mut bytes = [0; RESPONSE.end - RESPONSE.start];
        self.channel.copy_out(self.response_at() + RESPONSE.start, &mut bytes);
        bytes
    }

    /// Puts a response there.
    pub fn put_response(self, bytes: &ResponseBytes) {
        self.channel.copy_in(self.response_at() + RESPONSE.start, bytes);
    }

    /// For which mount its request is; after ESTALE, on which to try anew.
    #[must_use]
    pub fn mount(self) -> super::MountId {
        let at = self.request_at() + REQUEST.start;
        super::MountId(self.channel.word32(at).load(Ordering::Relaxed).cast_signed())
    }

    /// Tells a client on which mount to try anew: the first field of its request.
    pub fn set_mount(self, mount: super::MountId) {
        let at = self.request_at() + REQUEST.start;
        self.channel.word32(at).store(mount.0.cast_unsigned(), Ordering::Relaxed);
    }

    /// What its owner sleeps on.
    #[must_use]
    pub fn semaphore(self) -> &'a Semaphore {
        // SAFETY: made of atomics only, aligned, and mapped for as long as the region is borrowed.
        unsafe { self.channel.start.add(self.response_at()).cast::<Semaphore>().as_ref() }
    }

    /// Its buffer, [`unit`](RegionNo::unit) bytes on a page of their own, for the kernel to read or write. Whoever has the slot
    /// may change it at any moment.
    #[must_use]
    pub fn buffer(self) -> NonNull<u8> {
        let unit = self.channel.number.region().unit();
        // SAFETY: the buffers of a channel's slots lie inside of it.
        unsafe { self.channel.start.add(BUFFERS_AT + self.number.index() * unit) }
    }

    /// Sees that its buffer lies in few pieces of physical memory, so that the device is asked for few: in huge pages, where
    /// the kernel makes them (Linux 6.1). The first time that takes the kernel a millisecond or so for each, and no time then.
    pub fn gather(self) {
        let region = self.channel.region;
        let from = self.buffer().as_ptr().addr() - region.start.as_ptr().addr();
        region.gather(from, from + region.number.unit());
    }

    /// Copies bytes out of its buffer, from byte `from` on.
    ///
    /// # Panics
    /// When the buffer has not so many.
    pub fn copy_from_buffer(self, from: usize, into: &mut [u8]) {
        let unit = self.channel.number.region().unit();
        assert!(from.checked_add(into.len()).is_some_and(|end| end <= unit), "{} bytes from {from}", into.len());
        // SAFETY: inside the buffer, as was just seen, and mapped for as long as the region is borrowed.
        unsafe { shared::copy_out(self.buffer().add(from).as_ptr(), into) }
    }

    /// Copies bytes into its buffer, from byte `at` on.
    ///
    /// # Panics
    /// When the buffer has not so many.
    pub fn copy_to_buffer(self, at: usize, from: &[u8]) {
        let unit = self.channel.number.region().unit();
        assert!(at.checked_add(from.len()).is_some_and(|end| end <= unit), "{} bytes at {at}", from.len());
        // SAFETY: inside the buffer, as was just seen, and mapped for as long as the region is borrowed.
        unsafe { shared::copy_in(from, self.buffer().add(at).as_ptr()) }
    }
}

/// All regions of a daemon.
#[derive(Debug)]
pub struct Memory {
    regions: [Region; REGIONS],
}

impl Memory {
    /// Maps all regions of a daemon, whose files are at `path`.
    ///
    /// # Errors
    /// When one cannot be opened, or is none of its shape.
    pub fn open(path: impl Fn(RegionNo) -> std::path::PathBuf) -> Result<Self> {
        let regions: Vec<Region> =
            RegionNo::all().map(|region| Region::open(&path(region), region)).collect::<Result<_>>()?;
        Ok(Self::of(regions))
    }

    /// Makes all regions for a disk, or takes over those that an earlier daemon left. The epoch is of what is asked from now
    /// on.
    ///
    /// # Errors
    /// When one cannot be made, or what is there is none of its shape.
    pub fn serve(places: &Places, disk: &str) -> Result<(Self, [ShmEpoch; REGIONS])> {
        let mut epochs = [ShmEpoch::default(); REGIONS];
        let mut regions = Vec::with_capacity(REGIONS);
        for number in RegionNo::all() {
            let (region, epoch) = Region::serve(&places.region(disk, number), number)?;
            epochs[number.index()] = epoch;
            regions.push(region);
        }
        Ok((Self::of(regions), epochs))
    }

    fn of(regions: Vec<Region>) -> Self {
        let Ok(regions) = regions.try_into() else { unreachable!("one for each number") };
        Self { regions }
    }

    /// A channel of any region.
    #[must_use]
    pub fn channel(&self, number: ChannelNo) -> Channel<'_> {
        self.regions[number.region().index()].channel(number)
    }

    /// How large the buffer of a slot must be for so many bytes of data: which regions to try, in order.
    ///
    /// # Errors
    /// EFBIG for more than 4 MiB.
    pub fn regions_for(bytes: usize) -> Result<impl Iterator<Item = RegionNo>, Errno> {
        if bytes > super::IO_MAX { Err(Errno::EFBIG) } else { Ok(RegionNo::for_bytes(bytes)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(dir: &Path) -> (Memory, [ShmEpoch; REGIONS]) {
        Memory::serve(&Places { shm: dir.to_owned(), ..Places::default() }, "loop1").unwrap()
    }

    /// What the original's files look like right after a start, and after two more.
    #[test]
    fn regions_look_like_the_originals() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR").to_owned() + "/../target").unwrap();
        let (first, epochs) = memory(dir.path());
        assert_eq!(epochs, [ShmEpoch(0); REGIONS]);
        let bytes = |len: usize| fs::read(dir.path().join("shm_pfsd-loop1_00")).unwrap()[..len].to_vec();
        let start = [
            0x6c, 0xc9, 0x33, 0x01, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0xb4, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0,
            0, 0, 0, 0,
        ];
        assert_eq!(bytes(32), start);
        let channel = &bytes(4096 + 640)[4096..];
        let header =
            [0, 0, 0, 0, 0x6c, 0xc9, 0x33, 0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0];
        assert_eq!(channel[..28], header);
        assert_eq!(channel[BITMAP_AT..BITMAP_AT + 8], [0xff; 8]);
        drop(first);
        assert_eq!(memory(dir.path()).1, [ShmEpoch(2); REGIONS]);
        let (third, epochs) = memory(dir.path());
        assert_eq!(epochs, [ShmEpoch(4); REGIONS]);
        assert_eq!(third.channel(ChannelNo::of(RegionNo::all().last().unwrap(), 0)).epoch(), ShmEpoch(4));
    }

    #[test]
    fn what_is_gathered_stays_what_it_was() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let (served, _) = memory(dir.path());
        let number = ChannelNo::of(RegionNo::for_bytes(super::super::IO_MAX).next().unwrap(), 0);
        let bytes: Vec<u8> = (0..super::super::IO_MAX).map(|index| (index / 4096 % 251) as u8).collect();
        let mut read = vec![0; bytes.len()];
        // The last one ends where the region does, within a huge page.
        for slot in [0, 15].map(|slot| served.channel(number).slot(SlotNo::new(slot).unwrap())) {
            slot.copy_to_buffer(0, &bytes);
            for _ in 0..2 {
                slot.gather();
                slot.copy_from_buffer(0, &mut read);
                assert!(read == bytes);
            }
        }
    }

    #[test]
    fn a_client_sees_what_the_daemon_serves_and_refuses_what_it_does_not() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR").to_owned() + "/../target").unwrap();
        let places = Places { shm: dir.path().to_owned(), ..Places::default() };
        let (served, _) = memory(dir.path());
        let client = Memory::open(|region| places.region("loop1", region)).unwrap();
        let number = ChannelNo::of(RegionNo::for_bytes(8192).next().unwrap(), 37);
        assert_eq!(number.index(), 5);
        let (ours, theirs) = (served.channel(number), client.channel(number));
        let slot = SlotNo::new(63).unwrap();
        theirs.slot(slot).copy_to_buffer(4096, b"abc");
        let mut read = [0; 3];
        ours.slot(slot).copy_from_buffer(4096, &mut read);
        assert_eq!(&read, b"abc");
        let bytes: Vec<u8> = (0..100).collect();
        theirs.slot(slot).copy_to_buffer(0, &bytes);
        for (from, to) in [(0, 100), (3, 5), (3, 8), (3, 9), (7, 24), (8, 15), (16, 16), (1, 100)] {
            let mut read = vec![0xff; to - from];
            ours.slot(slot).copy_from_buffer(from, &mut read);
            assert_eq!(read, bytes[from..to]);
        }
        theirs.slot(slot).put_request(&[7; 256]);
        assert_eq!(ours.slot(slot).request(), [7; 256]);

        let wrong = places.region("loop1", number.region());
        let error = Region::open(&wrong, RegionNo::all().next().unwrap()).unwrap_err();
        assert!(error.to_string().contains("20189184 bytes long instead of 11800576"), "{error}");
    }
}
