//! What a job does to the image: the steps that it takes in the engine, or the cache.

use nix::errno::Errno;

use super::layered::Stage;
use super::{Port, errno_of};
use crate::emulate::disk::Disk;
use crate::emulate::layer::{Content, Durable};
use crate::emulate::memory::{Chunk, zeroes};
use crate::emulate::request::{Outcome, Request};
use crate::engine::{Op, Reserve};
use std::sync::Arc;

/// The image among the engine's files.
const IMAGE: u32 = 0;

/// What the engine is doing for a job, or is to do.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    /// What was asked for.
    Main,
    /// Zeroes are written from here on, since nothing else could make them.
    Zeroes { from: u64 },
    /// What was done is made durable.
    Sync,
}

impl Port {
    /// A job with leave to go begins to have its effect.
    pub(super) fn begin(&mut self, number: u32) {
        if self.stack.cache.is_some() {
            self.begin_in_cache(number);
        } else {
            self.begin_on_image(number);
        }
    }

    fn begin_on_image(&mut self, number: u32) {
        if self.engine.room() > 0 {
            self.start(number);
        } else {
            self.backlog.push_back(number);
        }
    }

    /// Does in the volatile cache what can be done there.
    fn begin_in_cache(&mut self, number: u32) {
        let Some(cache) = self.stack.cache.clone() else { return };
        // The layers may have come while it was on its way.
        self.with_layers(number);
        let effect = self.jobs[number as usize].effect();
        let Some(range) = effect.range() else { return self.arrive(number, Err(Errno::EINVAL)) };
        let content = match effect {
            Request::Read { .. } => {
                let (patches, all) = cache.patches(range);
                if let Some(layered) = &mut self.job(number).layered {
                    layered.patches = patches;
                }
                return if all { self.arrive(number, Ok(())) } else { self.begin_on_image(number) };
            }
            Request::Flush => {
                self.stage(number, Stage::InCache);
                return cache.make_durable(Durable::All, &self.shared, number);
            }
            _ if range.is_empty() => return self.arrive(number, Ok(())),
            Request::Write { memory, .. } => {
                let len = memory.len() as usize;
                let Some(mut copy) = Chunk::of(len) else { return self.arrive(number, Err(Errno::ENOMEM)) };
                // SAFETY: it is lent until the answer, and nobody writes it meanwhile.
                let bytes = unsafe { std::slice::from_raw_parts(memory.start().as_ptr(), len) };
                copy.bytes()[..len].copy_from_slice(bytes);
                Content::Data(Arc::new(copy))
            }
            Request::WriteZeroes { allocate, .. } => Content::Zeroes { allocate },
            Request::Trim { .. } => Content::Zeroes { allocate: false },
        };
        // A job that waits for room is told by letter, and asks the gate again.
        self.stage(number, Stage::ForRoom);
        match cache.write(range, content, &self.shared, number) {
            None => Disk::arrived(&self.shared, self.jobs[number as usize].host),
            Some(seq) if effect.fua() => {
                self.stage(number, Stage::InCache);
                cache.make_durable(Durable::Entry(seq), &self.shared, number);
            }
            Some(_) => self.arrive(number, Ok(())),
        }
    }

    /// Hands the next step of a job to the engine, which has room.
    pub(super) fn start(&mut self, number: u32) {
        let job = &self.jobs[number as usize];
        let op = match (job.step, job.effect()) {
            (Step::Sync, _) | (_, Request::Flush) => Op::Fdatasync { file: IMAGE },
            (Step::Main, Request::Read { offset, memory }) => {
                Op::ReadLent { file: IMAGE, offset: offset.bytes(), memory }
            }
            (Step::Main, Request::Write { offset, memory, .. }) => {
                Op::WriteLent { file: IMAGE, offset: offset.bytes(), memory }
            }
            (Step::Main, Request::Trim { range, .. } | Request::WriteZeroes { range, .. }) if range.is_empty() => {
                return self.arrive(number, Ok(()));
            }
            (Step::Main, Request::Trim { range, .. } | Request::WriteZeroes { range, allocate: false, .. }) => {
                Op::Discard { file: IMAGE, offset: range.start.bytes(), len: range.len.bytes() }
            }
            (Step::Main, Request::WriteZeroes { range, .. }) => Op::Fallocate {
                file: IMAGE,
                mode: Reserve::WriteZeroes,
                offset: range.start.bytes(),
                len: range.len.bytes(),
            },
            (Step::Zeroes { from }, request) => {
                let end = request.range().map_or(from, |range| range.end().bytes());
                Op::WriteLent { file: IMAGE, offset: from, memory: zeroes(end - from) }
            }
        };
        if let Err(error) = self.engine.submit(u64::from(number), op) {
            self.arrive(number, Err(errno_of(&error)));
        }
    }

    /// Takes what the engine has done of a job: goes on with the next step, if there is one.
    pub(super) fn completed(&mut self, number: u32, outcome: Outcome) {
        let device = self.engine.targets()[IMAGE as usize].is_block_device();
        let job = self.job(number);
        let effect = job.effect();
        let next = match (job.step, effect, outcome) {
            // A trim is a hint.
            (Step::Main, Request::Trim { fua, .. }, Ok(()) | Err(Errno::EOPNOTSUPP)) => fua.then_some(Step::Sync),
            // What a device discards need not read as zeroes.
            (Step::Main, Request::WriteZeroes { range, allocate: false, .. }, Ok(())) if device => {
                Some(Step::Zeroes { from: range.start.bytes() })
            }
            (
                Step::Main,
                Request::WriteZeroes { range, .. },
                Err(Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENODEV),
            ) => Some(Step::Zeroes { from: range.start.bytes() }),
            (Step::Zeroes { from }, Request::WriteZeroes { range, fua, .. }, Ok(())) => {
                let end = range.end().bytes();
                let from = from + u64::from(zeroes(end - from).len());
                if from < end { Some(Step::Zeroes { from }) } else { fua.then_some(Step::Sync) }
            }
            (Step::Main, request, Ok(())) if request.fua() => Some(Step::Sync),
            _ => None,
        };
        match next {
            Some(step) => {
                job.step = step;
                // The engine has the room that this job has just left.
                self.start(number);
            }
            None => {
                // The image is a file of this machine, and knows nothing of trimming.
                let hint = matches!(effect, Request::Trim { .. }) && outcome == Err(Errno::EOPNOTSUPP);
                self.arrive(number, if hint { Ok(()) } else { outcome });
            }
        }
    }

    /// A job has had its effect on the image, or none.
    pub(super) fn arrive(&mut self, number: u32, outcome: Outcome) {
        let outcome = if self.stack.is_empty() { outcome } else { self.take_down(number, outcome) };
        Disk::arrived(&self.shared, self.jobs[number as usize].host);
        self.finish(number, outcome);
    }
}
