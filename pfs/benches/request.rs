//! What a request takes, from the call to the answer: our client and our pfsd, two threads of this process, over a volume in
//! memory. What the disk takes is not in it; what waking and being woken takes is.
#![allow(missing_docs, reason = "criterion's macros make items without them")]

use std::fs::File;
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use blockdev::engine::Choice;
use blockdev::ui::Silent;
use blockdev::{ByteSize, Cancel};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pfs::client::{Client, ConnectOptions};
use pfs::daemon::{self, Claim};
use pfs::mkfs::{MkfsOptions, mkfs};
use pfs::proto::Places;

const DISK: &str = "bench";
const BLOCK: usize = 8 << 10;
const BLOCKS: u64 = 1024;

/// Serves a new volume in a directory while `work` uses it.
fn served(directory: &Path, work: impl FnOnce(&Client)) {
    let places = Places::below(directory);
    let device = directory.join("disk.img");
    let file = File::create_new(&device).expect("the directory is new");
    file.set_len(ByteSize::gib(10).bytes()).expect("it is all hole");
    let (cancel, journal) = (Cancel::new(), Some(ByteSize::mib(16)));
    mkfs(&device, &MkfsOptions { journal, ..MkfsOptions::default() }, &mut Silent, &cancel)
        .expect("there is memory for it");
    let options = daemon::Options {
        disk: DISK.to_owned(),
        device,
        places: places.clone(),
        workers: 1,
        busy_poll: false,
        durable: false,
        engine: Choice::Auto,
        echo: false,
        metrics: None,
    };
    thread::scope(|scope| {
        let (ready, is_ready) = mpsc::channel();
        let (options, stop) = (&options, &cancel);
        let daemon = scope.spawn(move || {
            let claim = Claim::take(&options.places, &options.disk)?;
            daemon::serve(options, claim, stop, || ready.send(()).expect("somebody waits for it"))
        });
        is_ready.recv().expect("it starts");
        let client =
            Client::connect(DISK, &ConnectOptions { places, ..ConnectOptions::default() }).expect("it lets us in");
        work(&client);
        client.umount().expect("it is ours");
        cancel.cancel();
        daemon.join().expect("it does not panic").expect("it ends in order");
    });
}

fn requests(criterion: &mut Criterion) {
    let directory = tempfile::tempdir_in("/dev/shm").expect("Linux has /dev/shm");
    served(directory.path(), |client| {
        let path = format!("/{DISK}/file");
        let file = client.create(&path).expect("the volume is empty");
        let mut block = vec![1; BLOCK];
        for index in 0..BLOCKS {
            client.pwrite(&file, index * BLOCK as u64, &block).expect("the volume has room");
        }
        let mut random = fastrand::Rng::with_seed(1);
        let mut group = criterion.benchmark_group("request");
        group.throughput(Throughput::Elements(1));
        group.bench_function("stat", |bencher| bencher.iter(|| client.stat(&path).expect("it is there")));
        group.bench_function("read 8 KiB", |bencher| {
            bencher.iter(|| client.pread(&file, random.u64(..BLOCKS) * BLOCK as u64, &mut block).expect("it is there"));
        });
        group.bench_function("write 8 KiB", |bencher| {
            bencher.iter(|| client.pwrite(&file, random.u64(..BLOCKS) * BLOCK as u64, &block).expect("it is there"));
        });
        group.finish();
    });
}

criterion_group!(benches, requests);
criterion_main!(benches);
