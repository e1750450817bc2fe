//! Several programs at the same job, in turns.

use std::process::Command;

use bench::report::vocabulary::{BANDWIDTH, PROGRAM, QUEUE_DEPTH};
use bench::report::{Better, Cell, Measure, Unit, stats};
use blockdev::{ByteSize, Cancel, Result, ui};

use crate::child::{self, Outcome};

/// Bytes by wall clock, from before the program's start to after its end.
pub(crate) const RATE: Measure = BANDWIDTH;
/// Bytes per second as the program itself reports them: fio leaves out its start, the reservation and the flush.
pub(crate) const REPORTED: Measure =
    Measure::new("bandwidth_reported", "as it reports", Unit::BytesPerSecond, Better::Higher);
/// Wall clock time, from before the program's start to after its end.
pub(crate) const ELAPSED: Measure = Measure::new("elapsed", "wall time", Unit::Nanoseconds, Better::Lower);
/// Processor time, user and system.
pub(crate) const CPU: Measure = Measure::new("cpu", "CPU time", Unit::Nanoseconds, Better::Lower);
/// Processor time as a share of one core.
pub(crate) const CPU_SHARE: Measure = Measure::new("cpu_share", "of one core", Unit::Ratio, Better::Lower);
/// How many times as fast as this one the first contestant was in the same round.
pub(crate) const LEAD: Measure = Measure::new("lead", "ours over it", Unit::Ratio, Better::Higher);

/// One of the programs.
pub(crate) struct Contestant<'a> {
    /// What it is called.
    pub(crate) name: String,
    /// How many I/Os it keeps in flight, where that is chosen.
    pub(crate) depth: Option<u32>,
    /// Makes its command.
    pub(crate) command: Box<dyn Fn() -> Command + 'a>,
    /// Reads the bandwidth it reports from its standard output.
    pub(crate) reported: Option<fn(&str) -> Result<f64>>,
}

impl<'a> Contestant<'a> {
    /// A program of which only the clock is looked at.
    pub(crate) fn new(name: &str, command: impl Fn() -> Command + 'a) -> Self {
        Self { name: name.to_owned(), depth: None, command: Box::new(command), reported: None }
    }

    /// Its name and queue depth: no other is called that.
    fn title(&self) -> String {
        let depth = self.depth.map_or_else(String::new, |depth| format!(", queue depth {depth}"));
        format!("{}{depth}", self.name)
    }
}

/// What several programs do in turns.
pub(crate) struct Contest<'a> {
    /// What it is about, a section of the report.
    pub(crate) group: &'a str,
    /// Ours first.
    pub(crate) contestants: Vec<Contestant<'a>>,
    /// How many bytes each moves.
    pub(crate) size: ByteSize,
    /// How often each has its turn.
    pub(crate) rounds: u32,
}

