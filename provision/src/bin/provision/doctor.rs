//! `provision doctor`: what this machine lacks, before it is missed.

use blockdev::{Cancel, Error, ErrorKind, Result, ui};
use clap::ArgMatches;
use provision::config::Settings;
use provision::doctor::{Finding, Severity};
use provision::up::Up;

use crate::selection::Selection;

/// Say what this machine lacks for the cluster, and what to do about it.
///
/// Looks at the cluster that exists, or at the one that `up` would make with the same flags. Fails, with status 5, when
/// something keeps it from running.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    settings: Settings,
}

pub(crate) fn run(args: &Args, selection: &Selection, matches: &ArgMatches, output: ui::Output) -> Result<()> {
    let layers = selection.layers(&args.settings, matches)?;
    let findings = Up::examine(&selection.state()?, layers, &Cancel::on_signals()?)?;
    ui::print_result(output, &findings, |findings| text(findings))?;
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    match errors {
        0 => Ok(()),
        1 => Err(Error::new(ErrorKind::VerifyFailed, "1 error was found")),
        _ => Err(Error::new(ErrorKind::VerifyFailed, format!("{errors} errors were found"))),
    }
}

fn text(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return "nothing is amiss\n".to_owned();
    }
    let line = |finding: &Finding| {
        let severity = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        format!("{severity} [{}]: {}\n  {}\n", finding.id, finding.message, finding.remedy)
    };
    findings.iter().map(line).collect()
}
