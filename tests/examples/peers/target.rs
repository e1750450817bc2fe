//! What is asked of the programs, and whether they keep it.

use bench::report::{Finding, Severity};

/// A ratio that is asked for.
pub(crate) struct Target {
    /// Names it to programs.
    pub(crate) id: &'static str,
    /// What the ratio is of, in words.
    pub(crate) what: String,
    /// On which side of which number it should be.
    pub(crate) wanted: Wanted,
}

/// On which side of which number.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wanted {
    /// At least that.
    AtLeast(f64),
    /// At most that.
    AtMost(f64),
}

impl Target {
    /// Holds `ratio` against it.
    pub(crate) fn judge(&self, ratio: f64) -> Finding {
        let (met, wanted) = match self.wanted {
            Wanted::AtLeast(bound) => (ratio >= bound, format!("at least {bound:.2}")),
            Wanted::AtMost(bound) => (ratio <= bound, format!("at most {bound:.2}")),
        };
        let (severity, verdict) = if met { (Severity::Note, "met") } else { (Severity::Warning, "NOT met") };
        Finding::new(severity, self.id, format!("{}: {ratio:.3}, wanted {wanted}: {verdict}", self.what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_met_or_not() {
        let judge = |wanted, ratio| Target { id: "x", what: "A over B".to_owned(), wanted }.judge(ratio);
        let met = judge(Wanted::AtLeast(1.3), 1.3);
        assert_eq!((met.severity, met.text.as_str()), (Severity::Note, "A over B: 1.300, wanted at least 1.30: met"));
        let missed = judge(Wanted::AtMost(0.2), 0.25);
        assert_eq!(missed.severity, Severity::Warning);
        assert_eq!(missed.text, "A over B: 0.250, wanted at most 0.20: NOT met");
    }
}
