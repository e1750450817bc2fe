//! An ordered list of steps, and what is told while they run.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use blockdev::{Cancel, Result, ui};
use serde::Serialize;

use crate::step::{Log, Outcome, Step, tail};
use crate::topology::Name;

/// Steps in the order in which they are done.
#[derive(Debug, Default)]
pub struct Plan<'a> {
    steps: Vec<Step<'a>>,
}

/// What happens while a plan runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event<'a> {
    /// A step begins.
    StepStarted {
        /// Which, from 1.
        number: usize,
        /// Of how many.
        total: usize,
        /// What it does.
        title: &'a str,
    },
    /// A step that takes minutes goes on.
    StepProgress {
        /// Which, from 1.
        number: usize,
        /// Of how many.
        total: usize,
        /// What it does.
        title: &'a str,
        /// How long it has been at it.
        #[serde(rename = "step_ms", serialize_with = "milliseconds")]
        step_time: Duration,
        /// The last line that what it runs has written.
        line: &'a str,
    },
    /// A step is done.
    StepDone {
        /// Which, from 1.
        number: usize,
        /// Of how many.
        total: usize,
        /// What it does.
        title: &'a str,
        /// Whether it had been done before.
        outcome: Outcome,
        /// How long it took.
        #[serde(rename = "step_ms", serialize_with = "milliseconds")]
        step_time: Duration,
        /// How long the plan has taken until now.
        #[serde(rename = "elapsed_ms", serialize_with = "milliseconds")]
        elapsed: Duration,
    },
    /// A node gets another port; the plan begins anew.
    PortMoved(PortMoved),
    /// A step failed, and the plan with it.
    StepFailed {
        /// Which, from 1.
        number: usize,
        /// Of how many.
        total: usize,
        /// What it does.
        title: &'a str,
        /// What failed.
        error: String,
        /// What to do next.
        hint: Option<String>,
    },
}

/// A node gets another port than the one that was picked for it: somebody else has taken that meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PortMoved {
    /// The node.
    pub node: Name,
    /// Its port until now.
    pub from: u16,
    /// Its port from now on.
    pub to: u16,
}

impl fmt::Display for PortMoved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, from, to } = self;
        write!(f, "port {from} of {node} was taken by somebody else meanwhile: it gets {to}")
    }
}

fn milliseconds<S: serde::Serializer>(time: &Duration, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_u128(time.as_millis())
}

/// Is told what happens while a plan runs. Libraries report to this and never print.
pub trait Observer: Send {
    /// This happened.
    ///
    /// # Errors
    /// When it cannot be passed on, which ends the plan.
    fn event(&mut self, event: &Event<'_>) -> Result<()>;
}

impl<'a> Plan<'a> {
    /// A plan without steps.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a step at the end.
    pub fn push(&mut self, step: Step<'a>) {
        self.steps.push(step);
    }

    /// The steps, in order.
    #[must_use]
    pub fn steps(&self) -> &[Step<'a>] {
        &self.steps
    }

