//! From what was measured to what is reported.

use std::collections::BTreeMap;

use blockdev::ByteSize;

use super::advice::{Load, Measured};
use super::agent::Loaded;
use super::plan::Spec;
use super::work::Rw;
use crate::disk::{self, DiskRounds, LOOP};
use crate::load::{self, Lap, Rounds, nanos};
use crate::report::vocabulary as v;
use crate::report::{
    Cell, Finding, Highlight, Latency, Measure, Parameter, Plot, PlotKind, Reference, Run, Severity, stats,
};

/// The section of the report about the disk below.
const CEILINGS: &str = "The disk below, without a pfsd";

/// The section of the report about what a pfsd takes while nobody asks for anything.
const IDLE: &str = "Idle: a client that asks nothing";

/// What of ours is held against the rival's, and what the ratio of it is called.
const COMPARED: [(&Measure, &Measure); 6] = [
    (&v::IOPS, &v::IOPS_RATIO),
    (&v::P50, &v::P50_RATIO),
    (&v::P99, &v::P99_RATIO),
    (&v::PFSD_CPU, &v::CPU_RATIO),
    (&v::IDLE_CPU, &v::IDLE_RATIO),
    (&v::MEMORY, &v::MEMORY_RATIO),
];

/// What the ratios are of, in words.
const RATIOS: [(&str, &Measure); 6] = [
    ("IOPS", &v::IOPS_RATIO),
    ("p50", &v::P50_RATIO),
    ("p99", &v::P99_RATIO),
    ("CPU per operation", &v::CPU_RATIO),
    ("CPU when idle", &v::IDLE_RATIO),
    ("memory", &v::MEMORY_RATIO),
];

/// How many loads the top of the page names.
const HIGHLIGHTS: usize = 4;

/// Which medium, which pfsd, and how many workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) medium: usize,
    pub(super) workers: u32,
    pub(super) pfsd: usize,
}

/// Everything that was measured so far.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    specs: Vec<Spec>,
    workers: Vec<u32>,
    /// What media are called, and pfsds.
    pub(super) media: Vec<String>,
    pub(super) pfsds: Vec<String>,
    loads: BTreeMap<(usize, Place), Tally>,
    rests: BTreeMap<Place, Rest>,
    ceilings: BTreeMap<(usize, usize), Vec<Ceiling>>,
    pub(super) findings: Vec<Finding>,
}

/// The rounds of a load on a pfsd.
#[derive(Debug, Default)]
struct Tally {
    rounds: Rounds,
    cpu: Vec<f64>,
    creates: Vec<f64>,
    latencies: Vec<Latency>,
    waiting: u64,
    errors: u64,
    first_error: Option<String>,
    /// Whether it failed altogether, rather than being slow.
    broken: bool,
    not_disk: Option<String>,
}

/// What a pfsd took besides.
#[derive(Debug, Default)]
struct Rest {
    idle: Vec<f64>,
    memory: Vec<f64>,
}

/// What the disk does by itself.
#[derive(Debug)]
struct Ceiling {
    spec: disk::Spec,
    target: String,
    rounds: DiskRounds,
    not_disk: Option<String>,
}

impl Outcome {
    pub(super) fn new(specs: Vec<Spec>, workers: Vec<u32>, pfsds: Vec<String>) -> Self {
        Self { specs, workers, pfsds, ..Self::default() }
    }

    /// Whether a load like `spec` has failed on that pfsd before: it is not tried again.
    pub(super) fn has_failed(&self, spec: usize, pfsd: usize) -> bool {
        let like = |other: usize| self.specs[other].group == self.specs[spec].group;
        self.loads.iter().any(|((other, place), tally)| tally.broken && place.pfsd == pfsd && like(*other))
    }

