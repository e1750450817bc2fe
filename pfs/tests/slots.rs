//! The life of a slot, in every order in which clients and a daemon can come between each other's steps, and with every value
//! that their memory allows them to see. [loom](https://docs.rs/loom) tries them all.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use pfs::proto::slot::{self, Atomic64};
use pfs::proto::{Owner, SlotNo, SlotState, SlotWord};

/// A word of loom's.
#[derive(Debug)]
struct Word(AtomicU64);

impl Atomic64 for Word {
    fn look(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    fn exchange(&self, old: u64, new: u64) -> bool {
        self.0.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    fn set(&self, bits: u64) {
        self.0.fetch_or(bits, Ordering::AcqRel);
    }

    fn clear(&self, bits: u64) {
        self.0.fetch_and(!bits, Ordering::AcqRel);
    }
}

/// A channel of as many slots as it has words. What is asked and answered in them is a number: 1000 more for the answer. It is
/// no atomic, so that loom finds out if two can be at it at a time.
#[derive(Debug)]
struct Channel {
    bitmap: Word,
    words: Vec<Word>,
    records: Vec<UnsafeCell<u64>>,
}

impl Channel {
    fn new(words: &[SlotWord], bitmap: u64) -> Arc<Self> {
        let words: Vec<_> = words.iter().map(|word| Word(AtomicU64::new(word.raw()))).collect();
        let records = words.iter().map(|_| UnsafeCell::new(0)).collect();
        Arc::new(Self { bitmap: Word(AtomicU64::new(bitmap)), words, records })
    }

    fn numbers(&self) -> impl Iterator<Item = SlotNo> + use<> {
        (0..u32::try_from(self.words.len()).unwrap()).filter_map(SlotNo::new)
    }

    fn word(&self, slot: SlotNo) -> &Word {
        &self.words[slot.index()]
    }

    fn state(&self, slot: SlotNo) -> SlotWord {
        SlotWord::from_raw(self.word(slot).look())
    }

    /// What a client does first, if a slot is free: claims it, fills it, and posts it.
    fn ask(&self, owner: Owner) -> Option<SlotNo> {
        let slot = slot::claim(&self.bitmap, self.numbers(), |slot| self.word(slot), owner)?;
        self.records[slot.index()].with_mut(|record| {
            // SAFETY: the slot is claimed; loom watches.
            unsafe { *record = question(owner) }
        });
        assert!(slot::post(self.word(slot), owner));
        Some(slot)
    }

    /// What it does then: sees the answer, and gives the slot back.
    fn end(&self, slot: SlotNo, owner: Owner) {
        assert!(slot::is_answered(self.word(slot), owner), "{owner:?} was not answered: {:?}", self.state(slot));
        let answer = self.records[slot.index()].with(|record| {
            // SAFETY: as above.
            unsafe { *record }
        });
        assert_eq!(answer, question(owner) + 1000);
        assert!(slot::release(self.word(slot), &self.bitmap, slot, owner));
    }

    /// What a worker does: looks where a bit is clear, takes what was posted, and answers. Returns whether there was anything.
    fn serve(&self) -> bool {
        let used = !self.bitmap.look();
        let mut any = false;
        for slot in self.numbers().filter(|slot| used & slot.bit() != 0) {
            let seen = self.state(slot);
            if seen.state() != Some(SlotState::WaitReply) {
                continue;
            }
            let Some(taken) = slot::take(self.word(slot), seen) else { continue };
            self.records[slot.index()].with_mut(|record| {
                // SAFETY: taken; loom watches.
                unsafe { *record += 1000 }
            });
            assert!(slot::finish(self.word(slot), taken));
            any = true;
        }
        any
    }

    /// What the sweep does about slots of a client that died: those in which nobody is at work.
    fn sweep(&self, dead: Owner) {
        for slot in self.numbers() {
            let seen = self.state(slot);
            if seen.owner() == dead && matches!(seen.state(), Some(SlotState::Alloc | SlotState::WaitRelease)) {
                slot::reclaim(self.word(slot), &self.bitmap, slot, seen);
            }
        }
    }

    fn assert_free(&self) {
        for slot in self.numbers() {
            assert_eq!(self.state(slot).state(), Some(SlotState::Free));
        }
        assert_eq!(self.bitmap.look(), (1 << self.words.len()) - 1);
    }
}

const FREE: SlotWord = SlotWord::new(Owner::NOBODY, SlotState::Free);

fn client(pid: i32) -> Owner {
    Owner { connection: 2, pid }
}

fn question(owner: Owner) -> u64 {
    u64::from(owner.pid.cast_unsigned())
}

/// Does something besides.
fn beside<T: 'static>(channel: &Arc<Channel>, act: impl FnOnce(&Channel) -> T + 'static) -> thread::JoinHandle<T> {
    let channel = Arc::clone(channel);
    thread::spawn(move || act(&channel))
}

/// Nobody asks any more: a worker sees all that was asked, and there is an answer to all of it.
fn end_all(channel: &Channel, asked: &[(Owner, Option<SlotNo>)]) {
    channel.serve();
    for (owner, slot) in asked {
        if let Some(slot) = slot {
            channel.end(*slot, *owner);
        }
    }
    channel.assert_free();
}

#[test]
fn what_is_asked_while_a_worker_looks_is_answered() {
    for free in [1, 2] {
        loom::model(move || {
            let channel = Channel::new(&vec![FREE; free], (1 << free) - 1);
            let (first, second) = (client(1), client(2));
            let asking = [first, second].map(|owner| beside(&channel, move |channel| channel.ask(owner)));
            channel.serve();
            let [one, other] = asking.map(|client| client.join().unwrap());
            assert!(one.is_some() || other.is_some());
            end_all(&channel, &[(first, one), (second, other)]);
        });
    }
}

#[test]
fn two_workers_do_not_take_the_same() {
    loom::model(|| {
        let channel = Channel::new(&[FREE], 1);
        let owner = client(1);
        let workers = [(); 2].map(|()| beside(&channel, Channel::serve));
        let slot = channel.ask(owner);
        let served = workers.map(|worker| worker.join().unwrap());
        assert_ne!(served, [true, true]);
        end_all(&channel, &[(owner, slot)]);
    });
}

/// A slot goes from one client to the next, and the worker misses nothing of that.
#[test]
fn a_slot_that_is_given_back_is_claimed_anew() {
    loom::model(|| {
        let channel = Channel::new(&[FREE], 1);
        let (before, after) = (client(1), client(2));
        let slot = channel.ask(before).unwrap();
        assert!(channel.serve());
        let leaving = beside(&channel, move |channel| channel.end(slot, before));
        let asking = beside(&channel, move |channel| channel.ask(after));
        channel.serve();
        leaving.join().unwrap();
        let slot = asking.join().unwrap();
        end_all(&channel, &[(after, slot)]);
    });
}

/// Wherever a client died over its slot, the sweep frees it, and whoever claims it meanwhile is served.
#[test]
fn the_slot_of_a_dead_client_is_used_again() {
    let (dead, alive) = (client(9), client(1));
    // Its word is taken and its bit not yet clear; it filled it; it was answered; it set the bit and did not free the word.
    for (state, bitmap) in
        [(SlotState::Alloc, 1), (SlotState::Alloc, 0), (SlotState::WaitRelease, 0), (SlotState::WaitRelease, 1)]
    {
        loom::model(move || {
            let channel = Channel::new(&[SlotWord::new(dead, state)], bitmap);
            let sweep = beside(&channel, move |channel| channel.sweep(dead));
            let asking = beside(&channel, move |channel| channel.ask(alive));
            channel.serve();
            sweep.join().unwrap();
            let slot = asking.join().unwrap();
            end_all(&channel, &[(alive, slot)]);
        });
    }
}

/// The parent of a client that died and the daemon both find its slot: one of them frees it, and a third may have it.
#[test]
fn a_slot_is_freed_once() {
    let (dead, alive) = (client(9), client(1));
    loom::model(move || {
        let channel = Channel::new(&[SlotWord::new(dead, SlotState::WaitRelease)], 0);
        let sweep = beside(&channel, move |channel| channel.sweep(dead));
        let asking = beside(&channel, move |channel| channel.ask(alive));
        let slot = channel.numbers().next().unwrap();
        slot::abandon(channel.word(slot), &channel.bitmap, slot, dead);
        sweep.join().unwrap();
        let slot = asking.join().unwrap();
        end_all(&channel, &[(alive, slot)]);
    });
}

/// What a dead client had posted is answered, and its slot freed at the next sweep at the latest.
#[test]
fn what_a_dead_client_asked_is_answered_and_swept() {
    let dead = client(9);
    loom::model(move || {
        let channel = Channel::new(&[SlotWord::new(dead, SlotState::WaitReply)], 0);
        let sweep = beside(&channel, move |channel| channel.sweep(dead));
        channel.serve();
        sweep.join().unwrap();
        channel.sweep(dead);
        channel.assert_free();
    });
}

/// A client that gives up on a daemon, just as one comes back: it has the slot again, or the answer.
#[test]
fn a_request_is_withdrawn_or_answered() {
    loom::model(|| {
        let channel = Channel::new(&[FREE], 1);
        let owner = client(1);
        let slot = channel.ask(owner).unwrap();
        let worker = beside(&channel, Channel::serve);
        let withdrawn = slot::withdraw(channel.word(slot), owner);
        let answered = worker.join().unwrap();
        assert_ne!(withdrawn, answered);
        assert_eq!(slot::is_answered(channel.word(slot), owner), answered);
        assert!(slot::release(channel.word(slot), &channel.bitmap, slot, owner));
        channel.assert_free();
    });
}

/// A daemon closes the connection of a client that is still there: of what the client does next, nothing succeeds.
#[test]
fn a_client_whose_slot_was_taken_away_notices() {
    loom::model(|| {
        let channel = Channel::new(&[FREE], 1);
        let owner = client(1);
        let slot = slot::claim(&channel.bitmap, channel.numbers(), |slot| channel.word(slot), owner).unwrap();
        let sweep = beside(&channel, move |channel| channel.sweep(owner));
        let posted = slot::post(channel.word(slot), owner);
        sweep.join().unwrap();
        if posted {
            assert!(channel.serve());
            assert!(slot::release(channel.word(slot), &channel.bitmap, slot, owner));
        } else {
            assert!(!slot::is_owned(channel.word(slot), owner));
            assert!(!slot::release(channel.word(slot), &channel.bitmap, slot, owner));
        }
        channel.assert_free();
    });
}