    /// Runs the steps in order, until one fails or somebody asks to stop.
    ///
    /// # Errors
    /// The error of the step that failed; [`Interrupted`](blockdev::ErrorKind::Interrupted) when asked to stop.
    pub fn run(&self, observer: &mut dyn Observer, cancel: &Cancel) -> Result<()> {
        let begin = Instant::now();
        let total = self.steps.len();
        for (number, step) in (1..).zip(&self.steps) {
            let title = step.title();
            let step_begin = Instant::now();
            observer.event(&Event::StepStarted { number, total, title })?;
            let tell = |line: &str| {
                let step_time = step_begin.elapsed();
                // That it cannot be passed on is seen at the step's end.
                let _ = observer.event(&Event::StepProgress { number, total, title, step_time, line });
            };
            let work = || cancel.check(title).map_err(resumable).and_then(|()| step.run());
            let outcome = match step.followed() {
                Some(log) => following(log, tell, work),
                None => work(),
            };
            match outcome {
                Ok(outcome) => {
                    let (step_time, elapsed) = (step_begin.elapsed(), begin.elapsed());
                    observer.event(&Event::StepDone { number, total, title, outcome, step_time, elapsed })?;
                }
                Err(error) => {
                    let hint = error.hint().map(str::to_owned);
                    observer.event(&Event::StepFailed { number, total, title, error: error.to_string(), hint })?;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// The shell commands that do the same, each step under its title.
    #[must_use]
    pub fn as_shell_script(&self) -> String {
        let mut script = String::new();
        for (number, step) in (1..).zip(&self.steps) {
            script += &format!("# {number}. {}\n", step.title());
            for command in step.shell_commands() {
                script += command;
                script.push('\n');
            }
        }
        script
    }
}

/// Does `work`, and tells the last line of `log` again and again meanwhile, whenever it is another.
fn following<T>(log: &(impl Log + Sync), mut tell: impl FnMut(&str) + Send, work: impl FnOnce() -> T) -> T {
    const INTERVAL: Duration = Duration::from_millis(500);
    // What was there before is not of this work.
    let start = log.length().ok().flatten().unwrap_or(0);
    let (working, done) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut told = None;
            while done.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                let line = tail(log, start, 1).pop();
                if line != told {
                    line.iter().for_each(|line| tell(line));
                    told = line;
                }
            }
        });
        let outcome = work();
        drop(working);
        outcome
    })
}

fn resumable(error: blockdev::Error) -> blockdev::Error {
    error.with_hint("`provision up` goes on from here, `provision down` takes it away")
}

/// Tells a person, on standard error: a line for each step, numbered, with how long it took and how much time has gone by.
#[derive(Debug, Default)]
pub struct Lines {
    /// How long the step had been at it when progress was told last.
    told: Duration,
}

/// How often progress is told where lines stay.
const PROGRESS: Duration = Duration::from_secs(30);
/// So much of a line fits beside a step's title.
const PROGRESS_WIDTH: usize = 60;

impl Observer for Lines {
    fn event(&mut self, event: &Event<'_>) -> Result<()> {
        let mut err = io::stderr().lock();
        let terminal = err.is_terminal();
        // Nobody is left to tell when standard error itself is gone.
        let _ = match event {
            Event::StepStarted { number, total, title } if terminal => {
                write!(err, "[{number:>2}/{total}]                  {title} ...\r")
            }
            Event::StepStarted { .. } => {
                self.told = Duration::ZERO;
                Ok(())
            }
            Event::StepProgress { number, total, title, step_time, line } => {
                let line: String = line.trim().chars().take(PROGRESS_WIDTH).collect();
                let step = step_time.as_secs_f64();
                if terminal {
                    write!(err, "[{number:>2}/{total}]          {step:+7.2}s {title}: {line}\x1b[K\r")
                } else if *step_time >= self.told + PROGRESS {
                    self.told = *step_time;
                    writeln!(err, "[{number:>2}/{total}]          {step:+7.2}s {title}: {line}")
                } else {
                    Ok(())
                }
            }
            Event::StepDone { number, total, title, outcome, step_time, elapsed } => {
                let (step, elapsed) = (step_time.as_secs_f64(), elapsed.as_secs_f64());
                let how = if *outcome == Outcome::Found { "already done" } else { "done" };
                let clear = if terminal { "\x1b[K" } else { "" };
                writeln!(err, "[{number:>2}/{total}] {elapsed:7.2}s {step:+7.2}s {title}: {how}{clear}")
            }
            Event::PortMoved(moved) => writeln!(err, "{moved}"),
            Event::StepFailed { number, total, title, .. } => {
                writeln!(err, "[{number:>2}/{total}]                  {title}: failed")
            }
        };
        Ok(())
    }
}

/// Tells a program, on standard output: a JSON document per line.
#[derive(Debug, Default)]
pub struct JsonLines;

impl Observer for JsonLines {
    fn event(&mut self, event: &Event<'_>) -> Result<()> {
        print_json_line(event)
    }
}

