//! What a crash leaves: whatever had reached the device by then, everything acknowledged is there, and what was being done
//! is done or not.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use blockdev::engine::Choice;
use common::model::{self, Model, Node, Work, Worker};
use pfs::check::check;
use pfs::format::Bda;
use pfs::volume::writer::{Options, Writer};
use pfs::volume::{Device, Source, Volume, Witness};

/// Something that happened, in its order.
#[derive(Debug, Clone)]
enum Event {
    Write(Bda, Vec<u8>),
    Flush,
    /// Work of one of those who work begins.
    Began(usize, Work),
    /// It was acknowledged.
    Done(usize),
}

#[derive(Debug, Default)]
struct Record(Mutex<Vec<Event>>);

impl Record {
    fn add(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

impl Witness for Record {
    fn write(&self, at: Bda, bytes: &[u8]) {
        self.add(Event::Write(at, bytes.to_vec()));
    }

    fn flush(&self) {
        self.add(Event::Flush);
    }
}

/// Does random work on a volume, of each of some threads in a directory of its own; returns what happened.
fn record(image: &Path, seed: u64, threads: usize, count: usize, durable: bool) -> Vec<Event> {
    let record = Arc::new(Record::default());
    let device = Device::open_writable(image, Choice::Auto).unwrap().witnessed(record.clone());
    let writer = Writer::on(device, Options { durable, ..Options::default() }).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (writer, record) = (&writer, &record);
            scope.spawn(move || {
                let mut content = writer.content().unwrap();
                let (mut model, mut worker) = (Model::default(), Worker::new(seed + thread as u64, 40_000));
                for index in 0..count {
                    let work =
                        if index == 0 { Work::Mkdir(top(thread)) } else { worker.next_below(&model, &top(thread)) };
                    record.add(Event::Began(thread, work.clone()));
                    let expected = model.apply(&work);
                    let found = model::perform(writer, &mut content, &work).map_err(|error| error.errno().unwrap());
                    assert_eq!(found, expected, "{work:?}");
                    record.add(Event::Done(thread));
                }
            });
        }
    });
    writer.close().unwrap();
    std::mem::take(&mut *record.0.lock().unwrap())
}

/// The directory of a thread.
fn top(thread: usize) -> String {
    format!("t{thread}")
}

/// What there may be on a device that crashes at some moment, in the directory of each thread.
#[derive(Default)]
struct Expected(BTreeMap<usize, Mine>);

#[derive(Default)]
struct Mine {
    before: Model,
    after: Model,
    work: Option<Work>,
}

impl Expected {
    fn see(&mut self, event: &Event) {
        match event {
            Event::Began(thread, work) => {
                let mine = self.0.entry(*thread).or_default();
                // Work that cannot be done changes nothing.
                let _ = mine.after.apply(work);
                mine.work = Some(work.clone());
            }
            Event::Done(thread) => {
                let mine = self.0.entry(*thread).or_default();
                mine.before = mine.after.clone();
                mine.work = None;
            }
            _ => {}
        }
    }

    /// Checks the volume, and compares what is in it.
    fn compare(&self, image: &Path, what: &str) {
        check_volume(image, what);
        self.compare_content(image, what);
    }

    fn compare_content(&self, image: &Path, what: &str) {
        let mut found = Model::read(&mut Volume::open(image).unwrap()).unwrap();
        for (thread, mine) in &self.0 {
            let (top, below) = (top(*thread), format!("{}/", top(*thread)));
            let (own, others) = found.0.into_iter().partition(|(path, _)| *path == top || path.starts_with(&below));
            found = Model(others);
            mine.compare(&Model(own), what);
        }
        assert!(found.0.is_empty(), "{what}: {:?}", found.0.keys());
    }
}

fn check_volume(image: &Path, what: &str) {
    let report = check(&mut Device::open(image).unwrap()).unwrap();
    assert_eq!(report.damages(), 0, "{what}: {:?}", report.findings);
}

