//! What every program of the house does alike: errors, exit codes, output formats, progress.
//!
//! Data goes to standard output, everything else to standard error.

mod countdown;
mod generate;
mod progress;
mod table;

use std::error::Error as _;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use nix::unistd::geteuid;
use serde::{Serialize, Serializer};

use crate::error::{Error, ErrorKind, Result};

pub use countdown::Countdown;
pub use generate::{Generated, generate};
pub use progress::{Progress, ProgressBar, Silent};
pub use table::{facts, table};

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
    print_bytes(text.as_bytes()).map(|_| ())
}

/// Writes data that need not be text to standard output. Returns whether anybody still reads it: false once a pipe is
/// closed (`| head`), which is no error.
///
/// # Errors
/// When standard output cannot be written.
pub fn print_bytes(bytes: &[u8]) -> Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        outcome => outcome.map(|()| true).map_err(|source| Error::io("cannot write to standard output", source)),
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
            let json = serde_json::to_string_pretty(value)
                .map_err(|source| Error::new(ErrorKind::Io, "cannot write the result as JSON").with_source(source))?;
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

/// The command line of this process as root: what to type after an error of missing permission.
#[must_use]
pub fn sudo_line() -> String {
    let mut arguments = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned());
    let typed = arguments.next().unwrap_or_default();
    // sudo has a PATH of its own.
    let program = if typed.contains('/') { None } else { std::env::current_exe().ok() };
    let program = program.map_or(typed, |path| path.to_string_lossy().into_owned());
    let words: Vec<String> = std::iter::once(program).chain(arguments).map(|word| shell_word(&word)).collect();
    format!("sudo {}", words.join(" "))
}

/// Adds to an error of missing permission what to do about it.
///
/// # Errors
/// The error of `outcome`.
pub fn needs_root<T>(outcome: Result<T>) -> Result<T> {
    outcome.map_err(|error| match error.kind() {
        _ if error.hint().is_some() => error,
        ErrorKind::Permission if geteuid().is_root() => error.with_hint(
            "this root may not: it lacks CAP_SYS_ADMIN, or its container was not given the device; run it on the host",
        ),
        ErrorKind::Permission => error.with_hint(sudo_line()),
        _ => error,
    })
}

/// `word` as a shell reads it back.
#[must_use]
pub fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Whether standard error is a terminal, where a bar may move.
#[must_use]
pub fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_words_back() {
        for word in ["", "a", "it's", "a b", "$HOME", "*", "-x=1,2:/a.b+c@d%", "~", "'", "\n", "é"] {
            let line = format!("printf %s {}", shell_word(word));
            let out = std::process::Command::new("sh").args(["-c", &line]).output().unwrap();
            assert_eq!(String::from_utf8(out.stdout).unwrap(), word, "{line}");
        }
    }

    #[test]
    fn the_sudo_line_is_this_command() {
        let line = sudo_line();
        assert!(line.starts_with("sudo /"), "{line}");
    }
}
