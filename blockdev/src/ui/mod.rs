//! What every program of the house does alike: errors, exit codes, output formats, progress.
//!
//! Data goes to standard output, everything else to standard error.

mod generate;
mod progress;

use std::error::Error as _;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use serde::{Serialize, Serializer};

use crate::error::{Error, Result};

pub use generate::{Generated, generate};
pub use progress::{Progress, ProgressBar, Silent};

/// Prints to standard error what failed, why, and what to do next.
pub fn report_error(program: &str, error: &Error) {
    let mut err = io::stderr().lock();
    // Nobody is left to tell when standard error itself is gone.
    let _ = writeln!(err, "{program}: {error}");
    let mut cause = error.source();
    while let Some(source) = cause {
        let _ = writeln!(err, "  because: {source}");
        cause = source.source();
    }
    if let Some(hint) = error.hint() {
        let _ = writeln!(err, "  hint: {hint}");
    }
}

/// Ends a program: prints the error, if any, and gives its [exit code](crate::ErrorKind::exit_code).
#[must_use]
pub fn exit(program: &str, outcome: &Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report_error(program, error);
            ExitCode::from(error.kind().exit_code())
        }
    }
}

/// Says something to the person, on standard error.
pub fn notice(text: &str) {
    // Nobody is left to tell when standard error itself is gone.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Writes data to standard output.
///
/// # Errors
/// When standard output cannot be written. A closed pipe (`| head`) is no error.
pub fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.map_err(|source| Error::io("cannot write to standard output", source)),
    }
}

/// How results are printed on standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON document.
    Json,
}

/// Prints `value` as JSON, or what `text` makes of it.
///
/// # Errors
/// When standard output cannot be written.
pub fn print_result<T: Serialize>(output: Output, value: &T, text: impl FnOnce(&T) -> String) -> Result<()> {
    match output {
        Output::Text => print(&text(value)),
        Output::Json => {
            let json = serde_json::to_string_pretty(value).map_err(|source| {
                Error::new(crate::ErrorKind::Io, "cannot write the result as JSON").with_source(source)
            })?;
            print(&(json + "\n"))
        }
    }
}

/// Serializes a path as text; bytes that are not UTF-8 are shown as `�`, rather than failing a whole report.
///
/// # Errors
/// Those of the serializer.
pub fn path_as_text<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// Whether standard error is a terminal, where a bar may move.
#[must_use]
pub fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}