/// Prints `value` as JSON on one line of standard output.
///
/// # Errors
/// When standard output cannot be written.
pub fn print_json_line<T: Serialize>(value: &T) -> Result<()> {
    let line = serde_json::to_string(value).map_err(|source| {
        blockdev::Error::new(blockdev::ErrorKind::Io, "cannot write the result as JSON").with_source(source)
    })?;
    ui::print(&(line + "\n"))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use blockdev::{Error, ErrorKind};

    use super::*;

    #[derive(Default)]
    struct Told(Vec<serde_json::Value>);

    impl Observer for Told {
        fn event(&mut self, event: &Event<'_>) -> Result<()> {
            self.0.push(serde_json::to_value(event).unwrap());
            Ok(())
        }
    }

    fn noting<'a>(title: &'static str, notes: &'a RefCell<Vec<&'static str>>, ok: bool) -> Step<'a> {
        Step::new(
            title,
            move || Ok(notes.borrow().contains(&title)),
            move || {
                if !ok {
                    return Err(Error::invalid("it will not"));
                }
                notes.borrow_mut().push(title);
                Ok(())
            },
        )
        .shell([format!("do {title}")])
    }

    #[test]
    fn steps_run_in_order_until_one_fails_and_go_on_from_there() {
        let notes = RefCell::new(Vec::new());
        let mut plan = Plan::new();
        for (title, ok) in [("a", true), ("b", false), ("c", true)] {
            plan.push(noting(title, &notes, ok));
        }
        let mut log = Told::default();
        let error = plan.run(&mut log, &Cancel::new()).unwrap_err();
        assert_eq!((error.to_string().as_str(), error.kind()), ("cannot b", ErrorKind::InvalidInput));
        assert_eq!(*notes.borrow(), ["a"]);
        let events: Vec<(&str, u64)> =
            log.0.iter().map(|event| (event["event"].as_str().unwrap(), event["number"].as_u64().unwrap())).collect();
        assert_eq!(events, [("step_started", 1), ("step_done", 1), ("step_started", 2), ("step_failed", 2)]);
        assert_eq!(log.0[1]["outcome"], "done");
        assert!(log.0[1]["elapsed_ms"].is_u64());

        let mut again = Told::default();
        plan.run(&mut again, &Cancel::new()).unwrap_err();
        assert_eq!(again.0[1]["outcome"], "found");
        assert_eq!(plan.as_shell_script(), "# 1. a\ndo a\n# 2. b\ndo b\n# 3. c\ndo c\n");
    }

    #[test]
    fn asked_to_stop_it_begins_no_further_step() {
        let notes = RefCell::new(Vec::new());
        let mut plan = Plan::new();
        plan.push(noting("a", &notes, true));
        let cancel = Cancel::new();
        cancel.cancel();
        let error = plan.run(&mut Told::default(), &cancel).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Interrupted);
        assert_eq!(error.hint(), Some("`provision up` goes on from here, `provision down` takes it away"));
        assert!(notes.borrow().is_empty());
    }

    #[test]
    fn a_long_step_is_told_of_while_it_acts() {
        struct Heard(mpsc::Sender<String>);
        impl Observer for Heard {
            fn event(&mut self, event: &Event<'_>) -> Result<()> {
                if let Event::StepProgress { line, .. } = event {
                    self.0.send((*line).to_owned()).unwrap();
                }
                Ok(())
            }
        }
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        std::fs::write(&log, "yesterday's\n").unwrap();
        let (said, heard) = mpsc::channel();
        let written = log.clone();
        let step = Step::new(
            "build",
            || Ok(false),
            || {
                // Does not end before it was told of.
                for line in ["one", "two"] {
                    std::fs::write(&written, format!("yesterday's\n{line}\n")).unwrap();
                    assert_eq!(heard.recv_timeout(Duration::from_secs(30)).unwrap(), line);
                }
                Ok(())
            },
        );
        let mut plan = Plan::new();
        plan.push(step.verify(|| Ok(())).follow(log));
        plan.run(&mut Heard(said), &Cancel::new()).unwrap();
    }
}
