//! One step of a plan: look whether it is done, do it, prove that it is done.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;

use blockdev::{Context, Error, ErrorKind, Result};
use serde::Serialize;

/// How many lines of its log a failed step shows.
const LOG_LINES: usize = 12;
/// No line of interest is further from a log's end.
const LOG_TAIL_BYTES: u64 = 64 * 1024;

type Check<'a> = Box<dyn Fn() -> Result<bool> + 'a>;
type Act<'a> = Box<dyn Fn() -> Result<()> + 'a>;

/// What something prints while a step acts, read when the step fails.
pub trait Log {
    /// Where it is, for a person.
    fn place(&self) -> String;

    /// How many bytes it has; nothing if there is none yet.
    ///
    /// # Errors
    /// When it cannot be looked at.
    fn length(&self) -> Result<Option<u64>>;

    /// What it holds from byte `start` on.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&self, start: u64) -> Result<Vec<u8>>;
}

/// A file of this machine.
impl Log for PathBuf {
    fn place(&self) -> String {
        self.display().to_string()
    }

    fn length(&self) -> Result<Option<u64>> {
        match std::fs::metadata(self) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            metadata => Ok(Some(metadata.context(|| format!("cannot look at the log {}", self.display()))?.len())),
        }
    }

    fn read(&self, start: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(self)
            .and_then(|mut file| file.seek(SeekFrom::Start(start)).and_then(|_| file.read_to_end(&mut bytes)))
            .context(|| format!("cannot read the log {}", self.display()))?;
        Ok(bytes)
    }
}

/// Check, act, verify.
///
/// `check` says whether the step is done already and changes nothing; only if it is not, `act` does it; then `verify`
/// must find it done. A step that was killed anywhere in `act` must be one that `act` can do again.
pub struct Step<'a> {
    title: String,
    shell: Vec<String>,
    check: Check<'a>,
    act: Act<'a>,
    verify: Option<Act<'a>>,
    log: Option<Box<dyn Log + 'a>>,
    explain: fn(&str) -> Option<&'static str>,
    followed: Option<PathBuf>,
}

/// How a step came to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It had been done before.
    Found,
    /// It was done now.
    Done,
}

impl fmt::Debug for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Step").field("title", &self.title).field("shell", &self.shell).finish_non_exhaustive()
    }
}

impl<'a> Step<'a> {
    /// A step that is done when `check` says so, and done by `act`.
    pub fn new(
        title: impl Into<String>,
        check: impl Fn() -> Result<bool> + 'a,
        act: impl Fn() -> Result<()> + 'a,
    ) -> Self {
        Self {
            title: title.into(),
            shell: Vec::new(),
            check: Box::new(check),
            act: Box::new(act),
            verify: None,
            log: None,
            explain: |_| None,
            followed: None,
        }
    }

    /// The shell commands that do the same.
    #[must_use]
    pub fn shell(mut self, commands: impl IntoIterator<Item = String>) -> Self {
        self.shell.extend(commands);
        self
    }

    /// Proves that the step is done, where asking `check` again would not.
    #[must_use]
    pub fn verify(mut self, verify: impl Fn() -> Result<()> + 'a) -> Self {
        self.verify = Some(Box::new(verify));
        self
    }

    /// Where what it runs writes its log, and what is likely to have gone wrong when the log ends like that.
    #[must_use]
    pub fn log(mut self, log: impl Log + 'a, explain: fn(&str) -> Option<&'static str>) -> Self {
        self.log = Some(Box::new(log));
        self.explain = explain;
        self
    }

    /// It takes minutes, and what it runs writes into this file meanwhile: that is told while it acts.
    #[must_use]
    pub fn follow(mut self, log: PathBuf) -> Self {
        self.followed = Some(log);
        self
    }

    /// What is told of it while it acts: the end of this file.
    #[must_use]
    pub fn followed(&self) -> Option<&PathBuf> {
        self.followed.as_ref()
    }

    /// What it does, in a few words.
    #[must_use]
    pub fn title(&self) -> &str {
        &self.title
    }

    /// The shell commands that do the same.
    #[must_use]
    pub fn shell_commands(&self) -> &[String] {
        &self.shell
    }

