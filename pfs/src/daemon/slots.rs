//! The slots of all channels, as the daemon's workers see them: which there is something to do in, and which are being done.
//!
//! Clients can write every byte of the shared memory. So what the daemon itself must know is not there: which epoch it is, and
//! in which slots a worker is at work. A slot that is being worked on is not looked at, whatever its owner makes of it
//! meanwhile; what it then says is for whoever it says owns it.

use std::sync::atomic::{AtomicU64, Ordering};

use blockdev::Result;

use crate::proto::geometry::REGIONS;
use crate::proto::request::BadRequest;
use crate::proto::response::Answer;
use crate::proto::slot::{self, SlotState, SlotWord};
use crate::proto::{ChannelNo, Header, Memory, MountId, Places, Request, ShmEpoch, Slot, SlotNo, response};

/// Bytes in a buffer from which on it matters in how many pieces of physical memory it lies.
const LARGE: usize = 64 << 10;

/// The channels of all regions.
#[derive(Debug)]
pub(super) struct Slots {
    memory: Memory,
    epochs: [ShmEpoch; REGIONS],
    channels: Vec<ChannelNo>,
    /// For each channel, the slots that a worker is at.
    busy: Vec<AtomicU64>,
}

/// A slot that a worker took, to be answered.
#[derive(Debug)]
#[must_use = "a client waits for the answer"]
pub(super) struct Taken {
    channel: usize,
    slot: SlotNo,
    word: SlotWord,
}

/// A slot whose bit does not say what its word does.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Suspect {
    channel: usize,
    slot: SlotNo,
    word: SlotWord,
    free: bool,
}

/// What there is to do in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// A request.
    New,
    /// A request of an earlier daemon.
    Stale,
}

/// What was found in a slot.
#[derive(Debug)]
pub(super) enum Found {
    /// A request to be carried out.
    Request(Taken),
    /// A request of an earlier daemon, which its client is to repeat.
    Stale(Taken),
}

impl Slots {
    /// Makes the shared memory, or takes over that of an earlier daemon.
    ///
    /// # Errors
    /// As [`Memory::serve`].
    pub(super) fn serve(places: &Places, disk: &str) -> Result<Self> {
        let (memory, epochs) = Memory::serve(places, disk)?;
        let channels: Vec<ChannelNo> = ChannelNo::all().collect();
        let busy = channels.iter().map(|_| AtomicU64::new(0)).collect();
        Ok(Self { memory, epochs, channels, busy })
    }

    /// How many channels there are.
    pub(super) fn channels(&self) -> usize {
        self.channels.len()
    }

    /// Goes through all channels once, beginning with the `first`-th, and hands over what there is to do, until `take` says
    /// that it is enough. Returns whether there was anything.
    pub(super) fn scan(&self, first: usize, mut take: impl FnMut(Found) -> bool) -> bool {
        let count = self.channels.len();
        let mut any = false;
        for channel in (first..first + count).map(|index| index % count) {
            let number = self.channels[channel];
            let used = !self.memory.channel(number).bitmap().load(Ordering::Acquire) & number.region().all_free();
            let mut waiting = used & !self.busy[channel].load(Ordering::Relaxed);
            while let Some(slot) = SlotNo::new(waiting.trailing_zeros()) {
                waiting &= waiting - 1;
                if let Some(found) = self.look(channel, slot) {
                    any = true;
                    if !take(found) {
                        return true;
                    }
                }
            }
        }
        any
    }

    /// Takes a slot, if there is something to do in it.
    fn look(&self, channel: usize, number: SlotNo) -> Option<Found> {
        let slot = self.slot(channel, number);
        let seen = slot.state();
        let work = self.work(slot, seen)?;
        if work == Work::Stale {
            // Should somebody have changed what clients take the epoch from, nobody would ever be answered.
            let channel = slot.channel();
            channel.set_epoch(self.epochs[channel.number().region().index()]);
        }
        if !self.begin(channel, number) {
            return None;
        }
        // Another worker may have been at it since: only what still stands so counts.
        match slot::take(slot.word(), seen) {
            Some(word) => {
                if slot.channel().number().region().unit() >= LARGE {
                    slot.gather();
                }
                let taken = Taken { channel, slot: number, word };
                Some(if work == Work::New { Found::Request(taken) } else { Found::Stale(taken) })
            }
            None => {
                self.end(channel, number);
                None
            }
        }
    }

    fn work(&self, slot: Slot<'_>, seen: SlotWord) -> Option<Work> {
        let current = slot.epoch() == self.epochs[slot.channel().number().region().index()];
        match seen.state() {
            Some(SlotState::WaitReply) if current => Some(Work::New),
            Some(SlotState::WaitReply) => Some(Work::Stale),
            // What an earlier daemon died over. One of now would be busy.
            Some(SlotState::InProgress) if !current => Some(Work::Stale),
            _ => None,
        }
    }