impl Contest<'_> {
    /// Lets them take turns, A B C A B C, with `between` after each. Gives a cell each, in their order.
    pub(crate) fn run(&self, cancel: &Cancel, mut between: impl FnMut() -> Result<()>) -> Result<Vec<Cell>> {
        let mut turns: Vec<Vec<Turn>> = self.contestants.iter().map(|_| Vec::new()).collect();
        for round in 1..=self.rounds {
            for (contestant, turns) in self.contestants.iter().zip(&mut turns) {
                let outcome = child::run((contestant.command)(), cancel)?;
                let reported = contestant.reported.map(|read| read(&outcome.stdout)).transpose()?;
                let turn = Turn { outcome, reported };
                ui::notice(&format!(
                    "{}, round {round} of {}: {} in {:.2} s, {:.0} % of a core",
                    self.group,
                    self.rounds,
                    contestant.title(),
                    turn.outcome.elapsed.as_secs_f64(),
                    turn.outcome.cpu_share() * 100.0
                ));
                turns.push(turn);
                between()?;
            }
        }
        Ok(self.contestants.iter().zip(&turns).map(|(contestant, own)| self.cell(contestant, own, &turns[0])).collect())
    }

    fn cell(&self, contestant: &Contestant<'_>, turns: &[Turn], ours: &[Turn]) -> Cell {
        let each = |figure: fn(&Turn) -> f64| turns.iter().map(figure).collect::<Vec<_>>();
        #[allow(clippy::cast_precision_loss, reason = "bandwidths are shown to three digits")]
        let size = self.size.bytes() as f64;
        let reported: Vec<f64> = turns.iter().filter_map(|turn| turn.reported).collect();
        let mut cell = Cell::new(self.group, format!("{}: {}", self.group, contestant.title()))
            .with_param(&PROGRAM, contestant.name.as_str())
            .with_figure(&ELAPSED, each(|turn| turn.outcome.elapsed.as_secs_f64() * 1e9))
            .with_figure(&RATE, turns.iter().map(|turn| size / turn.outcome.elapsed.as_secs_f64()).collect())
            .with_figure(&REPORTED, reported)
            .with_figure(&CPU, each(|turn| turn.outcome.cpu.as_secs_f64() * 1e9))
            .with_figure(&CPU_SHARE, each(|turn| turn.outcome.cpu_share()));
        if let Some(depth) = contestant.depth {
            cell = cell.with_param(&QUEUE_DEPTH, depth);
        }
        // What disturbed the machine in a round disturbed both, so rounds are compared, not medians.
        let lead = ours
            .iter()
            .zip(turns)
            .map(|(ours, theirs)| theirs.outcome.elapsed.as_secs_f64() / ours.outcome.elapsed.as_secs_f64());
        cell.with_figure(&LEAD, lead.collect())
    }
}

struct Turn {
    outcome: Outcome,
    reported: Option<f64>,
}

/// The median of `measure` in `cell`.
pub(crate) fn median(cell: &Cell, measure: &Measure) -> Option<f64> {
    cell.figures.get(&*measure.name).and_then(|figure| stats::median(&figure.samples))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn contest(contestants: Vec<Contestant<'_>>) -> Contest<'_> {
        Contest { group: "Filling", contestants, size: ByteSize::mib(1), rounds: 3 }
    }

    #[test]
    fn contestants_take_turns() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let say = |name: &'static str| {
            let log = log.display().to_string();
            Contestant::new(name, move || {
                let mut command = Command::new("sh");
                command.args(["-c", &format!("echo {name} >> {log}; echo 7")]);
                command
            })
        };
        let mut reporting = say("b");
        reporting.depth = Some(8);
        reporting.reported = Some(|stdout| Ok(stdout.trim().parse().unwrap()));
        let mut pauses = 0;
        let cells = contest(vec![say("a"), reporting])
            .run(&Cancel::new(), || {
                pauses += 1;
                Ok(())
            })
            .unwrap();
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "a\nb\n".repeat(3));
        assert_eq!(pauses, 6);
        assert_eq!(cells.iter().map(|cell| median(cell, &REPORTED)).collect::<Vec<_>>(), [None, Some(7.0)]);
        assert_eq!(cells[1].params["iodepth"], 8u32.into());
        assert_eq!(cells[1].figures["elapsed"].samples.len(), 3);
    }

    #[test]
    fn rounds_are_compared_not_medians() {
        let turns = |seconds: [u64; 3]| {
            seconds.map(|seconds| {
                let (elapsed, cpu) = (Duration::from_secs(seconds), Duration::from_millis(100 * seconds));
                Turn { outcome: Outcome { elapsed, cpu, stdout: String::new() }, reported: None }
            })
        };
        let other = Contestant::new("other", || Command::new("true"));
        // The third round was slow for both.
        let cell = contest(Vec::new()).cell(&other, &turns([2, 4, 18]), &turns([1, 2, 9]));
        assert_eq!(cell.figures["lead"].samples, [2.0, 2.0, 2.0]);
        assert_eq!(median(&cell, &CPU_SHARE), Some(0.1));
        assert_eq!(median(&cell, &RATE), Some(f64::from(1 << 20) / 4.0));
    }
}
