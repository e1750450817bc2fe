//! Slots filled by hand.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pfs::client::Client;
use pfs::proto::{ChannelNo, Header, MountId, Owner, RegionNo, Request, Slot, response, slot};

fn owner(client: &Client) -> Owner {
    Owner { connection: i16::from(client.id().raw()), pid: std::process::id().cast_signed() }
}

/// Claims a slot, lets it be filled, posts it, and waits until it is answered. What is returned is what `look` makes of it.
fn run<T>(client: &Client, request: &Request, fill: impl FnOnce(Slot<'_>), look: impl FnOnce(Slot<'_>) -> T) -> T {
    let owner = owner(client);
    let region = RegionNo::for_bytes(request.buffer_size()).next().unwrap();
    let channel = client.memory().channel(ChannelNo::of(region, 1));
    let word = |slot| channel.slot(slot).word();
    let number = slot::claim(channel.bitmap(), channel.number().slots(), word, owner).unwrap();
    let slot = channel.slot(number);
    slot.set_epoch(channel.epoch());
    slot.semaphore().init();
    request.put(Header { mount: client.mount_id(), file_type: 13 }, slot);
    fill(slot);
    assert!(slot::post(slot.word(), owner));
    let started = Instant::now();
    while !slot::is_answered(slot.word(), owner) {
        assert!(started.elapsed() < Duration::from_secs(10), "not answered: {:x}", slot.word().load(Ordering::Relaxed));
        slot.semaphore().wait(Duration::from_millis(10));
    }
    let seen = look(slot);
    assert!(slot::release(slot.word(), channel.bitmap(), number, owner));
    seen
}

/// Posts whatever `fill` makes of a slot in which a harmless request stands.
pub fn ask(client: &Client, fill: impl FnOnce(Slot<'_>)) {
    let request = Request::Stat { path: format!("/{}/", client.disk()).into_bytes() };
    run(client, &request, fill, |_| ());
}

/// Asks on another mount. Returns the errno.
pub fn ask_on(client: &Client, mount: MountId, request: &Request) -> i32 {
    let fill = |slot: Slot<'_>| request.put(Header { mount, file_type: 13 }, slot);
    run(client, request, fill, |slot| response::get(request, slot).err().unwrap_or(0))
}