    /// Says that this thread is at a slot. Returns false if another is.
    fn begin(&self, channel: usize, slot: SlotNo) -> bool {
        self.busy[channel].fetch_or(slot.bit(), Ordering::AcqRel) & slot.bit() == 0
    }

    fn end(&self, channel: usize, slot: SlotNo) {
        self.busy[channel].fetch_and(!slot.bit(), Ordering::AcqRel);
    }

    fn slot(&self, channel: usize, slot: SlotNo) -> Slot<'_> {
        self.memory.channel(self.channels[channel]).slot(slot)
    }

    /// The slot that was taken.
    pub(super) fn of(&self, taken: &Taken) -> Slot<'_> {
        self.slot(taken.channel, taken.slot)
    }

    /// What is asked in a slot that was taken.
    pub(super) fn request(&self, taken: &Taken) -> (Header, Result<Request, BadRequest>) {
        Request::get(self.of(taken))
    }

    /// Answers.
    #[allow(clippy::needless_pass_by_value, reason = "it is answered once")]
    pub(super) fn answer(&self, taken: Taken, number: i32, answer: &Answer) {
        let slot = self.of(&taken);
        response::put(number, answer, slot);
        self.finish(&taken, slot);
    }

    /// Asks the client to repeat what it asked an earlier daemon.
    #[allow(clippy::needless_pass_by_value, reason = "it is answered once")]
    pub(super) fn answer_stale(&self, taken: Taken, mount: MountId) {
        let slot = self.of(&taken);
        let number = match self.request(&taken).1 {
            Ok(request) => request.number(),
            Err(BadRequest::Unknown(number) | BadRequest::Buffer(number)) => number,
        };
        response::put(number, &Err(libc::ESTALE), slot);
        slot.set_mount(mount);
        self.finish(&taken, slot);
    }

    fn finish(&self, taken: &Taken, slot: Slot<'_>) {
        // Where its owner changed it meanwhile, nobody waits.
        if slot::finish(slot.word(), taken.word) {
            slot.semaphore().post();
        }
        self.end(taken.channel, taken.slot);
    }

    /// Frees the slots of those of whom `is_gone` says that they are, unless a worker is at them. Returns how many are left
    /// that are theirs.
    pub(super) fn reclaim(&self, mut is_gone: impl FnMut(SlotWord) -> bool) -> usize {
        let mut left = 0;
        for channel in 0..self.channels.len() {
            for number in self.channels[channel].slots() {
                let slot = self.slot(channel, number);
                let seen = slot.state();
                // A word that says nothing is nobody's, and would be nobody's for ever.
                let broken = seen.state().is_none();
                if seen.state() == Some(SlotState::Free) || !(broken || is_gone(seen)) {
                    continue;
                }
                if !self.begin(channel, number) {
                    left += 1;
                    continue;
                }
                let bitmap = slot.channel().bitmap();
                if !slot::reclaim(slot.word(), bitmap, number, seen) {
                    left += 1;
                }
                self.end(channel, number);
            }
        }
        left
    }

    /// Mends bits that do not say what the words do: of a client that died between changing the two, or that should not have
    /// changed them. For an instant that is as it should be; what stands so at both of two looks that are far apart is wrong.
    pub(super) fn mend(&self, suspects: &mut Vec<Suspect>) {
        let mut found = Vec::new();
        for channel in 0..self.channels.len() {
            let bitmap = self.memory.channel(self.channels[channel]).bitmap().load(Ordering::Acquire);
            for slot in self.channels[channel].slots() {
                let word = self.slot(channel, slot).state();
                let (free, said_free) = (word.state() == Some(SlotState::Free), bitmap & slot.bit() != 0);
                if free != said_free {
                    found.push(Suspect { channel, slot, word, free });
                }
            }
        }
        for suspect in found.iter().filter(|suspect| suspects.contains(suspect)) {
            let (bitmap, bit) = (self.memory.channel(self.channels[suspect.channel]).bitmap(), suspect.slot.bit());
            if suspect.free {
                bitmap.fetch_or(bit, Ordering::AcqRel);
            } else {
                bitmap.fetch_and(!bit, Ordering::AcqRel);
            }
        }
        *suspects = found;
    }

    /// How many slots of each region are used.
    pub(super) fn used(&self) -> [u32; REGIONS] {
        let mut used = [0; REGIONS];
        for number in &self.channels {
            let free = self.memory.channel(*number).bitmap().load(Ordering::Relaxed);
            used[number.region().index()] += (!free & number.region().all_free()).count_ones();
        }
        used
    }
}