impl Mine {
    /// Sees that all is as it was before what was being done or as it is afterwards; of data that were being written, some
    /// may be there.
    fn compare(&self, found: &Model, what: &str) {
        if *found == self.before || *found == self.after {
            return;
        }
        let (Some(Work::Write(path, ..)), mut rest) = (&self.work, found.clone()) else {
            panic!("{what}: {:?} is half done", self.work)
        };
        let file = |model: &Model| match model.0.get(path) {
            Some(Node::File(bytes)) => bytes.clone(),
            _ => panic!("{what}: {path} is gone"),
        };
        let (found, before, after) = (file(found), file(&self.before), file(&self.after));
        assert!(found.len() == before.len() || found.len() == after.len(), "{what}: {path}");
        for (at, byte) in found.iter().enumerate() {
            assert!(before.get(at) == Some(byte) || after.get(at) == Some(byte), "{what}: {path}, byte {at}");
        }
        rest.0.insert(path.clone(), self.before.0[path].clone());
        assert!(rest == self.before, "{what}: {:?} changed something else", self.work);
    }
}

/// Where the data of files begin, after all metadata and the journal.
const DATA: Bda = Bda::new(40 << 20);

fn every_prefix(seed: u64, threads: usize, count: usize) {
    let (image, _one) = common::copy("fresh-10g");
    let (crashed, _other) = common::copy("fresh-10g");
    let events = record(&image, seed, threads, count, false);
    let mut device = Device::open_writable(&crashed, Choice::Auto).unwrap();
    let mut expected = Expected::default();
    let mut prefixes = 0;
    for event in &events {
        expected.see(event);
        if let Event::Write(at, bytes) = event {
            device.write_parts([Source { at: *at, from: bytes }]).unwrap();
            prefixes += 1;
            let what = format!("after {prefixes} writes");
            expected.compare_content(&crashed, &what);
            if *at < DATA {
                check_volume(&crashed, &what);
            }
        }
    }
    // Threads share their writes of the journal.
    assert!(prefixes > count, "{prefixes}");
}

// Several at once: each opens the volume some thousand times.

#[test]
fn every_prefix_of_the_writes_is_a_state_before_or_after() {
    every_prefix(7, 1, 1_000);
}

#[test]
fn every_prefix_of_other_writes_is_one_too() {
    every_prefix(17, 1, 1_000);
}

#[test]
fn every_prefix_of_the_writes_of_many_threads_is_one() {
    every_prefix(27, 8, 60);
}

#[test]
fn whatever_a_cache_lost_what_was_acknowledged_is_there() {
    let (image, _one) = common::copy("fresh-10g");
    let (crashed, _other) = common::copy("fresh-10g");
    let events = record(&image, 8, 1, 200, true);
    let mut random = fastrand::Rng::with_seed(9);
    let mut device = Device::open_writable(&crashed, Choice::Auto).unwrap();
    let mut expected = Expected::default();
    let mut cached: Vec<(Bda, Vec<u8>)> = Vec::new();
    let mut states = 0;
    for event in &events {
        expected.see(event);
        match event {
            Event::Write(at, bytes) => cached.push((*at, bytes.clone())),
            Event::Flush | Event::Done(_) => {
                // Before the flush, any of what was written since the last one may be there.
                for _ in 0..2 {
                    let mut undo = Vec::new();
                    let mut some: Vec<_> = cached.iter().filter(|_| random.bool()).collect();
                    random.shuffle(&mut some);
                    for (at, bytes) in some {
                        let mut old = vec![0; bytes.len()];
                        device.read(*at, &mut old).unwrap();
                        undo.push((*at, old));
                        device.write_parts([Source { at: *at, from: bytes }]).unwrap();
                    }
                    expected.compare(&crashed, &format!("state {states}"));
                    states += 1;
                    for (at, old) in undo.iter().rev() {
                        device.write_parts([Source { at: *at, from: old }]).unwrap();
                    }
                }
                if matches!(event, Event::Flush) {
                    for (at, bytes) in cached.drain(..) {
                        device.write_parts([Source { at, from: &bytes }]).unwrap();
                    }
                }
            }
            Event::Began(..) => {}
        }
    }
    assert!(states > 500, "{states}");
}
