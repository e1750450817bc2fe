//! Queue depth: how many requests the disk serves at once. Who comes when all places are taken waits in line.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use crate::emulate::disk::Shared;
use crate::emulate::mailbox::{Letter, lock};

/// Places, and who waits for one.
#[derive(Debug)]
pub(in super::super) struct Depth(Mutex<Line>);

#[derive(Debug)]
struct Line {
    free: u32,
    waiting: VecDeque<(Arc<Shared>, u32)>,
}

impl Depth {
    pub(in super::super) fn new(places: u32) -> Self {
        Self(Mutex::new(Line { free: places, waiting: VecDeque::new() }))
    }

    /// Takes a place for job `job` of a port, or puts it in line: then it is told by letter when it has one.
    pub(in super::super) fn enter(&self, port: &Arc<Shared>, job: u32) -> bool {
        let mut line = lock(&self.0);
        if line.free == 0 {
            line.waiting.push_back((Arc::clone(port), job));
            return false;
        }
        line.free -= 1;
        true
    }

    /// Gives a place to who waited longest, or back.
    pub(in super::super) fn leave(&self) {
        let mut line = lock(&self.0);
        match line.waiting.pop_front() {
            Some((port, job)) => port.mailbox.send(Letter::GoOn { job }),
            None => line.free += 1,
        }
    }

    /// A port goes, and nobody of it waits any more. Returns whether job `job` was in line.
    pub(in super::super) fn gives_up(&self, port: &Arc<Shared>, job: u32) -> bool {
        let mut line = lock(&self.0);
        let before = line.waiting.len();
        line.waiting.retain(|(other, waiting)| !Arc::ptr_eq(other, port) || *waiting != job);
        line.waiting.len() < before
    }
}