    /// Does the step unless it is done.
    ///
    /// # Errors
    /// What failed, the last lines of the log written meanwhile, the likely cause and how to go on.
    pub fn run(&self) -> Result<Outcome> {
        if (self.check)().map_err(|error| self.failed(error, None))? {
            return Ok(Outcome::Found);
        }
        let log_start = self.log.as_ref().map(|log| length(&**log));
        self.act_and_verify().map_err(|error| self.failed(error, log_start))
    }

    fn act_and_verify(&self) -> Result<Outcome> {
        (self.act)()?;
        match &self.verify {
            Some(verify) => verify()?,
            None if (self.check)()? => {}
            None => {
                return Err(Error::new(ErrorKind::VerifyFailed, "what it did had no effect"));
            }
        }
        Ok(Outcome::Done)
    }

    fn failed(&self, error: Error, log_start: Option<u64>) -> Error {
        let kind = error.kind();
        if kind == ErrorKind::Interrupted {
            return error.with_hint("`provision up` goes on from here, `provision down` takes it away");
        }
        let mut message = format!("cannot {}", self.title);
        let mut tail = Vec::new();
        if let (Some(log), Some(start)) = (&self.log, log_start) {
            tail = self::tail(&**log, start, LOG_LINES);
            if !tail.is_empty() {
                message += &format!("\n  the last lines of {}:\n    {}", log.place(), tail.join("\n    "));
            }
        }
        let cause = (self.explain)(&tail.join("\n")).map(|cause| format!("likely cause: {cause}"));
        let advice = error.hint().map(str::to_owned);
        let go_on = "then run the same command again: it goes on from here".to_owned();
        let hint: Vec<String> = [cause, advice, Some(go_on)].into_iter().flatten().collect();
        Error::new(kind, message).with_source(error).with_hint(hint.join("; "))
    }
}

fn length(log: &dyn Log) -> u64 {
    log.length().ok().flatten().unwrap_or(0)
}

/// The last `lines` lines that were written to `log` after its first `start` bytes; none if it cannot be read.
#[must_use]
pub fn tail(log: &dyn Log, start: u64, lines: usize) -> Vec<String> {
    let bytes = log.read(start.max(length(log).saturating_sub(LOG_TAIL_BYTES))).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    all[all.len().saturating_sub(lines)..].iter().map(|line| (*line).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::error::Error as _;
    use std::fs;

    use super::*;

    #[test]
    fn what_is_done_is_not_done_again() {
        let acted = Cell::new(0);
        let done = Cell::new(false);
        let step = Step::new(
            "count",
            || Ok(done.get()),
            || {
                acted.set(acted.get() + 1);
                done.set(true);
                Ok(())
            },
        );
        assert_eq!(step.run().unwrap(), Outcome::Done);
        assert_eq!(step.run().unwrap(), Outcome::Found);
        assert_eq!(acted.get(), 1);
    }

    #[test]
    fn an_act_without_effect_is_a_failure() {
        let error = Step::new("pretend", || Ok(false), || Ok(())).run().unwrap_err();
        assert_eq!(error.to_string(), "cannot pretend");
        assert_eq!(error.source().unwrap().to_string(), "what it did had no effect");
        assert_eq!(error.kind(), ErrorKind::VerifyFailed);
    }

    #[test]
    fn a_failure_shows_its_own_log_its_cause_and_the_way_on() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        fs::write(&log, "of an earlier run: port in use\n").unwrap();
        let step = Step::new(
            "start it",
            || Ok(false),
            || {
                let text: String = (1..=20).map(|n| format!("line {n}\n")).collect();
                fs::write(&log, format!("of an earlier run: port in use\n{text}disk full\n")).unwrap();
                Err(Error::new(ErrorKind::Io, "`it` ended with exit status 1"))
            },
        )
        .log(log.clone(), |text| match text {
            text if text.contains("port in use") => Some("the port is taken"),
            text if text.contains("disk full") => Some("the disk is full"),
            _ => None,
        });
        let error = step.run().unwrap_err();
        let shown = error.to_string();
        assert!(shown.starts_with(&format!("cannot start it\n  the last lines of {}:", log.display())), "{shown}");
        assert!(shown.ends_with("line 20\n    disk full") && !shown.contains("line 9\n"), "{shown}");
        assert_eq!(error.source().unwrap().to_string(), "`it` ended with exit status 1");
        assert_eq!(
            error.hint(),
            Some("likely cause: the disk is full; then run the same command again: it goes on from here")
        );
    }
}
