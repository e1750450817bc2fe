//! A client that writes whatever it likes into its slots, at whatever moment, and into what all take the epoch from: it harms
//! itself alone. (Nothing can keep it from writing into the slots of others: the memory is one, as in the original.)
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::daemon::{Daemon, Kind};
use nix::sys::signal::Signal;
use pfs::client::Client;
use pfs::proto::memory::RequestBytes;
use pfs::proto::slot;
use pfs::proto::{ChannelNo, OpenFlags, Owner, ShmEpoch, Slot};

/// For how long.
const TIME: Duration = Duration::from_secs(4);

const CREATE: OpenFlags = OpenFlags(libc::O_CREAT | libc::O_RDWR);

/// A slot of the hostile client's own, if one is free in a channel.
fn claim<'a>(client: &'a Client, channel: ChannelNo, owner: Owner) -> Option<Slot<'a>> {
    let channel = client.memory().channel(channel);
    let slot = slot::claim(channel.bitmap(), channel.number().slots(), |slot| channel.slot(slot).word(), owner)?;
    Some(channel.slot(slot))
}

/// Bytes that are a request more often than chance has it: small numbers of requests, inodes and lengths.
fn garbage(random: &mut fastrand::Rng, inode: i64) -> RequestBytes {
    let mut bytes: RequestBytes = std::array::from_fn(|_| random.u8(..));
    bytes[..4].copy_from_slice(&i32::from(random.u8(0..10) == 0).to_le_bytes());
    bytes[4..8].copy_from_slice(&random.i32(-1..20).to_le_bytes());
    for at in [192, 200, 208, 216] {
        let number = match random.u8(0..6) {
            0 => random.i64(..),
            1 => inode,
            2 => -2,
            3 => random.i64(0..1 << 23),
            _ => random.i64(0..4),
        };
        bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
    }
    bytes
}

/// Ends the hostile threads, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn be_hostile(client: &Client, inode: i64, seed: u64, stop: &AtomicBool) {
    let mut random = fastrand::Rng::with_seed(seed);
    let channels: Vec<ChannelNo> = ChannelNo::all().collect();
    let owner = Owner { connection: client.id().raw().into(), pid: std::process::id().cast_signed() };
    while !stop.load(Ordering::Relaxed) {
        let channel = channels[random.usize(0..channels.len())];
        let Some(slot) = claim(client, channel, owner) else { continue };
        let mine = slot.channel();
        // Never what was there: the path of somebody else's file, which it may remove as anybody may.
        if random.bool() {
            slot.copy_to_buffer(0, format!("/disk0/{}\0", random.u8(0..9)).as_bytes());
        } else {
            slot.copy_to_buffer(0, &std::array::from_fn::<u8, 64, _>(|_| random.u8(1..)));
        }
        slot.put_request(&garbage(&mut random, inode));
        slot.set_epoch(if random.u8(0..8) == 0 { ShmEpoch(random.u32(..)) } else { mine.epoch() });
        if random.u8(0..16) == 0 {
            // What all clients take the epoch from.
            mine.set_epoch(ShmEpoch(random.u32(..)));
        }
        slot.semaphore().init();
        slot::post(slot.word(), owner);
        let change_of_mind = Instant::now() + Duration::from_micros(random.u64(0..300));
        while !slot::is_answered(slot.word(), owner) && Instant::now() < change_of_mind {
            if random.u8(0..4) == 0 {
                // While the daemon is looking at it.
                slot.put_request(&garbage(&mut random, inode));
            }
            thread::yield_now();
        }
        // Seldom: it could take all slots there are, as any client of the original's can.
        match random.u16(0..400) {
            // No state at all.
            1 => slot.word().store(u64::from(random.u8(5..)) << 16 | slot.state().raw() & 0xffff, Ordering::Release),
            // Left as it is.
            2 => {}
            _ => {
                while !slot::is_answered(slot.word(), owner) && !stop.load(Ordering::Relaxed) {
                    thread::yield_now();
                }
                slot::release(slot.word(), mine.bitmap(), slot.number(), owner);
            }
        }
    }
}

#[test]
fn others_are_served_meanwhile() {
    let mut daemon = Daemon::new(Kind::Ours, 4);
    // A process has one connection; its threads need not be of one mind.
    let honest = daemon.connect();
    let target = honest.open(daemon.path("target"), CREATE, 0o644).unwrap();
    let file = honest.open(daemon.path("file"), CREATE, 0o644).unwrap();
    let (stop, seed) = (AtomicBool::new(false), fastrand::u64(..));
    let mut rounds = 0u64;
    thread::scope(|scope| {
        for thread in 0..2 {
            let (hostile, stop, inode) = (&honest, &stop, target.id().inode);
            scope.spawn(move || be_hostile(hostile, inode, seed + thread, stop));
        }
        let _stop = Stop(&stop);
        let started = Instant::now();
        while started.elapsed() < TIME {
            let bytes = [u8::try_from(rounds % 251).unwrap(); 8192];
            let offset = rounds % 64 * 8192;
            honest.pwrite(&file, offset, &bytes).unwrap();
            let mut read = [0; 8192];
            assert_eq!(honest.pread(&file, offset, &mut read).unwrap(), 8192, "seed {seed}");
            assert!(read == bytes, "seed {seed}: round {rounds}");
            assert!(honest.stat(daemon.path("file")).is_ok(), "seed {seed}");
            rounds += 1;
        }
    });
    assert!(rounds > 0);
    assert!(nix::sys::signal::kill(daemon.pid(), None).is_ok(), "seed {seed}");
    // Once it is gone nothing of it is left, whatever it made of its slots.
    honest.umount_force().unwrap();
    daemon.stop(Signal::SIGINT);
    daemon.start();
    assert_eq!(daemon.used_slots(), [], "seed {seed}");
    daemon.end();
}
