//! What a job goes through where the disk has layers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::Port;
use crate::emulate::disk::Disk;
use crate::emulate::host::Leave;
use crate::emulate::layer::{Depth, Patch, Verdict};
use crate::emulate::memory::Chunk;
use crate::emulate::request::{Outcome, Request};
use crate::emulate::stats::LayerName;
use crate::engine::Lent;

/// What a job has to do with layers.
#[derive(Debug)]
pub(super) struct Layered {
    stage: Stage,
    /// Since when.
    since: Instant,
    /// What it does to the disk.
    pub(super) effect: Request,
    /// Where it has a place, or is in line for one.
    pub(super) place: Option<Arc<Depth>>,
    /// Before when it is not answered.
    due: Option<Instant>,
    /// What will be answered.
    outcome: Outcome,
    /// What is newer than what it reads from the image.
    pub(super) patches: Vec<Patch>,
    /// Which bit of what it reads is wrong.
    flipped: Option<u64>,
    /// What it writes instead of what it was given.
    own: Option<Chunk>,
}

/// What a job waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing yet.
    New,
    /// A place in the queue.
    InLine,
    /// Its turn, by the rate.
    Paced,
    /// That faults change.
    Stuck,
    /// Its host's gate.
    AtGate,
    /// Room in the cache.
    ForRoom,
    /// The cache's thread.
    InCache,
    /// The image.
    OnImage,
    /// The end of its latency.
    Held,
}

impl Stage {
    /// The layer that keeps who is there.
    fn layer(self) -> Option<LayerName> {
        match self {
            Self::InLine => Some(LayerName::QueueDepth),
            Self::Paced => Some(LayerName::Rate),
            Self::Stuck => Some(LayerName::Faults),
            Self::ForRoom | Self::InCache => Some(LayerName::Cache),
            Self::Held => Some(LayerName::Latency),
            Self::New | Self::AtGate | Self::OnImage => None,
        }
    }
}

impl Port {
    /// A job waits for something else now; how long it waited in a layer is counted there.
    pub(super) fn stage(&mut self, number: u32, stage: Stage) {
        let job = &mut self.jobs[number as usize];
        if let Some(layered) = &mut job.layered {
            let before = std::mem::replace(&mut layered.stage, stage);
            let now = Instant::now();
            let since = std::mem::replace(&mut layered.since, now);
            if let Some(layer) = before.layer() {
                let bytes = job.request.range().map_or(0, |range| range.len.bytes());
                self.shared.layer_counters().count(layer, bytes, now - since);
            }
        }
    }

    /// What a job has to do with layers.
    pub(super) fn with_layers(&mut self, number: u32) -> &mut Layered {
        let job = self.job(number);
        job.layered.get_or_insert_with(|| {
            Box::new(Layered {
                stage: Stage::New,
                since: job.since,
                effect: job.request,
                place: None,
                due: None,
                outcome: Ok(()),
                patches: Vec::new(),
                flipped: None,
                own: None,
            })
        })
    }

    /// A new job comes to the layers.
    pub(super) fn enter(&mut self, number: u32) {
        let place = self.stack.depth.clone();
        self.with_layers(number).place = place.clone();
        if place.is_none_or(|depth| depth.enter(&self.shared, number)) {
            self.pace(number);
        } else {
            self.stage(number, Stage::InLine);
        }
    }

    /// It has a place, and waits for its turn.
    fn pace(&mut self, number: u32) {
        let now = Instant::now();
        let request = self.jobs[number as usize].request;
        let bytes = request.range().map_or(0, |range| range.len.bytes());
        let start = self.stack.rate.as_ref().and_then(|rate| rate.take(request.operation(), bytes, now));
        match start {
            Some(start) => {
                self.stage(number, Stage::Paced);
                self.timers.add(start, number);
            }
            None => self.serve(number, now),
        }
    }

    /// It is its turn.
    fn serve(&mut self, number: u32, now: Instant) {
        let request = self.jobs[number as usize].request;
        let bytes = request.range().map_or(0, |range| range.len.bytes());
        let verdict = self.stack.faults.as_ref().map_or(Verdict::Fine, |faults| faults.judge(&request));
        if !matches!(verdict, Verdict::Fine | Verdict::Stuck) {
            self.shared.layer_counters().count(LayerName::Faults, bytes, Duration::ZERO);
        }
        let latency = self.stack.layers.latency.as_ref().and_then(|latency| latency.of(request.operation()));
        let due = latency.map(|latency| now + latency.sample(&mut self.rng));
        self.stage(number, Stage::OnImage);
        let Some(layered) = &mut self.jobs[number as usize].layered else { return };
        layered.due = due;
        match (verdict, request) {
            (Verdict::Stuck, _) => return self.wait_for_change(number, Stage::Stuck),
            (Verdict::Fails(errno), _) => return self.finish(number, Err(errno)),
            (Verdict::Lost, _) | (Verdict::Torn(0), _) => return self.finish(number, Ok(())),
            (Verdict::Torn(len), Request::Write { offset, memory, fua }) => {
                layered.effect = Request::Write { offset, memory: memory.part(0, len), fua };
            }
            (Verdict::Misdirected(offset), Request::Write { memory, fua, .. }) => {
                layered.effect = Request::Write { offset, memory, fua };
            }
            (Verdict::Corrupt { bit }, Request::Write { offset, memory, fua }) => {
                let Some((chunk, memory)) = flipped(memory, bit) else {
                    return self.finish(number, Err(Errno::ENOMEM));
                };
                layered.effect = Request::Write { offset, memory, fua };
                layered.own = Some(chunk);
            }
            (Verdict::Corrupt { bit }, _) => layered.flipped = Some(bit),
            _ => {}
        }
        self.set_out(number);
    }

