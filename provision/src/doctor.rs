//! What this machine lacks, found before it is missed.

use blockdev::{Error, Result};
use serde::Serialize;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// It works, but something is worth knowing.
    Warning,
    /// The cluster cannot be made or started.
    Error,
}

/// Something that is not as the cluster needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is called, always the same for the same thing.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

impl Finding {
    /// Something that keeps the cluster from being made or started.
    pub fn error(id: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { id, severity: Severity::Error, message: message.into(), remedy: remedy.into() }
    }

    /// Something worth knowing.
    pub fn warning(id: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { id, severity: Severity::Warning, message: message.into(), remedy: remedy.into() }
    }

    /// What an operation that failed with `error` found.
    #[must_use]
    pub fn from_error(id: &'static str, error: &Error) -> Self {
        Self::error(id, error.to_string(), error.hint().unwrap_or_default())
    }
}

/// Refuses to go on when there is an error among the findings.
///
/// # Errors
/// All errors, with their ids and remedies.
pub fn refuse_errors(findings: &[Finding]) -> Result<()> {
    let errors: Vec<&Finding> = findings.iter().filter(|finding| finding.severity == Severity::Error).collect();
    let list = |text: fn(&Finding) -> &str, separator: &str| {
        errors.iter().map(|finding| text(finding)).filter(|text| !text.is_empty()).collect::<Vec<_>>().join(separator)
    };
    if errors.is_empty() {
        return Ok(());
    }
    let ids = list(|finding| finding.id, ", ");
    Err(Error::refused(format!("{} [{ids}]", list(|finding| &finding.message, "\n  and ")))
        .with_hint(list(|finding| &finding.remedy, "\n        ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_is_told_at_once_and_warnings_stop_nobody() {
        let warning = Finding::warning("little-memory", "there is little memory", "buy some");
        refuse_errors(std::slice::from_ref(&warning)).unwrap();
        let findings = [
            warning,
            Finding::error("port-taken", "port 1 is taken", "name another"),
            Finding::error("disk-space", "the disk is full", "make room"),
        ];
        let error = refuse_errors(&findings).unwrap_err();
        assert_eq!(error.to_string(), "port 1 is taken\n  and the disk is full [port-taken, disk-space]");
        assert_eq!(error.hint(), Some("name another\n        make room"));
        assert_eq!(error.kind(), blockdev::ErrorKind::Refused);
    }
}