    /// Notes what a load came to, or why to nothing.
    pub(super) fn add_load(
        &mut self,
        round: u32,
        spec: usize,
        place: Place,
        outcome: Result<Loaded, String>,
        not_disk: Option<&str>,
    ) {
        let work = &self.specs[spec].work;
        let tally = self.loads.entry((spec, place)).or_default();
        if let Some(why) = not_disk {
            tally.not_disk.get_or_insert_with(|| why.to_owned());
        }
        let name = format!("{}, -w {}, {}", self.specs[spec].name, place.workers, self.pfsds[place.pfsd]);
        let finding = match outcome {
            Ok(loaded) if loaded.operations() > 0 => return tally.add(round, work.rw, work.block, &loaded),
            Ok(_) => {
                let text = format!("{name}: in round {} nothing was done before its time was up.", round + 1);
                Finding::new(Severity::Warning, "too-slow", text).with_hint("a longer --runtime")
            }
            Err(error) => {
                tally.errors += 1;
                tally.broken = true;
                let text = format!("{name}: {error}");
                tally.first_error.get_or_insert(error);
                Finding::new(Severity::Error, "load-failed", text)
            }
        };
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    /// Notes what of a core a pfsd took when it was idle.
    pub(super) fn add_idle(&mut self, place: Place, share: f64) {
        self.rests.entry(place).or_default().idle.push(share);
    }

    /// Notes how much memory a pfsd had in the end.
    #[allow(clippy::cast_precision_loss, reason = "a size for a report")]
    pub(super) fn add_memory(&mut self, place: Place, memory: ByteSize) {
        self.rests.entry(place).or_default().memory.push(memory.bytes() as f64);
    }

    /// Notes what the disk below did under the load `spec` of `medium`: `what` on `target`.
    pub(super) fn add_ceiling(
        &mut self,
        round: u32,
        (medium, spec): (usize, usize),
        target: &str,
        what: &disk::Spec,
        outcome: Result<load::Measured, String>,
        not_disk: Option<String>,
    ) {
        let ceilings = self.ceilings.entry((spec, medium)).or_default();
        let index = ceilings.iter().position(|known| known.target == target).unwrap_or_else(|| {
            let (spec, target) = (what.clone(), target.to_owned());
            ceilings.push(Ceiling { spec, target, rounds: DiskRounds::default(), not_disk: None });
            ceilings.len() - 1
        });
        let ceiling = &mut ceilings[index];
        ceiling.not_disk = ceiling.not_disk.take().or(not_disk);
        match outcome {
            Ok(measured) => ceiling.rounds.add(round, what, &measured),
            Err(error) => ceiling.rounds.fail(error),
        }
    }

    /// Puts everything into `run`.
    pub(super) fn report(self, run: &mut Run) {
        run.parameters = vec![
            v::MEDIUM,
            v::RW,
            v::BLOCK_SIZE,
            v::RATE,
            v::CLIENTS,
            v::WORKERS,
            v::PFSD,
            v::TARGET,
            v::QUEUE_DEPTH,
            v::JOBS,
            v::ENGINE,
        ];
        run.measures = vec![
            v::IOPS,
            v::IOPS_RATIO,
            v::OF_DISK,
            v::BANDWIDTH,
            v::CREATES,
            v::P50,
            v::P50_RATIO,
            v::P99,
            v::P99_RATIO,
            v::P999,
            v::PFSD_CPU,
            v::CPU_RATIO,
            v::CPU_PER_OP,
            v::IDLE_CPU,
            v::IDLE_RATIO,
            v::MEMORY,
            v::MEMORY_RATIO,
        ];
        run.findings.extend(self.findings.iter().cloned());
        run.findings.extend(self.overloads());
        let ceilings = self.ceiling_cells();
        let mut by_place = BTreeMap::new();
        for ((spec, place), tally) in &self.loads {
            if let Some(cell) = self.load_cell(*spec, *place, tally, &ceilings) {
                by_place.insert((*spec, *place), cell);
            }
        }
        let mut rests: BTreeMap<Place, Cell> =
            self.rests.iter().map(|(place, rest)| (*place, self.rest_cell(*place, rest))).collect();
        self.compare(&mut by_place, &mut rests, run);
        let used = self.advise(&by_place, &rests, run);
        self.highlight(&used, &by_place, &rests, run);
        self.plot(&by_place, &ceilings, &rests, run);
        run.cells.extend(by_place.into_values());
        run.cells.extend(rests.into_values());
        run.cells.extend(ceilings.into_values().flatten());
    }

    fn medium(&self, medium: usize) -> Option<&str> {
        self.media.get(medium).map(String::as_str)
    }

    /// What tells `place` from the others.
    fn place_name(&self, place: Place) -> String {
        let pfsd = if self.pfsds.len() > 1 { format!(", {}", self.pfsds[place.pfsd]) } else { String::new() };
        format!("-w {}{pfsd}{}", place.workers, self.on_medium(place.medium))
    }

    fn on_medium(&self, medium: usize) -> String {
        match self.medium(medium) {
            Some(name) if self.media.len() > 1 => format!(" on {name}"),
            _ => String::new(),
        }
    }

    fn with_place(&self, cell: Cell, place: Place) -> Cell {
        let cell = cell.with_param(&v::PFSD, self.pfsds[place.pfsd].as_str()).with_param(&v::WORKERS, place.workers);
        match self.medium(place.medium) {
            Some(name) => cell.with_param(&v::MEDIUM, name),
            None => cell,
        }
    }

    fn load_group(&self, spec: usize, medium: usize) -> String {
        format!("{}{}", self.specs[spec].group, self.on_medium(medium))
    }

    fn load_cell(
        &self,
        spec: usize,
        place: Place,
        tally: &Tally,
        ceilings: &BTreeMap<(usize, usize), Vec<Cell>>,
    ) -> Option<Cell> {
        if tally.rounds.is_empty() && tally.errors == 0 {
            return None;
        }
        let Spec { name, work, .. } = &self.specs[spec];
        let name = format!("{name}, {}", self.place_name(place));
        let mut cell = self.with_place(Cell::new(self.load_group(spec, place.medium), name), place);
        cell = cell.with_param(&v::RW, work.rw.name()).with_param(&v::CLIENTS, work.clients);
        if work.rw != Rw::Meta {
            cell = cell.with_param(&v::BLOCK_SIZE, work.block);
        }
        if let Some(rate) = work.rate {
            cell = cell.with_param(&v::RATE, v::rate(rate));
        }
        cell = tally.rounds.clone().into_cell(cell);
        cell.latencies.extend(tally.latencies.iter().cloned());
        cell.errors = tally.errors;
        cell.first_error.clone_from(&tally.first_error);
        cell.not_disk.clone_from(&tally.not_disk);
        cell = cell.with_figure(&v::PFSD_CPU, tally.cpu.clone()).with_figure(&v::CREATES, tally.creates.clone());
        let below = ceilings.get(&(spec, place.medium)).and_then(|cells| of_disk(cells));
        let iops = cell.figures.get(&*v::IOPS.name).map(|figure| figure.samples.clone());
        if let (Some(below), Some(iops), None) = (below, iops, work.rate) {
            cell = cell.with_figure(&v::OF_DISK, iops.into_iter().map(|iops| iops / below).collect());
        }
        Some(cell)
    }

    fn rest_cell(&self, place: Place, rest: &Rest) -> Cell {
        let group = format!("{IDLE}{}", self.on_medium(place.medium));
        let cell = Cell::new(group, format!("idle, {}", self.place_name(place)));
        self.with_place(cell, place)
            .with_figure(&v::IDLE_CPU, rest.idle.clone())
            .with_figure(&v::MEMORY, rest.memory.clone())
    }

    fn ceiling_cells(&self) -> BTreeMap<(usize, usize), Vec<Cell>> {
        let cells = |medium: usize, ceilings: &[Ceiling]| {
            let cell = |ceiling: &Ceiling| {
                let mut cell = ceiling.rounds.clone().into_cell(&ceiling.spec, &ceiling.target);
                CEILINGS.clone_into(&mut cell.group);
                cell.name = format!("{} on the {}{}", cell.name, ceiling.target, self.on_medium(medium));
                cell.not_disk.clone_from(&ceiling.not_disk);
                match self.medium(medium) {
                    Some(name) => cell.with_param(&v::MEDIUM, name),
                    None => cell,
                }
            };
            ceilings.iter().filter(|ceiling| !ceiling.rounds.is_empty()).map(cell).collect()
        };
        self.ceilings.iter().map(|((spec, medium), found)| ((*spec, *medium), cells(*medium, found))).collect()
    }

    /// Says where more was due than was done.
    fn overloads(&self) -> Vec<Finding> {
        let overload = |((spec, place), tally): (&(usize, Place), &Tally)| {
            (tally.waiting > 0).then(|| {
                let text = format!(
                    "{}, {}: {} operations were due and had not been done when time was up. Where that grows with the \
                     runtime, the pfsd cannot keep up, and response times have no end.",
                    self.specs[*spec].name,
                    self.place_name(*place),
                    tally.waiting
                );
                Finding::new(Severity::Warning, "overload", text).with_hint("a lower --rate, or more --clients")
            })
        };
        self.loads.iter().filter_map(overload).collect()
    }

    /// Puts ratios into the cells of the first pfsd where another was measured, too.
    fn compare(&self, loads: &mut BTreeMap<(usize, Place), Cell>, rests: &mut BTreeMap<Place, Cell>, run: &mut Run) {
        let Some(rival) = self.pfsds.get(1) else { return };
        let of_rival = |place: &Place| Place { pfsd: 1, ..*place };
        let theirs = loads.clone();
        for ((spec, place), ours) in loads.iter_mut().filter(|((_, place), _)| place.pfsd == 0) {
            if let Some(theirs) = theirs.get(&(*spec, of_rival(place))) {
                disk::compare(ours, theirs, &COMPARED);
            }
        }
        let theirs = rests.clone();
        for (place, ours) in rests.iter_mut().filter(|(place, _)| place.pfsd == 0) {
            if let Some(theirs) = theirs.get(&of_rival(place)) {
                disk::compare(ours, theirs, &COMPARED);
            }
        }
        let cells: Vec<Cell> = loads.values().chain(rests.values()).cloned().collect();
        let text = disk::summary(&cells, rival, &RATIOS);
        run.findings.extend(text.map(|text| Finding::new(Severity::Note, "against", text)));
    }

    /// Says how many workers to use, on each medium. Returns that.
    fn advise(
        &self,
        loads: &BTreeMap<(usize, Place), Cell>,
        rests: &BTreeMap<Place, Cell>,
        run: &mut Run,
    ) -> Vec<Option<u32>> {
        let mut used = Vec::new();
        for medium in 0..self.media.len().max(1) {
            let place = |workers: u32| Place { medium, pfsd: 0, workers };
            let score = |spec: usize, workers: u32| -> Option<Vec<f64>> {
                let cell = loads.get(&(spec, place(workers))).filter(|cell| cell.errors == 0)?;
                // An open loop does what it is told; how long that takes is the question.
                let open = self.specs[spec].work.rate.is_some();
                let measure = if open { &v::P99 } else { &v::IOPS };
                let samples = &cell.figures.get(&*measure.name)?.samples;
                Some(samples.iter().map(|sample| if open { 1e9 / sample } else { *sample }).collect())
            };
            let load = |spec: usize| {
                let rounds: Vec<Vec<f64>> =
                    self.workers.iter().map(|workers| score(spec, *workers)).collect::<Option<_>>()?;
                // Where somebody interrupted it, the last round is not everybody's.
                let whole = rounds.iter().map(Vec::len).min()?;
                let rounds = rounds.into_iter().map(|mut samples| {
                    samples.truncate(whole);
                    samples
                });
                Some(Load { name: self.specs[spec].name.clone(), rounds: rounds.collect() })
            };
            let idle = |workers: &u32| Some(rests.get(&place(*workers))?.figures.get(&*v::IDLE_CPU.name)?.value);
            let measured = Measured {
                workers: self.workers.clone(),
                loads: (0..self.specs.len()).filter_map(load).collect(),
                idle: self.workers.iter().map(idle).collect(),
            };
            let advice = measured.advice();
            used.push(advice.as_ref().map(|advice| advice.workers));
            let on = self.on_medium(medium);
            for mut finding in advice.into_iter().flat_map(|advice| advice.findings) {
                if !on.is_empty() {
                    finding.text = format!("{}: {}", on.trim_start().replacen("on", "On", 1), finding.text);
                }
                run.findings.push(finding);
            }
        }
        used
    }

    /// Puts what says most at the top of the page: with the number of workers to use, and most clients.
    fn highlight(
        &self,
        used: &[Option<u32>],
        loads: &BTreeMap<(usize, Place), Cell>,
        rests: &BTreeMap<Place, Cell>,
        run: &mut Run,
    ) {
        let workers = used.first().copied().flatten().or(self.workers.first().copied());
        let Some(workers) = workers else { return };
        let place = Place { medium: 0, pfsd: 0, workers };
        let mut groups: Vec<&str> = self.specs.iter().map(|spec| spec.group.as_str()).collect();
        groups.dedup();
        for group in groups.into_iter().take(HIGHLIGHTS) {
            let of_group = self.specs.iter().enumerate().filter(|(_, spec)| spec.group == group);
            let Some((index, spec)) = of_group.max_by_key(|(_, spec)| spec.work.clients) else { continue };
            let Some(cell) = loads.get(&(index, place)) else { continue };
            let sequential = matches!(spec.work.rw, Rw::Read | Rw::Write);
            let measure = if sequential { &v::BANDWIDTH } else { &v::IOPS };
            run.highlights.push(highlight(&format!("{}, -w {workers}", spec.name), cell, measure));
        }
        if let Some(cell) = rests.get(&place) {
            run.highlights.push(highlight(&format!("idle, -w {workers}"), cell, &v::IDLE_CPU));
        }
        // What was cut short, or failed, has no such figure.
        let of = |highlight: &Highlight| loads.values().chain(rests.values()).find(|cell| cell.name == highlight.cell);
        run.highlights
            .retain(|highlight| of(highlight).is_some_and(|cell| cell.figures.contains_key(&highlight.measure)));
    }

    /// What is worth drawing.
    fn plot(
        &self,
        loads: &BTreeMap<(usize, Place), Cell>,
        ceilings: &BTreeMap<(usize, usize), Vec<Cell>>,
        rests: &BTreeMap<Place, Cell>,
        run: &mut Run,
    ) {
        let names = |parameters: &[&Parameter]| parameters.iter().map(|p| p.name.to_string()).collect::<Vec<_>>();
        let against_workers =
            |measure: &Measure| PlotKind::Figure { measure: measure.name.to_string(), x: v::WORKERS.name.to_string() };
        let several = self.workers.len() > 1;
        let mut drawn: Vec<String> = Vec::new();
        for (spec, place) in loads.keys() {
            let group = self.load_group(*spec, place.medium);
            if drawn.contains(&group) {
                continue;
            }
            let references = |measure: &Measure| -> Vec<Reference> {
                let of_group = (0..self.specs.len()).filter(|other| self.load_group(*other, place.medium) == group);
                let reference = |other: usize| {
                    let cells = ceilings.get(&(other, place.medium))?;
                    let cell = nearest(cells)?;
                    let value = cell.figures.get(&*measure.name)?.value;
                    let target = cell.params.get(&*v::TARGET.name).map_or("disk", |target| match target {
                        crate::report::Value::Text(name) => name,
                        _ => "disk",
                    });
                    Some(Reference { label: format!("{target}, {} in flight", self.specs[other].work.clients), value })
                };
                of_group.filter_map(reference).collect()
            };
            let plot = |title: &str, kind, panels: &[&Parameter], lines: &[&Parameter], references| Plot {
                title: format!("{group}: {title}"),
                kind,
                group: group.clone(),
                panels: names(panels),
                lines: names(lines),
                references,
            };
            if several {
                let lines = [&v::CLIENTS, &v::PFSD];
                let open = self.specs[*spec].work.rate.is_some();
                let ceiling = if open { Vec::new() } else { references(&v::IOPS) };
                run.plots.push(plot("IOPS against workers", against_workers(&v::IOPS), &[], &lines, ceiling));
                run.plots.push(plot("p99 against workers", against_workers(&v::P99), &[], &lines, references(&v::P99)));
            }
            let latency = if self.specs[*spec].work.rate.is_some() { "response" } else { "service" };
            let kind = PlotKind::Percentiles { latency: latency.to_owned() };
            run.plots.push(plot("latency percentiles", kind, &[&v::CLIENTS], &[&v::WORKERS, &v::PFSD], Vec::new()));
            drawn.push(group);
        }
        let mut groups: Vec<&str> = rests.values().map(|cell| cell.group.as_str()).collect();
        groups.dedup();
        for group in groups.into_iter().filter(|_| several) {
            run.plots.push(Plot {
                title: format!("{group}: of a core, against workers"),
                kind: against_workers(&v::IDLE_CPU),
                group: group.to_owned(),
                panels: Vec::new(),
                lines: names(&[&v::PFSD]),
                references: Vec::new(),
            });
        }
    }
}

impl Tally {
    /// Takes in one round, in which something was done.
    #[allow(clippy::cast_precision_loss, reason = "figures for a report")]
    fn add(&mut self, round: u32, rw: Rw, block: ByteSize, loaded: &Loaded) {
        let operations = loaded.operations();
        let tallies = loaded.kinds.iter().map(|kind| &kind.tally);
        self.rounds.add(round, block, &Lap::of(loaded.window, tallies, &loaded.intervals));
        self.cpu.push(nanos(loaded.cpu) as f64 / operations as f64);
        self.waiting += loaded.waiting;
        if rw == Rw::Meta {
            for kind in &loaded.kinds {
                if kind.name == Rw::Meta.kinds()[0] {
                    self.creates.push(kind.tally.ios() as f64 / loaded.window.as_secs_f64());
                }
                match self.latencies.iter_mut().find(|known| known.name == kind.name) {
                    Some(known) => known.histogram.merge(&kind.tally.service),
                    None => {
                        self.latencies.push(Latency { name: kind.name.clone(), histogram: kind.tally.service.clone() })
                    }
                }
            }
        }
    }
}

fn highlight(label: &str, cell: &Cell, measure: &Measure) -> Highlight {
    Highlight { label: label.to_owned(), cell: cell.name.clone(), measure: measure.name.to_string() }
}

/// Of the disk's cells the one of what the pfsd has: the loop device, or else the image.
fn nearest(cells: &[Cell]) -> Option<&Cell> {
    let is_loop = |cell: &&Cell| cell.params.get(&*v::TARGET.name) == Some(&LOOP.into());
    cells.iter().find(is_loop).or(cells.first()).filter(|cell| cell.errors == 0)
}

/// What the disk does by itself, in IOPS.
fn of_disk(cells: &[Cell]) -> Option<f64> {
    let samples = &nearest(cells)?.figures.get(&*v::IOPS.name)?.samples;
    stats::median(samples).filter(|iops| *iops > 0.0)
}