    /// It has had its effect, which is written down, or not to be known for what it was.
    pub(super) fn take_down(&mut self, number: u32, outcome: Outcome) -> Outcome {
        outcome?;
        let job = &mut self.jobs[number as usize];
        let effect = job.effect();
        if let (Request::Read { memory, .. }, Some(layered)) = (effect, &mut job.layered) {
            // SAFETY: it is lent until the answer, and what the image had is in it: the engine is done with it.
            let bytes = unsafe { std::slice::from_raw_parts_mut(memory.start().as_ptr(), memory.len() as usize) };
            layered.patches.drain(..).for_each(|patch| patch.apply(bytes));
            if let Some(bit) = layered.flipped {
                flip(bytes, bit);
            }
        }
        if let Some(record) = &self.stack.record {
            let data = match effect {
                // SAFETY: it is lent until the answer, and nobody writes it.
                Request::Write { memory, .. } => unsafe {
                    std::slice::from_raw_parts(memory.start().as_ptr(), memory.len() as usize)
                },
                _ => &[],
            };
            self.shared.layer_counters().count(LayerName::Record, data.len() as u64, Duration::ZERO);
            // What is done and not written down would be missing from every replay.
            record.add(job.host.0, &effect, data).map_err(|_| Errno::EIO)?;
        }
        Ok(())
    }

    /// It is done, and answered when its time has come.
    pub(super) fn finish(&mut self, number: u32, outcome: Outcome) {
        if let Some(layered) = &mut self.jobs[number as usize].layered
            && let Some(due) = layered.due
            && due > Instant::now()
        {
            layered.outcome = outcome;
            self.stage(number, Stage::Held);
            return self.timers.add(due, number);
        }
        self.answer(number, outcome);
    }

    pub(super) fn time_is_up(&mut self, number: u32) {
        let Some((stage, outcome)) =
            self.jobs[number as usize].layered.as_ref().map(|layered| (layered.stage, layered.outcome))
        else {
            return;
        };
        match stage {
            Stage::Held => {
                self.stage(number, Stage::OnImage);
                self.answer(number, outcome);
            }
            _ => self.serve(number, Instant::now()),
        }
    }

    /// What it waited for has been given to it.
    pub(super) fn told_to_go_on(&mut self, number: u32) {
        match self.jobs[number as usize].layered.as_ref().map(|layered| layered.stage) {
            Some(Stage::InLine) => {
                self.stage(number, Stage::New);
                self.pace(number);
            }
            _ => {
                self.stage(number, Stage::OnImage);
                self.set_out(number);
            }
        }
    }

    /// The cache's thread has done it.
    pub(super) fn done_elsewhere(&mut self, number: u32, outcome: Outcome) {
        match self.jobs[number as usize].layered.as_ref().map(|layered| layered.stage) {
            // It has not set out.
            Some(Stage::ForRoom) => self.finish(number, outcome),
            _ => {
                self.stage(number, Stage::OnImage);
                self.arrive(number, outcome);
            }
        }
    }

    /// Something about the disk has changed.
    pub(super) fn look_again(&mut self, number: u32) {
        let job = &self.jobs[number as usize];
        if job.layered.as_ref().is_none_or(|layered| layered.stage != Stage::Stuck) {
            return self.set_out(number);
        }
        match self.disk.set_out(&self.shared, job.host, job.request.operation()) {
            Leave::Go => {
                Disk::arrived(&self.shared, job.host);
                self.look_at_layers();
                self.serve(number, Instant::now());
            }
            Leave::Wait => self.barred.push(number),
            Leave::Refused(errno) => self.finish(number, Err(errno)),
        }
    }

    /// The port goes, and what its jobs hold is for others.
    pub(super) fn leave_layers(&mut self) {
        for (number, job) in (0..).zip(&mut self.jobs) {
            if let Some(layered) = job.layered.take()
                && let Some(depth) = layered.place
                && !(layered.stage == Stage::InLine && depth.gives_up(&self.shared, number))
            {
                depth.leave();
            }
        }
    }
}

/// What was lent, with one bit that is wrong.
fn flipped(memory: Lent, bit: u64) -> Option<(Chunk, Lent)> {
    let len = memory.len();
    let mut chunk = Chunk::of(len as usize)?;
    // SAFETY: it is lent until the answer, and nobody writes it meanwhile.
    let bytes = unsafe { std::slice::from_raw_parts(memory.start().as_ptr(), len as usize) };
    chunk.bytes()[..len as usize].copy_from_slice(bytes);
    flip(chunk.bytes(), bit);
    // SAFETY: it stays with the job until the answer, untouched.
    let lent = unsafe { chunk.lend(len) };
    Some((chunk, lent))
}

fn flip(bytes: &mut [u8], bit: u64) {
    if let Some(byte) = usize::try_from(bit / 8).ok().and_then(|index| bytes.get_mut(index)) {
        *byte ^= 1 << (bit % 8);
    }
}
